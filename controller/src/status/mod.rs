//! Writes what has become of routes and of Weft's own objects into their statuses.
//!
//! `patch` (pure) says what is to be written, `queue` (pure) for which object next. The
//! writer reads the object and writes with the version that it has read: when somebody
//! comes in between, it reads again.

mod patch;
mod queue;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, Error};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_config::status::WatchStatus;

use crate::api::kinds::WATCHED;
use crate::api::{CONTROLLER, Key, mesh};
use crate::metrics::Counters;
pub use patch::Desired;
pub use queue::Outcome;
use queue::{Queue, Turn};

/// At most 50 a second: what thousands of routes have to be told must not starve the
/// API server.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What fails again and again is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const MANAGER: &str = "weft-controller";

pub struct Writer {
    client: Client,
    /// The name of the object that stands for us, made if there is none.
    mesh: String,
    begun: Instant,
    queue: Mutex<Queue>,
    /// In which version each kind is served.
    versions: Mutex<BTreeMap<String, String>>,
    more: Notify,
    told: Mutex<Option<Instant>>,
    results: Counters,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("queue", &self.queue.lock().len())
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// `results`: where outcomes are counted.
    pub fn new(client: Client, mesh: &str, results: Counters) -> Self {
        Self {
            client,
            mesh: mesh.to_owned(),
            begun: Instant::now(),
            queue: Mutex::default(),
            versions: Mutex::default(),
            more: Notify::new(),
            told: Mutex::default(),
            results,
        }
    }

    /// Takes up in which versions kinds are served; those for which that is another.
    pub fn served(&self, watches: &[WatchStatus]) -> Vec<String> {
        let mut versions = self.versions.lock();
        let mut changed = Vec::new();
        for watch in watches {
            if versions.get(&watch.kind) != Some(&watch.version) {
                versions.insert(watch.kind.clone(), watch.version.clone());
                changed.push(watch.kind.clone());
            }
        }
        changed
    }

    /// Takes up what is to be said of an object.
    pub fn tell(&self, key: Key, desired: Desired) {
        let now = self.begun.elapsed();
        match self.queue.lock().put(key, desired, now) {
            true => self.more.notify_one(),
            false => self.results.count("dropped"),
        }
    }

    /// Another writes from now on.
    pub fn stop(&self) {
        self.queue.lock().clear();
    }

    /// Writes for as long as it is polled.
    pub async fn run(&self) {
        loop {
            let taken = self.queue.lock().take(self.begun.elapsed());
            match taken {
                Ok(turn) => {
                    let outcome = self.write(&turn).await;
                    self.results.count(outcome.result());
                    let now = self.begun.elapsed();
                    self.queue.lock().done(turn, outcome, now);
                    tokio::time::sleep(WRITE_INTERVAL).await;
                }
                Err(Some(due)) => {
                    let due = tokio::time::sleep_until(self.begun + due);
                    tokio::select! {
                        () = due => {}
                        () = self.more.notified() => {}
                    }
                }
                Err(None) => self.more.notified().await,
            }
        }
    }

    async fn write(&self, turn: &Turn) -> Outcome {
        let written = tokio::time::timeout(ANSWER_MAX, self.try_write(turn)).await;
        let why = match written {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(Error::Api(status))) if status.code == 409 => return Outcome::Conflict,
            Ok(Err(Error::Api(status))) if status.code == 404 => return Outcome::Right,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {ANSWER_MAX:?}"),
        };
        let mut told = self.told.lock();
        if told.is_none_or(|told| told.elapsed() >= LOG_INTERVAL) {
            *told = Some(Instant::now());
            tracing::warn!(object = %turn.key, why, "a status cannot be written; trying again");
        }
        Outcome::Failed
    }

    async fn try_write(&self, turn: &Turn) -> Result<Outcome, Error> {
        let Some((api, resource)) = self.api(&turn.key) else {
            return Ok(Outcome::Right);
        };
        let Some(object) = api.get_opt(&turn.key.name).await? else {
            return self.create(&turn.key, &api, &resource).await;
        };
        let version = object.metadata.resource_version.clone();
        let object = serde_json::to_value(object).map_err(Error::SerdeError)?;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let Some(status) = patch::status(&object, &turn.desired, &now) else {
            return Ok(Outcome::Right);
        };
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch_status(&turn.key.name, &params, &Patch::Merge(patch))
            .await?;
        Ok(Outcome::Written)
    }

    /// The mesh's own object is made where it is missing, as GEP-3949 has it: with nothing
    /// but whose it is. Its status is written when it is seen.
    async fn create(
        &self,
        key: &Key,
        api: &Api<DynamicObject>,
        resource: &ApiResource,
    ) -> Result<Outcome, Error> {
        if *key != mesh::key(&self.mesh) {
            return Ok(Outcome::Right);
        }
        let mut object = DynamicObject::new(&key.name, resource);
        object.data = json!({"spec": {"controllerName": CONTROLLER}});
        api.create(&PostParams::default(), &object).await?;
        tracing::info!(name = key.name, "made the {}", mesh::KIND);
        Ok(Outcome::Written)
    }

    /// `None`: the kind is not served.
    fn api(&self, key: &Key) -> Option<(Api<DynamicObject>, ApiResource)> {
        let of = WATCHED.iter().find(|of| of.kind == key.kind)?;
        let version = self.versions.lock().get(key.kind).cloned()?;
        let resource = (!version.is_empty()).then(|| of.resource(&version))?;
        let client = self.client.clone();
        let api = match key.namespace.as_str() {
            "" => Api::all_with(client, &resource),
            namespace => Api::namespaced_with(client, namespace, &resource),
        };
        Some((api, resource))
    }
}

//! Writes what has become of routes and of Weft's own objects into their statuses.
//!
//! `patch` (pure) says what is to be written, `queue` (pure) for which object next,
//! `trouble` what goes wrong. The writer takes the object as the watch has seen it last, so
//! that what is right costs no request, and writes with that version: when somebody comes
//! in between, the watch brings the object as it is then.

mod patch;
mod queue;
mod trouble;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::iter::once;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Client, Error};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_config::status::{ObjectStatus, SourceError, WatchStatus};

use crate::api::errors::ForStatus;
use crate::api::kinds::WATCHED;
use crate::api::{CONTROLLER, Key, mesh};
use crate::metrics::Counters;
pub use patch::Desired;
pub use queue::Outcome;
use queue::{Next, QUEUE_MAX, Queue, Turn};
use trouble::Troubles;

/// At most 50 a second: what thousands of routes have to be told must not starve the
/// API server.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);
const ANSWER_MAX: Duration = Duration::from_secs(5);
const MANAGER: &str = "weft-controller";

pub struct Writer {
    client: Client,
    /// The name of the object that stands for us, made if there is none.
    mesh: String,
    begun: Instant,
    queue: Mutex<Queue>,
    /// In which version each kind is served.
    versions: Mutex<BTreeMap<String, String>>,
    /// Objects as they were seen last.
    seen: Mutex<BTreeMap<Key, ForStatus>>,
    more: Notify,
    pub troubles: Troubles,
    results: Counters,
}

/// Who knows what is to be said.
pub trait Sayings {
    fn said(&self, key: &Key) -> Vec<ObjectStatus>;
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
            queue: Mutex::new(Queue::new(QUEUE_MAX)),
            versions: Mutex::default(),
            seen: Mutex::default(),
            more: Notify::new(),
            troubles: Troubles::default(),
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

    /// Takes up objects as they have been seen; `None`: it has gone.
    pub fn saw(&self, seen: &BTreeMap<Key, Option<ForStatus>>) {
        let mut objects = self.seen.lock();
        for (key, object) in seen {
            match object {
                Some(object) => drop(objects.insert(key.clone(), object.clone())),
                None => {
                    objects.remove(key);
                    self.troubles.forget(key);
                }
            }
        }
    }

    /// Something else may have to be said of an object.
    pub fn tell(&self, key: Key) {
        if !self.queue.lock().put(key, self.begun.elapsed()) {
            self.results.count("dropped");
        }
        self.more.notify_one();
    }

    /// We write from now on: of every object something else may have to be said.
    pub fn start(&self) {
        self.queue.lock().begin_round();
        self.more.notify_one();
    }

    /// Another writes from now on.
    pub fn stop(&self) {
        self.queue.lock().clear();
        self.troubles.clear();
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> usize {
        self.queue.lock().len()
    }

    /// Writes for as long as it is polled.
    pub async fn run(self: &Arc<Self>, sayings: &impl Sayings) {
        // Ends with us: who leads no more writes no more.
        let mut writes = JoinSet::new();
        let mut next = Instant::now();
        loop {
            let to_do = self.queue.lock().next(self.begun.elapsed());
            let wait = match to_do {
                Next::Turn(turn) => {
                    let (error, seen) = self.as_seen(&turn);
                    let statuses = sayings.said(&turn.key);
                    let desired = Desired { statuses, error };
                    if self.is_right(&turn, &desired, seen.as_ref()) {
                        self.done(turn, (Outcome::Right, String::new()));
                        tokio::task::yield_now().await;
                        continue;
                    }
                    writes.spawn(Arc::clone(self).write(turn, desired, seen));
                    next = next.max(Instant::now()) + WRITE_INTERVAL;
                    Some(next)
                }
                Next::Look(after) => {
                    self.look(after);
                    tokio::task::yield_now().await;
                    continue;
                }
                Next::Wait(due) => due.map(|due| self.begun + due),
            };
            let is_paced = wait == Some(next);
            tokio::select! {
                () = until(wait) => {}
                Some(ended) = writes.join_next(), if !is_paced => {
                    if let Ok((turn, outcome)) = ended {
                        self.done(turn, outcome);
                    }
                }
                () = self.more.notified(), if !is_paced => {}
            }
            while let Some(Ok((turn, outcome))) = writes.try_join_next() {
                self.done(turn, outcome);
            }
        }
    }

    /// The next part of a round through all objects that have been seen, and at its end the
    /// mesh's own, which may have to be made.
    fn look(&self, after: Option<Key>) {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (seen, mesh) = (self.seen.lock(), mesh::key(&self.mesh));
        let rest = seen.range((after, Bound::Unbounded)).map(|(key, _)| key);
        let now = self.begun.elapsed();
        self.queue.lock().look(rest.chain(once(&mesh)), now);
    }

    fn done(&self, turn: Turn, (outcome, why): (Outcome, String)) {
        self.results.count(outcome.result());
        let (key, tries) = (turn.key.clone(), turn.tries);
        let fights = self.queue.lock().done(turn, outcome, self.begun.elapsed());
        self.troubles.take(&key, outcome, tries, fights, why);
    }

    /// The object as it was seen last, and what is wrong with it: a newer one makes the write
    /// fail.
    fn as_seen(&self, turn: &Turn) -> (Option<Arc<SourceError>>, Option<Value>) {
        let Some(seen) = self.seen.lock().get(&turn.key).cloned() else {
            return (None, None);
        };
        (seen.error, serde_json::from_str(&seen.object).ok())
    }

    /// Whether that is known without a request.
    fn is_right(&self, turn: &Turn, desired: &Desired, seen: Option<&Value>) -> bool {
        match seen {
            Some(object) => patch::status(object, desired, &now()).is_none(),
            // It has gone; but the mesh's own object has yet to come.
            None => turn.key != mesh::key(&self.mesh),
        }
    }

    /// What became of it, and why.
    async fn write(
        self: Arc<Self>,
        turn: Turn,
        desired: Desired,
        seen: Option<Value>,
    ) -> (Turn, (Outcome, String)) {
        let writing = self.try_write(&turn.key, &desired, seen);
        let outcome = match tokio::time::timeout(ANSWER_MAX, writing).await {
            Ok(Ok(outcome)) => (outcome, String::new()),
            Ok(Err(Error::Api(status))) if status.code == 409 => {
                (Outcome::Conflict, status.message)
            }
            Ok(Err(Error::Api(status))) if status.code == 404 => (Outcome::Right, String::new()),
            Ok(Err(error)) => (Outcome::Failed, error.to_string()),
            Err(_) => (Outcome::Failed, format!("no answer within {ANSWER_MAX:?}")),
        };
        (turn, outcome)
    }

    async fn try_write(
        &self,
        key: &Key,
        desired: &Desired,
        seen: Option<Value>,
    ) -> Result<Outcome, Error> {
        let Some((api, resource)) = self.api(key) else {
            return Ok(Outcome::Right);
        };
        let Some(object) = seen else {
            return self.create(key, &api, &resource).await;
        };
        let Some(status) = patch::status(&object, desired, &now()) else {
            return Ok(Outcome::Right);
        };
        let version = &object["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch_status(&key.name, &params, &Patch::Merge(patch))
            .await?;
        let mut hasher = DefaultHasher::new();
        // Not the times that are in it.
        format!("{desired:?}").hash(&mut hasher);
        Ok(Outcome::Written(hasher.finish()))
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
        Ok(Outcome::Written(0))
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

/// As statuses have it.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::mpsc;

    use super::*;

    fn route(number: u32) -> Key {
        Key {
            kind: "HTTPRoute",
            namespace: "shop".to_owned(),
            name: format!("{number:03}"),
        }
    }

    /// Notes what it is asked for; nothing that is written is right.
    struct Asked(Mutex<BTreeSet<Key>>);

    impl Sayings for Asked {
        fn said(&self, key: &Key) -> Vec<ObjectStatus> {
            self.0.lock().insert(key.clone());
            Vec::new()
        }
    }

    /// Looks at more objects of one namespace than may wait, without an API server: every write
    /// fails.
    async fn looked_at(all: BTreeSet<Key>) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nobody = "http://127.0.0.1:1".parse().unwrap();
        let client = Client::try_from(kube::Config::new(nobody)).unwrap();
        let results = crate::metrics::Metrics::new(crate::metrics::Values::default()).status_writes;
        let writer = Arc::new(Writer::new(client, "weft", results));
        *writer.queue.lock() = Queue::new(4);
        writer.served(&[WatchStatus {
            kind: "HTTPRoute".to_owned(),
            version: "v1".to_owned(),
            ..WatchStatus::default()
        }]);
        let parent = json!([{"group": "", "kind": "Service", "name": "web"}]);
        let object = json!({"kind": "HTTPRoute", "spec": {"parentRefs": parent}});
        let seen = ForStatus {
            object: object.to_string().into(),
            error: Some(Arc::default()),
        };
        let seen = all.iter().map(|key| (key.clone(), Some(seen.clone())));
        writer.saw(&seen.collect());
        all.iter().for_each(|key| writer.tell(key.clone()));
        let asked = Asked(Mutex::default());
        let is_done = async {
            while !all.is_subset(&asked.0.lock()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = writer.run(&asked) => {}
            () = is_done => {}
        }
    }

    #[test]
    fn the_last_of_more_than_may_wait_are_looked_at_and_nobody_spins() {
        let (done, is_done) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(looked_at((0..20).map(route).collect()));
            done.send(()).unwrap();
        });
        is_done
            .recv_timeout(Duration::from_secs(60))
            .expect("the loop goes on");
    }
}

//! What all streams share: the present view, who is connected and how far each
//! has come, who is leaving.
//!
//! **Invariant:** a revision grows with every change of the view, and a proxy has
//! acknowledged one only when nothing that was sent up to it is unanswered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, watch};
use tonic::Status;
use weft_config::status::{self, ProxyStatus, RootStatus, SourceError};
use weft_config::wire::LeaveResponse;

use super::Caller;
use crate::ca::{Ca, fingerprint, subject_and_end, token};
use crate::index::{Objects, View};

/// Connected proxies.
pub const PROXIES_MAX: usize = 20_000;
/// Certificates signed in a second.
const SIGNS_PER_SECOND_MAX: u32 = 200;

/// A resource as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Hash of the content: the same in every controller.
    pub version: String,
    pub bytes: Bytes,
}

impl Encoded {
    fn of(message: &impl Message) -> Self {
        let bytes = Bytes::from(message.encode_to_vec());
        // FNV-1a: std's hashers promise no stability.
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self {
            version: format!("{hash:016x}"),
            bytes,
        }
    }
}

/// Names a resource: its type, its name and, for destinations, for whom.
type Wanted = (String, String, String);

#[derive(Debug, Default)]
struct State {
    objects: Objects,
    errors: Vec<SourceError>,
    view: Arc<View>,
    revision: u64,
    leaving: BTreeSet<String>,
    proxies: BTreeMap<u64, Proxy>,
    next: u64,
    /// Resources of this revision, encoded once for all who want them.
    encoded: HashMap<Wanted, Encoded>,
    signs: Option<(Instant, u32)>,
}

impl State {
    /// Whether the caller's workload is its identity's, as far as is known: a token
    /// that names no workload lets its owner choose one.
    fn is_owner(&self, caller: &Caller) -> bool {
        self.view.workload(&caller.workload).is_none_or(|workload| {
            let of = (
                workload.namespace.as_str(),
                workload.service_account.as_str(),
            );
            of == (
                caller.identity.namespace(),
                caller.identity.service_account(),
            )
        })
    }
}

#[derive(Debug)]
struct Proxy {
    status: ProxyStatus,
    /// Endpoints that it is subscribed to.
    endpoints: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Hub {
    pub ca: Ca,
    pub tokens: token::Verifier,
    state: Mutex<State>,
    revision: watch::Sender<u64>,
    /// Some proxy has acknowledged something, or has gone.
    acknowledged: Notify,
}

impl Hub {
    pub fn new(ca: Ca, tokens: token::Verifier) -> Self {
        Self {
            ca,
            tokens,
            state: Mutex::default(),
            revision: watch::Sender::new(0),
            acknowledged: Notify::new(),
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Takes what the source has now.
    pub fn update(&self, objects: Objects, errors: Vec<SourceError>) {
        let mut state = self.state.lock();
        state.objects = objects;
        state.errors = errors;
        let gone: BTreeSet<String> = {
            let pods = state
                .objects
                .values()
                .filter_map(|object| match &object.spec {
                    crate::api::Spec::Pod(pod) => Some(pod.uid.clone()),
                    _ => None,
                });
            let known: BTreeSet<String> = pods.collect();
            state.leaving.difference(&known).cloned().collect()
        };
        state.leaving.retain(|uid| !gone.contains(uid));
        self.rebuild(&mut state);
    }

    /// The authority's files changed: the trust bundle may have.
    pub fn trust_changed(&self) {
        self.rebuild(&mut self.state.lock());
    }

    fn rebuild(&self, state: &mut State) {
        let view = View::build(&self.ca.trust_domain, &state.objects, &state.leaving);
        state.view = Arc::new(view);
        state.revision += 1;
        state.encoded.clear();
        self.revision.send_replace(state.revision);
    }

    /// The resource as of now; `None`: there is none.
    pub fn resource(&self, type_url: &str, name: &str, caller: &Caller) -> Option<Encoded> {
        let namespace = caller.identity.namespace();
        let mut state = self.state.lock();
        let audience = match type_url.ends_with("Destination") {
            true => namespace,
            false => "",
        };
        let wanted = (type_url.to_owned(), name.to_owned(), audience.to_owned());
        if type_url.ends_with(".Workload") && (name != caller.workload || !state.is_owner(caller)) {
            return None;
        }
        if let Some(encoded) = state.encoded.get(&wanted) {
            return Some(encoded.clone());
        }
        let view = Arc::clone(&state.view);
        let kind = type_url.rsplit('.').next().unwrap_or("");
        let encoded = match kind {
            "Destination" => view.destination(namespace, name).map(|of| Encoded::of(&of)),
            "Service" => view.service(name).map(Encoded::of),
            "Endpoints" => view.endpoints(name).map(Encoded::of),
            "Workload" => view.workload(name).map(Encoded::of),
            "TrustBundle" if name == self.ca.trust_domain => Some(Encoded::of(&self.ca.bundle())),
            _ => None,
        }?;
        // Only what there is: names that are made up must not be remembered.
        state.encoded.insert(wanted, encoded.clone());
        Some(encoded)
    }

    /// A proxy has connected; its place in the list.
    pub fn connected(&self, status: ProxyStatus) -> Result<u64, Status> {
        let mut state = self.state.lock();
        if state.proxies.len() >= PROXIES_MAX {
            return Err(Status::resource_exhausted("too many proxies are connected"));
        }
        state.next += 1;
        let id = state.next;
        let endpoints = BTreeSet::new();
        state.proxies.insert(id, Proxy { status, endpoints });
        Ok(id)
    }

    pub fn disconnected(&self, id: u64) {
        self.state.lock().proxies.remove(&id);
        self.acknowledged.notify_waiters();
    }

    /// Notes which Endpoints a proxy wants, before it is sent any.
    pub fn wants(&self, id: u64, endpoints: BTreeSet<String>) {
        if let Some(proxy) = self.state.lock().proxies.get_mut(&id) {
            proxy.endpoints = endpoints;
        }
    }

    /// Notes how far a proxy has come.
    pub fn progress(&self, id: u64, note: impl FnOnce(&mut ProxyStatus)) {
        if let Some(proxy) = self.state.lock().proxies.get_mut(&id) {
            note(&mut proxy.status);
        }
        self.acknowledged.notify_waiters();
    }

    /// A workload has a new certificate; the stream that it has goes on with the old one.
    pub fn signed(&self, workload: &str, chain: &[Vec<u8>]) {
        let leaf = chain.first().cloned().unwrap_or_default();
        let (_, expires) = subject_and_end(&leaf.into());
        for proxy in self.state.lock().proxies.values_mut() {
            if proxy.status.workload == workload {
                proxy.status.certificate_expires = expires;
            }
        }
    }

    /// Takes a workload out of rotation, and waits until all who use it know.
    pub async fn leave(&self, caller: &Caller, limit: Duration) -> Result<LeaveResponse, Status> {
        let uid = caller.workload.as_str();
        let (revision, users) = {
            let mut state = self.state.lock();
            if !state.is_owner(caller) {
                return Err(Status::permission_denied(format!(
                    "workload {uid} is not {}",
                    caller.identity
                )));
            }
            let services = state.view.services_of(uid);
            if state.leaving.insert(uid.to_owned()) {
                self.rebuild(&mut state);
            }
            let uses = |proxy: &Proxy| {
                proxy.status.workload != uid && !proxy.endpoints.is_disjoint(&services)
            };
            let users: BTreeSet<u64> = state
                .proxies
                .iter()
                .filter(|(_, proxy)| uses(proxy))
                .map(|(id, _)| *id)
                .collect();
            for proxy in state.proxies.values_mut() {
                proxy.status.leaving |= proxy.status.workload == uid;
            }
            (state.revision, users)
        };
        let behind = || {
            let state = self.state.lock();
            users
                .iter()
                .filter_map(|id| state.proxies.get(id))
                .filter(|proxy| proxy.status.acknowledged < revision)
                .count()
        };
        let waiting = async {
            loop {
                let notified = self.acknowledged.notified();
                if behind() == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(limit, waiting).await;
        let users = u32::try_from(users.len()).unwrap_or(u32::MAX);
        let behind = u32::try_from(behind()).unwrap_or(u32::MAX);
        Ok(LeaveResponse {
            users,
            acknowledged: users.saturating_sub(behind),
        })
    }

    /// Whether one more certificate may be signed now.
    pub fn admit_sign(&self) -> Result<(), Status> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let (since, count) = match state.signs {
            Some((since, count)) if now - since < Duration::from_secs(1) => (since, count),
            _ => (now, 0),
        };
        state.signs = Some((since, count + 1));
        if count >= SIGNS_PER_SECOND_MAX {
            return Err(Status::resource_exhausted(
                "too many certificates are asked for; try again",
            ));
        }
        Ok(())
    }

    pub fn status(&self) -> status::Status {
        let state = self.state.lock();
        let roots = self.ca.current();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        status::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.ca.trust_domain.clone(),
            revision: state.revision,
            now: seconds_now(),
            roots: roots
                .roots
                .iter()
                .enumerate()
                .map(|(index, root)| {
                    let (subject, not_after) = subject_and_end(root);
                    RootStatus {
                        subject,
                        fingerprint: hex(&fingerprint(root)),
                        not_after,
                        signing: index == 0,
                    }
                })
                .collect(),
            errors: state.errors.clone(),
            objects: state.view.statuses.clone(),
            proxies: state
                .proxies
                .values()
                .map(|proxy| proxy.status.clone())
                .collect(),
        }
    }
}

pub fn seconds_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

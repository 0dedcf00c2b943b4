//! What all streams share: the present view, who is connected and how far each
//! has come, who is leaving.
//!
//! **Invariant:** a revision grows with every change of the view, and a proxy has
//! acknowledged one only when nothing that was sent up to it is unanswered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, watch};
use tonic::Status;
use weft_config::status::{ProxyStatus, SourceError};
use weft_config::wire::LeaveResponse;

use super::sign::SignError;
use super::{Caller, serve, stream};
use crate::ca::{Ca, subject_and_end, token};
use crate::index::{Objects, View};
use crate::metrics::{Metrics, Values};

/// Connected proxies.
pub const PROXIES_MAX: usize = 20_000;
/// Certificates signed in a second.
const SIGNS_PER_SECOND_MAX: u32 = 200;

const VALUES: Values = Values {
    types: &stream::TYPES,
    certificates: SignError::RESULTS,
    tokens: token::TokenError::REASONS,
    streams_refused: stream::REFUSALS,
    connections_refused: serve::REFUSALS,
    leaves: &["acknowledged", "timed_out", "refused"],
};

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
pub(super) struct State {
    pub(super) objects: Objects,
    pub(super) errors: Vec<SourceError>,
    pub(super) view: Arc<View>,
    pub(super) revision: u64,
    leaving: BTreeSet<String>,
    pub(super) proxies: BTreeMap<u64, Proxy>,
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
pub(super) struct Proxy {
    pub(super) status: ProxyStatus,
    /// Endpoints that it is subscribed to.
    endpoints: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Hub {
    pub ca: Ca,
    pub tokens: token::Verifier,
    pub metrics: Metrics,
    /// When our own certificate ends; seconds since the Unix epoch.
    pub own_expires: AtomicU64,
    pub(super) state: Mutex<State>,
    revision: watch::Sender<u64>,
    /// Some proxy has acknowledged something, or has gone.
    acknowledged: Notify,
}

impl Hub {
    pub fn new(ca: Ca, tokens: token::Verifier) -> Self {
        Self {
            ca,
            tokens,
            metrics: Metrics::new(VALUES),
            own_expires: AtomicU64::new(0),
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
        let begun = Instant::now();
        let view = View::build(&self.ca.trust_domain, &state.objects, &state.leaving);
        let took = begun.elapsed().as_secs_f64();
        self.metrics.index_seconds.observe(took);
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
            self.metrics.streams_refused.count("proxies_max");
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
                self.metrics.leaves.count("refused");
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
        self.metrics.leaves.count(match behind {
            0 => "acknowledged",
            _ => "timed_out",
        });
        Ok(LeaveResponse {
            users,
            acknowledged: users.saturating_sub(behind),
        })
    }

    /// Whether one more certificate may be signed now.
    pub fn admit_sign(&self) -> Result<(), SignError> {
        let mut state = self.state.lock();
        let now = Instant::now();
        let (since, count) = match state.signs {
            Some((since, count)) if now - since < Duration::from_secs(1) => (since, count),
            _ => (now, 0),
        };
        state.signs = Some((since, count + 1));
        if count >= SIGNS_PER_SECOND_MAX {
            return Err(SignError::RateLimited);
        }
        Ok(())
    }
}

pub fn seconds_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

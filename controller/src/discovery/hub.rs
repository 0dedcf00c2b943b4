//! What all streams share: the index, who is connected and how far each has come.
//!
//! A change wakes only the streams that want what it touches. A proxy without
//! anything to come has acknowledged the present revision, without being asked.
//!
//! **Invariant:** a proxy has acknowledged a revision only when all that concerns
//! it, up to that one, has been sent and answered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use weft_config::status::{ObjectStatus, ProxyStatus, WatchStatus};
use weft_config::wire;

use super::leave::{LEAVES_OF_WORKLOAD_MAX, Leaving};
use super::limits::{Paces, Rates};
use super::sign::SignError;
use super::{Caller, serve, stream};
use crate::api::Key;
use crate::api::errors::Errors;
use crate::api::mark::{Awaited, Claims, Marks};
use crate::ca::proof::{ProofError, Prover};
use crate::ca::{Ca, subject_and_end};
use crate::index::{Change, Index, Touched, Type};
use crate::metrics::{Metrics, Values};
use crate::sparing::Sparing;
use crate::tally::{Held, Tally};

/// Connected proxies.
pub const PROXIES_MAX: usize = 20_000;
/// Streams of one workload: that of its proxy, of the one that replaces it, and some
/// that have yet to be noticed as dead.
const STREAMS_OF_WORKLOAD_MAX: usize = 8;
/// Streams of one identity.
const STREAMS_OF_IDENTITY_MAX: usize = PROXIES_MAX / 4;
/// What all streams of one workload may want: as much as two may, one of which replaces the other.
pub const SUBSCRIPTIONS_OF_WORKLOAD_MAX: usize = 100_000;

const VALUES: Values = Values {
    types: &Type::NAMES,
    certificates: SignError::RESULTS,
    tokens: ProofError::REASONS,
    streams_refused: stream::REFUSALS,
    connections_refused: serve::REFUSALS,
    leaves: &["acknowledged", "timed_out", "refused"],
    // As `status` has them.
    status_writes: &["written", "right", "conflict", "failed", "dropped"],
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

/// Resources that a stream has to look at, and the first revision that they are of.
#[derive(Debug, Default)]
pub struct News {
    pub names: Touched,
    pub since: Option<u64>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) index: Index,
    pub(super) errors: Arc<Errors>,
    pub(super) watches: Vec<WatchStatus>,
    pub(super) revision: u64,
    /// How far the source has read.
    pub(super) marks: Marks,
    pub(super) proxies: BTreeMap<u64, Proxy>,
    next: u64,
    pub(super) subscribers: HashMap<(Type, String), BTreeSet<u64>>,
    /// Resources that were asked for, encoded once for all who want them; by the
    /// namespace that they are for, where it matters.
    encoded: HashMap<(Type, String), BTreeMap<String, Encoded>>,
    /// Workloads that leave.
    pub(super) leaving: BTreeMap<String, Leaving>,
}

impl State {
    /// Whether the caller's workload is its identity's, as far as is known: a token
    /// that names no workload lets its owner choose one.
    pub(super) fn is_owner(&self, caller: &Caller) -> bool {
        self.index
            .workload(&caller.workload)
            .is_none_or(|workload| {
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

    /// Tells who wants them that resources are not what they were.
    pub(super) fn publish(&mut self, touched: Touched) {
        self.revision += 1;
        self.note_change(&touched);
        for name in touched {
            self.encoded.remove(&name);
            for id in self.subscribers.get(&name).into_iter().flatten() {
                if let Some(proxy) = self.proxies.get_mut(id) {
                    proxy.news.names.insert(name.clone());
                    proxy.news.since.get_or_insert(self.revision);
                    proxy.wake.notify_one();
                }
            }
        }
    }

    pub(super) fn acknowledged(&self, proxy: &Proxy) -> u64 {
        let behind = [proxy.news.since, proxy.behind_since];
        match behind.into_iter().flatten().min() {
            Some(since) => since.saturating_sub(1),
            None => self.revision,
        }
    }
}

#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) status: ProxyStatus,
    /// Since when it has not answered something, or has not been told all, by its own doing.
    pub(super) silent: Option<Instant>,
    news: News,
    /// The first revision of which its stream has something unsent or unanswered.
    behind_since: Option<u64>,
    pub(super) wake: Arc<Notify>,
    /// What it knows of and we have yet to read: what it holds is newer than ours.
    pub(super) awaited: Vec<Awaited>,
    certificate: CertificateDer<'static>,
    /// Why its stream has to end.
    ended: Option<&'static str>,
    _places: [Held; 2],
}

#[derive(Debug)]
pub struct Hub {
    pub ca: Ca,
    pub prover: Prover,
    pub metrics: Metrics,
    /// This replica writes statuses.
    pub leads: AtomicBool,
    /// When our own certificate ends; seconds since the Unix epoch.
    pub own_expires: AtomicU64,
    pub(super) state: Mutex<State>,
    pub(super) rates: Mutex<Rates>,
    pub(super) paces: Mutex<Paces>,
    pub(super) lines: Sparing,
    of_workload: Tally,
    of_identity: Tally,
    pub(super) subscriptions: Tally,
    pub(super) leaves: Tally,
    /// What proxies know of and we have yet to read.
    pub(super) behind: watch::Sender<Claims>,
    /// What we know may be old.
    pub(super) stale: AtomicBool,
    /// Some proxy has acknowledged something, or has gone.
    pub(super) acknowledged: Notify,
}

impl Hub {
    pub fn new(ca: Ca, prover: impl Into<Prover>) -> Self {
        let state = State {
            index: Index::new(&ca.trust_domain),
            errors: Arc::default(),
            watches: Vec::new(),
            revision: 0,
            marks: Marks::new(),
            proxies: BTreeMap::new(),
            next: 0,
            subscribers: HashMap::new(),
            encoded: HashMap::new(),
            leaving: BTreeMap::new(),
        };
        Self {
            ca,
            prover: prover.into(),
            metrics: Metrics::new(VALUES),
            leads: AtomicBool::new(false),
            own_expires: AtomicU64::new(0),
            state: Mutex::new(state),
            rates: Mutex::default(),
            paces: Mutex::default(),
            lines: Sparing::default(),
            of_workload: Tally::new(STREAMS_OF_WORKLOAD_MAX),
            of_identity: Tally::new(STREAMS_OF_IDENTITY_MAX),
            subscriptions: Tally::new(SUBSCRIPTIONS_OF_WORKLOAD_MAX),
            leaves: Tally::new(LEAVES_OF_WORKLOAD_MAX),
            behind: watch::Sender::default(),
            stale: AtomicBool::new(false),
            acknowledged: Notify::new(),
        }
    }

    /// Takes up what the source has found; the objects of which something else is said
    /// than before.
    pub fn update(&self, changes: Vec<Change>, errors: Arc<Errors>) -> BTreeSet<Key> {
        let mut state = self.state.lock();
        state.errors = errors;
        if changes.is_empty() {
            return BTreeSet::new();
        }
        let begun = Instant::now();
        let touched = state.index.apply(changes);
        self.metrics
            .index_seconds
            .observe(begun.elapsed().as_secs_f64());
        state.publish(touched);
        state.index.take_changed()
    }

    /// What is to be said of an object.
    pub fn said_of(&self, key: &Key) -> Vec<ObjectStatus> {
        self.state.lock().index.said_of(key)
    }

    /// Takes up how the source's watches are.
    pub fn watched(&self, watches: Vec<WatchStatus>) {
        self.state.lock().watches = watches;
    }

    /// The authority's files changed: the trust bundle may have.
    pub fn trust_changed(&self) {
        let bundle = (Type::TrustBundle, self.ca.trust_domain.clone());
        self.state.lock().publish(Touched::from([bundle]));
    }

    /// The resource as of now; `None`: there is none.
    pub fn resource(&self, kind: Type, name: &str, caller: &Caller) -> Option<Encoded> {
        let namespace = caller.identity.namespace();
        let mut state = self.state.lock();
        if kind == Type::Workload && (name != caller.workload || !state.is_owner(caller)) {
            return None;
        }
        let audience = match kind {
            Type::Destination => state.index.audience(namespace, name).to_owned(),
            _ => String::new(),
        };
        let wanted = (kind, name.to_owned());
        let known = state.encoded.get(&wanted);
        if let Some(encoded) = known.and_then(|of| of.get(&audience)) {
            return Some(encoded.clone());
        }
        let index = &state.index;
        let encoded = match kind {
            Type::Destination => index
                .destination(namespace, name)
                .map(|of| Encoded::of(&of)),
            Type::Service => index.service(name).map(|of| Encoded::of(of.as_ref())),
            Type::Endpoints => index.endpoints(name).map(|of| Encoded::of(of.as_ref())),
            Type::Workload => index.workload(name).map(|of| Encoded::of(&of)),
            Type::TrustBundle => {
                (name == self.ca.trust_domain).then(|| Encoded::of(&self.ca.bundle()))
            }
        }?;
        // Only what there is: names that are made up must not be remembered.
        let of = state.encoded.entry(wanted).or_default();
        of.insert(audience, encoded.clone());
        Some(encoded)
    }

    /// A proxy has connected: its place in the list, and what wakes its stream; or
    /// why there is none for it.
    pub fn connected(&self, caller: &Caller) -> Result<(u64, Arc<Notify>), &'static str> {
        let places = (
            self.of_workload.take(&caller.workload),
            self.of_identity.take(caller.identity.as_str()),
        );
        let (Some(workload), Some(identity)) = places else {
            return Err("streams_max");
        };
        let mut state = self.state.lock();
        if state.proxies.len() >= PROXIES_MAX {
            return Err("proxies_max");
        }
        state.next += 1;
        let (id, wake) = (state.next, Arc::new(Notify::new()));
        let proxy = Proxy {
            silent: None,
            status: ProxyStatus {
                workload: caller.workload.clone(),
                identity: caller.identity.to_string(),
                address: caller.address.clone(),
                connected_since: seconds_now(),
                certificate_expires: caller.expires,
                ..ProxyStatus::default()
            },
            news: News::default(),
            // What it holds is not known before it has said so.
            behind_since: Some(1),
            wake: Arc::clone(&wake),
            awaited: Vec::new(),
            certificate: caller.certificate.clone(),
            ended: None,
            _places: [workload, identity],
        };
        state.proxies.insert(id, proxy);
        Ok((id, wake))
    }

    /// A proxy has gone, with what it was subscribed to.
    pub fn disconnected<'a>(&self, id: u64, names: impl Iterator<Item = (Type, &'a String)>) {
        let mut state = self.state.lock();
        state.proxies.remove(&id);
        for (kind, name) in names {
            state.unsubscribe(id, kind, name);
        }
        drop(state);
        self.acknowledged.notify_waiters();
    }

    /// Notes what a proxy wants, before it is sent any; the present revision.
    pub fn subscribe(&self, id: u64, kind: Type, name: &str) -> u64 {
        let mut state = self.state.lock();
        let subscribers = state.subscribers.entry((kind, name.to_owned()));
        subscribers.or_default().insert(id);
        state.revision
    }

    pub fn unsubscribe(&self, id: u64, kind: Type, name: &str) {
        self.state.lock().unsubscribe(id, kind, name);
    }

    /// What a stream has to look at, which is its own to send from now on.
    /// The error is why the stream has to end.
    pub fn take_news(&self, id: u64) -> Result<News, &'static str> {
        let mut state = self.state.lock();
        let Some(proxy) = state.proxies.get_mut(&id) else {
            return Ok(News::default());
        };
        if let Some(reason) = proxy.ended {
            return Err(reason);
        }
        let news = std::mem::take(&mut proxy.news);
        let behind = [proxy.behind_since, news.since];
        proxy.behind_since = behind.into_iter().flatten().min();
        Ok(news)
    }

    /// Notes how far a proxy has come. `behind`: the first revision of which something
    /// is unsent or unanswered; `silent`: since when the proxy is why.
    pub fn progress(
        &self,
        id: u64,
        (behind, silent): (Option<u64>, Option<Instant>),
        note: impl FnOnce(&mut ProxyStatus),
    ) {
        if let Some(proxy) = self.state.lock().proxies.get_mut(&id) {
            proxy.behind_since = behind;
            proxy.silent = silent;
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

    /// A workload begins anew: it is no longer leaving.
    pub fn returned(&self, workload: &str) {
        let mut state = self.state.lock();
        let touched = state.index.returned(workload);
        if !touched.is_empty() {
            state.publish(touched);
        }
    }

    /// A service's endpoints as of now.
    pub fn endpoints(&self, service: &str) -> Vec<wire::Endpoint> {
        let state = self.state.lock();
        let endpoints = state.index.endpoints(service);
        endpoints.map_or_else(Vec::new, |of| of.into_owned().endpoints)
    }

    /// Why a certificate that was good when its connection began is so no more.
    pub fn lost_proof(&self, caller: &Caller) -> Option<&'static str> {
        if self.ca.current().revocations.contains(&caller.certificate) {
            Some("revoked")
        } else if caller.expires < seconds_now() {
            Some("expired")
        } else {
            None
        }
    }

    /// Whether the API server, which knows all there are, has no such pod.
    pub fn is_gone(&self, workload: &str) -> bool {
        matches!(self.prover, Prover::Kubernetes(_))
            && self.state.lock().index.workload(workload).is_none()
    }

    /// Ends the streams of who has lost the right to them.
    pub fn sweep(&self) {
        let (now, current) = (seconds_now(), self.ca.current());
        for proxy in self.state.lock().proxies.values_mut() {
            // A renewed certificate prolongs the stream that began with the one before.
            if current.revocations.contains(&proxy.certificate) {
                proxy.ended = Some("revoked");
            } else if proxy.status.certificate_expires < now {
                proxy.ended = Some("expired");
            }
            if proxy.ended.is_some() {
                proxy.wake.notify_one();
            }
        }
    }
}

impl State {
    fn unsubscribe(&mut self, id: u64, kind: Type, name: &str) {
        let key = (kind, name.to_owned());
        if let Some(ids) = self.subscribers.get_mut(&key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.subscribers.remove(&key);
                // Encoded for nobody any more.
                self.encoded.remove(&key);
            }
        }
    }
}

pub fn seconds_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

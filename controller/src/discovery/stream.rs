//! One proxy's stream: what it wants, what it was sent, what it has acknowledged.
//!
//! **Invariant:** at most one response of a type is unanswered; what changes
//! meanwhile is sent together, after the answer.
//! **Invariant:** what a proxy holds is not replaced before we have read all that was read by whoever
//! told it: a replica that lags takes nobody back in time. What it does not hold it is told.
//! **Invariant:** a service is taken away only after the destinations that may name it
//! have been told anew (make before break).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost_types::Any;
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use super::Caller;
use super::hub::{Hub, seconds_now};
use super::node::{Said, field};
use super::refusals::{Refusals, shortened};
use crate::index::Type;
use crate::tally::Held;

/// Resources that one proxy may want.
pub const SUBSCRIPTIONS_MAX: usize = 50_000;
const NAME_BYTES_MAX: usize = 512;
/// Bytes of their names.
const NAMES_BYTES_MAX: usize = 4 << 20;
/// What a request costs of what a workload may ask for in a while, beside a unit for each name.
const REQUEST_COST: usize = 16;
/// What a stream costs of it.
const STREAM_COST: usize = 1_000;
/// Responses that wait to be written: one of each type, and room.
const RESPONSES_MAX: usize = 8;
/// Bytes of resources in a response; what is more comes in the next.
const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Bytes of what it says of how far others have read; what is more is ignored.
const MARK_BYTES_MAX: usize = 2048;
/// Requests that are taken before anything is sent: a proxy says all that it wants at once.
const REQUESTS_A_TURN_MAX: usize = 64;
/// Names in them, but for the last: no stream holds up the others for long.
const NAMES_A_TURN_MAX: usize = 10_000;
/// Why a stream is refused or ended by us.
pub const REFUSALS: &[&str] = &[
    "no_certificate",
    "revoked",
    "expired",
    "proxies_max",
    "streams_max",
    "subscriptions_max",
    "malformed",
];

/// What a stream knows of one type.
#[derive(Debug, Default)]
struct Subscriptions {
    /// Wanted names, and the version that was sent; empty: sent as absent.
    names: BTreeMap<String, Option<String>>,
    /// What has to be looked at, with the first revision that it is of.
    dirty: BTreeMap<String, u64>,
    /// What it held when it came, as long as that is newer than ours.
    newer: BTreeSet<String>,
    unanswered: Option<Unanswered>,
}

/// A response that is not answered.
#[derive(Debug)]
struct Unanswered {
    nonce: String,
    names: Vec<String>,
    since: u64,
    sent: Instant,
}

impl Subscriptions {
    /// The first revision of which something is unsent or unanswered.
    fn behind(&self) -> Option<u64> {
        let unanswered = self.unanswered.as_ref().map(|of| of.since);
        self.dirty.values().copied().chain(unanswered).min()
    }
}

/// What a proxy has been told over one stream. Carries nothing: requests go in and
/// responses come out, so that a simulation can drive it.
#[derive(Debug)]
pub struct Session {
    pub(super) hub: Arc<Hub>,
    caller: Caller,
    id: u64,
    types: BTreeMap<Type, Subscriptions>,
    /// Of responses.
    pub(super) count: u64,
    refused: Refusals,
    said: Option<Said>,
    names_bytes: usize,
    /// How many names it wants, of what its workload may.
    wanted: Held,
    /// Names that it has asked for since it was sent anything.
    asked: usize,
    /// Since when it is sent nothing new: it asks for too much, or what it holds is newer.
    held_up: Option<Instant>,
    /// What it holds is newer than ours.
    is_behind: bool,
    /// How far we had read when it was told so.
    told: BTreeMap<&'static str, u64>,
    /// It knows that what we know may be old.
    pub(super) told_stale: bool,
    /// It has said what it wants, or some of it.
    begun: bool,
}

/// Serves a stream in a task of its own.
pub fn open(
    hub: Arc<Hub>,
    caller: Caller,
    requests: Streaming<DeltaDiscoveryRequest>,
) -> Result<impl Stream<Item = Result<DeltaDiscoveryResponse, Status>> + use<>, Status> {
    let (responses, receiver) = mpsc::channel(RESPONSES_MAX);
    let (session, wake) = Session::open(hub, caller)?;
    // Ends with its connection: the request stream ends, or the receiver is gone.
    tokio::spawn(carry(session, wake, requests, responses));
    Ok(ReceiverStream::new(receiver))
}

/// Why a stream has to end, and what its proxy is told.
type End = (&'static str, Status);

fn too_many(on: &str) -> End {
    let status = format!("too many subscriptions on {on}");
    ("subscriptions_max", Status::resource_exhausted(status))
}

async fn carry(
    mut session: Session,
    wake: Arc<Notify>,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
) {
    loop {
        let received = tokio::select! {
            request = requests.message() => match take(&mut session, request, &mut requests).await {
                Some(received) => received,
                None => return,
            },
            () = wake.notified() => Ok(()),
            () = responses.closed() => return,
        };
        match received.and_then(|()| session.turn()) {
            Ok(turn) => {
                for response in turn {
                    if responses.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                session.tell();
                // Who asks for more than any proxy needs waits, and the others do not.
                match session.pause() {
                    Duration::ZERO => tokio::task::yield_now().await,
                    pause => tokio::time::sleep(pause).await,
                }
            }
            Err(end) => {
                let _ = responses.send(Err(session.ended(end))).await;
                return;
            }
        }
    }
}

/// Takes a request and those that have come with it. `None`: the proxy has ended
/// the stream.
async fn take(
    session: &mut Session,
    first: Result<Option<DeltaDiscoveryRequest>, Status>,
    further: &mut Streaming<DeltaDiscoveryRequest>,
) -> Option<Result<(), End>> {
    let mut next = first;
    for _ in 0..REQUESTS_A_TURN_MAX {
        let Ok(Some(request)) = next else {
            return None;
        };
        if let Err(end) = session.receive(request) {
            return Some(Err(end));
        }
        if session.asked >= NAMES_A_TURN_MAX || !session.pause().is_zero() {
            return Some(Ok(()));
        }
        next = tokio::select! {
            biased;
            next = further.message() => next,
            () = std::future::ready(()) => return Some(Ok(())),
        };
    }
    Some(Ok(()))
}

impl Drop for Session {
    fn drop(&mut self) {
        let names = self
            .types
            .iter()
            .flat_map(|(kind, of)| of.names.keys().map(|name| (*kind, name)));
        self.hub.disconnected(self.id, names);
    }
}

impl Session {
    /// A proxy has connected; the session, and what wakes it.
    pub fn open(hub: Arc<Hub>, caller: Caller) -> Result<(Self, Arc<Notify>), Status> {
        let (id, wake) = hub.connected(&caller).map_err(|reason| {
            hub.metrics.streams_refused.count(reason);
            if let Some(left_out) = hub.may_log(&[reason, &caller.workload]) {
                tracing::warn!(workload = %caller.workload, identity = %caller.identity, reason, left_out, "a stream is refused");
            }
            Status::resource_exhausted(format!("too many streams are open ({reason})"))
        })?;
        let types = Type::ALL
            .into_iter()
            .map(|kind| (kind, Subscriptions::default()));
        hub.spend(&caller.workload, STREAM_COST);
        let wanted = hub.subscriptions.none(&caller.workload);
        let told_stale = hub.is_stale();
        let session = Self {
            hub,
            caller,
            id,
            types: types.collect(),
            count: 0,
            refused: Refusals::default(),
            said: None,
            names_bytes: 0,
            wanted,
            asked: 0,
            held_up: None,
            is_behind: false,
            told: BTreeMap::new(),
            told_stale,
            begun: false,
        };
        Ok((session, wake))
    }

    /// What has to be sent now; `tell` is to follow.
    pub fn turn(&mut self) -> Result<Vec<DeltaDiscoveryResponse>, End> {
        let news = self.hub.take_news(self.id).map_err(|reason| {
            let status = format!("the client certificate is {reason}");
            (reason, Status::unauthenticated(status))
        })?;
        if self.is_behind && !self.hub.is_behind(self.id) {
            self.is_behind = false;
            self.types.values_mut().for_each(|of| of.newer.clear());
        }
        let since = news.since.unwrap_or(1);
        for (kind, name) in news.names {
            if let Some(of) = self.types.get_mut(&kind)
                && of.names.contains_key(&name)
            {
                of.dirty.entry(name).or_insert(since);
            }
        }
        self.asked = 0;
        let mut responses: Vec<_> = self.staleness().into_iter().collect();
        for kind in Type::ALL {
            let destinations = self.types.get(&Type::Destination);
            let waits = matches!(kind, Type::Service | Type::Endpoints)
                && destinations.is_some_and(|of| of.behind().is_some());
            responses.extend(self.response(kind, waits));
        }
        Ok(responses)
    }

    /// How long it is to be heard no further.
    fn pause(&self) -> Duration {
        self.hub.pause(&self.caller.workload)
    }

    /// Counts and tells that we end the stream.
    fn ended(&self, (reason, status): End) -> Status {
        self.hub.metrics.streams_refused.count(reason);
        let workload = self.caller.workload.as_str();
        if let Some(left_out) = self.hub.may_log(&[reason, workload]) {
            tracing::warn!(
                workload,
                reason,
                left_out,
                "a stream is ended: {}",
                status.message()
            );
        }
        status
    }

    /// Takes a request; an error ends the stream.
    pub fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), End> {
        let malformed = |problem: String| ("malformed", Status::invalid_argument(problem));
        if let Some(node) = &request.node {
            if !self.begun
                && let Some(claim) = field(node, "mark")
                && claim.len() <= MARK_BYTES_MAX
            {
                self.is_behind = self.hub.claimed(self.id, claim);
            }
            self.said = Some(Said::of(node));
        }
        self.begun = true;
        let Some(kind) = Type::of_url(&request.type_url) else {
            return Err(malformed(format!(
                "no type {}",
                shortened(&request.type_url).escape_debug()
            )));
        };
        self.charge(&request)?;
        let Some(of) = self.types.get_mut(&kind) else {
            return Ok(());
        };
        for name in request.resource_names_unsubscribe {
            if of.names.remove(&name).is_some() {
                self.names_bytes = self.names_bytes.saturating_sub(name.len());
            }
            of.dirty.remove(&name);
            of.newer.remove(&name);
            self.hub.unsubscribe(self.id, kind, &name);
            self.refused.forget(kind, &name);
        }
        for name in request.resource_names_subscribe {
            if name.len() > NAME_BYTES_MAX {
                return Err(malformed("a resource's name is too long".to_owned()));
            }
            let held = request.initial_resource_versions.get(&name).cloned();
            let revision = self.hub.subscribe(self.id, kind, &name);
            // What it holds may be of any revision; what it does not hold is of none.
            let since = if held.is_some() { 1 } else { revision };
            of.dirty.insert(name.clone(), since);
            if held.is_some() && self.is_behind {
                of.newer.insert(name.clone());
            }
            let length = name.len();
            if of.names.insert(name, held).is_none() {
                self.names_bytes += length;
            }
        }
        let nonce = &request.response_nonce;
        if let Some(answered) = of.unanswered.take_if(|of| of.nonce == *nonce) {
            let problem = request.error_detail.map(|status| status.message);
            self.answered(kind, &answered.names, problem);
        }
        let total = self.types.values().map(|of| of.names.len()).sum();
        if !self.wanted.resize(total) {
            return Err(too_many("the streams of one workload"));
        }
        Ok(())
    }

    /// Counts what a request asks for.
    fn charge(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), End> {
        let (add, drop) = (
            &request.resource_names_subscribe,
            &request.resource_names_unsubscribe,
        );
        let names = add.len() + drop.len() + request.initial_resource_versions.len();
        self.asked += REQUEST_COST + names;
        self.hub.spend(&self.caller.workload, REQUEST_COST + names);
        let total: usize = self.types.values().map(|of| of.names.len()).sum();
        let bytes: usize = add.iter().map(String::len).sum();
        if total + add.len() > SUBSCRIPTIONS_MAX
            || drop.len() > SUBSCRIPTIONS_MAX
            || self.names_bytes + bytes > NAMES_BYTES_MAX
        {
            return Err(too_many("one stream"));
        }
        Ok(())
    }

    /// Notes what an answer says of the resources that it answers.
    fn answered(&mut self, kind: Type, sent: &[String], problem: Option<String>) {
        if let Some(problem) = &problem {
            self.hub.metrics.nacks.inc();
            let workload = self.caller.workload.as_str();
            if let Some(left_out) = self.hub.may_log(&["refuses", workload]) {
                let problem = shortened(problem);
                tracing::error!(
                    workload,
                    problem,
                    left_out,
                    "a proxy refuses what it was sent"
                );
            }
        }
        self.refused
            .take(kind, sent, problem.as_deref(), seconds_now());
    }

    /// What is to be sent of a type. `keep`: nothing is taken away yet.
    fn response(&mut self, kind: Type, keep: bool) -> Option<DeltaDiscoveryResponse> {
        let of = self.types.get_mut(&kind)?;
        if of.unanswered.is_some() {
            return None;
        }
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        let (mut bytes, mut first) = (0, u64::MAX);
        for (name, since) in std::mem::take(&mut of.dirty) {
            let Some(sent) = of.names.get_mut(&name) else {
                continue;
            };
            if bytes >= RESPONSE_BYTES_MAX || of.newer.contains(&name) {
                of.dirty.insert(name, since);
                continue;
            }
            match self.hub.resource(kind, &name, &self.caller) {
                Some(encoded) if sent.as_deref() != Some(&encoded.version) => {
                    *sent = Some(encoded.version.clone());
                    bytes += encoded.bytes.len();
                    first = first.min(since);
                    resources.push(Resource {
                        name,
                        version: encoded.version,
                        resource: Some(Any {
                            type_url: kind.url(),
                            value: encoded.bytes.to_vec(),
                        }),
                    });
                }
                // One that it never had may be called absent at once.
                None if keep && sent.as_deref().is_some_and(|sent| !sent.is_empty()) => {
                    of.dirty.insert(name, since);
                }
                None if sent.as_deref() != Some("") => {
                    *sent = Some(String::new());
                    first = first.min(since);
                    removed.push(name);
                }
                _ => {}
            }
        }
        if resources.is_empty() && removed.is_empty() {
            return None;
        }
        let metrics = &self.hub.metrics;
        let count = resources.len() + removed.len();
        metrics.resources_sent.add(kind.name(), count as u64);
        metrics.bytes_sent.add(kind.name(), bytes as u64);
        self.count += 1;
        let nonce = self.count.to_string();
        let names = resources.iter().map(|resource| resource.name.clone());
        of.unanswered = Some(Unanswered {
            nonce: nonce.clone(),
            names: names.chain(removed.iter().cloned()).collect(),
            since: first,
            sent: Instant::now(),
        });
        // Said of what is sent: it was read before.
        let system_version_info = match self.is_behind {
            true => String::new(),
            false => self.hub.mark_news(&mut self.told),
        };
        Some(DeltaDiscoveryResponse {
            system_version_info,
            type_url: kind.url(),
            nonce,
            resources,
            removed_resources: removed,
        })
    }

    /// Tells the hub how far this proxy has come.
    pub fn tell(&mut self) {
        let behind = match self.begun {
            false => Some(1),
            true => self.types.values().filter_map(Subscriptions::behind).min(),
        };
        let unanswered = self.types.values().filter(|of| of.unanswered.is_some());
        let pending = unanswered.count();
        let resources: usize = self.types.values().map(|of| of.names.len()).sum();
        let (said, refused) = (self.said.take(), self.refused.news());
        let is_held_up = self.is_behind || !self.pause().is_zero();
        let since = self.held_up.unwrap_or_else(Instant::now);
        self.held_up = is_held_up.then_some(since);
        let unanswered = self.types.values().filter_map(|of| of.unanswered.as_ref());
        let silent = unanswered.map(|of| of.sent).chain(self.held_up).min();
        self.hub.progress(self.id, (behind, silent), |status| {
            status.pending = u32::try_from(pending).unwrap_or(u32::MAX);
            status.resources = u32::try_from(resources).unwrap_or(u32::MAX);
            if let Some(refused) = refused {
                status.refused = refused;
            }
            if let Some(said) = said {
                status.version = said.version;
                status.admin = said.admin.unwrap_or_default();
                status.signing_root = said.signing_root.unwrap_or_default();
            }
        });
    }
}

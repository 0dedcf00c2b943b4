//! The try loop of one request: pick an endpoint → try it → decide what a
//! failure means → pass the answer on.
//!
//! **Invariant:** the upstream is tried again only while nothing of an answer
//! has been passed on; from then on there is one upstream and its end is ours.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::HeaderName;
use smallvec::SmallVec;
use tokio::time::Instant;
use weft_config::snapshot::RetryPolicy;

use super::attempt::Answered;
use super::record::Record;
use super::request::{Current, Incoming, Target, answer_now};
use super::respond::Answer;
use super::{Connection, mesh, mirror};
use crate::logic::balance::{EndpointState, Outcome, Rotation, hash_key};
use crate::logic::cause::Cause;
use crate::logic::limit::{Resource, try_acquire};
use crate::logic::outlier;
use crate::logic::retry::{self, Decision, FailedTry, Failure, Reason, Retried};
use crate::logic::time::Nanos;
use crate::net::http::exchange::{Replay, Transfer};
use crate::net::http::message::{BodyLength, ResponseHead, Side};
use crate::net::timer::Timer;
use crate::state::ServiceState;
use crate::sweep::tell_ejection;

/// One request being forwarded.
pub struct Forward<'a> {
    pub(super) connection: &'a Connection,
    pub(super) current: &'a Current,
    pub(super) side: &'a mut Side,
    pub(super) incoming: &'a Incoming,
    pub(super) target: &'a Target,
    pub(super) record: &'a mut Record,
    pub(super) replay: Replay,
    pub(super) upload: Transfer,
    /// Writing to the upstream failed; its answer may still say why.
    pub(super) upload_failed: bool,
    pub(super) timer: Timer,
    /// Interim answers passed on.
    pub(super) interims: u32,
    /// The answer has a length: it may not rest, as an endless one may (events,
    /// a watch).
    pub(super) length_known: bool,
    /// Since when the client is what is waited for.
    pub(super) awaits_since: Option<Instant>,
    /// Of the whole request.
    pub(super) deadline: Option<Instant>,
    /// The last moment at which the other side made progress.
    pub(super) progress: Instant,
    tried: SmallVec<[SocketAddr; 4]>,
    retried: Retried,
    /// Some try was sent, at least in part: the application may have seen it.
    sent: bool,
}

impl<'a> Forward<'a> {
    pub fn new(
        connection: &'a Connection,
        current: &'a Current,
        side: &'a mut Side,
        incoming: &'a Incoming,
        target: &'a Target,
        record: &'a mut Record,
    ) -> Self {
        let no_body = incoming.length == BodyLength::None || incoming.wants_tunnel();
        let timeout = target.rule.as_ref().and_then(|rule| rule.request_timeout);
        Self {
            replay: Replay::new(target.service.config.replay_bytes_max, no_body),
            upload: Transfer::flushing(),
            upload_failed: false,
            interims: 0,
            length_known: false,
            awaits_since: None,
            timer: Timer::default(),
            deadline: timeout.map(|timeout| record.started + timeout),
            progress: record.started,
            tried: SmallVec::new(),
            retried: Retried::default(),
            sent: false,
            connection,
            current,
            side,
            incoming,
            target,
            record,
        }
    }

    /// Forwards the request and its answer; returns whether the downstream
    /// connection is kept.
    pub async fn run(&mut self, grpc: bool, keep: bool) -> bool {
        let circuit = Arc::clone(&self.target.service.circuit);
        let Some(_permit) = try_acquire(circuit, Resource::Request) else {
            return self
                .fail(
                    Cause::RequestsFull,
                    "limits.requestsMax of the service",
                    grpc,
                    keep,
                )
                .await;
        };
        self.target
            .service
            .budget
            .deposit(self.at(self.record.started));
        match self.answered().await {
            Ok(answered) => {
                mirror::send(
                    self.connection,
                    self.current,
                    self.incoming,
                    self.target,
                    &self.replay,
                );
                self.pass_on(answered, keep).await
            }
            Err((cause, detail)) => self.fail(cause, detail, grpc, keep).await,
        }
    }

    pub(super) fn now(&self) -> Nanos {
        self.connection.worker.shared.clock.now()
    }

    pub(super) fn at(&self, instant: Instant) -> Nanos {
        self.connection.worker.shared.clock.at(instant.into_std())
    }

    async fn fail(&mut self, cause: Cause, detail: &'static str, grpc: bool, keep: bool) -> bool {
        if cause == Cause::DownstreamGone {
            self.record.cause = cause;
            self.record.status = CLIENT_CLOSED;
            self.connection.abandoned.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let shed = match cause {
            Cause::RequestsFull => Some(Resource::Request),
            Cause::PendingFull => Some(Resource::Pending),
            Cause::ConnectionsFull => Some(Resource::Connection),
            _ => None,
        };
        if let Some(limit) = shed {
            self.metrics()
                .shed(&self.target.service.config.name, limit.label());
        }
        if matches!(
            cause,
            Cause::Rejected | Cause::HeaderTooLarge | Cause::BodyTooLarge | Cause::RequestSlow
        ) {
            let reason = if detail.is_empty() {
                cause.label()
            } else {
                detail
            };
            self.metrics().rejected(&self.connection.listener, reason);
        }
        let mut answer = Answer::of(cause, detail);
        if self.connection.peer.is_some()
            && let Some(outcome) = mesh::outcome_of(cause, self.sent)
        {
            answer.headers.insert(mesh::OUTCOME, outcome);
            self.mark_leaving(&mut answer.headers);
        }
        let (side, incoming, record) = (&mut *self.side, self.incoming, &mut *self.record);
        record.bytes_in = self.upload.bytes;
        answer_now(side, incoming, answer, grpc, keep, record).await
    }

    /// Tells a sender of the mesh that we are leaving.
    pub(super) fn mark_leaving(&self, headers: &mut http::HeaderMap) {
        if self.connection.is_leaving() {
            headers.insert(mesh::LEAVING, mesh::LEAVING_VALUE);
        }
    }

    /// Tries until there is an answer to pass on.
    async fn answered(&mut self) -> Result<Answered, (Cause, &'static str)> {
        let mut started = self.record.started;
        loop {
            let endpoint = self.pick(started).ok_or((Cause::NoEndpoint, ""))?;
            self.record.endpoint = Some(endpoint.address());
            self.record.tries += 1;
            let failure = match self.attempt(&endpoint, started).await {
                Ok(answered) => match failure_of(&answered.head) {
                    Some(failure) if self.policy().is_some() => {
                        let decision = self.decide(failure);
                        match decision {
                            Decision::Free | Decision::Budgeted => {}
                            // XBackendTrafficPolicy: over budget is a 503.
                            Decision::No(Reason::BudgetUsed) => {
                                return Err((Cause::BudgetSpent, ""));
                            }
                            Decision::No(_) => return Ok(answered),
                        }
                        let outcome = outcome_of(&answered.head);
                        self.judge(&endpoint, outcome);
                        self.tried.push(endpoint.address());
                        drop(answered);
                        self.again(decision).await?;
                        started = Instant::now();
                        continue;
                    }
                    _ => return Ok(answered),
                },
                Err(failed) => failed,
            };
            tracing::debug!(
                endpoint = %endpoint.address(), cause = failure.cause.label(),
                error = failure.detail(), "a try failed"
            );
            if failure.cause.is_upstream_failure() {
                self.judge(&endpoint, failure.outcome());
            }
            let Some(kind) = failure.kind else {
                return Err((failure.cause, failure.reason));
            };
            self.sent |= !matches!(
                kind,
                Failure::ConnectFailed | Failure::Unprocessed | Failure::Leaving
            );
            let decision = self.decide(kind);
            match decision {
                Decision::Free | Decision::Budgeted => self.again(decision).await?,
                Decision::No(Reason::BudgetUsed) => return Err((Cause::BudgetSpent, "")),
                Decision::No(_) if !failure.reason.is_empty() => {
                    return Err((failure.cause, failure.reason));
                }
                Decision::No(reason) => return Err((failure.cause, reason.label())),
            }
            self.tried.push(endpoint.address());
            started = Instant::now();
        }
    }

    fn pick(&self, started: Instant) -> Option<Arc<EndpointState>> {
        let service = &self.target.service;
        let set = service.endpoints.load();
        let now = self.at(started);
        if self.tried.is_empty()
            && let Some(session) = &self.target.session
            && let Some(endpoint) = session.endpoint(&set, now)
        {
            return Some(endpoint);
        }
        let parts = &self.incoming.parts;
        let sources = &service.config.balancer.hash;
        let hash = if sources.is_empty() {
            None
        } else {
            hash_key(sources, &parts.headers, Some(self.connection.client.ip()))
        };
        let picked = set.pick(now, &mut rand::rng(), hash, &self.tried)?;
        if picked.rotation == Rotation::Panic {
            self.metrics().panic_picked(&service.config.name);
        }
        Some(Arc::clone(picked.endpoint))
    }

    pub(super) fn metrics(&self) -> &crate::telemetry::metrics::Metrics {
        &self.connection.worker.shared.metrics
    }

    pub(super) fn judge(&self, endpoint: &Arc<EndpointState>, outcome: Outcome) {
        judge(self.connection, &self.target.service, endpoint, outcome);
    }

    fn policy(&self) -> Option<&'a RetryPolicy> {
        self.target.rule.as_ref()?.retry.as_ref()
    }

    fn decide(&self, failure: Failure) -> Decision {
        let service = &self.target.service;
        let failed = FailedTry {
            failure,
            method: &self.incoming.parts.method,
            replayable: self.replay.is_replayable(),
            policy: self
                .target
                .rule
                .as_ref()
                .and_then(|rule| rule.retry.as_ref()),
            idempotent_retry: service.config.idempotent_retry,
            retried: self.retried,
            endpoints: service.endpoints.load().len_with(&self.tried),
        };
        let decision = retry::decide(&failed, &service.budget, self.now());
        let result = match decision {
            Decision::Free => "free",
            Decision::Budgeted => "budgeted",
            Decision::No(reason) => reason.label(),
        };
        self.metrics()
            .retried(&service.config.name, failure_label(failure), result);
        decision
    }

    /// Prepares the next try, after its back-off.
    async fn again(&mut self, decision: Decision) -> Result<(), (Cause, &'static str)> {
        self.retried.count(decision);
        self.replay.rewind();
        self.upload_failed = false;
        let policy = self
            .target
            .rule
            .as_ref()
            .and_then(|rule| rule.retry.as_ref());
        let wait = match (decision, policy) {
            (Decision::Budgeted, Some(policy)) => {
                retry::backoff(policy, self.retried.budgeted, &mut rand::rng())
            }
            // Nobody can be reached at the first go: do not spin.
            (Decision::Free, _) if self.retried.free > 1 => FREE_RETRY_PAUSE,
            _ => return Ok(()),
        };
        self.timer.set(self.deadline);
        match self.timer.limit(tokio::time::sleep(wait)).await {
            Some(()) => Ok(()),
            None => Err((Cause::RequestTimeout, "")),
        }
    }
}

/// Tells outlier detection how a try went.
pub(super) fn judge(
    connection: &Connection,
    service: &ServiceState,
    endpoint: &Arc<EndpointState>,
    outcome: Outcome,
) {
    let Some(policy) = &service.config.outlier else {
        return;
    };
    let shared = &connection.worker.shared;
    let set = service.endpoints.load();
    if let Some(ejection) = outlier::record(endpoint, policy, outcome, shared.now(), &set) {
        tell_ejection(shared, &service.config.name, &ejection);
    }
}

/// nginx's code for a client that closed the connection: only for logs and metrics.
const CLIENT_CLOSED: u16 = 499;

/// Between free retries beyond the first: an endpoint that refuses may be just starting.
const FREE_RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The earlier of two deadlines that may be absent.
pub(super) fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// What an answer's head says that a policy may want tried again.
fn failure_of(head: &ResponseHead) -> Option<Failure> {
    match grpc_status(head) {
        Some(0) => None,
        Some(status) => Some(Failure::GrpcStatus(status)),
        None if head.status.is_client_error() || head.status.is_server_error() => {
            Some(Failure::Status(head.status))
        }
        None => None,
    }
}

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The status of a Trailers-Only gRPC answer.
fn grpc_status(head: &ResponseHead) -> Option<u8> {
    head.headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

pub(super) fn outcome_of(head: &ResponseHead) -> Outcome {
    match grpc_status(head) {
        Some(status) => Outcome::of_grpc_status(status),
        None => Outcome::of_status(head.status),
    }
}

fn failure_label(failure: Failure) -> &'static str {
    match failure {
        Failure::ConnectFailed => "connect_failed",
        Failure::Unprocessed => "unprocessed",
        Failure::Leaving => "leaving",
        Failure::ConnectionDied => "connection_died",
        Failure::TryTimeout => "try_timeout",
        Failure::Status(_) => "status",
        Failure::GrpcStatus(_) => "grpc_status",
    }
}

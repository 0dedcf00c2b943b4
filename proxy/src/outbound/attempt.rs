//! One try of a request on one endpoint: connect → send → wait for the head
//! of the answer.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Method};
use tokio::time::Instant;

use super::Connection;
use super::connect::{ConnectError, Dial, Upstream};
use super::forward::{Forward, earliest, outcome_of};
use super::http1::cause_of;
use super::mesh;
use super::request::Incoming;
use super::send_http2::send_http2;
use crate::logic::balance::{EndpointState, InFlight, Outcome};
use crate::logic::cause::Cause;
use crate::logic::http1::{self, RequestLine};
use crate::logic::limit::{Circuit, Permit};
use crate::logic::retry::{self, Failure};
use crate::net::http::exchange::{Transfer, TransferError};
use crate::net::http::message::{BodyLength, ResponseHead, Side, StreamError};
use crate::net::pool::{Key, PooledHttp1, StreamSlot};
use crate::state::ServiceState;

/// Interim answers (1xx) of one request; an upstream that sends more is at fault.
const INTERIMS_MAX: u32 = 32;

/// What keeps the upstream connection's place while it is used.
#[derive(Debug)]
enum Hold {
    Http1 {
        key: Key,
        permit: Permit<Arc<Circuit>>,
    },
    Http2 {
        _slot: StreamSlot,
    },
}

/// An answer's head has come.
#[derive(Debug)]
pub struct Answered {
    pub head: ResponseHead,
    pub side: Side,
    pub outcome: Outcome,
    pub in_flight: InFlight,
    hold: Hold,
}

impl Answered {
    pub fn take_head(&mut self) -> ResponseHead {
        ResponseHead {
            status: self.head.status,
            headers: std::mem::take(&mut self.head.headers),
            length: self.head.length,
        }
    }

    pub fn is_http2(&self) -> bool {
        matches!(self.side, Side::Http2(_))
    }

    /// From here on bytes pass both ways without framing.
    pub fn become_tunnel(&mut self) {
        if let Side::Http1(http1) = &mut self.side {
            http1.become_tunnel();
        }
    }

    /// Gives the head's header map back to the connection it came from.
    pub fn recycle(&mut self, headers: HeaderMap) {
        if let Side::Http1(http1) = &mut self.side {
            http1.recycle(headers);
        }
    }

    /// Gives the connection back, if it can serve another request.
    pub fn keep(self, connection: &Connection, service: &ServiceState, now: Instant) {
        let (Side::Http1(http1), Hold::Http1 { key, permit }) = (self.side, self.hold) else {
            return;
        };
        if http1.not_kept.is_none() && http1.is_ended() && !http1.has_read_ahead() {
            let pooled = PooledHttp1 {
                connection: http1,
                key,
                reused: true,
                permit,
            };
            connection
                .worker
                .pool
                .put(pooled, now, service.config.idle_timeout);
        }
    }
}

/// Why a try gave no answer.
#[derive(Debug)]
pub struct TryFailed {
    pub cause: Cause,
    /// What the retry rules go by; `None`: another try makes no sense.
    pub kind: Option<Failure>,
    pub reason: &'static str,
    error: Option<String>,
}

impl TryFailed {
    fn new(cause: Cause, kind: Option<Failure>) -> Self {
        Self {
            cause,
            kind,
            reason: "",
            error: None,
        }
    }

    fn because(mut self, error: &dyn std::error::Error) -> Self {
        // Formatted only where somebody will read it.
        if tracing::enabled!(tracing::Level::DEBUG) {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            self.error = Some(text);
        }
        self
    }

    /// What balancing and outlier detection learn of the endpoint.
    pub fn outcome(&self) -> Outcome {
        match self.cause {
            Cause::ConnectFailed | Cause::ConnectTimeout | Cause::UpstreamTls => {
                Outcome::Unreachable
            }
            _ => Outcome::Failure,
        }
    }

    pub fn detail(&self) -> &str {
        self.error.as_deref().unwrap_or("")
    }
}

impl From<ConnectError> for TryFailed {
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::Limit(_) | ConnectError::Local(_) => None,
            _ => Some(Failure::ConnectFailed),
        };
        let mut failed = Self::new(error.cause(), kind).because(&error);
        if let ConnectError::Mesh(refusal) = &error {
            failed.reason = refusal.label();
        }
        failed
    }
}

impl Forward<'_> {
    pub(super) async fn attempt(
        &mut self,
        endpoint: &Arc<EndpointState>,
        started: Instant,
    ) -> Result<Answered, TryFailed> {
        let in_flight = endpoint.begin(self.at(started));
        let try_timeout = self.target.rule.as_ref().and_then(|rule| rule.try_timeout);
        let try_deadline = try_timeout.map(|timeout| started + timeout);
        let result = self.exchange(endpoint, started, try_deadline).await;
        self.progress = Instant::now();
        let now = self.at(self.progress);
        let latency = self.progress - started;
        match result {
            Ok((mut head, side, hold)) => {
                self.record.upstream = Some(latency);
                if endpoint.peer().is_some()
                    && let Some(failure) = self.heed(endpoint, &mut head)
                {
                    in_flight.finish(Outcome::Failure, latency, now);
                    return Err(failure);
                }
                let outcome = outcome_of(&head);
                in_flight.observe(outcome, latency, now);
                Ok(Answered {
                    head,
                    side,
                    outcome,
                    in_flight,
                    hold,
                })
            }
            Err(failed) => {
                if failed.cause.is_upstream_failure() {
                    in_flight.finish(failed.outcome(), latency, now);
                } else {
                    in_flight.abandon(now);
                }
                Err(failed)
            }
        }
    }

    /// What the endpoint's sidecar says in its answer's head beside the answer.
    fn heed(&self, endpoint: &Arc<EndpointState>, head: &mut ResponseHead) -> Option<TryFailed> {
        let shared = &self.connection.worker.shared;
        mesh::heed_leaving(shared, &self.target.service, endpoint, &mut head.headers);
        let failure = mesh::reported(&mut head.headers)?;
        let cause = match failure {
            Failure::ConnectionDied => Cause::UpstreamReset,
            _ => Cause::UpstreamRefused,
        };
        let mut failed = TryFailed::new(cause, Some(failure));
        failed.reason = "its sidecar says so";
        Some(failed)
    }

    async fn exchange(
        &mut self,
        endpoint: &Arc<EndpointState>,
        started: Instant,
        try_deadline: Option<Instant>,
    ) -> Result<(ResponseHead, Side, Hold), TryFailed> {
        let limit = earliest(self.deadline, try_deadline);
        let connect_deadline = started + self.target.service.config.connect_timeout;
        let parts = &self.incoming.parts;
        let dial = Dial {
            connection: self.connection,
            service: &self.target.service,
            endpoint,
            host: parts.authority.as_ref().map_or("", |host| host.host()),
            http2: self.incoming.http2,
            fresh: !retry::is_idempotent(&parts.method),
            tunnel: self.incoming.wants_tunnel(),
            opaque: false,
            deadline: limit.map_or(connect_deadline, |limit| limit.min(connect_deadline)),
        };
        let acquired = {
            let mut acquire = std::pin::pin!(dial.acquire());
            let (side, complete) = (&mut *self.side, self.replay.is_complete());
            std::future::poll_fn(|cx| {
                if let Poll::Ready(acquired) = acquire.as_mut().poll(cx) {
                    return Poll::Ready(Some(acquired));
                }
                if complete && side.poll_gone(cx).is_ready() {
                    return Poll::Ready(None);
                }
                Poll::Pending
            })
            .await
        };
        let Some(acquired) = acquired else {
            return Err(TryFailed::new(Cause::DownstreamGone, None));
        };
        if acquired.is_err()
            && let Some(expired) = self.expired(try_deadline)
        {
            return Err(expired);
        }
        let (mut side, hold) = self.open(acquired?).await?;
        let head = std::future::poll_fn(|cx| self.poll_answer(cx, &mut side, try_deadline)).await?;
        Ok((head, side, hold))
    }

    /// Which of the request's deadlines has passed.
    fn expired(&self, try_deadline: Option<Instant>) -> Option<TryFailed> {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(TryFailed::new(Cause::RequestTimeout, None));
        }
        if try_deadline.is_some_and(|deadline| deadline <= now) {
            return Some(TryFailed::new(Cause::TryTimeout, Some(Failure::TryTimeout)));
        }
        None
    }

    /// Puts the request's head on its way.
    async fn open(&mut self, upstream: Upstream) -> Result<(Side, Hold), TryFailed> {
        let incoming = self.incoming;
        let body_max = self.current.listener.config.http.body_bytes_max;
        let no_body = incoming.length == BodyLength::None || incoming.wants_tunnel();
        // What is announced is what is sent: a body that is not passed on must
        // not be owed on a connection that others will use.
        let (length, upload) = if no_body {
            // Methods that mean a body say that it is empty (RFC 9110 §8.6).
            let empty = matches!(
                incoming.parts.method,
                Method::POST | Method::PUT | Method::PATCH
            ) && !incoming.wants_tunnel();
            let length = if empty {
                BodyLength::Known(0)
            } else {
                BodyLength::None
            };
            (length, Transfer::flushing())
        } else {
            (incoming.length, Transfer::new(body_max))
        };
        self.upload = upload;
        match upstream {
            Upstream::Http1(mut pooled) => {
                let parts = &incoming.parts;
                let connection = match &incoming.upgrade {
                    Some(upgrade) => http1::Connection::Upgrade(upgrade),
                    None => http1::Connection::Unstated,
                };
                let line = RequestLine {
                    method: &parts.method,
                    path_and_query: &parts.path_and_query,
                    authority: parts.authority.as_ref(),
                };
                pooled
                    .connection
                    .send_request(line, &parts.headers, length, connection);
                let hold = Hold::Http1 {
                    key: pooled.key,
                    permit: pooled.permit,
                };
                Ok((Side::Http1(pooled.connection), hold))
            }
            Upstream::Http2(shared, slot) => {
                let stream = send_http2(shared, length, &incoming.parts, no_body)
                    .await
                    .map_err(|error| {
                        // Nothing was sent: the connection is on its way out.
                        TryFailed::new(Cause::UpstreamRefused, Some(Failure::Leaving))
                            .because(&error)
                    })?;
                Ok((Side::Http2(Box::new(stream)), Hold::Http2 { _slot: slot }))
            }
        }
    }

    /// Sends what the client sends until the head of the answer has come.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut Side,
        try_deadline: Option<Instant>,
    ) -> Poll<Result<ResponseHead, TryFailed>> {
        let before = self.upload.bytes;
        if !self.upload.is_done() && !self.upload_failed {
            let upload = &mut self.upload;
            match upload.poll_replayable(cx, self.side, upstream, &mut self.replay) {
                Poll::Ready(Err(TransferError::Source(error))) => {
                    return Poll::Ready(Err(downstream_failed(&error)));
                }
                Poll::Ready(Err(TransferError::TooLarge)) => {
                    return Poll::Ready(Err(TryFailed::new(Cause::BodyTooLarge, None)));
                }
                // An answer may have come before the upstream closed.
                Poll::Ready(Err(TransferError::Sink(_))) => self.upload_failed = true,
                _ => {}
            }
        }
        loop {
            match upstream.poll_response(cx) {
                Poll::Ready(Ok(head)) if is_interim(&head) => {
                    self.interims += 1;
                    if self.interims > INTERIMS_MAX {
                        let mut failed = TryFailed::new(Cause::UpstreamProtocol, None);
                        failed.reason = "too_many_interim_answers";
                        return Poll::Ready(Err(failed));
                    }
                    let sent = self.side.send_interim(head.status, head.headers);
                    if sent.is_err() || matches!(self.side.poll_flush(cx), Poll::Ready(Err(_))) {
                        return Poll::Ready(Err(TryFailed::new(Cause::DownstreamGone, None)));
                    }
                }
                Poll::Ready(Ok(head)) if is_unasked(&head, self.incoming) => {
                    let mut failed = TryFailed::new(Cause::UpstreamProtocol, None);
                    failed.reason = "unasked_upgrade";
                    return Poll::Ready(Err(failed));
                }
                Poll::Ready(Ok(head)) => return Poll::Ready(Ok(head)),
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(upstream_failed(&error, upstream)));
                }
                Poll::Pending => break,
            }
        }
        if self.upload.bytes != before {
            self.awaits_since = None;
        }
        if self.replay.is_complete() && self.side.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(TryFailed::new(Cause::DownstreamGone, None)));
        }
        self.poll_answer_deadline(cx, try_deadline)
    }

    fn poll_answer_deadline(
        &mut self,
        cx: &mut Context<'_>,
        try_deadline: Option<Instant>,
    ) -> Poll<Result<ResponseHead, TryFailed>> {
        // A gRPC stream may rest for as long as it likes.
        let awaits_body = self.upload.awaits_source() && !self.incoming.streams();
        let invited = !self.incoming.expects_continue() || self.upload.bytes > 0;
        let awaits_body = awaits_body && !self.upload_failed && (invited || self.interims > 0);
        let body_idle = self.current.listener.config.http.body_idle_timeout;
        self.awaits_since = match self.awaits_since {
            since @ Some(_) if awaits_body => since,
            _ => awaits_body.then(Instant::now),
        };
        let body_deadline = self.awaits_since.map(|since| since + body_idle);
        self.timer.set(earliest(
            earliest(self.deadline, try_deadline),
            body_deadline,
        ));
        if self.timer.poll_expired(cx).is_pending() {
            return Poll::Pending;
        }
        let slow = || TryFailed::new(Cause::RequestSlow, None);
        Poll::Ready(Err(self.expired(try_deadline).unwrap_or_else(slow)))
    }
}

fn is_interim(head: &ResponseHead) -> bool {
    head.status.is_informational() && head.length != BodyLength::Tunnel
}

/// A switch of protocols that the client did not ask for.
fn is_unasked(head: &ResponseHead, incoming: &Incoming) -> bool {
    head.length == BodyLength::Tunnel && !incoming.wants_tunnel()
}

fn downstream_failed(error: &StreamError) -> TryFailed {
    let cause = match error {
        StreamError::Malformed(reject) => cause_of(*reject),
        StreamError::LengthMismatch => Cause::Rejected,
        _ => Cause::DownstreamGone,
    };
    let mut failed = TryFailed::new(cause, None).because(error);
    if let StreamError::Malformed(reject) = error {
        failed.reason = reject.reason();
    }
    failed
}

/// What an upstream's failure before the head of its answer means.
fn upstream_failed(error: &StreamError, upstream: &Side) -> TryFailed {
    let answering = matches!(upstream, Side::Http1(http1) if http1.has_read_ahead());
    let unsent = matches!(upstream, Side::Http1(http1) if !http1.has_sent());
    if error.is_unprocessed() || unsent {
        let leaving = matches!(error, StreamError::Http2(error) if error.is_go_away());
        let kind = if leaving {
            Failure::Leaving
        } else {
            Failure::Unprocessed
        };
        TryFailed::new(Cause::UpstreamRefused, Some(kind)).because(error)
    } else if error.is_protocol() || answering {
        let mut failed = TryFailed::new(Cause::UpstreamProtocol, None).because(error);
        if let StreamError::MalformedAnswer(fault) = error {
            failed.reason = fault.reason();
        }
        failed
    } else {
        TryFailed::new(Cause::UpstreamReset, Some(Failure::ConnectionDied)).because(error)
    }
}

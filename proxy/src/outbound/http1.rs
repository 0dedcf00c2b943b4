//! A downstream HTTP/1.1 connection: one request after the other.
//!
//! ```text
//! Idle ──first byte──▶ Head ──parsed──▶ request ──kept──▶ Idle
//!   └──idle timeout, evicted, EOF──▶ closed ◀──not kept────┘
//! ```

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, Method};
use tokio::time::Instant;
use weft_config::filter::RequestParts;
use weft_config::snapshot::{Listener, Scheme};

use super::record::Record;
use super::request::{self, Current, Incoming};
use super::respond::Answer;
use super::{Connection, Ended, deadline, head_limits, sidecar};
use crate::drain::Phase;
use crate::logic::cause::Cause;
use crate::logic::http1::{Framing, Reject, RequestHead, Version};
use crate::net::http::http1::Http1;
use crate::net::http::message::{BodyLength, Side, StreamError};
use crate::net::stream::Stream;
use crate::net::timer::Timer;

/// After this long without a request, buffers are given back.
const RELEASE_AFTER: Duration = Duration::from_secs(1);
/// How long, and for how many bytes, a closing connection takes in what the
/// client still sends, so that it can read the answer (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// What waiting for a request gave.
#[allow(
    clippy::large_enum_variant,
    reason = "moved once, and boxing costs an allocation a request"
)]
enum Next {
    Request(RequestHead),
    Closed,
    /// Nothing came for too long, or room was needed.
    Idle(&'static str),
    Slow,
    Failed(StreamError),
}

pub async fn serve(
    mut connection: Connection,
    listener: &Arc<Listener>,
    mut stream: Stream,
) -> Ended {
    let prefix = match &mut stream {
        Stream::Plain(plain) => std::mem::take(&mut plain.prefix),
        _ => BytesMut::new(),
    };
    let http1 = Http1::new(stream, head_limits(&listener.http), prefix);
    let mut side = Side::Http1(Box::new(http1));
    let mut timer = Timer::default();
    let Some(mut current) = connection.begin() else {
        return Ok(());
    };
    let mut served = 0u32;
    loop {
        let head = match next(&connection, &current, &mut side, &mut timer).await {
            Next::Request(head) => head,
            Next::Closed => return Ok(()),
            Next::Idle(reason) => return Err(reason),
            Next::Slow | Next::Failed(StreamError::Malformed(_)) if connection.probes_only => {
                return sidecar::mtls_required(&connection);
            }
            Next::Slow => {
                reject(&connection, &current, &mut side, Cause::RequestSlow, "").await;
                return Err("header_timeout");
            }
            Next::Failed(StreamError::Malformed(error)) => {
                let (cause, reason) = (cause_of(error), error.reason());
                reject(&connection, &current, &mut side, cause, reason).await;
                return Err(reason);
            }
            Next::Failed(_) => return Err("downstream_reset"),
        };
        served = served.saturating_add(1);
        let known = connection.refresh(&mut current);
        let most = current.listener.config.http.requests_per_connection_max;
        let draining = connection.is_leaving();
        let keep = head.keep_alive && known && !draining && (most == 0 || served < most);
        let incoming = incoming(head, connection.tls);
        let serving = request::serve(&connection, &current, &mut side, incoming, keep);
        if !serving.await {
            linger(&mut side).await;
            return Ok(());
        }
    }
}

async fn next(
    connection: &Connection,
    current: &Current,
    side: &mut Side,
    timer: &mut Timer,
) -> Next {
    let Side::Http1(http1) = side else {
        return Next::Closed;
    };
    let options = &current.listener.config.http;
    if connection.worker.shared.drain.phase() == Phase::Closing && !http1.has_read_ahead() {
        return Next::Closed;
    }
    let mut released = false;
    let mut reading = false;
    connection.lease.set_idle();
    timer.set(Some(deadline(RELEASE_AFTER.min(options.idle_timeout))));
    std::future::poll_fn(|cx| {
        match http1.poll_request(cx) {
            Poll::Ready(Ok(Some(head))) => {
                connection.lease.set_busy();
                return Poll::Ready(Next::Request(head));
            }
            Poll::Ready(Ok(None)) => return Poll::Ready(Next::Closed),
            Poll::Ready(Err(error)) => return Poll::Ready(Next::Failed(error)),
            Poll::Pending => {}
        }
        if http1.has_read_ahead() {
            // Part of a head is here: from now on it must not take long.
            if !reading {
                reading = true;
                connection.lease.set_busy();
                timer.set(Some(deadline(options.header_timeout)));
            }
            return timer.poll_expired(cx).map(|()| Next::Slow);
        }
        if connection.lease.poll_evicted(cx).is_ready() {
            return Poll::Ready(Next::Idle("evicted"));
        }
        while timer.poll_expired(cx).is_ready() {
            if released || options.idle_timeout <= RELEASE_AFTER {
                return Poll::Ready(Next::Idle("idle_timeout"));
            }
            released = true;
            timer.set(Some(deadline(options.idle_timeout - RELEASE_AFTER)));
        }
        if released {
            http1.release_buffers();
        }
        Poll::Pending
    })
    .await
}

fn incoming(head: RequestHead, tls: bool) -> Incoming {
    let length = match head.body {
        Framing::None | Framing::UntilClose => BodyLength::None,
        Framing::Length(length) => BodyLength::Known(length),
        Framing::Chunked => BodyLength::Unknown,
    };
    Incoming {
        parts: RequestParts {
            method: head.method,
            scheme: if tls { Scheme::Https } else { Scheme::Http },
            authority: head.target.authority,
            path_and_query: head.target.path_and_query,
            headers: head.headers,
        },
        length,
        // With a body it is ignored, as is always allowed (RFC 9110 §7.8).
        upgrade: head
            .upgrade
            .filter(|_| matches!(length, BodyLength::None | BodyLength::Known(0))),
        http2: false,
        protocol: match head.version {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
        },
    }
}

pub(super) fn cause_of(reject: Reject) -> Cause {
    match reject {
        Reject::Version => Cause::VersionUnsupported,
        Reject::TargetTooLong => Cause::UriTooLong,
        Reject::HeadTooLarge | Reject::TooManyHeaders | Reject::TrailersTooLarge => {
            Cause::HeaderTooLarge
        }
        Reject::TransferEncoding => Cause::NotImplemented,
        _ => Cause::Rejected,
    }
}

/// Answers a request whose head could not be read; the connection ends.
async fn reject(
    connection: &Connection,
    current: &Current,
    side: &mut Side,
    cause: Cause,
    reason: &'static str,
) {
    let shared = &connection.worker.shared;
    shared.metrics.rejected(
        &connection.listener,
        if reason.is_empty() {
            cause.label()
        } else {
            reason
        },
    );
    let unread = Incoming {
        parts: RequestParts {
            method: Method::GET,
            scheme: Scheme::Http,
            authority: None,
            path_and_query: http::uri::PathAndQuery::from_static("/"),
            headers: HeaderMap::new(),
        },
        length: BodyLength::None,
        upgrade: None,
        http2: false,
        protocol: "HTTP/1.1",
    };
    let mut record = Record::new(Instant::now());
    let answer = Answer::of(cause, reason);
    request::answer_now(side, &unread, answer, false, false, &mut record).await;
    record.finish(connection, current, &unread);
    linger(side).await;
}

/// Ends our side, then waits a little for the client to end its own.
async fn linger(side: &mut Side) {
    let Side::Http1(http1) = side else {
        return;
    };
    if http1.is_aborted() {
        return;
    }
    http1.close();
    let mut timer = Timer::default();
    timer.set(Some(deadline(LINGER)));
    let mut limit = LINGER_BYTES_MAX;
    let lingering = async {
        if std::future::poll_fn(|cx| http1.poll_flush(cx))
            .await
            .is_ok()
        {
            std::future::poll_fn(|cx| http1.poll_linger(cx, &mut limit)).await;
        }
    };
    let _ = timer.limit(lingering).await;
}

//! A downstream HTTP/2 connection: its streams are tasks of their own, on the
//! same worker. h2 bounds what floods can do (streams reset before they are
//! accepted, CONTINUATION, PING and SETTINGS answered only as fast as they are
//! read); what it refuses is counted here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Request, header, uri};
use tokio::sync::watch;
use tokio::time::Instant;
use weft_config::filter::RequestParts;
use weft_config::snapshot::{Listener, Scheme};

use super::record::Record;
use super::request::{self, Current, Incoming};
use super::respond::Answer;
use super::{Connection, Ended, deadline};
use crate::drain::Phase;
use crate::logic::cause::Cause;
use crate::logic::http1::parse_authority;
use crate::net::http::http2::{Http2Stream, body_length};
use crate::net::http::message::{BodyLength, Side};
use crate::net::stream::Stream;
use crate::net::timer::Timer;

/// Receive windows: what a client may have under way to us on a stream, and on
/// all of them. A few bodies that nobody takes in do not hold up the others.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;
/// Bytes of answers that may wait in h2 for a client's window.
const SEND_BUFFER_MAX: usize = 256 * 1024;
/// How long an idle client that was told to leave may take to do so.
const LEAVE: Duration = Duration::from_secs(1);
/// Streams that a client may reset before they are accepted, and before they
/// are answered if they are more than half of all: then it is a flood
/// (CVE-2023-44487), and the connection ends.
const PENDING_RESETS_MAX: usize = 50;
const ABANDONED_MAX: u32 = 200;

pub async fn serve(mut connection: Connection, listener: &Arc<Listener>, stream: Stream) -> Ended {
    let options = &listener.http;
    let mut timer = Timer::default();
    timer.set(Some(deadline(options.header_timeout)));
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(options.streams_max)
        .max_header_list_size(u32::try_from(options.header_bytes_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .handshake::<_, Bytes>(stream);
    let mut http2 = match timer.limit(handshake).await {
        None => return Err("preface_timeout"),
        Some(Err(error)) => return Err(count(&connection, &error)),
        Some(Ok(http2)) => http2,
    };
    let Some(current) = connection.begin() else {
        return Ok(());
    };
    let mut phase = connection.worker.shared.drain.subscribe();
    let mut served = Served {
        connection: Arc::new(connection),
        listener,
        current,
        timer,
        leaving: false,
        count: 0,
    };
    loop {
        match served.turn(&mut http2, &mut phase).await {
            Turn::Stream(None) => return Ok(()),
            Turn::Stream(Some(Err(error))) => return Err(count(&served.connection, &error)),
            Turn::Stream(Some(Ok((request, respond)))) => {
                served.accept(&mut http2, request, respond);
            }
            Turn::Phase if *phase.borrow() == Phase::Closing => {
                http2.abrupt_shutdown(h2::Reason::NO_ERROR);
                served.leaving = true;
            }
            Turn::Phase if !served.leaving && served.connection.is_leaving() => {
                served.leave(&mut http2);
            }
            Turn::Idle if !served.leaving => served.leave(&mut http2),
            Turn::Idle => return Err("idle_timeout"),
            Turn::Phase | Turn::Again => {}
        }
    }
}

type Http2 = h2::server::Connection<Stream, Bytes>;

/// A connection being served.
struct Served<'a> {
    connection: Arc<Connection>,
    listener: &'a Listener,
    current: Current,
    timer: Timer,
    /// The client was told to leave.
    leaving: bool,
    count: u32,
}

impl Served<'_> {
    /// Waits for the next thing to happen.
    async fn turn(&mut self, http2: &mut Http2, phase: &mut watch::Receiver<Phase>) -> Turn {
        let mut changed = std::pin::pin!(phase.changed());
        let busy = http2.has_streams();
        // Their answers may still wait for a client that does not read.
        let serving = Arc::strong_count(&self.connection) > 1;
        let lease = &self.connection.lease;
        let options = &self.listener.http;
        let limit = match (busy, self.leaving) {
            (true, _) if serving => None,
            (true, _) => Some(options.body_idle_timeout),
            (false, true) => Some(LEAVE),
            (false, false) => Some(options.idle_timeout),
        };
        if busy {
            lease.set_busy();
        } else {
            lease.set_idle();
        }
        self.timer.set(limit.map(deadline));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(stream) = http2.poll_accept(cx) {
                return Poll::Ready(Turn::Stream(stream));
            }
            if changed.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Turn::Phase);
            }
            // The last stream may have ended since the timer was set.
            let all_ended = serving && Arc::strong_count(&self.connection) == 1;
            if busy && (all_ended || !http2.has_streams()) {
                return Poll::Ready(Turn::Again);
            }
            if !busy && !self.leaving && lease.poll_evicted(cx).is_ready() {
                return Poll::Ready(Turn::Idle);
            }
            self.timer.poll_expired(cx).map(|()| Turn::Idle)
        })
        .await
    }

    fn leave(&mut self, http2: &mut Http2) {
        self.leaving = true;
        http2.graceful_shutdown();
    }

    fn accept(
        &mut self,
        http2: &mut Http2,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) {
        self.count = self.count.saturating_add(1);
        let abandoned = self.connection.abandoned.load(Ordering::Relaxed);
        if abandoned > ABANDONED_MAX && abandoned > self.count / 2 {
            http2.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            let metrics = &self.connection.worker.shared.metrics;
            metrics.http2_error(&self.connection.listener, "rapid_reset");
            self.leaving = true;
            return;
        }
        let known = self.connection.refresh(&mut self.current);
        let most = self
            .current
            .listener
            .config
            .http
            .requests_per_connection_max;
        if !self.leaving && (!known || (most > 0 && self.count >= most)) {
            self.leave(http2);
        }
        let (connection, current) = (Arc::clone(&self.connection), self.current.clone());
        // Owned by the connection, which ends only after its streams have.
        // Boxed: spawning moves a task several times.
        tokio::spawn(Box::pin(serve_stream(
            connection, current, request, respond,
        )));
    }
}

type Accepted = Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>;

#[allow(
    clippy::large_enum_variant,
    reason = "lives for one turn of the loop, on the stack"
)]
enum Turn {
    Stream(Option<Accepted>),
    /// The process drains, or closes.
    Phase,
    Idle,
    Again,
}

/// Counts a connection's failure and names it.
fn count(connection: &Connection, error: &h2::Error) -> &'static str {
    let reason = match error.reason() {
        _ if error.is_io() => return "downstream_reset",
        Some(h2::Reason::ENHANCE_YOUR_CALM) => "enhance_your_calm",
        Some(h2::Reason::PROTOCOL_ERROR) => "protocol_error",
        Some(h2::Reason::FLOW_CONTROL_ERROR) => "flow_control_error",
        Some(h2::Reason::FRAME_SIZE_ERROR) => "frame_size_error",
        Some(h2::Reason::COMPRESSION_ERROR) => "compression_error",
        Some(h2::Reason::NO_ERROR) => return "downstream_closed",
        _ => "http2_error",
    };
    connection
        .worker
        .shared
        .metrics
        .http2_error(&connection.listener, reason);
    reason
}

async fn serve_stream(
    connection: Arc<Connection>,
    current: Current,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (head, receive) = request.into_parts();
    let ended = receive.is_end_stream();
    let mut side = Side::Http2(Box::new(Http2Stream {
        respond: Some(respond),
        receive: Some(receive),
        ..Http2Stream::default()
    }));
    let headers_max = current.listener.config.http.headers_max;
    let too_many = head.headers.len() > headers_max;
    let (incoming, fault) = incoming(head, ended, connection.tls);
    let fault = fault.map(|reason| (Cause::Rejected, reason));
    let fault = fault.or(too_many.then_some((Cause::HeaderTooLarge, "too_many_headers")));
    if let Some((cause, reason)) = fault {
        let shared = &connection.worker.shared;
        shared.metrics.rejected(&connection.listener, reason);
        let mut record = Record::new(Instant::now());
        let answer = Answer::of(cause, reason);
        request::answer_now(&mut side, &incoming, answer, false, true, &mut record).await;
        record.finish(&connection, &current, &incoming);
        return;
    }
    request::serve(&connection, &current, &mut side, incoming, true).await;
}

/// The request in the form that the rest works on, and what is wrong with it.
fn incoming(
    head: http::request::Parts,
    ended: bool,
    tls: bool,
) -> (Incoming, Option<&'static str>) {
    let mut headers = head.headers;
    let uri = head.uri.into_parts();
    let (authority, fault) = authority(uri.authority, headers.remove(header::HOST));
    let length = if ended {
        BodyLength::None
    } else {
        body_length(&headers)
    };
    headers.remove(header::CONTENT_LENGTH);
    join_cookies(&mut headers);
    let path = uri
        .path_and_query
        .unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    let target = path.as_str();
    let whole = target.starts_with('/') || (target == "*" && head.method == Method::OPTIONS);
    let fault = fault.or((!whole || !target.is_ascii()).then_some("target"));
    let incoming = Incoming {
        parts: RequestParts {
            method: head.method,
            scheme: if tls { Scheme::Https } else { Scheme::Http },
            authority,
            path_and_query: path,
            headers,
        },
        length,
        upgrade: None,
        http2: true,
        protocol: "HTTP/2",
    };
    (incoming, fault)
}

/// HTTP/2 may split the Cookie field; everywhere else it is one (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(crumbs.join(&b"; "[..]))) {
        headers.insert(header::COOKIE, joined);
    }
}

/// `:authority` and Host must agree (RFC 9113 §8.3.1); one of them is enough.
fn authority(
    pseudo: Option<uri::Authority>,
    host: Option<HeaderValue>,
) -> (Option<uri::Authority>, Option<&'static str>) {
    let parse = |value: &[u8]| parse_authority(Bytes::copy_from_slice(value));
    let named = match (&pseudo, &host) {
        (Some(pseudo), _) => parse(pseudo.as_str().as_bytes()),
        (None, Some(host)) => parse(host.as_bytes()),
        (None, None) => return (None, Some("host_missing")),
    };
    let Ok(named) = named else {
        return (None, Some("host"));
    };
    let agrees = host.is_none_or(|host| {
        host.as_bytes()
            .eq_ignore_ascii_case(named.as_str().as_bytes())
    });
    let fault = (!agrees).then_some("host_disagrees");
    (Some(named), fault)
}

//! The first bytes of a connection: PROXY protocol headers, which protocol
//! follows, and whom a TLS client asks for. Reads; `logic` decides.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use weft_config::snapshot::ProxyProtocol;

use super::{Connection, opaque};
use crate::logic::detect::{Detection, HTTP2_PREFACE, PREFIX_BYTES_MAX, detect};
use crate::logic::{client_hello, proxy_protocol};
use crate::net::stream::Plain;
use crate::net::timer::Timer;
use crate::state::ListenerState;

/// How long a client may stay silent before the upstream is asked to speak.
const GRACE: Duration = Duration::from_millis(50);

/// The two ends that a PROXY header names; `None`: it names none.
pub async fn proxy_header(
    plain: &mut Plain,
    version: ProxyProtocol,
) -> Result<Option<(SocketAddr, SocketAddr)>, &'static str> {
    loop {
        let first = plain.prefix.first().copied();
        let wrong = match (version, first) {
            (ProxyProtocol::V1, Some(byte)) => byte != b'P',
            (ProxyProtocol::V2, Some(byte)) => byte != b'\r',
            _ => false,
        };
        if wrong {
            return Err("proxy_header_missing");
        }
        if first.is_some() {
            match proxy_protocol::parse(&plain.prefix) {
                Ok(Some((header, length))) => {
                    let _ = plain.prefix.split_to(length);
                    return Ok(header.source.zip(header.destination));
                }
                Ok(None) => {}
                Err(error) => return Err(error.reason()),
            }
        }
        if read(plain, proxy_protocol::HEADER_BYTES_MAX).await? == 0 {
            return Err("proxy_header_missing");
        }
    }
}

async fn read(plain: &mut Plain, max: usize) -> Result<usize, &'static str> {
    plain
        .read_ahead(max)
        .await
        .map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData => "prefix_too_large",
            _ => "downstream_reset",
        })
}

/// On a port declared HTTP: whether it is HTTP/2 (prior knowledge); `None` when
/// the client left without a byte. Anything else is for the HTTP/1.1 parser to judge.
pub async fn http_version(
    connection: &Connection,
    plain: &mut Plain,
    idle_timeout: Duration,
) -> Result<Option<bool>, &'static str> {
    let mut timer = Timer::default();
    timer.set(Some(Instant::now() + idle_timeout));
    connection.lease.set_idle();
    loop {
        let seen = plain.prefix.len().min(HTTP2_PREFACE.len());
        let alike = plain.prefix.get(..seen) == HTTP2_PREFACE.get(..seen);
        if seen > 0 && (!alike || seen == HTTP2_PREFACE.len()) {
            connection.lease.set_busy();
            return Ok(Some(alike));
        }
        let count = {
            let mut reading = std::pin::pin!(read(plain, PREFIX_BYTES_MAX));
            std::future::poll_fn(|cx| {
                if let Poll::Ready(count) = reading.as_mut().poll(cx) {
                    return Poll::Ready(count);
                }
                if connection.lease.poll_evicted(cx).is_ready() {
                    return Poll::Ready(Err("evicted"));
                }
                timer.poll_expired(cx).map(|()| Err("idle_timeout"))
            })
            .await?
        };
        if count == 0 {
            connection.lease.set_busy();
            return Ok((!plain.prefix.is_empty()).then_some(false));
        }
    }
}

/// The server name that a TLS client asks for.
pub async fn server_name(plain: &mut Plain) -> Result<Option<String>, &'static str> {
    loop {
        match client_hello::parse(&plain.prefix) {
            Ok(hello) => return Ok(hello.server_name),
            Err(client_hello::HelloError::NeedMore) => {}
            Err(error) => return Err(error.reason()),
        }
        if read(plain, client_hello::PREFIX_BYTES_MAX).await? == 0 {
            return Err("downstream_closed");
        }
    }
}

/// What an `auto` connection turned out to be.
#[derive(Debug)]
pub enum Detected {
    Tls,
    Http1,
    Http2,
    Opaque,
    /// The upstream spoke first; its connection.
    ServerFirst(Box<opaque::Opened>),
    Closed,
}

/// Waits for either side to speak. A silent client is never misread for being
/// slow: after a short grace the upstream is opened too, and whoever speaks
/// first decides.
pub async fn first_speaker(
    connection: &Connection,
    listener: &Arc<ListenerState>,
    plain: &mut Plain,
) -> Result<Detected, &'static str> {
    let options = &listener.config.http;
    let mut timer = Timer::default();
    timer.set(Some(Instant::now() + GRACE));
    let mut asked = false;
    let mut begun = false;
    loop {
        match detect(&plain.prefix) {
            Detection::Tls => return Ok(Detected::Tls),
            Detection::Http1 => return Ok(Detected::Http1),
            Detection::Http2 => return Ok(Detected::Http2),
            Detection::Opaque => return Ok(Detected::Opaque),
            Detection::NeedMore => {}
        }
        if !plain.prefix.is_empty() && !begun {
            begun = true;
            timer.set(Some(Instant::now() + options.header_timeout));
        }
        match timer.limit(read(plain, PREFIX_BYTES_MAX)).await {
            Some(Ok(0)) if plain.prefix.is_empty() => return Ok(Detected::Closed),
            Some(Ok(0)) => return Ok(Detected::Opaque),
            Some(Ok(_)) => {}
            Some(Err(reason)) => return Err(reason),
            None if begun => return Err("header_timeout"),
            None if asked => return Err("idle_timeout"),
            None => {
                asked = true;
                timer.set(Some(Instant::now() + options.idle_timeout));
                if let Some(opened) = server_first(connection, listener, plain).await? {
                    return Ok(Detected::ServerFirst(Box::new(opened)));
                }
            }
        }
    }
}

/// Opens the upstream and waits for either side; `None`: the client was first,
/// or there is no upstream for a connection without a request.
async fn server_first(
    connection: &Connection,
    listener: &Arc<ListenerState>,
    plain: &Plain,
) -> Result<Option<opaque::Opened>, &'static str> {
    let Ok(opened) = opaque::open(connection, None).await else {
        return Ok(None);
    };
    let idle = listener.config.tcp_idle_timeout;
    let mut timer = Timer::default();
    timer.set(idle.map(|idle| Instant::now() + idle));
    connection.lease.set_idle();
    let client_first = std::future::poll_fn(|cx| {
        if plain.tcp.poll_read_ready(cx).is_ready() {
            return Poll::Ready(Ok(true));
        }
        if opened.poll_readable(cx).is_ready() {
            return Poll::Ready(Ok(false));
        }
        if connection.lease.poll_evicted(cx).is_ready() {
            return Poll::Ready(Err("evicted"));
        }
        timer.poll_expired(cx).map(|()| Err("idle_timeout"))
    })
    .await;
    connection.lease.set_busy();
    Ok((!client_first?).then_some(opened))
}

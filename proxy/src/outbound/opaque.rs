//! Connections whose bytes the proxy does not read: TCP, and TLS passed
//! through. Chooses the upstream by server name or listener, joins the two
//! ends, half-closes each as the other ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use rand::Rng as _;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use weft_config::filter::{BackendChoice, choose_backend};
use weft_config::select::{StreamSelection, select_stream};
use weft_config::snapshot::{BackendTarget, Rule, ServiceId};

use super::connect::Dial;
use super::sidecar::InFlight;
use super::{Connection, Ended, authorize, mesh};
use crate::logic::balance::{self, Outcome, hash_key};
use crate::logic::cause::Cause;
use crate::logic::http1::HeadLimits;
use crate::logic::limit::{Permit, Resource, try_acquire};
use crate::net::http::exchange::{Transfer, TransferError};
use crate::net::http::http1::Http1;
use crate::net::http::message::Side;
use crate::net::stream::{Plain, Stream};
use crate::net::timer::Timer;
use crate::state::{ListenerState, ServiceState};
use crate::telemetry::access_log::Entry;

/// Endpoints tried for one connection before it is given up.
const TRIES_MAX: usize = 5;
/// What is no part of the mesh has no connectTimeout of its own.
const PASS_THROUGH_CONNECT_MAX: Duration = Duration::from_secs(10);

/// An upstream connection for an opaque downstream one.
#[derive(Debug)]
pub struct Opened {
    stream: Stream,
    service: Arc<ServiceState>,
    rule: Option<Arc<Rule>>,
    endpoint: SocketAddr,
    in_flight: balance::InFlight,
    tries: u32,
    _permit: Permit<Arc<crate::logic::limit::Circuit>>,
}

impl Opened {
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_read_ready(cx).map(drop)
    }
}

/// Opens the upstream and joins it to the client.
pub async fn serve(
    connection: Connection,
    listener: &Arc<ListenerState>,
    stream: Stream,
    server_name: Option<String>,
) -> Ended {
    let started = Instant::now();
    authorized(&connection, listener)?;
    let counted = enter(&connection, listener)?;
    match open(&connection, server_name.as_deref()).await {
        Ok(opened) => relayed(connection, listener, stream, (opened, counted)).await,
        Err(cause) => {
            let told = Told {
                service: "",
                rule: None,
                endpoint: None,
                tries: 0,
                cause,
                started,
                bytes: (0, 0),
            };
            told.tell(&connection, listener);
            Err(cause.label())
        }
    }
}

/// By the policies of now, not of when the connection came: it may have waited.
fn authorized(connection: &Connection, listener: &Arc<ListenerState>) -> Result<(), &'static str> {
    let present = connection.present();
    let listener = present.as_ref().map_or(listener, |of| &of.listener);
    authorize::connection(connection, listener)
}

/// Chooses and dials an upstream; another endpoint where one cannot be reached.
pub async fn open(connection: &Connection, server_name: Option<&str>) -> Result<Opened, Cause> {
    let shared = &connection.worker.shared;
    // The listener may have waited for the client since another configuration,
    // in which the same id is another service.
    let current = connection.present().ok_or(Cause::InvalidBackend)?;
    let (id, rule) = choose(&current.listener, server_name)?;
    let service = current.runtime.service(id).ok_or(Cause::InvalidBackend)?;
    let permit = try_acquire(Arc::clone(&service.circuit), Resource::Connection)
        .ok_or(Cause::ConnectionsFull)?;
    let mut tried: Vec<SocketAddr> = Vec::new();
    let hash = hash_key(
        &service.config.balancer.hash,
        &http::HeaderMap::new(),
        Some(connection.client.ip()),
    );
    let mut last = Cause::NoEndpoint;
    while tried.len() < TRIES_MAX {
        let now = shared.clock.now();
        let set = service.endpoints.load();
        let picked = set
            .pick(now, &mut rand::rng(), hash, &tried)
            .ok_or(Cause::NoEndpoint)?;
        let endpoint = Arc::clone(picked.endpoint);
        let started = Instant::now();
        let in_flight = endpoint.begin(now);
        let dial = Dial {
            connection,
            service,
            endpoint: &endpoint,
            host: server_name.unwrap_or(""),
            http2: false,
            fresh: true,
            tunnel: true,
            opaque: true,
            deadline: started + service.config.connect_timeout,
        };
        tried.push(endpoint.address());
        let opened = dial.open().await;
        let now = shared.clock.now();
        match opened {
            Ok(stream) => {
                in_flight.observe(Outcome::Success, started.elapsed(), now);
                return Ok(Opened {
                    stream,
                    service: Arc::clone(service),
                    rule,
                    endpoint: endpoint.address(),
                    in_flight,
                    tries: tried.len() as u32,
                    _permit: permit,
                });
            }
            Err(error) => {
                last = error.cause();
                in_flight.finish(Outcome::Unreachable, started.elapsed(), now);
                super::forward::judge(connection, service, &endpoint, Outcome::Unreachable);
            }
        }
    }
    Err(last)
}

/// The service of a connection, by its routes or its listener.
fn choose(
    listener: &ListenerState,
    server_name: Option<&str>,
) -> Result<(ServiceId, Option<Arc<Rule>>), Cause> {
    let rule = match select_stream(&listener.config, server_name, None) {
        None => return Err(Cause::NoRoute),
        Some(StreamSelection::Service(id)) => return Ok((id, None)),
        Some(StreamSelection::Rule(rule)) => rule,
    };
    match choose_backend(rule, rand::rng().next_u64()) {
        BackendChoice::Backend(backend) => match backend.target {
            BackendTarget::Service(id) => Ok((id, Some(Arc::clone(rule)))),
            BackendTarget::Invalid(_) => Err(Cause::InvalidBackend),
        },
        BackendChoice::Invalid(_) => Err(Cause::InvalidBackend),
        BackendChoice::None => Err(Cause::NoBackend),
    }
}

/// A connection that another sidecar carries here: it learns first whether the
/// application is reached.
pub async fn serve_mesh(
    connection: Connection,
    listener: &Arc<ListenerState>,
    mut stream: Stream,
) -> Ended {
    if let Err(denied) = authorized(&connection, listener) {
        stream
            .write_all(&[mesh::DENIED])
            .await
            .map_err(|_| "downstream_reset")?;
        let _ = stream.shutdown().await;
        return Err(denied);
    }
    let counted = enter(&connection, listener);
    let opened = match &counted {
        Ok(_) => open(&connection, None).await,
        Err(_) => Err(Cause::Draining),
    };
    match opened {
        Ok(opened) => {
            let word = match connection.is_leaving() {
                true => mesh::GO_AHEAD_LEAVING,
                false => mesh::GO_AHEAD,
            };
            stream
                .write_all(&[word])
                .await
                .map_err(|_| "downstream_reset")?;
            stream.flush().await.map_err(|_| "downstream_reset")?;
            relayed(connection, listener, stream, (opened, counted?)).await
        }
        Err(cause) => {
            let _ = stream.write_all(&[mesh::REFUSED]).await;
            let _ = stream.shutdown().await;
            Err(cause.label())
        }
    }
}

/// A connection to what is no part of the mesh, as it is.
pub async fn pass_through(mut connection: Connection, plain: Plain, address: SocketAddr) -> Ended {
    connection.begun = None;
    let connecting = tokio::net::TcpStream::connect(address);
    let upstream = match tokio::time::timeout(PASS_THROUGH_CONNECT_MAX, connecting).await {
        Ok(Ok(tcp)) => Stream::Plain(Plain::new(tcp)),
        Ok(Err(_)) => return Err(Cause::ConnectFailed.label()),
        Err(_) => return Err(Cause::ConnectTimeout.label()),
    };
    let ends = (Stream::Plain(plain), upstream);
    match relay(&connection, ends, None).await {
        (Cause::Answered, ..) => Ok(()),
        (cause, ..) => Err(cause.label()),
    }
}

/// What the drain barrier waits for, unless it is shut.
fn enter(connection: &Connection, listener: &ListenerState) -> Result<InFlight, &'static str> {
    InFlight::enter(&connection.worker.shared, listener).ok_or(Cause::Draining.label())
}

/// Joins a client to an upstream that was opened before it spoke.
pub async fn join(
    connection: Connection,
    listener: &Arc<ListenerState>,
    stream: Stream,
    opened: Opened,
) -> Ended {
    let counted = enter(&connection, listener)?;
    relayed(connection, listener, stream, (opened, counted)).await
}

/// Moves bytes both ways until both ends have ended.
async fn relayed(
    mut connection: Connection,
    listener: &Arc<ListenerState>,
    stream: Stream,
    (opened, _counted): (Opened, InFlight),
) -> Ended {
    // It may last for hours: the configuration it came under need not.
    connection.begun = None;
    let started = Instant::now();
    let Opened {
        stream: upstream,
        service,
        rule,
        endpoint,
        in_flight,
        tries,
        _permit,
    } = opened;
    let idle_timeout = listener.config.tcp_idle_timeout;
    let (cause, upload, download) = relay(&connection, (stream, upstream), idle_timeout).await;
    drop(in_flight);
    let told = Told {
        service: &service.config.name,
        rule: rule.as_deref(),
        endpoint: Some(endpoint),
        tries,
        cause,
        started,
        bytes: (upload, download),
    };
    told.tell(&connection, listener);
    match cause {
        Cause::Answered => Ok(()),
        cause => Err(cause.label()),
    }
}

/// How it ended, and the bytes that went up and down.
async fn relay(
    connection: &Connection,
    (down, up): (Stream, Stream),
    idle_timeout: Option<Duration>,
) -> (Cause, u64, u64) {
    let (mut down, mut up) = (tunnel(down), tunnel(up));
    let (mut upload, mut download) = (Transfer::new(0), Transfer::new(0));
    let mut timer = Timer::default();
    timer.set(idle_timeout.map(|idle| Instant::now() + idle));
    connection.lease.set_resting();
    let cause = std::future::poll_fn(|cx| {
        let before = upload.bytes + download.bytes;
        match upload.poll(cx, &mut down, &mut up) {
            Poll::Ready(Err(TransferError::Sink(_))) => return Poll::Ready(Cause::UpstreamReset),
            Poll::Ready(Err(_)) => return Poll::Ready(Cause::DownstreamGone),
            _ => {}
        }
        match download.poll(cx, &mut up, &mut down) {
            Poll::Ready(Err(TransferError::Sink(_))) => return Poll::Ready(Cause::DownstreamGone),
            Poll::Ready(Err(_)) => return Poll::Ready(Cause::UpstreamReset),
            _ => {}
        }
        if upload.is_done() && download.is_done() {
            return Poll::Ready(Cause::Answered);
        }
        if upload.bytes + download.bytes != before {
            connection.lease.set_resting();
            timer.set(idle_timeout.map(|idle| Instant::now() + idle));
        }
        if connection.lease.poll_evicted(cx).is_ready() {
            return Poll::Ready(Cause::Draining);
        }
        timer.poll_expired(cx).map(|()| Cause::DownstreamStalled)
    })
    .await;
    if matches!(cause, Cause::UpstreamReset | Cause::DownstreamGone) {
        // A reset at one end must not look like a clean end at the other.
        down.abort();
        up.abort();
    }
    (cause, upload.bytes, download.bytes)
}

fn tunnel(mut stream: Stream) -> Side {
    let prefix = match &mut stream {
        Stream::Plain(plain) => std::mem::take(&mut plain.prefix),
        _ => BytesMut::new(),
    };
    let mut http1 = Http1::new(stream, HeadLimits::default(), prefix);
    http1.become_tunnel();
    Side::Http1(Box::new(http1))
}

/// What is told of an opaque connection.
struct Told<'a> {
    service: &'a str,
    rule: Option<&'a Rule>,
    endpoint: Option<SocketAddr>,
    tries: u32,
    cause: Cause,
    started: Instant,
    bytes: (u64, u64),
}

impl Told<'_> {
    fn tell(&self, connection: &Connection, listener: &ListenerState) {
        let shared = &connection.worker.shared;
        let duration = self.started.elapsed();
        let backend = self.endpoint.map(|address| address.to_string());
        let route = self.rule.map_or("", |rule| &rule.route);
        shared
            .metrics
            .tcp_series(
                &listener.config.name,
                self.service,
                route,
                backend.as_deref().unwrap_or(""),
            )
            .record(0, self.cause, duration, self.bytes.0, self.bytes.1);
        if !shared.access_log.is_on() {
            return;
        }
        shared.access_log.record(&Entry {
            time: SystemTime::now() - duration,
            listener: &listener.config.name,
            client: connection.client,
            method: "",
            authority: "",
            path: "",
            protocol: "TCP",
            status: 0,
            cause: self.cause,
            reason: "",
            route,
            rule: self.rule.map_or("", |rule| &rule.name),
            service: self.service,
            backend: self.endpoint,
            tries: self.tries,
            duration,
            upstream: None,
            bytes_in: self.bytes.0,
            bytes_out: self.bytes.1,
            request_id: "",
            tls: connection.tls_version,
            probe: "",
            peer: connection.peer_name(),
        });
    }
}

//! Getting a connection to a picked endpoint: from the pool, from a shared
//! HTTP/2 connection, or by dialling, within the service's limits.
//!
//! At the connection limit a request waits for a connection that comes free
//! (`pending_max` of them, in order); beyond that it is shed.

use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use weft_config::snapshot::{ProxyProtocol, ServiceProtocol};

use super::Connection;
use crate::logic::balance::EndpointState;
use crate::logic::cause::Cause;
use crate::logic::http1::HeadLimits;
use crate::logic::limit::{Circuit, Permit, Resource, try_acquire};
use crate::logic::proxy_protocol;
use crate::net::http::http1::Http1;
use crate::net::pool::{Http2Turn, Key, PooledHttp1, SharedHttp2, StreamSlot};
use crate::net::stream::{Plain, Stream};
use crate::net::tls::client::Alpn;
use crate::net::tls::mesh::Refusal;
use crate::state::ServiceState;

/// Idle connections closed when descriptors have run out.
const SHED_STEP: usize = 16;
/// A peer that vanishes without a word is noticed after these.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// No HTTP/2 PING beside them: gRPC servers close connections for it.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How often a request that waits at the connection limit looks whether another
/// worker has freed a place; its own worker's connections reach it at once.
const WAIT_STEP: Duration = Duration::from_millis(5);
/// An answer's head may be this large; 100 fields as for requests.
const RESPONSE_LIMITS: HeadLimits = HeadLimits {
    bytes_max: 64 * 1024,
    headers_max: 256,
    target_bytes_max: 0,
};
/// HTTP/2 receive window of a stream to an upstream. A connection has as much
/// for every stream it may carry: a client that does not read holds up only
/// its own.
const STREAM_WINDOW: u32 = 256 * 1024;
const WINDOW_MAX: usize = (1 << 31) - 1;
/// The largest HTTP/2 answer head.
const HEADER_LIST_MAX: u32 = 64 * 1024;

/// A connection on which the request can be sent now.
#[derive(Debug)]
pub enum Upstream {
    Http1(PooledHttp1),
    Http2(SharedHttp2, StreamSlot),
}

/// Whom to connect to, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    pub connection: &'a Connection,
    pub service: &'a Arc<ServiceState>,
    pub endpoint: &'a Arc<EndpointState>,
    /// The request's host: the TLS name if the service has none of its own.
    pub host: &'a str,
    /// The client spoke HTTP/2 (what `mirror` goes by).
    pub http2: bool,
    /// The request must not meet a connection that the server is just closing.
    pub fresh: bool,
    /// An upgrade or CONNECT needs an HTTP/1.1 connection of its own.
    pub tunnel: bool,
    /// Bytes that we do not read.
    pub opaque: bool,
    pub deadline: Instant,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("connecting failed")]
    Io(#[source] io::Error),
    #[error("connecting took longer than connectTimeout")]
    Timeout,
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("mTLS to the endpoint failed")]
    Mesh(#[source] Refusal),
    #[error("the HTTP/2 handshake failed")]
    Http2(#[source] h2::Error),
    /// Our own descriptors, ports or buffers have run out.
    #[error("this host has no room for another connection")]
    Local(#[source] io::Error),
    #[error("{}", .0.label())]
    Limit(Cause),
}

impl ConnectError {
    pub fn cause(&self) -> Cause {
        match self {
            Self::Io(_) | Self::Http2(_) => Cause::ConnectFailed,
            Self::Timeout => Cause::ConnectTimeout,
            Self::Tls(_) | Self::Mesh(_) => Cause::UpstreamTls,
            Self::Local(_) => Cause::ConnectionsFull,
            Self::Limit(cause) => *cause,
        }
    }
}

impl Dial<'_> {
    fn key(&self) -> Key {
        let config = &self.service.config;
        let tls = self.service.tls.as_ref();
        let per_host = tls.is_some_and(|tls| tls.name_follows_request());
        let per_client = config.send_proxy_protocol.is_some();
        let address = self.endpoint.address();
        if let Some(peer) = self.endpoint.peer() {
            return Key {
                pool_id: self.service.pool_id,
                address,
                discriminant: DISCRIMINATOR.hash_one((peer, self.trust_generation())),
            };
        }
        let discriminant = if per_host || per_client {
            let host = per_host.then_some(self.host);
            let client = per_client.then_some((self.connection.client, self.connection.local));
            DISCRIMINATOR.hash_one((host, client))
        } else {
            0
        };
        Key {
            pool_id: self.service.pool_id,
            address,
            discriminant,
        }
    }

    pub(super) fn wants_http2(&self) -> bool {
        match self.service.config.protocol {
            ServiceProtocol::Http2 => true,
            ServiceProtocol::Mirror => self.http2,
            // Over TLS an HTTP/1.1 client keeps HTTP/1.1: no conversion.
            ServiceProtocol::Http => self.http2 && self.service.tls.is_some(),
            ServiceProtocol::Http1 | ServiceProtocol::Tcp => false,
        }
    }

    fn alpn(&self) -> Alpn {
        match self.service.config.protocol {
            ServiceProtocol::Tcp => Alpn::None,
            _ if !self.wants_http2() || self.tunnel => Alpn::Http1,
            ServiceProtocol::Http => Alpn::Http,
            _ => Alpn::Http2,
        }
    }

    /// A connection for one HTTP request.
    pub async fn acquire(&self) -> Result<Upstream, ConnectError> {
        let pool = &self.connection.worker.pool;
        let key = self.key();
        if self.wants_http2() && !self.tunnel {
            let streams_max = self.service.config.limits.streams_per_connection_max;
            if let Some((shared, slot)) = pool.stream(&key, streams_max) {
                return Ok(Upstream::Http2(shared, slot));
            }
            return Box::pin(self.acquire_http2(key)).await;
        }
        if let Some(pooled) = pool.take(&key, self.fresh) {
            return Ok(Upstream::Http1(pooled));
        }
        // Boxed, as all that waits here is large and rare.
        Box::pin(self.acquire_http1(key)).await
    }

    async fn acquire_http1(&self, key: Key) -> Result<Upstream, ConnectError> {
        match self.permit().await? {
            Place::Taken(pooled) => Ok(Upstream::Http1(pooled)),
            Place::Free(permit) => {
                let stream = self.open().await?;
                Ok(Upstream::Http1(self.http1(stream, key, permit)))
            }
        }
    }

    fn http1(&self, stream: Stream, key: Key, permit: Permit<Arc<Circuit>>) -> PooledHttp1 {
        PooledHttp1 {
            connection: Box::new(Http1::new(stream, RESPONSE_LIMITS, BytesMut::new())),
            key,
            reused: false,
            permit,
        }
    }

    async fn acquire_http2(&self, key: Key) -> Result<Upstream, ConnectError> {
        let pool = &self.connection.worker.pool;
        if self.service.config.protocol == ServiceProtocol::Http
            && let Some(pooled) = pool.take(&key, self.fresh)
        {
            // A server that chose HTTP/1.1 when it was asked.
            return Ok(Upstream::Http1(pooled));
        }
        let streams_max = self.service.config.limits.streams_per_connection_max;
        loop {
            match pool.http2(&key, streams_max) {
                Http2Turn::Use(shared, slot) => return Ok(Upstream::Http2(shared, slot)),
                Http2Turn::Wait(opened) => {
                    // The dialler tells when it is through; the step covers a
                    // notice that came between the look and the wait.
                    let step = Instant::now() + WAIT_STEP;
                    let _ = timeout_at(step.min(self.deadline), opened.notified()).await;
                    if Instant::now() >= self.deadline {
                        return Err(ConnectError::Timeout);
                    }
                }
                Http2Turn::Dial(_dialling) => {
                    let permit = match self.permit().await? {
                        Place::Free(permit) => permit,
                        Place::Taken(pooled) => pooled.permit,
                    };
                    let stream = self.open().await?;
                    if stream.is_tls() && !stream.is_http2() {
                        return Ok(Upstream::Http1(self.http1(stream, key, permit)));
                    }
                    let shared = self.handshake(stream, permit).await?;
                    let slot = pool.share(key, shared.clone());
                    return Ok(Upstream::Http2(shared, slot));
                }
            }
        }
    }

    async fn handshake(
        &self,
        stream: Stream,
        permit: Permit<Arc<Circuit>>,
    ) -> Result<SharedHttp2, ConnectError> {
        let streams_max = self.service.config.limits.streams_per_connection_max;
        let window = (STREAM_WINDOW as usize).saturating_mul(streams_max);
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(window.clamp(65_535, WINDOW_MAX) as u32)
            .max_header_list_size(HEADER_LIST_MAX)
            // Small frames that a slow reader leaves must not end a connection for all.
            .data_frame_budget(window.clamp(65_535, WINDOW_MAX))
            .enable_push(false)
            .handshake::<_, Bytes>(stream);
        let (send, driver) = timeout_at(self.deadline, handshake)
            .await
            .map_err(|_| ConnectError::Timeout)?
            .map_err(ConnectError::Http2)?;
        let leaving = Arc::new(AtomicBool::new(false));
        let shared = SharedHttp2 {
            send,
            streams: Arc::new(AtomicUsize::new(0)),
            leaving: Arc::clone(&leaving),
        };
        // Ends when its last stream and handle are gone.
        tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "upstream HTTP/2 connection ended");
            }
            leaving.store(true, Ordering::Relaxed);
            drop(permit);
        });
        Ok(shared)
    }

    fn place(&self, resource: Resource) -> Option<Permit<Arc<Circuit>>> {
        try_acquire(Arc::clone(&self.service.circuit), resource)
    }

    /// A place among the service's connections.
    async fn permit(&self) -> Result<Place, ConnectError> {
        if let Some(permit) = self.place(Resource::Connection) {
            return Ok(Place::Free(permit));
        }
        let pool = &self.connection.worker.pool;
        let Some(_pending) = self.place(Resource::Pending) else {
            return Err(ConnectError::Limit(Cause::PendingFull));
        };
        let mut freed = pool.wait(self.service.pool_id);
        loop {
            let step = (Instant::now() + WAIT_STEP).min(self.deadline);
            match timeout_at(step, &mut freed).await {
                Ok(Ok(pooled)) if pooled.key == self.key() => return Ok(Place::Taken(pooled)),
                // Another endpoint's connection: its place is what we need.
                Ok(Ok(pooled)) => return Ok(Place::Free(pooled.permit)),
                Ok(Err(_)) => freed = pool.wait(self.service.pool_id),
                Err(_) => {}
            }
            if let Some(permit) = self.place(Resource::Connection) {
                return Ok(Place::Free(permit));
            }
            pool.evict(self.service.pool_id);
            if Instant::now() >= self.deadline {
                return Err(ConnectError::Limit(Cause::ConnectionsFull));
            }
        }
    }

    /// Dials the endpoint, with TLS if the service has it.
    pub async fn open(&self) -> Result<Stream, ConnectError> {
        let opened = match timeout_at(self.deadline, self.open_stream()).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectError::Timeout),
        };
        if let Err(error) = &opened {
            let metrics = &self.connection.worker.shared.metrics;
            metrics.upstream_connect_failed(&self.service.config.name, error.cause().label());
        }
        opened
    }

    async fn open_stream(&self) -> Result<Stream, ConnectError> {
        let address = match self.endpoint.peer() {
            Some(peer) => self.mesh_address(peer),
            None => self.endpoint.address(),
        };
        let tcp = match TcpStream::connect(address).await {
            Err(error) if is_local(&error) => {
                // Out of descriptors or ports: idle connections make room.
                self.connection.worker.pool.shed(SHED_STEP);
                self.connection.worker.leases.shed(SHED_STEP);
                tokio::task::yield_now().await;
                TcpStream::connect(address).await
            }
            connected => connected,
        }
        .map_err(|error| match is_local(&error) {
            true => ConnectError::Local(error),
            false => ConnectError::Io(error),
        })?;
        watch_peer(&tcp);
        self.connection
            .worker
            .shared
            .metrics
            .upstream_connected(&self.service.config.name);
        if let Some(version) = self.service.config.send_proxy_protocol {
            self.send_proxy_header(&tcp, version)
                .await
                .map_err(ConnectError::Io)?;
        }
        let stream = self.secure(Plain::new(tcp)).await?;
        if !self.tunnel {
            stream.bound_unacknowledged(UNACKNOWLEDGED_MAX);
        }
        Ok(stream)
    }

    async fn secure(&self, plain: Plain) -> Result<Stream, ConnectError> {
        if let Some(peer) = self.endpoint.peer() {
            return self.secure_mesh(plain, peer).await;
        }
        let Some(tls) = &self.service.tls else {
            return Ok(Stream::Plain(plain));
        };
        let name = tls.server_name(self.host).map_err(|error| {
            ConnectError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error))
        })?;
        let connector = tokio_rustls::TlsConnector::from(tls.config(self.alpn()));
        let stream = connector
            .connect(name, plain)
            .await
            .map_err(ConnectError::Tls)?;
        Ok(Stream::ClientTls(Box::new(stream)))
    }

    async fn send_proxy_header(&self, tcp: &TcpStream, version: ProxyProtocol) -> io::Result<()> {
        let mut header = BytesMut::new();
        let (source, destination) = (self.connection.client, self.connection.local);
        match version {
            ProxyProtocol::V1 => proxy_protocol::encode_v1(source, destination, &mut header),
            ProxyProtocol::V2 | ProxyProtocol::Any => {
                proxy_protocol::encode_v2(source, destination, &mut header);
            }
        }
        while !header.is_empty() {
            tcp.writable().await?;
            match tcp.try_write(&header) {
                Ok(count) => drop(header.split_to(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The failure is this host's, not the endpoint's.
fn is_local(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    const EADDRNOTAVAIL: i32 = 99;
    const ENOBUFS: i32 = 105;
    matches!(
        error.raw_os_error(),
        Some(EMFILE | ENFILE | EADDRNOTAVAIL | ENOBUFS)
    )
}

/// Socket options of an upstream connection.
fn watch_peer(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    let socket = socket2::SockRef::from(tcp);
    let probes = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(2);
    let _ = socket.set_tcp_keepalive(&probes);
}

/// What waiting at the connection limit gave.
enum Place {
    Free(Permit<Arc<Circuit>>),
    Taken(PooledHttp1),
}

/// Any fixed seed: the hash only tells connections of one process apart.
static DISCRIMINATOR: std::sync::LazyLock<foldhash::fast::RandomState> =
    std::sync::LazyLock::new(foldhash::fast::RandomState::default);

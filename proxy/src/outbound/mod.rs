//! One downstream connection's life: accept → PROXY protocol → TLS → protocol
//! → requests (or opaque bytes) → close.
//!
//! Owns the order of the phases; what a request goes through is in `request`,
//! what opaque bytes go through in `opaque`.

mod answer;
mod attempt;
mod authorize;
mod connect;
mod detect;
mod forward;
mod headers;
mod http1;
mod http2;
pub mod mesh;
mod mirror;
mod opaque;
mod record;
mod request;
mod respond;
mod send_http2;
mod series;
mod session;
mod sidecar;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use weft_config::snapshot::{self, ListenerProtocol, ListenerRole};

use crate::drain::Phase;
use crate::net::lease::{Held, Leases};
use crate::net::pool::Pool;
use crate::net::stream::{Plain, Stream};
use crate::net::timer::Timer;
use crate::net::tls::mesh::PeerIdentity;
use crate::state::{ListenerState, Shared};
use detect::Detected;
use headers::Origin;
use request::Current;
use series::SeriesCache;

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub pool: Arc<Pool>,
    pub leases: Arc<Leases>,
    pub series: SeriesCache,
}

impl Worker {
    pub fn new(index: usize, shared: Arc<Shared>) -> Self {
        Self {
            index,
            shared,
            pool: Arc::default(),
            leases: Arc::default(),
            series: SeriesCache::default(),
        }
    }
}

/// A downstream connection, as its requests see it.
#[derive(Debug)]
pub struct Connection {
    pub lease: Held,
    pub worker: Arc<Worker>,
    pub listener: Arc<str>,
    /// The client: the TCP peer, or what its PROXY header says.
    pub client: SocketAddr,
    /// Where the client dialled.
    pub local: SocketAddr,
    pub tls: bool,
    /// The version of the client's TLS; empty: none.
    pub tls_version: &'static str,
    /// Who the client has proved to be, by mTLS between sidecars.
    pub peer: Option<PeerIdentity>,
    /// It is the local workload that dialled.
    pub dialled: bool,
    /// It came in as plain text where mTLS is required: nothing but probes is let in.
    pub probes_only: bool,
    /// What upstreams are told of the client.
    pub origin: Origin,
    /// HTTP/2 streams that the client gave up before they were answered.
    pub abandoned: AtomicU32,
    /// The configuration that it came under, until it is served.
    begun: Option<Current>,
}

impl Connection {
    /// The same client, for work that outlives the connection.
    fn detached(&self) -> Self {
        Self {
            lease: self.worker.leases.hold(),
            worker: Arc::clone(&self.worker),
            listener: Arc::clone(&self.listener),
            client: self.client,
            local: self.local,
            tls: self.tls,
            tls_version: self.tls_version,
            peer: self.peer.clone(),
            dialled: self.dialled,
            probes_only: self.probes_only,
            origin: self.origin.clone(),
            abandoned: AtomicU32::new(0),
            begun: None,
        }
    }

    /// The SPIFFE ID of who the client has proved to be; empty: nobody.
    fn peer_name(&self) -> &str {
        let peer = self.peer.as_ref();
        peer.map_or("", |peer| peer.identity.as_str())
    }

    /// Whether its client is to go elsewhere. A workload that leaves still runs, and what it
    /// dials goes on until the process ends.
    fn is_leaving(&self) -> bool {
        let from = match self.dialled {
            true => Phase::Draining,
            false => Phase::Leaving,
        };
        self.worker.shared.drain.phase() >= from
    }

    /// The configuration as of now; `None` when the listener is gone from it.
    pub fn configuration(&self) -> Option<Current> {
        let runtime = self.worker.shared.runtime.load_full();
        let listener = runtime.listener(&self.listener)?.clone();
        Some(Current { runtime, listener })
    }

    /// The configuration as of now, or as it was when the connection came, if the
    /// listener has gone meanwhile. Whoever was let in is answered: between
    /// sidecars a request may be under way already.
    fn present(&self) -> Option<Current> {
        self.configuration().or_else(|| self.begun.clone())
    }

    /// The same at the beginning of serving, which from then on holds it.
    fn begin(&mut self) -> Option<Current> {
        let begun = self.begun.take();
        self.configuration().or(begun)
    }

    /// Brings `current` up to date. `false`: the listener is gone; what it last
    /// was still serves the request, and the connection ends after it.
    fn refresh(&self, current: &mut Current) -> bool {
        let newest = self.worker.shared.runtime.load();
        if newest.generation == current.runtime.generation {
            return true;
        }
        drop(newest);
        match self.configuration() {
            Some(newest) => {
                *current = newest;
                true
            }
            None => false,
        }
    }
}

/// Serves a connection to its end.
pub async fn serve(worker: Arc<Worker>, name: Arc<str>, tcp: TcpStream, peer: SocketAddr) {
    let runtime = worker.shared.runtime.load_full();
    let Some(listener) = runtime.listener(&name).cloned() else {
        return;
    };
    let metrics = &worker.shared.metrics;
    let _open = match Admission::new(&listener) {
        Some(open) => open,
        None => return metrics.connection_refused(&name, "listener_connections_max"),
    };
    let open = metrics.connection_opened(&name);
    let Ok(local) = tcp.local_addr() else { return };
    let connection = Connection {
        lease: worker.leases.hold(),
        worker: Arc::clone(&worker),
        listener: name,
        client: peer,
        local,
        tls: false,
        tls_version: "",
        peer: None,
        dialled: matches!(listener.config.role, ListenerRole::Outbound { .. }),
        probes_only: false,
        origin: Origin::new(peer, false),
        abandoned: AtomicU32::new(0),
        begun: Some(Current {
            runtime,
            listener: Arc::clone(&listener),
        }),
    };
    let plain = Plain::new(tcp);
    let ended = match &listener.config.role {
        ListenerRole::Direct | ListenerRole::Virtual { .. } => {
            serve_plain(connection, &listener, plain).await
        }
        ListenerRole::Outbound { destination } => {
            sidecar::dialled(connection, destination.as_ref(), plain).await
        }
        ListenerRole::Inbound => sidecar::came_in(connection, &listener, plain).await,
    };
    if let Err(reason) = ended {
        tracing::debug!(listener = %listener.config.name, %peer, reason, "connection closed");
        open.closed(reason);
    }
}

/// A place among the listener's connections.
struct Admission<'a>(&'a AtomicUsize);

impl<'a> Admission<'a> {
    fn new(listener: &'a ListenerState) -> Option<Self> {
        let max = listener.config.connections_max;
        let open = listener.connections.fetch_add(1, Ordering::Relaxed);
        let admission = Self(&listener.connections);
        (max == 0 || open < max).then_some(admission)
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a connection was closed by us, as a metric label.
type Ended = Result<(), &'static str>;

async fn serve_plain(
    mut connection: Connection,
    listener: &Arc<ListenerState>,
    mut plain: Plain,
) -> Ended {
    let config = &listener.config;
    let mut timer = Timer::default();
    let deadline = Instant::now() + config.http.header_timeout;
    if let Some(version) = config.proxy_protocol {
        timer.set(Some(deadline));
        let header = timer
            .limit(detect::proxy_header(&mut plain, version))
            .await
            .ok_or("proxy_protocol_timeout")??;
        if let Some((source, destination)) = header {
            connection.client = source;
            connection.local = destination;
            connection.origin = Origin::new(source, false);
        }
    }
    match config.protocol {
        ListenerProtocol::Tcp if config.tls.is_none() => {
            opaque::serve(connection, listener, Stream::Plain(plain), None).await
        }
        ListenerProtocol::Tls => {
            timer.set(Some(deadline));
            let name = timer
                .limit(detect::server_name(&mut plain))
                .await
                .ok_or("client_hello_timeout")??;
            opaque::serve(connection, listener, Stream::Plain(plain), name).await
        }
        // TLS that is asked for is required: nobody gets by without.
        _ if listener.tls.is_some() => serve_tls(connection, listener, plain).await,
        ListenerProtocol::Auto => serve_detected(connection, listener, plain).await,
        _ => {
            let idle = config.http.idle_timeout;
            match detect::http_version(&connection, &mut plain, idle).await? {
                None => Ok(()),
                Some(http2) => serve_http(connection, listener, Stream::Plain(plain), http2).await,
            }
        }
    }
}

/// `auto`: whoever speaks first decides.
async fn serve_detected(
    connection: Connection,
    listener: &Arc<ListenerState>,
    mut plain: Plain,
) -> Ended {
    match detect::first_speaker(&connection, listener, &mut plain).await? {
        Detected::Tls => {
            let mut timer = Timer::default();
            timer.set(Some(deadline(listener.config.http.header_timeout)));
            let name = timer
                .limit(detect::server_name(&mut plain))
                .await
                .ok_or("client_hello_timeout")?
                // Encrypted or strange: opaque bytes all the same.
                .unwrap_or(None);
            opaque::serve(connection, listener, Stream::Plain(plain), name).await
        }
        Detected::Http1 => serve_http(connection, listener, Stream::Plain(plain), false).await,
        Detected::Http2 => serve_http(connection, listener, Stream::Plain(plain), true).await,
        Detected::Opaque => opaque::serve(connection, listener, Stream::Plain(plain), None).await,
        Detected::ServerFirst(upstream) => {
            opaque::join(connection, listener, Stream::Plain(plain), *upstream).await
        }
        Detected::Closed => Ok(()),
    }
}

async fn serve_tls(
    mut connection: Connection,
    listener: &Arc<ListenerState>,
    plain: Plain,
) -> Ended {
    let Some(tls) = &listener.tls else {
        return Err("tls_not_configured");
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.acceptor());
    let mut timer = Timer::default();
    timer.set(Some(Instant::now() + listener.config.http.header_timeout));
    let metrics = &connection.worker.shared.metrics;
    let stream = match timer.limit(acceptor.accept(plain)).await {
        None => {
            metrics.tls_handshake_failed(&connection.listener, "timeout");
            return Err("tls_timeout");
        }
        Some(Err(error)) => {
            metrics.tls_handshake_failed(&connection.listener, "handshake");
            tracing::debug!(client = %connection.client, %error, "TLS handshake failed");
            return Err("tls_handshake");
        }
        Some(Ok(stream)) => Stream::ServerTls(Box::new(stream)),
    };
    connection.tls = true;
    connection.tls_version = stream.tls_version();
    connection.origin = Origin::new(connection.client, true);
    if listener.config.protocol == ListenerProtocol::Tcp {
        return opaque::serve(connection, listener, stream, None).await;
    }
    let http2 = stream.alpn() == Some(b"h2");
    serve_http(connection, listener, stream, http2).await
}

async fn serve_http(
    connection: Connection,
    listener: &Arc<ListenerState>,
    stream: Stream,
    http2: bool,
) -> Ended {
    stream.bound_unacknowledged(listener.config.http.body_idle_timeout);
    if http2 {
        http2::serve(connection, &listener.config, stream).await
    } else {
        http1::serve(connection, &listener.config, stream).await
    }
}

/// The HTTP limits a connection begins with.
fn head_limits(options: &snapshot::HttpOptions) -> crate::logic::http1::HeadLimits {
    crate::logic::http1::HeadLimits {
        bytes_max: options.header_bytes_max,
        headers_max: options.headers_max,
        target_bytes_max: options.header_bytes_max,
    }
}

/// The latest moment that `timeout` allows from now on.
fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout
}

//! The two listeners that a sidecar adds: what the local workload dials, and
//! what comes in for it. Each finds out what is meant and hands the connection
//! to that virtual listener; from there its life is any connection's.
//!
//! ```text
//! dialled: original destination ─▶ known? ─▶ virtual listener
//!                                    └─ no ─▶ ask ─▶ passed through, or refused
//! came in: ClientHello with ALPN weft-* ─▶ ours? ─▶ mTLS ─▶ the port's virtual listener
//!          anything else ─▶ permissive: the port's virtual listener │ strict: refused
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use weft_config::snapshot::{Destination, ListenerProtocol, Mtls};
use weft_config::spiffe;

use super::detect::{self, Detected};
use super::request::{Current, Incoming};
use super::{Connection, Ended, opaque, serve_http, serve_plain};
use crate::logic::client_hello::{self, Hello, HelloError};
use crate::net::stream::{Plain, Stream};
use crate::net::timer::Timer;
use crate::net::tls::mesh::{self, MeshProtocol, Refusal};
use crate::state::mesh::{Known, MeshState, Subject};
use crate::state::{ListenerState, Shared};

/// How long a silent client is waited for before the application is asked, on
/// ports where it may be the one to speak first.
const GRACE: Duration = Duration::from_millis(50);
/// What TLS begins with, and no HTTP.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection of the local workload, to somewhere.
pub async fn dialled(
    mut connection: Connection,
    destination: Option<&Destination>,
    plain: Plain,
) -> Ended {
    let shared = Arc::clone(&connection.worker.shared);
    let Some(mesh) = &shared.mesh else {
        return Err("no_mesh");
    };
    let dialled = match destination {
        Some(destination) => destination.clone(),
        None => {
            let address = original_destination(&plain, connection.local).ok_or("not_captured")?;
            connection.local = address;
            Destination::Address(address)
        }
    };
    match find(&shared, mesh, &Subject::Destination(dialled.clone())).await {
        Ok(found) => {
            let listener = Arc::clone(&found.listener);
            connection.begun = Some(found);
            if let Destination::Service(_) = dialled {
                let port = listener.config.address.port();
                connection.local.set_port(port);
            }
            connection.listener = Arc::clone(&listener.config.name);
            Box::pin(serve_plain(connection, &listener, plain)).await
        }
        Err(_) if mesh.refuse_unknown.load(Ordering::Relaxed) => {
            shared.metrics.unknown_destination("refused");
            tracing::warn!(
                destination = %dialled,
                "refused: no service of the mesh has it, and the workload's policy is unknownDestination: refuse"
            );
            Err("unknown_destination")
        }
        Err(known) => {
            let Destination::Address(address) = dialled else {
                shared.metrics.unknown_destination("not_found");
                tracing::warn!(destination = %dialled, ?known, "no such service, or no controller to tell of it");
                return Err("unknown_destination");
            };
            shared.metrics.unknown_destination("passed");
            opaque::pass_through(connection, plain, address).await
        }
    }
}

/// Where a captured connection was going. `None`: it was not captured, somebody
/// dialled our own address.
fn original_destination(plain: &Plain, local: SocketAddr) -> Option<SocketAddr> {
    let socket = socket2::SockRef::from(&plain.tcp);
    let original = if local.is_ipv4() {
        socket.original_dst_v4()
    } else {
        // A dual-stack socket has IPv4 connections too.
        socket
            .original_dst_v6()
            .or_else(|_| socket.original_dst_v4())
    };
    let original = original.ok()?.as_socket()?;
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    (canonical(original) != canonical(local))
        .then(|| SocketAddr::from((original.ip().to_canonical(), original.port())))
}

/// The virtual listener of what is meant, and the configuration that it is of;
/// asked for if it is not there yet.
async fn find(shared: &Shared, mesh: &MeshState, subject: &Subject) -> Result<Current, Known> {
    let look = || {
        let runtime = shared.runtime.load_full();
        let listener = match subject {
            Subject::Destination(destination) => runtime.destination(destination).cloned(),
            Subject::Port(port) => runtime.port(*port).cloned(),
        }?;
        Some(Current { runtime, listener })
    };
    let found = match look() {
        Some(found) => found,
        None => {
            let known = mesh.ask(subject.clone()).await;
            look().ok_or(known)?
        }
    };
    found.listener.used.store(shared.now().0, Ordering::Relaxed);
    Ok(found)
}

/// A connection for the local workload.
pub async fn came_in(
    mut connection: Connection,
    listener: &Arc<ListenerState>,
    mut plain: Plain,
) -> Ended {
    let shared = Arc::clone(&connection.worker.shared);
    let Some(mesh) = &shared.mesh else {
        return Err("no_mesh");
    };
    connection.lease.set_inbound();
    let captured = original_destination(&plain, connection.local);
    let Some(original) = captured else {
        // Nothing captures here: only the mesh's own protocol says which port is meant.
        let hello = hello(&connection, listener, &mut plain).await;
        let meant = hello.and_then(|hello| meant(mesh, &hello, None));
        return match meant {
            Ok((protocol, port)) => accept(connection, (mesh, protocol, port), plain).await,
            Err(refusal) => refuse(&connection, refusal),
        };
    };
    connection.local = original;
    let found = find(&shared, mesh, &Subject::Port(original.port()))
        .await
        .map_err(|_| "unknown_port")?;
    let port = Arc::clone(&found.listener);
    connection.begun = Some(found);
    let strict = port
        .config
        .inbound
        .as_ref()
        .is_some_and(|inbound| inbound.mtls == Mtls::Strict);
    match first_bytes(
        &connection,
        &port,
        &mut plain,
        strict || waits_for_client(&port),
    )
    .await?
    {
        First::Mesh(hello) => match meant(mesh, &hello, Some(original.port())) {
            Ok((protocol, port)) => accept(connection, (mesh, protocol, port), plain).await,
            Err(refusal) => refuse(&connection, refusal),
        },
        First::Other if strict => probed(connection, (mesh, &port), plain).await,
        _ if strict => refuse(&connection, Refusal::MtlsRequired),
        First::Other => {
            connection.listener = Arc::clone(&port.config.name);
            Box::pin(serve_plain(connection, &port, plain)).await
        }
        First::Silent => {
            connection.listener = Arc::clone(&port.config.name);
            silent(connection, (mesh, &port), plain).await
        }
    }
}

/// Plain text where mTLS is required: refused, but where a kubelet may ask. What it asks
/// `admit` looks at.
async fn probed(
    mut connection: Connection,
    (mesh, port): (&MeshState, &Arc<ListenerState>),
    mut plain: Plain,
) -> Ended {
    let number = port.config.address.port();
    let mut probes = mesh.config.probes.iter();
    let hopeless = !probes.any(|probe| probe.port == number && probe.comes_in())
        || plain.prefix.first() == Some(&TLS_HANDSHAKE);
    if hopeless {
        return mtls_required(&connection);
    }
    connection.listener = Arc::clone(&port.config.name);
    connection.probes_only = true;
    let wait = port.config.http.header_timeout;
    match detect::http_version(&connection, &mut plain, wait).await? {
        None => Ok(()),
        Some(http2) => serve_http(connection, port, Stream::Plain(plain), http2).await,
    }
}

/// How a request is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Usual,
    /// A kubelet's probe of this kind: past mTLS, policies and the barrier.
    Probe(&'static str),
    Refused,
}

pub fn admit(connection: &Connection, listener: &ListenerState, incoming: &Incoming) -> Admission {
    let mesh = connection.worker.shared.mesh.as_ref();
    let Some(mesh) = mesh.filter(|_| listener.config.inbound.is_some()) else {
        return Admission::Usual;
    };
    // Whoever has proved who they are is no kubelet.
    if connection.peer.is_some() {
        return Admission::Usual;
    }
    let (port, parts) = (listener.config.address.port(), &incoming.parts);
    let target = parts.path_and_query.as_str();
    let mut probes = mesh.config.probes.iter();
    let tunnel = incoming.wants_tunnel();
    match probes.find(|probe| !tunnel && probe.is(port, &parts.method, target)) {
        Some(probe) => Admission::Probe(probe.label()),
        None if connection.probes_only => {
            let _ = mtls_required(connection);
            Admission::Refused
        }
        None => Admission::Usual,
    }
}

/// A client that has not spoken on a port where the application may: whoever is
/// first decides, and a slow sidecar is not taken for a client of the application.
async fn silent(
    connection: Connection,
    (mesh, port): (&MeshState, &Arc<ListenerState>),
    mut plain: Plain,
) -> Ended {
    match detect::first_speaker(&connection, port, &mut plain).await? {
        Detected::Closed => Ok(()),
        Detected::ServerFirst(opened) => {
            opaque::join(connection, port, Stream::Plain(plain), *opened).await
        }
        Detected::Tls => match first_bytes(&connection, port, &mut plain, true).await? {
            First::Mesh(hello) => match meant(mesh, &hello, Some(connection.local.port())) {
                Ok((protocol, port)) => accept(connection, (mesh, protocol, port), plain).await,
                Err(refusal) => refuse(&connection, refusal),
            },
            _ => Box::pin(serve_plain(connection, port, plain)).await,
        },
        _ => Box::pin(serve_plain(connection, port, plain)).await,
    }
}

fn waits_for_client(port: &ListenerState) -> bool {
    matches!(
        port.config.protocol,
        ListenerProtocol::Http | ListenerProtocol::Tls
    )
}

/// What the first bytes of a connection are.
enum First {
    Mesh(Hello),
    Other,
    /// None came for a while.
    Silent,
}

/// Reads until it is clear whether a sidecar speaks. `patient`: a silent client
/// is waited for as long as one that is idle; it makes room when room is needed.
async fn first_bytes(
    connection: &Connection,
    listener: &ListenerState,
    plain: &mut Plain,
    patient: bool,
) -> Result<First, &'static str> {
    let options = &listener.config.http;
    let silence = if patient { options.idle_timeout } else { GRACE };
    let mut timer = Timer::default();
    timer.set(Some(Instant::now() + silence));
    let mut begun = false;
    loop {
        match client_hello::parse(&plain.prefix) {
            Ok(hello) if is_mesh(&hello) => return Ok(First::Mesh(hello)),
            Err(HelloError::NeedMore) => {}
            _ => return Ok(First::Other),
        }
        if !plain.prefix.is_empty() && !begun {
            begun = true;
            timer.set(Some(Instant::now() + options.header_timeout));
        }
        match timer.limit(read_evictable(connection, plain)).await {
            None if begun => return Err("header_timeout"),
            None if patient => return Err("idle_timeout"),
            None => return Ok(First::Silent),
            Some(Ok(0)) => return Ok(First::Other),
            Some(Ok(_)) => {}
            Some(Err(reason)) => return Err(reason),
        }
    }
}

/// Reads, unless the connection has to go to make room for others.
async fn read_evictable(connection: &Connection, plain: &mut Plain) -> Result<usize, &'static str> {
    connection.lease.set_idle();
    let mut reading = std::pin::pin!(plain.read_ahead(client_hello::PREFIX_BYTES_MAX));
    let read = std::future::poll_fn(|cx| {
        if let Poll::Ready(count) = reading.as_mut().poll(cx) {
            return Poll::Ready(count.map_err(|_| "downstream_reset"));
        }
        connection.lease.poll_evicted(cx).map(|_| Err("evicted"))
    })
    .await;
    connection.lease.set_busy();
    read
}

fn is_mesh(hello: &Hello) -> bool {
    hello
        .alpn
        .iter()
        .any(|alpn| MeshProtocol::of_alpn(alpn).is_some())
}

/// The hello of a sidecar, where only sidecars may come.
async fn hello(
    connection: &Connection,
    listener: &ListenerState,
    plain: &mut Plain,
) -> Result<Hello, Refusal> {
    let mut timer = Timer::default();
    timer.set(Some(Instant::now() + listener.config.http.header_timeout));
    let first = first_bytes(connection, listener, plain, true);
    match timer.limit(first).await {
        None => Err(Refusal::Timeout),
        Some(Ok(First::Mesh(hello))) => Ok(hello),
        Some(_) => Err(Refusal::MtlsRequired),
    }
}

/// Which of our ports a sidecar means, if it means us.
fn meant(
    mesh: &MeshState,
    hello: &Hello,
    captured: Option<u16>,
) -> Result<(MeshProtocol, u16), Refusal> {
    let protocol = hello
        .alpn
        .iter()
        .find_map(|alpn| MeshProtocol::of_alpn(alpn))
        .ok_or(Refusal::MtlsRequired)?;
    let name = hello.server_name.as_deref().unwrap_or_default();
    let (port, workload) = spiffe::parse_server_name(name).ok_or(Refusal::NotOurs)?;
    if *workload != *mesh.config.workload || captured.is_some_and(|captured| captured != port) {
        return Err(Refusal::NotOurs);
    }
    Ok((protocol, port))
}

/// Plain text where it is not let in.
pub fn mtls_required(connection: &Connection) -> Ended {
    refuse(connection, Refusal::MtlsRequired)
}

fn refuse(connection: &Connection, refusal: Refusal) -> Ended {
    let shared = &connection.worker.shared;
    let (client, reason) = (connection.client, refusal.label());
    shared.metrics.mesh_handshake("inbound", reason);
    let mesh = shared.mesh.as_ref();
    if mesh.is_some_and(|mesh| mesh.tells_refusal(shared.now())) {
        tracing::warn!(%client, reason, "refused: {refusal}");
    } else {
        tracing::debug!(%client, reason, "refused: {refusal}");
    }
    Err(reason)
}

/// mTLS with another sidecar, and then what it carries.
async fn accept(
    mut connection: Connection,
    (mesh, protocol, port): (&MeshState, MeshProtocol, u16),
    plain: Plain,
) -> Ended {
    let shared = Arc::clone(&connection.worker.shared);
    let found = find(&shared, mesh, &Subject::Port(port))
        .await
        .map_err(|_| "unknown_port")?;
    let port = Arc::clone(&found.listener);
    connection.begun = Some(found);
    let Some(tls) = mesh.tls.load_full() else {
        return refuse(&connection, Refusal::NoCertificateYet);
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.server());
    let mut timer = Timer::default();
    timer.set(Some(Instant::now() + port.config.http.header_timeout));
    let stream = match timer.limit(acceptor.accept(plain)).await {
        None => return refuse(&connection, Refusal::Timeout),
        Some(Err(error)) => return refuse(&connection, Refusal::of(&error)),
        Some(Ok(stream)) => stream,
    };
    let peer = match mesh::peer_of(stream.get_ref().1.peer_certificates()) {
        Ok(peer) => peer,
        Err(refusal) => return refuse(&connection, refusal),
    };
    shared.metrics.mesh_handshake("inbound", "ok");
    let stream = Stream::ServerTls(Box::new(stream));
    connection.tls_version = stream.tls_version();
    connection.peer = Some(peer);
    connection.listener = Arc::clone(&port.config.name);
    connection.local.set_port(port.config.address.port());
    match protocol {
        MeshProtocol::Http1 => serve_http(connection, &port, stream, false).await,
        MeshProtocol::Http2 => serve_http(connection, &port, stream, true).await,
        MeshProtocol::Tcp => opaque::serve_mesh(connection, &port, stream).await,
    }
}

/// One of what the local workload is being asked, for the drain barrier.
#[derive(Debug)]
pub struct InFlight(Option<Arc<MeshState>>);

impl InFlight {
    /// The barrier does not wait for it.
    pub fn uncounted() -> Self {
        Self(None)
    }

    /// `None`: the barrier is shut, the application may be gone.
    pub fn enter(shared: &Shared, listener: &ListenerState) -> Option<Self> {
        let counted = shared
            .mesh
            .as_ref()
            .filter(|_| listener.config.inbound.is_some());
        let enters = counted.is_none_or(|mesh| mesh.gate.enter());
        enters.then(|| Self(counted.cloned()))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(mesh) = &self.0 {
            mesh.gate.leave();
        }
    }
}

//! The port that proxies connect to: TLS 1.3 with our own SVID, HTTP/2, gRPC.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rcgen::KeyPair;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;
use tonic::body::Body;
use tonic::codegen::Service as _;
use webpki::EndEntityCert;
use weft_config::spiffe::{self, SpiffeId};

use super::hub::Hub;
use super::limits::Arrivals;
use super::{Caller, Service};
use crate::services::workloads_server::WorkloadsServer;
use crate::services::xds::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use crate::tally::{Held, Tally};

/// Open connections; the next one waits to be accepted.
const CONNECTIONS_MAX: usize = 20_000;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A connection without a client certificate is for one signature.
const UNPROVEN_MAX: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections whose client has yet to prove something: all, and from one address.
const UNPROVEN_CONNECTIONS_MAX: usize = 4096;
const UNPROVEN_OF_ADDRESS_MAX: usize = 512;
/// Connections of one workload.
const CONNECTIONS_OF_WORKLOAD_MAX: usize = 16;
/// A request to sign, or to leave.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// A request of a stream: one that resumes names all that it holds.
const STREAM_REQUEST_BYTES_MAX: usize = 8 << 20;
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// Why a connection is ended before it is served, or before its client has proved anything.
pub const REFUSALS: &[&str] = &[
    "handshake",
    "handshake_timeout",
    "revoked",
    "expired",
    "not_yet_valid",
    "unknown_issuer",
    "stranger",
    "unproven",
    "unproven_max",
    "connections_max",
    "connections_rate",
];
/// The UID in a controller's own certificate.
const WORKLOAD: &str = "controller";
/// How often our own certificate and the roots in use are made anew.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(600);

/// TLS as it is now: a fresh certificate of our own, and whom we believe.
pub fn tls(hub: &Hub) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = KeyPair::generate()?;
    let (namespace, account) = spiffe::CONTROLLER;
    let identity = SpiffeId::new(&hub.ca.trust_domain, namespace, account)?;
    let chain = hub.ca.sign_key(&key, &identity, WORKLOAD)?;
    let leaf = chain.first().cloned().unwrap_or_default();
    let (_, expires) = crate::ca::subject_and_end(&leaf.into());
    hub.own_expires.store(expires, Ordering::Relaxed);
    let mut roots = RootCertStore::empty();
    let current = hub.ca.current();
    for root in &current.roots {
        roots.add(root.clone())?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .with_crls(current.revocations.lists.iter().cloned())
            // Most issuers have no list.
            .allow_unknown_revocation_status()
            .allow_unauthenticated()
            .build()?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.into_iter().map(CertificateDer::from).collect(), key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A proxy proves itself anew each time: there is no session to resume.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Who holds how many connections.
#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    unproven: Arc<Semaphore>,
    of_address: Tally,
    of_workload: Tally,
}

/// What a connection holds; the second part until its client has proved something.
struct Place {
    _all: OwnedSemaphorePermit,
    unproven: Option<(OwnedSemaphorePermit, Held)>,
}

/// Accepts for as long as the process lives.
pub async fn run(
    listener: TcpListener,
    hub: Arc<Hub>,
    tls: Arc<arc_swap::ArcSwap<ServerConfig>>,
) -> std::io::Result<()> {
    let places = Arc::new(Places {
        all: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        unproven: Arc::new(Semaphore::new(UNPROVEN_CONNECTIONS_MAX)),
        of_address: Tally::new(UNPROVEN_OF_ADDRESS_MAX),
        of_workload: Tally::new(CONNECTIONS_OF_WORKLOAD_MAX),
    });
    let mut arrivals = Arrivals::default();
    loop {
        let Ok(all) = Arc::clone(&places.all).acquire_owned().await else {
            return Ok(());
        };
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(left_out) = hub.may_log(&["accept"]) {
                    tracing::warn!(%error, left_out, "cannot accept");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = Connection {
            peer,
            hub: Arc::clone(&hub),
            places: Arc::clone(&places),
        };
        if !arrivals.admit(peer.ip().to_canonical(), Instant::now()) {
            connection.refused("connections_rate", "too many from its address");
            continue;
        }
        let unproven = Arc::clone(&places.unproven).try_acquire_owned().ok();
        let Some(unproven) = unproven.zip(places.of_address.take(&peer.ip().to_string())) else {
            connection.refused("unproven_max", "too many that have proved nothing");
            continue;
        };
        let place = Place {
            _all: all,
            unproven: Some(unproven),
        };
        tokio::spawn(connection.run(tcp, tls.load_full(), place));
    }
}

struct Connection {
    peer: SocketAddr,
    hub: Arc<Hub>,
    places: Arc<Places>,
}

impl Connection {
    async fn run(self, tcp: TcpStream, config: Arc<ServerConfig>, mut place: Place) {
        let _ = tcp.set_nodelay(true);
        let (stream, caller) = match self.accept(tcp, config).await {
            Ok(accepted) => accepted,
            Err((reason, problem)) => return self.refused(reason, &problem),
        };
        let held = match &caller {
            None => None,
            Some(caller) => match self.places.of_workload.take(&caller.workload) {
                None => return self.refused("connections_max", &caller.workload),
                held => {
                    place.unproven = None;
                    held
                }
            },
        };
        let proven = caller.is_some();
        let served = serve(stream, caller, Arc::clone(&self.hub));
        let served = match proven {
            true => served.await,
            false => match tokio::time::timeout(UNPROVEN_MAX, served).await {
                Ok(served) => served,
                Err(_) => return self.refused("unproven", "it proved nothing in time"),
            },
        };
        if let Err(error) = served {
            tracing::debug!(peer = %self.peer, %error, "connection ended");
        }
        drop((place, held));
    }

    /// Who is there; or why not.
    async fn accept(
        &self,
        tcp: TcpStream,
        config: Arc<ServerConfig>,
    ) -> Result<(TlsStream<TcpStream>, Option<Caller>), (&'static str, String)> {
        let accepting = tokio_rustls::TlsAcceptor::from(config).accept(tcp);
        let stream = tokio::time::timeout(HANDSHAKE_MAX, accepting)
            .await
            .map_err(|_| ("handshake_timeout", String::new()))?
            .map_err(|error| (reason_of(&error), error.to_string()))?;
        let certificates = stream.get_ref().1.peer_certificates();
        let Some(leaf) = certificates.and_then(<[_]>::first) else {
            return Ok((stream, None));
        };
        let caller = identify(leaf, &self.hub.ca.trust_domain, self.peer);
        let caller = caller.map_err(|problem| ("stranger", problem))?;
        Ok((stream, Some(caller)))
    }

    fn refused(&self, reason: &'static str, problem: &str) {
        self.hub.metrics.connections_refused.count(reason);
        match reason {
            // Anybody can make these in any number.
            "handshake" | "handshake_timeout" | "unproven" => {
                tracing::debug!(peer = %self.peer, reason, problem, "connection refused");
            }
            _ => {
                let from = self.peer.ip().to_string();
                if let Some(left_out) = self.hub.may_log(&[reason, &from]) {
                    tracing::warn!(peer = %self.peer, reason, problem, left_out, "connection refused");
                }
            }
        }
    }
}

/// What was wrong with a client's certificate, or else with its handshake.
fn reason_of(error: &std::io::Error) -> &'static str {
    use rustls::CertificateError as Fault;
    let inner = error.get_ref().and_then(|of| of.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(fault)) => match fault {
            Fault::Revoked => "revoked",
            Fault::Expired | Fault::ExpiredContext { .. } => "expired",
            Fault::NotValidYet | Fault::NotValidYetContext { .. } => "not_yet_valid",
            Fault::UnknownIssuer | Fault::BadSignature => "unknown_issuer",
            _ => "handshake",
        },
        _ => "handshake",
    }
}

async fn serve(
    stream: TlsStream<TcpStream>,
    caller: Option<Caller>,
    hub: Arc<Hub>,
) -> Result<(), hyper::Error> {
    let service = Service { hub };
    let workloads =
        WorkloadsServer::new(service.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let discovery = AggregatedDiscoveryServiceServer::new(service)
        .max_decoding_message_size(STREAM_REQUEST_BYTES_MAX);
    let serve = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (mut parts, body) = request.into_parts();
        if let Some(caller) = &caller {
            parts.extensions.insert(caller.clone());
        }
        let is_discovery = parts.uri.path().starts_with("/envoy.");
        let request = http::Request::from_parts(parts, Body::new(body));
        let answering = match is_discovery {
            true => discovery.clone().call(request),
            false => workloads.clone().call(request),
        };
        async move {
            let answer: Result<http::Response<Body>, Infallible> = answering.await;
            answer
        }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(16)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), serve)
        .await
}

/// Who the owner of a verified certificate is.
fn identify(
    leaf: &CertificateDer<'_>,
    trust_domain: &str,
    peer: SocketAddr,
) -> Result<Caller, String> {
    let certificate = EndEntityCert::try_from(leaf).map_err(|error| error.to_string())?;
    let mut uris = certificate.valid_uri_names();
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err("its certificate has not one URI".to_owned());
    };
    let identity = SpiffeId::parse(uri).map_err(|error| error.to_string())?;
    if identity.trust_domain() != trust_domain {
        return Err(format!("{identity} is of another trust domain"));
    }
    let workload = certificate
        .valid_dns_names()
        .find_map(spiffe::workload_of_name)
        .ok_or_else(|| format!("the certificate of {identity} names no workload"))?;
    Ok(Caller {
        identity,
        workload: workload.to_owned(),
        expires: crate::ca::subject_and_end(leaf).1,
        address: peer.to_string(),
        certificate: leaf.clone().into_owned(),
    })
}

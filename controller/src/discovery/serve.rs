//! The port that proxies connect to: TLS 1.3 with our own SVID, HTTP/2, gRPC.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rcgen::KeyPair;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::Service as _;
use webpki::EndEntityCert;
use weft_config::spiffe::{self, SpiffeId};

use super::hub::Hub;
use super::{Caller, Service};
use crate::services::workloads_server::WorkloadsServer;
use crate::services::xds::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;

/// Open connections; the next one waits to be accepted.
const CONNECTIONS_MAX: usize = 20_000;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A connection without a client certificate is for one signature.
const UNPROVEN_MAX: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Why a connection is ended before it is served, or before its client has proved anything.
pub const REFUSALS: &[&str] = &["handshake", "handshake_timeout", "stranger", "unproven"];
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
    for root in &hub.ca.current().roots {
        roots.add(root.clone())?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.into_iter().map(CertificateDer::from).collect(), key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts for as long as the process lives.
pub async fn run(
    listener: TcpListener,
    hub: Arc<Hub>,
    tls: Arc<arc_swap::ArcSwap<ServerConfig>>,
) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (hub, config) = (Arc::clone(&hub), tls.load_full());
        tokio::spawn(async move {
            connection(tcp, peer, hub, config).await;
            drop(place);
        });
    }
}

async fn connection(tcp: TcpStream, peer: SocketAddr, hub: Arc<Hub>, config: Arc<ServerConfig>) {
    let _ = tcp.set_nodelay(true);
    let counts = Arc::clone(&hub);
    let refused = |reason| counts.metrics.connections_refused.count(reason);
    let accepting = tokio_rustls::TlsAcceptor::from(config).accept(tcp);
    let stream = match tokio::time::timeout(HANDSHAKE_MAX, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refused("handshake");
            return tracing::debug!(%peer, %error, "TLS handshake failed");
        }
        Err(_) => {
            refused("handshake_timeout");
            return tracing::debug!(%peer, "TLS handshake took too long");
        }
    };
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let caller = match leaf {
        None => None,
        Some(leaf) => match identify(leaf, &hub.ca.trust_domain, peer) {
            Some(caller) => Some(caller),
            None => {
                refused("stranger");
                return tracing::warn!(%peer, "a client certificate of no workload of this trust domain");
            }
        },
    };
    let limit = caller.is_none().then_some(UNPROVEN_MAX);
    let service = Service { hub };
    let workloads = WorkloadsServer::new(service.clone());
    let discovery = AggregatedDiscoveryServiceServer::new(service);
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
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(16)
        .serve_connection(TokioIo::new(stream), serve);
    let served = match limit {
        None => served.await,
        Some(limit) => match tokio::time::timeout(limit, served).await {
            Ok(served) => served,
            Err(_) => {
                refused("unproven");
                return tracing::debug!(%peer, "closed: it proved nothing for {limit:?}");
            }
        },
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// Who the owner of a verified certificate is.
fn identify(leaf: &CertificateDer<'_>, trust_domain: &str, peer: SocketAddr) -> Option<Caller> {
    let certificate = EndEntityCert::try_from(leaf).ok()?;
    let mut uris = certificate.valid_uri_names();
    let identity = SpiffeId::parse(uris.next()?).ok()?;
    if uris.next().is_some() || identity.trust_domain() != trust_domain {
        return None;
    }
    let workload = certificate
        .valid_dns_names()
        .find_map(spiffe::workload_of_name)?;
    Some(Caller {
        identity,
        workload: workload.to_owned(),
        expires: crate::ca::subject_and_end(leaf).1,
        address: peer.to_string(),
    })
}

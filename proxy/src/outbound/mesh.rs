//! Reaching an endpoint of the mesh: mTLS to its sidecar, which must prove to
//! be exactly the expected workload; and what the sidecars tell each other in
//! the heads of answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use tokio::io::AsyncReadExt;
use weft_config::snapshot::Peer;

use super::connect::{ConnectError, Dial};
use super::respond::Answer;
use crate::logic::balance::EndpointState;
use crate::logic::cause::Cause;
use crate::logic::retry::Failure;
use crate::net::stream::{Plain, Stream};
use crate::net::tls::mesh::{self, MeshProtocol, MeshTls, Refusal};
use crate::state::{ServiceState, Shared};

/// On a failure's answer between sidecars: what became of the request, so that
/// the sender can try elsewhere as if it had dialled the application itself.
pub const OUTCOME: HeaderName = HeaderName::from_static("weft-outcome");
/// The application has not seen it.
const UNPROCESSED: HeaderValue = HeaderValue::from_static("unprocessed");
/// It was sent, and the application's connection died before an answer.
const DIED: HeaderValue = HeaderValue::from_static("died");
/// On an answer between sidecars: the workload is leaving, send the next elsewhere.
pub const LEAVING: HeaderName = HeaderName::from_static("weft-leaving");
pub const LEAVING_VALUE: HeaderValue = HeaderValue::from_static("1");
/// What the far side sends on a `weft-tcp` connection once the application is reached.
pub const GO_AHEAD: u8 = 0;
/// The same from a workload that is leaving: the next one goes elsewhere.
pub const GO_AHEAD_LEAVING: u8 = 3;
/// … and when it is not, or the connection is denied.
pub const REFUSED: u8 = 1;
pub const DENIED: u8 = 2;

/// How long a connection waits for our first certificate.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(3);

/// Only sidecars may say these.
pub fn strip_markers(headers: &mut HeaderMap) {
    headers.remove(OUTCOME);
    headers.remove(LEAVING);
}

/// What a sidecar tells the sender of a request that it could not have answered.
pub fn outcome_of(cause: Cause, sent: bool) -> Option<HeaderValue> {
    match cause {
        _ if sent => (cause == Cause::UpstreamReset).then_some(DIED),
        Cause::ConnectFailed
        | Cause::ConnectTimeout
        | Cause::NoEndpoint
        | Cause::UpstreamRefused
        | Cause::ConnectionsFull
        | Cause::PendingFull
        | Cause::RequestsFull
        | Cause::Draining => Some(UNPROCESSED),
        _ => None,
    }
}

/// What is answered once the drain barrier is shut; to another sidecar in its words.
pub fn left(to_sidecar: bool) -> Answer {
    let mut answer = Answer::of(Cause::Draining, "the workload has left");
    if to_sidecar {
        answer.headers.insert(OUTCOME, UNPROCESSED);
        answer.headers.insert(LEAVING, LEAVING_VALUE);
    }
    answer
}

/// The failure that a sidecar reports, taken from its answer's head.
pub fn reported(headers: &mut HeaderMap) -> Option<Failure> {
    let outcome = headers.remove(OUTCOME)?;
    if outcome == UNPROCESSED {
        Some(Failure::Unprocessed)
    } else if outcome == DIED {
        Some(Failure::ConnectionDied)
    } else {
        None
    }
}

/// Takes an endpoint out of rotation, or back, as its sidecar says.
pub fn heed_leaving(
    shared: &Shared,
    service: &ServiceState,
    endpoint: &Arc<EndpointState>,
    headers: &mut HeaderMap,
) {
    heed(shared, service, endpoint, headers.remove(LEAVING).is_some());
}

fn heed(shared: &Shared, service: &ServiceState, endpoint: &EndpointState, leaving: bool) {
    if leaving != endpoint.is_draining() {
        let now = shared.now();
        if endpoint.set_draining(leaving, now) {
            service.endpoints.load().refresh(now);
        }
    }
}

impl Dial<'_> {
    /// What the connection is to carry.
    pub(super) fn mesh_protocol(&self) -> MeshProtocol {
        if self.opaque {
            MeshProtocol::Tcp
        } else if self.wants_http2() && !self.tunnel {
            MeshProtocol::Http2
        } else {
            MeshProtocol::Http1
        }
    }

    /// Where the peer's sidecar takes mTLS. What a workload sends to itself is
    /// captured nowhere (it stays on loopback, and what we dial never is), so it
    /// goes to our own inbound listener and not past it to the application.
    pub(super) fn mesh_address(&self, peer: &Peer) -> SocketAddr {
        let shared = &self.connection.worker.shared;
        let mesh = shared.mesh.as_ref();
        let own = mesh.is_some_and(|mesh| mesh.config.workload == peer.workload);
        if !own || peer.address != self.endpoint.address() {
            return peer.address;
        }
        let runtime = shared.runtime.load();
        match runtime.inbound().map(|inbound| inbound.config.address) {
            Some(inbound) if inbound.ip().is_unspecified() => {
                SocketAddr::new(peer.address.ip(), inbound.port())
            }
            Some(inbound) => inbound,
            None => peer.address,
        }
    }

    /// mTLS over a fresh connection; then, and only then, is it the endpoint.
    pub(super) async fn secure_mesh(
        &self,
        plain: Plain,
        peer: &Peer,
    ) -> Result<Stream, ConnectError> {
        let protocol = self.mesh_protocol();
        let secured = self.handshake_mesh(plain, peer, protocol).await;
        let metrics = &self.connection.worker.shared.metrics;
        match secured {
            Ok(stream) => {
                metrics.mesh_handshake("outbound", "ok");
                Ok(stream)
            }
            Err(refusal) => {
                metrics.mesh_handshake("outbound", refusal.label());
                tracing::debug!(
                    peer = %peer.identity, workload = %peer.workload, address = %peer.address,
                    reason = refusal.label(), "mTLS to an endpoint failed: {refusal}"
                );
                Err(ConnectError::Mesh(refusal))
            }
        }
    }

    async fn handshake_mesh(
        &self,
        plain: Plain,
        peer: &Peer,
        protocol: MeshProtocol,
    ) -> Result<Stream, Refusal> {
        let tls = self.certificate().await?;
        let name = mesh::server_name(peer, self.endpoint.address().port())
            .map_err(|_| Refusal::NoIdentity)?;
        let connector = tokio_rustls::TlsConnector::from(tls.client(protocol));
        let mut stream = connector
            .connect(name, plain)
            .await
            .map_err(|error| Refusal::of(&error))?;
        let (_, session) = stream.get_ref();
        mesh::expect(session.peer_certificates(), peer)?;
        if session.alpn_protocol() != Some(protocol.alpn()) {
            return Err(Refusal::Handshake);
        }
        if protocol == MeshProtocol::Tcp {
            let shared = &self.connection.worker.shared;
            match stream.read_u8().await {
                Ok(GO_AHEAD) => heed(shared, self.service, self.endpoint, false),
                Ok(GO_AHEAD_LEAVING) => heed(shared, self.service, self.endpoint, true),
                Ok(DENIED) => return Err(Refusal::Denied),
                Ok(_) => return Err(Refusal::Unprocessed),
                Err(error) => return Err(Refusal::of(&error)),
            }
        }
        Ok(Stream::ClientTls(Box::new(stream)))
    }

    /// Our certificate, awaited for a moment when we have only just started.
    async fn certificate(&self) -> Result<Arc<MeshTls>, Refusal> {
        let mesh = self.connection.worker.shared.mesh.as_ref();
        let mesh = mesh.ok_or(Refusal::NoCertificateYet)?;
        if let Some(tls) = mesh.tls.load_full() {
            return Ok(tls);
        }
        mesh.await_change(CERTIFICATE_WAIT, |mesh| mesh.tls.load_full())
            .await
            .ok_or(Refusal::NoCertificateYet)
    }

    /// Under which trust a connection to a peer is opened now.
    pub(super) fn trust_generation(&self) -> u64 {
        let mesh = self.connection.worker.shared.mesh.as_ref();
        mesh.and_then(|mesh| mesh.tls.load().as_ref().map(|tls| tls.trust_generation()))
            .unwrap_or(0)
    }
}

//! mTLS between proxies: our certificate, whom we trust, which protocol is
//! carried, and who the peer has proved to be. `verify` says whom we believe.
//!
//! TLS 1.3 only. Sessions are resumed; a change of trust starts with empty
//! caches. **Invariant:** nobody is believed because of the server name: that
//! only says what the client means; identity and UID are read from the
//! certificate, of resumed sessions too.

pub mod refusal;
mod verify;

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, version};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, InvalidDnsNameError, PrivateKeyDer, ServerName,
    UnixTime,
};
use weft_config::snapshot::Peer;
use weft_config::spiffe::{self, SpiffeId};

use super::provider;
pub use refusal::Refusal;
use verify::Verifier;

/// Peers whose sessions are remembered.
const SESSIONS_MAX: usize = 1024;

/// Our certificate (SPIFFE X.509 SVID), its chain and its key.
#[derive(Debug)]
pub struct Svid {
    pub identity: SpiffeId,
    /// The leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// Whom we trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub domain: String,
    pub roots: Vec<CertificateDer<'static>>,
    pub revocations: Vec<CertificateRevocationListDer<'static>>,
}

/// What is carried inside (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    Http1,
    Http2,
    Tcp,
}

impl Clone for Svid {
    fn clone(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl MeshProtocol {
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Tcp];

    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"weft-http/1.1",
            Self::Http2 => b"weft-h2",
            Self::Tcp => b"weft-tcp",
        }
    }

    pub fn of_alpn(alpn: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.alpn() == alpn)
    }
}

/// Who a certificate says that its owner is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    pub identity: SpiffeId,
    pub workload: Arc<str>,
}

/// Swapped whole when our certificate or the trust changes.
#[derive(Debug)]
pub struct MeshTls {
    identity: SpiffeId,
    trust: Trust,
    /// Grows when somebody who was believed may not be any more: connections of
    /// an older one are not used again.
    trust_generation: u64,
    /// In the order of [`MeshProtocol::ALL`].
    clients: [Arc<ClientConfig>; 3],
    server: Arc<ServerConfig>,
    tickets: Arc<dyn ProducesTickets>,
    sessions: Resumption,
}

#[derive(Debug, thiserror::Error)]
pub enum MeshTlsError {
    #[error("the certificate or its key cannot be used")]
    Certificate(#[source] rustls::Error),
    #[error("the trust bundle cannot be used: {0}")]
    Trust(String),
    #[error("the certificate that was signed for us would be refused: {0}")]
    Own(Refusal),
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

impl MeshTls {
    /// `previous`: sessions are resumed only under the same trust.
    pub fn new(svid: Svid, trust: Trust, previous: Option<&Self>) -> Result<Self, MeshTlsError> {
        let verifier = Arc::new(Verifier::new(&trust)?);
        let same_trust = previous.filter(|previous| previous.trust == trust);
        let trust_generation = match previous {
            None => 1,
            Some(previous) if previous.trusts_no_more_than(&trust) => previous.trust_generation,
            Some(previous) => previous.trust_generation + 1,
        };
        let certified = CertifiedKey::from_der(svid.chain, svid.key, &provider())
            .map_err(MeshTlsError::Certificate)?;
        let certified = Arc::new(SingleCertAndKey::from(certified));
        let (tickets, sessions) = match same_trust {
            Some(previous) => (Arc::clone(&previous.tickets), previous.sessions.clone()),
            None => (
                rustls::crypto::aws_lc_rs::Ticketer::new().map_err(MeshTlsError::Tls)?,
                Resumption::in_memory_sessions(SESSIONS_MAX),
            ),
        };
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(MeshTlsError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
            .with_client_cert_resolver(Arc::clone(&certified) as _);
        client.resumption = sessions.clone();
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(MeshTlsError::Tls)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Presented(certified)));
        server.ticketer = Arc::clone(&tickets);
        server.alpn_protocols = MeshProtocol::ALL
            .map(|protocol| protocol.alpn().to_vec())
            .into();
        Ok(Self {
            identity: svid.identity,
            trust,
            trust_generation,
            clients: MeshProtocol::ALL.map(|protocol| {
                let mut client = client.clone();
                client.alpn_protocols = vec![protocol.alpn().to_vec()];
                Arc::new(client)
            }),
            server: Arc::new(server),
            tickets,
            sessions,
        })
    }

    /// Everything that was believed is believed under `trust` too.
    fn trusts_no_more_than(&self, trust: &Trust) -> bool {
        self.trust.domain == trust.domain
            && self.trust.revocations == trust.revocations
            && self
                .trust
                .roots
                .iter()
                .all(|root| trust.roots.contains(root))
    }

    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    pub fn trust_generation(&self) -> u64 {
        self.trust_generation
    }

    pub fn client(&self, protocol: MeshProtocol) -> Arc<ClientConfig> {
        let [http1, http2, tcp] = &self.clients;
        Arc::clone(match protocol {
            MeshProtocol::Http1 => http1,
            MeshProtocol::Http2 => http2,
            MeshProtocol::Tcp => tcp,
        })
    }

    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// How a controller is dialled: with our certificate once we have one.
pub fn controller_client(trust: &Trust, svid: Option<Svid>) -> Result<ClientConfig, MeshTlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(MeshTlsError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(trust)?));
    let mut config = match svid {
        None => builder.with_no_client_auth(),
        Some(svid) => builder
            .with_client_auth_cert(svid.chain, svid.key)
            .map_err(MeshTlsError::Certificate)?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Each connection proves who we are now.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Whether the owner of a verified chain is a controller of its trust domain.
pub fn expect_controller(chain: Option<&[CertificateDer<'_>]>) -> Result<(), Refusal> {
    let found = peer_of(chain)?.identity;
    let parts = (found.namespace(), found.service_account());
    (parts == spiffe::CONTROLLER)
        .then_some(())
        .ok_or(Refusal::WrongIdentity)
}

/// Whether peers that trust as we are told to will believe our certificate, and
/// take us for who we should be.
pub fn check_own(svid: &Svid, trust: &Trust, expected: &Peer) -> Result<(), MeshTlsError> {
    let verifier = Verifier::new(trust)?;
    let believed = verifier.verify_chain(&svid.chain, UnixTime::now());
    believed
        .and_then(|()| expect(Some(&svid.chain), expected))
        .map_err(MeshTlsError::Own)
}

/// The one certificate, whatever name the client asks for: the name says which
/// port it means, and is looked at by whoever accepts.
#[derive(Debug)]
struct Presented(Arc<SingleCertAndKey>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ResolvesServerCert::resolve(&*self.0, hello)
    }
}

/// Which port of which workload is meant (SNI).
pub fn server_name(peer: &Peer, port: u16) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(spiffe::server_name(port, &peer.workload))
}

/// Who the owner of a verified chain is.
pub fn peer_of(chain: Option<&[CertificateDer<'_>]>) -> Result<PeerIdentity, Refusal> {
    let leaf = chain.and_then(<[_]>::first).ok_or(Refusal::NoCertificate)?;
    verify::identity_of(leaf)
}

/// Whether the owner of a verified chain is exactly who was expected.
pub fn expect(chain: Option<&[CertificateDer<'_>]>, expected: &Peer) -> Result<(), Refusal> {
    let found = peer_of(chain)?;
    if found.identity != expected.identity {
        return Err(Refusal::WrongIdentity);
    }
    if found.workload != expected.workload {
        return Err(Refusal::WrongWorkload);
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! mTLS between proxies: our certificate, whom we trust, which protocol is
//! carried, and who the peer has proved to be.

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use weft_config::spiffe::SpiffeId;

/// Our certificate (SPIFFE X.509 SVID), its chain and its key.
#[derive(Debug)]
pub struct Svid {
    pub identity: SpiffeId,
    /// The leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// Whom we trust.
#[derive(Clone, Debug)]
pub struct Trust {
    pub domain: String,
    pub roots: Vec<CertificateDer<'static>>,
    pub revocations: Vec<CertificateRevocationListDer<'static>>,
}

/// What is carried inside (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshProtocol {
    /// `weft-http/1.1`
    Http1,
    /// `weft-h2`
    Http2,
    /// `weft-tcp`
    Tcp,
}

/// Swapped whole when our certificate or the trust changes.
#[derive(Debug)]
pub struct MeshTls {}

#[derive(Debug, thiserror::Error)]
pub enum MeshTlsError {
    #[error("the certificate or its key cannot be used")]
    Certificate(#[source] rustls::Error),
}

impl MeshTls {
    /// `previous`: sessions are resumed only under the same trust.
    pub fn new(_svid: Svid, _trust: Trust, _previous: Option<&Self>) -> Result<Self, MeshTlsError> {
        Ok(Self {})
    }
}

//! Whom we believe: a chain to a root of the bundle, valid now, not revoked,
//! with exactly one SPIFFE ID, of our trust domain. The same for both sides.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    BorrowedCertRevocationList, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};
use weft_config::spiffe::{SpiffeId, workload_of_name};

use super::{MeshTlsError, PeerIdentity, Refusal, Trust};
use crate::net::tls::provider;

pub struct Verifier {
    domain: String,
    roots: Vec<TrustAnchor<'static>>,
    revocations: Vec<CertRevocationList<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub fn new(trust: &Trust) -> Result<Self, MeshTlsError> {
        let bad =
            |what: &str, error: webpki::Error| MeshTlsError::Trust(format!("{what}: {error}"));
        let roots: Vec<_> = trust
            .roots
            .iter()
            .map(|root| anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|error| bad("a root", error))?;
        if roots.is_empty() {
            return Err(MeshTlsError::Trust("it has no root".to_owned()));
        }
        let revocations = trust
            .revocations
            .iter()
            .map(|list| {
                BorrowedCertRevocationList::from_der(list)?
                    .to_owned()
                    .map(Into::into)
            })
            .collect::<Result<_, _>>()
            .map_err(|error| bad("a revocation list", error))?;
        Ok(Self {
            domain: trust.domain.clone(),
            roots,
            revocations,
            algorithms: provider().signature_verification_algorithms,
        })
    }

    /// A chain as either side presents it.
    pub fn verify_chain(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Refusal> {
        let (leaf, intermediates) = chain.split_first().ok_or(Refusal::NoCertificate)?;
        self.verify(leaf, intermediates, KeyUsage::server_auth(), now)?;
        self.verify(leaf, intermediates, KeyUsage::client_auth(), now)
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| Refusal::BadCertificate)?;
        let lists: Vec<&CertRevocationList<'_>> = self.revocations.iter().collect();
        // A list of one root says nothing of what another signed, and one that is
        // late must not stop all traffic: new ones come with the trust bundle.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::EndEntity)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        certificate
            .verify_for_usage(
                self.algorithms.all,
                &self.roots,
                intermediates,
                now,
                usage,
                revocation,
                None,
            )
            .map_err(|error| refusal_of(&error))?;
        let found = identity_of(leaf)?;
        if found.identity.trust_domain() != self.domain {
            return Err(Refusal::WrongTrustDomain);
        }
        Ok(())
    }
}

fn refusal_of(error: &webpki::Error) -> Refusal {
    match error {
        webpki::Error::CertExpired { .. } => Refusal::Expired,
        webpki::Error::CertNotValidYet { .. } => Refusal::NotYetValid,
        webpki::Error::CertRevoked => Refusal::Revoked,
        // A root of the same name with another key: as after a change of roots.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            Refusal::UnknownIssuer
        }
        _ => Refusal::BadCertificate,
    }
}

/// The one SPIFFE ID (X509-SVID §2) and the UID of a certificate.
pub fn identity_of(leaf: &CertificateDer<'_>) -> Result<PeerIdentity, Refusal> {
    let certificate = EndEntityCert::try_from(leaf).map_err(|_| Refusal::BadCertificate)?;
    let mut uris = certificate.valid_uri_names();
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(Refusal::NoIdentity);
    };
    let identity = SpiffeId::parse(uri).map_err(|_| Refusal::NoIdentity)?;
    let workload = certificate
        .valid_dns_names()
        .find_map(workload_of_name)
        .ok_or(Refusal::NoIdentity)?;
    Ok(PeerIdentity {
        identity,
        workload: Arc::from(workload),
    })
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, KeyUsage::server_auth(), now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Refusal::Handshake.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, KeyUsage::client_auth(), now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Refusal::Handshake.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

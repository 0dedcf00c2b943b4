//! Why a peer of the mesh is not believed: the label of a metric, a reason in
//! the log and in the answer.

use std::error::Error;
use std::fmt;
use std::io;

use rustls::CertificateError;

/// Travels through rustls as the cause of a failed handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    Expired,
    NotYetValid,
    Revoked,
    UnknownIssuer,
    WrongTrustDomain,
    WrongIdentity,
    WrongWorkload,
    /// No SPIFFE ID, several, or none of the form that we know.
    NoIdentity,
    NoCertificate,
    /// The certificate breaks a rule of X.509.
    BadCertificate,
    /// The server name is not one of this workload's: it means somebody else,
    /// as after an IP address was reused.
    NotOurs,
    /// Strict mode, and the peer came without mTLS.
    MtlsRequired,
    /// Its sidecar could not reach the application.
    Unprocessed,
    /// A policy there denies it.
    Denied,
    /// We have no certificate of our own yet.
    NoCertificateYet,
    /// The other side closed or broke off the handshake.
    Handshake,
    Timeout,
}

impl Refusal {
    pub fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::WrongIdentity => "wrong_identity",
            Self::WrongWorkload => "wrong_workload",
            Self::NoIdentity => "no_identity",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::NotOurs => "not_ours",
            Self::MtlsRequired => "mtls_required",
            Self::Unprocessed => "unprocessed",
            Self::Denied => "denied",
            Self::NoCertificateYet => "no_certificate_yet",
            Self::Handshake => "handshake",
            Self::Timeout => "timeout",
        }
    }

    /// What `error`, which ended a handshake, says of the peer. An alert is the
    /// peer's word about us.
    pub fn of(error: &io::Error) -> Self {
        let rustls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match rustls {
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => other
                .0
                .downcast_ref::<Self>()
                .copied()
                .unwrap_or(Self::BadCertificate),
            Some(rustls::Error::InvalidCertificate(error)) => match error {
                CertificateError::Expired => Self::Expired,
                CertificateError::NotValidYet => Self::NotYetValid,
                CertificateError::Revoked => Self::Revoked,
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                _ => Self::BadCertificate,
            },
            Some(rustls::Error::NoCertificatesPresented) => Self::NoCertificate,
            _ => Self::Handshake,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the peer's certificate has expired; is its clock right, can it reach the controller?",
            Self::NotYetValid => "the peer's certificate is not valid yet; compare the clocks",
            Self::Revoked => "the peer's certificate is revoked",
            Self::UnknownIssuer => "the peer's certificate is signed by nobody in the trust bundle",
            Self::WrongTrustDomain => "the peer is of another trust domain",
            Self::WrongIdentity => "the peer is not who the service's endpoint should be",
            Self::WrongWorkload => "another workload has the endpoint's address now",
            Self::NoIdentity => "the peer's certificate has no workload's SPIFFE ID",
            Self::NoCertificate => "the peer presents no certificate",
            Self::BadCertificate => "the peer's certificate breaks a rule of X.509",
            Self::NotOurs => "another workload was meant",
            Self::MtlsRequired => "mTLS is required here (mode strict)",
            Self::Unprocessed => "the peer's sidecar cannot reach its application",
            Self::Denied => "an AuthorizationPolicy at the peer denies it; its log names the policy",
            Self::NoCertificateYet => {
                "this sidecar has no certificate yet; `weft check` tells why the controller gives none"
            }
            Self::Handshake => "the TLS handshake failed",
            Self::Timeout => "the TLS handshake took too long",
        })
    }
}

impl Error for Refusal {}

impl From<Refusal> for rustls::Error {
    /// Such that the peer gets the alert that says it best (RFC 8446 §6.2).
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(match refusal {
            Refusal::Expired => CertificateError::Expired,
            Refusal::NotYetValid => CertificateError::NotValidYet,
            Refusal::Revoked => CertificateError::Revoked,
            Refusal::UnknownIssuer => CertificateError::UnknownIssuer,
            other => CertificateError::Other(rustls::OtherError(std::sync::Arc::new(other))),
        })
    }
}

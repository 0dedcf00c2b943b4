//! What the authority's files say, wherever they are kept. Pure but for the making of a
//! new root.
//!
//! **Invariant:** an authority exists only of a key and the certificate that it belongs to.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::PublicKeyData as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;

use super::revocation::Revocations;
use super::{Authority, BACKDATED, CaError, error_at};

const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// One of the files; what it holds may be secret.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// What errors call it.
    pub place: String,
    /// `None`: it is not there.
    pub bytes: Option<Vec<u8>>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

impl File {
    fn required(&self) -> Result<&[u8], CaError> {
        let bytes = self.bytes.as_deref();
        bytes.ok_or_else(|| error_at(&self.place, "is not there"))
    }

    /// The certificates; none where there is no file.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, CaError> {
        CertificateDer::pem_slice_iter(self.bytes.as_deref().unwrap_or_default())
            .collect::<Result<_, _>>()
            .map_err(|error| error_at(&self.place, error))
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate that signs, then those that lead from it to its root.
    pub certificate: File,
    pub key: File,
    /// The root, where it is kept apart.
    pub root: File,
    /// Further roots that are trusted.
    pub bundle: File,
    pub revocations: File,
}

impl Files {
    pub fn authority(&self) -> Result<Authority, CaError> {
        self.certificate.required()?;
        let chain = self.certificate.certificates()?;
        let place = &self.certificate.place;
        let Some(signing) = chain.first() else {
            return Err(error_at(place, "holds no certificate (PEM)"));
        };
        let issuer = self.issuer(signing)?;
        let (links, root) = self.root_of(&chain)?;
        let mut roots = vec![root];
        for further in self
            .root
            .certificates()?
            .into_iter()
            .chain(self.bundle.certificates()?)
        {
            if !roots.contains(&further) {
                roots.push(further);
            }
        }
        let issuers: Vec<_> = chain.iter().chain(&roots).cloned().collect();
        Ok(Authority {
            issuer,
            chain: links,
            roots,
            revocations: Revocations::read(&self.revocations, &issuers)?,
        })
    }

    fn issuer(
        &self,
        signing: &CertificateDer<'static>,
    ) -> Result<Issuer<'static, KeyPair>, CaError> {
        let (certificate, key) = (&self.certificate.place, &self.key.place);
        let pem =
            std::str::from_utf8(self.key.required()?).map_err(|error| error_at(key, error))?;
        let pair = KeyPair::from_pem(pem).map_err(|error| error_at(key, error))?;
        let parsed = parse(certificate, signing)?;
        // The two may be replaced one after the other: in between nothing must be signed.
        if parsed.public_key().raw != pair.subject_public_key_info() {
            let problem = "is not the key of the certificate beside it; replace both";
            return Err(error_at(key, problem));
        }
        if !parsed.is_ca() {
            let problem = "its first certificate is no authority's (basicConstraints CA:TRUE) and may not sign others";
            return Err(error_at(certificate, problem));
        }
        Issuer::from_ca_cert_der(signing, pair).map_err(|error| error_at(certificate, error))
    }

    /// What leads to the root, and that. Only the root is trusted by itself; it is the
    /// last of the chain, or stands apart.
    fn root_of(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<(Vec<CertificateDer<'static>>, CertificateDer<'static>), CaError> {
        let place = &self.certificate.place;
        let Some((last, links)) = chain.split_last() else {
            return Err(error_at(place, "holds no certificate (PEM)"));
        };
        let apart = self.root.certificates()?;
        if apart.is_empty() || apart.contains(last) {
            return Ok((links.to_vec(), last.clone()));
        }
        let parsed = parse(place, last)?;
        for root in apart {
            let of = parse(&self.root.place, &root)?;
            let signed = parsed.verify_signature(Some(of.public_key())).is_ok();
            if of.subject() == parsed.issuer() && signed {
                return Ok((chain.to_vec(), root));
            }
        }
        let problem = format!(
            "holds no certificate that has signed the last one of {place} ({})",
            parsed.subject()
        );
        Err(error_at(&self.root.place, problem))
    }
}

fn parse<'a>(place: &str, certificate: &'a [u8]) -> Result<X509Certificate<'a>, CaError> {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    parsed
        .map(|(_, parsed)| parsed)
        .map_err(|error| error_at(place, error))
}

/// A new root with its key (PEM).
#[derive(Debug)]
pub struct Root {
    pub certificate: String,
    pub key: String,
}

impl Root {
    pub fn make(trust_domain: &str) -> Result<Self, CaError> {
        let pair = KeyPair::generate().map_err(CaError::Sign)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Weft root of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (SystemTime::now() - BACKDATED).into();
        params.not_after = (SystemTime::now() + ROOT_LIFE).into();
        let root = params.self_signed(&pair).map_err(CaError::Sign)?;
        Ok(Self {
            certificate: root.pem(),
            key: pair.serialize_pem(),
        })
    }
}

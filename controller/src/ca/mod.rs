//! The certificate authority: a key that signs, the roots that are trusted, and the key
//! of join tokens. Its files (`files`) are in one of a closed set of places (`place`): a
//! directory or a Secret.
//!
//! The root is changed in three steps, with nothing restarted: both roots, the old
//! and the new, go into `bundle.pem`; the certificate that signs and its key are replaced,
//! upon which everybody renews; the old root leaves `bundle.pem`.
//!
//! **Invariant:** a change never ends trust in the root that has signed until now.
//! **Invariant:** only a key and nothing else is taken from a request to sign;
//! the identity comes from its proof.

pub mod directory;
pub mod files;
pub mod place;
pub mod proof;
pub mod review;
pub mod revocation;
pub mod secret;
pub mod token;

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rand::RngExt as _;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::watch;
use weft_config::spiffe::{SpiffeId, workload_name};
use weft_config::status::SourceError;
use weft_config::wire;

use files::Files;
use place::Place;
use revocation::Revocations;

/// A request to sign that is larger is none.
pub const CSR_BYTES_MAX: usize = 16 * 1024;
/// Clocks differ: one that is an hour behind, here or where a certificate is judged, must not
/// cost anybody the mesh. One that is ahead has the rest of a certificate's life.
const BACKDATED: Duration = Duration::from_secs(90 * 60);

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{place}: {problem}")]
    File { place: String, problem: String },
    #[error("the request to sign is larger than {CSR_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the request to sign cannot be used: {0}")]
    Request(rcgen::Error),
    #[error("the request to sign asks for {asked}, and the proof is for {proven}")]
    Identity { asked: String, proven: String },
    #[error("signing failed: {0}")]
    Sign(rcgen::Error),
}

fn file_error(path: &Path, problem: impl std::fmt::Display) -> CaError {
    error_at(&path.display().to_string(), problem)
}

fn error_at(place: &str, problem: impl std::fmt::Display) -> CaError {
    CaError::File {
        place: place.to_owned(),
        problem: problem.to_string(),
    }
}

/// What signs and who is trusted now.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The certificate that signs and what leads from it to a root; none where that signs.
    pub chain: Vec<CertificateDer<'static>>,
    /// All that is trusted; the signing one first.
    pub roots: Vec<CertificateDer<'static>>,
    pub revocations: Revocations,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// The authority as it is now.
#[derive(Debug)]
pub struct Ca {
    pub trust_domain: String,
    /// Of certificates.
    pub life: Duration,
    current: ArcSwap<Authority>,
    /// What is wrong with the newest files, which are not in use.
    problem: parking_lot::Mutex<Option<SourceError>>,
    changed: watch::Sender<()>,
}

impl Ca {
    pub fn new(files: &Files, trust_domain: &str, life: Duration) -> Result<Self, CaError> {
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            life,
            current: ArcSwap::from_pointee(files.authority()?),
            problem: parking_lot::Mutex::default(),
            changed: watch::Sender::new(()),
        })
    }

    /// Reads a directory as it is now, and makes what is missing.
    pub fn open(directory: &Path, trust_domain: &str, life: Duration) -> Result<Self, CaError> {
        Place::directory(directory, trust_domain, life).map(|(ca, _)| ca)
    }

    pub fn current(&self) -> Arc<Authority> {
        self.current.load_full()
    }

    /// Tells of each change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What is wrong with the newest files, if what was there before them is in use.
    pub fn problem(&self) -> Option<SourceError> {
        self.problem.lock().clone()
    }

    /// Puts files in use, or says why not: then what there was stays.
    pub fn take(&self, files: Result<Files, CaError>) -> Result<(), CaError> {
        let taken = files.and_then(|files| {
            let fresh = files.authority()?;
            let signed_by = self.current.load().roots.first().cloned();
            if signed_by.is_some_and(|root| !fresh.roots.contains(&root)) {
                let problem = "does not hold the root that has signed until now, whose certificates are in use; keep it there until everybody has renewed";
                return Err(error_at(&files.bundle.place, problem));
            }
            Ok(fresh)
        });
        *self.problem.lock() = taken.as_ref().err().map(as_source_error);
        self.current.store(Arc::new(taken?));
        self.changed.send_replace(());
        Ok(())
    }

    /// All trusted roots (PEM), for who has yet to be told them.
    pub fn trust_pem(&self) -> String {
        pem_of(&self.current.load().roots)
    }

    pub fn bundle(&self) -> wire::TrustBundle {
        let current = self.current.load();
        wire::TrustBundle {
            trust_domain: self.trust_domain.clone(),
            roots: current.roots.iter().map(|root| root.to_vec()).collect(),
            revocations: current
                .revocations
                .lists
                .iter()
                .map(|list| list.to_vec())
                .collect(),
            signing_root: current
                .roots
                .first()
                .map_or_else(Vec::new, |root| fingerprint(root)),
        }
    }

    /// Signs a key (PKCS#10, DER) for a proven workload; the chain, leaf first.
    pub fn sign(
        &self,
        csr: &[u8],
        identity: &SpiffeId,
        workload: &str,
    ) -> Result<Vec<Vec<u8>>, CaError> {
        if csr.len() > CSR_BYTES_MAX {
            return Err(CaError::TooLarge);
        }
        let csr = CertificateSigningRequestDer::from(csr);
        // Checks that the request is signed by its own key.
        let request = CertificateSigningRequestParams::from_der(&csr).map_err(CaError::Request)?;
        for name in &request.params.subject_alt_names {
            if let SanType::URI(asked) = name
                && asked.as_str() != identity.as_str()
            {
                return Err(CaError::Identity {
                    asked: asked.as_str().to_owned(),
                    proven: identity.to_string(),
                });
            }
        }
        self.sign_key(&request.public_key, identity, workload)
    }

    /// Signs a public key.
    pub fn sign_key(
        &self,
        key: &impl PublicKeyData,
        identity: &SpiffeId,
        workload: &str,
    ) -> Result<Vec<Vec<u8>>, CaError> {
        let uri = identity.as_str().try_into().map_err(CaError::Sign)?;
        let name = workload_name(workload).try_into().map_err(CaError::Sign)?;
        let names = vec![SanType::URI(uri), SanType::DnsName(name)];
        let usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.sign_names(key, names, usages)
    }

    /// Signs a public key of a server of ours that is no workload: it is known by these
    /// DNS names, and has no identity.
    pub fn sign_server(
        &self,
        key: &impl PublicKeyData,
        names: &[&str],
    ) -> Result<Vec<Vec<u8>>, CaError> {
        let names = names.iter().map(|name| (*name).try_into());
        let names: Result<Vec<_>, _> = names.map(|name| name.map(SanType::DnsName)).collect();
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign_names(key, names.map_err(CaError::Sign)?, usages)
    }

    fn sign_names(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<Vec<Vec<u8>>, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        let serial: [u8; 16] = rand::rng().random();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let now = SystemTime::now();
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + self.life).into();
        params.use_authority_key_identifier_extension = true;
        let current = self.current.load();
        let leaf = params
            .signed_by(key, &current.issuer)
            .map_err(CaError::Sign)?;
        let mut chain = vec![leaf.der().to_vec()];
        chain.extend(current.chain.iter().map(|link| link.to_vec()));
        Ok(chain)
    }
}

/// Certificates as PEM.
pub fn pem_of(certificates: &[CertificateDer<'_>]) -> String {
    // Pods carry this text, and are read by people.
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let all = certificates.iter();
    all.map(|of| pem::encode_config(&pem::Pem::new("CERTIFICATE", of.to_vec()), lines))
        .collect()
}

/// SHA-256 of a certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate)
        .as_ref()
        .to_vec()
}

/// SHA-256 of each certificate of a PEM file, as `/status` has it.
pub fn fingerprints(path: &Path) -> Result<Vec<String>, CaError> {
    let (folder, name) = (path.parent(), path.file_name());
    let name = name.unwrap_or_default().to_string_lossy();
    let file = directory::read(folder.unwrap_or(Path::new("")), &name)?;
    let prints = fingerprints_of(&file)?;
    match prints.is_empty() {
        true => Err(file_error(path, "holds no certificate (PEM)")),
        false => Ok(prints),
    }
}

/// The same of what was read already.
pub fn fingerprints_of(file: &files::File) -> Result<Vec<String>, CaError> {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let all = file.certificates()?;
    Ok(all.iter().map(|one| hex(fingerprint(one))).collect())
}

/// Whose a certificate is, and when it ends (seconds since the Unix epoch).
pub fn subject_and_end(certificate: &CertificateDer<'_>) -> (String, u64) {
    match x509_parser::parse_x509_certificate(certificate) {
        Ok((_, parsed)) => {
            let end = parsed.validity().not_after.timestamp();
            (
                parsed.subject().to_string(),
                u64::try_from(end).unwrap_or(0),
            )
        }
        Err(_) => Default::default(),
    }
}

fn as_source_error(error: &CaError) -> SourceError {
    let (file, message) = match error {
        CaError::File { place, problem } => (place.clone(), problem.clone()),
        other => (String::new(), other.to_string()),
    };
    SourceError {
        file,
        message,
        ..SourceError::default()
    }
}

/// Replaces a file whole.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    // Not the process's number: in containers that share a volume it is always 1.
    let fresh = path.with_extension(format!("new{:x}", rand::rng().random::<u64>()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&fresh)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&fresh, path));
    written.map_err(|error| file_error(path, error))
}

#[cfg(test)]
mod tests {
    use super::directory::Directory;
    use super::*;

    fn open(directory: &Path) -> Ca {
        Ca::open(directory, "td", Duration::from_secs(60)).unwrap()
    }

    /// A request to sign, for this identity.
    fn request(asked: &str) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(asked.try_into().unwrap())];
        let csr = params.serialize_request(&KeyPair::generate().unwrap());
        csr.unwrap().der().to_vec()
    }

    #[test]
    fn controllers_that_start_at_once_have_one_authority() {
        let folder = tempfile::tempdir().unwrap();
        let roots = std::thread::scope(|scope| {
            let started: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| open(folder.path()).bundle().signing_root))
                .collect();
            let roots = started.into_iter().map(|one| one.join().unwrap());
            roots.collect::<std::collections::BTreeSet<_>>()
        });
        assert_eq!(roots.len(), 1);
    }

    /// Whoever judges it by a clock that is an hour off, either way.
    #[test]
    fn a_certificate_holds_for_who_is_an_hour_behind_or_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(folder.path(), "td", Duration::from_secs(24 * 3600)).unwrap();
        let identity = SpiffeId::new("td", "shop", "web").unwrap();
        let chain = ca.sign(&request(identity.as_str()), &identity, "uid-1");
        let roots = ca.current().roots.clone();
        let hour = x509_parser::time::ASN1Time::now();
        for certificate in chain
            .unwrap()
            .iter()
            .map(Vec::as_slice)
            .chain(roots.iter().map(|of| &of[..]))
        {
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
            for off in [-3600, 0, 3600] {
                let at = x509_parser::time::ASN1Time::from_timestamp(hour.timestamp() + off);
                assert!(parsed.validity().is_valid_at(at.unwrap()), "{off}");
            }
        }
    }

    #[test]
    fn nobody_gets_another_s_identity() {
        let folder = tempfile::tempdir().unwrap();
        let ca = open(folder.path());
        let identity = SpiffeId::new("td", "shop", "web").unwrap();
        let sign = |csr: &[u8]| ca.sign(csr, &identity, "uid-1");
        assert!(sign(&request(identity.as_str())).is_ok());
        let refused = sign(&request("spiffe://td/ns/shop/sa/payment")).unwrap_err();
        assert!(refused.to_string().contains("sa/payment"), "{refused}");
        assert!(refused.to_string().contains("sa/web"), "{refused}");
        assert!(matches!(sign(&[0; 40]), Err(CaError::Request(_))));
        assert!(matches!(
            sign(&[0; CSR_BYTES_MAX + 1]),
            Err(CaError::TooLarge)
        ));
    }

    #[test]
    fn a_root_is_changed_in_steps_and_not_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let ca = open(folder.path());
        drop(open(other.path()));
        let directory = Directory::open(folder.path(), "td").unwrap();
        let take = || {
            ca.take(directory.files())
                .map_err(|error| error.to_string())
        };
        let old = ca.bundle().signing_root;
        let copy = |name: &str| {
            std::fs::copy(other.path().join(name), folder.path().join(name)).unwrap();
        };
        // One file of the pair, then the other: nothing is signed in between.
        copy("ca.crt");
        let half = take().unwrap_err();
        assert!(half.contains("ca.key"), "{half}");
        assert!(ca.problem().is_some_and(|of| of.file.ends_with("ca.key")));
        copy("ca.key");
        let abrupt = take().unwrap_err();
        assert!(abrupt.contains("bundle.pem"), "{abrupt}");
        assert_eq!(ca.bundle().signing_root, old, "what there was stays");
        let trusted = std::fs::read(folder.path().join("trust.pem")).unwrap();
        std::fs::write(folder.path().join("bundle.pem"), trusted).unwrap();
        take().unwrap();
        assert_eq!(ca.problem(), None);
        assert_ne!(ca.bundle().signing_root, old);
        assert_eq!(ca.bundle().roots.len(), 2);
        std::fs::remove_file(folder.path().join("bundle.pem")).unwrap();
        take().unwrap();
        assert_eq!(ca.bundle().roots.len(), 1);
    }
}

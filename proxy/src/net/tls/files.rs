//! PEM files on disk: reading them, knowing when they changed, and saying
//! what is wrong with them and what to do.
//!
//! Decides nothing about TLS. **Invariant:** a [`Stamp`] is taken before the
//! file is read, so a write that races with the read is seen at the next look.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weft_config::snapshot::Certificate;

use super::{expiry, provider};

/// A PEM file larger than this is not one of ours (it guards against a path
/// that names a device or a log).
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What is wrong with a file that the configuration names.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {}: {problem}", file.display())]
pub struct FileError {
    /// Field below the object, e.g. `tls.certificates[0].privateKey`.
    pub field: String,
    pub file: PathBuf,
    /// With what to do about it.
    pub problem: String,
}

impl FileError {
    fn new(field: &str, file: &Path, problem: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            file: file.to_owned(),
            problem: problem.into(),
        }
    }
}

/// Identity of a file's contents, cheap to look at. Follows symlinks, so that
/// a ConfigMap's or Secret's atomic swap is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Option<(u64, u64, i64, i64, u64)>);

impl Stamp {
    pub fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|meta| {
            (
                meta.dev(),
                meta.ino(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.len(),
            )
        }))
    }
}

/// The stamps of several files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamps(Vec<(PathBuf, Stamp)>);

impl Stamps {
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        Self(
            paths
                .into_iter()
                .map(|path| (path.to_owned(), Stamp::of(path)))
                .collect(),
        )
    }

    pub fn is_current(&self) -> bool {
        self.0.iter().all(|(path, stamp)| Stamp::of(path) == *stamp)
    }
}

/// When a certificate in use ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub file: PathBuf,
    /// Seconds since the Unix epoch.
    pub not_after: i64,
}

fn read(field: &str, path: &Path) -> Result<Vec<u8>, FileError> {
    let advice = |error: std::io::Error| {
        let what = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "no such file; check the path (relative paths start at the working directory)"
                    .to_owned()
            }
            std::io::ErrorKind::PermissionDenied => {
                "permission denied; make it readable for the user that runs weft-proxy".to_owned()
            }
            _ => error.to_string(),
        };
        FileError::new(field, path, what)
    };
    let meta = std::fs::metadata(path).map_err(advice)?;
    if !meta.is_file() || meta.len() > PEM_BYTES_MAX {
        return Err(FileError::new(
            field,
            path,
            "not a regular file of at most 4 MiB; give the path of a PEM file",
        ));
    }
    std::fs::read(path).map_err(advice)
}

fn parse_certificates(
    field: &str,
    path: &Path,
    data: &[u8],
) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let chain = CertificateDer::pem_slice_iter(data)
        .collect::<Result<Vec<_>, pem::Error>>()
        .map_err(|error| FileError::new(field, path, format!("not valid PEM: {error}")))?;
    if chain.is_empty() {
        return Err(FileError::new(
            field,
            path,
            "has no certificate; expected PEM with `-----BEGIN CERTIFICATE-----`",
        ));
    }
    Ok(chain)
}

/// Reads a certificate chain with its key, and checks that they belong
/// together.
pub fn load_certificate(
    field: &str,
    config: &Certificate,
) -> Result<(CertifiedKey, Expiry), FileError> {
    let (chain_field, key_field) = (
        format!("{field}.certificate"),
        format!("{field}.privateKey"),
    );
    let chain_path = &config.certificate;
    let chain = parse_certificates(&chain_field, chain_path, &read(&chain_field, chain_path)?)?;
    let key_path = &config.private_key;
    let key = PrivateKeyDer::from_pem_slice(&read(&key_field, key_path)?).map_err(|error| {
        let what = match error {
            pem::Error::NoItemsFound => {
                "has no private key; expected PEM with PKCS#8, PKCS#1 or SEC1 (an encrypted key \
                 must be decrypted first)"
                    .to_owned()
            }
            other => format!("not valid PEM: {other}"),
        };
        FileError::new(&key_field, key_path, what)
    })?;
    let key = provider()
        .key_provider
        .load_private_key(key)
        .map_err(|error| {
            FileError::new(
                &key_field,
                key_path,
                format!("unusable private key: {error}"),
            )
        })?;
    let not_after = chain.first().and_then(|leaf| expiry::not_after(leaf));
    let Some(not_after) = not_after else {
        return Err(FileError::new(
            &chain_field,
            chain_path,
            "the first certificate is not valid X.509",
        ));
    };
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(_) => {
            return Err(FileError::new(
                &key_field,
                key_path,
                format!(
                    "is not the key of {}; the first certificate in that file must be the \
                     server's own",
                    chain_path.display()
                ),
            ));
        }
    }
    let file = chain_path.clone();
    Ok((certified, Expiry { file, not_after }))
}

/// Reads a file of CA certificates.
pub fn load_roots(field: &str, path: &Path) -> Result<Arc<RootCertStore>, FileError> {
    let mut store = RootCertStore::empty();
    for certificate in parse_certificates(field, path, &read(field, path)?)? {
        store.add(certificate).map_err(|error| {
            FileError::new(field, path, format!("unusable CA certificate: {error}"))
        })?;
    }
    Ok(Arc::new(store))
}

/// The system's roots, read once: they change with the image, not under a
/// running process.
pub fn system_roots(field: &str) -> Result<Arc<RootCertStore>, FileError> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let store = SYSTEM.get_or_init(|| {
        let mut store = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a system root certificate could not be read");
        }
        store.add_parsable_certificates(found.certs);
        Arc::new(store)
    });
    if store.is_empty() {
        return Err(FileError::new(
            field,
            Path::new("(system roots)"),
            "no root certificate found on this system; install ca-certificates, set \
             SSL_CERT_FILE, or name a CA file in `tls.ca`",
        ));
    }
    Ok(Arc::clone(store))
}

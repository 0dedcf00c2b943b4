//! This workload's certificate with the trust that it was given, and their
//! place on disk over a restart.
//!
//! **Invariant:** the files are replaced whole and readable by their owner only.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use weft_config::spiffe::SpiffeId;
use weft_config::wire;

use crate::net::tls::expiry;
use crate::net::tls::mesh::{Svid, Trust};

const FILE: &str = "credentials";
/// A certificate that ends sooner than this is not worth restoring.
const REMAINING_MIN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Credentials {
    pub svid: Svid,
    pub trust: Trust,
    /// The root that signed the certificate (SHA-256).
    pub signing_root: Vec<u8>,
    pub expires: SystemTime,
}

/// What is kept on disk: a `SignResponse`, and the key.
#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(message, optional, tag = "1")]
    response: Option<wire::SignResponse>,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

impl Credentials {
    /// `key`: PKCS#8, DER.
    pub fn new(
        identity: &SpiffeId,
        response: &wire::SignResponse,
        key: Vec<u8>,
    ) -> Result<Self, String> {
        let bundle = response
            .trust_bundle
            .as_ref()
            .ok_or("the controller sent no trust bundle")?;
        let chain: Vec<CertificateDer<'static>> =
            response.chain.iter().cloned().map(Into::into).collect();
        let leaf = chain.first().ok_or("the controller sent no certificate")?;
        let not_after = expiry::not_after(leaf).ok_or("the certificate cannot be read")?;
        let expires = UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).unwrap_or(0));
        Ok(Self {
            svid: Svid {
                identity: identity.clone(),
                chain,
                key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
            },
            trust: trust(bundle),
            signing_root: bundle.signing_root.clone(),
            expires,
        })
    }

    pub fn remaining(&self) -> Duration {
        self.expires
            .duration_since(SystemTime::now())
            .unwrap_or_default()
    }
}

pub fn trust(bundle: &wire::TrustBundle) -> Trust {
    Trust {
        domain: bundle.trust_domain.clone(),
        roots: bundle.roots.iter().cloned().map(Into::into).collect(),
        revocations: bundle.revocations.iter().cloned().map(Into::into).collect(),
    }
}

/// Keeps them for the next start.
pub fn store(directory: &Path, response: &wire::SignResponse, key: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let stored = Stored {
        response: Some(response.clone()),
        key: key.to_vec(),
    };
    let fresh = directory.join(format!(".{FILE}.{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&stored.encode_to_vec())?;
    file.sync_all()?;
    std::fs::rename(fresh, directory.join(FILE))
}

/// What an earlier process kept, if it is still good.
pub fn restore(directory: &Path, identity: &SpiffeId) -> Option<Credentials> {
    let bytes = std::fs::read(directory.join(FILE)).ok()?;
    let stored = Stored::decode(bytes.as_slice()).ok()?;
    let restored = Credentials::new(identity, &stored.response?, stored.key).ok()?;
    let found = crate::net::tls::mesh::peer_of(Some(&restored.svid.chain)).ok()?;
    (found.identity == *identity && restored.remaining() > REMAINING_MIN).then_some(restored)
}

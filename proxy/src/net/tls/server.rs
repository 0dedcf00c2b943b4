//! What a TLS listener presents: certificates by server name, client
//! verification, ALPN and resumption.
//!
//! **Invariant:** session tickets outlive a certificate change but not a
//! change of the client CA: a client that is no longer trusted cannot resume.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use weft_config::snapshot;

use super::files::{Expiry, FileError, Stamps, load_certificate, load_roots};
use super::provider;

/// A listener's TLS, reloaded as its files change.
#[derive(Debug)]
pub struct ServerTls {
    config: snapshot::ServerTls,
    alpn: Vec<Vec<u8>>,
    current: ArcSwap<Loaded>,
    stamps: Mutex<Stamps>,
}

#[derive(Debug)]
struct Loaded {
    acceptor: Arc<rustls::ServerConfig>,
    expiries: Vec<Expiry>,
    client_roots: Option<Arc<RootCertStore>>,
}

impl ServerTls {
    /// Reads the files. `http` offers h2 and http/1.1 by ALPN.
    pub fn open(config: &snapshot::ServerTls, http: bool) -> Result<Self, Vec<FileError>> {
        let alpn = if http {
            vec![b"h2".to_vec(), b"http/1.1".to_vec()]
        } else {
            Vec::new()
        };
        let stamps = Stamps::of(files(config));
        let loaded = load(config, &alpn, None)?;
        Ok(Self {
            config: config.clone(),
            alpn,
            current: ArcSwap::from_pointee(loaded),
            stamps: Mutex::new(stamps),
        })
    }

    /// Whether this was made from the same settings (the files may differ).
    pub fn is_for(&self, config: &snapshot::ServerTls, http: bool) -> bool {
        self.config == *config && self.alpn.is_empty() != http
    }

    /// What to accept the next connection with.
    pub fn acceptor(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.current.load().acceptor)
    }

    pub fn expiries(&self) -> Vec<Expiry> {
        self.current.load().expiries.clone()
    }

    /// Looks at the files and reads them again if they changed; `Ok(true)`
    /// when new ones are in use. On an error the old ones stay.
    pub fn refresh(&self) -> Result<bool, Vec<FileError>> {
        let mut stamps = self.stamps.lock();
        if stamps.is_current() {
            return Ok(false);
        }
        *stamps = Stamps::of(files(&self.config));
        let loaded = load(&self.config, &self.alpn, Some(&self.current.load()))?;
        self.current.store(Arc::new(loaded));
        Ok(true)
    }
}

fn files(config: &snapshot::ServerTls) -> impl Iterator<Item = &Path> {
    config
        .certificates
        .iter()
        .flat_map(|pair| [pair.certificate.as_path(), pair.private_key.as_path()])
        .chain(config.client_ca.as_deref())
}

fn load(
    config: &snapshot::ServerTls,
    alpn: &[Vec<u8>],
    previous: Option<&Loaded>,
) -> Result<Loaded, Vec<FileError>> {
    let mut errors = Vec::new();
    let mut keys = Vec::new();
    let mut expiries = Vec::new();
    for (index, pair) in config.certificates.iter().enumerate() {
        match load_certificate(&format!("tls.certificates[{index}]"), pair) {
            Ok((key, expiry)) => {
                keys.push(Arc::new(key));
                expiries.push(expiry);
            }
            Err(error) => errors.push(error),
        }
    }
    let client_roots =
        config
            .client_ca
            .as_ref()
            .and_then(|path| match load_roots("tls.clientCa", path) {
                Ok(roots) => Some(roots),
                Err(error) => {
                    errors.push(error);
                    None
                }
            });
    if !errors.is_empty() {
        return Err(errors);
    }
    let acceptor = build(config, alpn, keys, client_roots.clone(), previous);
    Ok(Loaded {
        acceptor: Arc::new(acceptor.map_err(|error| vec![whole_error(config, &error)])?),
        expiries,
        client_roots,
    })
}

fn whole_error(config: &snapshot::ServerTls, error: &dyn std::fmt::Display) -> FileError {
    let file = config.client_ca.clone().or_else(|| {
        let first = config.certificates.first()?;
        Some(first.certificate.clone())
    });
    FileError {
        field: "tls".to_owned(),
        file: file.unwrap_or_default(),
        problem: error.to_string(),
    }
}

fn build(
    config: &snapshot::ServerTls,
    alpn: &[Vec<u8>],
    keys: Vec<Arc<CertifiedKey>>,
    client_roots: Option<Arc<RootCertStore>>,
    previous: Option<&Loaded>,
) -> Result<rustls::ServerConfig, Box<dyn std::error::Error>> {
    debug_assert_eq!(config.client_ca.is_some(), client_roots.is_some());
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?;
    let builder = match &client_roots {
        Some(roots) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider()).build()?,
        ),
        None => builder.with_no_client_auth(),
    };
    let mut acceptor = builder.with_cert_resolver(Arc::new(ByServerName::new(keys)));
    acceptor.alpn_protocols = alpn.to_vec();
    acceptor.ticketer = ticketer(client_roots.as_deref(), previous)?;
    Ok(acceptor)
}

fn ticketer(
    client_roots: Option<&RootCertStore>,
    previous: Option<&Loaded>,
) -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    match previous {
        Some(previous) if same_roots(previous.client_roots.as_deref(), client_roots) => {
            Ok(Arc::clone(&previous.acceptor.ticketer))
        }
        _ => rustls::crypto::aws_lc_rs::Ticketer::new(),
    }
}

fn same_roots(left: Option<&RootCertStore>, right: Option<&RootCertStore>) -> bool {
    match (left, right) {
        (None, None) => true,
        (Some(left), Some(right)) => left.roots == right.roots,
        _ => false,
    }
}

/// Chooses a certificate by the names that it carries.
#[derive(Debug)]
struct ByServerName {
    /// Exact names, and wildcards as `*.example.com`.
    names: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl ByServerName {
    fn new(keys: Vec<Arc<CertifiedKey>>) -> Self {
        let mut names: HashMap<Box<str>, Vec<Arc<CertifiedKey>>> = HashMap::new();
        for key in &keys {
            let Some(leaf) = key.cert.first() else {
                continue;
            };
            let Ok(parsed) = webpki::EndEntityCert::try_from(leaf) else {
                continue;
            };
            for name in parsed.valid_dns_names() {
                names
                    .entry(name.to_ascii_lowercase().into())
                    .or_default()
                    .push(Arc::clone(key));
            }
        }
        Self {
            names,
            default: keys,
        }
    }

    fn candidates(&self, server_name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let first = self.default.get(..1).unwrap_or_default();
        let Some(name) = server_name else {
            return first;
        };
        let name = name.to_ascii_lowercase();
        if let Some(keys) = self.names.get(name.as_str()) {
            return keys;
        }
        name.split_once('.')
            .and_then(|(_, parent)| self.names.get(format!("*.{parent}").as_str()))
            .map_or(first, Vec::as_slice)
    }
}

impl ResolvesServerCert for ByServerName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys = self.candidates(hello.server_name());
        // Several keys of one name: an RSA one beside an ECDSA one.
        keys.iter()
            .find(|key| key.key.choose_scheme(hello.signature_schemes()).is_some())
            .or(keys.first())
            .cloned()
    }
}

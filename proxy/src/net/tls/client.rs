//! How a service's TLS connections are made: whom we trust, who we are, which
//! name is asked for, which protocols are offered.
//!
//! **Invariant:** a change of the roots or of our certificate starts with an
//! empty session cache, so nothing is resumed under the old trust.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use weft_config::snapshot::{self, ServiceProtocol};

use super::files::{Expiry, FileError, Stamps, load_certificate, load_roots, system_roots};
use super::provider;

/// Server names whose sessions are remembered, per service.
const SESSIONS_MAX: usize = 128;

/// Which application protocols are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// h2 and http/1.1: the server chooses.
    Http,
    Http1,
    Http2,
    None,
}

impl Alpn {
    const ALL: [Self; 4] = [Self::Http, Self::Http1, Self::Http2, Self::None];

    /// What a service of this protocol offers; `mirror` asks for one version
    /// at each use.
    pub fn of(protocol: ServiceProtocol) -> Self {
        match protocol {
            ServiceProtocol::Http | ServiceProtocol::Mirror => Self::Http,
            ServiceProtocol::Http1 => Self::Http1,
            ServiceProtocol::Http2 => Self::Http2,
            ServiceProtocol::Tcp => Self::None,
        }
    }

    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
            Self::None => Vec::new(),
        }
    }
}

/// A service's TLS, reloaded as its files change.
#[derive(Debug)]
pub struct ClientTls {
    settings: snapshot::ClientTls,
    server_name: Option<ServerName<'static>>,
    current: ArcSwap<Loaded>,
    stamps: Mutex<Stamps>,
}

#[derive(Debug)]
struct Loaded {
    /// In the order of [`Alpn::ALL`].
    configs: [Arc<ClientConfig>; 4],
    expiry: Option<Expiry>,
}

impl ClientTls {
    /// Reads the files.
    pub fn open(settings: &snapshot::ClientTls) -> Result<Self, Vec<FileError>> {
        let stamps = Stamps::of(files(settings));
        let server_name = match &settings.server_name {
            None => None,
            Some(name) => Some(ServerName::try_from(name.to_string()).map_err(|_| {
                vec![FileError {
                    field: "tls.serverName".to_owned(),
                    file: name.as_ref().into(),
                    problem: "not a DNS name or IP address".to_owned(),
                }]
            })?),
        };
        let loaded = load(settings)?;
        if settings.insecure_skip_verify {
            tracing::warn!(
                "tls.insecureSkipVerify is set: upstream certificates are NOT verified and \
                 anybody on the path can read and change the traffic; for tests only"
            );
        }
        Ok(Self {
            settings: settings.clone(),
            server_name,
            current: ArcSwap::from_pointee(loaded),
            stamps: Mutex::new(stamps),
        })
    }

    /// Whether this was made from the same settings (the files may differ).
    pub fn is_for(&self, settings: &snapshot::ClientTls) -> bool {
        self.settings == *settings
    }

    /// What to connect with.
    pub fn config(&self, alpn: Alpn) -> Arc<ClientConfig> {
        let loaded = self.current.load();
        let [http, http1, http2, none] = &loaded.configs;
        Arc::clone(match alpn {
            Alpn::Http => http,
            Alpn::Http1 => http1,
            Alpn::Http2 => http2,
            Alpn::None => none,
        })
    }

    /// The name that is sent as SNI and verified. `request_host` is the
    /// request's authority (a port and an IPv6 literal's brackets are cut off).
    pub fn server_name(
        &self,
        request_host: &str,
    ) -> Result<ServerName<'static>, InvalidDnsNameError> {
        match &self.server_name {
            Some(name) => Ok(name.clone()),
            None => ServerName::try_from(host_only(request_host).to_owned()),
        }
    }

    /// Whether each connection's name depends on the request: connections may
    /// then only be shared between requests of the same host.
    pub fn name_follows_request(&self) -> bool {
        self.server_name.is_none()
    }

    pub fn expiry(&self) -> Option<Expiry> {
        self.current.load().expiry.clone()
    }

    /// Looks at the files and reads them again if they changed; `Ok(true)`
    /// when new ones are in use. On an error the old ones stay.
    pub fn refresh(&self) -> Result<bool, Vec<FileError>> {
        let mut stamps = self.stamps.lock();
        if stamps.is_current() {
            return Ok(false);
        }
        *stamps = Stamps::of(files(&self.settings));
        self.current.store(Arc::new(load(&self.settings)?));
        Ok(true)
    }
}

fn host_only(authority: &str) -> &str {
    if let Some((literal, _)) = authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        return literal;
    }
    match authority.rsplit_once(':') {
        // More than one colon without brackets is a bare IPv6 address.
        Some((host, port)) if !host.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            host
        }
        _ => authority,
    }
}

fn files(settings: &snapshot::ClientTls) -> impl Iterator<Item = &Path> {
    settings
        .client_certificate
        .iter()
        .flat_map(|pair| [pair.certificate.as_path(), pair.private_key.as_path()])
        .chain(settings.ca.as_deref())
}

fn load(settings: &snapshot::ClientTls) -> Result<Loaded, Vec<FileError>> {
    let mut errors = Vec::new();
    let mut keep = |error| errors.push(error);
    let roots = match (&settings.ca, settings.insecure_skip_verify) {
        (Some(path), _) => load_roots("tls.ca", path).map_err(&mut keep).ok(),
        (None, true) => Some(Arc::new(rustls::RootCertStore::empty())),
        (None, false) => system_roots("tls.ca").map_err(&mut keep).ok(),
    };
    let own = settings.client_certificate.as_ref().and_then(|pair| {
        load_certificate("tls.clientCertificate", pair)
            .map_err(&mut keep)
            .ok()
    });
    let Some(roots) = roots.filter(|_| errors.is_empty()) else {
        return Err(errors);
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            vec![FileError {
                field: "tls".to_owned(),
                file: settings.ca.clone().unwrap_or_default(),
                problem: error.to_string(),
            }]
        })?;
    let builder = if settings.insecure_skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny))
    } else {
        builder.with_root_certificates(roots)
    };
    let (mut config, expiry) = match own {
        Some((key, expiry)) => (
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key))),
            Some(expiry),
        ),
        None => (builder.with_no_client_auth(), None),
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    let configs = Alpn::ALL.map(|alpn| {
        let mut config = config.clone();
        config.alpn_protocols = alpn.protocols();
        Arc::new(config)
    });
    Ok(Loaded { configs, expiry })
}

/// For who asks without verifying, as a kubelet probes; no protocol is offered.
pub fn unverified() -> Result<Arc<ClientConfig>, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// `insecureSkipVerify`: any certificate will do, but the handshake must still
/// be signed by its key.
#[derive(Debug)]
struct AcceptAny;

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::host_only;

    #[test]
    fn the_host_of_an_authority() {
        for (authority, want) in [
            ("example.com", "example.com"),
            ("example.com:443", "example.com"),
            ("[::1]:443", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("10.0.0.1:8080", "10.0.0.1"),
        ] {
            assert_eq!(host_only(authority), want, "{authority}");
        }
    }
}

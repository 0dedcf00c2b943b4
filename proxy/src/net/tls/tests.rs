//! TLS with real files and real handshakes over an in-memory pipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::ServerName;
use weft_config::snapshot;

use super::{Alpn, ClientTls, ServerTls};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes `NAME.pem` and `NAME.key`.
fn issue(
    dir: &Dir,
    ca: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    hosts: &[&str],
) -> snapshot::Certificate {
    let key = KeyPair::generate().unwrap();
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let certificate = CertificateParams::new(hosts)
        .unwrap()
        .signed_by(&key, ca)
        .unwrap();
    let pair = snapshot::Certificate {
        certificate: dir.path(&format!("{name}.pem")),
        private_key: dir.path(&format!("{name}.key")),
    };
    std::fs::write(&pair.certificate, certificate.pem()).unwrap();
    std::fs::write(&pair.private_key, key.serialize_pem()).unwrap();
    pair
}

fn client_settings(ca: &Path) -> snapshot::ClientTls {
    snapshot::ClientTls {
        server_name: None,
        ca: Some(ca.to_owned()),
        client_certificate: None,
        insecure_skip_verify: false,
    }
}

/// One handshake and one byte each way; what ALPN chose and the leaf shown.
async fn handshake(
    server: &ServerTls,
    client: &ClientTls,
    host: &str,
    alpn: Alpn,
) -> std::io::Result<(Option<Vec<u8>>, Vec<u8>, bool)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(16 * 1024);
    let acceptor = tokio_rustls::TlsAcceptor::from(server.acceptor());
    let connector = tokio_rustls::TlsConnector::from(client.config(alpn));
    let name: ServerName<'static> = client.server_name(host).unwrap();
    let serve = async {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"x").await?;
        stream.shutdown().await
    };
    let connect = async {
        let mut stream = connector.connect(name, near).await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        let session = stream.get_ref().1;
        let leaf = session.peer_certificates().unwrap()[0].to_vec();
        let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        Ok((session.alpn_protocol().map(<[u8]>::to_vec), leaf, resumed))
    };
    let (_, result) = tokio::join!(serve, connect);
    result
}

#[tokio::test]
async fn certificates_by_name_alpn_and_resumption() {
    let dir = Dir::new("names");
    let ca = authority();
    std::fs::write(dir.path("ca.pem"), ca.pem()).unwrap();
    let config = snapshot::ServerTls {
        certificates: vec![
            issue(&dir, &ca, "first", &["first.example"]),
            issue(&dir, &ca, "wild", &["*.wild.example"]),
            issue(&dir, &ca, "ip", &["127.0.0.1"]),
        ],
        client_ca: None,
    };
    let server = ServerTls::open(&config, true).unwrap();
    assert!(server.is_for(&config, true) && !server.is_for(&config, false));
    assert!(server.expiries()[0].not_after > 0);
    let client = ClientTls::open(&client_settings(&dir.path("ca.pem"))).unwrap();
    let (alpn, first, resumed) = handshake(&server, &client, "first.example:443", Alpn::Http)
        .await
        .unwrap();
    assert_eq!(alpn.as_deref(), Some(&b"h2"[..]));
    assert!(!resumed);
    let (alpn, again, resumed) = handshake(&server, &client, "first.example", Alpn::Http1)
        .await
        .unwrap();
    assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
    assert!(resumed, "tickets work");
    assert_eq!(first, again);
    let (alpn, wild, _) = handshake(&server, &client, "a.wild.example", Alpn::None)
        .await
        .unwrap();
    assert_eq!(alpn, None);
    assert_ne!(first, wild);
    // No SNI for an address: the first certificate, which is not for it.
    assert!(
        handshake(&server, &client, "127.0.0.1", Alpn::Http)
            .await
            .is_err()
    );
    assert!(
        handshake(&server, &client, "other.example", Alpn::Http)
            .await
            .is_err()
    );
    let insecure = snapshot::ClientTls {
        insecure_skip_verify: true,
        ca: None,
        ..client_settings(&dir.path("ca.pem"))
    };
    let insecure = ClientTls::open(&insecure).unwrap();
    assert!(
        handshake(&server, &insecure, "other.example", Alpn::Http)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_client_certificate_is_asked_for() {
    let dir = Dir::new("mutual");
    let ca = authority();
    std::fs::write(dir.path("ca.pem"), ca.pem()).unwrap();
    let config = snapshot::ServerTls {
        certificates: vec![issue(&dir, &ca, "server", &["server"])],
        client_ca: Some(dir.path("ca.pem")),
    };
    let server = ServerTls::open(&config, false).unwrap();
    let anonymous = client_settings(&dir.path("ca.pem"));
    let named = snapshot::ClientTls {
        client_certificate: Some(issue(&dir, &ca, "client", &["client"])),
        ..anonymous.clone()
    };
    let anonymous = ClientTls::open(&anonymous).unwrap();
    assert!(
        handshake(&server, &anonymous, "server", Alpn::None)
            .await
            .is_err()
    );
    let named = ClientTls::open(&named).unwrap();
    assert!(named.expiry().is_some());
    handshake(&server, &named, "server", Alpn::None)
        .await
        .unwrap();
}

#[tokio::test]
async fn files_are_reloaded_and_a_bad_one_changes_nothing() {
    let dir = Dir::new("reload");
    let ca = authority();
    std::fs::write(dir.path("ca.pem"), ca.pem()).unwrap();
    let config = snapshot::ServerTls {
        certificates: vec![issue(&dir, &ca, "server", &["server"])],
        client_ca: None,
    };
    let server = Arc::new(ServerTls::open(&config, false).unwrap());
    let client = ClientTls::open(&client_settings(&dir.path("ca.pem"))).unwrap();
    let (_, before, _) = handshake(&server, &client, "server", Alpn::None)
        .await
        .unwrap();
    assert!(!server.refresh().unwrap());
    std::fs::write(dir.path("server.key"), "rubbish").unwrap();
    let errors = server.refresh().unwrap_err();
    let text = errors[0].to_string();
    assert!(
        text.contains("tls.certificates[0].privateKey") && text.contains("server.key"),
        "{text}"
    );
    assert!(
        !server.refresh().unwrap(),
        "the same bad file is reported once"
    );
    let (_, same, _) = handshake(&server, &client, "server", Alpn::None)
        .await
        .unwrap();
    assert_eq!(before, same);
    issue(&dir, &ca, "server", &["server"]);
    assert!(server.refresh().unwrap());
    let fresh = ClientTls::open(&client_settings(&dir.path("ca.pem"))).unwrap();
    let (_, after, _) = handshake(&server, &fresh, "server", Alpn::None)
        .await
        .unwrap();
    assert_ne!(before, after);
}

#[test]
fn errors_say_which_file_and_what_to_do() {
    let dir = Dir::new("errors");
    let ca = authority();
    let good = issue(&dir, &ca, "good", &["good"]);
    let other = issue(&dir, &ca, "other", &["other"]);
    std::fs::write(dir.path("empty.pem"), "").unwrap();
    let pair = |certificate: &Path, private_key: &Path| snapshot::Certificate {
        certificate: certificate.to_owned(),
        private_key: private_key.to_owned(),
    };
    let config = snapshot::ServerTls {
        certificates: vec![
            pair(&dir.path("missing.pem"), &good.private_key),
            pair(&dir.path("empty.pem"), &good.private_key),
            pair(&good.certificate, &other.private_key),
            pair(&good.certificate, &good.certificate),
            pair(&dir.0, &good.private_key),
        ],
        client_ca: Some(dir.path("empty.pem")),
    };
    let errors = ServerTls::open(&config, true).unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for (text, want) in texts.iter().zip([
        "tls.certificates[0].certificate",
        "BEGIN CERTIFICATE",
        "is not the key of",
        "has no private key",
        "not a regular file",
        "tls.clientCa",
    ]) {
        assert!(text.contains(want), "{text} lacks {want}");
    }
    assert_eq!(texts.len(), 6);
}

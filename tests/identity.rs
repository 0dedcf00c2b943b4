//! Foreign peers at a sidecar's door: openssl with certificates of every fault. Each is refused with
//! its reason in the metric, in the log, and in the alert that the peer gets (RFC 8446 §6.2).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

use weft_tests::curl::curl;
use weft_tests::eventually;
use weft_tests::mesh::{Mesh, Sidecar};
use weft_tests::process::Program;
use weft_tests::upstream::Upstream;

const REVOKED: u64 = 4711;

/// The mesh's own authority.
fn authority(mesh: &Mesh) -> Issuer<'static, KeyPair> {
    let read = |name| fs::read_to_string(mesh.folder.path().join("ca").join(name));
    let (certificate, key) = (read("ca.crt"), read("ca.key"));
    let key = KeyPair::from_pem(&key.expect("it is there")).expect("it is a key");
    Issuer::from_ca_cert_pem(&certificate.expect("it is there"), key).expect("it is a root")
}

/// Somebody else's.
fn stranger() -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Issuer::new(params, KeyPair::generate().expect("a key can be made"))
}

/// A workload's certificate with a change, as files for openssl: certificate and key.
fn files(
    folder: &Path,
    name: &str,
    issuer: &Issuer<'static, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> [PathBuf; 2] {
    let key = KeyPair::generate().expect("a key can be made");
    let mut params = CertificateParams::default();
    let id = "spiffe://cluster.local/ns/shop/sa/client";
    params.subject_alt_names = vec![
        SanType::URI(id.try_into().expect("ASCII")),
        SanType::DnsName("client-1.workload.weft".try_into().expect("ASCII")),
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
        .extended_key_usages
        .push(ExtendedKeyUsagePurpose::ServerAuth);
    change(&mut params);
    let certificate = params.signed_by(&key, issuer).expect("it can be signed");
    let files = ["crt", "key"].map(|end| folder.join(format!("{name}.{end}")));
    fs::write(&files[0], certificate.pem()).expect("it can be written");
    fs::write(&files[1], key.serialize_pem()).expect("it can be written");
    files
}

/// Sends a request as that client; everything that openssl says.
fn ask(sidecar: &Sidecar, [certificate, key]: &[PathBuf; 2]) -> String {
    let name = format!("p8080.{}.workload.weft", sidecar.uid);
    let mut openssl = Command::new("openssl")
        .args(["s_client", "-connect", &sidecar.inbound().to_string()])
        .args(["-alpn", "weft-http/1.1", "-servername", &name, "-ign_eof"])
        .arg("-cert")
        .arg(certificate)
        .arg("-key")
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl can be run; `make test` installs it");
    let request = b"GET /hello HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    if let Some(mut input) = openssl.stdin.take() {
        // Whoever is refused may have gone before it has sent all.
        let _ = input.write_all(request);
    }
    let output = openssl.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// What is wrong with a certificate: the label of its refusal, its files, the alert.
type Case = (&'static str, [PathBuf; 2], &'static str);

fn faulty(
    folder: &Path,
    [own, foreign]: [&Issuer<'static, KeyPair>; 2],
    revoked: [PathBuf; 2],
) -> [Case; 6] {
    let make = |name: &str, issuer, change: fn(&mut CertificateParams)| {
        files(folder, name, issuer, change)
    };
    [
        ("revoked", revoked, "certificate revoked"),
        (
            "expired",
            make("expired", own, |params| {
                params.not_before = date_time_ymd(2020, 1, 1);
                params.not_after = date_time_ymd(2021, 1, 1);
            }),
            "certificate expired",
        ),
        (
            "not_yet_valid",
            make("early", own, |params| {
                params.not_before = date_time_ymd(2100, 1, 1);
                params.not_after = date_time_ymd(2101, 1, 1);
            }),
            "certificate expired",
        ),
        (
            "unknown_issuer",
            make("foreign", foreign, |_| {}),
            "unknown ca",
        ),
        (
            "wrong_trust_domain",
            make("domain", own, |params| {
                let id = "spiffe://other.example/ns/shop/sa/client";
                params.subject_alt_names[0] = SanType::URI(id.try_into().expect("ASCII"));
            }),
            "certificate unknown",
        ),
        (
            "no_identity",
            make("nobody", own, |params| {
                params.subject_alt_names.remove(0);
            }),
            "certificate unknown",
        ),
    ]
}

#[test]
fn foreign_certificates_are_refused_and_told_why() {
    let mesh = Mesh::start();
    let web = mesh.sidecar("web", &[]);
    let _application = Upstream::echo_at(web.application(), "web");
    mesh.service("web", &[&web]);
    let folder = TempDir::new().expect("a folder can be made");
    let own = authority(&mesh);
    let revoked = files(folder.path(), "revoked", &own, |params| {
        params.serial_number = Some(SerialNumber::from(REVOKED));
    });
    // What is right is let in, or the refusals below say nothing.
    for files in [&files(folder.path(), "right", &own, |_| {}), &revoked] {
        eventually("the right certificate being let in", || {
            ask(&web, files).contains("HTTP/1.1 200").then_some(())
        });
    }
    revoke(&mesh, &own);
    let cases = faulty(folder.path(), [&own, &stranger()], revoked);
    let log = web.proxy.folder.path().join("weft-proxy.log");
    for (reason, files, alert) in &cases {
        let told = format!("reason=\"{reason}\"");
        eventually(reason, || {
            let said = ask(&web, files);
            assert!(
                *reason == "revoked" || !said.contains("HTTP/1.1 200"),
                "{reason}: {said}"
            );
            let log = fs::read_to_string(&log).unwrap_or_default();
            let labels = [("direction", "inbound"), ("result", *reason)];
            let counted = web
                .proxy
                .metrics()
                .sum("weft_mesh_handshakes_total", &labels);
            (said.contains(alert) && log.contains(&told) && counted >= 1.0).then_some(())
        });
    }
}

/// The controller signs with an intermediate that it is given, and the root stays elsewhere.
#[test]
fn a_given_intermediate_signs() {
    let folder = TempDir::new().expect("a folder can be made");
    let ca = folder.path().join("ca");
    fs::create_dir(&ca).expect("a folder can be made");
    let key = || KeyPair::generate().expect("a key can be made");
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let (root_key, own) = (key(), key());
    let root = authority("root");
    let root_pem = root.self_signed(&root_key).expect("it can be signed").pem();
    let issuer = Issuer::new(root, root_key);
    let intermediate = authority("intermediate").signed_by(&own, &issuer);
    let chain = intermediate.expect("it can be signed").pem() + &root_pem;
    fs::write(ca.join("ca.crt"), chain).expect("it can be written");
    fs::write(ca.join("ca.key"), own.serialize_pem()).expect("it can be written");
    let mesh = Mesh::start_given(folder);
    let web = mesh.sidecar("web", &[]);
    let _application = Upstream::echo_at(web.application(), "web");
    mesh.service("web", &[&web]);
    let client = mesh.sidecar("client", &["web.shop:80"]);
    let url = format!("http://{}/a", client.upstreams[0]);
    eventually("an answer by mTLS", || {
        (curl(&[&url]).status == 200).then_some(())
    });
    let labels = [("direction", "inbound"), ("result", "ok")];
    let metrics = web.proxy.metrics();
    assert!(metrics.sum("weft_mesh_handshakes_total", &labels) >= 1.0);
    let status = mesh.status();
    assert_eq!(status.roots.len(), 1, "{status:#?}");
    assert!(status.roots[0].subject.contains("root"), "{status:#?}");
}

/// An application's own TLS goes through both sidecars as it is: its certificate is what callers see.
#[test]
fn an_application_s_own_tls_passes_through() {
    let mesh = Mesh::start();
    let secure = mesh.sidecar("secure", &[]);
    let folder = TempDir::new().expect("a folder can be made");
    let [certificate, key] = files(folder.path(), "application", &stranger(), |params| {
        params
            .distinguished_name
            .push(DnType::CommonName, "app.example");
    });
    let mut server = Command::new("openssl");
    server.args(["s_server", "-www", "-quiet", "-accept"]);
    server.arg(secure.application().to_string());
    server.arg("-cert").arg(certificate).arg("-key").arg(key);
    let mut application = Program::start("s_server", &mut server, folder.path());
    application.accepts(secure.application());
    mesh.service("secure", &[&secure]);
    let client = mesh.sidecar("client", &["secure.shop:80"]);
    let url = format!("https://{}/", client.upstreams[0]);
    let answer = eventually("an answer by the application's TLS", || {
        let answer = curl(&["-k", "-v", &url]);
        (answer.status == 200).then_some(answer)
    });
    assert!(answer.log.contains("CN=app.example"), "{}", answer.log);
    let labels = [("direction", "inbound"), ("result", "ok")];
    let metrics = secure.proxy.metrics();
    assert!(metrics.sum("weft_mesh_handshakes_total", &labels) >= 1.0);
}

/// Puts a revocation list where the controller looks for it.
fn revoke(mesh: &Mesh, issuer: &Issuer<'static, KeyPair>) {
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2100, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(REVOKED),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(issuer).expect("it can be signed");
    let pem = list.pem().expect("it can be written");
    fs::write(mesh.folder.path().join("ca/crl.pem"), pem).expect("it can be written");
}

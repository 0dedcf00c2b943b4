//! Who gets a certificate, whose certificate is believed, and what floods and garbage cost
//! the others: nothing. Over the real port, with real `openssl` for revocation lists.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use support::bystander::Bystander;
use support::{Controller, Deltas, Svid, connect, eventually, request, sign};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::Code;
use weft_config::wire::SignRequest;
use weft_config::xds::DeltaDiscoveryRequest;

const HOUR: Duration = Duration::from_secs(3600);

fn asked(csr: Vec<u8>, token: &str, workload: &str) -> SignRequest {
    SignRequest {
        csr,
        token: token.to_owned(),
        workload: workload.to_owned(),
    }
}

/// What a forger with the authority's key could make.
struct Forged<'a> {
    uri: &'a str,
    name: Option<&'a str>,
    starts: SystemTime,
    ends: SystemTime,
}

impl Default for Forged<'_> {
    fn default() -> Self {
        Self {
            uri: "spiffe://td/ns/shop/sa/web",
            name: Some("uid-1.workload.weft"),
            starts: SystemTime::now() - HOUR,
            ends: SystemTime::now() + HOUR,
        }
    }
}

impl Forged<'_> {
    fn sign(&self, ca: &Path) -> Svid {
        let key = KeyPair::from_pem(&fs::read_to_string(ca.join("ca.key")).unwrap()).unwrap();
        let certificate = CertificateDer::from_pem_file(ca.join("ca.crt")).unwrap();
        let issuer = Issuer::from_ca_cert_der(&certificate, key).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(self.uri.try_into().unwrap())];
        let name = self
            .name
            .map(|name| SanType::DnsName(name.try_into().unwrap()));
        params.subject_alt_names.extend(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = self.starts.into();
        params.not_after = self.ends.into();
        params.use_authority_key_identifier_extension = true;
        let own = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&own, &issuer).unwrap().der().to_vec()];
        Svid { chain, key: own }
    }
}

/// Whether the controller serves who has this certificate.
async fn is_served(controller: &Controller, svid: &Svid) -> bool {
    let Ok(link) = connect(controller, Some(svid)).await else {
        return false;
    };
    let Ok(mut deltas) = Deltas::open(link).await else {
        return false;
    };
    deltas.want("TrustBundle", &["td"]).await;
    deltas.next().await.is_ok()
}

async fn connections_refused(controller: &Controller, reason: &str) -> f64 {
    let name = format!("weft_controller_connections_refused_total{{reason=\"{reason}\"}}");
    controller.metric(&name).await
}

#[tokio::test]
async fn certificates_that_are_not_good_are_refused_with_the_reason() {
    let controller = Controller::start(&[]).await;
    let other = Controller::start(&[]).await;
    let now = SystemTime::now();
    assert!(is_served(&controller, &Forged::default().sign(&controller.ca())).await);
    let cases = [
        (
            "expired",
            Forged {
                ends: now - HOUR / 2,
                ..Forged::default()
            },
        ),
        (
            "not_yet_valid",
            Forged {
                starts: now + HOUR / 2,
                ..Forged::default()
            },
        ),
        (
            "stranger",
            Forged {
                uri: "spiffe://other/ns/shop/sa/web",
                ..Forged::default()
            },
        ),
        (
            "stranger",
            Forged {
                uri: "https://td/",
                ..Forged::default()
            },
        ),
        (
            "stranger",
            Forged {
                name: None,
                ..Forged::default()
            },
        ),
    ];
    for (reason, forged) in cases {
        let before = connections_refused(&controller, reason).await;
        assert!(
            !is_served(&controller, &forged.sign(&controller.ca())).await,
            "{reason}"
        );
        assert_eq!(
            connections_refused(&controller, reason).await,
            before + 1.0,
            "{reason}"
        );
        assert!(
            controller.log().contains(&format!("reason=\"{reason}\"")),
            "{}",
            controller.log()
        );
    }
    // Of another authority, which has the same names.
    let foreign = Forged::default().sign(&other.ca());
    assert!(!is_served(&controller, &foreign).await);
    assert_eq!(
        connections_refused(&controller, "unknown_issuer").await,
        1.0
    );
}

/// Revokes certificates with `openssl ca`, and writes the list; of an authority in `ca`.
fn revoke(ca: &Path, certificates: &[&Svid], to: &Path) {
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name);
    fs::write(at("index.txt"), "").unwrap();
    fs::write(at("crlnumber"), "01\n").unwrap();
    let config = format!(
        "[ca]\ndefault_ca=x\n[x]\ndatabase={}\ncrlnumber={}\ncertificate={}\nprivate_key={}\ndefault_md=sha256\ndefault_crl_days=7\n",
        at("index.txt").display(),
        at("crlnumber").display(),
        ca.join("ca.crt").display(),
        ca.join("ca.key").display(),
    );
    fs::write(at("openssl.cnf"), config).unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(["ca", "-config"])
            .arg(at("openssl.cnf"))
            .args(arguments)
            .output()
            .expect("openssl is installed: scripts/setup test");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    for svid in certificates {
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE", svid.chain[0].clone()));
        fs::write(at("leaf.pem"), pem).unwrap();
        openssl(&["-revoke", at("leaf.pem").to_str().unwrap()]);
    }
    openssl(&["-gencrl", "-out", at("crl.pem").to_str().unwrap()]);
    fs::rename(at("crl.pem"), to).unwrap();
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_its_stream_ends_and_all_are_told() {
    let controller = Controller::start(&[]).await;
    let bad = controller.svid("web", "uid-1").await;
    let good = controller.svid("web", "uid-2").await;
    let mut theirs = controller.stream_as(&bad).await;
    let mut ours = controller.stream_as(&good).await;
    for deltas in [&mut theirs, &mut ours] {
        deltas.want("TrustBundle", &["td"]).await;
        deltas.take().await;
    }
    let open = connect(&controller, Some(&bad)).await.unwrap();
    let list = controller.ca().join("crl.pem");
    revoke(&controller.ca(), &[&bad], &list);
    let bundle = ours.take().await;
    let value = &bundle.resources[0].resource.as_ref().unwrap().value;
    let bundle: weft_config::wire::TrustBundle = prost::Message::decode(&value[..]).unwrap();
    assert_eq!(bundle.revocations.len(), 1, "sidecars are told");
    let ended = loop {
        match theirs.next().await {
            Ok(response) => theirs.ack(&response).await,
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated);
    assert!(ended.message().contains("revoked"), "{ended:?}");
    // A connection that was open before gets nothing more either.
    let (_, csr) = request(None);
    let refused = sign(open, asked(csr, "", "uid-1")).await.unwrap_err();
    assert!(refused.message().contains("revoked"), "{refused:?}");
    eventually("new connections being refused", async || {
        (!is_served(&controller, &bad).await).then_some(())
    })
    .await;
    assert!(connections_refused(&controller, "revoked").await >= 1.0);
    assert!(is_served(&controller, &good).await);
    let streams = "weft_controller_streams_refused_total{reason=\"revoked\"}";
    assert!(controller.metric(streams).await >= 1.0);
    // A list of somebody else's is not believed, and the present one stays.
    let other = Controller::start(&[]).await;
    revoke(&other.ca(), &[], &list);
    eventually("a word about it", async || {
        controller
            .log()
            .contains("signed by no certificate")
            .then_some(())
    })
    .await;
    assert!(!is_served(&controller, &bad).await);
    fs::remove_file(list).unwrap();
    eventually("the list being gone", async || {
        is_served(&controller, &bad).await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_ends_with_a_certificate_that_is_not_renewed() {
    let controller = Controller::start(&["--certificate-ttl", "3"]).await;
    let lazy = controller.svid("web", "uid-1").await;
    let renewing = controller.svid("web", "uid-2").await;
    let mut lost = controller.stream_as(&lazy).await;
    let mut kept = controller.stream_as(&renewing).await;
    kept.want("TrustBundle", &["td"]).await;
    kept.take().await;
    let link = connect(&controller, Some(&renewing)).await.unwrap();
    let renew = async || {
        let (_, csr) = request(None);
        sign(link.clone(), asked(csr, "", "uid-2")).await
    };
    renew().await.unwrap();
    let ended = async { lost.next().await.unwrap_err() };
    let renewals = async {
        loop {
            tokio::time::sleep(Duration::from_millis(900)).await;
            // The connection's own certificate ends too, and then it proves nothing.
            if renew().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let ended = tokio::select! {
        ended = ended => ended,
        () = renewals => unreachable!("it goes on for ever"),
    };
    assert!(ended.message().contains("expired"), "{ended:?}");
    assert!(
        controller.proxy("uid-2").await.is_some(),
        "who renews stays"
    );
    // Nor has the controller's own certificate ended.
    controller.svid("web", "uid-3").await;
}

#[tokio::test]
async fn nobody_gets_another_s_identity() {
    let controller = Controller::start(&[]).await;
    let svid = controller.svid("web", "uid-1").await;
    let payment = "spiffe://td/ns/shop/sa/payment";
    let cases = [
        // By certificate and by token: another identity in the request, another workload.
        (true, Some(payment), "uid-1", "other_identity"),
        (true, None, "uid-2", "other_workload"),
        (false, Some(payment), "uid-1", "other_identity"),
        (false, None, "uid-2", "other_workload"),
        (false, None, "../uid", "other_workload"),
    ];
    for (by_certificate, identity, workload, reason) in cases {
        let token = match by_certificate {
            true => String::new(),
            false => controller.token("web", "uid-1"),
        };
        let (_, csr) = request(identity);
        let link = connect(&controller, by_certificate.then_some(&svid))
            .await
            .unwrap();
        let name = format!("weft_controller_certificates_total{{result=\"{reason}\"}}");
        let before = controller.metric(&name).await;
        let refused = sign(link.clone(), asked(csr, &token, workload))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        assert_eq!(controller.metric(&name).await, before + 1.0);
        assert!(controller.log().contains(&format!("reason=\"{reason}\"")));
        // A mistake costs no token.
        let (_, csr) = request(Some("spiffe://td/ns/shop/sa/web"));
        sign(link, asked(csr, &token, "uid-1")).await.unwrap();
    }
    let token = controller.token_in("weft", "controller", "uid-1");
    let (_, csr) = request(None);
    let link = connect(&controller, None).await.unwrap();
    let refused = sign(link, asked(csr, &token, "uid-1")).await.unwrap_err();
    assert!(refused.message().contains("controller"), "{refused:?}");
}

#[tokio::test]
async fn a_flood_of_requests_to_sign_costs_only_its_author() {
    let controller = Controller::start(&[]).await;
    let hostile = controller.svid("web", "uid-1").await;
    let link = connect(&controller, Some(&hostile)).await.unwrap();
    let mut refused = 0;
    for _ in 0..400 {
        let (_, csr) = request(None);
        match sign(link.clone(), asked(csr, "", "uid-1")).await {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 300, "{refused}");
    let limited = "weft_controller_certificates_total{result=\"caller_limited\"}";
    assert_eq!(controller.metric(limited).await, f64::from(refused));
    // Nor do those who prove nothing take anything from the others.
    let link = connect(&controller, None).await.unwrap();
    for _ in 0..400 {
        let nothing = asked(Vec::new(), "not a token", "uid-3");
        let status = sign(link.clone(), nothing).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    let invalid = "weft_controller_tokens_refused_total{reason=\"invalid\"}";
    assert_eq!(controller.metric(invalid).await, 400.0);
    controller.svid("web", "uid-2").await;
}

#[tokio::test]
async fn streams_and_subscriptions_are_bounded() {
    let controller = Controller::start(&[]).await;
    let mut bystander = Bystander::start(&controller).await;
    let refusals = async |reason: &str| {
        let name = format!("weft_controller_streams_refused_total{{reason=\"{reason}\"}}");
        controller.metric(&name).await
    };
    let mut hostile = controller.stream("uid-1").await;
    let names: Vec<String> = (0..30_000).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    hostile.want("Endpoints", &names).await;
    bystander.is_served(&controller).await;
    hostile.want("Service", &names).await;
    let status = loop {
        match hostile.next().await {
            Ok(response) => hostile.ack(&response).await,
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(refusals("subscriptions_max").await, 1.0);
    for (url, name) in [
        ("type.googleapis.com/other", "x"),
        ("type.googleapis.com/weft.v1.Service", &"x".repeat(600)),
    ] {
        let mut hostile = controller.stream("uid-2").await;
        let request = DeltaDiscoveryRequest {
            type_url: url.to_owned(),
            resource_names_subscribe: vec![name.to_owned()],
            ..Default::default()
        };
        hostile.send(request).await;
        let status = hostile.next().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    assert_eq!(refusals("malformed").await, 2.0);
    let svid = controller.svid("web", "uid-3").await;
    let link = connect(&controller, Some(&svid)).await.unwrap();
    let mut open = Vec::new();
    let status = loop {
        assert!(open.len() < 100, "no limit");
        match Deltas::open(link.clone()).await {
            Ok(deltas) => open.push(deltas),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!((open.len(), refusals("streams_max").await), (8, 1.0));
    open.pop();
    eventually("a place", async || Deltas::open(link.clone()).await.ok()).await;
    bystander.is_served(&controller).await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let controller = Controller::start(&[]).await;
    let mut bystander = Bystander::start(&controller).await;
    let svid = controller.svid("web", "uid-1").await;
    let mut links = Vec::new();
    while connections_refused(&controller, "connections_max").await == 0.0 {
        assert!(links.len() < 100, "no limit");
        links.push(connect(&controller, Some(&svid)).await);
    }
    assert!(links.len() > 16, "{}", links.len());
    // Those that prove nothing are fewer still than a process may have descriptors.
    // At once: one after the other, the first would have been given up before the last comes.
    let mut connecting = JoinSet::new();
    for _ in 0..600 {
        connecting.spawn(TcpStream::connect(controller.listen));
    }
    let silent = connecting.join_all().await;
    eventually("a limit", async || {
        (connections_refused(&controller, "unproven_max").await > 0.0).then_some(())
    })
    .await;
    bystander.is_served(&controller).await;
    drop(silent);
    eventually("a place for the next", async || {
        let link = connect(&controller, None).await.ok()?;
        let (_, csr) = request(None);
        let token = controller.token("web", "uid-2");
        sign(link, asked(csr, &token, "uid-2")).await.ok()
    })
    .await;
}

#[tokio::test]
async fn garbage_harms_nobody_else() {
    let controller = Controller::start(&[]).await;
    let mut bystander = Bystander::start(&controller).await;
    let svid = controller.svid("web", "uid-1").await;
    // No TLS at all.
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let mut tcp = TcpStream::connect(controller.listen).await.unwrap();
        let _ = tcp.write_all(garbage).await;
    }
    // TLS, and then no HTTP/2.
    for svid in [None, Some(&svid)] {
        let config = support::tls(&controller.ca(), svid);
        let tcp = TcpStream::connect(controller.listen).await.unwrap();
        let name = "controller.weft".try_into().unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let mut tls = connector.connect(name, tcp).await.unwrap();
        let _ = tls.write_all(&[0xff; 20_000]).await;
    }
    // gRPC, and then nothing that is a message: no request to sign, or one too large.
    let link = connect(&controller, Some(&svid)).await.unwrap();
    let (_, csr) = request(None);
    let mut broken = csr.clone();
    broken[20] ^= 0xff;
    let large = vec![7; 100 * 1024];
    for (csr, code) in [
        (broken, Code::InvalidArgument),
        (vec![0x30; 64], Code::InvalidArgument),
        (large, Code::OutOfRange),
    ] {
        let status = sign(link.clone(), asked(csr, "", "uid-1"))
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
    }
    let mut hostile = controller.stream_as(&svid).await;
    let large = DeltaDiscoveryRequest {
        type_url: "x".repeat(9 << 20),
        ..Default::default()
    };
    hostile.send(large).await;
    assert!(hostile.next().await.is_err());
    bystander.is_served(&controller).await;
    sign(link, asked(csr, "", "uid-1")).await.unwrap();
    eventually("the failed handshakes", async || {
        (connections_refused(&controller, "handshake").await >= 2.0).then_some(())
    })
    .await;
}

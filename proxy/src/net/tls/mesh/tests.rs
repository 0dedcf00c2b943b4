//! Whom sidecars believe: real handshakes over a pipe, with certificates of every fault.

use super::*;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Root {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

fn root() -> Root {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    Root {
        der: certificate.der().clone(),
        issuer: Issuer::new(params, key),
    }
}

/// A certificate of `account`, changed by `change`.
fn svid(root: &Root, account: &str, change: impl FnOnce(&mut CertificateParams)) -> Svid {
    let key = KeyPair::generate().unwrap();
    let identity = SpiffeId::new("td", "shop", account).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::URI(identity.as_str().try_into().unwrap()),
        SanType::DnsName(
            spiffe::workload_name(&format!("{account}-1"))
                .try_into()
                .unwrap(),
        ),
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    change(&mut params);
    let certificate = params.signed_by(&key, &root.issuer).unwrap();
    Svid {
        identity,
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
    }
}

fn trust(roots: &[&Root]) -> Trust {
    Trust {
        domain: "td".to_owned(),
        roots: roots.iter().map(|root| root.der.clone()).collect(),
        revocations: Vec::new(),
    }
}

fn tls(svid: Svid, roots: &[&Root]) -> MeshTls {
    MeshTls::new(svid, trust(roots), None).unwrap()
}

fn peer(account: &str, uid: &str) -> Peer {
    Peer {
        identity: SpiffeId::new("td", "shop", account).unwrap(),
        workload: uid.into(),
        address: SocketAddr::from(([127, 0, 0, 1], 1)),
    }
}

/// Shakes hands; what each side thinks of the other, and whether it was resumed.
async fn meet(
    client: &MeshTls,
    server: &MeshTls,
    expected: &Peer,
) -> (Result<bool, Refusal>, Result<PeerIdentity, Refusal>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let accept = async {
        let acceptor = tokio_rustls::TlsAcceptor::from(server.server());
        let mut stream = acceptor
            .accept(far)
            .await
            .map_err(|error| Refusal::of(&error))?;
        let found = peer_of(stream.get_ref().1.peer_certificates());
        let _ = stream.write_all(b"x").await;
        let _ = stream.shutdown().await;
        found
    };
    let connect = async {
        let connector = tokio_rustls::TlsConnector::from(client.client(MeshProtocol::Http1));
        let name = server_name(expected, 80).unwrap();
        let mut stream = connector
            .connect(name, near)
            .await
            .map_err(|error| Refusal::of(&error))?;
        expect(stream.get_ref().1.peer_certificates(), expected)?;
        // A server's refusal of our certificate comes with the first read (TLS 1.3).
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .await
            .map_err(|error| Refusal::of(&error))?;
        let kind = stream.get_ref().1.handshake_kind();
        Ok(kind == Some(rustls::HandshakeKind::Resumed))
    };
    tokio::join!(connect, accept)
}

#[tokio::test]
async fn both_sides_know_each_other_and_resume() {
    let root = root();
    let (client, server) = (
        tls(svid(&root, "web", |_| ()), &[&root]),
        tls(svid(&root, "api", |_| ()), &[&root]),
    );
    for resumed in [false, true] {
        let (there, here) = meet(&client, &server, &peer("api", "api-1")).await;
        assert_eq!(there, Ok(resumed));
        let found = here.unwrap();
        assert_eq!(found.identity.as_str(), "spiffe://td/ns/shop/sa/web");
        assert_eq!(&*found.workload, "web-1");
    }
    // A changed trust starts anew, even where the certificate stays.
    let other = self::root();
    let grown = MeshTls::new(
        svid(&root, "web", |_| ()),
        trust(&[&root, &other]),
        Some(&client),
    )
    .unwrap();
    assert_eq!(
        meet(&grown, &server, &peer("api", "api-1")).await.0,
        Ok(false)
    );
    assert_eq!(grown.trust_generation(), client.trust_generation());
    let shrunk = MeshTls::new(svid(&other, "web", |_| ()), trust(&[&other]), Some(&grown)).unwrap();
    assert!(shrunk.trust_generation() > grown.trust_generation());
    let refused = meet(&shrunk, &server, &peer("api", "api-1")).await;
    assert_eq!(refused.0, Err(Refusal::UnknownIssuer));
}

#[tokio::test]
async fn a_server_that_is_not_who_it_should_be_is_refused() {
    let (root, other) = (root(), root());
    let client = tls(svid(&root, "web", |_| ()), &[&root]);
    let api = |change: fn(&mut CertificateParams)| tls(svid(&root, "api", change), &[&root]);
    let expected = peer("api", "api-1");
    for (server, expected, refusal) in [
        (
            api(|_| ()),
            peer("payment", "api-1"),
            Refusal::WrongIdentity,
        ),
        (api(|_| ()), peer("api", "api-2"), Refusal::WrongWorkload),
        (
            tls(svid(&other, "api", |_| ()), &[&root]),
            expected.clone(),
            Refusal::UnknownIssuer,
        ),
        (
            api(|params| params.not_after = date_time_ymd(2020, 1, 1)),
            expected.clone(),
            Refusal::Expired,
        ),
        (
            api(|params| params.not_before = date_time_ymd(2100, 1, 1)),
            expected.clone(),
            Refusal::NotYetValid,
        ),
        (
            api(|params| params.subject_alt_names.truncate(1)),
            expected.clone(),
            Refusal::NoIdentity,
        ),
        (
            api(|params| {
                params.subject_alt_names.remove(0);
            }),
            expected.clone(),
            Refusal::NoIdentity,
        ),
        (
            api(|params| {
                params.subject_alt_names[0] =
                    SanType::URI("spiffe://other/ns/shop/sa/api".try_into().unwrap());
            }),
            expected.clone(),
            Refusal::WrongTrustDomain,
        ),
        (
            api(|params| {
                let second = SanType::URI("spiffe://td/ns/shop/sa/payment".try_into().unwrap());
                params.subject_alt_names.push(second);
            }),
            expected.clone(),
            Refusal::NoIdentity,
        ),
        (
            api(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            expected.clone(),
            Refusal::BadCertificate,
        ),
    ] {
        let (there, _) = meet(&client, &server, &expected).await;
        assert_eq!(there, Err(refusal));
    }
}

#[tokio::test]
async fn a_client_that_is_nobody_is_refused() {
    let (root, other) = (root(), root());
    let server = tls(svid(&root, "api", |_| ()), &[&root]);
    for (client, refusal) in [
        (svid(&other, "web", |_| ()), Refusal::UnknownIssuer),
        (
            svid(&root, "web", |params| {
                params.not_after = date_time_ymd(2020, 1, 1)
            }),
            Refusal::Expired,
        ),
    ] {
        let client = tls(client, &[&root]);
        let (there, here) = meet(&client, &server, &peer("api", "api-1")).await;
        assert_eq!(here, Err(refusal));
        assert!(there.is_err());
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let root = root();
    let serial = rcgen::SerialNumber::from(4711u64);
    let revoked = svid(&root, "api", |params| {
        params.serial_number = Some(serial.clone())
    });
    let list = rcgen::CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2100, 1, 1),
        crl_number: rcgen::SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: serial,
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&root.issuer).unwrap();
    let server = tls(revoked, &[&root]);
    let mut trust = trust(&[&root]);
    trust.revocations.push(list.der().to_vec().into());
    let client = MeshTls::new(svid(&root, "web", |_| ()), trust, None).unwrap();
    let (there, _) = meet(&client, &server, &peer("api", "api-1")).await;
    assert_eq!(there, Err(Refusal::Revoked));
}

//! Table tests of the ClientHello parser, and rustls' own hellos and acceptor as oracle.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::*;

/// A hello with these extensions, in one record.
fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    let mut list = Vec::new();
    for (kind, data) in extensions {
        list.extend(kind.to_be_bytes());
        list.extend((data.len() as u16).to_be_bytes());
        list.extend_from_slice(data);
    }
    body.extend((list.len() as u16).to_be_bytes());
    body.extend(list);
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    records(&message, message.len())
}

fn records(message: &[u8], record_bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for fragment in message.chunks(record_bytes) {
        out.extend([0x16, 3, 1]);
        out.extend((fragment.len() as u16).to_be_bytes());
        out.extend_from_slice(fragment);
    }
    out
}

fn name(host: &[u8]) -> Vec<u8> {
    let length = host.len() as u16;
    let mut out = (length + 3).to_be_bytes().to_vec();
    out.push(0);
    out.extend(length.to_be_bytes());
    out.extend_from_slice(host);
    out
}

#[test]
fn extensions() {
    let named = |host: &str| Hello {
        server_name: Some(host.to_owned()),
        ..Hello::default()
    };
    let alpn = |protocols: &[&[u8]]| Hello {
        alpn: protocols
            .iter()
            .map(|protocol| Box::from(*protocol))
            .collect(),
        ..Hello::default()
    };
    let tls13 = Hello {
        supports_tls13: true,
        ..Hello::default()
    };
    let invalid = Err(HelloError::Invalid);
    let table: Vec<(Vec<u8>, Result<Hello, HelloError>)> = vec![
        (hello(&[]), Ok(Hello::default())),
        (
            hello(&[(0, &name(b"Example.ORG"))]),
            Ok(named("example.org")),
        ),
        (hello(&[(0, &name(b"a_b.c."))]), Ok(named("a_b.c"))),
        (hello(&[(0, &name(b""))]), invalid.clone()),
        (hello(&[(0, &name(b"a..b"))]), invalid.clone()),
        (hello(&[(0, &name(b"a\0b"))]), invalid.clone()),
        (hello(&[(0, &name(&[b'a'; 64]))]), invalid.clone()),
        (
            hello(&[(0, &name(b"a")), (0, &name(b"b"))]),
            invalid.clone(),
        ),
        (hello(&[(0, &[0, 0])]), invalid.clone()),
        (
            hello(&[(0, &[0, 8, 0, 0, 1, b'a', 0, 0, 1, b'b'])]),
            invalid.clone(),
        ),
        (hello(&[(16, b"\0\x03\x02h2")]), Ok(alpn(&[b"h2"]))),
        (
            hello(&[(16, b"\0\x05\x02h2\x01x")]),
            Ok(alpn(&[b"h2", b"x"])),
        ),
        (hello(&[(16, b"\0\x01\0")]), invalid.clone()),
        (hello(&[(16, b"\0\x04\x02h2")]), invalid.clone()),
        (hello(&[(43, b"\x04\x03\x04\x03\x03")]), Ok(tls13)),
        (hello(&[(43, b"\x02\x03\x03")]), Ok(Hello::default())),
        (hello(&[(43, b"\x03\x03\x04\x03")]), invalid.clone()),
        (hello(&[(0x0a0a, b"grease")]), Ok(Hello::default())),
        (b"GET / HTTP/1.1".to_vec(), Err(HelloError::NotTls)),
        (
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00".to_vec(),
            Err(HelloError::NotTls),
        ),
        (b"\x16\x03\x01\x00\x00".to_vec(), Err(HelloError::NotTls)),
        (
            b"\x16\x03\x01\x00\x04\x01\x00\x40\x00".to_vec(),
            Err(HelloError::TooLarge),
        ),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00".to_vec(), invalid),
        (Vec::new(), Err(HelloError::NeedMore)),
    ];
    for (bytes, expected) in table {
        assert_eq!(parse(&bytes), expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn every_fragmentation_and_prefix() {
    let whole = hello(&[
        (0, &name(b"example.org")),
        (16, b"\0\x03\x02h2"),
        (43, b"\x02\x03\x04"),
    ]);
    let expected = parse(&whole).unwrap();
    for record_bytes in 1..whole.len() {
        let bytes = records(&whole[5..], record_bytes);
        for cut in 0..bytes.len() {
            assert_eq!(
                parse(&bytes[..cut]),
                Err(HelloError::NeedMore),
                "{record_bytes}, {cut}"
            );
        }
        assert_eq!(parse(&bytes).as_ref(), Ok(&expected), "{record_bytes}");
    }
}

#[test]
fn tiny_records_meet_the_limit() {
    let mut message = vec![1, 0, 0x3f, 0xff];
    message.resize(HELLO_BYTES_MAX, 0);
    assert_eq!(parse(&records(&message, 1)), Err(HelloError::TooLarge));
}

#[test]
fn agrees_with_rustls() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"weft-h2".to_vec(), b"h2".to_vec()];
    let server = ServerName::try_from("Shop.Example.org").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), server).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();

    let mut acceptor = rustls::server::Acceptor::default();
    acceptor.read_tls(&mut bytes.as_slice()).unwrap();
    let accepted = acceptor.accept().ok().flatten().unwrap();
    let theirs = accepted.client_hello();
    let ours = parse(&bytes).unwrap();
    assert_eq!(ours.server_name.as_deref(), theirs.server_name());
    let alpn: Vec<&[u8]> = theirs.alpn().unwrap().collect();
    assert_eq!(
        ours.alpn
            .iter()
            .map(|protocol| &**protocol)
            .collect::<Vec<_>>(),
        alpn
    );
    assert!(ours.supports_tls13);
}

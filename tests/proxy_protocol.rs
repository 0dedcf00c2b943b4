//! The PROXY protocol, versions 1 and 2, from clients and to upstreams.

use serde_json::json;
use weft_tests::config::{front, opaque};
use weft_tests::curl::curl;
use weft_tests::nginx::Nginx;
use weft_tests::proxy::Proxy;
use weft_tests::raw::Raw;
use weft_tests::upstream::Upstream;
use weft_tests::{port, stepping_aside};

/// Version 2, PROXY, TCP over IPv4, from 192.0.2.9:1234 to 198.51.100.1:80.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\xc6\x33\x64\x01\x04\xd2\0\x50";
/// Version 2, LOCAL: a health check of the balancer in front.
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const V1: &[u8] = b"PROXY TCP4 192.0.2.9 198.51.100.1 1234 80\r\n";
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";

#[test]
fn the_client_is_whom_the_header_names() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    let mut proxy = {
        config["listeners"][0]["proxyProtocol"] = json!("any");
        Proxy::start(config)
    };
    for (accepted, headers) in [
        ("any", [(V1, true), (V2, true), (b"", false)]),
        ("v1", [(V1, true), (V2, false), (b"", false)]),
        ("v2", [(V1, false), (V2, true), (b"", false)]),
    ] {
        proxy.reload(|config| config["listeners"][0]["proxyProtocol"] = json!(accepted));
        for (header, taken) in headers {
            let mut raw = Raw::connect(web);
            raw.send([header, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
            if taken {
                assert_eq!(raw.answer().status, 200, "{accepted}");
                let seen = upstream.last();
                assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.9"));
            } else {
                let header = String::from_utf8_lossy(header);
                assert!(raw.closed().is_empty(), "{accepted} takes {header:?}");
            }
        }
    }
    proxy.reload(|config| config["listeners"][0]["proxyProtocol"] = json!("any"));
    for header in [V1_UNKNOWN, V2_LOCAL] {
        let mut raw = Raw::connect(web);
        raw.send([header, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
        assert_eq!(raw.answer().status, 200);
        assert_eq!(upstream.last().header("x-forwarded-for"), Some("127.0.0.1"));
    }
    // It came in pieces, and with a lie in it.
    let mut raw = Raw::connect(web);
    for byte in V1 {
        raw.send([*byte]);
    }
    assert_eq!(raw.get("/").status, 200);
    for bad in [
        &b"PROXY TCP4 192.0.2.9 198.51.100.1 1234 99999\r\n"[..],
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
    ] {
        let mut raw = Raw::connect(web);
        let _ = raw.try_send([bad, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
        assert!(
            raw.closed().is_empty(),
            "{:?}",
            String::from_utf8_lossy(bad)
        );
    }
    proxy.is_well();
}

#[test]
fn curl_says_who_it_is() {
    if stepping_aside("curl") {
        return;
    }
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    config["listeners"][0]["proxyProtocol"] = json!("v1");
    let _proxy = Proxy::start(config);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let got = curl(&["--haproxy-protocol", version, &format!("http://{web}/")]);
        assert_eq!((got.exit, got.status), (0, 200), "{}", got.log);
    }
}

#[test]
fn nginx_hears_who_the_client_is() {
    if stepping_aside("nginx") {
        return;
    }
    let nginx = Nginx::listening(
        "proxy_protocol",
        "location / { return 200 $proxy_protocol_addr:$proxy_protocol_port; }",
    );
    for version in ["v1", "v2"] {
        let web = port::free_address();
        let mut config = front(web, &[nginx.address]);
        config["services"][0]["sendProxyProtocol"] = json!(version);
        let _proxy = Proxy::start(config);
        let ours = |raw: &Raw| {
            raw.stream
                .local_addr()
                .expect("it is connected")
                .to_string()
        };
        // Two clients never share a connection that speaks for one of them.
        let (mut one, mut two) = (Raw::connect(web), Raw::connect(web));
        for _ in 0..3 {
            let (name_one, name_two) = (ours(&one), ours(&two));
            assert_eq!(one.get("/").text(), name_one, "{version}");
            assert_eq!(two.get("/").text(), name_two, "{version}");
        }
    }
}

#[test]
fn opaque_connections_carry_it_through() {
    let heard = weft_tests::upstream::opaque(|mut stream| {
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let address = port::free_address();
    let mut config = opaque(address, &[heard]);
    config["listeners"][0]["proxyProtocol"] = json!("v2");
    config["services"][0]["sendProxyProtocol"] = json!("v1");
    let _proxy = Proxy::start(config);
    let mut raw = Raw::connect(address);
    raw.send([V2, b"payload"].concat());
    raw.expect(V1);
    raw.expect("payload");
}

#[test]
fn a_silent_client_does_not_stay() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    config["listeners"][0]["proxyProtocol"] = json!("any");
    config["listeners"][0]["http"] = json!({"headerTimeout": "300ms"});
    let _proxy = Proxy::start(config);
    let mut raw = Raw::connect(web);
    raw.send("PROXY TCP4 ");
    assert!(raw.closed().is_empty());
    let mut honest = Raw::connect(web);
    honest.send([V1, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
    assert_eq!(honest.answer().status, 200);
}

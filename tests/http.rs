//! HTTP between real programs: every version on both sides, what passes untouched and what must not
//! pass at all. Bodies and their flow are in `bodies`, bad input is in `hygiene`.

use std::io::Write;
use std::net::SocketAddr;

use serde_json::json;
use weft_tests::config::front;
use weft_tests::curl::curl;
use weft_tests::h2load::h2load;
use weft_tests::load::{Load, Mode};
use weft_tests::nginx::{ECHO, Nginx};
use weft_tests::proxy::Proxy;
use weft_tests::raw::{self, Raw};
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{http2, port, stepping_aside};

#[test]
fn every_version_reaches_every_version() {
    if stepping_aside("nginx") || stepping_aside("curl") {
        return;
    }
    for (options, protocol) in [
        ("", "http1"),
        ("", "http"),
        ("http2", "http2"),
        ("http2", "grpc"),
    ] {
        let nginx = Nginx::listening(options, ECHO);
        let web = port::free_address();
        let mut config = front(web, &[nginx.address]);
        config["services"][0]["protocol"] = json!(protocol);
        let proxy = Proxy::start(config);
        for (version, spoken) in [
            ("--http1.0", "1.0"),
            ("--http1.1", "1.1"),
            ("--http2-prior-knowledge", "2"),
        ] {
            let got = curl(&[version, &format!("http://{web}/a?b=c")]);
            let seen = (got.exit, got.status, got.text());
            assert_eq!(
                seen,
                (0, 200, "/a?b=c".to_owned()),
                "{version} to {protocol}: {}",
                got.log
            );
            // A proxy answers in its own version, to a client of 1.0 too (RFC 9110 §2.5).
            let spoken = if spoken == "1.0" { "1.1" } else { spoken };
            assert_eq!(got.version, spoken, "{protocol}");
        }
        proxy.counts("answered", 3.0);
    }
}

/// `mirror` speaks to the upstream what the client spoke.
#[test]
fn mirror_keeps_the_version() {
    if stepping_aside("nginx") {
        return;
    }
    let plain = Nginx::start("location / { return 200 $server_protocol; }");
    let http2 = Nginx::listening("http2", "location / { return 200 $server_protocol; }");
    let web = port::free_address();
    let mut config = front(web, &[plain.address]);
    config["services"][0]["protocol"] = json!("mirror");
    let mut proxy = Proxy::start(config);
    assert_eq!(raw::get(web, "/").text(), "HTTP/1.1");
    proxy.reload(|config| {
        config["services"][0]["endpoints"] = json!([{"address": http2.address.to_string()}]);
    });
    assert_eq!(http2::get(web, "/").text(), "HTTP/2.0");
}

#[test]
fn load_of_either_version_loses_nothing() {
    if stepping_aside("nginx") || stepping_aside("h2load") {
        return;
    }
    let plain = Nginx::start(ECHO);
    let http2 = Nginx::listening("http2", ECHO);
    for (upstream, protocol) in [(&plain, "http1"), (&http2, "http2")] {
        let web = port::free_address();
        let mut config = front(web, &[upstream.address]);
        config["services"][0]["protocol"] = json!(protocol);
        let proxy = Proxy::start(config);
        let url = format!("http://{web}/load");
        h2load(&["--h1", "-n", "4000", "-c", "20", &url]).all_good();
        h2load(&["-n", "4000", "-c", "10", "-m", "10", &url]).all_good();
        proxy.counts("answered", 8000.0);
    }
}

#[test]
fn the_path_passes_byte_for_byte() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    for path in [
        "/a%2Fb/../c//d/./e",
        "/%41%e2%82%ac?q=%20&r=+&s",
        "/?",
        "/;p=1,2/(x)'*!",
        "//evil/%00",
        "/a?b=/../c?d",
    ] {
        assert_eq!(raw::get(web, path).status, 200, "{path}");
        assert_eq!(upstream.last().target(), path);
        assert_eq!(http2::get(web, path).status, 200, "{path}");
        assert_eq!(upstream.last().target(), path);
    }
    // The absolute form becomes the origin form; its host wins over Host (RFC 9112 §3.2.2).
    raw::exchange(
        web,
        "GET http://named:81/x?y HTTP/1.1\r\nHost: other\r\n\r\n",
    );
    let seen = upstream.last();
    assert_eq!(seen.target(), "/x?y");
    assert_eq!(seen.header("host"), Some("named:81"));
    raw::exchange(web, "OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(upstream.last().target(), "*");
}

#[test]
fn hop_by_hop_fields_end_here() {
    let upstream = Upstream::start(|_, stream| {
        upstream::answer(
            stream,
            200,
            &[
                "Connection: X-Hop-Back, close",
                "X-Hop-Back: 1",
                "Keep-Alive: timeout=5",
                "Proxy-Authenticate: Basic",
                "X-Kept: \u{e9}t\u{e9}",
                "Set-Cookie: a=1",
                "Set-Cookie: b=2",
            ],
            b"",
        );
        Then::Close
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let answer = raw::exchange(
        web,
        "GET / HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, X-Hop, HTTP2-Settings\r\nX-Hop: 1\r\n\
         Keep-Alive: 5\r\nTE: trailers, deflate\r\nProxy-Connection: keep-alive\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nX-Kept:  two  words \r\nx-many: 1\r\nX-Many: 2\r\n\r\n",
    );
    let seen = upstream.last();
    for gone in [
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "http2-settings",
        "via",
        "server",
    ] {
        assert!(seen.headers(gone).is_empty(), "{gone} in {}", seen.head);
    }
    assert!(!seen.head.contains("deflate"), "{}", seen.head);
    assert_eq!(seen.header("x-kept"), Some("two  words"));
    assert_eq!(seen.headers("x-many"), ["1", "2"]);
    assert_eq!(seen.header("host"), Some("test"));

    assert_eq!(answer.status, 200);
    for gone in ["x-hop-back", "keep-alive", "via", "server"] {
        assert_eq!(answer.header(gone), None, "{answer:?}");
    }
    // The upstream's `close` is its own affair.
    assert_ne!(answer.header("connection"), Some("close"));
    assert_eq!(answer.header("x-kept"), Some("\u{e9}t\u{e9}"));
    let cookies = answer
        .headers
        .iter()
        .filter(|(name, _)| name == "set-cookie");
    assert_eq!(cookies.count(), 2);
}

#[test]
fn http2_cookies_are_joined_for_http1() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let request = http::Request::get("http://test/")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Vec::new())
        .expect("it is valid");
    let answer = http2::exchange(web, request, None).expect("an answer comes");
    assert_eq!(answer.status, 200);
    // RFC 9113 §8.2.3.
    assert_eq!(upstream.last().headers("cookie"), ["a=1; b=2"]);
}

#[test]
fn forwarding_fields_follow_the_listener() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut proxy = Proxy::start(front(web, &[upstream.address]));
    let sent = [
        "X-Forwarded-For: 198.51.100.7",
        "Forwarded: for=198.51.100.7",
    ];
    for (policy, seen_for, forwarded) in [
        ("append", "198.51.100.7, 127.0.0.1", true),
        ("replace", "127.0.0.1", false),
        ("preserve", "198.51.100.7", true),
        ("remove", "", false),
    ] {
        proxy.reload(|config| config["listeners"][0]["http"] = json!({"forwarded": policy}));
        Raw::connect(web).request("GET", "/", &sent, b"");
        let seen = upstream.last();
        assert_eq!(seen.header("x-forwarded-for").unwrap_or(""), seen_for);
        assert_eq!(!seen.headers("forwarded").is_empty(), forwarded, "{policy}");
        let proto = matches!(policy, "append" | "replace").then_some("http");
        assert_eq!(seen.header("x-forwarded-proto"), proto, "{policy}");
    }
}

#[test]
fn a_request_id_is_made_or_trusted() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    config["listeners"][0]["http"] = json!({"requestIdHeader": "x-request-id"});
    let mut proxy = Proxy::start(config);
    let ask = || {
        Raw::connect(web).request("GET", "/", &["X-Request-Id: theirs"], b"");
        let id = upstream.last().header("x-request-id").map(str::to_owned);
        id.expect("there is one id")
    };
    let (first, second) = (ask(), ask());
    assert!(first.len() >= 16 && first != second && first != "theirs");
    proxy.reload(|config| config["listeners"][0]["http"]["trustRequestId"] = json!(true));
    assert_eq!(ask(), "theirs");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    let mut sent = String::new();
    for number in 0..50 {
        sent += &format!("POST /{number} HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc");
    }
    raw.send(sent);
    for number in 0..50 {
        assert_eq!(raw.answer().text(), format!("/{number}abc"));
    }
    proxy.counts("answered", 50.0);
}

#[test]
fn a_connection_lives_as_its_client_asks() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let proxy = Proxy::start(front(web, &[upstream.address]));
    for (request, kept) in [
        ("GET / HTTP/1.1\r\nHost: test\r\n\r\n", true),
        (
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
            false,
        ),
        (
            "GET / HTTP/1.1\r\nHost: test\r\nConnection: x, Close\r\n\r\n",
            false,
        ),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        let mut raw = Raw::connect(web);
        raw.send(request);
        let answer = raw.answer();
        assert_eq!(answer.status, 200, "{request}");
        let said = answer.header("connection").unwrap_or("");
        // A client of 1.0 expects the close anyway.
        if kept || request.contains("1.1") {
            assert_eq!(said == "close", !kept, "{request}");
        }
        if kept {
            assert_eq!(raw.get("/again").text(), "/again");
        } else {
            assert!(raw.closed().is_empty());
        }
    }
    // All of that used few upstream connections: what clients close is kept upstream.
    assert!(upstream.connections() <= 2, "{}", upstream.connections());
    drop(proxy);
}

#[test]
fn requests_per_connection_are_limited_when_asked() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    config["listeners"][0]["http"] = json!({"requestsPerConnectionMax": 3});
    let _proxy = Proxy::start(config);
    let mut raw = Raw::connect(web);
    for number in 1..=3 {
        let answer = raw.get("/");
        let closes = answer.header("connection") == Some("close");
        assert_eq!(closes, number == 3);
    }
    assert!(raw.closed().is_empty());
}

#[test]
fn bodiless_answers_stay_bodiless() {
    let upstream = Upstream::start(|seen, stream| {
        let answer: &[u8] = match (seen.method(), seen.target()) {
            ("HEAD", _) => b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            (_, "/204") => b"HTTP/1.1 204 No\r\n\r\n",
            (_, "/304") => b"HTTP/1.1 304 Same\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n",
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        };
        let _ = stream.write_all(answer);
        Then::Keep
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    let head = raw.request("HEAD", "/", &[], b"");
    assert_eq!(head.header("content-length"), Some("1234"));
    assert_eq!(raw.get("/204").status, 204);
    let same = raw.get("/304");
    assert_eq!((same.status, same.header("etag")), (304, Some("\"x\"")));
    assert_eq!(raw.get("/0").header("content-length"), Some("0"));
    // None of them left a byte behind that the next would have read.
    assert_eq!(upstream.connections(), 1);

    let request = http::Request::head("http://test/").body(Vec::new());
    let head = http2::exchange(web, request.expect("it is valid"), None).expect("it is answered");
    assert_eq!(head.header("content-length"), Some("1234"));
    assert!(head.body.is_empty());
}

#[test]
fn both_families_of_addresses() {
    let six: SocketAddr = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port::free()));
    let upstream = Upstream::echo_at(six, "six");
    let port = port::free();
    let mut config = front(port::free_address(), &[six]);
    config["listeners"][0]["address"] = json!(format!("[::]:{port}"));
    let _proxy = Proxy::start(config);
    for (address, client) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
        let address: SocketAddr = format!("{address}:{port}").parse().expect("an address");
        assert_eq!(raw::get(address, "/").status, 200);
        assert_eq!(upstream.last().header("x-forwarded-for"), Some(client));
    }
}

/// With Nagle's algorithm (RFC 896) the body waits until the head is acknowledged, which on a kept
/// connection takes 40 ms: 400 answers would take longer than anything here may.
#[test]
fn a_head_without_its_body_is_acknowledged_at_once() {
    let upstream = Upstream::start(|seen, stream| {
        let body = seen.target().to_owned();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.set_nodelay(false);
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(body.as_bytes());
        Then::Keep
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let load = Load::start(web, Mode::KeepAlive, 1);
    load.goes_on(400);
    load.stop().none_lost();
}

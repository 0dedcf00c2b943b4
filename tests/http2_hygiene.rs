//! HTTP/2 that must not pass: fields that would become something else in HTTP/1.1, bodies that are not
//! as long as they say, frames out of place.

use std::net::SocketAddr;

use weft_tests::config::front;
use weft_tests::frames::{self, END_HEADERS, END_STREAM, Frames};
use weft_tests::proxy::Proxy;
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, port};

fn setting() -> (Upstream, SocketAddr, Proxy) {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let proxy = Proxy::start(front(web, &[upstream.address]));
    (upstream, web, proxy)
}

/// A header block's fields.
type Fields = Vec<(&'static str, &'static str)>;

/// HTTP/2 fields that would become something else in HTTP/1.1 (RFC 9113 §8.2, §8.3).
fn refused() -> Vec<Fields> {
    let with = |name: &'static str, value: &'static str| {
        let mut fields = frames::get("/h2");
        fields.push((name, value));
        fields
    };
    let without = |name: &str| {
        let mut fields = frames::get("/h2");
        fields.retain(|(field, _)| *field != name);
        fields
    };
    let replaced = |name: &'static str, value: &'static str| {
        let mut fields = frames::get("/h2");
        for field in fields.iter_mut().filter(|field| field.0 == name) {
            field.1 = value;
        }
        fields
    };
    vec![
        with("x", "a\r\nSmuggled: b"),
        with("x", "a\nb"),
        with("x", "a\0b"),
        with("x y", "a"),
        with("x:", "a"),
        with("x\r\nsmuggled", "a"),
        with("X-Upper", "a"),
        with("", "a"),
        with("connection", "close"),
        with("transfer-encoding", "chunked"),
        with("upgrade", "h2c"),
        with("keep-alive", "1"),
        with("proxy-connection", "close"),
        with("te", "gzip"),
        with("content-length", "5"),
        with("content-length", "x"),
        with("host", "other"),
        with(":path", "/second"),
        with(":unknown", "a"),
        without(":method"),
        without(":path"),
        without(":scheme"),
        replaced(":path", ""),
        replaced(":path", "/a b"),
        replaced(":path", "/a\r\nX: y"),
        replaced(":path", "no-slash"),
        // Not `/#fragment`: the `http` crate drops a fragment before anybody sees it.
        replaced(":method", "G ET"),
        replaced(":method", "GET / HTTP/1.1\r\nX: y"),
        replaced(":authority", "a b"),
        replaced(":authority", "user@a"),
        replaced(":authority", ""),
        replaced(":scheme", "ht tp"),
    ]
}

#[test]
fn http2_requests_that_would_change_are_refused() {
    let (upstream, web, mut proxy) = setting();
    let mut wrong = Vec::new();
    for fields in &refused() {
        let mut client = Frames::connect(web);
        let sent = client.request(1, END_STREAM, fields);
        let status = sent.ok().and_then(|()| client.status_of(1));
        // A stream error, a connection error or a 4xx: all keep it from the upstream.
        if status.is_some_and(|status| !(400..500).contains(&status)) {
            wrong.push(format!("{fields:?} gave {status:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let reached: Vec<String> = upstream.seen().into_iter().map(|seen| seen.head).collect();
    assert!(reached.is_empty(), "{reached:#?}");

    // A plain one passes, so that the above means something.
    let mut client = Frames::connect(web);
    client
        .request(1, END_STREAM, &frames::get("/h2"))
        .expect("it is read");
    assert_eq!(client.status_of(1), Some(200));
    proxy.is_well();
}

/// A body longer or shorter than its `content-length` (RFC 9113 §8.1.1) must not shift what follows.
#[test]
fn http2_bodies_keep_their_length() {
    let (upstream, web, mut proxy) = setting();
    for (said, body) in [("3", "abcdef"), ("10", "abc")] {
        let mut client = Frames::connect(web);
        let mut fields = frames::get("/length");
        fields[0].1 = "POST";
        fields.push(("content-length", said));
        client.request(1, 0, &fields).expect("it is read");
        let _ = client.send(frames::DATA, END_STREAM, 1, body.as_bytes());
        let status = client.status_of(1);
        assert!(
            status.is_none_or(|status| (400..500).contains(&status)),
            "{said}: {status:?}"
        );
    }
    let reached: Vec<String> = upstream.seen().into_iter().map(|seen| seen.head).collect();
    assert!(reached.is_empty(), "{reached:#?}");
    proxy.is_well();
}

/// Frames out of place are connection errors (RFC 9113 §5.1, §6), not fatal to anybody else.
#[test]
fn http2_frames_out_of_place_close_the_connection() {
    let (_upstream, web, mut proxy) = setting();
    let block = frames::block(&frames::get("/"));
    let cases: [(&str, Vec<u8>); 9] = [
        (
            "DATA on an idle stream",
            frames::frame(frames::DATA, 0, 1, b"x"),
        ),
        ("DATA on stream 0", frames::frame(frames::DATA, 0, 0, b"x")),
        (
            "HEADERS on an even stream",
            frames::frame(frames::HEADERS, END_HEADERS | END_STREAM, 2, &block),
        ),
        (
            "CONTINUATION without HEADERS",
            frames::frame(frames::CONTINUATION, END_HEADERS, 1, &block),
        ),
        (
            "SETTINGS of five bytes",
            frames::frame(frames::SETTINGS, 0, 0, b"12345"),
        ),
        (
            "PING of seven bytes",
            frames::frame(frames::PING, 0, 0, b"1234567"),
        ),
        (
            "a window of zero more",
            frames::frame(frames::WINDOW_UPDATE, 0, 0, &[0; 4]),
        ),
        (
            "HEADERS with a broken block",
            frames::frame(frames::HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 8]),
        ),
        (
            "a frame larger than allowed",
            frames::frame(frames::DATA, 0, 1, &vec![0; 20_000]),
        ),
    ];
    for (name, bytes) in cases {
        let mut client = Frames::connect(web);
        let _ = std::io::Write::write_all(&mut client.stream, &bytes);
        let goaway = client.find(|frame| frame.kind == frames::GOAWAY);
        let code = goaway.and_then(|frame| frame.error_code());
        assert!(code.is_none_or(|code| code != 0), "{name}: {code:?}");
        assert!(client.find(|_| false).is_none(), "{name}: left open");
    }
    eventually("the errors being counted", || {
        let errors = proxy
            .metrics()
            .sum("weft_http2_connection_errors_total", &[("listener", "web")]);
        (errors >= 5.0).then_some(())
    });
    proxy.is_well();
}

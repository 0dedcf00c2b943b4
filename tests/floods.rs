//! Floods: HTTP/2 clients that open and reset, go on without end, or ask and never read. Each is closed
//! or held back, counted, and costs nobody else anything.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use weft_tests::config::front;
use weft_tests::frames::{self, ACK, END_HEADERS, END_STREAM, Frames};
use weft_tests::proxy::Proxy;
use weft_tests::raw;
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{eventually, port};

/// What the proxy may grow by under any attack here.
const GROWTH_KIB: u64 = 24 << 10;

/// A proxy with short timeouts in front of an upstream that echoes.
fn setting(http: serde_json::Value) -> (Upstream, SocketAddr, Proxy) {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    config["listeners"][0]["http"] = http;
    let proxy = Proxy::start(config);
    (upstream, web, proxy)
}

/// Sends what `flood` writes until the proxy closes the connection, and shows that it did not grow
/// and still serves others.
#[track_caller]
fn flood(name: &str, rounds: usize, mut flood: impl FnMut(&mut Frames, usize) -> bool) {
    let (_upstream, web, mut proxy) = setting(json!({"idleTimeout": "20s"}));
    raw::get(web, "/");
    let before = proxy.program.resident_kib();
    let mut client = Frames::connect(web);
    let closed = (0..rounds).any(|round| !flood(&mut client, round));
    assert!(closed, "{name}: {rounds} rounds were taken");
    let grown = proxy.program.resident_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB, "{name}: {grown} KiB more");
    assert_eq!(raw::get(web, "/others").status, 200);
    let labels = [("listener", "web")];
    eventually("the flood being counted", || {
        let counted = proxy
            .metrics()
            .sum("weft_http2_connection_errors_total", &labels);
        (counted >= 1.0).then_some(())
    });
    proxy.is_well();
}

/// CVE-2023-44487: open and reset, without ever waiting for an answer.
#[test]
fn rapid_resets_are_ended() {
    let block = frames::block(&frames::get("/"));
    flood("rapid reset", 200_000, |client, round| {
        let stream = u32::try_from(round * 2 + 1).unwrap_or(u32::MAX);
        let mut bytes = frames::frame(frames::HEADERS, END_HEADERS | END_STREAM, stream, &block);
        bytes.extend(frames::frame(
            frames::RST_STREAM,
            0,
            stream,
            &8_u32.to_be_bytes(),
        ));
        std::io::Write::write_all(&mut client.stream, &bytes).is_ok()
    });
}

/// CVE-2024-27316: a head that goes on in frame after frame.
#[test]
fn continuations_are_ended() {
    let mut first = true;
    flood("CONTINUATION", 20_000, |client, _| {
        let block = frames::block(&[("x", &"y".repeat(8000))]);
        if std::mem::take(&mut first) {
            let head = frames::block(&frames::get("/"));
            let _ = client.send(frames::HEADERS, END_STREAM, 1, &head);
        }
        client.send(frames::CONTINUATION, 0, 1, &block).is_ok()
    });
    // Empty ones add no byte, and count all the same.
    let mut first = true;
    flood("empty CONTINUATION", 2_000_000, |client, _| {
        if std::mem::take(&mut first) {
            let head = frames::block(&frames::get("/"));
            let _ = client.send(frames::HEADERS, END_STREAM, 1, &head);
        }
        let many = frames::frame(frames::CONTINUATION, 0, 1, b"").repeat(100);
        std::io::Write::write_all(&mut client.stream, &many).is_ok()
    });
}

/// A small block that unpacks to megabytes (one entry of the dynamic table, named again and again).
#[test]
fn hpack_bombs_are_refused() {
    let (upstream, web, mut proxy) = setting(json!({}));
    let before = proxy.program.resident_kib();
    for _ in 0..20 {
        let mut client = Frames::connect(web);
        let mut block = frames::block(&frames::get("/"));
        // A literal with indexing (RFC 7541 §6.2.1): name "x", 3,000 bytes of value.
        block.extend([0x40, 1, b'x', 127, 0xb9, 0x16]);
        block.extend(vec![b'y'; 127 + 0x39 + 0x16 * 128]);
        // Then the newest entry, 8,000 times: 24 MB.
        block.extend(vec![0xbe; 8000]);
        client
            .send(frames::HEADERS, END_HEADERS | END_STREAM, 1, &block)
            .expect("it is read");
        let status = client.status_of(1);
        assert!(matches!(status, Some(431) | None), "{status:?}");
    }
    assert!(proxy.program.resident_kib() < before + GROWTH_KIB);
    assert_eq!(upstream.count(), 0);
    proxy.is_well();
}

/// Frames that each ask for an answer, from a client that reads none.
fn unread(name: &str, kind: u8, payload: &[u8]) {
    let (_upstream, web, mut proxy) = setting(json!({}));
    raw::get(web, "/");
    let before = proxy.program.resident_kib();
    let mut client = Frames::connect(web);
    let _ = client
        .stream
        .set_write_timeout(Some(Duration::from_millis(700)));
    let many = frames::frame(kind, 0, 0, payload).repeat(1000);
    let mut sent = 0;
    // Until it is closed, or no more is taken: either bounds what waits.
    while sent < 3_000_000 && std::io::Write::write_all(&mut client.stream, &many).is_ok() {
        sent += 1000;
    }
    assert!(sent < 3_000_000, "{name}: {sent} were taken");
    let grown = proxy.program.resident_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB, "{name}: {grown} KiB more after {sent}");
    assert_eq!(raw::get(web, "/others").status, 200);
    proxy.is_well();
}

#[test]
fn ping_and_settings_floods_are_bounded() {
    unread("PING", frames::PING, b"12345678");
    unread("SETTINGS", frames::SETTINGS, &[0, 3, 0, 0, 0, 100]);
}

/// More streams than were allowed are refused, not queued.
#[test]
fn streams_are_limited() {
    let upstream = Upstream::start(|seen, stream| {
        if seen.target() == "/held" {
            let mut byte = [0];
            let _ = std::io::Read::read(stream, &mut byte);
        }
        upstream::answer(stream, 200, &[], b"");
        Then::Keep
    });
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    config["listeners"][0]["http"] = json!({"streamsMax": 10});
    let _proxy = Proxy::start(config);
    let mut client = Frames::connect(web);
    // The limit holds from the moment it is known.
    let settings = client.find(|frame| frame.kind == frames::SETTINGS && frame.flags & ACK == 0);
    let settings = settings.expect("it says its settings").payload;
    assert!(
        settings.chunks(6).any(|one| one == [0, 3, 0, 0, 0, 10]),
        "{settings:?}"
    );
    for number in 0..11 {
        let held = frames::get("/held");
        client
            .request(number * 2 + 1, END_STREAM, &held)
            .expect("it is read");
    }
    let refused = client.find(|frame| frame.kind == frames::RST_STREAM && frame.stream == 21);
    // REFUSED_STREAM: it may be sent again.
    assert_eq!(refused.and_then(|frame| frame.error_code()), Some(7));
    eventually("ten requests upstream", || {
        (upstream.count() == 10).then_some(())
    });
}

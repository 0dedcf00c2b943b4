//! Bodies: streamed and whole in both directions, interim answers, trailers, tunnels, and
//! back-pressure, which keeps a slow reader from filling the proxy's memory.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request};
use serde_json::json;
use tempfile::TempDir;
use weft_tests::config::front;
use weft_tests::curl::curl;
use weft_tests::frames::{self, Frames};
use weft_tests::nginx::Nginx;
use weft_tests::proxy::Proxy;
use weft_tests::raw::Raw;
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{eventually, http2, port, stepping_aside};

const LARGE: usize = 8 << 20;

/// Bytes in which a lost, doubled or moved piece shows.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn large_downloads_arrive_whole() {
    if stepping_aside("nginx") || stepping_aside("curl") {
        return;
    }
    let large = pattern(LARGE);
    for (options, protocol) in [("", "http1"), ("http2", "http2")] {
        let nginx = Nginx::listening(options, "");
        fs::write(nginx.folder.path().join("large"), &large).expect("a file can be written");
        let web = port::free_address();
        let mut config = front(web, &[nginx.address]);
        config["services"][0]["protocol"] = json!(protocol);
        let _proxy = Proxy::start(config);
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let got = curl(&[version, &format!("http://{web}/large")]);
            assert_eq!((got.exit, got.status), (0, 200), "{}", got.log);
            assert!(got.body == large, "{version} from {protocol}");
            let range = curl(&[version, "-r", "1000-1999", &format!("http://{web}/large")]);
            assert_eq!((range.exit, range.status), (0, 206), "{}", range.log);
            assert!(range.body == large[1000..2000]);
        }
    }
}

#[test]
fn large_uploads_arrive_whole() {
    if stepping_aside("curl") {
        return;
    }
    let folder = TempDir::new().expect("a folder can be made");
    let file = folder.path().join("large");
    let large = pattern(LARGE);
    fs::write(&file, &large).expect("a file can be written");
    let file = file.display().to_string();
    let upstream = Upstream::start(|seen, stream| {
        upstream::answer(stream, 200, &[], seen.body.len().to_string().as_bytes());
        Then::Keep
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let url = format!("http://{web}/");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (chunked, field) in [
            (&[][..], "content-length"),
            (&["-H", "Transfer-Encoding: chunked"], "transfer-encoding"),
        ] {
            let http2 = version != "--http1.1";
            if http2 && !chunked.is_empty() {
                continue;
            }
            let mut arguments = vec![version, "-T", &file, &url];
            arguments.extend(chunked);
            let got = curl(&arguments);
            assert_eq!((got.exit, got.status), (0, 200), "{}", got.log);
            let seen = upstream.last();
            assert!(seen.body == large, "{version} {chunked:?}");
            assert_eq!(seen.headers(field).len(), 1, "{}", seen.head);
            // curl asks before it sends much, and our upstream said 100.
            assert_eq!(http2, seen.header("expect").is_none());
        }
    }
}

#[test]
fn an_upload_to_http2_arrives_whole() {
    if stepping_aside("nginx") || stepping_aside("curl") {
        return;
    }
    // nginx takes the body and says how long it was.
    let nginx = Nginx::listening(
        "http2",
        "location /take { client_body_in_single_buffer on; proxy_pass http://$http_x_to; }
         location / { return 200 $content_length; }",
    );
    let behind = Upstream::start(|seen, stream| {
        upstream::answer(stream, 200, &[], seen.body.len().to_string().as_bytes());
        Then::Keep
    });
    let web = port::free_address();
    let mut config = front(web, &[nginx.address]);
    config["services"][0]["protocol"] = json!("http2");
    let _proxy = Proxy::start(config);
    let body = pattern(LARGE / 8);
    let to = format!("X-To: {}", behind.address);
    let answer = Raw::connect(web).request("POST", "/take", &[&to], &body);
    assert_eq!(answer.text(), body.len().to_string());
    assert!(behind.last().body == body);
}

#[test]
fn pieces_pass_as_they_come() {
    let (go, gate) = sync_channel::<()>(0);
    let gate = std::sync::Mutex::new(gate);
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        let waited = gate.lock().map(|gate| gate.recv());
        assert!(waited.is_ok());
        let _ = stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n");
        Then::Keep
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    raw.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(raw.head().header("transfer-encoding"), Some("chunked"));
    // The second piece is not sent before the first has been seen.
    raw.expect("5\r\nfirst\r\n");
    go.send(()).expect("the upstream waits");
    raw.expect("6\r\nsecond\r\n0\r\n\r\n");
}

#[test]
fn request_pieces_pass_as_they_come() {
    let (tell, told) = sync_channel::<String>(8);
    let address = upstream::opaque(move |mut stream: TcpStream| {
        let mut room = [0; 4096];
        let mut all = String::new();
        while let Ok(count @ 1..) = stream.read(&mut room) {
            all += &String::from_utf8_lossy(&room[..count]);
            if all.contains("first") {
                let _ = tell.send(std::mem::take(&mut all));
            }
            if all.contains("second") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        }
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[address]));
    let mut raw = Raw::connect(web);
    raw.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    let first = told.recv_timeout(weft_tests::PATIENCE);
    assert!(first.is_ok(), "the first piece waits for the second");
    raw.send("6\r\nsecond\r\n0\r\n\r\n");
    assert_eq!(raw.answer().text(), "ok");
}

#[test]
fn answers_without_a_length_keep_their_end() {
    let upstream = Upstream::fixed("HTTP/1.1 200 OK\r\n\r\nuntil the end", Then::Close);
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    for _ in 0..2 {
        let answer = raw.get("/");
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        assert_eq!(answer.text(), "until the end");
    }
    let mut old = Raw::connect(web);
    old.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let answer = old.answer();
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.text(), "until the end");
    assert_eq!(http2::get(web, "/").text(), "until the end");
}

/// An answer that ends before its length or its last chunk must not look whole.
#[test]
fn a_truncated_answer_is_not_made_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort",
    ] {
        let upstream = Upstream::fixed(answer, Then::Close);
        let web = port::free_address();
        let proxy = Proxy::start(front(web, &[upstream.address]));
        let mut raw = Raw::connect(web);
        raw.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        assert!(raw.try_answer("GET").is_err(), "{answer}");
        proxy.counts("upstream_truncated", 1.0);

        let request = Request::get("http://test/").body(Vec::new());
        let reset = http2::exchange(web, request.expect("it is valid"), None);
        assert!(reset.is_err(), "{answer}: {reset:?}");
    }
}

#[test]
fn continue_is_the_upstreams_to_say() {
    let upstream = Upstream::start(|seen, stream| {
        let status = if seen.target() == "/refuse" { 417 } else { 200 };
        upstream::answer(stream, status, &[], &seen.body);
        Then::Keep
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    raw.send("POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(raw.head().status, 100);
    raw.send("body");
    assert_eq!(raw.answer().text(), "body");

    let silent = upstream::opaque(|mut stream: TcpStream| {
        let mut room = [0; 4096];
        let _ = stream.read(&mut room);
        let _ =
            stream.write_all(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let _ = stream.read(&mut room);
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[silent]));
    let mut raw = Raw::connect(web);
    raw.send("POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(raw.head().status, 417);
}

#[test]
fn early_hints_pass() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nLink: </b.css>; rel=preload\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        Then::Keep,
    );
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    raw.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    for link in ["</style.css>; rel=preload", "</b.css>; rel=preload"] {
        let hint = raw.head();
        assert_eq!((hint.status, hint.header("link")), (103, Some(link)));
    }
    assert_eq!(raw.answer().text(), "ok");
    // RFC 9110 §15.2: never to a client of HTTP/1.0.
    let mut old = Raw::connect(web);
    old.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(old.head().status, 200);
    if stepping_aside("curl") {
        return;
    }
    let got = curl(&["-v", "--http2-prior-knowledge", &format!("http://{web}/")]);
    assert!(got.log.contains("HTTP/2 103"), "{}", got.log);
    assert_eq!((got.exit, got.text()), (0, "ok".to_owned()));
}

#[test]
fn trailers_pass_both_ways() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n",
        Then::Keep,
    );
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    raw.send(
        "POST / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\nbody\r\n0\r\nX-Sent: 7\r\n\r\n",
    );
    let answer = raw.answer();
    assert_eq!(
        (answer.text().as_str(), answer.trailer("x-sum")),
        ("ok", Some("42"))
    );
    let seen = upstream.last();
    assert_eq!(seen.body, b"body");
    assert_eq!(seen.trailers.to_lowercase(), "x-sent: 7\n");

    let request = Request::post("http://test/").header("te", "trailers");
    let request = request.body(b"body".to_vec()).expect("it is valid");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sent", HeaderValue::from_static("8"));
    let answer = http2::exchange(web, request, Some(trailers)).expect("an answer comes");
    let sum = answer
        .trailers
        .as_ref()
        .and_then(|fields| fields.get("x-sum"));
    assert_eq!(
        sum.map(HeaderValue::as_bytes),
        Some(&b"42"[..]),
        "{answer:?}"
    );
    assert_eq!(upstream.last().trailers.to_lowercase(), "x-sent: 8\n");
}

#[test]
fn connect_makes_a_tunnel() {
    let address = upstream::opaque(|mut stream: TcpStream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"CONNECT far:443 HTTP/1.1\r\n"));
        let _ = stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\nhello ");
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[address]));
    let mut raw = Raw::connect(web);
    raw.send("CONNECT far:443 HTTP/1.1\r\nHost: far:443\r\n\r\n");
    let answer = raw.answer_to("CONNECT");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("transfer-encoding"), None);
    raw.expect("hello ");
    for word in ["one", "two\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"] {
        raw.send(word);
        raw.expect(word);
    }
    // Half-close: the echo of the last bytes still comes.
    raw.send("last");
    raw.finish();
    raw.expect("last");
    assert!(raw.closed().is_empty());
}

/// How much a peer that does not read lets us send, both kernels' buffers included.
const STALLED_MAX: usize = 48 << 20;
/// What the proxy may grow by while somebody does not read.
const GROWTH_KIB: u64 = 12 << 10;

fn fill(stream: &mut TcpStream) -> usize {
    let _ = stream.set_write_timeout(Some(Duration::from_millis(700)));
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while sent < 2 * STALLED_MAX {
        match stream.write(&piece) {
            Ok(count) => sent += count,
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                    "{error}"
                );
                break;
            }
        }
    }
    sent
}

#[test]
fn an_upstream_that_does_not_read_stops_its_client() {
    let address = upstream::opaque(|stream: TcpStream| {
        let mut byte = [0];
        let _ = stream.peek(&mut byte);
        std::thread::park();
        drop(stream);
    });
    let web = port::free_address();
    let mut proxy = Proxy::start(front(web, &[address]));
    let before = proxy.program.resident_kib();
    let mut raw = Raw::connect(web);
    raw.send(format!(
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
        1_u64 << 40
    ));
    let sent = fill(&mut raw.stream);
    assert!(sent < STALLED_MAX, "{sent} bytes were taken");
    let grown = proxy.program.resident_kib().saturating_sub(before);
    assert!(grown < GROWTH_KIB, "{grown} KiB more for {sent} bytes");
    proxy.is_well();
}

#[test]
fn a_client_that_does_not_read_stops_its_upstream() {
    let (tell, told) = sync_channel::<usize>(1);
    let upstream = Upstream::start(move |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n");
        let _ = tell.try_send(fill(stream));
        Then::Close
    });
    let web = port::free_address();
    let mut proxy = Proxy::start(front(web, &[upstream.address]));
    let before = proxy.program.resident_kib();
    for http2 in [false, true] {
        let mut raw = Raw::connect(web);
        if http2 {
            raw.send(frames::PREFACE);
            let block = frames::block(&frames::get("/"));
            raw.send(frames::frame(4, 0, 0, b""));
            raw.send(frames::frame(1, 5, 1, &block));
        } else {
            raw.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        }
        let sent = told.recv_timeout(weft_tests::PATIENCE).expect("it stalls");
        assert!(sent < STALLED_MAX, "{sent} bytes were taken");
        let grown = proxy.program.resident_kib().saturating_sub(before);
        assert!(grown < GROWTH_KIB, "{grown} KiB more for {sent} bytes");
    }
    proxy.is_well();
}

/// A client that leaves takes its upstream exchange with it.
#[test]
fn a_client_that_leaves_frees_the_upstream() {
    let upstream = Upstream::start(|_, stream| {
        let mut room = [0; 64];
        let _ = stream.read(&mut room);
        Then::Close
    });
    let web = port::free_address();
    let proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    raw.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    eventually("the request upstream", || {
        (upstream.count() == 1).then_some(())
    });
    drop(raw);
    eventually("the end of its connection", || {
        (upstream.open() == 0).then_some(())
    });
    proxy.counts("downstream_gone", 1.0);
}

#[test]
fn a_large_head_of_an_answer_passes() {
    let upstream = Upstream::start(|_, stream| {
        let long = format!("X-Long: {}", "v".repeat(20_000));
        upstream::answer(stream, 200, &[&long], b"");
        Then::Keep
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    for length in [
        Raw::connect(web).get("/").header("x-long").map(str::len),
        http2::get(web, "/").header("x-long").map(str::len),
    ] {
        assert_eq!(length, Some(20_000));
    }
}

/// The same for a tunnel in one stream of an HTTP/2 connection (RFC 9113 §8.5).
#[test]
fn connect_over_http2_makes_a_tunnel() {
    let address = upstream::opaque(|mut stream: TcpStream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"CONNECT far:443 HTTP/1.1\r\n"));
        let _ = stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\nhello ");
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[address]));
    let mut client = Frames::connect(web);
    let fields = [(":method", "CONNECT"), (":authority", "far:443")];
    client.request(1, 0, &fields).expect("it is read");
    assert_eq!(client.status_of(1), Some(200));
    let mut heard = Vec::new();
    let mut hear = |client: &mut Frames, wanted: &[u8]| {
        while heard.len() < wanted.len() {
            let frame = client.find(|frame| frame.kind == frames::DATA && frame.stream == 1);
            heard.extend(frame.expect("it is open").payload);
        }
        assert_eq!(heard, wanted);
        heard.clear();
    };
    hear(&mut client, b"hello ");
    for word in [&b"one"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        client.send(frames::DATA, 0, 1, word).expect("it is read");
        hear(&mut client, word);
    }
    client
        .send(frames::DATA, frames::END_STREAM, 1, b"last")
        .expect("it is read");
    hear(&mut client, b"last");
    let end = client.find(|frame| frame.stream == 1 && frame.flags & frames::END_STREAM != 0);
    assert!(end.is_some(), "its end does not arrive");
}

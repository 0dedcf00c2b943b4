//! Limits and bad behaviour: slow clients, bombs and floods, more connections than descriptors. The
//! proxy answers or closes, counts it, and goes on serving everybody else.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;
use weft_tests::config::{front, opaque};
use weft_tests::frames::{self, END_STREAM, Frames};
use weft_tests::process::{Program, Signal};
use weft_tests::proxy::{Proxy, binary};
use weft_tests::raw::{self, Raw};
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{eventually, http2, port};

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

#[track_caller]
fn closed_connections(proxy: &Proxy, reason: &str, at_least: f64) {
    let labels = [("listener", "web"), ("reason", reason)];
    let what = format!("{at_least} connections closed as {reason}");
    eventually(&what, || {
        let closed = proxy
            .metrics()
            .sum("weft_connections_closed_total", &labels);
        (closed >= at_least).then_some(())
    });
}

#[test]
fn slow_heads_are_ended() {
    let (upstream, web, proxy) = setting(json!({"headerTimeout": "600ms"}));
    let mut slow: Vec<Raw> = (0..20).map(|_| Raw::connect(web)).collect();
    // A byte now and then keeps no connection alive.
    for byte in "GET / HTTP/1.1\r\nHo".bytes() {
        for raw in &mut slow {
            let _ = raw.try_send([byte]);
        }
        sleep(Duration::from_millis(50));
        assert_eq!(raw::get(web, "/others").status, 200);
    }
    for raw in &mut slow {
        let seen = String::from_utf8_lossy(&raw.closed()).into_owned();
        assert!(
            seen.starts_with("HTTP/1.1 408 ") && seen.contains("request_slow"),
            "{seen:?}"
        );
    }
    proxy.counts("request_slow", 20.0);
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| seen.target() == "/others")
    );
}

#[test]
fn slow_bodies_are_ended() {
    let (_upstream, web, proxy) = setting(json!({"bodyIdleTimeout": "2s"}));
    let mut raw = Raw::connect(web);
    raw.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nfirst");
    let answer = raw.answer();
    assert_eq!((answer.status, answer.reason()), (408, "request_slow"));
    assert!(raw.closed().is_empty());

    // As long as something comes it may take its time.
    let mut raw = Raw::connect(web);
    raw.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\n");
    for byte in b"abcdefgh" {
        sleep(Duration::from_millis(300));
        raw.send([*byte]);
    }
    assert_eq!(raw.answer().text(), "/abcdefgh");

    let mut client = Frames::connect(web);
    let mut fields = frames::get("/");
    fields[0].1 = "POST";
    client.request(1, 0, &fields).expect("it is read");
    let _ = client.send(frames::DATA, 0, 1, b"first");
    assert!(matches!(client.status_of(1), Some(408) | None));
    proxy.counts("request_slow", 2.0);
}

/// A client that stops reading does not hold its upstream for good, in either version.
#[test]
fn stalled_readers_are_ended() {
    let upstream = Upstream::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n");
        let piece = vec![b'x'; 64 << 10];
        while stream.write_all(&piece).is_ok() {}
        Then::Close
    });
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    config["listeners"][0]["http"] = json!({"bodyIdleTimeout": "400ms"});
    let proxy = Proxy::start(config);
    let mut raw = Raw::connect(web);
    raw.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut client = Frames::connect(web);
    client
        .request(1, END_STREAM, &frames::get("/"))
        .expect("it is read");
    proxy.counts("downstream_stalled", 2.0);
    eventually("the upstream being free", || {
        (upstream.open() == 0).then_some(())
    });
    // The stream is ended, the connection is as good as before.
    let reset = client.find(|frame| frame.kind == frames::RST_STREAM);
    assert_eq!(reset.map(|frame| frame.stream), Some(1));
}

/// Nor does an upstream that stops in the middle of its answer hold the client.
#[test]
fn stalled_answers_are_ended() {
    let upstream = Upstream::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        let mut byte = [0];
        let _ = std::io::Read::read(stream, &mut byte);
        Then::Close
    });
    let web = port::free_address();
    let mut config = front(web, &[upstream.address]);
    config["listeners"][0]["http"] = json!({"bodyIdleTimeout": "400ms"});
    let proxy = Proxy::start(config);
    let mut raw = Raw::connect(web);
    raw.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(raw.head().status, 200);
    assert_eq!(raw.closed(), b"half");
    eventually("the upstream being free", || {
        (upstream.open() == 0).then_some(())
    });
    assert!(proxy.requests("answered") < 0.5, "it was not whole");
}

#[test]
fn idle_connections_are_ended() {
    let (_upstream, web, proxy) = setting(json!({"idleTimeout": "2s"}));
    let mut silent = Raw::connect(web);
    let mut served = Raw::connect(web);
    assert_eq!(served.get("/").status, 200);
    let mut http2 = Frames::connect(web);
    http2
        .request(1, END_STREAM, &frames::get("/"))
        .expect("it is read");
    assert_eq!(http2.status_of(1), Some(200));
    assert!(silent.closed().is_empty());
    assert!(served.closed().is_empty());
    // HTTP/2 is told first.
    let goaway = http2.find(|frame| frame.kind == frames::GOAWAY);
    assert_eq!(goaway.and_then(|frame| frame.error_code()), Some(0));
    while http2.read().is_ok() {}
    closed_connections(&proxy, "idle_timeout", 2.0);
}

#[test]
fn header_bombs_are_refused() {
    let (upstream, web, mut proxy) = setting(json!({"headerBytesMax": 8192, "headersMax": 50}));
    let fields = |count: usize| -> String { (0..count).map(|n| format!("X{n}: y\r\n")).collect() };
    for (head, status, cause) in [
        (
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
                "y".repeat(9000)
            ),
            431,
            "header_too_large",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", fields(60)),
            431,
            "header_too_large",
        ),
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(9000)),
            414,
            "uri_too_long",
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{}: y\r\n\r\n",
                "x".repeat(9000)
            ),
            431,
            "header_too_large",
        ),
    ] {
        let mut raw = Raw::connect(web);
        let _ = raw.try_send(head);
        let answer = raw.answer();
        assert_eq!((answer.status, answer.reason()), (status, cause));
        assert!(raw.closed().is_empty());
    }
    proxy.counts("header_too_large", 3.0);
    proxy.counts("uri_too_long", 1.0);
    let within = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nY: {}\r\n{}\r\n",
        "y".repeat(7000),
        fields(40)
    );
    assert_eq!(raw::exchange(web, within).status, 200);
    assert_eq!(upstream.count(), 1);
    endless_head(web, &mut proxy);
}

/// HTTP/2: too large, and too many, in one block of fields.
#[test]
fn http2_header_bombs_are_refused() {
    let (upstream, web, mut proxy) = setting(json!({"headerBytesMax": 8192, "headersMax": 50}));
    let long = "y".repeat(9000);
    let mut large = frames::get("/");
    large.push(("x", &long));
    let names: Vec<String> = (0..60).map(|n| format!("x{n}")).collect();
    let mut many = frames::get("/");
    many.extend(names.iter().map(|name| (name.as_str(), "y")));
    for fields in [large, many] {
        let mut client = Frames::connect(web);
        client.request(1, END_STREAM, &fields).expect("it is read");
        assert!(matches!(client.status_of(1), Some(431) | None));
    }
    assert_eq!(upstream.count(), 0);
    proxy.is_well();
}

/// A head that never ends is refused long before it fills the memory.
#[track_caller]
fn endless_head(web: SocketAddr, proxy: &mut Proxy) {
    let before = proxy.program.resident_kib();
    let mut raw = Raw::connect(web);
    let _ = raw.try_send("GET / HTTP/1.1\r\n");
    let line = format!("X: {}\r\n", "y".repeat(60_000));
    let endless = (0..1000).all(|_| raw.try_send(&line).is_ok());
    assert!(!endless, "60 MB of fields were taken");
    assert!(proxy.program.resident_kib() < before + GROWTH_KIB);
    proxy.is_well();
}

#[test]
fn large_bodies_are_refused_when_limited() {
    let (upstream, web, proxy) = setting(json!({"bodyBytesMax": 1000}));
    let large = vec![b'x'; 1001];
    let answer = Raw::connect(web).request("POST", "/", &[], &large);
    assert_eq!((answer.status, answer.reason()), (413, "body_too_large"));
    let mut chunked =
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n".to_vec();
    chunked.extend(&large);
    chunked.extend(b"\r\n0\r\n\r\n");
    assert_eq!(raw::exchange(web, chunked).status, 413);
    let request = http::Request::post("http://test/").body(large.clone());
    let answer = http2::exchange(web, request.expect("it is valid"), None);
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 413));
    let answer = Raw::connect(web).request("POST", "/", &[], &large[..1000]);
    assert_eq!(answer.status, 200);
    proxy.counts("body_too_large", 3.0);
    assert_eq!(upstream.last().body.len(), 1000);
}

#[test]
fn connections_are_limited() {
    let (_upstream, web, mut proxy) = setting(json!({}));
    proxy.reload(|config| config["listeners"][0]["connectionsMax"] = json!(5));
    let mut held: Vec<Raw> = (0..5).map(|_| Raw::connect(web)).collect();
    for raw in &mut held {
        assert_eq!(raw.get("/").status, 200);
    }
    assert!(Raw::connect(web).closed().is_empty());
    let refused = [("listener", "web"), ("reason", "listener_connections_max")];
    eventually("the refusal being counted", || {
        (proxy
            .metrics()
            .sum("weft_connections_refused_total", &refused)
            >= 1.0)
            .then_some(())
    });
    held.pop();
    eventually("a place", || Raw::connect(web).try_get("/"));
    for raw in &mut held {
        assert_eq!(raw.get("/").status, 200);
    }
}

/// At the limit of all listeners together the idlest connections go first.
#[test]
fn the_idlest_connections_make_room() {
    let (_upstream, web, mut proxy) = setting(json!({}));
    proxy.reload(|config| config["settings"]["connectionsMax"] = json!(40));
    let mut held: Vec<Raw> = (0..100).map(|_| Raw::connect(web)).collect();
    for raw in &mut held {
        let _ = raw.try_get("/");
    }
    // New ones are served (a worker that has no idle one left sends the newcomer away, so it may
    // have to come again); many of the older are gone.
    eventually("a new connection being served", || {
        Raw::try_connect(web).and_then(|mut raw| raw.try_get("/new"))
    });
    let open = held
        .iter_mut()
        .filter_map(|raw| raw.try_get("/again"))
        .count();
    assert!(open <= 40, "{open} are open");
    proxy.is_well();
}

/// Out of descriptors: accepting pauses, the idlest go, nothing spins, and when there is room again
/// everything is served. Both limits are low, so that raising the soft one does not help.
#[test]
fn running_out_of_descriptors_is_survived() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let config = front(web, &[upstream.address]);
    let mut proxy = Proxy::start_as(config, |folder| {
        let mut command = std::process::Command::new("sh");
        command
            .arg("-c")
            .arg("ulimit -n 120 && exec \"$0\" --config \"$1\"")
            .arg(binary())
            .arg(folder.join("weft.yaml"));
        command
    });
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..400 {
        held.extend(TcpStream::connect_timeout(&web, Duration::from_millis(200)).ok());
    }
    assert!(held.len() > 200, "only {} connected", held.len());
    // Served while 400 others hold on to theirs.
    let served = eventually("an answer amid the crowd", || {
        Raw::try_connect(web).and_then(|mut raw| raw.try_get("/amid"))
    });
    assert_eq!(served.status, 200);
    let cpu = |program: &Program| -> u64 {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", program.pid())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split(' ').collect();
        // User and system time in ticks of 10 ms.
        [12, 13]
            .iter()
            .filter_map(|&at| fields.get(at)?.parse::<u64>().ok())
            .sum()
    };
    let before = cpu(&proxy.program);
    sleep(Duration::from_secs(1));
    let used = cpu(&proxy.program) - before;
    assert!(used < 50, "{used} ticks of a second: something spins");
    drop(held);
    eventually("an answer after the crowd", || {
        Raw::try_connect(web).and_then(|mut raw| raw.try_get("/after"))
    });
    proxy.is_well();
}

#[test]
fn the_soft_limit_of_descriptors_is_raised() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let proxy = Proxy::start_as(front(web, &[upstream.address]), |folder| {
        let mut command = std::process::Command::new("sh");
        command
            .arg("-c")
            .arg("ulimit -S -n 64 && exec \"$0\" --config \"$1\"")
            .arg(binary())
            .arg(folder.join("weft.yaml"));
        command
    });
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.program.pid()));
    let limits = limits.expect("the proxy is there");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap_or("");
    let mut numbers = line
        .split_whitespace()
        .filter_map(|word| word.parse::<u64>().ok());
    let (soft, hard) = (numbers.next(), numbers.next());
    assert!(soft > Some(64) && soft == hard, "{line}");
}

/// Opaque listeners shed the same way.
#[test]
fn opaque_connections_are_limited() {
    let address = port::free_address();
    let silent = upstream::opaque(|mut stream: TcpStream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let mut config = opaque(address, &[silent]);
    config["services"][0]["limits"] = json!({"connectionsMax": 3});
    let mut proxy = Proxy::start(config);
    let mut held: Vec<Raw> = (0..3).map(|_| Raw::connect(address)).collect();
    for raw in &mut held {
        raw.send("x");
        assert!(raw.is_silent(Duration::from_millis(100)));
    }
    assert!(Raw::connect(address).closed().is_empty());
    drop(held);
    eventually("a place", || {
        let mut raw = Raw::connect(address);
        raw.is_silent(Duration::from_millis(200)).then_some(())
    });
    proxy.is_well();
    proxy.signal(Signal::TERM);
}

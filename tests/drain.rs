//! SIGTERM: peers are told to leave, what runs is finished, what arrives is answered, and nothing is
//! cut off before the deadline. A second signal ends at once.

use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_tests::config::{front, opaque};
use weft_tests::frames::{self, END_STREAM, Frames};
use weft_tests::load::{Load, Mode};
use weft_tests::process::Signal;
use weft_tests::proxy::Proxy;
use weft_tests::raw::Raw;
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{eventually, port};

/// An upstream that holds `/held` until it is let go.
fn holding() -> (Upstream, SyncSender<()>) {
    let (release, gate) = sync_channel::<()>(16);
    let gate = Mutex::new(gate);
    let upstream = Upstream::start(move |seen, stream| {
        if seen.target() == "/held" {
            let _ = gate
                .lock()
                .map(|gate| gate.recv_timeout(weft_tests::PATIENCE));
        }
        upstream::answer(stream, 200, &[], seen.target().as_bytes());
        Then::Keep
    });
    (upstream, release)
}

fn draining(endpoint: SocketAddr, drain: Value) -> (SocketAddr, Proxy) {
    let web = port::free_address();
    let mut config = front(web, &[endpoint]);
    config["settings"] = json!({"drain": drain});
    (web, Proxy::start(config))
}

#[test]
fn running_requests_are_finished() {
    let (upstream, release) = holding();
    let (web, mut proxy) = draining(
        upstream.address,
        json!({"timeout": "30s", "quiet": "200ms"}),
    );
    let mut http1 = Raw::connect(web);
    http1.send("GET /held HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut http2 = Frames::connect(web);
    http2
        .request(1, END_STREAM, &frames::get("/held"))
        .expect("it is read");
    eventually("both upstream", || (upstream.count() == 2).then_some(()));
    proxy.signal(Signal::TERM);
    // HTTP/2 is told at once, and finishes what it began.
    let goaway = http2
        .find(|frame| frame.kind == frames::GOAWAY)
        .expect("it is told");
    assert_eq!(goaway.error_code(), Some(0));
    for _ in 0..2 {
        release.send(()).expect("it is there");
    }
    let answer = http2.find(|frame| frame.stream == 1);
    assert_eq!(answer.and_then(|frame| frame.status()), Some(200));
    while http2.read().is_ok() {}
    let answer = http1.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "/held"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(http1.closed().is_empty());
    assert!(proxy.program.ended().success());
}

#[test]
fn what_arrives_is_still_answered() {
    let upstream = Upstream::echo("up");
    let (web, mut proxy) = draining(upstream.address, json!({"timeout": "30s", "quiet": "5s"}));
    let mut kept = Raw::connect(web);
    assert_eq!(kept.get("/before").status, 200);
    proxy.signal(Signal::TERM);
    let admin = proxy.admin;
    eventually("it being unready", || {
        let answer = Raw::try_connect(admin)?.try_get("/ready")?;
        (answer.status == 503).then_some(())
    });
    assert_eq!(Raw::connect(admin).get("/live").status, 200);
    // On a connection that was there, and on a new one: answered, and told to go.
    for raw in [&mut kept, &mut Raw::connect(web)] {
        let answer = raw.get("/during");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(raw.closed().is_empty());
    }
    assert!(proxy.program.ended().success());
    assert!(Raw::try_connect(web).is_none());
}

/// Load that ends only when the port is gone: whoever was let in was served.
#[test]
fn a_drain_under_load_loses_nothing_that_was_accepted() {
    let upstream = Upstream::echo("up");
    let (web, mut proxy) = draining(
        upstream.address,
        json!({"timeout": "30s", "quiet": "300ms"}),
    );
    let loads = [Mode::KeepAlive, Mode::Http2(4)].map(|mode| Load::start(web, mode, 4));
    for load in &loads {
        load.goes_on(200);
    }
    proxy.signal(Signal::TERM);
    // New connections keep it awake; it ends when the load does.
    for load in &loads {
        load.goes_on(200);
    }
    for load in loads {
        let tally = load.stop();
        assert_eq!(tally.failed, tally.refused, "{tally:#?}");
    }
    assert!(proxy.program.ended().success());
}

#[test]
fn the_deadline_ends_what_is_left() {
    let (upstream, _release) = holding();
    let (web, mut proxy) = draining(
        upstream.address,
        json!({"timeout": "500ms", "quiet": "100ms"}),
    );
    let mut raw = Raw::connect(web);
    raw.send("GET /held HTTP/1.1\r\nHost: test\r\n\r\n");
    eventually("it upstream", || (upstream.count() == 1).then_some(()));
    proxy.signal(Signal::TERM);
    assert!(proxy.program.ended().success());
    let _ = raw.closed();
    assert!(
        proxy.program.output().contains("drain.timeout"),
        "it is said"
    );
}

#[test]
fn a_second_signal_ends_at_once() {
    let (upstream, _release) = holding();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (web, mut proxy) = draining(upstream.address, json!({"timeout": "1h"}));
        let before = upstream.count();
        let mut raw = Raw::connect(web);
        raw.send("GET /held HTTP/1.1\r\nHost: test\r\n\r\n");
        eventually("it upstream", || (upstream.count() > before).then_some(()));
        proxy.signal(Signal::TERM);
        eventually("the drain", || {
            proxy.program.output().contains("draining").then_some(())
        });
        assert!(proxy.program.is_running());
        proxy.signal(signal);
        assert_eq!(proxy.program.ended().code(), Some(code));
    }
}

/// The admin port begins a drain too, for whoever cannot send signals.
#[test]
fn the_admin_port_begins_a_drain() {
    let upstream = Upstream::echo("up");
    let (_web, mut proxy) = draining(upstream.address, json!({"quiet": "100ms"}));
    let answer = Raw::connect(proxy.admin).request("POST", "/drain", &[], b"");
    assert_eq!(answer.status, 202);
    assert!(proxy.program.ended().success());
}

/// Opaque connections know no leaving: they get the time there is.
#[test]
fn opaque_connections_get_the_deadline() {
    let echo = upstream::opaque(|mut stream: TcpStream| {
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let address = port::free_address();
    let mut config = opaque(address, &[echo]);
    config["settings"] = json!({"drain": {"timeout": "1s", "quiet": "50ms"}});
    let mut proxy = Proxy::start(config);
    let (mut one, mut two) = (Raw::connect(address), Raw::connect(address));
    for raw in [&mut one, &mut two] {
        raw.send("before");
        raw.expect("before");
    }
    let began = Instant::now();
    proxy.signal(Signal::TERM);
    eventually("the drain", || {
        proxy.program.output().contains("draining").then_some(())
    });
    one.send("during");
    one.expect("during");
    drop(one);
    assert!(two.closed().is_empty());
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "it was cut off early"
    );
    assert!(proxy.program.ended().success());
}

/// Idle connections need no deadline: they are told, or closed, and the process ends soon.
#[test]
fn idle_connections_do_not_hold_it_up() {
    let upstream = Upstream::echo("up");
    let (web, mut proxy) = draining(upstream.address, json!({"timeout": "1h", "quiet": "100ms"}));
    let mut idle: Vec<Raw> = (0..10).map(|_| Raw::connect(web)).collect();
    for raw in &mut idle {
        assert_eq!(raw.get("/").status, 200);
    }
    let mut http2 = Frames::connect(web);
    http2
        .request(1, END_STREAM, &frames::get("/"))
        .expect("it is read");
    assert_eq!(http2.status_of(1), Some(200));
    let silent = TcpStream::connect(web).expect("it accepts");
    proxy.signal(Signal::TERM);
    let goaway = http2.find(|frame| frame.kind == frames::GOAWAY);
    assert_eq!(goaway.and_then(|frame| frame.error_code()), Some(0));
    while http2.read().is_ok() {}
    assert!(proxy.program.ended().success());
    for raw in &mut idle {
        assert!(raw.closed().is_empty());
    }
    drop(silent);
}

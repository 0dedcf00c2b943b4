//! Bad upstreams: dead ones, slow ones, flapping ones, ones that close what was kept. What the client
//! sees, what the upstream got, and what was counted.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::config::{front, route};
use weft_tests::h2load::h2load;
use weft_tests::load::{Load, Mode};
use weft_tests::nginx::{ECHO, Nginx};
use weft_tests::proxy::Proxy;
use weft_tests::raw::{self, Raw};
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{PATIENCE, eventually, port, stepping_aside};

fn setting(endpoints: &[SocketAddr], change: impl FnOnce(&mut Value)) -> (SocketAddr, Proxy) {
    let web = port::free_address();
    let mut config = front(web, endpoints);
    config["services"][0]["balancer"] = json!({"algorithm": "round_robin"});
    change(&mut config);
    (web, Proxy::start(config))
}

fn with_rule(config: &mut Value, rule: Value) {
    let mut rule = rule;
    rule["backendRefs"] = json!([{"name": "up"}]);
    config["routes"] = json!([route("shop", json!([rule]))]);
}

/// An upstream that can be told to fail.
fn failing(status: u16) -> (Upstream, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&fails);
    let upstream = Upstream::start(move |seen, stream| {
        let status = if told.load(Ordering::SeqCst) {
            status
        } else {
            200
        };
        upstream::answer(
            stream,
            status,
            &["x-upstream: failing"],
            seen.target().as_bytes(),
        );
        Then::Keep
    });
    (upstream, fails)
}

#[test]
fn a_dead_endpoint_costs_no_request() {
    let good = Upstream::echo("good");
    let dead = port::free_address();
    let (web, proxy) = setting(&[dead, good.address], |_| ());
    // Nothing was sent, so any method may be tried elsewhere.
    for number in 0..20 {
        let answer = Raw::connect(web).request("POST", "/", &[], b"body");
        assert_eq!(answer.status, 200, "{number}");
    }
    assert_eq!(good.count(), 20);
    proxy.counts("answered", 20.0);
    let free = [("kind", "connect_failed"), ("result", "free")];
    assert!(proxy.metrics().sum("weft_retries_total", &free) >= 1.0);
}

#[test]
fn nobody_there_is_said() {
    let (web, mut proxy) = setting(&[port::free_address(), port::free_address()], |_| ());
    let answer = raw::get(web, "/");
    assert_eq!((answer.status, answer.reason()), (503, "connect_failed"));
    proxy.reload(|config| config["services"][0]["endpoints"] = json!([]));
    let answer = raw::get(web, "/");
    assert_eq!((answer.status, answer.reason()), (503, "no_endpoint"));
    proxy.is_well();
}

#[test]
fn health_checks_take_out_and_in() {
    let (sick, fails) = failing(500);
    let good = Upstream::echo("good");
    let (web, proxy) = setting(&[sick.address, good.address], |config| {
        config["services"][0]["healthCheck"] = json!({"path": "/health", "host": "check.example",
            "interval": "50ms", "timeout": "2s", "unhealthyThreshold": 2, "healthyThreshold": 2});
    });
    eventually("one unhealthy", || {
        (proxy.available("up") < 1.5).then_some(())
    });
    let check = sick
        .seen()
        .into_iter()
        .find(|seen| seen.target() == "/health");
    assert_eq!(
        check.expect("it was checked").header("host"),
        Some("check.example")
    );
    for _ in 0..10 {
        assert_eq!(raw::get(web, "/x").header("x-upstream"), Some("good"));
    }
    fails.store(false, Ordering::SeqCst);
    eventually("both healthy", || {
        (proxy.available("up") > 1.5).then_some(())
    });
    let used = (0..10).any(|_| raw::get(web, "/x").header("x-upstream") == Some("failing"));
    assert!(used, "it is healthy and gets nothing");
    let endpoints: Value = serde_json::from_slice(&proxy.ask("/endpoints").body).expect("JSON");
    let health = &endpoints["services"][0]["endpoints"][0]["health"];
    assert_eq!(health, "healthy", "{endpoints}");
}

/// Less than half healthy: health says more about the check than about the endpoints.
#[test]
fn panic_ignores_health() {
    let upstreams: Vec<(Upstream, _)> = (0..3).map(|_| failing(500)).collect();
    let addresses: Vec<SocketAddr> = upstreams.iter().map(|(up, _)| up.address).collect();
    let (web, proxy) = setting(&addresses, |config| {
        config["services"][0]["healthCheck"] = json!({"path": "/health", "interval": "50ms",
            "timeout": "2s", "unhealthyThreshold": 1});
    });
    eventually("none healthy", || {
        (proxy.available("up") < 0.5).then_some(())
    });
    for _ in 0..9 {
        assert_eq!(raw::get(web, "/x").header("x-upstream"), Some("failing"));
    }
    assert!(
        proxy
            .metrics()
            .sum("weft_panic_picks_total", &[("service", "up")])
            >= 9.0
    );
}

#[test]
fn failing_endpoints_are_ejected_and_come_back() {
    let (sick, fails) = failing(503);
    let good = Upstream::echo("good");
    let (web, proxy) = setting(&[sick.address, good.address], |config| {
        config["services"][0]["outlierDetection"] =
            json!({"consecutiveFailures": 3, "baseEjectionTime": "1s", "ejectedPercentMax": 50});
    });
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(raw::get(web, "/").status == 503);
    }
    assert!((3..=8).contains(&failed), "{failed} of 40 failed");
    let ejections = proxy
        .metrics()
        .sum("weft_ejections_total", &[("service", "up")]);
    assert!(ejections >= 1.0, "{ejections}");
    fails.store(false, Ordering::SeqCst);
    eventually("it coming back", || {
        (raw::get(web, "/").header("x-upstream") == Some("failing")).then_some(())
    });
}

/// When all fail, one at least stays, and answers are the upstream's own.
#[test]
fn the_last_endpoint_is_never_ejected() {
    let (sick, _fails) = failing(500);
    let (web, proxy) = setting(&[sick.address], |config| {
        config["services"][0]["outlierDetection"] =
            json!({"consecutiveFailures": 1, "ejectedPercentMax": 100});
    });
    for _ in 0..20 {
        let answer = raw::get(web, "/");
        assert_eq!((answer.status, answer.reason()), (500, ""));
    }
    assert_eq!(sick.count(), 20);
    proxy.counts("answered", 20.0);
}

#[test]
fn timeouts_are_told_apart() {
    let slow = Upstream::start(|seen, stream| {
        sleep(Duration::from_secs(3));
        upstream::answer(stream, 200, &[], seen.target().as_bytes());
        Then::Keep
    });
    let fast = Upstream::echo("fast");
    let (web, mut proxy) = setting(&[slow.address], |config| {
        with_rule(config, json!({"timeouts": {"request": "1s"}}));
    });
    let answer = raw::get(web, "/");
    assert_eq!((answer.status, answer.reason()), (504, "request_timeout"));
    proxy.reload(|config| {
        with_rule(
            config,
            json!({"timeouts": {"backendRequest": "1s", "request": "10s"}}),
        );
    });
    let answer = raw::get(web, "/");
    assert_eq!((answer.status, answer.reason()), (504, "try_timeout"));
    // With a retry, another endpoint makes up for the slow one.
    proxy.reload(|config| {
        with_rule(
            config,
            json!({"timeouts": {"backendRequest": "1s", "request": "10s"},
            "retry": {"attempts": 2, "backoff": "1ms"}}),
        );
        config["services"][0]["endpoints"] =
            json!([{"address": slow.address.to_string()}, {"address": fast.address.to_string()}]);
    });
    for _ in 0..4 {
        assert_eq!(raw::get(web, "/").header("x-upstream"), Some("fast"));
    }
    proxy.counts("request_timeout", 1.0);
    proxy.counts("try_timeout", 1.0);
}

/// A server that accepts and never completes: its listen queue is full.
#[test]
fn connecting_has_a_timeout() {
    // TEST-NET-1 (RFC 5737) answers nothing, where it is routed at all.
    let (web, proxy) = setting(&["192.0.2.1:9".parse().expect("an address")], |config| {
        config["services"][0]["connectTimeout"] = json!("300ms");
    });
    let answer = raw::get(web, "/");
    assert_eq!(answer.status, 503);
    assert!(
        matches!(answer.reason(), "connect_timeout" | "connect_failed"),
        "{answer:?}"
    );
    drop(proxy);
}

/// Holds `/held` until it is let go.
fn holding() -> (Upstream, SyncSender<()>) {
    let (release, gate) = sync_channel::<()>(16);
    let gate = Mutex::new(gate);
    let upstream = Upstream::start(move |seen, stream| {
        if seen.target() == "/held" {
            let _ = gate.lock().map(|gate| gate.recv_timeout(PATIENCE));
        }
        upstream::answer(stream, 200, &[], seen.target().as_bytes());
        Then::Keep
    });
    (upstream, release)
}

fn held_clients(web: SocketAddr, count: usize) -> Vec<JoinHandle<u16>> {
    let client = move || raw::get(web, "/held").status;
    (0..count).map(|_| thread::spawn(client)).collect()
}

#[track_caller]
fn all_served(clients: Vec<JoinHandle<u16>>, release: &SyncSender<()>) {
    for _ in &clients {
        release.send(()).expect("they wait");
    }
    for client in clients {
        assert_eq!(client.join().expect("it does not panic"), 200);
    }
}

/// At each limit of a service what is too much is shed with 503 and its reason, and counted.
#[test]
fn requests_beyond_the_limit_are_shed() {
    let (held, release) = holding();
    let (web, proxy) = setting(&[held.address], |config| {
        config["services"][0]["limits"] = json!({"requestsMax": 2});
    });
    let clients = held_clients(web, 2);
    eventually("two requests upstream", || {
        (held.count() == 2).then_some(())
    });
    let answer = raw::get(web, "/more");
    assert_eq!((answer.status, answer.reason()), (503, "requests_full"));
    all_served(clients, &release);
    assert_eq!(raw::get(web, "/more").status, 200);
    proxy.counts("requests_full", 1.0);
    let shed = proxy.metrics().sum(
        "weft_shed_total",
        &[("service", "up"), ("limit", "request")],
    );
    assert!((shed - 1.0).abs() < 0.5, "{shed}");
}

/// One connection, and one request that may wait for it: the third is shed.
#[test]
fn requests_wait_for_a_connection_and_no_more_than_may() {
    let (held, release) = holding();
    let (web, proxy) = setting(&[held.address], |config| {
        config["services"][0]["limits"] = json!({"connectionsMax": 1, "pendingMax": 1});
        // Within a worker the connection itself is handed on; between two, its place.
        config["settings"]["workers"] = json!(1);
    });
    let mut clients = held_clients(web, 1);
    eventually("one request upstream", || (held.count() == 1).then_some(()));
    clients.extend(held_clients(web, 1));
    let pending = || {
        let labels = [("service", "up"), ("limit", "pending")];
        proxy.metrics().sum("weft_limit_used", &labels)
    };
    eventually("one request waiting", || (pending() > 0.5).then_some(()));
    let answer = raw::get(web, "/more");
    assert_eq!((answer.status, answer.reason()), (503, "pending_full"));
    all_served(clients, &release);
    assert_eq!(held.connections(), 1);
    proxy.counts("pending_full", 1.0);
    assert_eq!(raw::get(web, "/more").status, 200);
}

/// Early answers: the upstream refuses an upload without reading it.
#[test]
fn an_early_refusal_reaches_the_client() {
    let address = upstream::opaque(|mut stream: std::net::TcpStream| {
        let mut room = [0; 1024];
        let _ = std::io::Read::read(&mut stream, &mut room);
        let _ = stream
            .write_all(b"HTTP/1.1 413 Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // What is still under way is read, so that the refusal is not reset.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let (web, _proxy) = setting(&[address], |_| ());
    let mut raw = Raw::connect(web);
    let body = vec![b'x'; 4 << 20];
    let _ = raw.try_send(format!(
        "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    let _ = raw.try_send(body);
    let answer = raw.answer();
    assert_eq!((answer.status, answer.text().as_str()), (413, "no!"));
}

/// One of two replicas is killed under load and comes back: nothing is lost.
#[test]
fn a_replica_that_dies_under_load_loses_nothing() {
    let upstreams = [Upstream::echo("0"), Upstream::echo("1")];
    let [mut first, second] = upstreams;
    let (web, _proxy) = setting(&[first.address, second.address], |config| {
        config["services"][0]["balancer"] = json!({});
        config["services"][0]["retryBudget"] = json!({"percent": 50});
    });
    let loads =
        [Mode::KeepAlive, Mode::ConnectEach, Mode::Http2(4)].map(|mode| Load::start(web, mode, 4));
    for load in &loads {
        load.goes_on(200);
    }
    for _ in 0..3 {
        let address = first.address;
        first.stop();
        for load in &loads {
            load.goes_on(200);
        }
        first = Upstream::echo_at(address, "0");
        eventually("the replica being used again", || {
            (first.count() > 0).then_some(())
        });
    }
    for load in loads {
        load.stop().none_lost();
    }
}

/// nginx leaves connections after a few requests: by `Connection: close`, and by GOAWAY, above whose
/// last stream nothing was processed.
#[test]
fn upstreams_that_leave_their_connections_lose_nothing() {
    if stepping_aside("nginx") || stepping_aside("h2load") {
        return;
    }
    let server = format!("keepalive_requests 20; {ECHO}");
    for (options, protocol) in [("", "http1"), ("http2", "http2")] {
        let nginx = Nginx::listening(options, &server);
        let (web, proxy) = setting(&[nginx.address], |config| {
            config["services"][0]["protocol"] = json!(protocol);
            config["services"][0]["limits"] = json!({"streamsPerConnectionMax": 10});
        });
        let url = format!("http://{web}/load");
        h2load(&["--h1", "-n", "2000", "-c", "10", &url]).all_good();
        h2load(&["-n", "2000", "-c", "4", "-m", "10", &url]).all_good();
        let load = Load::start(web, Mode::Http2(10), 4);
        load.goes_on(1000);
        load.stop().none_lost();
        let opened = proxy
            .metrics()
            .sum("weft_upstream_connections_opened_total", &[]);
        assert!(
            opened >= 5000.0 / 20.0,
            "only {opened} connections: nginx did not leave"
        );
    }
}

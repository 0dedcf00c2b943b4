//! Retries: what is tried again, how often, at whose cost, and what never is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use weft_tests::config::{front, route};
use weft_tests::load::{Load, Mode};
use weft_tests::port;
use weft_tests::proxy::Proxy;
use weft_tests::raw::{self, Raw};
use weft_tests::upstream::{self, Then, Upstream};

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
fn retries_follow_their_policy() {
    let (sick, _fails) = failing(503);
    let good = Upstream::echo("good");
    let (web, mut proxy) = setting(&[sick.address, good.address], |config| {
        with_rule(
            config,
            json!({"retry": {"codes": [503], "attempts": 2, "backoff": "1ms"}}),
        );
    });
    for _ in 0..10 {
        let answer = Raw::connect(web).request("POST", "/r", &[], b"body");
        assert_eq!(answer.header("x-upstream"), Some("good"));
    }
    // Bodies were sent again, whole.
    assert!(sick.count() >= 4);
    assert!(good.seen().iter().all(|seen| seen.body == b"body"));
    // Without a policy an answer is an answer.
    proxy.reload(|config| config["routes"] = json!([]));
    let own = (0..4).filter(|_| raw::get(web, "/r").status == 503).count();
    assert_eq!(own, 2);
}

#[test]
fn attempts_and_large_bodies_bound_retries() {
    let (sick, _fails) = failing(503);
    let (web, proxy) = setting(&[sick.address], |config| {
        with_rule(
            config,
            json!({"retry": {"codes": [503], "attempts": 3, "backoff": "1ms"}}),
        );
        config["services"][0]["replayBytesMax"] = json!(20_000);
    });
    assert_eq!(raw::get(web, "/").status, 503);
    assert_eq!(sick.count(), 4);
    assert_eq!(
        Raw::connect(web)
            .request("POST", "/", &[], &[b'x'; 1000])
            .status,
        503
    );
    assert_eq!(sick.count(), 8);
    // A body too large to be kept is sent once.
    assert_eq!(
        Raw::connect(web)
            .request("POST", "/", &[], &vec![b'x'; 200_000])
            .status,
        503
    );
    assert_eq!(sick.count(), 9);
    let kept_not = [("result", "not_replayable")];
    assert!(proxy.metrics().sum("weft_retries_total", &kept_not) >= 1.0);
}

/// All fail at once: retries stay within their share, so that nobody is beaten while down.
#[test]
fn the_budget_prevents_a_storm() {
    let (sick, _fails) = failing(503);
    let (web, proxy) = setting(&[sick.address], |config| {
        with_rule(
            config,
            json!({"retry": {"codes": [503], "attempts": 3, "backoff": "1ms"}}),
        );
        config["services"][0]["retryBudget"] =
            json!({"percent": 20, "interval": "10s", "retriesMinPerSecond": 1});
    });
    let mut raw = Raw::connect(web);
    for _ in 0..500 {
        assert_eq!(raw.get("/").status, 503);
    }
    let retries = sick.count() - 500;
    // 20 % are 100, and one a second for the interval of 10 s and the test's own seconds.
    assert!(
        (50..=130).contains(&retries),
        "{retries} retries of 500 requests"
    );
    assert!(
        proxy
            .metrics()
            .sum("weft_retries_total", &[("result", "budget_used")])
            >= 300.0
    );
}

/// The server closes a kept connection just as a request is sent on it, for which no client is to
/// blame. Idempotent requests are tried again; others never meet such a connection, if it can be seen.
#[test]
fn closed_kept_connections_surface_nowhere() {
    let upstream = Upstream::echo("up");
    let (web, proxy) = setting(&[upstream.address], |_| ());
    let mut raw = Raw::connect(web);
    for round in 0..50 {
        assert_eq!(raw.get("/").status, 200, "round {round}");
        upstream.drop_connections();
        let answer = raw.request("POST", "/post", &[], b"body");
        assert_eq!(answer.status, 200, "POST, round {round}");
        upstream.drop_connections();
    }
    proxy.counts("answered", 100.0);
    let posts = upstream
        .seen()
        .iter()
        .filter(|seen| seen.method() == "POST")
        .count();
    assert_eq!(posts, 50);
}

/// The same under load, by an upstream that closes after a few requests without a word.
#[test]
fn unannounced_closes_lose_nothing() {
    let served = Arc::new(AtomicUsize::new(0));
    let upstream = Upstream::start(move |seen, stream| {
        upstream::answer(stream, 200, &[], seen.target().as_bytes());
        match served.fetch_add(1, Ordering::SeqCst) % 7 {
            0 => Then::Close,
            3 => Then::Reset,
            _ => Then::Keep,
        }
    });
    let (web, proxy) = setting(&[upstream.address], |config| {
        // Each close may cost one retry; this is not about the budget.
        config["services"][0]["retryBudget"] = json!({"percent": 100});
    });
    for mode in [Mode::KeepAlive, Mode::Http2(4)] {
        let load = Load::start(web, mode, 4);
        load.goes_on(1500);
        load.stop().none_lost();
    }
    assert!(proxy.requests("upstream_reset") < 0.5);
}

/// An idempotent request that was read and dropped is tried again; one that is not is answered 502,
/// for it may have been done; neither is when it is switched off.
#[test]
fn lost_requests_are_tried_again_only_when_harmless() {
    let upstream = Upstream::start(|seen, stream| {
        if seen.connection % 2 == 0 {
            return Then::Close;
        }
        upstream::answer(stream, 200, &["Connection: close"], b"");
        Then::Close
    });
    let (web, mut proxy) = setting(&[upstream.address], |_| ());
    assert_eq!(raw::get(web, "/").status, 200);
    assert_eq!(upstream.count(), 2);
    let answer = Raw::connect(web).request("PUT", "/", &[], b"body");
    assert_eq!(answer.status, 200);
    assert_eq!(upstream.count(), 4);
    let answer = Raw::connect(web).request("POST", "/", &[], b"body");
    assert_eq!((answer.status, answer.reason()), (502, "upstream_reset"));
    assert_eq!(upstream.count(), 5);
    assert_eq!(
        Raw::connect(web).request("POST", "/", &[], b"body").status,
        200
    );
    proxy.reload(|config| config["services"][0]["disableIdempotentRetry"] = json!(true));
    let answer = raw::get(web, "/");
    assert_eq!((answer.status, answer.reason()), (502, "upstream_reset"));
    assert_eq!(upstream.count(), 7);
}

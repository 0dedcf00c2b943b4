//! Who gets the requests. That each algorithm shares as it should is simulated beside its code; here
//! real endpoints show that the proxy uses it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::config::front;
use weft_tests::load::{Load, Mode};
use weft_tests::proxy::Proxy;
use weft_tests::raw::Raw;
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{eventually, port};

const NAMES: [&str; 4] = ["0", "1", "2", "3"];

fn setting(balancer: Value) -> (Vec<Upstream>, SocketAddr, Proxy) {
    let upstreams: Vec<Upstream> = NAMES.map(Upstream::echo).into();
    let addresses: Vec<SocketAddr> = upstreams.iter().map(|up| up.address).collect();
    let web = port::free_address();
    let mut config = front(web, &addresses);
    config["services"][0]["balancer"] = balancer;
    // One worker, so that what it keeps for itself (round robin's place) is the whole.
    config["settings"] = json!({"workers": 1});
    (upstreams, web, Proxy::start(config))
}

fn ask(web: SocketAddr, headers: &[&str]) -> String {
    let answer = Raw::connect(web).request("GET", "/", headers, b"");
    answer.header("x-upstream").unwrap_or("").to_owned()
}

#[test]
fn every_algorithm_uses_every_endpoint() {
    for algorithm in ["peak_ewma", "least_request", "round_robin", "random"] {
        let (upstreams, web, _proxy) = setting(json!({"algorithm": algorithm}));
        let load = Load::start(web, Mode::KeepAlive, 8);
        load.goes_on(2000);
        load.stop().none_lost();
        let counts: Vec<usize> = upstreams.iter().map(Upstream::count).collect();
        let all: usize = counts.iter().sum();
        // Latency moves shares with peak_ewma, chance with the others; nobody starves.
        let least = if algorithm == "peak_ewma" { 20 } else { 6 };
        assert!(
            counts.iter().all(|count| count * least > all),
            "{algorithm}: {counts:?}"
        );
    }
}

#[test]
fn round_robin_goes_round() {
    let (upstreams, web, _proxy) = setting(json!({"algorithm": "round_robin"}));
    for _ in 0..40 {
        ask(web, &[]);
    }
    let counts: Vec<usize> = upstreams.iter().map(Upstream::count).collect();
    assert_eq!(counts, [10; 4]);
}

#[test]
fn weights_of_endpoints_count() {
    let (upstreams, web, mut proxy) = setting(json!({"algorithm": "round_robin"}));
    proxy.reload(|config| {
        for (endpoint, weight) in [(0, 0), (1, 1), (2, 3), (3, 4)] {
            config["services"][0]["endpoints"][endpoint]["weight"] = json!(weight);
        }
    });
    for _ in 0..80 {
        ask(web, &[]);
    }
    let counts: Vec<usize> = upstreams.iter().map(Upstream::count).collect();
    for (count, expected) in counts.iter().zip([0_usize, 10, 30, 40]) {
        assert!(count.abs_diff(expected) <= 2, "{counts:?}");
    }
}

#[test]
fn a_hash_keeps_its_endpoint() {
    let (mut upstreams, web, proxy) = setting(
        json!({"algorithm": "consistent_hash", "hash": [{"header": "x-user"}, {"cookie": "user"}]}),
    );
    let owners = || -> HashMap<usize, String> {
        let user = |user: usize| (user, ask(web, &[&format!("X-User: {user}")]));
        (0..60).map(user).collect()
    };
    let before = owners();
    assert_eq!(before, owners());
    let used: std::collections::HashSet<&String> = before.values().collect();
    assert_eq!(used.len(), 4);
    let by_cookie = |user: &str| ask(web, &[&format!("Cookie: a=b; user={user}")]);
    assert_eq!(by_cookie("x"), by_cookie("x"));

    // One endpoint goes: only what it had moves.
    upstreams[0].stop();
    let after = owners();
    for (user, owner) in &before {
        if owner == "0" {
            assert_ne!(after[user], "0");
        } else {
            assert_eq!(&after[user], owner, "user {user} moved");
        }
    }
    drop(proxy);
}

#[test]
fn a_source_address_keeps_its_endpoint() {
    let (_upstreams, web, _proxy) =
        setting(json!({"algorithm": "consistent_hash", "hash": [{"sourceAddress": true}]}));
    let owner = ask(web, &[]);
    for _ in 0..10 {
        assert_eq!(ask(web, &[]), owner);
    }
}

/// The default algorithm sends little to a replica that has become slow.
#[test]
fn a_slow_replica_gets_less() {
    let slow = Upstream::start(|seen, stream| {
        // Longer than a busy machine may ever hold up the fast one.
        sleep(Duration::from_millis(500));
        upstream::answer(stream, 200, &[], seen.target().as_bytes());
        Then::Keep
    });
    let fast = Upstream::echo("fast");
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[slow.address, fast.address]));
    let load = Load::start(web, Mode::KeepAlive, 4);
    load.goes_on(1000);
    load.stop().none_lost();
    assert!(
        slow.count() * 10 < fast.count(),
        "{} and {}",
        slow.count(),
        fast.count()
    );
}

#[test]
fn our_zone_is_preferred_until_it_is_ill() {
    let mut upstreams: Vec<Upstream> = NAMES.map(Upstream::echo).into();
    let web = port::free_address();
    let mut config = front(web, &[]);
    let endpoint = |(at, up): (usize, &Upstream)| {
        let zone = if at < 2 { "near" } else { "far" };
        json!({"address": up.address.to_string(), "zone": zone})
    };
    config["settings"] = json!({"zone": "near"});
    config["services"][0]["endpoints"] = upstreams.iter().enumerate().map(endpoint).collect();
    config["services"][0]["healthCheck"] =
        json!({"kind": "tcp", "interval": "50ms", "unhealthyThreshold": 1});
    let proxy = Proxy::start(config);
    for _ in 0..40 {
        ask(web, &[]);
    }
    let far = |upstreams: &[Upstream]| upstreams[2].count() + upstreams[3].count();
    assert_eq!(far(&upstreams), 0);
    assert!(upstreams[0].count() > 0 && upstreams[1].count() > 0);

    // Half of the near ones are gone, which is less than 70 %: some of the traffic goes far.
    upstreams[0].stop();
    eventually("the lost endpoint being noticed", || {
        (proxy.available("up") < 3.5).then_some(())
    });
    let before = upstreams[1].count();
    for _ in 0..100 {
        assert!(!ask(web, &[]).is_empty());
    }
    let near = upstreams[1].count() - before;
    assert!(
        far(&upstreams) > 0 && near > far(&upstreams) / 3,
        "{near} near"
    );
    assert_eq!(near + far(&upstreams), 100);
}

/// One connection is no ticket to one endpoint: each request is balanced.
#[test]
fn requests_are_balanced_not_connections() {
    let (upstreams, web, _proxy) = setting(json!({"algorithm": "round_robin"}));
    let mut raw = Raw::connect(web);
    for _ in 0..8 {
        raw.get("/");
    }
    assert!(upstreams.iter().all(|up| up.count() == 2));
    let load = Load::start(web, Mode::Http2(4), 1);
    load.goes_on(400);
    load.stop().none_lost();
    assert!(upstreams.iter().all(|up| up.count() >= 100));
    eventually("connections being kept", || {
        upstreams
            .iter()
            .all(|up| up.connections() <= 8)
            .then_some(())
    });
}

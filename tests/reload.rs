//! New configurations under load: by file change, by SIGHUP, by the admin port; good ones, bad ones,
//! ones whose ports are taken. No request fails for any of them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::{Value, json};
use weft_tests::config::{front, push, route, service};
use weft_tests::load::{Load, Mode, Tally};
use weft_tests::process::Signal;
use weft_tests::proxy::{self, Proxy};
use weft_tests::raw::{self, Raw};
use weft_tests::upstream::{self, Upstream};
use weft_tests::{eventually, port};

fn loads(web: std::net::SocketAddr) -> Vec<Load> {
    let modes = [Mode::KeepAlive, Mode::ConnectEach, Mode::Http2(8)];
    modes.map(|mode| Load::start(web, mode, 4)).into()
}

#[track_caller]
fn none_lost(loads: Vec<Load>) {
    let tallies: Vec<Tally> = loads.into_iter().map(Load::stop).collect();
    for tally in tallies {
        tally.none_lost();
    }
}

#[test]
fn reloads_under_load_fail_no_request() {
    let upstreams = ["0", "1", "2"].map(Upstream::echo);
    let web = port::free_address();
    let mut proxy = Proxy::start(front(web, &[upstreams[0].address]));
    let loads = loads(web);
    for round in 0..12 {
        let some: Vec<_> = upstreams
            .iter()
            .map(|up| up.address)
            .skip(round % 3)
            .collect();
        proxy.reload(|config| {
            // Endpoints, limits, routes and other listeners change; `web` stays.
            config["services"] = json!([service("up", &some)]);
            config["services"][0]["limits"] = json!({"requestsMax": 1000 + round});
            let rules = json!([{"name": format!("rule-{round}"), "backendRefs": [{"name": "up"}]}]);
            config["routes"] = if round % 2 == 0 { json!([route("shop", rules)]) } else { json!([]) };
            config["listeners"].as_array_mut().expect("a list").truncate(1);
            let extra = json!({"name": format!("extra-{round}"), "protocol": "http", "service": "up",
                "address": port::free_address().to_string()});
            push(config, "listeners", extra);
        });
        for load in &loads {
            load.goes_on(50);
        }
    }
    none_lost(loads);
    assert!(upstreams.iter().all(|up| up.count() > 0));
}

#[test]
fn a_bad_file_changes_nothing_and_is_said() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut proxy = Proxy::start(front(web, &[upstream.address]));
    let good = fs::read_to_string(proxy.config_path()).expect("it is there");
    let loads = loads(web);
    let bad: [(&str, &str); 5] = [
        ("listeners: [", ""),
        ("listenrs: []", "listenrs"),
        (
            &good.replace("\"service\": \"up\"", "\"service\": \"dwon\""),
            "listeners[0].service",
        ),
        (
            &good.replace(&upstream.address.to_string(), "nowhere"),
            "endpoints[0].address",
        ),
        ("", ""),
    ];
    for (round, (text, said)) in bad.iter().enumerate() {
        assert_ne!(good, *text);
        proxy::write_text(&proxy.config_path(), text);
        // No signal: the change itself is seen.
        eventually("the refusal", || {
            (proxy.reloads("failure") > round as f64 + 0.5).then_some(())
        });
        let dump = proxy.ask("/config").text();
        let dump: Value = serde_json::from_str(&dump).expect("JSON");
        let errors = dump["lastReloadRefused"]["errors"].to_string();
        assert!(errors.len() > 4 && errors.contains(said), "{dump}");
        assert_eq!(dump["config"]["services"][0]["name"], "up");
        assert!(proxy.program.output().contains(said));
        for load in &loads {
            load.goes_on(50);
        }
    }
    proxy::write_text(&proxy.config_path(), &good);
    eventually("the good one", || {
        (proxy.reloads("success") > 1.5).then_some(())
    });
    let dump: Value = serde_json::from_str(&proxy.ask("/config").text()).expect("JSON");
    assert!(dump["lastReloadRefused"].is_null(), "{dump}");
    none_lost(loads);
    proxy.is_well();
}

#[test]
fn all_ways_to_reload_work() {
    let upstreams = ["0", "1", "2", "3"].map(Upstream::echo);
    let web = port::free_address();
    let proxy = Proxy::start(front(web, &[upstreams[0].address]));
    let text = fs::read_to_string(proxy.config_path()).expect("it is there");
    let with = |number: usize| -> Value {
        let new = upstreams[number].address.to_string();
        let text = text.replace(&upstreams[0].address.to_string(), &new);
        serde_json::from_str(&text).expect("JSON")
    };
    let answers = |name: &str| {
        eventually(name, || {
            (raw::get(web, "/").header("x-upstream") == Some(name)).then_some(())
        });
    };
    // The file itself, replaced whole.
    proxy::write(&proxy.config_path(), &with(1));
    answers("1");
    // A link that moves, as a ConfigMap's does.
    let folder = proxy.folder.path();
    proxy::write(&folder.join("next.yaml"), &with(2));
    std::os::unix::fs::symlink("next.yaml", folder.join("link")).expect("a link can be made");
    fs::rename(folder.join("link"), proxy.config_path()).expect("a link can be moved");
    answers("2");
    proxy::write(&folder.join("next.yaml"), &with(3));
    proxy.signal(Signal::HUP);
    answers("3");
    proxy::write(&folder.join("next.yaml"), &with(0));
    let mut admin = Raw::connect(proxy.admin);
    let answer = admin.request("POST", "/reload", &[], b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    answers("0");
}

#[test]
fn listeners_come_and_go() {
    let upstream = Upstream::echo("up");
    let (web, next) = (port::free_address(), port::free_address());
    let mut proxy = Proxy::start(front(web, &[upstream.address]));
    let mut kept = Raw::connect(web);
    assert_eq!(kept.get("/").status, 200);
    proxy.reload(|config| config["listeners"][0]["address"] = json!(next.to_string()));
    assert_eq!(raw::get(next, "/").status, 200);
    eventually("the old port being closed", || {
        Raw::try_connect(web).is_none().then_some(())
    });
    // A connection that was there is served on, or told to leave; never cut off.
    assert_eq!(kept.get("/").status, 200);

    // A port that somebody else has: all of the file is refused.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken
        .local_addr()
        .map(|address| (address, taken))
        .expect("an address");
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(proxy.config_path()).expect("there"))
            .expect("JSON");
    let extra = json!({"name": "extra", "protocol": "http", "service": "up", "address": taken.0.to_string()});
    push(&mut config, "listeners", extra);
    proxy::write(&proxy.config_path(), &config);
    eventually("the refusal", || {
        (proxy.reloads("failure") > 0.5).then_some(())
    });
    let refused = proxy.ask("/config").text();
    assert!(
        refused.contains(&taken.0.to_string()) && refused.contains("extra"),
        "{refused}"
    );
    assert_eq!(raw::get(next, "/").status, 200);
}

/// A request that began under the old configuration ends under it.
#[test]
fn a_running_request_keeps_its_configuration() {
    let slow = Upstream::start(|seen, stream| {
        let file = seen.header("x-wait").map(str::to_owned).unwrap_or_default();
        while !std::path::Path::new(&file).exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        weft_tests::upstream::answer(stream, 200, &["x-upstream: slow"], b"");
        weft_tests::upstream::Then::Keep
    });
    let other = Upstream::echo("other");
    let web = port::free_address();
    let mut proxy = Proxy::start(front(web, &[slow.address]));
    let go = proxy.folder.path().join("go");
    let mut raw = Raw::connect(web);
    raw.send(format!(
        "GET / HTTP/1.1\r\nHost: test\r\nX-Wait: {}\r\n\r\n",
        go.display()
    ));
    eventually("the request upstream", || (slow.count() == 1).then_some(()));
    proxy.reload(|config| config["services"] = json!([service("up", &[other.address])]));
    fs::write(go, "").expect("it can be written");
    assert_eq!(raw.answer().header("x-upstream"), Some("slow"));
    assert_eq!(raw.get("/").header("x-upstream"), Some("other"));
}

/// Whoever was let in is answered, though the listener has gone before the first request.
#[test]
fn a_silent_connection_outlives_its_listener() {
    let upstream = Upstream::echo("up");
    let (web, extra) = (port::free_address(), port::free_address());
    let mut config = front(web, &[upstream.address]);
    let gone =
        json!({"name": "extra", "protocol": "http", "service": "up", "address": extra.to_string()});
    push(&mut config, "listeners", gone);
    let mut proxy = Proxy::start(config);
    let mut silent = Raw::connect(extra);
    eventually("the connection being accepted", || {
        let open = proxy
            .metrics()
            .sum("weft_connections_open", &[("listener", "extra")]);
        (open > 0.0).then_some(())
    });
    proxy.reload(|config| {
        config["listeners"]
            .as_array_mut()
            .expect("a list")
            .truncate(1)
    });
    let answer = silent.get("/late");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "/late"),
        "{answer:?}"
    );
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
}

/// A ClientHello as small as it may be, with no server name.
fn client_hello() -> Vec<u8> {
    let mut hello = vec![0x03, 0x03];
    hello.extend([7; 32]);
    // No session, one suite, no compression, no extensions.
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0, 0, 0]);
    let length = u8::try_from(hello.len()).expect("it is short");
    let mut record = vec![0x16, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    record
}

/// A connection that waited through a change goes where the configuration says now: to the service
/// of this name, not to the one that has its place in the list.
#[test]
fn a_waiting_connection_is_not_joined_to_another_service() {
    let named = |name: &'static [u8]| {
        upstream::opaque(move |mut stream| {
            // Read first: to close on what is unread is to reset.
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(name);
        })
    };
    let (own, other) = (named(b"own"), named(b"not"));
    let tls = port::free_address();
    let mut proxy = Proxy::start(json!({
        "listeners": [{"name": "tls", "protocol": "tls", "service": "own", "address": tls.to_string()}],
        "services": [service("own", &[own])],
    }));
    let mut waiting = Raw::connect(tls);
    eventually("the connection being accepted", || {
        let open = proxy
            .metrics()
            .sum("weft_connections_open", &[("listener", "tls")]);
        (open > 0.0).then_some(())
    });
    proxy.reload(|config| {
        config["services"] = json!([service("other", &[other]), service("own", &[own])]);
    });
    waiting.send(client_hello());
    assert_eq!(waiting.take(3).expect("somebody answers"), b"own");
}

//! What an operator sees: metrics, access log, readiness, dumps, the log's level; and the command line,
//! whose errors must say what to do.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::config::{front, push, route, service};
use weft_tests::process::{Program, Signal};
use weft_tests::proxy::{self, Proxy, binary};
use weft_tests::raw::{self, Raw};
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{eventually, http2, port};

fn routed(web: SocketAddr, endpoint: SocketAddr) -> Value {
    let mut config = front(web, &[endpoint]);
    config["routes"] = json!([route(
        "shop",
        json!([
            {"name": "cart", "matches": [{"path": {"value": "/cart"}}], "backendRefs": [{"name": "up"}]},
            {"name": "beta", "matches": [{"headers": [{"name": "x-beta", "value": "1"}]}],
             "backendRefs": [{"name": "up"}], "timeouts": {"request": "3s"}},
        ])
    )]);
    config
}

#[test]
fn metrics_count_what_happened() {
    let upstream = Upstream::start(|seen, stream| {
        let status = if seen.target().ends_with("teapot") {
            418
        } else {
            200
        };
        upstream::answer(stream, status, &[], b"0123456789");
        Then::Keep
    });
    let web = port::free_address();
    let proxy = Proxy::start(routed(web, upstream.address));
    let mut raw = Raw::connect(web);
    for _ in 0..5 {
        assert_eq!(raw.request("POST", "/cart", &[], b"abc").status, 200);
    }
    assert_eq!(raw.get("/cart/teapot").status, 418);
    assert_eq!(raw.get("/nowhere").status, 404);
    assert_eq!(http2::get(web, "/cart").status, 200);
    proxy.counts("answered", 7.0);
    proxy.counts("no_route", 1.0);
    let metrics = proxy.metrics();
    let backend = upstream.address.to_string();
    let of = [("listener", "web"), ("service", "up"), ("route", "shop")];
    let with = |more: &[(&'static str, &str)]| -> f64 {
        let labels: Vec<(&str, &str)> = of.iter().chain(more).copied().collect();
        metrics.sum("weft_requests_total", &labels)
    };
    for (labels, expected) in [
        (
            &[("code_class", "2xx"), ("backend", backend.as_str())][..],
            6.0,
        ),
        (&[("code_class", "4xx"), ("cause", "answered")], 1.0),
        (&[], 7.0),
    ] {
        assert!(
            (with(labels) - expected).abs() < 0.5,
            "{labels:?}: {}",
            with(labels)
        );
    }
    for (name, labels, expected) in [
        ("weft_request_duration_seconds_count", &of[..], 7.0),
        ("weft_bytes_received_total", &of[..], 15.0),
        ("weft_bytes_sent_total", &of[..], 70.0),
        ("weft_connections_opened_total", &of[..1], 2.0),
        (
            "weft_endpoints",
            &[("service", "up"), ("state", "available")][..],
            1.0,
        ),
        ("weft_workers", &[], 2.0),
        ("weft_reloads_total", &[("result", "success")], 1.0),
        ("weft_drain_phase", &[], 0.0),
    ] {
        let found = metrics.sum(name, labels);
        assert!(
            metrics.has(name, labels) && (found - expected).abs() < 0.5,
            "{name}: {found}"
        );
    }
    rest_is_counted(&proxy);
}

/// The histogram, and the connections, of the test above.
#[track_caller]
fn rest_is_counted(proxy: &Proxy) {
    let metrics = proxy.metrics();
    let of = [("listener", "web"), ("service", "up"), ("route", "shop")];
    let infinite: Vec<(&str, &str)> = of.iter().copied().chain([("le", "+Inf")]).collect();
    assert!((metrics.sum("weft_request_duration_seconds_bucket", &infinite) - 7.0).abs() < 0.5);
    eventually("the connections being closed", || {
        let gone = proxy
            .metrics()
            .sum("weft_connections_closed_total", &[("listener", "web")]);
        (gone > 0.5).then_some(())
    });
    let open = proxy
        .metrics()
        .sum("weft_connections_open", &[("listener", "web")]);
    assert!((open - 1.0).abs() < 0.5, "{open}");
}

/// What clients send never becomes a label; what discovery brings is capped.
#[test]
fn labels_are_capped() {
    let upstreams: Vec<Upstream> = (0..12).map(|_| Upstream::echo("up")).collect();
    let addresses: Vec<SocketAddr> = upstreams.iter().map(|up| up.address).collect();
    let web = port::free_address();
    let mut config = front(web, &addresses);
    config["settings"] = json!({"metricLabelValuesMax": 5});
    config["services"][0]["balancer"] = json!({"algorithm": "round_robin"});
    let proxy = Proxy::start(config);
    for number in 0..60 {
        let host = format!("Host: host-{number}");
        let answer = Raw::connect(web).request("GET", &format!("/path-{number}"), &[&host], b"");
        assert_eq!(answer.status, 200);
    }
    proxy.counts("answered", 60.0);
    let backends = proxy.metrics().values("weft_requests_total", "backend");
    assert!(
        backends.len() <= 6 && backends.contains(&"other".to_owned()),
        "{backends:?}"
    );
    let page = proxy.ask("/metrics").text();
    assert!(!page.contains("host-") && !page.contains("path-"));
    assert!(
        proxy
            .metrics()
            .sum("weft_metric_label_overflows_total", &[("label", "backend")])
            > 0.5
    );
}

#[test]
fn the_access_log_tells_each_request() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut config = routed(web, upstream.address);
    let folder = TempDir::new().expect("a folder can be made");
    let log = folder.path().join("access.log");
    config["settings"] = json!({"accessLog": {"format": "json", "path": log}});
    config["listeners"][0]["http"] =
        json!({"requestIdHeader": "x-request-id", "trustRequestId": true});
    let _proxy = Proxy::start(config);
    let mut raw = Raw::connect(web);
    raw.request(
        "POST",
        "/cart?q=%22x",
        &["X-Request-Id: se\"v\\en", "Host: shop.example"],
        b"abc",
    );
    raw.get("/nowhere");
    let mut bad = Raw::connect(web);
    bad.send("GET / HTTP/1.1\r\nHost: a\r\nX : \"\\\r\n\r\n");
    bad.closed();
    let lines = |count: usize| -> Vec<String> {
        eventually(&format!("{count} lines"), || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count && text.ends_with('\n')).then_some(lines)
        })
    };
    let entries: Vec<Value> = lines(3)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect();
    let backend = upstream.address.to_string();
    let first = entries.iter().find(|entry| entry["flag"] == "answered");
    let first = first.expect("it is told");
    for (field, value) in [
        ("listener", json!("web")),
        ("method", json!("POST")),
        ("authority", json!("shop.example")),
        ("path", json!("/cart?q=%22x")),
        ("protocol", json!("HTTP/1.1")),
        ("status", json!(200)),
        ("flag", json!("answered")),
        ("route", json!("shop")),
        ("rule", json!("cart")),
        ("service", json!("up")),
        ("backend", json!(backend)),
        ("tries", json!(1)),
        ("bytes_in", json!(3)),
        ("bytes_out", json!(15)),
        ("request_id", json!("se\"v\\en")),
    ] {
        assert_eq!(first[field], value, "{field} in {first}");
    }
    assert!(first["duration_us"].is_u64() && first["time"].is_string());
    // Connections of two workers: their lines come in either order.
    let entry = |flag: &str| entries.iter().find(|entry| entry["flag"] == flag);
    assert_eq!(
        entry("no_route").map(|entry| &entry["status"]),
        Some(&json!(404))
    );
    let reason = entry("rejected").map(|entry| &entry["reason"]);
    assert_eq!(reason, Some(&json!("space_before_colon")), "{entries:?}");
}

#[test]
fn the_access_log_is_moved_and_changed() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut config = routed(web, upstream.address);
    let folder = TempDir::new().expect("a folder can be made");
    let log = folder.path().join("access.log");
    config["settings"] = json!({"accessLog": {"format": "json", "path": log}});
    let mut proxy = Proxy::start(config);
    let mut raw = Raw::connect(web);
    raw.get("/cart");
    eventually("the file", || log.exists().then_some(()));
    // logrotate moves the file away and sends a signal.
    let moved = folder.path().join("access.log.1");
    fs::rename(&log, &moved).expect("it can be moved");
    proxy.signal(Signal::HUP);
    eventually("a new file", || {
        raw.get("/cart");
        log.exists().then_some(())
    });
    proxy.reload(|config| config["settings"]["accessLog"]["format"] = json!("text"));
    raw.get("/cart/text");
    let text = eventually("the line", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines()
            .find(|line| line.contains("/cart/text"))
            .map(str::to_owned)
    });
    assert!(
        text.contains("flag=answered") && text.contains("status=200"),
        "{text}"
    );
    proxy.reload(|config| config["settings"]["accessLog"] = json!({"format": "off"}));
    raw.get("/cart/silent");
    raw.get("/cart/silent");
    assert!(
        !fs::read_to_string(&log)
            .expect("it is there")
            .contains("silent")
    );
}

#[test]
fn the_admin_port_shows_the_state() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let proxy = Proxy::start(routed(web, upstream.address));
    assert_eq!(proxy.ask("/ready").status, 200);
    assert_eq!(proxy.ask("/live").status, 200);
    assert_eq!(proxy.ask("/nothing").status, 404);
    let page = |path: &str| -> Value {
        let answer = proxy.ask(path);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/json"))
        );
        serde_json::from_slice(&answer.body).expect("JSON")
    };
    let dump = page("/config");
    assert_eq!(
        dump["config"]["listeners"][0]["address"],
        json!(web.to_string())
    );
    assert!(
        dump["revision"].is_string() && dump["since"].is_string(),
        "{dump}"
    );
    let endpoint = &page("/endpoints")["services"][0]["endpoints"][0];
    assert_eq!(endpoint["address"], json!(upstream.address.to_string()));
    assert_eq!(
        page("/listeners")["listeners"][0]["bound"],
        json!(web.to_string())
    );
    let explained = page(&format!("/explain?url=http://{web}/cart/1"));
    assert_eq!(explained["decision"]["rule"], json!("cart"), "{explained}");
    // A page in a browser cannot drain it, or read its configuration.
    let mut admin = Raw::connect(proxy.admin);
    for (method, path) in [("POST", "/drain"), ("GET", "/config")] {
        let answer = admin.request(method, path, &["Origin: http://evil.example"], b"");
        assert_eq!(answer.status, 403, "{method} {path}");
    }
    assert_eq!(raw::get(web, "/cart").status, 200);
}

/// Beyond loopback only metrics and probes answer.
#[test]
fn the_admin_port_is_private() {
    let upstream = Upstream::echo("up");
    let admin_port = port::free();
    let mut config = front(port::free_address(), &[upstream.address]);
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, admin_port));
    config["settings"] = json!({"admin": everywhere.to_string()});
    let folder = TempDir::new().expect("a folder can be made");
    proxy::write(&folder.path().join("weft.yaml"), &config);
    let mut command = Command::new(binary());
    command.arg("--config").arg(folder.path().join("weft.yaml"));
    let mut program = Program::start("weft-proxy", &mut command, folder.path());
    program.accepts(SocketAddr::from((Ipv4Addr::LOCALHOST, admin_port)));
    // The address that we would use to reach others; connecting sends nothing.
    let probe = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let ours = probe
        .connect("192.0.2.1:9")
        .and_then(|()| probe.local_addr());
    let Some(ours) = ours.ok().filter(|ours| !ours.ip().is_loopback()) else {
        println!("stepped aside: this machine has loopback addresses only");
        return;
    };
    let outside = SocketAddr::new(ours.ip(), admin_port);
    for (path, status) in [
        ("/metrics", 200),
        ("/live", 200),
        ("/ready", 200),
        ("/config", 404),
        ("/endpoints", 404),
        ("/log-level", 404),
    ] {
        assert_eq!(raw::get(outside, path).status, status, "{path}");
    }
    let drained = Raw::connect(outside).request("POST", "/drain", &[], b"");
    assert_eq!(drained.status, 404);
    assert!(program.is_running());
}

#[test]
fn the_log_level_changes_at_run_time() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let proxy = Proxy::start_with(front(web, &[upstream.address]), |command| {
        command.args(["--log-level", "warn"]);
    });
    let mut admin = Raw::connect(proxy.admin);
    assert_eq!(admin.get("/log-level").text().trim(), "warn");
    let quiet = proxy.program.output();
    assert!(!quiet.contains("INFO"), "{quiet}");
    assert_eq!(
        admin.request("PUT", "/log-level", &[], b"debug").status,
        200
    );
    eventually("something at debug", || {
        let mut bad = Raw::connect(web);
        bad.send("bad\r\n\r\n");
        bad.closed();
        proxy.program.output().contains("DEBUG").then_some(())
    });
    assert_eq!(
        admin
            .request("PUT", "/log-level", &[], b"loud=loud=loud")
            .status,
        400
    );
    assert_eq!(admin.get("/log-level").text().trim(), "debug");
}

/// What was explained is what happens: the same code, but seen from outside.
#[test]
fn explanations_agree_with_traffic() {
    let (up, other) = (Upstream::echo("up"), Upstream::echo("other"));
    let web = port::free_address();
    let mut config = front(web, &[up.address]);
    push(&mut config, "services", service("other", &[other.address]));
    config["routes"] = json!([route(
        "shop",
        json!([
            {"matches": [{"path": {"value": "/a"}}, {"headers": [{"name": "v", "value": "2"}]}],
             "backendRefs": [{"name": "other"}]},
            {"matches": [{"path": {"type": "Exact", "value": "/a/x"}}], "backendRefs": [{"name": "up"}]},
            {"matches": [{"method": "PUT"}], "backendRefs": [{"name": "up"}]},
        ])
    )]);
    let proxy = Proxy::start(config);
    for (method, path, header) in [
        ("GET", "/a", "v: 1"),
        ("GET", "/a/x", "v: 2"),
        ("GET", "/b", "v: 2"),
        ("PUT", "/b", "v: 1"),
        ("GET", "/b", "v: 1"),
        ("PUT", "/a/b", "v: 2"),
    ] {
        let answer = Raw::connect(web).request(method, path, &[header], b"");
        let query = format!(
            "/explain?url=http://test:{}{path}&method={method}&header={}",
            web.port(),
            header.replace(' ', "%20")
        );
        let said: Value = serde_json::from_slice(&proxy.ask(&query).body).expect("JSON");
        let service = said["decision"]["backends"][0]["service"]
            .as_str()
            .unwrap_or("");
        assert_eq!(
            answer.header("x-upstream").unwrap_or(""),
            service,
            "{method} {path} {header}: {said}"
        );
    }
}

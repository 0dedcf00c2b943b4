//! Routes and filters as traffic meets them. Precedence and every corner of a match are tables in
//! `config`; here one of each shows that the proxy does what the decision says.

use serde_json::{Value, json};
use weft_tests::config::{front, push, route, service};
use weft_tests::proxy::Proxy;
use weft_tests::raw::{self, Raw};
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, port};

/// Two services, `up` and `other`, and these rules.
fn routed(rules: Value) -> (Upstream, Upstream, std::net::SocketAddr, Proxy) {
    let (up, other) = (Upstream::echo("up"), Upstream::echo("other"));
    let web = port::free_address();
    let mut config = front(web, &[up.address]);
    push(&mut config, "services", service("other", &[other.address]));
    config["routes"] = json!([route("shop", rules)]);
    let proxy = Proxy::start(config);
    (up, other, web, proxy)
}

#[test]
fn matches_choose_the_service() {
    let (_up, _other, web, proxy) = routed(json!([
        {"matches": [{"path": {"value": "/a"}}], "backendRefs": [{"name": "up"}]},
        {"matches": [{"path": {"type": "Exact", "value": "/a/b"}}], "backendRefs": [{"name": "other"}]},
        {"matches": [{"headers": [{"name": "X-Beta", "value": "yes"}]}], "backendRefs": [{"name": "other"}]},
        {"matches": [{"method": "DELETE", "path": {"value": "/d"}}], "backendRefs": [{"name": "up"}]},
        {"matches": [{"queryParams": [{"name": "q", "value": "1"}]}], "backendRefs": [{"name": "up"}]},
        {"matches": [{"path": {"type": "RegularExpression", "value": "/r[0-9]+"}}], "backendRefs": [{"name": "other"}]},
    ]));
    for (method, path, header, service) in [
        ("GET", "/a", "X: 1", "up"),
        ("GET", "/a/b", "X: 1", "other"),
        ("GET", "/a/b/c", "X: 1", "up"),
        ("GET", "/ab", "X: 1", ""),
        ("GET", "/x", "x-beta: yes", "other"),
        ("GET", "/x", "x-beta: no", ""),
        ("DELETE", "/d", "X: 1", "up"),
        ("POST", "/d", "X: 1", ""),
        ("GET", "/?q=1", "X: 1", "up"),
        ("GET", "/?q=2", "X: 1", ""),
        ("GET", "/r17", "X: 1", "other"),
    ] {
        let answer = Raw::connect(web).request(method, path, &[header], b"");
        let name = answer.header("x-upstream").unwrap_or("");
        assert_eq!(name, service, "{method} {path} {header}: {answer:?}");
        if service.is_empty() {
            assert_eq!((answer.status, answer.reason()), (404, "no_route"));
        }
    }
    proxy.counts("no_route", 4.0);
    let metrics = proxy.metrics();
    let labels = [
        ("route", "shop"),
        ("service", "other"),
        ("code_class", "2xx"),
    ];
    assert!((metrics.sum("weft_requests_total", &labels) - 3.0).abs() < 0.5);
}

#[test]
fn hostnames_choose_the_route() {
    let (_up, _other, web, mut proxy) = routed(json!([{"backendRefs": [{"name": "up"}]}]));
    proxy.reload(|config| {
        config["routes"][0]["hostnames"] = json!(["shop.example"]);
        let mut wild = route("wild", json!([{"backendRefs": [{"name": "other"}]}]));
        wild["hostnames"] = json!(["*.shop.example"]);
        push(config, "routes", wild);
    });
    for (host, service) in [
        ("shop.example", "up"),
        ("SHOP.example:8080", "up"),
        ("a.b.shop.example", "other"),
        ("else.example", ""),
    ] {
        let answer = Raw::connect(web).request("GET", "/", &[&format!("Host: {host}")], b"");
        assert_eq!(answer.header("x-upstream").unwrap_or(""), service, "{host}");
    }
}

#[test]
fn filters_change_what_passes() {
    let (up, _other, web, _proxy) = routed(json!([
        {"matches": [{"path": {"value": "/headers"}}], "backendRefs": [{"name": "up"}], "filters": [
            {"requestHeaderModifier": {"set": [{"name": "X-Set", "value": "s"}],
                "add": [{"name": "X-Add", "value": "2"}], "remove": ["X-Gone"]}},
            {"responseHeaderModifier": {"set": [{"name": "X-Upstream", "value": "hidden"}],
                "add": [{"name": "X-New", "value": "n"}]}}]},
        {"matches": [{"path": {"value": "/old"}}], "backendRefs": [{"name": "up"}], "filters": [
            {"urlRewrite": {"hostname": "inner.example",
                "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}]},
        {"matches": [{"path": {"value": "/moved"}}], "filters": [
            {"requestRedirect": {"scheme": "https", "hostname": "else.example", "statusCode": 308,
                "path": {"type": "ReplaceFullPath", "replaceFullPath": "/there"}}}]},
    ]));
    let answer = Raw::connect(web).request(
        "GET",
        "/headers",
        &["X-Set: a", "X-Set: b", "X-Add: 1", "X-Gone: 1"],
        b"",
    );
    let seen = up.last();
    assert_eq!(seen.headers("x-set"), ["s"]);
    let added = seen.headers("x-add").join(",").replace(' ', "");
    assert_eq!(added, "1,2");
    assert!(seen.headers("x-gone").is_empty());
    assert_eq!(answer.header("x-upstream"), Some("hidden"));
    assert_eq!(answer.header("x-new"), Some("n"));

    assert_eq!(raw::get(web, "/old/a%2Fb?c=d").status, 200);
    let seen = up.last();
    assert_eq!(seen.target(), "/new/a%2Fb?c=d");
    assert_eq!(seen.header("host"), Some("inner.example"));

    let moved = raw::get(web, "/moved/x");
    let location = moved.header("location").unwrap_or("");
    assert_eq!(moved.status, 308);
    assert!(
        location.starts_with("https://else.example") && location.contains("/there"),
        "{location}"
    );
}

#[test]
fn cors_preflights_are_answered_here() {
    let (up, _other, web, _proxy) = routed(json!([
        {"backendRefs": [{"name": "up"}], "filters": [{"cors": {
            "allowOrigins": ["https://*.shop.example"], "allowMethods": ["GET", "PUT"],
            "allowHeaders": ["x-token"], "allowCredentials": true, "maxAge": 60}}]},
    ]));
    let preflight = [
        "Origin: https://a.shop.example",
        "Access-Control-Request-Method: PUT",
        "Access-Control-Request-Headers: x-token",
    ];
    let answer = Raw::connect(web).request("OPTIONS", "/", &preflight, b"");
    assert!((200..300).contains(&answer.status), "{answer:?}");
    for (name, value) in [
        ("access-control-allow-origin", "https://a.shop.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "60"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{answer:?}");
    }
    assert_eq!(up.count(), 0);
    let answer = Raw::connect(web).request("GET", "/", &preflight[..1], b"");
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://a.shop.example")
    );
    assert_eq!(up.count(), 1);
}

#[test]
fn mirrored_requests_change_nothing_for_the_client() {
    let (up, other, web, proxy) = routed(json!([
        {"backendRefs": [{"name": "up"}],
         "filters": [{"requestMirror": {"backendRef": {"name": "other"}}}]},
    ]));
    let answer = Raw::connect(web).request("POST", "/m", &[], b"body");
    assert_eq!(answer.header("x-upstream"), Some("up"));
    eventually("the mirrored request", || {
        (other.count() == 1).then_some(())
    });
    let (seen, mirrored) = (up.last(), other.last());
    assert_eq!(mirrored.target(), "/m");
    assert_eq!(mirrored.body, seen.body);
    // A mirror that is down is nobody's problem.
    drop(other);
    for _ in 0..5 {
        assert_eq!(raw::get(web, "/m").header("x-upstream"), Some("up"));
    }
    proxy.counts("answered", 6.0);
}

#[test]
fn weights_share_the_traffic() {
    let (up, other, web, _proxy) = routed(json!([
        {"backendRefs": [{"name": "up", "weight": 3}, {"name": "other", "weight": 1}]},
    ]));
    let mut raw = Raw::connect(web);
    for _ in 0..800 {
        assert_eq!(raw.get("/").status, 200);
    }
    // 600 expected; a fair draw is off by 75 (six standard deviations) less often than this runs.
    assert!(up.count().abs_diff(600) < 75, "{} of 800", up.count());
    assert_eq!(up.count() + other.count(), 800);
}

#[test]
fn backends_that_cannot_be_are_told_apart() {
    let (_up, _other, web, _proxy) = routed(json!([
        {"matches": [{"path": {"value": "/none"}}]},
        {"matches": [{"path": {"value": "/zero"}}], "backendRefs": [{"name": "up", "weight": 0}]},
        {"matches": [{"path": {"value": "/invalid"}}],
         "backendRefs": [{"name": "gone", "invalid": "BackendNotFound"}]},
    ]));
    for (path, reason) in [
        ("/none", "no_backend"),
        ("/zero", "no_backend"),
        ("/invalid", "invalid_backend"),
    ] {
        let answer = raw::get(web, path);
        assert_eq!((answer.status, answer.reason()), (500, reason), "{path}");
    }
}

#[test]
fn sessions_stay_with_their_endpoint() {
    let upstreams: Vec<Upstream> = ["0", "1", "2"].map(Upstream::echo).into();
    let addresses: Vec<_> = upstreams.iter().map(|up| up.address).collect();
    let web = port::free_address();
    let mut config = front(web, &addresses);
    config["services"][0]["balancer"] = json!({"algorithm": "round_robin"});
    config["routes"] = json!([route(
        "shop",
        json!([
            {"backendRefs": [{"name": "up"}], "sessionPersistence": {"sessionName": "stick"}},
        ])
    )]);
    let _proxy = Proxy::start(config);
    for _ in 0..3 {
        let first = raw::get(web, "/");
        let cookie = first.header("set-cookie").expect("a session is begun");
        let cookie = format!("Cookie: {}", cookie.split(';').next().unwrap_or_default());
        assert!(cookie.starts_with("Cookie: stick="));
        for _ in 0..8 {
            let next = Raw::connect(web).request("GET", "/", &[&cookie], b"");
            assert_eq!(next.header("x-upstream"), first.header("x-upstream"));
        }
    }
}

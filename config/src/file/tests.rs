//! Mistakes in files, each with its exact path.

use super::*;

/// A valid file that rows break in one place.
const VALID: &str = r#"
settings: {admin: "127.0.0.1:14020"}
listeners:
- name: web
  address: 0.0.0.0:8080
  protocol: http
services:
- name: catalogue
  endpoints:
  - {address: "10.0.0.1:80"}
- name: cart
  protocol: grpc
  endpoints:
  - {address: "10.0.0.2:80"}
routes:
- name: shop
  parentRefs: [{name: web}]
  rules:
  - matches: [{path: {value: /shop}}]
    backendRefs: [{name: catalogue}]
"#;

fn mistakes(text: &str) -> Vec<(String, String)> {
    load("weft.yaml", text)
        .expect_err("has mistakes")
        .list
        .into_iter()
        .map(|error| (error.path, error.message))
        .collect()
}

/// Every mistake of `text` is at `path` and says `part`.
fn expect(text: &str, path: &str, part: &str) {
    let found = mistakes(text);
    assert_eq!(found.len(), 1, "one mistake in {text}: {found:#?}");
    assert_eq!(found[0].0, path, "{text}: {found:?}");
    assert!(found[0].1.contains(part), "{:?} lacks {part:?}", found[0].1);
}

#[test]
fn the_valid_file_is() {
    load("weft.yaml", VALID).expect("is valid");
}

#[test]
fn text_that_is_no_configuration() {
    for (text, part) in [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("null", "is empty"),
        ("- a\n- b", "must be a map"),
        ("hello", "must be a map"),
        ("listeners: []\n---\nlisteners: []\n", "a second document"),
        ("listeners: []\nlisteners: []\n", "duplicate"),
        ("services:\n- name: a\n  name: b\n", "line 3"),
        ("listeners: [", "line 1"),
        ("listeners: *nothing", "anchor"),
        ("a: &a {x: 1}\nb: {<<: *a}\n", "merge keys"),
        ("listeners:\n\t- a", "line 2"),
    ] {
        let found = mistakes(text);
        assert_eq!(found.len(), 1, "{text:?}: {found:?}");
        assert_eq!(found[0].0, "", "{text:?}");
        assert!(
            found[0].1.contains(part),
            "{text:?}: {:?} lacks {part:?}",
            found[0].1
        );
    }
}

#[test]
fn bombs_do_not_explode() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        let list = vec![before; 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
    }
    let found = mistakes(&bomb);
    assert!(
        found[0].1.contains("too large, too deeply nested"),
        "{found:?}"
    );
    let deep = format!("listeners: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(mistakes(&deep).len(), 1);
}

#[test]
#[rustfmt::skip] // one row a line
fn shapes_and_names() {
    for (text, path, part) in [
        ("listenrs: []", "listenrs", "did you mean \"listeners\"? (allowed: settings, listeners, services, routes)"),
        ("listeners: 5", "listeners", "must be a list"),
        ("listeners: {}", "listeners", "must be a list (each item begins with -), not a map"),
        ("listeners: [5]", "listeners[0]", "must be a map of fields, not 5"),
        ("services: [{name: 5}]", "services[0].name", "must be text"),
        ("services: [{name: a, protocol: htp}]", "services[0].protocol", "service \"a\": \"htp\" is not possible here; did you mean \"http\"? (allowed: http, http1, http2, grpc, mirror, tcp)"),
        ("services: [{name: a, connectTimeout: 5}]", "services[0].connectTimeout", "must be text"),
        ("services: [{name: a, connectTimeout: }]", "services[0].connectTimeout", "has no value"),
        ("services: [{name: a, endpoints: [{address: '1.1.1.1:1', weight: -1}]}]", "services[0].endpoints[0].weight", "must be a whole number"),
        ("services: [{name: a, endpoints: [{address: '1.1.1.1:1', weight: 1.5}]}]", "services[0].endpoints[0].weight", "must be a whole number"),
        ("services: [{name: a, endpoints: [{address: '1.1.1.1:1', weight: 5000000000}]}]", "services[0].endpoints[0].weight", "must be a whole number"),
        ("services: [{name: a, endpoints: [{address: '1.1.1.1:1', weigth: 1}]}]", "services[0].endpoints[0].weigth", "did you mean \"weight\"? (allowed: address, weight, zone, identity, workload, meshAddress)"),
        ("services: [{name: a, disableIdempotentRetry: 'yes'}]", "services[0].disableIdempotentRetry", "must be a boolean"),
    ] {
        expect(text, path, part);
    }
}

#[test]
fn every_mistake_at_once() {
    let text = r#"
settings: {workers: many}
listeners:
- {name: web, address: "8080", protocol: http, service: catalog}
- {name: web2, adress: "0.0.0.0:81", service: catalogue}
services:
- name: catalogue
  conectTimeout: 5s
  endpoints:
  - {address: "10.0.0.1"}
  - 7
  - {address: "10.0.0.1:80", weight: x}
- name: cart
  idleTimeout: 5
  endpoints: [{address: "cart.local:80"}]
routes:
- name: shop
  parentRefs: [{name: wb}]
  rules:
  - backendRefs: [{name: catalogue, wait: 1}, {name: cat}]
"#;
    let found = mistakes(text);
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    for path in [
        "settings.workers",
        "listeners[0].address",
        "listeners[0].service",
        "listeners[1].adress",
        "services[0].conectTimeout",
        "services[0].endpoints[0].address",
        "services[0].endpoints[1]",
        "services[0].endpoints[2].weight",
        "services[1].idleTimeout",
        "services[1].endpoints[0].address",
        "routes[0].parentRefs[0].name",
        "routes[0].rules[0].backendRefs[0].wait",
        "routes[0].rules[0].backendRefs[1].name",
    ] {
        assert!(paths.contains(&path), "{path} in {found:#?}");
    }
    let shown = load("weft.yaml", text)
        .expect_err("has mistakes")
        .to_string();
    assert!(
        shown.contains("\nweft.yaml: services[0].endpoints[0].address: service \"catalogue\": \"10.0.0.1\" has no port;"),
        "{shown}"
    );
}

/// One misspelt `name` brought three errors, of which two were not true.
#[test]
fn a_misspelt_field_is_one_mistake() {
    for (from, to, path) in [
        ("- name: catalogue", "- nmae: catalogue", "services[0].nmae"),
        ("- name: web", "- nam: web", "listeners[0].nam"),
        (
            "address: \"10.0.0.1:80\"",
            "adress: \"10.0.0.1:80\"",
            "services[0].endpoints[0].adress",
        ),
        ("listeners:", "listenrs:", "listenrs"),
        (
            "[{name: catalogue}]",
            "[{nmae: catalogue}]",
            "routes[0].rules[0].backendRefs[0].nmae",
        ),
    ] {
        assert!(VALID.contains(from), "{from}");
        expect(&VALID.replace(from, to), path, "did you mean");
    }
    // What the field says is still looked at, and the right one is not replaced.
    let twice = VALID.replace("- name: cart", "- name: cart\n  nmae: 5");
    expect(&twice, "services[1].nmae", "did you mean");
    let wrong = VALID.replace("- name: cart", "- nmae: 5");
    let paths: Vec<_> = mistakes(&wrong).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["services[1].nmae", "services[1].name"]);
}

#[test]
fn json_is_taken_too() {
    let config = parse(r#"{"listeners": [{"name": "web", "address": "[::]:80", "protocol": "tcp", "service": "a"}], "services": [{"name": "a"}]}"#)
        .expect("is valid");
    assert_eq!(config.listeners[0].name, "web");
}

#[test]
fn yaml_words_that_are_not_booleans() {
    let config = parse("settings: {accessLog: {format: off}, zone: no}").expect("is valid");
    let settings = config.settings.expect("is there");
    assert_eq!(settings.access_log.expect("is there").format, 0);
    assert_eq!(settings.zone, "no");
}

#[test]
fn a_listener_is_needed() {
    expect("services: [{name: a}]", "listeners", "is missing");
}

#[test]
fn the_whole_flood_of_a_foreign_file_is_bounded() {
    let text: String = (0..5000).map(|n| format!("key{n}: 1\n")).collect();
    assert!(mistakes(&text).len() <= ERRORS_MAX + 1);
}

/// Replaces `from` in the valid file.
fn broken(from: &str, to: &str) -> String {
    assert!(VALID.contains(from), "{from}");
    VALID.replacen(from, to, 1)
}

#[test]
#[rustfmt::skip] // one row a line
fn meanings() {
    const LISTENER: &str = "  protocol: http\n";
    const SERVICE: &str = "- name: catalogue\n";
    const RULE: &str = "    backendRefs: [{name: catalogue}]\n";
    const ROUTE: &str = "  parentRefs: [{name: web}]\n";
    for (from, to, path, part) in [
        // settings
        ("{admin: \"127.0.0.1:14020\"}", "{admin: localhost}", "settings.admin", "not an address"),
        ("{admin: \"127.0.0.1:14020\"}", "{admin: \"0.0.0.0:8080\"}", "listeners[0].address", "settings.admin"),
        ("{admin: \"127.0.0.1:14020\"}", "{workers: 5000}", "settings.workers", "more than 1024"),
        ("{admin: \"127.0.0.1:14020\"}", "{drain: {timeout: soon}}", "settings.drain.timeout", "\"soon\""),
        ("{admin: \"127.0.0.1:14020\"}", "{drain: {timeout: 1s, quiet: 2s}}", "settings.drain.quiet", "must not be longer"),
        ("{admin: \"127.0.0.1:14020\"}", "{accessLog: {path: /x}}", "settings.accessLog.path", "no effect"),
        // listeners
        ("services:", "- {address: \"0.0.0.0:81\", service: cart}\nservices:", "listeners[1].name", "is missing"),
        ("0.0.0.0:8080", "0.0.0.0", "listeners[0].address", "has no port"),
        ("0.0.0.0:8080", "example.com:8080", "listeners[0].address", "not an address"),
        ("0.0.0.0:8080", "", "listeners[0].address", "has no value"),
        ("0.0.0.0:8080\n", "0.0.0.0:8080\n  service: catalog\n", "listeners[0].service", "did you mean \"catalogue\"?"),
        ("services:", "- {name: web, address: \"0.0.0.0:81\", service: cart}\nservices:", "listeners[1].name", "already the name of listeners[0]"),
        ("services:", "- {name: two, address: \"0.0.0.0:8080\", service: cart}\nservices:", "listeners[1].address", "already taken by listeners[0]"),
        ("services:", "- {name: two, address: \"[::]:8080\", service: cart}\nservices:", "listeners[1].address", "already taken by listeners[0]"),
        ("services:", "- {name: two, address: \"0.0.0.0:81\"}\nservices:", "listeners[1]", "leads nowhere"),
        (LISTENER, "  protocol: auto\n  tls: {}\n", "listeners[0].tls.certificates", "at least one"),
        (LISTENER, "  protocol: auto\n  tls: {certificates: [{certificate: a.pem}]}\n", "listeners[0].tls.certificates[0].privateKey", "PEM"),
        (LISTENER, "  protocol: http\n  http: {headerBytesMax: 10}\n", "listeners[0].http.headerBytesMax", "out of range"),
        (LISTENER, "  protocol: http\n  http: {headersMax: 100000}\n", "listeners[0].http.headersMax", "out of range"),
        (LISTENER, "  protocol: http\n  http: {headerTimeout: 0s}\n", "listeners[0].http.headerTimeout", "longer than 0s"),
        (LISTENER, "  protocol: http\n  http: {requestIdHeader: \"a b\"}\n", "listeners[0].http.requestIdHeader", "not a header name"),
        (LISTENER, "  protocol: http\n  http: {trustRequestId: true}\n", "listeners[0].http.trustRequestId", "no effect"),
        (LISTENER, "  protocol: http\n  tcpIdleTimeout: 1d\n", "listeners[0].tcpIdleTimeout", "unit"),
        // services
        ("- name: cart\n", SERVICE, "services[1].name", "already the name of services[0]"),
        ("10.0.0.1:80", "10.0.0.1:0", "services[0].endpoints[0].address", "port 0"),
        ("10.0.0.1:80", "10.0.0.1:99999", "services[0].endpoints[0].address", "not an address"),
        ("10.0.0.1:80", "shop.local:80", "services[0].endpoints[0].address", "dns: {name: shop.local, port: 80}"),
        ("10.0.0.1:80", "localhost", "services[0].endpoints[0].address", "dns: {name: localhost"),
        ("  - {address: \"10.0.0.1:80\"}\n", "  - {address: \"10.0.0.1:80\"}\n  - {address: \"10.0.0.1:80\"}\n", "services[0].endpoints[1].address", "already endpoints[0]"),
        ("{address: \"10.0.0.1:80\"}", "{address: \"10.0.0.1:80\", weight: 2000000}", "services[0].endpoints[0].weight", "too large"),
        (SERVICE, "- name: catalogue\n  dns: {port: 80}\n", "services[0].dns.name", "is missing"),
        (SERVICE, "- name: catalogue\n  dns: {name: a.b}\n", "services[0].dns.port", "is missing"),
        (SERVICE, "- name: catalogue\n  dns: {name: a.b, port: 80000}\n", "services[0].dns.port", "not a port"),
        (SERVICE, "- name: catalogue\n  dns: {name: \"a.b:80\", port: 80}\n", "services[0].dns.name", "not a DNS name"),
        (SERVICE, "- name: catalogue\n  dns: {name: 1.2.3.4, port: 80}\n", "services[0].dns.name", "list it in endpoints"),
        (SERVICE, "- name: catalogue\n  dns: {name: a.b, port: 80, record: srv}\n", "services[0].dns.port", "carry the port"),
        (SERVICE, "- name: catalogue\n  dns: {name: a.b, port: 80, refreshMin: 10m}\n", "services[0].dns.refreshMax", "not be shorter"),
        (SERVICE, "- name: catalogue\n  tls: {serverName: \"a b\"}\n", "services[0].tls.serverName", "not a host name"),
        (SERVICE, "- name: catalogue\n  tls: {clientCertificate: {privateKey: k}}\n", "services[0].tls.clientCertificate.certificate", "PEM"),
        (SERVICE, "- name: catalogue\n  tls: {ca: a, insecureSkipVerify: true}\n", "services[0].tls.insecureSkipVerify", "contradicts"),
        (SERVICE, "- name: catalogue\n  balancer: {algorithm: consistent_hash}\n", "services[0].balancer.hash", "is missing"),
        (SERVICE, "- name: catalogue\n  balancer: {hash: [{cookie: a}]}\n", "services[0].balancer.hash", "consistent_hash"),
        (SERVICE, "- name: catalogue\n  balancer: {algorithm: consistent_hash, hash: [{}]}\n", "services[0].balancer.hash[0]", "exactly one"),
        (SERVICE, "- name: catalogue\n  balancer: {algorithm: consistent_hash, hash: [{cookie: a, sourceAddress: true}]}\n", "services[0].balancer.hash[0]", "exactly one"),
        (SERVICE, "- name: catalogue\n  balancer: {algorithm: consistent_hash, hash: [{cookie: \"a b\"}]}\n", "services[0].balancer.hash[0].cookie", "cookie name"),
        (SERVICE, "- name: catalogue\n  balancer: {panicPercent: 101}\n", "services[0].balancer.panicPercent", "0 and 100"),
        (SERVICE, "- name: catalogue\n  balancer: {zoneHealthyPercent: 101}\n", "services[0].balancer.zoneHealthyPercent", "0 and 100"),
        (SERVICE, "- name: catalogue\n  balancer: {ewmaDecay: 0s}\n", "services[0].balancer.ewmaDecay", "longer than 0s"),
        (SERVICE, "- name: catalogue\n  healthCheck: {path: health}\n", "services[0].healthCheck.path", "start with /"),
        (SERVICE, "- name: catalogue\n  healthCheck: {kind: tcp, path: /}\n", "services[0].healthCheck.path", "kind: http"),
        (SERVICE, "- name: catalogue\n  healthCheck: {grpcService: a}\n", "services[0].healthCheck.grpcService", "kind: grpc"),
        (SERVICE, "- name: catalogue\n  healthCheck: {statuses: [200, 99]}\n", "services[0].healthCheck.statuses[1]", "200 to 599"),
        (SERVICE, "- name: catalogue\n  healthCheck: {interval: 0s}\n", "services[0].healthCheck.interval", "longer than 0s"),
        (SERVICE, "- name: catalogue\n  outlierDetection: {ejectedPercentMax: 200}\n", "services[0].outlierDetection.ejectedPercentMax", "0 and 100"),
        (SERVICE, "- name: catalogue\n  outlierDetection: {ejectionTimeMax: 1s}\n", "services[0].outlierDetection.ejectionTimeMax", "not be shorter"),
        (SERVICE, "- name: catalogue\n  connectTimeout: 5\n", "services[0].connectTimeout", "must be text"),
        (SERVICE, "- name: catalogue\n  connectTimeout: 5sec\n", "services[0].connectTimeout", "\"5sec\""),
        (SERVICE, "- name: catalogue\n  retryBudget: {percent: 200}\n", "services[0].retryBudget.percent", "0 and 100"),
        (SERVICE, "- name: catalogue\n  replayBytesMax: 100000000\n", "services[0].replayBytesMax", "67108864"),
        // routes
        ("routes:\n", "routes:\n- {name: a, rules: [{}]}\n", "routes[0].parentRefs", "is missing"),
        ("- name: shop\n", "- creationTimestamp: yesterday\n  name: shop\n", "routes[0].creationTimestamp", "RFC 3339"),
        (ROUTE, "  parentRefs: [{name: web}, {name: wob}]\n", "routes[0].parentRefs[1].name", "did you mean \"web\"?"),
        (ROUTE, "  parentRefs: [{name: web}, {kind: Service, name: carts}]\n", "routes[0].parentRefs[1].name", "did you mean \"cart\"?"),
        (ROUTE, "  parentRefs: [{name: web}, {kind: Service, name: cart}]\n", "routes[0].parentRefs[1].name", "no listener has service: cart"),
        (ROUTE, "  parentRefs: [{name: web}]\n  hostnames: [\"a.b:80\"]\n", "routes[0].hostnames[0]", "not a host name"),
        (ROUTE, "  parentRefs: [{name: web}]\n  hostnames: [\"a.*.b\"]\n", "routes[0].hostnames[0]", "not a host name"),
        (ROUTE, "  parentRefs: [{name: web}]\n  hostnames: [\"10.0.0.1\"]\n", "routes[0].hostnames[0]", "not a host name"),
        (ROUTE, "  parentRefs: [{name: web}]\n  hostnames: [a.b, A.b]\n", "routes[0].hostnames[1]", "occurs twice"),
        ("routes:\n", "routes:\n- {name: shop, parentRefs: [{name: web}], rules: [{}]}\n", "routes[1].name", "already the name of routes[0]"),
        ("routes:\n", "routes:\n- {name: empty, parentRefs: [{name: web}]}\n", "routes[0].rules", "at least one rule"),
        ("routes:\n", "routes:\n- {name: t, kind: tcp, parentRefs: [{name: web}], rules: [{}]}\n", "routes[0].parentRefs[0]", "protocol: tcp or auto"),
        ("routes:\n", "routes:\n- {name: t, kind: tls, parentRefs: [{name: web}], rules: [{}]}\n", "routes[0].parentRefs[0]", "protocol: tls or auto"),
        (RULE, "    backendRefs: [{name: catalog}]\n", "routes[0].rules[0].backendRefs[0].name", "did you mean \"catalogue\"?"),
        (RULE, "    backendRefs: [{weight: 1}]\n", "routes[0].rules[0].backendRefs[0].name", "is missing"),
        (RULE, "    backendRefs: [{name: catalogue, weight: 9000000}]\n", "routes[0].rules[0].backendRefs[0].weight", "too large"),
        (RULE, "    backendRefs: [{name: catalogue, filters: [{requestRedirect: {}}]}]\n", "routes[0].rules[0].backendRefs[0].filters[0]", "not possible on a backend"),
        (RULE, "    name: a\n  - {name: a}\n", "routes[0].rules[1].name", "already the name of rules[0]"),
        ("{value: /shop}", "{value: shop}", "routes[0].rules[0].matches[0].path.value", "start with /"),
        ("{value: /shop}", "{value: \"/shop?x\"}", "routes[0].rules[0].matches[0].path.value", "'?'"),
        ("{value: /shop}", "{value: \"(\", type: RegularExpression}", "routes[0].rules[0].matches[0].path.value", "not a regular expression"),
        ("{value: /shop}", "{value: \"a)|(b\", type: RegularExpression}", "routes[0].rules[0].matches[0].path.value", "not a regular expression"),
        ("{value: /shop}", "{value: \"\\\\w{2000}\", type: RegularExpression}", "routes[0].rules[0].matches[0].path.value", "repetitions smaller"),
        ("{path: {value: /shop}}", "{method: get}", "routes[0].rules[0].matches[0].method", "write GET"),
        ("{path: {value: /shop}}", "{method: \"G T\"}", "routes[0].rules[0].matches[0].method", "not an HTTP method"),
        ("{path: {value: /shop}}", "{grpcMethod: {service: a}}", "routes[0].rules[0].matches[0].grpcMethod", "kind grpc"),
        ("{path: {value: /shop}}", "{headers: [{name: \"a b\", value: x}]}", "routes[0].rules[0].matches[0].headers[0].name", "not a header name"),
        ("{path: {value: /shop}}", "{headers: [{name: a}]}", "routes[0].rules[0].matches[0].headers[0].value", "is missing"),
        ("{path: {value: /shop}}", "{queryParams: [{value: a}]}", "routes[0].rules[0].matches[0].queryParams[0].name", "is missing"),
        (RULE, "    timeouts: {request: 1s, backendRequest: 2s}\n", "routes[0].rules[0].timeouts.backendRequest", "longer than timeouts.request"),
        (RULE, "    timeouts: {request: 1}\n", "routes[0].rules[0].timeouts.request", "must be text"),
        (RULE, "    retry: {codes: [200]}\n", "routes[0].rules[0].retry.codes[0]", "400 to 599"),
        (RULE, "    retry: {attempts: 100}\n", "routes[0].rules[0].retry.attempts", "at most 25"),
        (RULE, "    retry: {grpcCodes: [unavailble]}\n", "routes[0].rules[0].retry.grpcCodes[0]", "did you mean \"unavailable\"?"),
        (RULE, "    retry: {grpcCodes: [ok]}\n", "routes[0].rules[0].retry.grpcCodes[0]", "success"),
        (RULE, "    sessionPersistence: {cookieLifetime: Permanent}\n", "routes[0].rules[0].sessionPersistence.absoluteTimeout", "is missing"),
        (RULE, "    sessionPersistence: {absoluteTimeout: 1h}\n", "routes[0].rules[0].sessionPersistence.absoluteTimeout", "Permanent"),
        (RULE, "    sessionPersistence: {type: Header, cookieLifetime: Permanent}\n", "routes[0].rules[0].sessionPersistence.cookieLifetime", "type: Cookie"),
        (RULE, "    sessionPersistence: {sessionName: \"a;b\"}\n", "routes[0].rules[0].sessionPersistence.sessionName", "cookie name"),
    ] {
        expect(&broken(from, to), path, part);
    }
}

#[test]
#[rustfmt::skip] // one row a line
fn meanings_of_filters() {
    const RULE: &str = "    backendRefs: [{name: catalogue}]\n";
    let filters = "routes[0].rules[0].filters";
    for (yaml, path, part) in [
        ("{}", "[0]", "is empty"),
        ("{type: CORS}", "[0]", "not the field"),
        ("{type: CORS, urlRewrite: {hostname: a}}", "[0].type", "but the field that is set is urlRewrite"),
        ("{cors: {allowOrigins: ['*']}, urlRewrite: {hostname: a}}", "[0]", "two filters"),
        ("{urlRewrite: {hostname: a}}, {urlRewrite: {hostname: b}}", "[1]", "second URLRewrite"),
        ("{urlRewrite: {}}", "[0].urlRewrite", "rewrites nothing"),
        ("{urlRewrite: {hostname: '*.a'}}", "[0].urlRewrite.hostname", "not a host name"),
        ("{urlRewrite: {path: {}}}", "[0].urlRewrite.path", "exactly one of"),
        ("{urlRewrite: {path: {replaceFullPath: a}}}", "[0].urlRewrite.path.replaceFullPath", "start with /"),
        ("{urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /a}}}", "[0].urlRewrite.path.type", "replacePrefixMatch is set"),
        ("{urlRewrite: {path: {type: ReplacePrefixMatch, replaceFullPath: /a}}}", "[0].urlRewrite.path.type", "replaceFullPath is set"),
        ("{requestHeaderModifier: {set: [{name: a, value: b}], remove: [A]}}", "[0].requestHeaderModifier.remove[0]", "occurs twice"),
        ("{requestHeaderModifier: {set: [{name: connection, value: b}]}}", "[0].requestHeaderModifier.set[0].name", "belongs to the connection"),
        ("{requestHeaderModifier: {set: [{name: Host, value: 'a b'}]}}", "[0].requestHeaderModifier.set[0].value", "is not a host"),
        ("{requestHeaderModifier: {add: [{name: host, value: b}]}}", "[0].requestHeaderModifier.add[0].name", "belongs to the connection"),
        ("{responseHeaderModifier: {set: [{name: a, value: \"b\\n\"}]}}", "[0].responseHeaderModifier.set[0].value", "not a header value"),
        ("{responseHeaderModifier: {set: [{name: a, value: ' b'}]}}", "[0].responseHeaderModifier.set[0].value", "white space"),
        ("{requestMirror: {}}", "[0].requestMirror.backendRef", "is missing"),
        ("{requestMirror: {backendRef: {name: catalog}}}", "[0].requestMirror.backendRef.name", "did you mean"),
        ("{requestMirror: {backendRef: {name: cart, weight: 1}}}", "[0].requestMirror.backendRef.weight", "percent or fraction"),
        ("{requestMirror: {backendRef: {name: cart}, percent: 101}}", "[0].requestMirror.percent", "0 and 100"),
        ("{requestMirror: {backendRef: {name: cart}, percent: 1, fraction: {numerator: 1}}}", "[0].requestMirror.fraction", "keep one"),
        ("{requestMirror: {backendRef: {name: cart}, fraction: {numerator: 101}}}", "[0].requestMirror.fraction", "101/100"),
        ("{cors: {}}", "[0].cors.allowOrigins", "is missing"),
        ("{cors: {allowOrigins: ['*', 'http://a']}}", "[0].cors.allowOrigins", "stands alone"),
        ("{cors: {allowOrigins: ['a.com']}}", "[0].cors.allowOrigins[0]", "not an origin"),
        ("{cors: {allowOrigins: ['https://a.com/']}}", "[0].cors.allowOrigins[0]", "no path"),
        ("{cors: {allowOrigins: ['https://a.*.com']}}", "[0].cors.allowOrigins[0]", "leftmost"),
        ("{cors: {allowOrigins: ['*'], allowMethods: ['G T']}}", "[0].cors.allowMethods[0]", "not an HTTP method"),
        ("{cors: {allowOrigins: ['*'], allowHeaders: ['a b']}}", "[0].cors.allowHeaders[0]", "not a header name"),
    ] {
        let rule = format!("    filters: [{yaml}]\n{RULE}");
        expect(&broken(RULE, &rule), &format!("{filters}{path}"), part);
    }
    for (yaml, path, part) in [
        ("{requestRedirect: {scheme: ftp}}", "[0].requestRedirect.scheme", "http or https"),
        ("{requestRedirect: {hostname: 'a:80'}}", "[0].requestRedirect.hostname", "not a host name"),
        ("{requestRedirect: {port: 70000}}", "[0].requestRedirect.port", "not a port"),
        ("{requestRedirect: {statusCode: 304}}", "[0].requestRedirect.statusCode", "301, 302, 303, 307 or 308"),
        ("{requestRedirect: {}}, {urlRewrite: {hostname: a}}", "[1]", "cannot stand in one rule"),
    ] {
        expect(
            &broken(RULE, &format!("    filters: [{yaml}]\n")),
            &format!("{filters}{path}"),
            part,
        );
    }
    expect(
        &broken(
            RULE,
            &format!("    filters: [{{requestRedirect: {{}}}}]\n{RULE}"),
        ),
        "routes[0].rules[0].backendRefs",
        "go unused",
    );
    for matches in [
        "[{path: {value: /a}}, {path: {value: /b}}]",
        "[{path: {type: Exact, value: /a}}]",
    ] {
        expect(
            &broken(
                "matches: [{path: {value: /shop}}]",
                &format!(
                    "matches: {matches}\n    filters: [{{urlRewrite: {{path: {{replacePrefixMatch: /}}}}}}]"
                ),
            ),
            "routes[0].rules[0].filters[0].urlRewrite.path.replacePrefixMatch",
            "exactly one match",
        );
    }
    expect(
        &broken(
            RULE,
            "    filters: [{urlRewrite: {hostname: a}}]\n    backendRefs: [{name: catalogue, filters: [{urlRewrite: {hostname: b}}]}]\n",
        ),
        "routes[0].rules[0].backendRefs[0].filters",
        "keep one",
    );
}

#[test]
#[rustfmt::skip] // one row a line
fn meanings_between_kinds() {
    let file = |listener: &str, service: &str, route: &str| {
        format!(
            "listeners: [{{name: l, address: '0.0.0.0:80', {listener}}}]\nservices: [{{name: s, {service}}}, {{name: t}}]\nroutes: [{{name: r, parentRefs: [{{name: l}}], {route}}}]\n"
        )
    };
    for (listener, service, route, path, part) in [
        ("protocol: http, service: s", "protocol: tcp", "rules: [{}]", "listeners[0].service", "protocol: tcp"),
        ("protocol: http", "protocol: tcp", "rules: [{backendRefs: [{name: s}]}]", "routes[0].rules[0].backendRefs[0].name", "protocol: tcp"),
        ("protocol: http", "protocol: http1", "kind: grpc, rules: [{backendRefs: [{name: s}]}]", "routes[0].rules[0].backendRefs[0].name", "needs HTTP/2"),
        ("protocol: http", "protocol: http", "kind: grpc, rules: [{backendRefs: [{name: s}]}]", "routes[0].rules[0].backendRefs[0].name", "needs HTTP/2"),
        ("protocol: http", "protocol: http", "kind: grpc, rules: [{matches: [{path: {value: /a}}]}]", "routes[0].rules[0].matches[0].path", "kind http"),
        ("protocol: http", "protocol: http", "kind: grpc, rules: [{matches: [{method: GET}]}]", "routes[0].rules[0].matches[0].method", "kind http"),
        ("protocol: http", "protocol: http", "kind: grpc, rules: [{matches: [{queryParams: [{name: a, value: b}]}]}]", "routes[0].rules[0].matches[0].queryParams", "kind http"),
        ("protocol: http", "protocol: http", "kind: grpc, rules: [{matches: [{grpcMethod: {}}]}]", "routes[0].rules[0].matches[0].grpcMethod", "at least one"),
        ("protocol: http", "protocol: http", "kind: grpc, rules: [{matches: [{grpcMethod: {service: /a}}]}]", "routes[0].rules[0].matches[0].grpcMethod.service", "not a gRPC name"),
        ("protocol: http", "protocol: http", "kind: grpc, rules: [{filters: [{urlRewrite: {hostname: a}}]}]", "routes[0].rules[0].filters[0]", "kind grpc"),
        ("protocol: tls", "protocol: tcp", "kind: http, rules: [{}]", "routes[0].parentRefs[0]", "protocol: http or auto"),
        ("protocol: tls, tls: {certificates: [{certificate: a, privateKey: b}]}, service: s", "protocol: tcp", "kind: tcp, rules: [{}]", "", ""),
        ("protocol: auto, tls: {certificates: [{certificate: a, privateKey: b}]}", "protocol: tcp", "kind: tls, rules: [{}]", "routes[0].parentRefs[0]", "terminates TLS"),
        ("protocol: tcp, http: {}", "protocol: tcp", "kind: tcp, rules: [{}]", "listeners[0].http", "no effect"),
        ("protocol: tcp", "protocol: tcp", "kind: tcp, hostnames: [a], rules: [{}]", "routes[0].hostnames", "sees no name"),
        ("protocol: tcp", "protocol: tcp", "kind: tcp, rules: [{}, {}]", "routes[0].rules", "exactly one rule"),
        ("protocol: tcp", "protocol: tcp", "kind: tcp, rules: [{timeouts: {}}]", "routes[0].rules[0].timeouts", "only possible"),
        ("protocol: tcp", "protocol: tcp", "kind: tcp, rules: [{backendRefs: [{name: s, filters: [{}]}]}]", "routes[0].rules[0].backendRefs[0].filters", "only possible"),
    ] {
        let text = file(listener, service, route);
        if path.is_empty() {
            let found = mistakes(&text);
            assert!(
                found.iter().any(|(path, _)| path == "listeners[0].tls"),
                "{found:?}"
            );
        } else {
            expect(&text, path, part);
        }
    }
    expect(
        "listeners: [{name: l, address: '0.0.0.0:80'}]\nroutes: [{name: a, kind: tcp, parentRefs: [{name: l}], rules: [{}]}, {name: b, kind: tcp, parentRefs: [{name: l}], rules: [{}]}]",
        "routes[1].parentRefs",
        "already has the tcp route routes[0]",
    );
}

#[test]
fn text_and_bytes_compile_to_the_same() {
    use prost::Message as _;
    for text in [VALID, include_str!("../../tests/full.yaml")] {
        let config = parse(text).unwrap_or_else(|errors| panic!("{errors}"));
        let bytes = config.encode_to_vec();
        let of_text = load("weft.yaml", text).unwrap_or_else(|errors| panic!("{errors}"));
        let of_bytes = compile::from_bytes(&bytes).expect("compiles");
        // HashMap's order is random, but the index has no state of its own.
        let show = |snapshot: &Snapshot| {
            snapshot
                .listeners
                .iter()
                .flat_map(|listener| listener.http_routes.iter().flat_map(|table| &table.entries))
                .map(|entry| format!("{entry:#?}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(show(&of_text), show(&of_bytes));
        assert_eq!(of_text.settings, of_bytes.settings);
        assert_eq!(
            format!("{:?}", of_text.services),
            format!("{:?}", of_bytes.services)
        );
        assert_eq!(of_text.revision, of_bytes.revision);
        // And back: the file form of what was read is read as the same.
        let json = serde_json::to_string(&config).expect("serialises");
        assert_eq!(parse(&json).expect("is valid"), config);
    }
}

#[test]
fn bytes_that_are_no_configuration() {
    let errors = compile::from_bytes(&[0xff, 0xff]).expect_err("is garbage");
    assert!(errors.to_string().contains("weft.v1.Config"));
    let config = wire::Config {
        services: vec![wire::Service {
            name: "a".into(),
            protocol: 99,
            ..Default::default()
        }],
        ..Default::default()
    };
    let errors = compile::compile(&config).expect_err("has an unknown value");
    assert_eq!(errors.list[0].path, "services[0].protocol");
    assert!(errors.list[0].message.contains("unknown value 99"));
}

#[test]
fn no_text_panics() {
    let text = include_str!("../../tests/full.yaml");
    let pieces = [
        "", "[", "]", "{", "}", ":", "- ", "\n", "&a ", "*a", "é", "\0", "0", "-1", "''", "null",
        "%", "|\n",
    ];
    let mut state = 1_u64;
    let mut below = |bound: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap_or_default() % bound
    };
    let lines: Vec<&str> = text.lines().collect();
    for _ in 0..400 {
        let mut broken: Vec<String> = lines.iter().map(ToString::to_string).collect();
        for _ in 0..=below(3) {
            let line = below(broken.len());
            let bytes: Vec<usize> = broken[line].char_indices().map(|(at, _)| at).collect();
            if bytes.is_empty() {
                continue;
            }
            let (start, end) = (bytes[below(bytes.len())], bytes[below(bytes.len())]);
            broken[line].replace_range(start.min(end)..start.max(end), pieces[below(pieces.len())]);
        }
        // Whether it is valid does not matter; that it ends, and with a reason, does.
        if let Err(errors) = load("weft.yaml", &broken.join("\n")) {
            assert!(!errors.is_empty());
        }
    }
}

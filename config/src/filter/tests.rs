//! The tables of Gateway API's filters, row by row.

use http::header;

use super::*;
use crate::file::load;
use crate::select::{RequestHead, Selection, select};
use crate::snapshot::Snapshot;

/// One listener on port 8080 and one rule with these filters, matching `prefix`.
fn snapshot(prefix: &str, filters: &str, backends: &str) -> Snapshot {
    let text = format!(
        "listeners: [{{name: web, address: '0.0.0.0:8080', protocol: http}}]
services: [{{name: s}}, {{name: t}}]
routes: [{{name: r, parentRefs: [{{name: web}}], rules: [{{matches: [{{path: {{value: '{prefix}'}}}}], filters: [{filters}], backendRefs: [{backends}]}}]}}]"
    );
    load("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

fn parts(method: &str, url: &str, headers: &[(&'static str, &'static str)]) -> RequestParts {
    let uri: http::Uri = url.parse().expect("a URL");
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_static(value));
    }
    RequestParts {
        method: method.parse().expect("a method"),
        scheme: if uri.scheme_str() == Some("https") {
            Scheme::Https
        } else {
            Scheme::Http
        },
        authority: uri.authority().cloned(),
        path_and_query: uri.path_and_query().cloned().expect("a path"),
        headers: map,
    }
}

fn run(snapshot: &Snapshot, parts: &mut RequestParts, port: u16) -> FilterOutcome {
    let before = parts.clone();
    let head = RequestHead {
        method: &before.method,
        scheme: before.scheme,
        authority: before.authority_str(),
        path: before.path_and_query.path(),
        query: before.path_and_query.query(),
        headers: &before.headers,
    };
    match select(&snapshot.listeners[0], &head, None) {
        Selection::Rule { rule, entry } => {
            apply_request_filters(&rule.filters, parts, &FilterContext { entry, port })
        }
        other => panic!("{other:?}"),
    }
}

fn rule(snapshot: &Snapshot) -> &crate::snapshot::Rule {
    let table = snapshot.listeners[0]
        .http_routes
        .as_ref()
        .expect("has routes");
    &table.entries[0].rule
}

#[test]
#[rustfmt::skip] // one row a line
fn replace_prefix_table() {
    // The first eleven rows are HTTPPathModifier's.
    for (path, prefix, replacement, wanted) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/foo/bar?a=b%20c", "/foo", "/xyz", "/xyz/bar?a=b%20c"),
        ("/foo?a=/foo", "/foo", "", "/?a=/foo"),
        ("/foo/%2F//b", "/foo", "/xyz", "/xyz/%2F//b"),
    ] {
        let filter = format!(
            "{{urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{replacement}'}}}}}}"
        );
        let snapshot = snapshot(prefix, &filter, "");
        let mut parts = parts("GET", &format!("http://h{path}"), &[]);
        assert_eq!(run(&snapshot, &mut parts, 80), FilterOutcome::Continue);
        assert_eq!(
            parts.path_and_query.as_str(),
            wanted,
            "{path} {prefix} {replacement:?}"
        );
    }
}

#[test]
#[rustfmt::skip] // one row a line
fn rewrites() {
    for (filter, url, host, path) in [
        ("{urlRewrite: {path: {replaceFullPath: /one}}}", "http://h/a/b", "h", "/one"),
        ("{urlRewrite: {path: {replaceFullPath: /one}}}", "http://h/a?q", "h", "/one?q"),
        ("{urlRewrite: {path: {replaceFullPath: ''}}}", "http://h/a?q", "h", "/?q"),
        ("{urlRewrite: {hostname: One.Example}}", "http://h:81/a?q", "one.example", "/a?q"),
        ("{urlRewrite: {hostname: one, path: {replacePrefixMatch: /x}}}", "http://h/a", "one", "/x/a"),
        ("", "http://h:81/a//../%2e?q=%zz", "h:81", "/a//../%2e?q=%zz"),
    ] {
        let snapshot = snapshot("/", filter, "");
        let mut parts = parts("GET", url, &[]);
        let before = parts.path_and_query.as_str().as_ptr();
        assert_eq!(run(&snapshot, &mut parts, 80), FilterOutcome::Continue);
        assert_eq!(parts.authority_str(), host, "{filter} {url}");
        assert_eq!(parts.path_and_query.as_str(), path, "{filter} {url}");
        if !filter.contains("path") {
            assert_eq!(parts.path_and_query.as_str().as_ptr(), before, "not copied");
        }
    }
}

#[test]
#[rustfmt::skip] // one row a line
fn redirects() {
    for (filter, port, url, status, location) in [
        // Nothing set: 302 to the same place, at the port that the client dialled.
        ("{}", 80, "http://h/a?q=1", 302, "http://h/a?q=1"),
        ("{}", 8080, "http://h/a", 302, "http://h:8080/a"),
        ("{}", 8080, "http://h:9999/a", 302, "http://h:8080/a"),
        ("{}", 443, "https://h/a", 302, "https://h/a"),
        ("{}", 80, "https://h/a", 302, "https://h:80/a"),
        ("{}", 443, "http://h/a", 302, "http://h:443/a"),
        // A scheme brings its own port.
        ("{scheme: https}", 8080, "http://h:8080/a", 302, "https://h/a"),
        ("{scheme: http}", 8443, "https://h/a", 302, "http://h/a"),
        // An explicit port is shown unless it is the scheme's.
        ("{port: 8083}", 80, "http://h/a", 302, "http://h:8083/a"),
        ("{port: 80}", 8080, "http://h/a", 302, "http://h/a"),
        ("{port: 443}", 8080, "http://h/a", 302, "http://h:443/a"),
        ("{scheme: https, port: 443}", 8080, "http://h/a", 302, "https://h/a"),
        ("{scheme: https, port: 80}", 8080, "http://h/a", 302, "https://h:80/a"),
        ("{scheme: http, port: 80}", 8080, "https://h/a", 302, "http://h/a"),
        ("{scheme: https, port: 8443}", 8080, "http://h/a", 302, "https://h:8443/a"),
        ("{hostname: example.org}", 80, "http://h:80/a", 302, "http://example.org/a"),
        ("{hostname: example.org, statusCode: 301}", 8080, "http://h/a", 301, "http://example.org:8080/a"),
        ("{statusCode: 303}", 80, "http://h/a", 303, "http://h/a"),
        ("{statusCode: 307}", 80, "http://h/a", 307, "http://h/a"),
        ("{statusCode: 308}", 80, "http://h/a", 308, "http://h/a"),
        ("{path: {replaceFullPath: /b}}", 80, "http://h/a?q", 302, "http://h/b?q"),
        ("{path: {replacePrefixMatch: /b}}", 80, "http://h/a/c", 302, "http://h/b/a/c"),
        ("{hostname: e.org, path: {replacePrefixMatch: /b}, scheme: https}", 80, "http://h/", 302, "https://e.org/b/"),
        ("{}", 8080, "http://[::1]:8080/a", 302, "http://[::1]:8080/a"),
    ] {
        let snapshot = snapshot("/", &format!("{{requestRedirect: {filter}}}"), "");
        let FilterOutcome::Respond {
            status: got,
            headers,
        } = run(&snapshot, &mut parts("GET", url, &[]), port)
        else {
            panic!("{filter} answers");
        };
        assert_eq!(got.as_u16(), status, "{filter}");
        assert_eq!(headers[header::LOCATION], location, "{filter} {port} {url}");
    }
    // Without any host the location is a path.
    let snapshot = snapshot("/", "{requestRedirect: {}}", "");
    let mut request = parts("GET", "http://h/a", &[]);
    request.authority = None;
    let FilterOutcome::Respond { headers, .. } = run(&snapshot, &mut request, 8080) else {
        panic!("answers");
    };
    assert_eq!(headers[header::LOCATION], "/a");
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .map(|v| v.to_str().expect("text").to_owned())
        .collect()
}

#[test]
fn header_modifiers() {
    let snapshot = snapshot(
        "/",
        "{requestHeaderModifier: {set: [{name: x-set, value: new}, {name: Host, value: other}], add: [{name: x-add, value: 'b,c'}], remove: [X-Remove]}},
         {responseHeaderModifier: {set: [{name: server, value: weft}], add: [{name: set-cookie, value: b=2}], remove: [x-powered-by]}}",
        "",
    );
    let mut request = parts(
        "GET",
        "http://h/",
        &[
            ("x-set", "old"),
            ("x-set", "older"),
            ("x-add", "a"),
            ("x-remove", "1"),
            ("x-other", "1"),
        ],
    );
    assert_eq!(run(&snapshot, &mut request, 80), FilterOutcome::Continue);
    assert_eq!(values(&request.headers, "x-set"), ["new"]);
    assert_eq!(values(&request.headers, "x-add"), ["a", "b,c"]);
    assert!(values(&request.headers, "x-remove").is_empty());
    assert_eq!(values(&request.headers, "x-other"), ["1"]);
    assert_eq!(request.authority_str(), "other");
    assert!(!request.headers.contains_key(header::HOST));

    let mut response = HeaderMap::new();
    response.insert("server", HeaderValue::from_static("nginx"));
    response.insert("x-powered-by", HeaderValue::from_static("x"));
    response.insert("set-cookie", HeaderValue::from_static("a=1"));
    apply_response_filters(&rule(&snapshot).filters, None, &mut response);
    assert_eq!(values(&response, "server"), ["weft"]);
    assert_eq!(values(&response, "set-cookie"), ["a=1", "b=2"]);
    assert!(values(&response, "x-powered-by").is_empty());
}

#[test]
fn filters_run_in_their_order() {
    // The rewrite comes before what looks at its result.
    let snapshot = snapshot(
        "/a",
        "{urlRewrite: {hostname: first}}, {requestHeaderModifier: {set: [{name: host, value: second}]}}",
        "",
    );
    let mut request = parts("GET", "http://h/a", &[]);
    run(&snapshot, &mut request, 80);
    assert_eq!(request.authority_str(), "second");
}

/// Headers of a preflight's answer; `None`: it goes on to the backend.
fn preflight(cors: &str, origin: &'static str, asked: &'static str) -> Option<HeaderMap> {
    let snapshot = snapshot("/", &format!("{{cors: {cors}}}"), "");
    let mut request = parts(
        "OPTIONS",
        "http://h/",
        &[
            ("origin", origin),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", asked),
        ],
    );
    match run(&snapshot, &mut request, 80) {
        FilterOutcome::Respond { status, headers } => {
            assert_eq!(status, StatusCode::NO_CONTENT);
            Some(headers)
        }
        FilterOutcome::Continue => None,
        FilterOutcome::Failed(reason) => panic!("{reason}"),
    }
}

fn actual(cors: &str, origin: &'static str) -> HeaderMap {
    let snapshot = snapshot("/", &format!("{{cors: {cors}}}"), "");
    let mut request = parts("GET", "http://h/", &[("origin", origin)]);
    let kept = CorsRequest::of(&rule(&snapshot).filters, &request);
    assert_eq!(run(&snapshot, &mut request, 80), FilterOutcome::Continue);
    let mut response = HeaderMap::new();
    apply_response_filters(&rule(&snapshot).filters, kept.as_ref(), &mut response);
    response
}

#[test]
#[rustfmt::skip] // one row a line
fn cors_origins() {
    for (allowed, origin, matches) in [
        ("'*'", "https://any.where", true),
        ("'*'", "null", true),
        ("https://a.com", "https://a.com", true),
        ("https://a.com", "https://A.com", true),
        ("https://a.com", "http://a.com", false),
        ("https://a.com", "https://a.com:8443", false),
        ("https://a.com", "https://a.com.evil", false),
        ("'https://a.com:443'", "https://a.com", true),
        ("'http://a.com:80'", "http://a.com", true),
        ("'http://a.com:8080'", "http://a.com:8080", true),
        ("'https://*.a.com'", "https://b.a.com", true),
        ("'https://*.a.com'", "https://c.b.a.com", true),
        ("'https://*.a.com'", "https://a.com", false),
        ("'https://*.a.com'", "https://.a.com", false),
        ("'https://*.a.com'", "http://b.a.com", false),
        ("'https://*.a.com'", "https://b.a.com:8443", false),
        ("'https://*.a.com'", "https://evil.com:1.a.com", false),
        ("'https://*'", "https://b.c", true),
        ("'https://*'", "https://b.c:8443", false),
        ("'https://*'", "https://[::1]", true),
        ("'https://*:8443'", "https://b.c:8443", true),
        ("https://a.com, https://b.com", "https://b.com", true),
        ("https://a.com", "https", false),
    ] {
        let cors = format!("{{allowOrigins: [{allowed}]}}");
        let answered = preflight(&cors, origin, "x").is_some();
        assert_eq!(answered, matches, "{allowed} {origin}");
        let headers = actual(&cors, origin);
        assert_eq!(
            headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN),
            matches
        );
        if !matches {
            assert!(headers.is_empty(), "{allowed} {origin}: {headers:?}");
        }
    }
}

#[test]
#[rustfmt::skip] // one row a line
fn cors_headers() {
    const O: &str = "https://a.com";
    let one = |headers: &HeaderMap, name: &str| values(headers, name).first().cloned();
    for (cors, name, wanted) in [
        ("{allowOrigins: ['*']}", "access-control-allow-origin", Some("*")),
        ("{allowOrigins: ['*']}", "vary", None),
        ("{allowOrigins: ['*'], allowCredentials: true}", "access-control-allow-origin", Some(O)),
        ("{allowOrigins: ['*'], allowCredentials: true}", "vary", Some("Origin")),
        ("{allowOrigins: ['*'], allowCredentials: true}", "access-control-allow-credentials", Some("true")),
        ("{allowOrigins: ['*']}", "access-control-allow-credentials", None),
        ("{allowOrigins: ['https://a.com']}", "access-control-allow-origin", Some(O)),
        ("{allowOrigins: ['*'], allowMethods: [GET, PUT]}", "access-control-allow-methods", Some("GET, PUT")),
        ("{allowOrigins: ['*'], allowMethods: ['*']}", "access-control-allow-methods", Some("*")),
        ("{allowOrigins: ['*'], allowMethods: ['*'], allowCredentials: true}", "access-control-allow-methods", Some("PUT")),
        ("{allowOrigins: ['*']}", "access-control-allow-methods", None),
        ("{allowOrigins: ['*'], allowHeaders: [x-a, x-b]}", "access-control-allow-headers", Some("x-a, x-b")),
        ("{allowOrigins: ['*'], allowHeaders: ['*']}", "access-control-allow-headers", Some("*")),
        ("{allowOrigins: ['*'], allowHeaders: ['*'], allowCredentials: true}", "access-control-allow-headers", Some("x-asked, x-too")),
        ("{allowOrigins: ['*']}", "access-control-max-age", Some("5")),
        ("{allowOrigins: ['*'], maxAge: 60}", "access-control-max-age", Some("60")),
    ] {
        let headers = preflight(cors, O, "x-asked, x-too").expect("is answered");
        assert_eq!(one(&headers, name).as_deref(), wanted, "{cors} {name}");
    }
    for (cors, name, wanted) in [
        ("{allowOrigins: ['*']}", "access-control-allow-origin", Some("*")),
        ("{allowOrigins: ['*'], allowCredentials: true}", "access-control-allow-origin", Some(O)),
        ("{allowOrigins: ['*'], allowCredentials: true}", "access-control-allow-credentials", Some("true")),
        ("{allowOrigins: ['*'], exposeHeaders: [x-a]}", "access-control-expose-headers", Some("x-a")),
        ("{allowOrigins: ['*'], exposeHeaders: ['*']}", "access-control-expose-headers", Some("*")),
        ("{allowOrigins: ['*'], exposeHeaders: ['*'], allowCredentials: true}", "access-control-expose-headers", None),
        ("{allowOrigins: ['*'], allowMethods: [GET]}", "access-control-allow-methods", None),
        ("{allowOrigins: ['*']}", "access-control-max-age", None),
    ] {
        assert_eq!(
            one(&actual(cors, O), name).as_deref(),
            wanted,
            "{cors} {name}"
        );
    }
    // OPTIONS that is no preflight, and requests without an origin, go on untouched.
    let snapshot = snapshot("/", "{cors: {allowOrigins: ['*']}}", "");
    for headers in [
        &[("origin", O)][..],
        &[("access-control-request-method", "GET")],
        &[],
    ] {
        let mut request = parts("OPTIONS", "http://h/", headers);
        assert_eq!(run(&snapshot, &mut request, 80), FilterOutcome::Continue);
    }
    let request = parts("GET", "http://h/", &[]);
    assert!(CorsRequest::of(&rule(&snapshot).filters, &request).is_none());
}

#[test]
fn answers_carry_what_the_rule_adds() {
    let snapshot = snapshot(
        "/",
        "{cors: {allowOrigins: ['*']}}, {responseHeaderModifier: {set: [{name: x-by, value: weft}]}}, {requestRedirect: {}}",
        "",
    );
    let mut request = parts("GET", "http://h/", &[("origin", "https://a.com")]);
    let FilterOutcome::Respond { headers, .. } = run(&snapshot, &mut request, 80) else {
        panic!("answers");
    };
    assert_eq!(headers["x-by"], "weft");
    assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
}

/// How often each of the backends `0`, `1`, … and none is chosen, in percent.
fn shares(backends: &str) -> Vec<u64> {
    const DRAWS: u64 = 100_000;
    let snapshot = snapshot("/", "", backends);
    let rule = rule(&snapshot);
    let mut counts = vec![0u64; rule.backends.len() + 1];
    for draw in 0..DRAWS {
        // Evenly over all of u64.
        let random = draw * (u64::MAX / DRAWS);
        let position = match choose_backend(rule, random) {
            BackendChoice::Backend(backend) => rule
                .backends
                .iter()
                .position(|other| std::ptr::eq(other, backend)),
            BackendChoice::Invalid(reason) => {
                assert_eq!(reason, "BackendNotFound");
                rule.backends.iter().position(|other| {
                    matches!(other.target, crate::snapshot::BackendTarget::Invalid(_))
                })
            }
            BackendChoice::None => None,
        };
        counts[position.unwrap_or(rule.backends.len())] += 1;
    }
    counts
        .into_iter()
        .map(|count| (count * 100 + DRAWS / 2) / DRAWS)
        .collect()
}

#[test]
fn weights() {
    for (backends, wanted) in [
        ("{name: s}, {name: t}", vec![50, 50, 0]),
        ("{name: s, weight: 9}, {name: t}", vec![90, 10, 0]),
        ("{name: s, weight: 0}, {name: t}", vec![0, 100, 0]),
        (
            "{name: s, weight: 70}, {name: t, weight: 30}",
            vec![70, 30, 0],
        ),
        (
            "{name: s, weight: 1000000}, {name: t, weight: 1000000}",
            vec![50, 50, 0],
        ),
        // All zero, and none at all.
        (
            "{name: s, weight: 0}, {name: t, weight: 0}",
            vec![0, 0, 100],
        ),
        ("", vec![100]),
        // An invalid backend keeps its share; with weight 0 it harms nothing.
        (
            "{name: s, weight: 3}, {name: gone, weight: 1, invalid: BackendNotFound}",
            vec![75, 25, 0],
        ),
        (
            "{name: s}, {name: gone, weight: 0, invalid: BackendNotFound}",
            vec![100, 0, 0],
        ),
        ("{name: gone, invalid: BackendNotFound}", vec![100, 0]),
    ] {
        assert_eq!(shares(backends), wanted, "{backends}");
    }
    // The very ends of the range.
    let snapshot = snapshot("/", "", "{name: s}, {name: t}");
    for random in [0, u64::MAX] {
        assert!(matches!(
            choose_backend(rule(&snapshot), random),
            BackendChoice::Backend(_)
        ));
    }
}

#[test]
#[rustfmt::skip] // one row a line
fn mirror_shares() {
    for (filters, wanted) in [
        ("{requestMirror: {backendRef: {name: s}}}", vec![100]),
        ("{requestMirror: {backendRef: {name: s}, percent: 0}}", vec![0]),
        ("{requestMirror: {backendRef: {name: s}, percent: 20}}", vec![20]),
        ("{requestMirror: {backendRef: {name: s}, fraction: {numerator: 50, denominator: 1000}}}", vec![5]),
        ("{requestMirror: {backendRef: {name: s}, fraction: {numerator: 50}}}", vec![50]),
        ("{requestMirror: {backendRef: {name: s}, percent: 50}}, {requestMirror: {backendRef: {name: t}, percent: 50}}", vec![50, 50]),
        ("", vec![]),
    ] {
        const DRAWS: u64 = 20_000;
        let snapshot = snapshot("/", filters, "");
        let rule = rule(&snapshot);
        let mut counts = vec![0u64; wanted.len()];
        let mut both = 0;
        for draw in 0..DRAWS {
            let fired: Vec<_> =
                mirrors(&rule.filters, draw.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            both += u64::from(fired.len() == 2);
            for mirror in fired {
                let position = rule.filters.iter().position(
                    |filter| matches!(filter, Filter::Mirror(other) if std::ptr::eq(other, mirror)),
                );
                counts[position.expect("is one of them")] += 1;
            }
        }
        for (count, wanted) in counts.iter().zip(&wanted) {
            let percent = (count * 100 + DRAWS / 2) / DRAWS;
            assert!(
                percent.abs_diff(*wanted) <= 1,
                "{filters}: {percent} %, not {wanted} %"
            );
        }
        if wanted.len() == 2 {
            let percent = both * 100 / DRAWS;
            assert!(
                percent.abs_diff(25) <= 2,
                "independent: both fire {percent} % of the time"
            );
        }
    }
}

//! The rows: routes, requests, answers, and what the application saw.
//!
//! tidy: allow size: a table

/// A Service of its own with these routes, whose parent is written `PARENT`.
pub struct Row {
    pub name: &'static str,
    pub routes: String,
    pub cases: Vec<Case>,
}

/// A request, the answer, and what the application saw. Parts are split by ` | `; `-name` is a field
/// that is not there, and the lines of one that is there several times are joined by ` & `.
pub struct Case {
    /// `METHOD TARGET | name: value`; `PORT 8080` before it is the other port of the Service.
    pub request: String,
    /// `STATUS | name: value`
    pub answer: String,
    /// `NAME METHOD TARGET | name: value`; empty: nobody saw anything.
    pub seen: String,
}

fn case(request: &str, answer: &str, seen: &str) -> Case {
    Case {
        request: request.to_owned(),
        answer: answer.to_owned(),
        seen: seen.to_owned(),
    }
}

pub fn route(kind: &str, name: &str, created: &str, rules: &str) -> String {
    // In a mesh hostnames count for nothing: no request has this one.
    let names = if kind == "TCPRoute" {
        ""
    } else {
        "hostnames: [nobody.example], "
    };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: PARENT-{name}, namespace: shop, creationTimestamp: '2026-01-{created}T00:00:00Z'}}\n\
         spec: {{{names}parentRefs: [{{group: '', kind: Service, name: PARENT}}], rules: [{rules}]}}\n"
    )
}

pub fn row(name: &'static str, rules: &str, cases: Vec<Case>) -> Row {
    Row {
        name,
        routes: route("HTTPRoute", "r", "01", rules),
        cases,
    }
}

pub const TO_WEB: &str = "backendRefs: [{name: web, port: 80}]";

/// A rule that tells the application which it was.
fn tagged(matches: &str, tag: &str) -> String {
    format!(
        "{{matches: [{matches}], filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-rule, value: '{tag}'}}]}}}}], {TO_WEB}}}"
    )
}

pub fn filtered(path: &str, filter: &str) -> String {
    let backend = if filter.contains("RequestRedirect") {
        ""
    } else {
        TO_WEB
    };
    format!("{{matches: [{{path: {{value: {path}}}}}], filters: [{filter}], {backend}}}")
}

pub fn table() -> Vec<Row> {
    vec![
        plain(),
        paths(),
        specificity(),
        seniority(),
        redirects(),
        redirect_prefixes(),
        rewrites(),
        rewrite_prefixes(),
        headers(),
        backends(),
        refused(),
        timeouts(),
        cors(),
    ]
}

fn plain() -> Row {
    Row {
        name: "no route",
        routes: String::new(),
        cases: vec![case(
            "GET /a%2Fb//c/../d?e=%20f | Host: some.example | x-a: 1 | x-a: 2",
            "200 | x-upstream: web",
            "web GET /a%2Fb//c/../d?e=%20f | host: some.example | x-a: 1 & 2",
        )],
    }
}

fn paths() -> Row {
    let rules = [
        tagged("{path: {value: /a}}", "a"),
        tagged("{path: {value: /a/b/}}", "a/b"),
        tagged("{path: {type: Exact, value: /a/b}}", "exact"),
        tagged("{path: {type: Exact, value: /a/b/}}", "exact/"),
        tagged(
            "{path: {type: RegularExpression, value: '/r[0-9]+'}}",
            "expression",
        ),
    ];
    let at = |path: &str, tag: &str| match tag {
        "" => case(
            &format!("GET {path}"),
            "404 | weft-reason: no_route | -x-upstream",
            "",
        ),
        _ => case(
            &format!("GET {path}"),
            "200",
            &format!("web GET {path} | x-rule: {tag} | host: test"),
        ),
    };
    row(
        "paths",
        &rules.join(", "),
        vec![
            at("/a", "a"),
            at("/a/", "a"),
            at("/a?b=c", "a"),
            at("/a/x", "a"),
            at("/ab", ""),
            at("/A", ""),
            at("/a/b", "exact"),
            at("/a/b/", "exact/"),
            at("/a/b/c", "a/b"),
            at("/a/bc", "a"),
            at("/r17", "expression"),
            at("/r17/x", ""),
            at("/", ""),
        ],
    )
}

fn specificity() -> Row {
    let rules = [
        tagged("{}", "any"),
        tagged("{queryParams: [{name: q, value: '1'}]}", "query"),
        tagged(
            "{queryParams: [{name: q, value: '1'}, {name: p, value: '2'}]}",
            "queries",
        ),
        tagged("{headers: [{name: X-One, value: a}]}", "header"),
        tagged(
            "{headers: [{name: x-one, value: a}, {name: x-two, value: b}]}",
            "headers",
        ),
        tagged("{headers: [{name: x-list, value: 'a,b'}]}", "list"),
        tagged(
            "{headers: [{name: x-kind, type: RegularExpression, value: 'v[0-9]'}]}",
            "expression",
        ),
        tagged("{method: DELETE}", "method"),
        tagged("{path: {value: /deep}}", "deep"),
        tagged(
            "{method: PUT}, {path: {type: Exact, value: /either}}",
            "either",
        ),
    ];
    let at = |request: &str, tag: &str| {
        let line = request.split(" | ").next().unwrap_or_default();
        case(request, "200", &format!("web {line} | x-rule: {tag}"))
    };
    row(
        "what is more specific goes first",
        &rules.join(", "),
        vec![
            at("GET /", "any"),
            at("GET /?q=1", "query"),
            at("GET /?q=2", "any"),
            at("GET /?q=1&q=2", "query"),
            at("GET /?q=2&q=1", "any"),
            at("GET /?p=2&q=1", "queries"),
            at("GET /?q=1 | x-one: a", "header"),
            at("GET /?q=1&p=2 | X-ONE: a", "header"),
            at("GET / | x-one: A", "any"),
            at("GET / | x-two: b | x-one: a", "headers"),
            at("GET / | x-list: a | x-list: b", "list"),
            at("GET / | x-kind: v7", "expression"),
            at("GET / | x-kind: v77", "any"),
            at("DELETE / | x-one: a | x-two: b", "method"),
            at("DELETE /deep | x-one: a", "deep"),
            at("PUT /", "either"),
            at("GET /either", "either"),
        ],
    )
}

fn seniority() -> Row {
    let by = |name: &str, created: &str, paths: &[&str]| {
        let rules: Vec<String> = paths
            .iter()
            .map(|path| {
                tagged(
                    &format!("{{path: {{value: {path}}}}}"),
                    &format!("{name}{path}"),
                )
            })
            .collect();
        route("HTTPRoute", name, created, &rules.join(", "))
    };
    let first = "{matches: [{path: {value: /twice}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-rule, value: first}]}}], backendRefs: [{name: web, port: 80}]}, {matches: [{path: {value: /twice}}], backendRefs: [{name: next, port: 80}]}";
    let at = |path: &str, tag: &str| {
        case(
            &format!("GET {path}"),
            "200",
            &format!("web GET {path} | x-rule: {tag}"),
        )
    };
    Row {
        name: "of what is alike the oldest goes first, then the name, then the order",
        routes: by("b", "02", &["/age", "/name"])
            + &by("c", "01", &["/age"])
            + &by("a", "02", &["/name"])
            + &route("HTTPRoute", "d", "03", first),
        cases: vec![
            at("/age", "c/age"),
            at("/name", "a/name"),
            at("/twice", "first"),
        ],
    }
}

// tidy: allow size: a table
fn redirects() -> Row {
    let to = |path: &str, redirect: &str| {
        filtered(
            path,
            &format!("{{type: RequestRedirect, requestRedirect: {{{redirect}}}}}"),
        )
    };
    let rules = [
        to("/301", "hostname: h.example, statusCode: 301"),
        to("/302", "hostname: h.example"),
        to("/303", "hostname: h.example, statusCode: 303"),
        to("/307", "hostname: h.example, statusCode: 307"),
        to("/308", "hostname: h.example, statusCode: 308"),
        to("/https", "scheme: https"),
        to("/port", "port: 8443"),
        to("/port-80", "port: 80"),
        to("/http-80", "scheme: http, port: 80"),
        to("/https-443", "scheme: https, port: 443"),
        to("/https-80", "scheme: https, port: 80"),
        to(
            "/https-8443",
            "scheme: https, port: 8443, hostname: h.example",
        ),
        to(
            "/full",
            "path: {type: ReplaceFullPath, replaceFullPath: /there/it}",
        ),
        to(
            "/all",
            "scheme: https, hostname: h.example, port: 444, statusCode: 307, path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}",
        ),
    ];
    let at = |request: &str, status: u16, location: &str| {
        case(
            request,
            &format!("{status} | location: {location} | -x-upstream"),
            "",
        )
    };
    row(
        "redirects",
        &rules.join(", "),
        vec![
            at(
                "GET /301/a%2Fb?c=d&e",
                301,
                "http://h.example/301/a%2Fb?c=d&e",
            ),
            at("GET /302", 302, "http://h.example/302"),
            at("GET /303", 303, "http://h.example/303"),
            at("GET /307", 307, "http://h.example/307"),
            at("GET /308", 308, "http://h.example/308"),
            // The Service's own port, which is what the client dialled.
            at("PORT 8080 GET /302", 302, "http://h.example:8080/302"),
            at(
                "GET /302 | Host: other.example:1234",
                302,
                "http://h.example/302",
            ),
            at(
                "GET /https | Host: a.example",
                302,
                "https://a.example/https",
            ),
            at(
                "PORT 8080 GET /https | Host: a.example:8080",
                302,
                "https://a.example/https",
            ),
            at(
                "GET /port | Host: a.example",
                302,
                "http://a.example:8443/port",
            ),
            at(
                "PORT 8080 GET /port-80 | Host: a.example:8080",
                302,
                "http://a.example/port-80",
            ),
            at("PORT 8080 GET /http-80", 302, "http://test/http-80"),
            at("GET /https-443", 302, "https://test/https-443"),
            at("GET /https-80", 302, "https://test:80/https-80"),
            at("GET /https-8443", 302, "https://h.example:8443/https-8443"),
            at("GET /full/of/it?q=1", 302, "http://test/there/it?q=1"),
            at("POST /all/a?b", 307, "https://h.example:444/x/a?b"),
        ],
    )
}

/// The table at `HTTPPathModifier` of the API's types: what is replaced, by what, what is asked for,
/// what becomes of it. Its prefix `/foo` is a row's own here.
const PREFIXES: [(&str, &str, &str, &str); 11] = [
    ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
    ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
    ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
    ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
    ("/foo", "/xyz", "/foo", "/xyz"),
    ("/foo", "/xyz", "/foo/", "/xyz/"),
    ("/foo", "", "/foo/bar", "/bar"),
    ("/foo", "", "/foo/", "/"),
    ("/foo", "", "/foo", "/"),
    ("/foo", "/", "/foo/", "/"),
    ("/foo", "/", "/foo", "/"),
];

fn prefixes(filter: &str, case: impl Fn(&str, &str) -> Case) -> (String, Vec<Case>) {
    let mut rules = Vec::new();
    let mut cases = Vec::new();
    for (number, (prefix, replacement, asked, becomes)) in PREFIXES.iter().enumerate() {
        let filter = filter.replace(
            "PATH",
            &format!("path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{replacement}'}}"),
        );
        rules.push(filtered(&format!("/{number}{prefix}"), &filter));
        cases.push(case(
            &format!("/{number}{asked}?q=1"),
            &format!("{becomes}?q=1"),
        ));
    }
    (rules.join(", "), cases)
}

fn redirect_prefixes() -> Row {
    let (rules, cases) = prefixes(
        "{type: RequestRedirect, requestRedirect: {PATH}}",
        |asked, becomes| {
            let answer = format!("302 | location: http://test{becomes}");
            case(&format!("GET {asked}"), &answer, "")
        },
    );
    row("redirects of a prefix", &rules, cases)
}

fn rewrite_prefixes() -> Row {
    let (rules, cases) = prefixes(
        "{type: URLRewrite, urlRewrite: {PATH}}",
        |asked, becomes| {
            case(
                &format!("GET {asked}"),
                "200",
                &format!("web GET {becomes} | host: test"),
            )
        },
    );
    row("rewrites of a prefix", &rules, cases)
}

fn rewrites() -> Row {
    let of = |path: &str, rewrite: &str| {
        filtered(
            path,
            &format!("{{type: URLRewrite, urlRewrite: {{{rewrite}}}}}"),
        )
    };
    let rules = [
        of("/host", "hostname: inner.example"),
        of("/full", "path: {type: ReplaceFullPath, replaceFullPath: /one}"),
        of("/both", "hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}"),
        "{matches: [{path: {value: /backend}}], backendRefs: [{name: web, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: of-backend.example}}]}]}".to_owned(),
    ];
    row(
        "rewrites",
        &rules.join(", "),
        vec![
            case(
                "GET /host/a?b=c",
                "200",
                "web GET /host/a?b=c | host: inner.example",
            ),
            case(
                "GET /full/of/it?b=c",
                "200",
                "web GET /one?b=c | host: test",
            ),
            case(
                "GET /both/a%2Fb?c",
                "200",
                "web GET /new/a%2Fb?c | host: inner.example",
            ),
            case(
                "GET /backend",
                "200",
                "web GET /backend | host: of-backend.example",
            ),
        ],
    )
}

fn headers() -> Row {
    let modify =
        "set: [{name: X-Set, value: s}], add: [{name: X-Add, value: '2'}], remove: [X-Gone]";
    let rules = [
        filtered(
            "/request",
            &format!("{{type: RequestHeaderModifier, requestHeaderModifier: {{{modify}}}}}"),
        ),
        filtered(
            "/response",
            &format!("{{type: ResponseHeaderModifier, responseHeaderModifier: {{{modify}}}}}"),
        ),
        "{matches: [{path: {value: /backend}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-add, value: rule}]}}], \
         backendRefs: [{name: web, port: 80, filters: [\
         {type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-add, value: backend}], remove: [x-gone]}}, \
         {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-set, value: backend}]}}]}, \
         {name: next, port: 80, weight: 0, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-add, value: never}]}}]}]}"
            .to_owned(),
        filtered(
            "/host",
            "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: set.example}]}}",
        ),
    ];
    row(
        "headers",
        &rules.join(", "),
        vec![
            case(
                "GET /request | x-set: a | x-set: b | x-add: 1 | x-gone: 1 | X-GONE: 2 | x-else: e",
                "200",
                "web GET /request | x-set: s | x-add: 1 & 2 | -x-gone | x-else: e",
            ),
            case(
                "GET /request",
                "200 | x-set: a & b",
                "web GET /request | x-set: s | x-add: 2 | -x-gone",
            ),
            case(
                "GET /response | x-set: a | x-gone: 1",
                "200 | x-set: s | x-add: 1 & 2 | -x-gone | x-upstream: web",
                "web GET /response | x-set: a | -x-add | x-gone: 1",
            ),
            case(
                "GET /backend | x-gone: 1",
                "200 | x-set: backend | x-add: 1",
                "web GET /backend | x-add: rule & backend | -x-gone",
            ),
            case("GET /host", "200", "web GET /host | host: set.example"),
        ],
    )
}

fn backends() -> Row {
    let to = |path: &str, backends: &str| {
        format!("{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{backends}]}}")
    };
    let rules = [
        to("/none", ""),
        to(
            "/zero",
            "{name: web, port: 80, weight: 0}, {name: next, port: 80, weight: 0}",
        ),
        to(
            "/one",
            "{name: web, port: 80, weight: 0}, {name: next, port: 80, weight: 7}",
        ),
        to("/lost", "{name: lost, port: 80}"),
        to(
            "/lost-share",
            "{name: web, port: 80, weight: 0}, {name: lost, port: 80, weight: 1}",
        ),
        to(
            "/lost-nothing",
            "{name: web, port: 80}, {name: lost, port: 80, weight: 0}",
        ),
        to("/kind", "{group: a.b, kind: Bucket, name: web}"),
        to("/empty", "{name: empty, port: 80}"),
    ];
    let fails = |path: &str, status: u16, reason: &str| {
        let answer = format!("{status} | weft-reason: {reason} | -x-upstream");
        case(&format!("GET {path}"), &answer, "")
    };
    row(
        "backends",
        &rules.join(", "),
        vec![
            fails("/none", 500, "no_backend"),
            fails("/zero", 500, "no_backend"),
            case("GET /one", "200 | x-upstream: next", "next GET /one"),
            fails("/lost", 500, "invalid_backend"),
            fails("/lost-share", 500, "invalid_backend"),
            case("GET /lost-nothing", "200", "web GET /lost-nothing"),
            fails("/kind", 500, "invalid_backend"),
            fails("/empty", 503, "no_endpoint"),
        ],
    )
}

/// A filter that nobody here knows may be there to keep requests out.
fn refused() -> Row {
    let rules = [
        tagged("{}", "rest"),
        filtered("/extended", "{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}"),
        "{matches: [{path: {value: /rewritten}}], filters: [{type: URLRewrite, urlRewrite: {hostname: a.example}}], backendRefs: [{name: web, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: b.example}}]}]}".to_owned(),
        tagged("{path: {type: RegularExpression, value: '/('}}", "bad"),
    ];
    row(
        "rules that cannot be honoured",
        &rules.join(", "),
        vec![
            case("GET /", "200", "web GET / | x-rule: rest"),
            case("GET /extended/a", "500 | weft-reason: invalid_backend", ""),
            case("GET /rewritten", "500 | weft-reason: invalid_backend", ""),
        ],
    )
}

fn timeouts() -> Row {
    let of = |path: &str, timeouts: &str| {
        format!("{{matches: [{{path: {{value: {path}}}}}], timeouts: {{{timeouts}}}, {TO_WEB}}}")
    };
    // Long enough for the request to have reached the application before.
    let rules = [
        of("/slow/request", "request: 1s"),
        of("/slow/try", "request: 10s, backendRequest: 1s"),
        of("/quick", "request: 10s, backendRequest: 10s"),
    ];
    row(
        "time-outs",
        &rules.join(", "),
        vec![
            case("POST /slow/request", "504", "web POST /slow/request"),
            case("POST /slow/try", "504", "web POST /slow/try"),
            case("POST /quick", "200", "web POST /quick"),
        ],
    )
}

fn cors() -> Row {
    let filter = "{type: CORS, cors: {allowOrigins: ['https://*.shop.example'], allowMethods: [GET, PUT], allowHeaders: [x-token], allowCredentials: true}}";
    row(
        "CORS",
        &filtered("/", filter),
        vec![
            case(
                "OPTIONS / | Origin: https://a.shop.example | Access-Control-Request-Method: PUT",
                "204 | access-control-allow-origin: https://a.shop.example | access-control-allow-credentials: true | access-control-max-age: 5",
                "",
            ),
            case(
                "GET / | Origin: https://a.shop.example",
                "200 | access-control-allow-origin: https://a.shop.example",
                "web GET / | origin: https://a.shop.example",
            ),
            case(
                "GET / | Origin: https://else.example",
                "200 | -access-control-allow-origin",
                "web GET / | origin: https://else.example",
            ),
        ],
    )
}

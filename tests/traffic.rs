//! Gateway API's rules as traffic meets them in a mesh: manifests through a real controller to the
//! sidecar of a client, and what the application behind another sidecar saw, and what the client got,
//! exactly. Every corner of a decision has its table in `config`; here the whole chain keeps them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use weft_tests::mesh::{APPLICATION_PORT, Mesh, Sidecar};
use weft_tests::raw::{Answer, Raw};
use weft_tests::upstream::{self, Seen, Then, Upstream};
use weft_tests::{eventually, http2, script};

/// Longer than any time-out of a row.
const SLOW: Duration = Duration::from_secs(2);

/// A Service of its own with these routes, whose parent is written `PARENT`.
struct Row {
    name: &'static str,
    routes: String,
    cases: Vec<Case>,
}

/// A request, the answer, and what the application saw. Parts are split by ` | `; `-name` is a field
/// that is not there, and the lines of one that is there several times are joined by ` & `.
struct Case {
    /// `METHOD TARGET | name: value`; `PORT 8080` before it is the other port of the Service.
    request: String,
    /// `STATUS | name: value`
    answer: String,
    /// `NAME METHOD TARGET | name: value`; empty: nobody saw anything.
    seen: String,
}

fn case(request: &str, answer: &str, seen: &str) -> Case {
    Case {
        request: request.to_owned(),
        answer: answer.to_owned(),
        seen: seen.to_owned(),
    }
}

fn route(kind: &str, name: &str, created: &str, rules: &str) -> String {
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

fn row(name: &'static str, rules: &str, cases: Vec<Case>) -> Row {
    Row {
        name,
        routes: route("HTTPRoute", "r", "01", rules),
        cases,
    }
}

const TO_WEB: &str = "backendRefs: [{name: web, port: 80}]";

/// A rule that tells the application which it was.
fn tagged(matches: &str, tag: &str) -> String {
    format!(
        "{{matches: [{matches}], filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-rule, value: '{tag}'}}]}}}}], {TO_WEB}}}"
    )
}

fn filtered(path: &str, filter: &str) -> String {
    let backend = if filter.contains("RequestRedirect") {
        ""
    } else {
        TO_WEB
    };
    format!("{{matches: [{{path: {{value: {path}}}}}], filters: [{filter}], {backend}}}")
}

fn table() -> Vec<Row> {
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
        format!(
            "{{matches: [{{path: {{value: /backend}}}}], filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{add: [{{name: x-add, value: rule}}]}}}}], \
             backendRefs: [{{name: web, port: 80, filters: [\
             {{type: RequestHeaderModifier, requestHeaderModifier: {{add: [{{name: x-add, value: backend}}], remove: [x-gone]}}}}, \
             {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-set, value: backend}}]}}}}]}}, \
             {{name: next, port: 80, weight: 0, filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{add: [{{name: x-add, value: never}}]}}}}]}}]}}"
        ),
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
    let rules = [
        of("/slow/request", "request: 100ms"),
        of("/slow/try", "request: 5s, backendRequest: 100ms"),
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

/// A controller, two applications with their sidecars, and a client of every row's Service.
struct Stage {
    _mesh: Mesh,
    _sidecars: Vec<Sidecar>,
    applications: Vec<(&'static str, Upstream)>,
    client: Sidecar,
}

fn application(address: SocketAddr, name: &'static str) -> Upstream {
    Upstream::start_at(address, move |seen, stream| {
        if seen.target().starts_with("/slow") {
            std::thread::sleep(SLOW);
        }
        let name = format!("x-upstream: {name}");
        let fields = [&name, "x-set: a", "x-set: b", "x-add: 1", "x-gone: 1"];
        upstream::answer(stream, 200, &fields, b"");
        Then::Keep
    })
}

/// A Service with two ports that declare nothing, in front of a workload.
fn service(name: &str, of: &Sidecar) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{ports: [{{name: main, port: 80}}, {{name: other, port: 8080}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: main, port: {APPLICATION_PORT}}}, {{name: other, port: {APPLICATION_PORT}}}]\n\
         endpoints: [{{addresses: ['{}'], targetRef: {{kind: Pod, name: {1}, uid: {1}}}}}]\n",
        of.address, of.uid
    )
}

impl Stage {
    fn set(rows: &[Row]) -> Self {
        let mesh = Mesh::start();
        let sidecars: Vec<Sidecar> = ["web", "next"].map(|name| mesh.sidecar(name, &[])).into();
        mesh.service("web", &[&sidecars[0]]);
        mesh.service("next", &[&sidecars[1]]);
        mesh.service("empty", &[]);
        let applications = vec![
            ("web", application(sidecars[0].application(), "web")),
            ("next", application(sidecars[1].application(), "next")),
        ];
        let client = client_of(
            &mesh,
            rows.iter().map(|row| row.routes.as_str()),
            &sidecars[0],
        );
        Self {
            _mesh: mesh,
            _sidecars: sidecars,
            applications,
            client,
        }
    }

    /// Where the client dials a row's Service.
    fn address(&self, row: usize, other_port: bool) -> SocketAddr {
        self.client.upstreams[2 * row + usize::from(other_port)]
    }

    fn counts(&self) -> Vec<usize> {
        self.applications.iter().map(|(_, of)| of.count()).collect()
    }

    /// What is not as a case has it.
    fn wrong(&self, row: usize, case: &Case) -> Option<String> {
        let before = self.counts();
        let (other_port, request) = match case.request.strip_prefix("PORT 8080 ") {
            Some(rest) => (true, rest),
            None => (false, case.request.as_str()),
        };
        let mut parts = request.split(" | ");
        let (method, target) = parts.next()?.split_once(' ')?;
        let headers: Vec<&str> = parts.collect();
        let mut raw = Raw::connect(self.address(row, other_port));
        let answer = raw.request(method, target, &headers, b"");
        let mut problem = String::new();
        wrong_answer(&answer, &case.answer, &mut problem);
        let seen: Vec<(&str, Seen)> = self
            .applications
            .iter()
            .zip(before)
            .flat_map(|((name, of), before)| {
                let fresh = of.seen().into_iter().skip(before);
                fresh.map(move |seen| (*name, seen))
            })
            .collect();
        wrong_seen(&seen, &case.seen, &mut problem);
        (!problem.is_empty()).then(|| format!("{}:\n{problem}", case.request))
    }
}

/// Writes every row's Service and routes, and starts a client of all once the controller has them.
fn client_of<'a>(mesh: &Mesh, routes: impl Iterator<Item = &'a str>, behind: &Sidecar) -> Sidecar {
    let mut yaml = String::new();
    let mut dialled = Vec::new();
    for (number, routes) in routes.enumerate() {
        let name = format!("r{number}");
        yaml.push_str(&service(&name, behind));
        yaml.push_str(&routes.replace("PARENT", &name));
        dialled.push(format!("{name}.shop:80"));
        dialled.push(format!("{name}.shop:8080"));
    }
    let routes = yaml.matches("Route\n").count();
    mesh.apply("rows", &yaml);
    eventually("the controller's verdicts", || {
        let status = mesh.status();
        assert!(status.errors.is_empty(), "{:?}", status.errors);
        let of_routes = status
            .objects
            .iter()
            .filter(|of| of.kind.ends_with("Route"));
        (of_routes.count() == routes).then_some(())
    });
    let dialled: Vec<&str> = dialled.iter().map(String::as_str).collect();
    mesh.sidecar("client", &dialled)
}

fn wrong_answer(answer: &Answer, expected: &str, problem: &mut String) {
    let mut parts = expected.split(" | ");
    let status = parts.next().unwrap_or_default();
    if answer.status.to_string() != status {
        let _ = writeln!(problem, "  answer {answer:?} and not {status}");
    }
    let all = |name: &str| {
        let lines = answer.headers.iter();
        let lines = lines.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| value.as_str()).collect()
    };
    wrong_fields("answer", parts, all, problem);
}

fn wrong_seen(seen: &[(&str, Seen)], expected: &str, problem: &mut String) {
    let mut parts = expected.split(" | ");
    let line = parts.next().unwrap_or_default();
    let lines: Vec<String> = seen
        .iter()
        .map(|(name, seen)| format!("{name} {} {}", seen.method(), seen.target()))
        .collect();
    if lines.join("\n") != line {
        let _ = writeln!(problem, "  seen {lines:?} and not {line:?}");
    }
    if let [(_, seen)] = seen {
        wrong_fields("seen", parts, |name| seen.headers(name), problem);
    }
}

fn wrong_fields<'a>(
    whose: &str,
    expected: impl Iterator<Item = &'a str>,
    all: impl Fn(&str) -> Vec<&'a str>,
    problem: &mut String,
) {
    for part in expected {
        let (name, value) = match part.strip_prefix('-') {
            Some(name) => (name, ""),
            None => part.split_once(": ").unwrap_or((part, "")),
        };
        let found = all(name).join(" & ");
        if found != value {
            let _ = writeln!(problem, "  {whose} {name}: {found:?} and not {value:?}");
        }
    }
}

#[test]
fn http_is_routed_as_gateway_api_has_it() {
    let rows = table();
    let stage = Stage::set(&rows);
    let mut problems = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        for case in &row.cases {
            let problem = stage.wrong(number, case);
            problems.extend(problem.map(|of| format!("{}: {of}", row.name)));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_mirror_gets_the_same_and_nobody_hears_of_it() {
    let mirror = |backend: &str| {
        format!(
            "{{type: RequestMirror, requestMirror: {{backendRef: {{name: {backend}, port: 80}}}}}}"
        )
    };
    let rules = [
        filtered("/to", &mirror("next")),
        filtered("/lost", &mirror("lost")),
        filtered("/empty", &mirror("empty")),
        filtered(
            "/never",
            "{type: RequestMirror, requestMirror: {backendRef: {name: next, port: 80}, percent: 0}}",
        ),
    ];
    let rows = [row("mirrors", &rules.join(", "), Vec::new())];
    let stage = Stage::set(&rows);
    for path in ["/lost", "/empty", "/never"] {
        let answer = Raw::connect(stage.address(0, false)).get(path);
        assert_eq!(answer.header("x-upstream"), Some("web"), "{path}");
    }
    let mut raw = Raw::connect(stage.address(0, false));
    let answer = raw.request("POST", "/to/a%2Fb?c=d", &["x-a: 1", "x-a: 2"], b"body");
    assert_eq!(answer.header("x-upstream"), Some("web"));
    let (web, next) = (&stage.applications[0].1, &stage.applications[1].1);
    eventually("the copy", || (next.count() == 1).then_some(()));
    let (seen, copy) = (web.last(), next.last());
    assert_eq!(copy.target(), "/to/a%2Fb?c=d");
    assert_eq!(copy.headers("x-a"), ["1", "2"]);
    assert_eq!((copy.body, seen.body), (b"body".to_vec(), b"body".to_vec()));
}

/// A share of an invalid backend is nobody else's.
#[test]
fn a_share_that_leads_nowhere_is_not_spread_over_the_others() {
    let rules =
        "{backendRefs: [{name: web, port: 80, weight: 1}, {name: lost, port: 80, weight: 1}]}";
    let rows = [row("shares", rules, Vec::new())];
    let stage = Stage::set(&rows);
    let mut raw = Raw::connect(stage.address(0, false));
    let good = (0..400).filter(|_| raw.get("/").status == 200).count();
    // 200 expected; a fair draw is off by 60 (six standard deviations) less often than this runs.
    assert!(good.abs_diff(200) < 60, "{good} of 400");
    assert_eq!(stage.counts(), [good, 0]);
}

struct Server(Child);

impl Server {
    /// A real gRPC server, where a sidecar looks for its application.
    fn start(address: SocketAddr) -> Self {
        let child = script("grpc_server.py")
            .args([address.port().to_string(), address.ip().to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .expect("Python runs; `make test` installs it");
        let server = Self(child);
        eventually("the gRPC server listening", || {
            std::net::TcpStream::connect(address).ok()
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A call; its head (a status that the proxy gives itself is there) and its trailers.
fn call(address: SocketAddr, method: &str, message: &[u8], header: (&str, &str)) -> http2::Answer {
    let mut body = vec![
        0,
        0,
        0,
        0,
        u8::try_from(message.len()).expect("it is short"),
    ];
    body.extend_from_slice(message);
    let request = http::Request::post(format!("http://test{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(header.0, header.1)
        .body(body)
        .expect("it is valid");
    http2::exchange(address, request, None).expect("it is answered")
}

#[test]
fn grpc_is_routed_as_gateway_api_has_it() {
    let mesh = Mesh::start();
    let web = mesh.sidecar("web", &[]);
    mesh.service("web", &[&web]);
    mesh.service("empty", &[]);
    let _server = Server::start(web.application());
    let set = |value: &str| {
        format!(
            "filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-sent, value: {value}}}]}}}}], {TO_WEB}"
        )
    };
    let rules = [
        format!("{{matches: [{{method: {{service: weft.Test, method: Echo}}}}], {}}}", set("method")),
        format!("{{matches: [{{method: {{service: weft.Test, method: Echo}}, headers: [{{name: x-beta, value: 'yes'}}]}}], {}}}", set("header")),
        format!("{{matches: [{{method: {{service: weft.Test}}, headers: [{{name: x-fail, value: 'yes'}}]}}], {TO_WEB}}}"),
        "{matches: [{method: {service: weft.Lost}}], backendRefs: [{name: lost, port: 80}]}".to_owned(),
        "{matches: [{method: {service: weft.Empty}}], backendRefs: [{name: empty, port: 80}]}".to_owned(),
        "{matches: [{method: {service: weft.None}}]}".to_owned(),
        "{matches: [{method: {service: weft.Extended}}], filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}], backendRefs: [{name: web, port: 80}]}".to_owned(),
    ];
    let routes = route("GRPCRoute", "r", "01", &rules.join(", "));
    let client = client_of(&mesh, std::iter::once(routes.as_str()), &web);
    let address = client.upstreams[0];
    let field = |map: Option<&http::HeaderMap>, name: &str| {
        let value = map.and_then(|map| map.get(name));
        value.map(|value| value.to_str().unwrap_or("not text").to_owned())
    };
    // What the application saw is in its trailers.
    for (header, tail) in [(("x-none", "1"), "method"), (("x-beta", "yes"), "header")] {
        let answer = call(address, "/weft.Test/Echo", b"hello", header);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, b"\0\0\0\0\x05hello");
        let trailers = answer.trailers.as_ref();
        assert_eq!(field(trailers, "grpc-status").as_deref(), Some("0"));
        assert_eq!(field(trailers, "x-tail").as_deref(), Some(tail));
        assert_eq!(answer.header("x-head"), Some("one"));
    }
    // The application's own failure, with its message as it was encoded.
    let answer = call(address, "/weft.Test/Fail", b"5", ("x-fail", "yes"));
    let ended = answer.trailers.as_ref().unwrap_or(&answer.headers);
    assert_eq!(field(Some(ended), "grpc-status").as_deref(), Some("5"));
    assert_eq!(
        field(Some(ended), "grpc-message").as_deref(),
        Some("d%C3%A9tails, 100 %25")
    );
    assert_eq!(field(Some(ended), "x-why").as_deref(), Some("because"));
    // Ours: UNIMPLEMENTED where no rule matches, UNAVAILABLE where one leads nowhere.
    for (method, status, reason) in [
        ("/weft.Test/Add", "12", "no_route"),
        ("/weft.test/Echo", "12", "no_route"),
        ("/weft.Lost/A", "14", "invalid_backend"),
        ("/weft.Empty/A", "14", "no_endpoint"),
        ("/weft.None/A", "14", "no_backend"),
        ("/weft.Extended/A", "14", "invalid_backend"),
    ] {
        let answer = call(address, method, b"", ("x-none", "1"));
        assert_eq!(answer.status, 200, "{method}");
        assert_eq!(answer.header("grpc-status"), Some(status), "{method}");
        assert_eq!(answer.reason(), reason, "{method}");
    }
    // On a port of gRPC routes nothing else has a rule.
    assert_eq!(Raw::connect(address).get("/weft.Test/Echo").status, 404);
}

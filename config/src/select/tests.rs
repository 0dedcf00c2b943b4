//! Precedence and matching, row by row of Gateway API's rules, and the index
//! against the plain scan.

use super::trace::Reason;
use super::*;
use crate::file::load;
use crate::snapshot::Snapshot;

/// A snapshot of one listener with these routes (YAML list items).
fn snapshot(routes: &str) -> Snapshot {
    let text = format!(
        "listeners: [{{name: web, address: '0.0.0.0:80', protocol: http}}]\nservices: [{{name: s}}, {{name: g, protocol: grpc}}]\nroutes:\n{routes}"
    );
    load("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// One route, each rule of one match, named by its index.
fn rules(matches: &[&str]) -> Snapshot {
    let rules: String = matches
        .iter()
        .enumerate()
        .map(|(index, m)| format!("  - {{name: r{index}, matches: [{m}]}}\n"))
        .collect();
    snapshot(&format!(
        "- name: a\n  parentRefs: [{{name: web}}]\n  rules:\n{rules}"
    ))
}

/// `METHOD authority path?query` and headers.
struct Request {
    method: Method,
    authority: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

fn request(line: &str, headers: &[(&str, &str)]) -> Request {
    let mut words = line.split(' ');
    let method = words
        .next()
        .and_then(|word| word.parse().ok())
        .expect("a method");
    let authority = words.next().expect("an authority").to_owned();
    let target = words.next().expect("a path");
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).expect("a name"),
            HeaderValue::from_str(value).expect("a value"),
        );
    }
    Request {
        method,
        authority,
        path: path.to_owned(),
        query,
        headers: map,
    }
}

impl Request {
    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            scheme: Scheme::Http,
            authority: if self.authority == "-" {
                ""
            } else {
                &self.authority
            },
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

/// `route/rule` of the answer, found in all three ways.
fn answer(snapshot: &Snapshot, request: &Request) -> String {
    let listener = &snapshot.listeners[0];
    let head = request.head();
    let name = |selection: &Selection<'_>| match selection {
        Selection::Rule { rule, .. } => format!("{}/{}", rule.route, rule.name),
        Selection::Service(id) => snapshot.service(*id).name.to_string(),
        Selection::NotFound => "none".to_owned(),
    };
    let fast = name(&select(listener, &head, None));
    let mut trace = Trace::default();
    let traced = name(&select(listener, &head, Some(&mut trace)));
    assert_eq!(fast, traced, "{trace}");
    if let Some(table) = &listener.http_routes {
        let scanned = scan(&table.entries, &head)
            .and_then(|position| table.entries.get(position))
            .map_or("none".to_owned(), |entry| {
                format!("{}/{}", entry.rule.route, entry.rule.name)
            });
        assert_eq!(fast, scanned, "{trace}");
        assert_eq!(trace.candidates.len(), table.entries.len());
        let selected = trace
            .candidates
            .iter()
            .filter(|c| c.reason == Reason::Selected)
            .count();
        assert_eq!(selected, usize::from(fast != "none"), "{trace}");
    }
    fast
}

/// Request line, headers, rule.
type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

fn expect(matches: &[&str], rows: &[Row<'_>]) {
    let snapshot = rules(matches);
    for (line, headers, rule) in rows {
        let wanted = if *rule == "none" {
            "none".to_owned()
        } else {
            format!("a/{rule}")
        };
        assert_eq!(
            answer(&snapshot, &request(line, headers)),
            wanted,
            "{line} {headers:?}"
        );
    }
}

#[test]
fn path_prefix_table() {
    // HTTPPathMatch's own table, and its words: whole elements, no trailing slash, case-sensitive.
    for (prefix, path, matches) in [
        ("/", "/", true),
        ("/", "/abc", true),
        ("/abc", "/abc", true),
        ("/abc", "/abc/", true),
        ("/abc", "/abc/def", true),
        ("/abc", "/abcd", false),
        ("/abc", "/ABC", false),
        ("/abc", "/ab", false),
        ("/abc", "/x/abc", false),
        ("/abc/", "/abc", true),
        ("/abc/", "/abc/", true),
        ("/abc/", "/abc/def", true),
        ("/abc/", "/abcd", false),
        ("/abc/def", "/abc/def/ghi", true),
        ("/abc/def", "/abc/defg", false),
        ("/abc", "/%61bc", false),
        ("/abc", "/abc//def", true),
    ] {
        let condition = crate::compile::path_prefix(prefix);
        assert_eq!(path_matches(&condition, path), matches, "{prefix} {path}");
        let wanted = if matches { "r0" } else { "none" };
        expect(
            &[&format!("{{path: {{value: '{prefix}'}}}}")],
            &[(&format!("GET h {path}"), &[], wanted)],
        );
    }
}

#[test]
fn exact_and_expression_paths() {
    expect(
        &[
            "{path: {type: Exact, value: /abc}}",
            "{path: {type: RegularExpression, value: '/v[0-9]+/x'}}",
        ],
        &[
            ("GET h /abc", &[], "r0"),
            ("GET h /abc/", &[], "none"),
            ("GET h /abc?q=1", &[], "r0"),
            ("GET h /Abc", &[], "none"),
            ("GET h /v1/x", &[], "r1"),
            ("GET h /v12/x", &[], "r1"),
            // The whole path, not a part of it.
            ("GET h /v1/xy", &[], "none"),
            ("GET h /a/v1/x", &[], "none"),
        ],
    );
}

#[test]
#[rustfmt::skip] // one row a line
fn precedence_of_matches() {
    // Written from the least to the most specific: order in the file decides nothing here.
    expect(
        &[
            "{queryParams: [{name: q, value: '1'}]}",
            "{headers: [{name: a, value: '1'}]}",
            "{headers: [{name: a, value: '1'}, {name: b, value: '1'}]}",
            "{method: GET}",
            "{path: {value: /long}}",
            "{path: {value: /long/er}, headers: [{name: a, value: '1'}]}",
            "{path: {value: /long/er/still}}",
            "{path: {type: RegularExpression, value: '/long/er/still/.*'}}",
            "{path: {type: Exact, value: /long/er/still/here}}",
        ],
        &[
            ("GET h /long/er/still/here", &[("a", "1")], "r8"),
            ("GET h /long/er/still/there", &[("a", "1")], "r7"),
            ("GET h /long/er/still", &[("a", "1")], "r6"),
            ("GET h /long/er", &[("a", "1")], "r5"),
            // A longer prefix whose header does not match falls through to a shorter one.
            ("GET h /long/er", &[], "r4"),
            ("GET h /x?q=1", &[("a", "1"), ("b", "1")], "r3"),
            ("PUT h /x?q=1", &[("a", "1"), ("b", "1")], "r2"),
            ("PUT h /x?q=1", &[("a", "1")], "r1"),
            ("PUT h /x?q=1", &[], "r0"),
            ("PUT h /x", &[], "none"),
        ],
    );
    // An expression goes before every prefix, and the longer of two first.
    expect(
        &[
            "{path: {value: /}}",
            "{path: {type: RegularExpression, value: '/.*'}}",
            "{path: {type: RegularExpression, value: '/a.*'}}",
        ],
        &[("GET h /b", &[], "r1"), ("GET h /a", &[], "r2")],
    );
    // The prefix is measured without its trailing slash, and `/` is no prefix at all.
    expect(
        &[
            "{path: {value: /ab/}}",
            "{path: {value: /ab}, method: GET}",
            "{path: {value: /}}",
            "{}",
        ],
        &[
            ("GET h /ab", &[], "r1"),
            ("PUT h /ab", &[], "r0"),
            ("GET h /", &[], "r2"),
        ],
    );
}

#[test]
#[rustfmt::skip] // one row a line
fn ties_between_routes() {
    let route = |name: &str, rest: &str| {
        format!(
            "- {{name: {name}, parentRefs: [{{name: web}}], rules: [{{matches: [{{}}]}}, {{}}], {rest}}}\n"
        )
    };
    for (routes, wanted) in [
        // The oldest, whatever the names; dated before undated.
        ([ route("a", "creationTimestamp: '2026-01-02T00:00:00Z'"), route("b", "creationTimestamp: '2026-01-01T00:00:00Z'"), ], "b/0"),
        ([ route("a", ""), route("b", "creationTimestamp: '2026-01-01T00:00:00Z'"), ], "b/0"),
        ([ route("a", "creationTimestamp: '2026-01-01T01:00:00+02:00'"), route("b", "creationTimestamp: '2026-01-01T00:00:00Z'"), ], "a/0"),
        // namespace/name.
        ([route("b", ""), route("a", "")], "a/0"),
        ([route("a", "namespace: y"), route("b", "namespace: x")], "x/b/0"),
    ] {
        assert_eq!(
            answer(&snapshot(&routes.concat()), &request("GET h /", &[])),
            wanted
        );
    }
}

#[test]
fn ties_within_a_route() {
    let snapshot = snapshot(
        "- name: a\n  parentRefs: [{name: web}]\n  rules:\n  - matches: [{headers: [{name: x, value: '1'}]}, {headers: [{name: y, value: '1'}]}]\n  - matches: [{headers: [{name: y, value: '1'}]}]\n",
    );
    let request = request("GET h /", &[("x", "1"), ("y", "1")]);
    assert_eq!(answer(&snapshot, &request), "a/0");
    let Selection::Rule { entry, .. } = select(&snapshot.listeners[0], &request.head(), None)
    else {
        panic!("a rule matches");
    };
    assert_eq!(entry.match_index, 0);
}

#[test]
fn hostnames() {
    let route = |name: &str, hostnames: &str, path: &str| {
        format!(
            "- {{name: {name}, parentRefs: [{{name: web}}], hostnames: [{hostnames}], rules: [{{matches: [{{path: {{value: {path}}}}}]}}]}}\n"
        )
    };
    let snapshot = snapshot(
        &[
            route("any", "", "/"),
            route("wide", "'*.example.com'", "/"),
            route("narrow", "'*.shop.example.com'", "/a"),
            route("exact", "www.shop.example.com", "/a/b"),
            route("longpath", "'*.com'", "/a/b/c/d"),
        ]
        .concat(),
    );
    for (line, wanted) in [
        ("GET www.shop.example.com /a/b", "exact/0"),
        ("GET WWW.Shop.Example.COM:8080 /a/b", "exact/0"),
        ("GET www.shop.example.com. /a/b", "exact/0"),
        // No rule of the most specific hostname matches: the next.
        ("GET www.shop.example.com /a", "narrow/0"),
        ("GET www.shop.example.com /", "wide/0"),
        // Hostname before path.
        ("GET www.shop.example.com /a/b/c/d", "exact/0"),
        ("GET deep.er.shop.example.com /a/b/c/d", "narrow/0"),
        // A wildcard needs at least one label.
        ("GET shop.example.com /a", "wide/0"),
        ("GET example.com /", "any/0"),
        ("GET notexample.com /", "any/0"),
        ("GET x.com /a/b/c/d", "longpath/0"),
        ("GET [::1]:80 /", "any/0"),
        ("GET - /", "any/0"),
    ] {
        assert_eq!(answer(&snapshot, &request(line, &[])), wanted, "{line}");
    }
}

#[test]
#[rustfmt::skip] // one row a line
fn headers() {
    expect(
        &[
            "{headers: [{name: X-Color, value: red}]}",
            "{headers: [{name: x-joined, value: 'a,b'}]}",
            "{headers: [{name: x-re, type: RegularExpression, value: 'a.*c'}]}",
            "{headers: [{name: x-dup, value: first}, {name: X-DUP, value: second}]}",
            "{headers: [{name: host, value: special}]}",
        ],
        &[
            ("GET h /", &[("x-color", "red")], "r0"),
            ("GET h /", &[("X-COLOR", "red")], "r0"),
            ("GET h /", &[("x-color", "Red")], "none"),
            ("GET h /", &[("x-color", "redder")], "none"),
            ("GET h /", &[("x-color", "red"), ("x-color", "blue")], "none"),
            ("GET h /", &[("x-joined", "a"), ("x-joined", "b")], "r1"),
            ("GET h /", &[("x-joined", "a,b")], "r1"),
            ("GET h /", &[("x-joined", "a")], "none"),
            ("GET h /", &[("x-joined", "a"), ("x-joined", "b"), ("x-joined", "c")], "none"),
            ("GET h /", &[("x-re", "abc")], "r2"),
            ("GET h /", &[("x-re", "a"), ("x-re", "c")], "r2"),
            ("GET h /", &[("x-re", "abcd")], "none"),
            // The first of a duplicated entry counts.
            ("GET h /", &[("x-dup", "first")], "r3"),
            ("GET h /", &[("x-dup", "second")], "none"),
            ("GET special /", &[], "r4"),
        ],
    );
}

#[test]
fn query_parameters() {
    expect(
        &[
            "{queryParams: [{name: animal, value: whale}]}",
            "{queryParams: [{name: n, type: RegularExpression, value: '[0-9 ]+'}]}",
        ],
        &[
            ("GET h /?animal=whale", &[], "r0"),
            ("GET h /?x=1&animal=whale", &[], "r0"),
            ("GET h /?animal=whale&animal=dog", &[], "r0"),
            ("GET h /?animal=dog&animal=whale", &[], "none"),
            ("GET h /?Animal=whale", &[], "none"),
            ("GET h /?animal=wh%61le", &[], "r0"),
            ("GET h /?animal", &[], "none"),
            ("GET h /", &[], "none"),
            ("GET h /?n=1+2", &[], "r1"),
            ("GET h /?n=1%202", &[], "r1"),
            ("GET h /?n=1a", &[], "none"),
        ],
    );
}

const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

#[test]
#[rustfmt::skip] // one row a line
fn grpc_precedence() {
    let grpc = |matches: &[&str]| -> String {
        let rules: String = matches
            .iter()
            .enumerate()
            .map(|(index, m)| {
                format!("  - {{name: r{index}, matches: [{m}], backendRefs: [{{name: g}}]}}\n")
            })
            .collect();
        format!("- name: g\n  kind: grpc\n  parentRefs: [{{name: web}}]\n  rules:\n{rules}")
    };
    let routes = grpc(&[
        "",
        "{headers: [{name: x, value: '1'}]}",
        "{grpcMethod: {method: Add}}",
        "{grpcMethod: {type: RegularExpression, service: 'cart\\..*'}}",
        "{grpcMethod: {service: cart.Cart}}",
        "{grpcMethod: {service: cart.Cart, method: Add}}",
        "{grpcMethod: {service: cart.Cart, method: Add}, headers: [{name: x, value: '1'}]}",
    ]) + "- {name: h, parentRefs: [{name: web}], rules: [{}]}\n";
    let snapshot = snapshot(&routes);
    let x = ("x", "1");
    let rows: &[Row<'_>] = &[
        ("POST h /cart.Cart/Add", &[GRPC, x], "g/r6"),
        ("POST h /cart.Cart/Add", &[GRPC], "g/r5"),
        ("POST h /cart.Cart/Remove", &[GRPC, x], "g/r4"),
        ("POST h /cart.Cat/Remove", &[GRPC], "g/r3"),
        ("POST h /other.X/Add", &[GRPC, x], "g/r2"),
        ("POST h /other.X/Sub", &[GRPC, x], "g/r1"),
        ("POST h /other.X/Sub", &[GRPC], "g/r0"),
        // A method is its whole last element.
        ("POST h /cart.Cart/AddAll", &[GRPC], "g/r4"),
        ("POST h /cart.Cartoon/Mul", &[GRPC], "g/r3"),
        // What is not gRPC goes to the HTTP route.
        ("POST h /cart.Cart/Add", &[], "h/0"),
        ("GET h /cart.Cart/Add", &[GRPC], "h/0"),
        ("POST h /cart.Cart/Add", &[("content-type", "application/json")], "h/0"),
        ("POST h /cart.Cart/Add", &[("content-type", "application/grpc-web")], "g/r5"),
    ];
    for (line, headers, wanted) in rows {
        assert_eq!(
            answer(&snapshot, &request(line, headers)),
            *wanted,
            "{line} {headers:?}"
        );
    }
    // Alone, a gRPC route leaves nothing to what is not gRPC.
    let alone = self::snapshot(&grpc(&["{}"]));
    assert_eq!(answer(&alone, &request("GET h /", &[])), "none");
}

#[test]
fn listeners_without_routes() {
    let text = "listeners: [{name: l, address: '0.0.0.0:80', service: s}]\nservices: [{name: s}]";
    let with_service = load("t", text).expect("is valid");
    assert_eq!(answer(&with_service, &request("GET h /", &[])), "s");
    // An attached route replaces the default: what it does not match is not found.
    let text = "listeners: [{name: l, address: '0.0.0.0:80', service: s}]\nservices: [{name: s}]\nroutes: [{name: r, parentRefs: [{kind: Service, name: s}], rules: [{matches: [{path: {value: /a}}]}]}]";
    let with_route = load("t", text).expect("is valid");
    assert_eq!(answer(&with_route, &request("GET h /a", &[])), "r/0");
    assert_eq!(answer(&with_route, &request("GET h /b", &[])), "none");
}

#[test]
#[rustfmt::skip] // one row a line
fn connections() {
    let text = "
listeners:
- {name: sni, address: '0.0.0.0:443', protocol: tls, service: s}
- {name: tcp, address: '0.0.0.0:1', protocol: tcp}
- {name: auto, address: '0.0.0.0:2', service: s}
- {name: plain, address: '0.0.0.0:3', protocol: tcp, service: s}
services: [{name: s}]
routes:
- {name: wide, kind: tls, parentRefs: [{name: sni}, {name: auto}], hostnames: ['*.example.com'], rules: [{}]}
- {name: one, kind: tls, parentRefs: [{name: sni}], hostnames: [a.example.com], rules: [{}]}
- {name: t, kind: tcp, parentRefs: [{name: tcp}, {name: auto}], rules: [{}]}
";
    let snapshot = load("t", text).unwrap_or_else(|errors| panic!("{errors}"));
    for (listener, name, wanted) in [
        (0, Some("a.example.com"), "one"),
        (0, Some("A.Example.com."), "one"),
        (0, Some("b.example.com"), "wide"),
        (0, Some("other.org"), "none"),
        (0, None, "none"),
        (1, None, "t"),
        (2, Some("b.example.com"), "wide"),
        (2, Some("other.org"), "none"),
        (2, None, "t"),
        (3, None, "s"),
    ] {
        let show = |selection: Option<StreamSelection<'_>>| match selection {
            Some(StreamSelection::Rule(rule)) => rule.route.to_string(),
            Some(StreamSelection::Service(id)) => snapshot.service(id).name.to_string(),
            None => "none".to_owned(),
        };
        let listener = &snapshot.listeners[listener];
        let mut trace = Trace::default();
        let traced = show(select_stream(listener, name, Some(&mut trace)));
        assert_eq!(traced, wanted, "{} {name:?}\n{trace}", listener.name);
        assert_eq!(show(select_stream(listener, name, None)), wanted);
    }
}

#[test]
fn a_trace_says_why() {
    let snapshot = rules(&[
        "{path: {type: Exact, value: /a}}",
        "{path: {value: /b}, method: PUT}",
        "{path: {value: /b}, headers: [{name: x, value: '1'}]}",
        "{path: {value: /b}, queryParams: [{name: q, value: '1'}]}",
        "{path: {value: /b}}",
        "{}",
    ]);
    let mut trace = Trace::default();
    let request = request("GET h /b?q=%32", &[]);
    select(&snapshot.listeners[0], &request.head(), Some(&mut trace));
    let shown: Vec<String> = trace
        .candidates
        .iter()
        .map(|candidate| candidate.reason.to_string())
        .collect();
    assert_eq!(
        shown,
        [
            "no: path is \"/b\", not = /a",
            "no: method is GET, not PUT",
            "no: header x is absent, not = 1",
            "no: query parameter q is \"2\", not = 1",
            "selected",
            "not reached",
        ]
    );
    let json = serde_json::to_value(&trace).expect("serialises");
    assert_eq!(json["candidates"][2]["reason"]["result"], "header");
    assert_eq!(json["outcome"], "rule");
}

/// A small generator: seeded, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("is small")
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

#[test]
fn the_index_agrees_with_the_scan() {
    const HOSTS: [&str; 6] = ["", "a.com", "b.a.com", "'*.a.com'", "'*.com'", "c.b.a.com"];
    const PATHS: [&str; 10] = [
        "/", "/a", "/a/b", "/a/b/c", "/ab", "/a/", "/b", "/b/a", "/abc/d", "/a/bc",
    ];
    const KINDS: [&str; 4] = ["PathPrefix", "PathPrefix", "Exact", "RegularExpression"];
    for seed in 1..40_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut routes = String::new();
        for route in 0..3 + random.below(20) {
            let host = random.one(&HOSTS);
            let grpc = random.below(5) == 0;
            routes.push_str(&format!(
                "- name: r{route}\n  kind: {}\n  parentRefs: [{{name: web}}]\n  hostnames: [{host}]\n  rules:\n",
                if grpc { "grpc" } else { "http" }
            ));
            for _ in 0..=random.below(4) {
                let header = random.one(&[
                    "",
                    "headers: [{name: x, value: '1'}]",
                    "headers: [{name: x, value: '1'}, {name: y, value: '1'}]",
                ]);
                let rest = if grpc {
                    random
                        .one(&[
                            "",
                            "grpcMethod: {service: a}",
                            "grpcMethod: {service: a, method: b}",
                            "grpcMethod: {method: b}",
                        ])
                        .to_owned()
                } else {
                    let path = random.one(&PATHS);
                    let method = random.one(&["", "method: GET,", "method: POST,"]);
                    format!(
                        "{method} path: {{type: {}, value: {path}}}",
                        random.one(&KINDS)
                    )
                };
                let separator = if header.is_empty() || rest.is_empty() {
                    ""
                } else {
                    ", "
                };
                routes.push_str(&format!("  - matches: [{{{header}{separator}{rest}}}]\n"));
            }
        }
        let snapshot = snapshot(&routes);
        for _ in 0..300 {
            let line = format!(
                "{} {} {}{}",
                random.one(&["GET", "POST"]),
                random.one(&[
                    "a.com",
                    "b.a.com",
                    "c.b.a.com:8080",
                    "X.com",
                    "com",
                    "-",
                    "d.org",
                    ".com",
                    ".a.com"
                ]),
                random.one(&PATHS),
                random
                    .one(&["", "/", "/x", "b"])
                    .trim_start_matches(if random.below(2) == 0 { '/' } else { '!' }),
            );
            let mut headers = Vec::new();
            for header in [("x", "1"), ("y", "1"), GRPC] {
                if random.below(2) == 0 {
                    headers.push(header);
                }
            }
            // `answer` compares index, scan and trace.
            answer(&snapshot, &request(&line, &headers));
        }
    }
}

#[test]
fn a_long_path_costs_no_more_than_the_prefixes_there_are() {
    let prefixes: Vec<String> = (0..40)
        .map(|n| format!("{{path: {{value: /p{n}}}}}"))
        .collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    let snapshot = rules(&prefixes);
    let line = format!("GET h {}", "/p".repeat(30_000));
    assert_eq!(answer(&snapshot, &request(&line, &[])), "none");
}

//! One table of what Gateway API has a mesh say of routes: through the index alone and through a
//! real API server it is the same.
//!
//! In its texts `NAMESPACE` and `OTHER` are two namespaces, and `ROW` is what tells a row's objects
//! from the other rows'.
//!
//! tidy: allow size: a table

use serde_json::Value;

/// Objects, and what is said of them.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub objects: String,
    pub expected: Vec<Expected>,
}

/// What is said of one object, parent by parent.
#[derive(Debug)]
pub struct Expected {
    pub kind: &'static str,
    /// With `OTHER/` before it where it is not in `NAMESPACE`.
    pub name: &'static str,
    /// In the order of its parentRefs; `None`: that one is not ours.
    pub parents: Vec<Option<&'static [&'static str]>>,
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: ROW-web, namespace: NAMESPACE}
spec: {ports: [{name: main, port: 80}, {name: admin, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: ROW-mixed, namespace: NAMESPACE}
spec: {ports: [{name: http, port: 80}, {name: tcp-db, port: 5432}, {name: tls, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: ROW-headless, namespace: NAMESPACE}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ROW-outside, namespace: NAMESPACE}
spec: {type: ExternalName, externalName: example.com, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ROW-odd, namespace: NAMESPACE}
spec: {ports: [{name: one, port: 80, appProtocol: kubernetes.io/odd}, {name: two, port: 81, appProtocol: kubernetes.io/wss}, {name: three, port: 82, appProtocol: kubernetes.io/h2c}]}
---
apiVersion: v1
kind: Service
metadata: {name: ROW-far, namespace: OTHER}
spec: {ports: [{name: http, port: 80}]}
";

const GOOD: &[&str] = &["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"];
const NOWHERE: &[&str] = &[
    "Accepted=False NoMatchingParent",
    "ResolvedRefs=True ResolvedRefs",
];
const LOST: &[&str] = &[
    "Accepted=False Conflicted",
    "ResolvedRefs=True ResolvedRefs",
];
const MISSING: &[&str] = &[
    "Accepted=True Accepted",
    "ResolvedRefs=False BackendNotFound",
];
const PROTOCOL: &[&str] = &[
    "Accepted=True Accepted",
    "ResolvedRefs=False UnsupportedProtocol",
];

const TO_WEB: &str = "rules: [{backendRefs: [{name: ROW-web, port: 80}]}]";

fn parent(rest: &str) -> String {
    format!("parentRefs: [{{group: '', kind: Service, {rest}}}]")
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = match name.split_once('/') {
        Some(split) => split,
        None => ("NAMESPACE", name),
    };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: ROW-{name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// The Services that routes name.
fn services(routes: &str) -> String {
    let named = SERVICES.split("---").filter(|service| {
        let name = service
            .split("name: ")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        name.is_some_and(|name| {
            routes.contains(&format!("{name},")) || routes.contains(&format!("{name}}}"))
        })
    });
    named.map(|service| format!("---{service}")).collect()
}

/// A row of one HTTPRoute `r` with one parent.
fn one(name: &'static str, spec: &str, said: &'static [&'static str]) -> Row {
    let expected = vec![("HTTPRoute", "r", said)];
    row(name, &route("HTTPRoute", "r", spec), expected)
}

/// A row of routes with one parent each.
fn row(
    name: &'static str,
    routes: &str,
    said: Vec<(&'static str, &'static str, &'static [&'static str])>,
) -> Row {
    let expected = said.into_iter().map(|(kind, name, said)| Expected {
        kind,
        name,
        parents: vec![Some(said)],
    });
    Row {
        name,
        objects: services(routes) + routes,
        expected: expected.collect(),
    }
}

/// One HTTPRoute of these rules at `web`.
fn rules(name: &'static str, rules: &str, said: &'static [&'static str]) -> Row {
    let spec = format!("{}, rules: [{rules}]", parent("name: ROW-web"));
    one(name, &spec, said)
}

/// All rows.
#[must_use]
pub fn table() -> Vec<Row> {
    let mut rows = parents();
    rows.extend(backends());
    rows.extend(conflicts());
    rows.extend(invalid());
    rows
}

// tidy: allow size: a table
fn parents() -> Vec<Row> {
    let at = |name, rest: &str, said| one(name, &format!("{}, {TO_WEB}", parent(rest)), said);
    let mut rows = vec![
        at("a Service, all its ports", "name: ROW-web", GOOD),
        at("a port by its number", "name: ROW-web, port: 81", GOOD),
        at(
            "a port by its name",
            "name: ROW-web, sectionName: main",
            GOOD,
        ),
        at(
            "by both",
            "name: ROW-web, sectionName: main, port: 80",
            GOOD,
        ),
        at(
            "by both, which differ",
            "name: ROW-web, sectionName: main, port: 81",
            &[
                "Accepted=False NoMatchingParent: no such port",
                "ResolvedRefs=True ResolvedRefs",
            ],
        ),
        at(
            "a port that is not there",
            "name: ROW-web, port: 82",
            NOWHERE,
        ),
        at(
            "a Service that is not there",
            "name: ROW-none",
            &[
                "Accepted=False NoMatchingParent: there is no Service",
                "ResolvedRefs=True ResolvedRefs",
            ],
        ),
        at(
            "a headless Service",
            "name: ROW-headless",
            &[
                "Accepted=False NoMatchingParent: headless",
                "ResolvedRefs=True ResolvedRefs",
            ],
        ),
        at("an ExternalName", "name: ROW-outside", NOWHERE),
        at(
            "a Service of another namespace, without a grant",
            "name: ROW-far, namespace: OTHER",
            GOOD,
        ),
        at(
            "HTTP at a port that declares tcp",
            "name: ROW-mixed, port: 5432",
            &[
                "Accepted=False NoMatchingParent: is declared (appProtocol",
                "ResolvedRefs=True ResolvedRefs",
            ],
        ),
        at(
            "HTTP at all ports of a Service with others, too",
            "name: ROW-mixed",
            &[
                "Accepted=True Accepted: is declared (appProtocol",
                "ResolvedRefs=True ResolvedRefs",
            ],
        ),
        one(
            "hostnames, which count for nothing in a mesh",
            &format!(
                "hostnames: [a.example], {}, {TO_WEB}",
                parent("name: ROW-web")
            ),
            GOOD,
        ),
    ];
    let several = "parentRefs: [{name: edge}, {group: '', kind: Service, name: ROW-web, port: 80}, {group: '', kind: Service, name: ROW-web, port: 82}, {group: '', kind: Service, name: ROW-far, namespace: OTHER}]";
    let several = route("HTTPRoute", "r", &format!("{several}, {TO_WEB}"));
    rows.push(Row {
        name: "several parents, one of them another controller's",
        objects: services(&several) + &several,
        expected: vec![Expected {
            kind: "HTTPRoute",
            name: "r",
            parents: vec![None, Some(GOOD), Some(NOWHERE), Some(GOOD)],
        }],
    });
    rows
}

// tidy: allow size: a table
fn backends() -> Vec<Row> {
    let to =
        |name, backend: &str, said| rules(name, &format!("{{backendRefs: [{{{backend}}}]}}"), said);
    let tcp = format!(
        "{}, rules: [{{backendRefs: [{{name: ROW-mixed, port: 5432}}]}}]",
        parent("name: ROW-web")
    );
    let grpc = format!(
        "{}, rules: [{{backendRefs: [{{name: ROW-none, port: 80}}]}}]",
        parent("name: ROW-web")
    );
    vec![
        rules("no backends are no wrong ones", "{}", GOOD),
        to("a backend", "name: ROW-web, port: 80", GOOD),
        to(
            "one of another namespace, without a grant",
            "name: ROW-far, namespace: OTHER, port: 80",
            GOOD,
        ),
        to(
            "one that is not there",
            "name: ROW-none, port: 80",
            &[
                "Accepted=True Accepted",
                "ResolvedRefs=False BackendNotFound: its share of requests answers 500",
            ],
        ),
        to(
            "one that is not there and has no weight",
            "name: ROW-none, port: 80, weight: 0",
            MISSING,
        ),
        to(
            "a port that is not there",
            "name: ROW-web, port: 99",
            MISSING,
        ),
        to("an ExternalName", "name: ROW-outside, port: 80", MISSING),
        to(
            "another kind",
            "group: example.com, kind: Bucket, name: b",
            &["Accepted=True Accepted", "ResolvedRefs=False InvalidKind"],
        ),
        to(
            "an appProtocol that nobody knows",
            "name: ROW-odd, port: 80",
            PROTOCOL,
        ),
        to(
            "an appProtocol that carries no requests that we see",
            "name: ROW-odd, port: 81",
            PROTOCOL,
        ),
        to("an appProtocol of HTTP/2", "name: ROW-odd, port: 82", GOOD),
        to(
            "requests to a port that declares tcp",
            "name: ROW-mixed, port: 5432",
            PROTOCOL,
        ),
        rules(
            "the first that is wrong gives the reason",
            "{backendRefs: [{name: ROW-web, port: 80}, {name: ROW-none, port: 80}, {group: a.b, kind: C, name: d}]}",
            MISSING,
        ),
        rules(
            "a mirror that is not there",
            "{backendRefs: [{name: ROW-web, port: 80}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: ROW-none, port: 80}}}]}",
            MISSING,
        ),
        row(
            "connections to a port that declares tcp",
            &route("TCPRoute", "r", &tcp),
            vec![("TCPRoute", "r", GOOD)],
        ),
        row(
            "a GRPCRoute's backend that is not there",
            &route("GRPCRoute", "r", &grpc),
            vec![("GRPCRoute", "r", MISSING)],
        ),
    ]
}

// tidy: allow size: a table
fn conflicts() -> Vec<Row> {
    let of = |kind: &'static str, name: &'static str, rest: &str| {
        let names = if kind == "TLSRoute" {
            "hostnames: [a.example], "
        } else {
            ""
        };
        route(kind, name, &format!("{names}{}, {TO_WEB}", parent(rest)))
    };
    let all = |kinds: &[&'static str]| -> String {
        kinds
            .iter()
            .map(|kind| of(kind, "r", "name: ROW-web"))
            .collect()
    };
    vec![
        row(
            "GRPC before all",
            &all(&["TCPRoute", "TLSRoute", "HTTPRoute", "GRPCRoute"]),
            vec![
                ("GRPCRoute", "r", GOOD),
                ("HTTPRoute", "r", LOST),
                ("TLSRoute", "r", LOST),
                ("TCPRoute", "r", LOST),
            ],
        ),
        row(
            "HTTP before TLS and TCP",
            &all(&["TCPRoute", "TLSRoute", "HTTPRoute"]),
            vec![
                ("HTTPRoute", "r", GOOD),
                ("TLSRoute", "r", LOST),
                ("TCPRoute", "r", LOST),
            ],
        ),
        row(
            "TLS before TCP",
            &all(&["TCPRoute", "TLSRoute"]),
            vec![("TLSRoute", "r", GOOD), ("TCPRoute", "r", LOST)],
        ),
        row(
            "a port each",
            &(of("GRPCRoute", "r", "name: ROW-web, port: 81")
                + &of("TCPRoute", "r", "name: ROW-web, port: 80")),
            vec![("GRPCRoute", "r", GOOD), ("TCPRoute", "r", GOOD)],
        ),
        row(
            "one of two ports lost",
            &(of("GRPCRoute", "r", "name: ROW-web, port: 81")
                + &of("HTTPRoute", "r", "name: ROW-web")),
            vec![
                ("GRPCRoute", "r", GOOD),
                (
                    "HTTPRoute",
                    "r",
                    &[
                        "Accepted=True Accepted: ROW-web:81 has routes that precede",
                        "ResolvedRefs=True ResolvedRefs",
                    ],
                ),
            ],
        ),
        row(
            "a connection follows one route: the first of two",
            &(of("TCPRoute", "a", "name: ROW-web") + &of("TCPRoute", "b", "name: ROW-web")),
            vec![("TCPRoute", "a", GOOD), ("TCPRoute", "b", LOST)],
        ),
        row(
            "requests follow any number of routes",
            &(of("HTTPRoute", "a", "name: ROW-web") + &of("HTTPRoute", "b", "name: ROW-web")),
            vec![("HTTPRoute", "a", GOOD), ("HTTPRoute", "b", GOOD)],
        ),
        row(
            "TCP at a port that declares http",
            &of("TCPRoute", "r", "name: ROW-mixed, port: 80"),
            vec![("TCPRoute", "r", GOOD)],
        ),
        row(
            "TLS at a port that declares http and has such routes",
            &(of("TLSRoute", "r", "name: ROW-mixed, port: 80")
                + &of("HTTPRoute", "r", "name: ROW-mixed, port: 80")),
            vec![("TLSRoute", "r", LOST), ("HTTPRoute", "r", GOOD)],
        ),
        row(
            "HTTP at a port that declares tls",
            &(of("TLSRoute", "r", "name: ROW-mixed, port: 443")
                + &of("HTTPRoute", "r", "name: ROW-mixed, port: 443")),
            vec![("TLSRoute", "r", GOOD), ("HTTPRoute", "r", NOWHERE)],
        ),
        row(
            "TLS at a port that declares http",
            &of("TLSRoute", "r", "name: ROW-mixed, port: 80"),
            vec![("TLSRoute", "r", NOWHERE)],
        ),
        row(
            "a consumer's routes are apart from the producer's",
            &(of("TCPRoute", "OTHER/r", "name: ROW-web, namespace: NAMESPACE").replace(
                "backendRefs: [{name: ROW-web",
                "backendRefs: [{name: ROW-web, namespace: NAMESPACE",
            ) + &of("HTTPRoute", "r", "name: ROW-web")),
            vec![("TCPRoute", "OTHER/r", GOOD), ("HTTPRoute", "r", GOOD)],
        ),
        row(
            "one that is refused stands in nobody's way",
            &(route(
                "GRPCRoute",
                "r",
                &format!(
                    "{}, rules: [{{filters: [{{type: ExtensionRef, extensionRef: {{group: a.b, kind: C, name: d}}}}]}}]",
                    parent("name: ROW-web")
                ),
            ) + &of("HTTPRoute", "r", "name: ROW-web")),
            vec![
                (
                    "GRPCRoute",
                    "r",
                    &[
                        "Accepted=False UnsupportedValue",
                        "ResolvedRefs=True ResolvedRefs",
                    ],
                ),
                ("HTTPRoute", "r", GOOD),
            ],
        ),
    ]
}

// tidy: allow size: a table
fn invalid() -> Vec<Row> {
    const GOOD_RULE: &str =
        "{matches: [{path: {value: /good}}], backendRefs: [{name: ROW-web, port: 80}]}";
    const EXTENSION: &str = "{filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}], backendRefs: [{name: ROW-web, port: 80}]}";
    const AUTH: &str = "{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, http: {path: /auth}, backendRef: {name: ROW-web, port: 80}}}], backendRefs: [{name: ROW-web, port: 80}]}";
    const REWRITES: &str = "{filters: [{type: URLRewrite, urlRewrite: {hostname: a.example}}], backendRefs: [{name: ROW-web, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: b.example}}]}]}";
    const ON_BACKEND: &str = "{backendRefs: [{name: ROW-web, port: 80, filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example}}]}]}";
    const EXPRESSION: &str = "{matches: [{path: {type: RegularExpression, value: '/('}}], backendRefs: [{name: ROW-web, port: 80}]}";
    let both = |name, rule: &str, said| rules(name, &format!("{GOOD_RULE}, {rule}"), said);
    let refused: &[&str] = &[
        "Accepted=False UnsupportedValue",
        "ResolvedRefs=True ResolvedRefs",
    ];
    vec![
        rules(
            "a filter that we do not know",
            EXTENSION,
            &[
                "Accepted=False UnsupportedValue: spec.rules[0].filters[0]: ExtensionRef is not supported",
                "ResolvedRefs=True ResolvedRefs",
            ],
        ),
        rules("another", AUTH, refused),
        both(
            "one of two rules has one",
            EXTENSION,
            &[
                "Accepted=True Accepted",
                "ResolvedRefs=True ResolvedRefs",
                "PartiallyInvalid=True UnsupportedValue: Dropped Rule: spec.rules[1].filters[0]: ExtensionRef is not supported (its requests answer 500)",
            ],
        ),
        rules(
            "filters that stand in each other's way",
            REWRITES,
            &[
                "Accepted=False IncompatibleFilters",
                "ResolvedRefs=True ResolvedRefs",
            ],
        ),
        both(
            "one of two rules has such",
            REWRITES,
            &[
                "Accepted=True Accepted",
                "ResolvedRefs=True ResolvedRefs",
                "PartiallyInvalid=True IncompatibleFilters: Dropped Rule: spec.rules[1].",
            ],
        ),
        rules("a filter where it cannot be", ON_BACKEND, refused),
        rules("an expression that is none", EXPRESSION, refused),
        both(
            "one of two rules has such",
            EXPRESSION,
            &[
                "Accepted=True Accepted",
                "ResolvedRefs=True ResolvedRefs",
                "PartiallyInvalid=True UnsupportedValue: (spec.rules[1] is left out)",
            ],
        ),
        rules(
            "sessions, as Gateway API writes them",
            "{backendRefs: [{name: ROW-web, port: 80}], sessionPersistence: {sessionName: s, type: Cookie, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}}",
            GOOD,
        ),
        one(
            "not accepted, and so not partly either",
            &format!(
                "{}, rules: [{GOOD_RULE}, {EXTENSION}]",
                parent("name: ROW-none")
            ),
            NOWHERE,
        ),
    ]
}

impl Row {
    /// Its objects under these names.
    #[must_use]
    pub fn manifests(&self, namespace: &str, other: &str, number: usize) -> String {
        let text = self.objects.replace("OTHER", other);
        text.replace("NAMESPACE", namespace)
            .replace("ROW", &format!("r{number}"))
    }
}

/// Whether what is said is what is expected: `TYPE=STATUS REASON`, and after a colon a part of the
/// message. `conditions`: as an object's status has them.
#[must_use]
pub fn is_said(conditions: &[Value], expected: &[&str], number: usize) -> bool {
    conditions.len() == expected.len()
        && conditions.iter().zip(expected).all(|(of, expected)| {
            let text = |name: &str| of[name].as_str().unwrap_or_default();
            let said = format!("{}={} {}", text("type"), text("status"), text("reason"));
            let expected = expected.replace("ROW", &format!("r{number}"));
            let (verdict, part) = expected.split_once(": ").unwrap_or((&expected, ""));
            said == verdict && text("message").contains(part)
        })
}

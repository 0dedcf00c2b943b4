//! Who is let in: every rule of the order, every field, what may be evaded.

use super::*;
use crate::{compile, wire};

fn authorization(yaml: &str) -> Authorization {
    let text = format!(
        "settings: {{}}\nlisteners: [{{name: in, address: '0.0.0.0:80', service: s, inbound: {{authorization: {yaml}}}}}]\n\
         services: [{{name: s, endpoints: [{{address: '10.0.0.1:80'}}]}}]\n"
    );
    let config: wire::Config = crate::file::parse(&text).unwrap();
    let snapshot = compile::compile(&config).unwrap();
    let mut listeners = snapshot.listeners;
    let listener = Arc::into_inner(listeners.remove(0)).unwrap();
    listener.inbound.unwrap().authorization
}

/// `identity address port method path`; a method `-`: an opaque connection.
fn allowed(authorization: &Authorization, access: &str) -> bool {
    let parts: Vec<&str> = access.split(' ').collect();
    let [identity, address, port, method, path] = parts[..] else {
        panic!("{access}")
    };
    let identity = (identity != "-").then(|| {
        let (namespace, account) = identity.split_once('/').unwrap();
        SpiffeId::new("td", namespace, account).unwrap()
    });
    let mut headers = HeaderMap::new();
    headers.insert("x-team", "a".parse().unwrap());
    let parsed = method.parse().unwrap_or(Method::GET);
    let access = Access {
        identity: identity.as_ref(),
        address: address.parse().unwrap(),
        port: port.parse().unwrap(),
        request: (method != "-").then_some(AccessRequest {
            method: &parsed,
            path,
            authority: "a.example",
            headers: &headers,
        }),
    };
    evaluate(authorization, &access).allowed
}

#[test]
fn the_order_of_decisions() {
    let none = authorization("{}");
    assert!(allowed(&none, "- 10.0.0.9 80 GET /"));
    let closed = authorization("{default: deny}");
    assert!(!allowed(&closed, "shop/web 10.0.0.9 80 GET /"));
    let both = authorization(
        "{policies: [
          {name: shop/allow, action: allow, rules: [{from: [{namespaces: [shop]}]}]},
          {name: shop/deny, action: deny, rules: [{from: [{identities: ['spiffe://td/ns/shop/sa/bad']}]}]},
          {name: shop/audit, action: audit, rules: [{}]}]}",
    );
    assert!(allowed(&both, "shop/web 10.0.0.9 80 GET /"));
    assert!(
        !allowed(&both, "shop/bad 10.0.0.9 80 GET /"),
        "deny before allow"
    );
    assert!(
        !allowed(&both, "other/web 10.0.0.9 80 GET /"),
        "allow policies, none matches"
    );
    assert!(
        !allowed(&both, "- 10.0.0.9 80 GET /"),
        "nobody has no namespace"
    );
    let nothing = authorization("{policies: [{name: a/b, action: allow}]}");
    assert!(
        !allowed(&nothing, "shop/web 10.0.0.9 80 GET /"),
        "no rule matches nothing"
    );
    let audit = authorization("{policies: [{name: a/b, action: audit, rules: [{}]}]}");
    assert!(allowed(&audit, "- 10.0.0.9 80 GET /"), "audit only tells");
}

#[test]
fn every_field() {
    let allow = |rule: &str| {
        authorization(&format!(
            "{{policies: [{{name: a/b, action: allow, rules: [{rule}]}}]}}"
        ))
    };
    for (rule, yes, no) in [
        (
            "{from: [{identities: ['*']}]}",
            "shop/web 10.0.0.9 80 GET /",
            "- 10.0.0.9 80 GET /",
        ),
        (
            "{from: [{identities: ['spiffe://td/ns/shop/*']}]}",
            "shop/web 10.0.0.9 80 GET /",
            "shopper/web 10.0.0.9 80 GET /",
        ),
        (
            "{from: [{cidrs: ['10.0.0.0/8']}]}",
            "- 10.9.9.9 80 GET /",
            "- 11.0.0.1 80 GET /",
        ),
        (
            "{from: [{cidrs: ['fd00::/8']}]}",
            "- fd01::1 80 GET /",
            "- 10.0.0.1 80 GET /",
        ),
        (
            "{from: [{cidrs: ['0.0.0.0/0']}]}",
            "- 203.0.113.9 80 GET /",
            "- fd01::1 80 GET /",
        ),
        (
            "{from: [{namespaces: [shop], cidrs: ['10.0.0.0/8']}]}",
            "shop/web 10.0.0.1 80 GET /",
            "shop/web 11.0.0.1 80 GET /",
        ),
        (
            "{to: [{ports: [80, 81]}]}",
            "- 10.0.0.9 81 GET /",
            "- 10.0.0.9 82 GET /",
        ),
        (
            "{to: [{methods: [GET, HEAD]}]}",
            "- 10.0.0.9 80 HEAD /",
            "- 10.0.0.9 80 POST /",
        ),
        (
            "{to: [{paths: ['/a', '/b/*']}]}",
            "- 10.0.0.9 80 GET /b/c",
            "- 10.0.0.9 80 GET /a/c",
        ),
        (
            "{to: [{headers: [{name: x-team, value: a}]}]}",
            "- 10.0.0.9 80 GET /",
            "- 10.0.0.9 80 - /",
        ),
        (
            "{to: [{methods: [GET]}]}",
            "- 10.0.0.9 80 GET /",
            "- 10.0.0.9 80 - /",
        ),
        (
            "{to: [{ports: [80]}]}",
            "- 10.0.0.9 80 - /",
            "- 10.0.0.9 81 - /",
        ),
    ] {
        let policy = allow(rule);
        assert!(allowed(&policy, yes), "{rule} allows {yes}");
        assert!(!allowed(&policy, no), "{rule} denies {no}");
    }
}

#[test]
fn a_path_written_differently_evades_nothing() {
    let deny = authorization(
        "{policies: [{name: a/b, action: deny, rules: [{to: [{paths: ['/admin', '/admin/*']}]}]}]}",
    );
    let allow = authorization(
        "{policies: [{name: a/b, action: allow, rules: [{to: [{paths: ['/public/*']}]}]}]}",
    );
    for path in [
        "/admin",
        "/%61dmin",
        "//admin/x",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/admin;x",
        "/.//admin",
    ] {
        assert!(
            !allowed(&deny, &format!("- 10.0.0.9 80 GET {path}")),
            "{path}"
        );
    }
    for path in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public%2f..%2fadmin",
        "/public/..\\admin",
    ] {
        assert!(
            !allowed(&allow, &format!("- 10.0.0.9 80 GET {path}")),
            "{path}"
        );
    }
    assert!(allowed(&allow, "- 10.0.0.9 80 GET /public/a%20b"));
    // What cannot be read is denied where it might be meant.
    assert!(!allowed(&deny, "- 10.0.0.9 80 - /"));
}

#[test]
fn mistakes_are_named() {
    let text = "listeners: [{name: in, address: '0.0.0.0:80', service: s, inbound: {authorization: {default: audit, policies: [{name: a/b, rules: [{from: [{cidrs: [10.0.0.0/33, x], identities: ['a*b']}], to: [{ports: [70000], methods: ['G T'], paths: [a]}]}]}]}}}]\nservices: [{name: s, endpoints: [{address: '10.0.0.1:80'}]}]\n";
    let errors = crate::file::load("x", text).unwrap_err().to_string();
    for path in [
        "default",
        "cidrs[0]",
        "cidrs[1]",
        "identities[0]",
        "ports[0]",
        "methods[0]",
        "paths[0]",
    ] {
        assert!(errors.contains(path), "{path}: {errors}");
    }
}

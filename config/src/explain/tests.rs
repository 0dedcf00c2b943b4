//! Explanations of the example that has every field.

use super::*;
use crate::file::load;

fn snapshot() -> Snapshot {
    load("full.yaml", include_str!("../../tests/full.yaml"))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn explained(line: &str, headers: &[&str], listener: Option<&str>) -> Explanation {
    let request = ExplainRequest::parse(line, headers.iter().copied()).expect("is a request");
    explain(&snapshot(), listener, &request).expect("is explained")
}

#[test]
fn a_rule_with_everything() {
    let explanation = explained(
        "GET http://shop.example.com:8080/products/7?page=2",
        &["x-beta: 1", "x-tier: gold", "x-c: gone"],
        None,
    );
    let shown = explanation.to_string();
    for line in [
        "GET http://shop.example.com:8080/products/7?page=2",
        "listener web (configuration ",
        "taken by route default/shop, rule products",
        "forwarded as /p/7?page=2 with host catalogue.internal",
        "request header x-a: 1",
        "request header x-c removed",
        "response header server removed",
        "mirrored to service catalogue (0.1000 %)",
        "mirrored to nothing, answered 500 (BackendNotFound) (5.0000 %)",
        "to service catalogue: 90.00 % (weight 9)",
        "request header x-share: big",
        "to nothing, answered 500 (BackendNotFound): 10.00 % (weight 1)",
        "timeout 10s, for one try 2s",
        "retried up to 2 times, at least 100ms apart",
        "stays with one endpoint by cookie shop",
    ] {
        assert!(shown.contains(line), "{line:?} in\n{shown}");
    }
    let json = serde_json::to_value(&explanation).expect("serialises");
    assert_eq!(json["decision"]["backends"][0]["percent"], 90.0);
    assert_eq!(json["decision"]["effect"]["path"], "/p/7?page=2");
    assert_eq!(
        json["decision"]["retry"]["grpcCodes"],
        serde_json::json!([14, 1])
    );
}

#[test]
fn other_decisions() {
    for (line, headers, listener, wanted) in [
        (
            "GET http://shop.example.com:8080/old",
            &[][..],
            None,
            "answered 308 by a filter",
        ),
        (
            "http://shop.example.com:8080/v2/old",
            &[],
            None,
            "location: https://new.example.com:8443/new",
        ),
        (
            "GET http://shop.example.com:8080/nothing",
            &[],
            None,
            "answered 404",
        ),
        (
            "GET http://other.example.com:8080/old",
            &["Host: shop.example.com"],
            None,
            "answered 308",
        ),
        (
            "POST http://x:8080/cart.Cart/Add",
            &["content-type: application/grpc"],
            None,
            "taken by route default/cart, rule 0",
        ),
        (
            "POST http://x/cart.Cart/Add",
            &["content-type: application/grpc"],
            Some("any"),
            "to service cart: 100.00 %",
        ),
        (
            "GET https://a.example.com:8443/",
            &[],
            None,
            "taken by route passthrough, rule 0\n  passed through",
        ),
        ("GET https://b.org:8443/", &[], None, "answered 404"),
        (
            "GET http://x:5432/",
            &[],
            None,
            "to service postgres: 100.00 % (weight 2)",
        ),
    ] {
        let explanation = explained(line, headers, listener);
        let shown = explanation.to_string();
        assert!(shown.contains(wanted), "{line}: {wanted:?} in\n{shown}");
        // `weft explain` reads what a proxy answers.
        let page = serde_json::to_string(&explanation).expect("it is JSON");
        let read: Explanation = serde_json::from_str(&page).expect("it is an explanation");
        assert_eq!(read, explanation, "{page}");
    }
}

#[test]
fn what_cannot_be_explained() {
    for (line, headers, wanted) in [
        ("G@T http://h/", &[][..], "not an HTTP method"),
        ("GET /path", &[], "not a URL"),
        ("GET ftp://h/", &[], "not a URL"),
        ("GET http://a b/", &[], "not a URL"),
        ("", &[], "not a URL"),
        ("GET http://h/", &["novalue"], "not a header"),
        ("GET http://h/", &["a b: c"], "not a header"),
    ] {
        let error = ExplainRequest::parse(line, headers.iter().copied()).expect_err("is wrong");
        assert!(error.to_string().contains(wanted), "{line}: {error}");
    }
    let request = ExplainRequest::parse("GET http://h:7/", []).expect("is a request");
    let error = explain(&snapshot(), None, &request).expect_err("no such port");
    assert!(
        error.to_string().contains("no listener has port 7"),
        "{error}"
    );
    let error = explain(&snapshot(), Some("wbe"), &request).expect_err("no such name");
    assert!(
        error.to_string().contains("did you mean \"web\"?"),
        "{error}"
    );
}

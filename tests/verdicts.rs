//! What Gateway API has a mesh say of routes, in the index alone. `kubernetes/verdicts.rs` reads the
//! same table's statuses back from a real API server.

use serde_json::{Value, json};
use weft_config::status::ObjectStatus;
use weft_controller::index::{Change, Index};
use weft_controller::source::manifest;
use weft_tests::verdicts::{Expected, is_said, table};

fn index(text: &str) -> Index {
    let parsed = manifest::parse("table.yaml", text);
    assert!(parsed.errors.is_empty(), "{:?}\n{text}", parsed.errors);
    let mut index = Index::new("cluster.local");
    index.apply(parsed.objects.into_iter().map(|object| Change {
        key: object.key(),
        object: Some(object.into()),
    }));
    index
}

/// As the API server would have them.
fn conditions(of: &ObjectStatus) -> Vec<Value> {
    let conditions = of.conditions.iter().map(|of| {
        json!({
            "type": of.kind,
            "status": if of.status { "True" } else { "False" },
            "reason": of.reason,
            "message": of.message,
        })
    });
    conditions.collect()
}

/// What is said of a route, parent by parent; the index speaks of ours alone.
fn said(index: &Index, expected: &Expected, number: usize) -> Vec<ObjectStatus> {
    let (namespace, name) = expected
        .name
        .split_once('/')
        .unwrap_or(("shop", expected.name));
    let namespace = namespace.replace("OTHER", "away");
    let name = format!("r{number}-{name}");
    let all = index.statuses().into_iter();
    all.filter(|of| {
        (of.kind.as_str(), &of.namespace, &of.name) == (expected.kind, &namespace, &name)
    })
    .collect()
}

#[test]
fn routes_are_judged_by_gateway_api_s_rules() {
    let mut wrong = Vec::new();
    for (number, row) in table().iter().enumerate() {
        let index = index(&row.manifests("shop", "away", number));
        let bad = |of: &&str| of.contains("=False") || of.starts_with("PartiallyInvalid");
        let mut all = row.expected.iter().flat_map(|of| &of.parents).flatten();
        let is_bad = all.any(|of| of.iter().any(bad));
        assert_eq!(index.faulty() > 0, is_bad, "{}", row.name);
        for expected in &row.expected {
            let said = said(&index, expected, number);
            let ours: Vec<_> = expected.parents.iter().flatten().collect();
            // The index has them in an order of its own.
            let is_right = said.len() == ours.len()
                && ours.iter().all(|ours| {
                    let mut said = said.iter();
                    said.any(|said| is_said(&conditions(said), ours, number))
                });
            if !is_right {
                wrong.push(format!("{}: {expected:?}\n{said:#?}", row.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

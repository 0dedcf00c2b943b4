//! Many routes at one port: how many are in force, and what a change of one costs the others.

use weft_config::compile::timestamp;

use crate::api::{ParentRef, Route, Service, ServicePort};
use crate::index::attach::{ROUTES_BYTES_MAX, ROUTES_MAX};
use crate::index::*;

const FLOOD: usize = 10_000;

fn change(namespace: &str, name: &str, created: i64, spec: Spec) -> Change {
    let created = timestamp::parse(&format!(
        "2026-01-01T{:02}:{:02}:{:02}Z",
        created / 3600,
        created / 60 % 60,
        created % 60
    ));
    let object = Object {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        created,
        generation: 1,
        spec,
    };
    Change {
        key: object.key(),
        object: Some(Arc::new(object)),
    }
}

fn web() -> Change {
    let port = ServicePort {
        name: "http".to_owned(),
        port: 80,
        protocol: "http".to_owned(),
        unknown_protocol: false,
    };
    let service = Service {
        ports: vec![port],
        ..Service::default()
    };
    change("shop", "web", 0, Spec::Service(service))
}

/// A route of `rules` rules, made at this second.
fn route(namespace: &str, name: &str, created: i64, rules: usize) -> Change {
    let wire = wire::Route {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        kind: wire::route::Kind::Http.into(),
        rules: (0..rules)
            .map(|number| wire::Rule {
                name: format!("{number:0>250}"),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let parent = ParentRef {
        group: String::new(),
        kind: "Service".to_owned(),
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        section_name: String::new(),
        port: 0,
    };
    let route = Route {
        wire,
        parents: vec![parent],
        unsupported: BTreeMap::new(),
    };
    change(namespace, name, created, Spec::Route(route))
}

fn in_force(index: &Index, namespace: &str) -> Vec<String> {
    let destination = index.destination(namespace, "web.shop:80").unwrap();
    let routes = destination.routes.into_iter();
    routes.map(|route| route.name).collect()
}

fn reasons(index: &Index, reason: &str) -> usize {
    let all = index.statuses();
    let is = |of: &&ObjectStatus| of.conditions.iter().any(|of| of.reason == reason);
    all.iter().filter(is).count()
}

#[test]
fn of_a_flood_of_routes_the_oldest_are_in_force_and_the_rest_are_told() {
    let mut index = Index::new("td");
    index.apply([web(), route("shop", "zzz-first", 0, 1)]);
    let flood = (0..FLOOD).map(|number| {
        let age = i64::try_from(number).unwrap() + 1;
        route("shop", &format!("r{number}"), age, 1)
    });
    index.apply(flood);
    let routes = in_force(&index, "shop");
    assert_eq!(routes.len(), ROUTES_MAX);
    assert_eq!(
        (routes[0].as_str(), routes[ROUTES_MAX - 1].as_str()),
        ("zzz-first", "r998")
    );
    assert_eq!(reasons(&index, "TooManyRoutes"), FLOOD + 1 - ROUTES_MAX);
    let message = index
        .statuses()
        .into_iter()
        .find(|of| of.name == "r9999")
        .unwrap();
    assert!(
        message.conditions[0]
            .message
            .contains("shop/web:80 has 1000 older routes"),
        "{message:?}"
    );
    // Another namespace's are its own.
    index.apply([route("other", "theirs", 60_000, 1)]);
    assert_eq!(in_force(&index, "other"), ["theirs"]);
    // Of what changes one is told of, and not of all that are beside it.
    index.take_changed();
    index.apply([route("shop", "r5000", 5_001, 2)]);
    assert!(
        index.take_changed().is_empty(),
        "nothing else is said of it"
    );
    let gone = Change {
        object: None,
        ..route("shop", "r0", 1, 1)
    };
    index.apply([gone]);
    let changed = index.take_changed();
    let changed: Vec<&str> = changed.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(
        changed,
        ["r0", "r999"],
        "one has gone, and the next is in force"
    );
}

#[test]
fn routes_are_bounded_by_their_size_too() {
    let mut index = Index::new("td");
    index.apply([web()]);
    // One of a megabyte, one that has no room beside it and two, and one that has.
    index.apply([
        route("shop", "a", 1, 4_000),
        route("shop", "b", 2, 3_000),
        route("shop", "c", 3, 3_000),
        route("shop", "d", 4, 10),
    ]);
    assert_eq!(in_force(&index, "shop"), ["a", "b", "d"]);
    assert_eq!(reasons(&index, "TooManyRoutes"), 1);
    let whole = index.destination("shop", "web.shop:80").unwrap();
    let bytes: usize = whole.routes.iter().map(prost::Message::encoded_len).sum();
    assert!(bytes < ROUTES_BYTES_MAX + 4 * 1024, "{bytes}");
}

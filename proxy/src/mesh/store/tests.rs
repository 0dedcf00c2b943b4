//! Make before break, strangers, refusals, resumption.

use super::*;
use prost::Message as _;

fn destination(services: &[&str]) -> Vec<u8> {
    let listener = wire::Listener {
        name: "shop/web:80".to_owned(),
        address: "10.0.0.1:80".to_owned(),
        destination: "10.0.0.1:80".to_owned(),
        role: wire::listener_role::Value::Virtual.into(),
        service: services.first().map_or("", |name| name).to_owned(),
        ..Default::default()
    };
    let destination = wire::Destination {
        listener: Some(listener),
        services: services.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    destination.encode_to_vec()
}

fn endpoints(addresses: &[&str]) -> Vec<u8> {
    let endpoint = |address: &&str| wire::Endpoint {
        address: (*address).to_owned(),
        ..Default::default()
    };
    let endpoints = wire::Endpoints {
        endpoints: addresses.iter().map(endpoint).collect(),
        ..Default::default()
    };
    endpoints.encode_to_vec()
}

fn kinds(store: &mut Store) -> Vec<Type> {
    let told = store.subscriptions();
    told.iter().map(|interest| interest.kind).collect()
}

fn web() -> Destination {
    Destination::parse("10.0.0.1:80").unwrap()
}

fn set(store: &mut Store, kind: Type, name: &str, bytes: &[u8]) -> Effect {
    let mut effect = Effect::default();
    store.set(kind, name, "1", bytes, &mut effect);
    effect
}

fn learn(store: &mut Store, name: &str, addresses: &[&str]) {
    set(store, Type::Service, name, &stub(name).encode_to_vec());
    set(store, Type::Endpoints, name, &endpoints(addresses));
}

/// A store that knows the destination with service `a`.
fn known() -> Store {
    let mut store = Store::new("uid", "td", "10.0.0.9");
    store.want(&web(), false);
    set(
        &mut store,
        Type::Destination,
        "10.0.0.1:80",
        &destination(&["a"]),
    );
    learn(&mut store, "a", &["10.1.0.1:80"]);
    store.overlay();
    store.subscriptions();
    store
}

#[test]
fn a_destination_waits_for_all_that_it_names() {
    let mut store = Store::new("uid", "td", "10.0.0.9");
    store.want(&web(), false);
    let asked = kinds(&mut store);
    assert_eq!(
        asked,
        [Type::TrustBundle, Type::Workload, Type::Destination]
    );
    let effect = set(
        &mut store,
        Type::Destination,
        "10.0.0.1:80",
        &destination(&["a"]),
    );
    assert!(effect.rebuild);
    assert!(store.overlay().listeners.is_empty());
    let asked = kinds(&mut store);
    assert_eq!(asked, [Type::Endpoints, Type::Service]);
    assert_eq!(store.knows(&web()), None);
    learn(&mut store, "a", &["10.1.0.1:80"]);
    let overlay = store.overlay();
    assert_eq!((overlay.listeners.len(), overlay.services.len()), (1, 1));
    assert_eq!(store.knows(&web()), Some(true));
}

#[test]
fn what_is_in_force_stays_until_its_successor_is_whole() {
    let mut store = known();
    set(
        &mut store,
        Type::Destination,
        "10.0.0.1:80",
        &destination(&["b"]),
    );
    assert_eq!(store.overlay().services[0].name, "a");
    learn(&mut store, "b", &["10.1.0.2:80"]);
    let overlay = store.overlay();
    assert_eq!(overlay.services.len(), 1);
    assert_eq!(overlay.services[0].name, "b");
}

#[test]
fn endpoints_alone_need_no_rebuild() {
    let mut store = known();
    let effect = set(
        &mut store,
        Type::Endpoints,
        "a",
        &endpoints(&["10.1.0.7:80"]),
    );
    assert!(!effect.rebuild);
    assert!(effect.endpoints.contains("a"));
    assert_eq!(
        store.endpoints("a").unwrap()[0].address.to_string(),
        "10.1.0.7:80"
    );
}

#[test]
fn what_cannot_be_used_is_refused_and_changes_nothing() {
    let mut store = known();
    for (kind, name, bytes) in [
        (Type::Endpoints, "a", endpoints(&["nonsense"])),
        (Type::Destination, "10.0.0.1:80", vec![0xff; 7]),
        (
            Type::Destination,
            "10.0.0.1:80",
            wire::Destination::default().encode_to_vec(),
        ),
    ] {
        let effect = set(&mut store, kind, name, &bytes);
        assert_eq!(effect.refused.len(), 1, "{kind:?}");
        assert!(!effect.rebuild);
    }
    assert_eq!(
        store.overlay().services[0].endpoints[0].address,
        "10.1.0.1:80"
    );
}

#[test]
fn a_stranger_may_become_known() {
    let mut store = Store::new("uid", "td", "10.0.0.9");
    store.want(&web(), false);
    store.remove(Type::Destination, "10.0.0.1:80", &mut Effect::default());
    assert_eq!(store.knows(&web()), Some(false));
    set(
        &mut store,
        Type::Destination,
        "10.0.0.1:80",
        &destination(&["a"]),
    );
    learn(&mut store, "a", &["10.1.0.1:80"]);
    store.overlay();
    assert_eq!(store.knows(&web()), Some(true));
}

#[test]
fn a_new_stream_is_told_everything_with_its_version() {
    let mut store = known();
    assert!(store.subscriptions().is_empty());
    store.reconnected();
    let told = store.subscriptions();
    assert_eq!(told.len(), 5);
    let services = told.iter().find(|of| of.kind == Type::Service).unwrap();
    assert_eq!(services.versions["a"], "1");
}

#[test]
fn what_nobody_uses_is_forgotten_with_its_services() {
    let mut store = known();
    assert!(store.forget(|_| true));
    assert!(store.overlay().services.is_empty());
    let dropped: usize = store
        .subscriptions()
        .iter()
        .map(|interest| interest.drop.len())
        .sum();
    assert_eq!(dropped, 3);
    assert_eq!(store.count(Type::Service), 0);
}

#[test]
fn ports_of_the_workload() {
    let mut store = Store::new("uid", "td", "10.0.0.9");
    assert!(store.want_port(8080));
    assert!(!store.want_port(8080));
    let overlay = store.overlay();
    assert_eq!(overlay.services[0].endpoints[0].address, "10.0.0.9:8080");
    for port in 1..=300 {
        store.want_port(port);
    }
    assert_eq!(store.overlay().listeners.len(), inbound::EXTRA_PORTS_MAX);
}

/// What the controller charges for: names in a request, and their versions.
#[test]
fn a_new_destination_costs_the_same_however_much_is_held() {
    let mut store = Store::new("uid", "td", "10.0.0.9");
    let mut cost = Vec::new();
    for number in 0..=1000 {
        let address = format!("10.96.{}.{}:80", number / 250, number % 250 + 1);
        let service = format!("shop/web-{number:04}:80");
        store.want(&Destination::parse(&address).unwrap(), false);
        let mut told = store.subscriptions();
        let bytes = destination(&[&service]);
        set(&mut store, Type::Destination, &address, &bytes);
        told.extend(store.subscriptions());
        learn(&mut store, &service, &["10.1.0.1:80"]);
        let names = told.iter().map(|of| of.add.len() + of.versions.len());
        cost.push(names.sum::<usize>());
    }
    store.overlay();
    assert_eq!(store.count(Type::Service), 1001);
    // The first has the two that are always wanted beside it.
    assert_eq!(cost[0], 5);
    assert!(cost[1..].iter().all(|cost| *cost == 3), "{cost:?}");
}

#[test]
fn what_gathers_is_told_at_once() {
    let mut store = Store::new("uid", "td", "10.0.0.9");
    store.subscriptions();
    for number in 0..2000 {
        let address = format!("10.96.{}.{}:80", number / 250, number % 250 + 1);
        store.want(&Destination::parse(&address).unwrap(), false);
    }
    let told = store.subscriptions();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].add.len(), 2000);
    assert!(store.subscriptions().is_empty());
}

/// The stream still has the name, and what it sent of it is gone here.
#[test]
fn what_is_given_up_and_wanted_again_is_asked_for_anew() {
    let mut store = known();
    store.subscriptions();
    assert!(store.forget(|_| true));
    store.want(&web(), false);
    let told = store.subscriptions();
    let again = told.iter().find(|of| of.kind == Type::Destination).unwrap();
    assert_eq!(again.add, ["10.0.0.1:80"]);
    assert!(again.versions.is_empty(), "{again:?}");
    // The same between two streams.
    let mut store = known();
    store.forget(|_| true);
    store.reconnected();
    store.subscriptions();
    store.want(&web(), false);
    let bytes = destination(&["a"]);
    let mut effect = Effect::default();
    store.set(Type::Destination, "10.0.0.1:80", "1", &bytes, &mut effect);
    for interest in store.subscriptions() {
        assert!(
            interest.versions.is_empty() || interest.kind == Type::Destination,
            "{interest:?}"
        );
    }
}

//! What a reload keeps and what it renews.

use super::*;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::logic::balance::Outcome;
use crate::logic::limit::{Resource, try_acquire};
use weft_config::snapshot::Endpoint;

/// A runtime of YAML text.
pub fn runtime(yaml: &str, previous: Option<&Runtime>) -> Result<Runtime, weft_config::Errors> {
    let snapshot = weft_config::file::load("test.yaml", yaml)?;
    Runtime::build(Arc::new(snapshot), previous, Nanos::ZERO)
}

/// What all threads share, of YAML text.
pub fn shared(yaml: &str) -> Arc<Shared> {
    let runtime = runtime(yaml, None).expect("a good configuration");
    Arc::new(Shared::new(runtime, Clock::start()))
}

const ONE: &str = "
listeners:
- {name: web, address: '127.0.0.1:0', protocol: http, service: a}
services:
- name: a
  endpoints: [{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}]
";

#[test]
fn a_reload_forgets_nothing() {
    let first = runtime(ONE, None).unwrap();
    let service = &first.services[0];
    let kept: SocketAddr = "10.0.0.2:80".parse().unwrap();
    let before = Arc::clone(service.endpoints.load().find(kept).unwrap());
    let _in_flight = before.begin(Nanos::ZERO);
    let _permit = try_acquire(Arc::clone(&service.circuit), Resource::Request).unwrap();
    first.listeners[0].connections.store(7, Ordering::Relaxed);
    let second = ONE.replace("10.0.0.1:80", "10.0.0.3:80");
    let second = runtime(&second, Some(&first)).unwrap();
    assert_eq!(second.generation, 2);
    let service = second.service(weft_config::snapshot::ServiceId(0)).unwrap();
    assert_eq!(service.pool_id, first.services[0].pool_id);
    assert!(Arc::ptr_eq(
        service.endpoints.load().find(kept).unwrap(),
        &before
    ));
    assert_eq!(service.circuit.used(Resource::Request), 1);
    assert!(Arc::ptr_eq(&service.budget, &first.services[0].budget));
    let listener = second.listener("web").unwrap();
    assert_eq!(listener.connections.load(Ordering::Relaxed), 7);
}

#[test]
fn a_refused_configuration_changes_nothing() {
    let first = shared(ONE);
    let first = first.runtime.load();
    let service = &first.services[0];
    let set = service.endpoints.load();
    let address: SocketAddr = "10.0.0.2:80".parse().unwrap();
    let endpoint = set.find(address).unwrap();
    endpoint
        .begin(Nanos::ZERO)
        .finish(Outcome::Success, Duration::from_secs(1), Nanos::ZERO);
    // Limits, weight, and the decay as it shows in the latency.
    let later = Nanos::from(Duration::from_secs(10));
    let live = || {
        let latency = endpoint.latency(later).map(|latency| latency.as_millis());
        let limit = service.circuit.max(Resource::Request);
        (limit, endpoint.weight(), latency)
    };
    let before = (20_000, 1, Some(367));
    assert_eq!(live(), before);
    let other = ONE
        .replace(
            "- name: a",
            "- name: a\n  limits: {requestsMax: 3}\n  balancer: {ewmaDecay: 5s}",
        )
        .replace("'10.0.0.2:80'", "'10.0.0.2:80', weight: 7");
    let refused = format!(
        "{other}- {{name: b, tls: {{ca: /nonexistent/ca.pem}}, endpoints: [{{address: '10.0.0.9:80'}}]}}\n"
    );
    runtime(&refused, Some(&first)).unwrap_err();
    assert_eq!(live(), before, "its own file is missing");
    let second = runtime(&other, Some(&first)).unwrap();
    assert_eq!(live(), before, "what comes after building may yet fail");
    second.commit();
    assert_eq!(live(), (3, 7, Some(135)));
}

#[test]
fn what_makes_connections_unusable_renews_the_pool() {
    let first = runtime(ONE, None).unwrap();
    let second = ONE.replace("- name: a", "- name: a\n  protocol: http2");
    let second = runtime(&second, Some(&first)).unwrap();
    assert_ne!(second.services[0].pool_id, first.services[0].pool_id);
}

#[test]
fn dns_answers_join_the_listed_and_outlive_a_reload() {
    let yaml = ONE.replace("- name: a", "- name: a\n  dns: {name: a.example, port: 80}");
    let first = runtime(&yaml, None).unwrap();
    let service = &first.services[0];
    let endpoint = |address: &str| Endpoint {
        peer: None,
        address: address.parse().unwrap(),
        weight: 1,
        zone: Arc::from(""),
    };
    let answer = vec![endpoint("10.0.0.1:80"), endpoint("10.0.0.9:80")];
    assert!(service.set_resolved(answer.clone(), Nanos::ZERO));
    assert!(!service.set_resolved(answer.into_iter().rev().collect(), Nanos::ZERO));
    assert_eq!(service.endpoints.load().len(), 3);
    let second = runtime(&yaml, Some(&first)).unwrap();
    second.commit();
    assert_eq!(second.services[0].endpoints.load().len(), 3);
    let third = runtime(ONE, Some(&second)).unwrap();
    assert_eq!(second.services[0].endpoints.load().len(), 3);
    third.commit();
    assert_eq!(third.services[0].endpoints.load().len(), 2);
    // A request that has begun with an older one tries again where endpoints are now.
    assert_eq!(service.endpoints.load().len(), 2);
}

#[test]
fn all_missing_files_are_named_with_their_fields() {
    let yaml = "
listeners:
- name: web
  address: '127.0.0.1:0'
  service: a
  tls: {certificates: [{certificate: /nonexistent/c.pem, privateKey: /nonexistent/k.pem}]}
services:
- name: a
  tls: {ca: /nonexistent/ca.pem}
  endpoints: [{address: '10.0.0.1:80'}]
";
    let errors = runtime(yaml, None).unwrap_err().to_string();
    for want in [
        "listeners[0].tls.certificates[0].certificate: listener \"web\": /nonexistent/c.pem: no such file",
        "services[0].tls.ca: service \"a\": /nonexistent/ca.pem: no such file",
    ] {
        assert!(errors.contains(want), "no `{want}` in\n{errors}");
    }
}

#[test]
fn connections_are_bounded_by_the_descriptors() {
    let shared = shared(ONE);
    assert!(shared.connections_max() > 0 && shared.connections_max() < usize::MAX - 64);
    let few = ONE.replace("listeners:", "settings: {connectionsMax: 5}\nlisteners:");
    assert_eq!(self::shared(&few).connections_max(), 5);
}

//! Which routes apply to a Service's port, for whom (Gateway API for meshes,
//! GEP-1294 and GEP-1686): routes of the Service's namespace for everybody,
//! others for their own namespace only, in place of the former.

use std::collections::BTreeMap;

use weft_config::compile::compile;
use weft_config::status::{Condition, ObjectStatus};
use weft_config::wire;
use weft_config::wire::route::Kind;

use super::{Objects, PortKey, condition};
use crate::api::{Key, ParentRef, Route, Service, ServicePort, Spec};

/// Routes of each port, by the namespace they are for; empty: for everybody.
#[derive(Debug, Default)]
pub struct Routes {
    attached: BTreeMap<PortKey, BTreeMap<String, Vec<wire::Route>>>,
}

impl Routes {
    pub fn build(
        objects: &Objects,
        services: &BTreeMap<String, wire::Service>,
        statuses: &mut Vec<ObjectStatus>,
    ) -> Self {
        let mut routes = Self::default();
        for (key, object) in objects {
            let Spec::Route(route) = &object.spec else {
                continue;
            };
            let (wire, resolved) = resolve(route, services);
            for parent in &route.parents {
                if (parent.group.as_str(), parent.kind.as_str()) != ("", "Service") {
                    continue;
                }
                let accepted = routes.attach(objects, key, parent, &wire);
                statuses.push(ObjectStatus {
                    kind: key.kind.to_owned(),
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                    parent: format!("Service {}/{}", parent_namespace(key, parent), parent.name),
                    conditions: vec![accepted, resolved.clone()],
                });
            }
        }
        routes.decide_conflicts(statuses);
        routes
    }

    /// Routes that apply, with the names of all services that they need.
    pub fn of(
        &self,
        port: &PortKey,
        namespace: &str,
        listener: &str,
    ) -> (Vec<wire::Route>, Vec<String>) {
        let Some(groups) = self.attached.get(port) else {
            return Default::default();
        };
        let group = groups.get(namespace).or_else(|| groups.get(""));
        let mut routes = group.cloned().unwrap_or_default();
        let mut services = Vec::new();
        for route in &mut routes {
            route.parent_refs = vec![wire::ParentRef {
                kind: wire::parent_ref::Kind::Listener.into(),
                name: listener.to_owned(),
            }];
            for backend in named(route).filter(|backend| backend.invalid.is_empty()) {
                if !services.contains(&backend.name) {
                    services.push(backend.name.clone());
                }
            }
        }
        (routes, services)
    }

    /// Puts a route on the ports of a parent; its Accepted condition.
    fn attach(
        &mut self,
        objects: &Objects,
        key: &Key,
        parent: &ParentRef,
        wire: &wire::Route,
    ) -> Condition {
        let namespace = parent_namespace(key, parent);
        let service = Key {
            kind: "Service",
            namespace: namespace.to_owned(),
            name: parent.name.clone(),
        };
        let Some(Spec::Service(found)) = objects.get(&service).map(|object| &object.spec) else {
            let message = format!("there is no Service {namespace}/{}", parent.name);
            return condition("Accepted", false, "NoMatchingParent", &message);
        };
        if found.headless || found.external {
            let message = "headless and ExternalName Services take no routes";
            return condition("Accepted", false, "NoMatchingParent", message);
        }
        let ports = matching(found, parent);
        if ports.is_empty() {
            return condition(
                "Accepted",
                false,
                "NoMatchingParent",
                "the Service has no such port",
            );
        }
        if let Err(problem) = check(wire) {
            return condition("Accepted", false, "UnsupportedValue", &problem);
        }
        let audience = if namespace == key.namespace {
            ""
        } else {
            &key.namespace
        };
        for port in ports {
            let port = PortKey {
                namespace: namespace.to_owned(),
                name: parent.name.clone(),
                port: port.port,
            };
            let group = self.attached.entry(port).or_default();
            group
                .entry(audience.to_owned())
                .or_default()
                .push(wire.clone());
        }
        condition("Accepted", true, "Accepted", "")
    }

    /// GRPCRoute > HTTPRoute > TLSRoute > TCPRoute on one port.
    fn decide_conflicts(&mut self, statuses: &mut [ObjectStatus]) {
        let rank = |route: &wire::Route| match route.kind() {
            Kind::Grpc => 0,
            Kind::Http => 1,
            Kind::Tls => 2,
            Kind::Tcp => 3,
        };
        for (port, groups) in &mut self.attached {
            for routes in groups.values_mut() {
                let Some(best) = routes.iter().map(rank).min() else {
                    continue;
                };
                for lost in routes.iter().filter(|route| rank(route) != best) {
                    let parent = format!("Service {}/{}", port.namespace, port.name);
                    let of = statuses.iter_mut().filter(|status| {
                        status.name == lost.name
                            && status.namespace == lost.namespace
                            && status.parent == parent
                    });
                    for status in of {
                        let message = format!("{port} has routes of a kind that precedes this one");
                        if let Some(accepted) = status.conditions.first_mut() {
                            *accepted = condition("Accepted", false, "Conflicted", &message);
                        }
                    }
                }
                routes.retain(|route| rank(route) == best);
            }
        }
    }
}

fn parent_namespace<'a>(key: &'a Key, parent: &'a ParentRef) -> &'a str {
    match parent.namespace.as_str() {
        "" => &key.namespace,
        namespace => namespace,
    }
}

fn matching<'a>(service: &'a Service, parent: &ParentRef) -> Vec<&'a ServicePort> {
    let matches = |port: &&ServicePort| {
        (parent.port == 0 || parent.port == port.port)
            && (parent.section_name.is_empty() || parent.section_name == port.name)
    };
    service.ports.iter().filter(matches).collect()
}

/// Every backend that a route names, its mirrors' too.
fn named(route: &wire::Route) -> impl Iterator<Item = &wire::BackendRef> {
    route.rules.iter().flat_map(|rule| {
        let own = rule.filters.iter();
        let theirs = rule
            .backend_refs
            .iter()
            .flat_map(|backend| &backend.filters);
        let mirrors = own
            .chain(theirs)
            .filter_map(|filter| filter.request_mirror.as_ref()?.backend_ref.as_ref());
        rule.backend_refs.iter().chain(mirrors)
    })
}

/// The route with references that lead nowhere marked, and what to say of them.
fn resolve(route: &Route, services: &BTreeMap<String, wire::Service>) -> (wire::Route, Condition) {
    let mut wire = route.wire.clone();
    let mut fault: Option<(String, String)> = None;
    let mut mark = |backend: &mut wire::BackendRef| {
        if backend.invalid.is_empty() && !services.contains_key(&backend.name) {
            "BackendNotFound".clone_into(&mut backend.invalid);
        }
        if !backend.invalid.is_empty() {
            fault.get_or_insert((backend.invalid.clone(), backend.name.clone()));
        }
    };
    let mirror = |filter: &mut wire::Filter, mark: &mut dyn FnMut(&mut wire::BackendRef)| {
        let mirror = filter.request_mirror.as_mut();
        if let Some(backend) = mirror.and_then(|mirror| mirror.backend_ref.as_mut()) {
            mark(backend);
        }
    };
    for rule in &mut wire.rules {
        for filter in &mut rule.filters {
            mirror(filter, &mut mark);
        }
        for backend in &mut rule.backend_refs {
            mark(backend);
            for filter in &mut backend.filters {
                mirror(filter, &mut mark);
            }
        }
    }
    let resolved = match fault {
        None => condition("ResolvedRefs", true, "ResolvedRefs", ""),
        Some((reason, name)) => {
            let message = format!("backend {name}: its share of requests answers 500");
            condition("ResolvedRefs", false, &reason, &message)
        }
    };
    (wire, resolved)
}

/// Whether a proxy could use the route.
fn check(route: &wire::Route) -> Result<(), String> {
    let mut route = route.clone();
    route.parent_refs = vec![wire::ParentRef {
        name: "listener".to_owned(),
        ..Default::default()
    }];
    let opaque = matches!(route.kind(), Kind::Tls | Kind::Tcp);
    let protocol = match route.kind() {
        Kind::Tls => wire::listener_protocol::Value::Tls,
        Kind::Tcp => wire::listener_protocol::Value::Tcp,
        _ => wire::listener_protocol::Value::Http,
    };
    let mut services: Vec<wire::Service> = Vec::new();
    for backend in named(&route).filter(|backend| backend.invalid.is_empty()) {
        if services.iter().all(|service| service.name != backend.name) {
            let protocol = match opaque {
                true => wire::service::Protocol::Tcp,
                false => wire::service::Protocol::Mirror,
            };
            services.push(wire::Service {
                name: backend.name.clone(),
                protocol: protocol.into(),
                ..Default::default()
            });
        }
    }
    let config = wire::Config {
        listeners: vec![wire::Listener {
            name: "listener".to_owned(),
            address: "0.0.0.0:1".to_owned(),
            protocol: protocol.into(),
            role: wire::listener_role::Value::Virtual.into(),
            ..Default::default()
        }],
        services,
        routes: vec![route],
        ..Default::default()
    };
    compile(&config)
        .map(drop)
        .map_err(|errors| errors.to_string())
}

//! Which routes apply to a Service's port, for whom (Gateway API for meshes,
//! GEP-1294 and GEP-1686): routes of the Service's namespace for everybody,
//! others for their own namespace only, in place of the former.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_config::compile::compile;
use weft_config::status::{Condition, ObjectStatus};
use weft_config::wire;
use weft_config::wire::route::Kind;

use super::lookup::{Link, service_of, services};
use super::unit::Unit;
use super::{Index, Name, PortKey, Type, condition, put, said};
use crate::api::{Key, Object, ParentRef, Service, ServicePort, Spec};

/// Routes of a port by the namespace that they are for; empty: for everybody.
pub type Groups = BTreeMap<String, Vec<wire::Route>>;

/// A route with its references looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    wire: wire::Route,
    resolved: Condition,
    /// Whether a proxy could use it.
    usable: Result<(), String>,
}

impl Index {
    pub(super) fn compute_route(&mut self, key: &Key) -> Vec<ObjectStatus> {
        let object = self.objects.get(key).cloned();
        let route = object.as_ref().and_then(|object| match &object.spec {
            Spec::Route(route) => Some(route),
            _ => None,
        });
        let fresh = route.map(|route| {
            let (wire, resolved) = self.resolve(&route.wire);
            let usable = check(&wire);
            Resolved {
                wire,
                resolved,
                usable,
            }
        });
        let parents: Vec<Unit> = route
            .into_iter()
            .flat_map(|route| services(key, &route.parents))
            .map(|(name, _)| Unit::Attached(name))
            .collect();
        if put(&mut self.routes, key.clone(), fresh) {
            self.dirty.extend(parents);
        }
        Vec::new()
    }

    /// The route with references that lead nowhere marked, and what to say of them.
    fn resolve(&self, route: &wire::Route) -> (wire::Route, Condition) {
        let mut wire = route.clone();
        let mut fault: Option<(String, String)> = None;
        for_backends(&mut wire, &mut |backend| {
            if backend.invalid.is_empty() {
                let port = backend
                    .name
                    .rsplit_once(':')
                    .and_then(|(_, of)| of.parse().ok());
                let found = service_of(&backend.name)
                    .zip(port)
                    .map_or(Some("BackendNotFound"), |(name, port)| {
                        self.backend_fault(&name, port)
                    });
                found.unwrap_or_default().clone_into(&mut backend.invalid);
            }
            if !backend.invalid.is_empty() {
                fault.get_or_insert((backend.invalid.clone(), backend.name.clone()));
            }
        });
        let resolved = match fault {
            None => condition("ResolvedRefs", true, "ResolvedRefs", ""),
            Some((reason, name)) => {
                let message = format!("backend {name}: its share of requests answers 500");
                condition("ResolvedRefs", false, &reason, &message)
            }
        };
        (wire, resolved)
    }

    pub(super) fn compute_attached(&mut self, name: &Name) -> Vec<ObjectStatus> {
        let service = self.service_object(name).map(|(_, service)| service);
        let mut attaching = Attaching {
            name,
            service: service.as_ref(),
            groups: BTreeMap::new(),
        };
        let routes: Vec<(Key, Arc<Object>)> = self
            .referring(&Link::Parent(name.clone()))
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect();
        let mut attempts = Vec::new();
        for (key, object) in &routes {
            let (Spec::Route(route), Some(resolved)) = (&object.spec, self.routes.get(key)) else {
                continue;
            };
            for (parent_name, parent) in services(key, &route.parents) {
                if parent_name == *name {
                    let ports = attaching.attach(key, parent, resolved);
                    attempts.push((key, object, parent, resolved.resolved.clone(), ports));
                }
            }
        }
        let losers = attaching.decide_conflicts();
        let mut statuses = Vec::new();
        for (key, object, parent, resolved, ports) in attempts {
            let accepted =
                ports.map_or_else(|refused| refused, |ports| verdict(key, &ports, &losers));
            let of = parent_text(name, parent);
            statuses.push(said((key, object), of, vec![accepted, resolved]));
        }
        let groups = std::mem::take(&mut attaching.groups);
        self.exchange_attached(name, groups);
        statuses
    }

    fn exchange_attached(&mut self, name: &Name, mut fresh: BTreeMap<PortKey, Groups>) {
        let old = self.ports_attached(name);
        let ports: BTreeSet<PortKey> = old.into_iter().chain(fresh.keys().cloned()).collect();
        for port in ports {
            let groups = fresh.remove(&port);
            if put(&mut self.attached, port.clone(), groups) {
                let names = self.names.get(&port).into_iter().flatten();
                let names = names.map(|name| (Type::Destination, name.clone()));
                self.touched.extend(names);
            }
        }
    }
}

/// Routes that apply, with the names of all services that they need.
pub fn of(groups: &Groups, namespace: &str, listener: &str) -> (Vec<wire::Route>, Vec<String>) {
    let group = groups.get(namespace).or_else(|| groups.get(""));
    let mut routes = group.cloned().unwrap_or_default();
    let mut services = Vec::new();
    for route in &mut routes {
        route.parent_refs = vec![wire::ParentRef {
            kind: wire::parent_ref::Kind::Listener.into(),
            name: listener.to_owned(),
        }];
        for backend in backends(route).filter(|backend| backend.invalid.is_empty()) {
            if !services.contains(&backend.name) {
                services.push(backend.name.clone());
            }
        }
    }
    (routes, services)
}

/// Routes on their way to the ports of one service.
struct Attaching<'a> {
    name: &'a Name,
    service: Option<&'a Service>,
    groups: BTreeMap<PortKey, Groups>,
}

impl Attaching<'_> {
    /// Puts a route on the ports of a parent; which, or why on none.
    fn attach(
        &mut self,
        key: &Key,
        parent: &ParentRef,
        route: &Resolved,
    ) -> Result<Vec<PortKey>, Condition> {
        let refused = |reason: &str, message: &str| condition("Accepted", false, reason, message);
        let name = self.name;
        let Some(service) = self.service else {
            let message = format!("there is no Service {name}");
            return Err(refused("NoMatchingParent", &message));
        };
        if !service.takes_routes() {
            let message = "headless and ExternalName Services take no routes";
            return Err(refused("NoMatchingParent", message));
        }
        let ports = matching(service, parent);
        if ports.is_empty() {
            let message = "the Service has no such port";
            return Err(refused("NoMatchingParent", message));
        }
        if let Err(problem) = &route.usable {
            return Err(refused("UnsupportedValue", problem));
        }
        let audience = match name.namespace == key.namespace {
            true => "",
            false => &key.namespace,
        };
        let ports: Vec<PortKey> = ports.iter().map(|port| name.port(port.port)).collect();
        for port in &ports {
            let groups = self.groups.entry(port.clone()).or_default();
            let group = groups.entry(audience.to_owned()).or_default();
            // Two parentRefs may meet at one port.
            if !group.contains(&route.wire) {
                group.push(route.wire.clone());
            }
        }
        Ok(ports)
    }

    /// GRPCRoute > HTTPRoute > TLSRoute > TCPRoute on one port; who lost where.
    fn decide_conflicts(&mut self) -> BTreeSet<(Key, PortKey)> {
        let mut losers = BTreeSet::new();
        for (port, groups) in &mut self.groups {
            for routes in groups.values_mut() {
                let best = routes.iter().map(rank).min();
                routes.retain(|route| {
                    let stays = Some(rank(route)) == best;
                    if !stays {
                        losers.insert((key_of(route), port.clone()));
                    }
                    stays
                });
            }
        }
        losers
    }
}

fn rank(route: &wire::Route) -> u8 {
    match route.kind() {
        Kind::Grpc => 0,
        Kind::Http => 1,
        Kind::Tls => 2,
        Kind::Tcp => 3,
    }
}

fn key_of(route: &wire::Route) -> Key {
    Key {
        kind: crate::api::route_kind(route.kind()),
        namespace: route.namespace.clone(),
        name: route.name.clone(),
    }
}

/// The Accepted condition of a route that has been put on these ports.
fn verdict(key: &Key, ports: &[PortKey], losers: &BTreeSet<(Key, PortKey)>) -> Condition {
    let lost: Vec<String> = ports
        .iter()
        .filter(|port| losers.contains(&(key.clone(), (*port).clone())))
        .map(ToString::to_string)
        .collect();
    let message = match lost.is_empty() {
        true => String::new(),
        false => format!(
            "{} has routes of a kind that precedes this one",
            lost.join(", ")
        ),
    };
    match lost.len() == ports.len() {
        true => condition("Accepted", false, "Conflicted", &message),
        false => condition("Accepted", true, "Accepted", &message),
    }
}

/// A parentRef as a person reads it; `name`: the Service that it means.
pub fn parent_text(name: &Name, parent: &ParentRef) -> String {
    let mut text = format!("Service {name}");
    if parent.port != 0 {
        text.push_str(&format!(":{}", parent.port));
    }
    if !parent.section_name.is_empty() {
        text.push_str(&format!("#{}", parent.section_name));
    }
    text
}

fn matching<'a>(service: &'a Service, parent: &ParentRef) -> Vec<&'a ServicePort> {
    let matches = |port: &&ServicePort| {
        (parent.port == 0 || parent.port == port.port)
            && (parent.section_name.is_empty() || parent.section_name == port.name)
    };
    service.ports.iter().filter(matches).collect()
}

/// Every backend that a route names, its mirrors' too.
pub fn backends(route: &wire::Route) -> impl Iterator<Item = &wire::BackendRef> {
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

/// The same, to be changed.
fn for_backends(route: &mut wire::Route, each: &mut dyn FnMut(&mut wire::BackendRef)) {
    fn mirrors(filters: &mut [wire::Filter], each: &mut dyn FnMut(&mut wire::BackendRef)) {
        let mirrors = filters
            .iter_mut()
            .filter_map(|of| of.request_mirror.as_mut());
        mirrors
            .filter_map(|mirror| mirror.backend_ref.as_mut())
            .for_each(each);
    }
    for rule in &mut route.rules {
        mirrors(&mut rule.filters, each);
        for backend in &mut rule.backend_refs {
            each(backend);
            mirrors(&mut backend.filters, each);
        }
    }
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
    for backend in backends(&route).filter(|backend| backend.invalid.is_empty()) {
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

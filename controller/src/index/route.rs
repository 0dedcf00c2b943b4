//! What a route's references lead to, and which routes apply to a Service's port, for whom
//! (Gateway API for meshes, GEP-1294 and GEP-1686): routes of the Service's namespace for
//! everybody, others for their own namespace only, in place of the former.

use std::collections::{BTreeMap, HashSet};

use weft_config::status::{Condition, ObjectStatus};
use weft_config::wire;
use weft_config::wire::route::Kind;

use super::lookup::{service_of, services};
use super::rules::{Usable, usable};
use super::unit::Unit;
use super::{Index, Name, condition, put};
use crate::api::{Key, ParentRef, Spec};

/// Routes of a port by the namespace that they are for; empty: for everybody.
pub type Groups = BTreeMap<String, Vec<wire::Route>>;

/// A route with its references looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// What is left of it: of a bad rule at most the error that its requests get.
    pub(super) wire: wire::Route,
    pub(super) resolved: Condition,
    pub(super) usable: Usable,
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
            let before = self.routes.get(key).filter(|before| {
                before.usable == Usable::Whole
                    && before.wire == wire
                    && route.unsupported.is_empty()
            });
            let (wire, usable) = match before {
                Some(_) => (wire, Usable::Whole),
                None => usable(wire, &route.unsupported),
            };
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
        let kind = route.kind();
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
                        self.backend_fault(&name, port, kind)
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
}

/// Routes that apply, with the names of all services that they need.
pub fn of(groups: &Groups, namespace: &str, listener: &str) -> (Vec<wire::Route>, Vec<String>) {
    let group = groups.get(namespace).or_else(|| groups.get(""));
    let mut routes = group.cloned().unwrap_or_default();
    let (mut services, mut known) = (Vec::new(), HashSet::new());
    for route in &mut routes {
        route.parent_refs = vec![wire::ParentRef {
            kind: wire::parent_ref::Kind::Listener.into(),
            name: listener.to_owned(),
        }];
        for backend in backends(route).filter(|backend| backend.invalid.is_empty()) {
            if known.insert(backend.name.clone()) {
                services.push(backend.name.clone());
            }
        }
    }
    (routes, services)
}

/// A port with a TCPRoute carries bytes, whatever is declared.
pub fn listen(listener: &mut wire::Listener, routes: &[wire::Route]) {
    if routes.iter().any(|route| route.kind() == Kind::Tcp) {
        listener.set_protocol(wire::listener_protocol::Value::Tcp);
        listener.http = None;
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

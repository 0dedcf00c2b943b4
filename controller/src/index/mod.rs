//! Objects in, what each proxy needs out. Pure: the same objects give the same
//! resources, in whatever order they come.
//!
//! What is computed is cut into units, each of a few objects. A change dirties the
//! units that its object is in, and a unit whose result changes dirties only units
//! of later kinds, so that it ends:
//!
//! ```text
//! Service, TrafficPolicy ─▶ Ports ─┬─▶ Address
//!                                  ├─▶ Route ─▶ Attached
//!                                  └─▶ Endpoints ─▶ Direct
//! EndpointSlice, Pod, who leaves ──────┘  └───────▶ Workload
//! AuthorizationPolicy, WorkloadPolicy ─▶ Authorization, Policies      XMesh ─▶ Mesh
//! ```
//!
//! **Invariant:** the cost of a change follows what it touches, not what there is.
//! **Invariant:** every resource that a change makes, alters or removes is named by
//! what `apply` returns.

mod attach;
mod endpoints;
mod lookup;
mod mesh;
mod policy;
mod resource;
mod route;
mod rules;
mod said;
mod service;
mod set;
mod unit;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_config::status::{Condition, ObjectStatus};
use weft_config::wire;
use weft_config::wire::listener_protocol::Value;

use crate::api::{Key, Object, Spec};
pub use lookup::service_name;
use lookup::{Link, links};
pub use policy::check as check_rules;
pub use resource::{Touched, Type};
pub use route::parent_text;
use said::Said;
use set::Set;
use unit::Unit;

pub type Objects = BTreeMap<Key, Arc<Object>>;

/// An object is there, is different, or (`None`) is gone.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: Key,
    pub object: Option<Arc<Object>>,
}

/// A service, which need not exist.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn key(&self) -> Key {
        Key {
            kind: "Service",
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    fn port(&self, port: u16) -> PortKey {
        PortKey {
            namespace: self.namespace.as_str().into(),
            name: self.name.as_str().into(),
            port,
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A service's port: what endpoints and routes belong to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    /// Shared: every endpoint has some of these.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: u16,
}

impl std::fmt::Display for PortKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

/// All objects, and everything that can be asked for.
#[derive(Debug, Default)]
pub struct Index {
    trust_domain: String,
    objects: Objects,
    /// Who refers to what.
    referring: BTreeMap<Link, Set<Arc<Key>>>,
    /// UIDs of workloads that are on their way out.
    leaving: BTreeSet<String>,
    dirty: BTreeSet<Unit>,
    touched: Touched,
    said: Said,

    services: BTreeMap<String, wire::Service>,
    endpoints: BTreeMap<String, wire::Endpoints>,
    /// What each was, as a hash: it is made when it is asked for.
    workloads: BTreeMap<String, u64>,
    /// What is dialled, and the listener behind it.
    destinations: BTreeMap<String, (PortKey, wire::Listener)>,
    /// By which names a port is dialled.
    names: BTreeMap<PortKey, BTreeSet<String>>,
    /// Endpoints that are dialled themselves; their resources are made when they are asked for.
    direct: BTreeMap<SocketAddr, endpoints::Directs>,

    /// What the services have said of themselves.
    ports: BTreeMap<Name, service::Ports>,
    claims: BTreeMap<SocketAddr, BTreeSet<service::Claim>>,
    found: BTreeMap<Name, endpoints::Found>,
    /// The ports of each workload that services name.
    uses: BTreeMap<String, Set<Arc<endpoints::Use>>>,
    routes: BTreeMap<Key, route::Resolved>,
    attached: BTreeMap<PortKey, route::Groups>,
    /// WorkloadPolicies of a namespace that are in force, what counts first before the rest.
    policies: BTreeMap<String, Vec<Arc<Object>>>,
    authorizations: BTreeMap<Key, wire::AuthorizationRules>,
}

impl Index {
    pub fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            ..Self::default()
        }
    }

    /// Takes up changes; the resources that are not what they were.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Touched {
        for Change { key, object } in changes {
            self.change(key, object);
        }
        self.settle()
    }

    /// Takes a workload out of rotation, until its pod is gone or it returns.
    pub fn leave(&mut self, uid: &str) -> Touched {
        let known = self.referring.contains_key(&Link::PodOfUid(uid.to_owned()));
        if known && self.leaving.insert(uid.to_owned()) {
            self.dirty_services_of(uid);
        }
        self.settle()
    }

    /// A workload that had left begins anew.
    pub fn returned(&mut self, uid: &str) -> Touched {
        if self.leaving.remove(uid) {
            self.dirty_services_of(uid);
        }
        self.settle()
    }

    fn dirty_services_of(&mut self, uid: &str) {
        let uses = self.uses.get(uid).into_iter().flat_map(Set::iter);
        let services = uses.map(|of| Name::new(&of.port.namespace, &of.port.name));
        self.dirty.extend(services.map(Unit::Endpoints));
    }

    fn change(&mut self, key: Key, object: Option<Arc<Object>>) {
        let old = self.objects.remove(&key);
        if old == object {
            if let Some(object) = object {
                self.objects.insert(key, object);
            }
            return;
        }
        if let Some(old) = &old {
            self.dirty_of(&key, old);
        }
        self.relink(&key, old.as_deref(), object.as_deref());
        if let Some(new) = object {
            self.dirty_of(&key, &new);
            self.objects.insert(key, new);
        }
        if let Some(Spec::Pod(pod)) = old.as_ref().map(|old| &old.spec)
            && !self
                .referring
                .contains_key(&Link::PodOfUid(pod.uid.clone()))
        {
            self.leaving.remove(&pod.uid);
        }
    }

    /// Most changes leave an object's links as they were.
    fn relink(&mut self, key: &Key, old: Option<&Object>, new: Option<&Object>) {
        let of = |object: Option<&Object>| -> BTreeSet<Link> {
            let links = object.map(|object| links(key, object));
            links.into_iter().flatten().collect()
        };
        let (old, new) = (of(old), of(new));
        let shared = Arc::new(key.clone());
        for link in old.difference(&new) {
            let of = self.referring.get_mut(link);
            if of.is_some_and(|of| of.remove(&shared) && of.is_empty()) {
                self.referring.remove(link);
            }
        }
        for link in new.difference(&old) {
            let of = self.referring.entry(link.clone()).or_default();
            of.insert(Arc::clone(&shared));
        }
    }

    /// Computes what is dirty.
    fn settle(&mut self) -> Touched {
        while let Some(unit) = self.dirty.pop_first() {
            let said = self.compute(&unit);
            self.said.put(unit, said);
        }
        std::mem::take(&mut self.touched)
    }

    fn touch(&mut self, kind: Type, name: &str) {
        self.touched.insert((kind, name.to_owned()));
    }

    /// Gives a name to dial to a port, or takes it away.
    fn name(&mut self, name: &str, to: Option<(PortKey, wire::Listener)>) {
        let port = to.as_ref().map(|(port, _)| port.clone());
        let old = self.destinations.get(name).map(|(port, _)| port.clone());
        if !put(&mut self.destinations, name.to_owned(), to) {
            return;
        }
        self.touch(Type::Destination, name);
        if let Some(old) = old
            && let Some(names) = self.names.get_mut(&old)
        {
            names.remove(name);
            if names.is_empty() {
                self.names.remove(&old);
            }
        }
        if let Some(port) = port {
            self.names.entry(port).or_default().insert(name.to_owned());
        }
    }
}

/// What can be asked for.
impl Index {
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    pub fn service(&self, name: &str) -> Option<Cow<'_, wire::Service>> {
        if let Some(service) = self.services.get(name) {
            return Some(Cow::Borrowed(service));
        }
        self.direct(name).map(|of| Cow::Owned(of.service(name)))
    }

    pub fn endpoints(&self, name: &str) -> Option<Cow<'_, wire::Endpoints>> {
        if let Some(endpoints) = self.endpoints.get(name) {
            return Some(Cow::Borrowed(endpoints));
        }
        self.direct(name).map(|of| Cow::Owned(of.endpoints(name)))
    }

    pub fn workload(&self, uid: &str) -> Option<wire::Workload> {
        let (key, pod) = self.pod(uid).filter(|(_, pod)| pod.inbound.is_some())?;
        Some(self.workload_of(key, pod))
    }

    /// Whether some service still has a workload that leaves, for want of any other.
    pub fn needs(&self, uid: &str) -> bool {
        let mut uses = self.uses.get(uid).into_iter().flat_map(Set::iter);
        uses.any(|of| self.lists(&of.port.to_string(), uid))
    }

    /// Names of the Endpoints that a workload is among, or would be.
    pub fn services_of(&self, uid: &str) -> BTreeSet<String> {
        let uses = self.uses.get(uid).into_iter().flat_map(Set::iter);
        uses.flat_map(|of| [of.port.to_string(), endpoints::direct_name(uid, of.address)])
            .collect()
    }

    /// Those of them that it is among as it stands.
    pub fn listing(&self, uid: &str) -> BTreeSet<String> {
        let mut names = self.services_of(uid);
        names.retain(|name| self.lists(name, uid));
        names
    }

    /// Whether a workload is among these Endpoints.
    fn lists(&self, endpoints: &str, uid: &str) -> bool {
        let listed = self.endpoints(endpoints);
        listed.is_some_and(|of| of.endpoints.iter().any(|of| of.workload == uid))
    }

    pub fn is_leaving(&self, uid: &str) -> bool {
        self.leaving.contains(uid)
    }

    /// The namespace that `destination` differs for, or empty: it is everybody's.
    pub fn audience<'a>(&self, namespace: &'a str, name: &str) -> &'a str {
        let groups = self
            .destinations
            .get(name)
            .and_then(|(port, _)| self.attached.get(port));
        match groups.is_some_and(|groups| groups.contains_key(namespace)) {
            true => namespace,
            false => "",
        }
    }

    /// What dialling `name` means to workloads of `namespace`.
    pub fn destination(&self, namespace: &str, name: &str) -> Option<wire::Destination> {
        if let Some((port, listener)) = self.destinations.get(name) {
            let mut listener = listener.clone();
            listener.destination = name.to_owned();
            let groups = self.attached.get(port);
            let (routes, mut services) = groups
                .map(|groups| route::of(groups, namespace, &listener.name))
                .unwrap_or_default();
            route::listen(&mut listener, &routes);
            // What the routes are not about goes where it would without them: on a port that
            // declares nothing, connections that are not HTTP.
            if routes.is_empty() || listener.protocol() == Value::Auto {
                listener.service = port.to_string();
                if !services.contains(&listener.service) {
                    services.push(listener.service.clone());
                }
            }
            return Some(wire::Destination {
                listener: Some(listener),
                routes,
                services,
            });
        }
        let service = self.dialled_direct(name)?;
        Some(wire::Destination {
            listener: Some(wire::Listener {
                destination: name.to_owned(),
                service: service.clone(),
                ..service::listener(name, name, "")
            }),
            routes: Vec::new(),
            services: vec![service],
        })
    }

    /// What is to be said of objects, in order of kind and name.
    pub fn statuses(&self) -> Vec<ObjectStatus> {
        let mut all: Vec<ObjectStatus> = self.said.all().cloned().collect();
        let order = |a: &ObjectStatus| {
            (
                a.kind.clone(),
                a.namespace.clone(),
                a.name.clone(),
                a.parent.clone(),
            )
        };
        all.sort_by_cached_key(order);
        all
    }
}

/// Puts or removes a value; whether that changed anything.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: 0,
    }
}

/// What is said of an object, of the generation that it has.
fn said(
    (key, object): (&Key, &Object),
    parent: String,
    mut conditions: Vec<Condition>,
) -> ObjectStatus {
    for condition in &mut conditions {
        condition.observed_generation = object.generation;
    }
    ObjectStatus {
        kind: key.kind.to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        parent,
        conditions,
    }
}

#[cfg(test)]
mod tests;

//! Which objects refer to which, so that a change finds whom it concerns.

use std::sync::Arc;

use super::set::Set;
use super::{Index, Name, PortKey};
use crate::api::{Key, Object, ParentRef, Pod, Service, Spec};

/// What an object refers to, or is looked up by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// From a pod: its UID.
    PodOfUid(String),
    /// From a pod: where it runs.
    OnNode(String),
    /// From a slice.
    SliceOf(Name),
    /// From a slice: the pods of its endpoints, by UID or (where there is none) by name.
    EndpointUid(String),
    EndpointPod(Name),
    /// From a route.
    Parent(Name),
    Backend(Name),
    /// From policies: their targets.
    Traffic(Name),
    Authorized(Name),
}

pub fn links(key: &Key, object: &Object) -> Vec<Link> {
    let local = |name: &str| Name::new(&key.namespace, name);
    match &object.spec {
        Spec::Pod(pod) => {
            let node = (!pod.node.is_empty()).then(|| Link::OnNode(pod.node.clone()));
            let uid = Link::PodOfUid(pod.uid.clone());
            std::iter::once(uid).chain(node).collect()
        }
        Spec::Slice(slice) => {
            let pods = slice.endpoints.iter().filter_map(|of| of.pod.as_ref());
            let pods = pods.map(|(name, uid)| match uid.as_str() {
                "" => Link::EndpointPod(local(name)),
                uid => Link::EndpointUid(uid.to_owned()),
            });
            let of = Link::SliceOf(local(&slice.service));
            std::iter::once(of).chain(pods).collect()
        }
        Spec::Route(route) => {
            let parents = services(key, &route.parents).map(|(name, _)| Link::Parent(name));
            let backends = super::route::backends(&route.wire)
                .filter_map(|backend| service_of(&backend.name).map(Link::Backend));
            parents.chain(backends).collect()
        }
        Spec::Traffic(policy) => {
            let targets = policy.targets.iter().filter(|of| of.kind == "Service");
            targets.map(|of| Link::Traffic(local(&of.name))).collect()
        }
        Spec::Authorization(policy) => {
            let targets = policy.targets.iter().filter(|of| of.kind == "Service");
            targets
                .map(|of| Link::Authorized(local(&of.name)))
                .collect()
        }
        Spec::Service(_)
        | Spec::Workload(_)
        | Spec::Namespace
        | Spec::Node(_)
        | Spec::Mesh(_)
        | Spec::ReferenceGrant(_) => Vec::new(),
    }
}

/// The Services among a route's parents.
pub fn services<'a>(
    key: &'a Key,
    parents: &'a [ParentRef],
) -> impl Iterator<Item = (Name, &'a ParentRef)> {
    parents
        .iter()
        .filter(|parent| (parent.group.as_str(), parent.kind.as_str()) == ("", "Service"))
        .map(|parent| (service_name(&key.namespace, parent), parent))
}

/// The Service that a parentRef of a route in `namespace` means.
pub fn service_name(namespace: &str, parent: &ParentRef) -> Name {
    match parent.namespace.as_str() {
        "" => Name::new(namespace, &parent.name),
        other => Name::new(other, &parent.name),
    }
}

/// The service of a backend, which is named `namespace/name:port`.
pub fn service_of(backend: &str) -> Option<Name> {
    let (namespace, rest) = backend.split_once('/')?;
    let (name, _) = rest.rsplit_once(':')?;
    Some(Name::new(namespace, name))
}

impl Index {
    pub(super) fn referring(&self, link: &Link) -> impl Iterator<Item = (&Key, &Arc<Object>)> {
        let keys = self.referring.get(link).into_iter().flat_map(Set::iter);
        keys.filter_map(|key| self.objects.get_key_value(key))
    }

    /// The objects of a kind in a namespace.
    pub(super) fn within<'a>(
        &'a self,
        kind: &'static str,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Object>)> {
        let first = Key {
            kind,
            namespace: namespace.to_owned(),
            name: String::new(),
        };
        self.objects
            .range(first..)
            .take_while(move |(key, _)| key.kind == kind && key.namespace == namespace)
    }

    pub(super) fn pod(&self, uid: &str) -> Option<(&Key, &Pod)> {
        let link = Link::PodOfUid(uid.to_owned());
        self.referring(&link)
            .find_map(|(key, object)| match &object.spec {
                Spec::Pod(pod) if !uid.is_empty() => Some((key, pod)),
                _ => None,
            })
    }

    /// Empty: not known.
    pub(super) fn zone_of(&self, pod: &Pod) -> &str {
        let key = Key {
            kind: "Node",
            namespace: String::new(),
            name: pod.node.clone(),
        };
        match self.objects.get(&key).map(|object| &object.spec) {
            Some(Spec::Node(node)) => &node.zone,
            _ => "",
        }
    }

    pub(super) fn pod_named(&self, name: &Name) -> Option<(&Key, &Pod)> {
        let key = Key {
            kind: "Pod",
            ..name.key()
        };
        let (key, object) = self.objects.get_key_value(&key)?;
        match &object.spec {
            Spec::Pod(pod) => Some((key, pod)),
            _ => None,
        }
    }

    /// A service that is not another name for something outside.
    pub(super) fn service_object(&self, name: &Name) -> Option<(Arc<Object>, Service)> {
        let object = self.objects.get(&name.key())?;
        match &object.spec {
            Spec::Service(service) => Some((Arc::clone(object), service.clone())),
            _ => None,
        }
    }

    pub(super) fn ports_attached(&self, name: &Name) -> Vec<PortKey> {
        let ports = self.attached.range(name.port(0)..=name.port(u16::MAX));
        ports.map(|(port, _)| port.clone()).collect()
    }
}

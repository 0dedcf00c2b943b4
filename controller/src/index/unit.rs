//! What is computed together, what dirties it, and in which order it is done.

use std::net::SocketAddr;

use weft_config::status::ObjectStatus;

use super::lookup::{Link, services};
use super::{Index, Name, policy};
use crate::api::{Key, Object, Selector, Spec};

/// In order of computation: each needs results of former ones only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// A service's ports: how they are called, by which names and addresses.
    Ports(Name),
    /// Who has an address.
    Address(SocketAddr),
    /// A service's endpoints.
    Endpoints(Name),
    /// An endpoint that is dialled itself.
    Direct(SocketAddr),
    /// A route with its references looked up.
    Route(Key),
    /// The routes of a service's ports.
    Attached(Name),
    /// A TrafficPolicy's references.
    Traffic(Key),
    Authorization(Key),
    /// A namespace's WorkloadPolicies.
    Policies(String),
    Workload(String),
    Mesh(Key),
}

impl Index {
    pub(super) fn compute(&mut self, unit: &Unit) -> Vec<ObjectStatus> {
        match unit {
            Unit::Ports(name) => self.compute_ports(name),
            Unit::Address(address) => self.compute_address(*address),
            Unit::Endpoints(name) => self.compute_endpoints(name),
            Unit::Direct(address) => self.compute_direct(*address),
            Unit::Route(key) => self.compute_route(key),
            Unit::Attached(name) => self.compute_attached(name),
            Unit::Traffic(key) => self.compute_traffic(key),
            Unit::Authorization(key) => self.compute_authorization(key),
            Unit::Policies(namespace) => self.compute_policies(namespace),
            Unit::Workload(uid) => self.compute_workload(uid),
            Unit::Mesh(key) => self.compute_mesh(key),
        }
    }

    /// Dirties the units that an object is in, or was.
    pub(super) fn dirty_of(&mut self, key: &Key, object: &Object) {
        let local = |name: &str| Name::new(&key.namespace, name);
        let units: Vec<Unit> = match &object.spec {
            Spec::Service(_) => vec![Unit::Ports(local(&key.name))],
            Spec::Slice(slice) => vec![Unit::Endpoints(local(&slice.service))],
            Spec::Pod(pod) => {
                let uid = Link::EndpointUid(pod.uid.clone());
                let name = Link::EndpointPod(local(&key.name));
                let slices = self.referring(&uid).chain(self.referring(&name));
                let services = slices.filter_map(|(key, slice)| match &slice.spec {
                    Spec::Slice(slice) => Some(Name::new(&key.namespace, &slice.service)),
                    _ => None,
                });
                let own = Unit::Workload(pod.uid.clone());
                services.map(Unit::Endpoints).chain([own]).collect()
            }
            Spec::Route(route) => services(key, &route.parents)
                .map(|(name, _)| Unit::Attached(name))
                .chain([Unit::Route(key.clone())])
                .collect(),
            Spec::Authorization(policy) => {
                let mut units = self.workloads_of(&key.namespace, policy.selector.as_ref());
                units.push(Unit::Authorization(key.clone()));
                units
            }
            Spec::Workload(policy) => {
                let mut units = self.workloads_of(&key.namespace, policy.selector.as_ref());
                units.push(Unit::Policies(key.namespace.clone()));
                units
            }
            Spec::Traffic(policy) => {
                let targets = policy.targets.iter();
                targets
                    .map(|of| Unit::Ports(local(&of.name)))
                    .chain([Unit::Traffic(key.clone())])
                    .collect()
            }
            Spec::Node(_) => {
                let here = Link::OnNode(key.name.clone());
                let uids = self
                    .referring(&here)
                    .filter_map(|(_, object)| match &object.spec {
                        Spec::Pod(pod) => Some(pod.uid.clone()),
                        _ => None,
                    });
                uids.map(Unit::Workload).collect()
            }
            Spec::Mesh(_) => vec![Unit::Mesh(key.clone())],
            Spec::Namespace | Spec::ReferenceGrant(_) => Vec::new(),
        };
        self.dirty.extend(units);
    }

    /// The workloads that a policy of a namespace is about.
    fn workloads_of(&self, namespace: &str, selector: Option<&Selector>) -> Vec<Unit> {
        self.within("Pod", namespace)
            .filter_map(|(_, object)| match &object.spec {
                Spec::Pod(pod) if policy::selects(selector, pod) => {
                    Some(Unit::Workload(pod.uid.clone()))
                }
                _ => None,
            })
            .collect()
    }
}

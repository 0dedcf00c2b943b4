//! A service's endpoints, from its slices and the pods behind them.
//!
//! **Invariant:** an endpoint that names a pod is that pod or none: where the pod is
//! gone, or another has its address, it is left out and never called in plain text.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_config::spiffe::SpiffeId;
use weft_config::status::ObjectStatus;
use weft_config::wire;

use super::lookup::Link;
use super::unit::Unit;
use super::{Index, Name, PortKey, Type, condition, put, said};
use crate::api::{Key, Object, Pod, Service, ServicePort, Slice, SliceEndpoint, Spec};

/// What a service's slices have said.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    ports: BTreeMap<PortKey, wire::Endpoints>,
    direct: BTreeMap<(SocketAddr, PortKey), Arc<Direct>>,
    uses: BTreeSet<(String, Arc<Use>)>,
}

/// An endpoint of the mesh, as one that is dialled by its own address.
#[derive(Clone, Debug, PartialEq)]
pub struct Direct {
    endpoint: wire::Endpoint,
    opaque: bool,
}

/// Who would be dialled at an address, in order of precedence, and who was told to be.
#[derive(Debug, Default)]
pub struct Directs {
    claims: Vec<(PortKey, Arc<Direct>)>,
    published: Option<Arc<Direct>>,
}

impl Direct {
    fn name(&self, address: SocketAddr) -> String {
        direct_name(&self.endpoint.workload, address)
    }

    pub fn service(&self, name: &str) -> wire::Service {
        let protocol = match self.opaque {
            true => wire::service::Protocol::Tcp,
            false => wire::service::Protocol::Mirror,
        };
        wire::Service {
            name: name.to_owned(),
            protocol: protocol.into(),
            ..Default::default()
        }
    }

    pub fn endpoints(&self, name: &str) -> wire::Endpoints {
        wire::Endpoints {
            service: name.to_owned(),
            endpoints: vec![self.endpoint.clone()],
        }
    }
}

/// A workload's port that a service names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub port: PortKey,
    pub address: SocketAddr,
    pub protocol: String,
}

/// The resources of an endpoint that is dialled itself.
pub fn direct_name(uid: &str, address: SocketAddr) -> String {
    format!("{uid}@{address}")
}

/// An endpoint and the name of its pod, where it has one.
type Candidates = BTreeMap<SocketAddr, (wire::Endpoint, Option<String>)>;

/// An endpoint with the pod behind it.
type Behind<'a> = (SocketAddr, wire::Endpoint, Option<(&'a Key, &'a Pod)>);

impl Index {
    pub(super) fn compute_endpoints(&mut self, name: &Name) -> Vec<ObjectStatus> {
        let mut fresh = Found::default();
        let mut lost = BTreeMap::new();
        if let Some((_, service)) = self.service_object(name)
            && !service.external
        {
            let slices: Vec<(Key, Arc<Object>)> = self
                .referring(&Link::SliceOf(name.clone()))
                .map(|(key, object)| (key.clone(), Arc::clone(object)))
                .collect();
            for port in &service.ports {
                let key = name.port(port.port);
                let all = self.candidates((&service, port), &key, &slices, &mut fresh);
                let endpoints = wire::Endpoints {
                    service: key.to_string(),
                    endpoints: all,
                };
                fresh.ports.insert(key, endpoints);
            }
            for (key, slice) in &slices {
                lost.extend(self.lost(key, slice));
            }
        }
        self.exchange_found(name, fresh);
        lost.into_values().collect()
    }

    /// Ready endpoints of a port; where there are none, those that still serve.
    fn candidates(
        &self,
        (service, port): (&Service, &ServicePort),
        key: &PortKey,
        slices: &[(Key, Arc<Object>)],
        found: &mut Found,
    ) -> Vec<wire::Endpoint> {
        let (mut ready, mut serving) = (Candidates::new(), Candidates::new());
        for (slice_key, number, endpoint) in of_port(slices, &port.name) {
            let Some((address, wire, pod)) = self.endpoint(slice_key, endpoint, number) else {
                continue;
            };
            if !wire.workload.is_empty() {
                let used = Use {
                    port: key.clone(),
                    address,
                    protocol: port.protocol.clone(),
                };
                found.uses.insert((wire.workload.clone(), Arc::new(used)));
                let direct = Direct {
                    endpoint: wire.clone(),
                    opaque: matches!(port.protocol.as_str(), "tcp" | "tls"),
                };
                found
                    .direct
                    .insert((address, key.clone()), Arc::new(direct));
            }
            let leaving = endpoint.terminating
                || pod.is_some_and(|(_, pod)| pod.is_leaving)
                || self.leaving.contains(&wire.workload);
            let pod = pod.map(|(of, _)| of.name.clone());
            if (endpoint.ready || service.publish_not_ready) && !leaving {
                ready.insert(address, (wire, pod));
            } else if endpoint.serving || endpoint.ready || service.publish_not_ready {
                serving.insert(address, (wire, pod));
            }
        }
        let chosen = if ready.is_empty() { serving } else { ready };
        one_family(chosen, service.prefers_ipv6)
    }

    /// `None`: it has no address, or its pod is not there any more.
    fn endpoint(&self, slice: &Key, endpoint: &SliceEndpoint, port: u16) -> Option<Behind<'_>> {
        let address = SocketAddr::from((*endpoint.addresses.first()?, port));
        let mut wire = wire::Endpoint {
            address: address.to_string(),
            zone: endpoint.zone.clone(),
            ..Default::default()
        };
        let Some(named) = &endpoint.pod else {
            return Some((address, wire, None));
        };
        let (of, pod) = self.pod_of(slice, endpoint, named)?;
        if let Some(inbound) = &pod.inbound
            && let Ok(id) = SpiffeId::new(&self.trust_domain, &of.namespace, &pod.account)
        {
            wire.identity = id.to_string();
            wire.workload.clone_from(&pod.uid);
            if let Ok(port) = inbound.parse::<u16>() {
                wire.mesh_address = SocketAddr::from((address.ip(), port)).to_string();
            }
        }
        Some((address, wire, Some((of, pod))))
    }

    fn pod_of(
        &self,
        slice: &Key,
        endpoint: &SliceEndpoint,
        (name, uid): &(String, String),
    ) -> Option<(&Key, &Pod)> {
        let (of, pod) = match uid.as_str() {
            "" => self.pod_named(&Name::new(&slice.namespace, name))?,
            uid => self.pod(uid)?,
        };
        let has = |pod: &Pod| {
            let mut addresses = endpoint.addresses.iter().take(1);
            // A pod's addresses come with its status, perhaps after the slice.
            pod.addresses.is_empty() || addresses.all(|ip| pod.addresses.contains(ip))
        };
        // A slice speaks of pods of its own namespace only.
        (of.namespace == slice.namespace && has(pod)).then_some((of, pod))
    }

    /// What is said of a slice whose endpoints have lost their pods.
    fn lost(&self, key: &Key, object: &Arc<Object>) -> Option<(Key, ObjectStatus)> {
        let Spec::Slice(slice) = &object.spec else {
            return None;
        };
        let gone = slice.endpoints.iter().find_map(|endpoint| {
            let named = endpoint.pod.as_ref()?;
            let ip = endpoint.addresses.first()?;
            let is_there = self.pod_of(key, endpoint, named).is_some();
            (!is_there).then(|| {
                format!(
                    "{ip} is left out: Pod {} (uid {}) is not there, or has another address",
                    named.0, named.1
                )
            })
        })?;
        let resolved = condition("ResolvedRefs", false, "PodNotFound", &gone);
        let of = slice.service.clone();
        Some((key.clone(), said((key, object), of, vec![resolved])))
    }

    fn exchange_found(&mut self, name: &Name, mut fresh: Found) {
        let old = self.found.remove(name).unwrap_or_default();
        let ports: BTreeSet<PortKey> = old
            .ports
            .keys()
            .chain(fresh.ports.keys())
            .cloned()
            .collect();
        for port in ports {
            // Kept in one place: what is published.
            let endpoints = fresh.ports.get_mut(&port).map(std::mem::take);
            if put(&mut self.endpoints, port.to_string(), endpoints) {
                self.touch(Type::Endpoints, &port.to_string());
            }
        }
        for (key, direct) in &old.direct {
            if fresh.direct.get(key) != Some(direct) {
                self.claim_direct(key, None);
            }
        }
        for (key, direct) in &fresh.direct {
            if old.direct.get(key) != Some(direct) {
                self.claim_direct(key, Some(direct.clone()));
            }
        }
        for (uid, used) in old.uses.symmetric_difference(&fresh.uses) {
            let uses = self.uses.entry(uid.clone()).or_default();
            if !uses.remove(used) {
                uses.insert(used.clone());
            }
            if uses.is_empty() {
                self.uses.remove(uid);
            }
            self.dirty.insert(Unit::Workload(uid.clone()));
        }
        if !fresh.ports.is_empty() {
            self.found.insert(name.clone(), fresh);
        }
    }

    fn claim_direct(
        &mut self,
        (address, port): &(SocketAddr, PortKey),
        direct: Option<Arc<Direct>>,
    ) {
        let of = self.direct.entry(*address).or_default();
        of.claims.retain(|(of, _)| of != port);
        if let Some(direct) = direct {
            let at = of.claims.partition_point(|(of, _)| of < port);
            // One claim, as a rule.
            of.claims.reserve_exact(1);
            of.claims.insert(at, (port.clone(), direct));
        }
        self.dirty.insert(Unit::Direct(*address));
    }

    /// An endpoint that is dialled by its own address: that one and no other.
    pub(super) fn compute_direct(&mut self, address: SocketAddr) -> Vec<ObjectStatus> {
        let Some(of) = self.direct.get_mut(&address) else {
            return Vec::new();
        };
        let fresh = of.claims.first().map(|(_, direct)| Arc::clone(direct));
        let old = std::mem::replace(&mut of.published, fresh.clone());
        if fresh.is_none() {
            self.direct.remove(&address);
        }
        let (old, fresh) = (old.as_deref(), fresh.as_deref());
        let name = |of: &Direct| of.name(address);
        let names = [old.map(name), fresh.map(name)];
        let is_other = names[0] != names[1];
        if is_other {
            self.touch(Type::Destination, &address.to_string());
        }
        let is_other_service = old.map(|of| of.opaque) != fresh.map(|of| of.opaque);
        let is_elsewhere = old.map(|of| &of.endpoint) != fresh.map(|of| &of.endpoint);
        for name in BTreeSet::from(names).iter().flatten() {
            if is_other || is_other_service {
                self.touch(Type::Service, name);
            }
            if is_other || is_elsewhere {
                self.touch(Type::Endpoints, name);
            }
        }
        Vec::new()
    }

    /// One that is dialled itself, by the name of its resources.
    pub(super) fn direct(&self, name: &str) -> Option<&Direct> {
        let (_, address) = name.split_once('@')?;
        let address = address.parse().ok()?;
        let direct = self.direct.get(&address)?.published.as_deref()?;
        // An address has more than one spelling.
        (direct.name(address) == name).then_some(direct)
    }

    /// The name of the resources of what is dialled itself.
    pub(super) fn dialled_direct(&self, dialled: &str) -> Option<String> {
        let address: SocketAddr = dialled.parse().ok()?;
        let direct = self.direct.get(&address)?.published.as_deref()?;
        (address.to_string() == dialled).then(|| direct.name(address))
    }
}

/// The endpoints behind a port, each with the number that it has in its slice.
fn of_port<'a>(
    slices: &'a [(Key, Arc<Object>)],
    name: &'a str,
) -> impl Iterator<Item = (&'a Key, u16, &'a SliceEndpoint)> {
    let slices = slices
        .iter()
        .filter_map(|(key, object)| match &object.spec {
            Spec::Slice(slice) => Some((key, slice)),
            _ => None,
        });
    slices.flat_map(move |(key, slice): (&Key, &Slice)| {
        let ports = slice.ports.iter().filter(move |(of, _)| of == name);
        ports.flat_map(move |(_, number)| slice.endpoints.iter().map(move |of| (key, *number, of)))
    })
}

/// Of a pod with an address of each family one: that of the service's first family.
/// Endpoints without a pod are of the first family that there is.
fn one_family(all: Candidates, prefers_ipv6: bool) -> Vec<wire::Endpoint> {
    let first = |address: &SocketAddr| address.is_ipv6() == prefers_ipv6;
    let preferred: BTreeSet<Option<String>> = all
        .iter()
        .filter(|(address, _)| first(address))
        .map(|(_, (_, pod))| pod.clone())
        .collect();
    all.into_iter()
        .filter(|(address, (_, pod))| first(address) || !preferred.contains(pod))
        .map(|(_, (endpoint, _))| endpoint)
        .collect()
}

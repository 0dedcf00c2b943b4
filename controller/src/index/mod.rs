//! Objects in, what each proxy needs out. Pure: the same objects give the same
//! resources. Built anew as a whole with each change; discovery sends what differs.

mod policy;
mod route;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use weft_config::spiffe::SpiffeId;
use weft_config::status::{Condition, ObjectStatus};
use weft_config::wire;

use crate::api::{Key, Object, Pod, Service, ServicePort, Slice, SliceEndpoint, Spec};

pub type Objects = BTreeMap<Key, Object>;

/// A service's port: what endpoints and routes belong to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

impl std::fmt::Display for PortKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

/// Everything that can be asked for.
#[derive(Debug, Default)]
pub struct View {
    services: BTreeMap<String, wire::Service>,
    endpoints: BTreeMap<String, wire::Endpoints>,
    workloads: BTreeMap<String, wire::Workload>,
    /// What is dialled, and the listener behind it.
    destinations: BTreeMap<String, (PortKey, wire::Listener)>,
    /// Endpoints that are dialled themselves.
    direct: BTreeMap<String, String>,
    routes: route::Routes,
    pub statuses: Vec<ObjectStatus>,
}

impl View {
    /// `leaving`: UIDs of workloads that are on their way out.
    pub fn build(trust_domain: &str, objects: &Objects, leaving: &BTreeSet<String>) -> Self {
        let mut view = Self::default();
        let pods = pods(objects);
        let mut builder = Builder {
            trust_domain,
            slices: slices(objects),
            leaving,
            pods: &pods,
            ports_of: BTreeMap::new(),
        };
        for (key, object) in objects {
            if let Spec::Service(service) = &object.spec
                && !service.external
            {
                builder.service(key, service, &mut view);
            }
        }
        view.addresses(objects);
        view.routes = route::Routes::build(objects, &view.services, &mut view.statuses);
        policy::traffic(objects, &mut view.services, &mut view.statuses);
        let policies = policy::Policies::of(objects, &mut view.statuses);
        for (pod_key, pod) in pods.values() {
            if pod.inbound.is_some() {
                let ports = builder.ports_of.get(&pod.uid);
                let workload = policies.workload(pod_key, pod, ports);
                view.workloads.insert(pod.uid.clone(), workload);
            }
        }
        view
    }

    pub fn service(&self, name: &str) -> Option<&wire::Service> {
        self.services.get(name)
    }

    pub fn endpoints(&self, name: &str) -> Option<&wire::Endpoints> {
        self.endpoints.get(name)
    }

    pub fn workload(&self, uid: &str) -> Option<&wire::Workload> {
        self.workloads.get(uid)
    }

    /// Names of the Endpoints that a workload is among.
    pub fn services_of(&self, uid: &str) -> BTreeSet<String> {
        let among = |endpoints: &wire::Endpoints| {
            endpoints
                .endpoints
                .iter()
                .any(|endpoint| endpoint.workload == uid)
        };
        let services = self.endpoints.iter().filter(|(_, list)| among(list));
        services.map(|(name, _)| name.clone()).collect()
    }

    /// What dialling `name` means to workloads of `namespace`.
    pub fn destination(&self, namespace: &str, name: &str) -> Option<wire::Destination> {
        if let Some((port, listener)) = self.destinations.get(name) {
            let mut listener = listener.clone();
            listener.destination = name.to_owned();
            let (routes, mut services) = self.routes.of(port, namespace, &listener.name);
            if routes.is_empty() {
                listener.service = port.to_string();
                services = vec![port.to_string()];
            }
            return Some(wire::Destination {
                listener: Some(listener),
                routes,
                services,
            });
        }
        let service = self.direct.get(name)?;
        Some(wire::Destination {
            listener: Some(wire::Listener {
                destination: name.to_owned(),
                service: service.clone(),
                ..listener(name, name, "")
            }),
            routes: Vec::new(),
            services: vec![service.clone()],
        })
    }

    /// Who is dialled at which address; the oldest Service of several that claim one.
    fn addresses(&mut self, objects: &Objects) {
        let mut owners: HashMap<String, PortKey> = HashMap::new();
        let mut services: Vec<(&Key, &Object, &Service)> = objects
            .iter()
            .filter_map(|(key, object)| match &object.spec {
                Spec::Service(service) if !service.external => Some((key, object, service)),
                _ => None,
            })
            .collect();
        services.sort_by_key(|(key, object, _)| {
            (
                object.created.is_empty(),
                object.created.clone(),
                (*key).clone(),
            )
        });
        for (key, _, service) in services {
            for port in &service.ports {
                let named = PortKey {
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                    port: port.port,
                };
                let by_name = format!("{}.{}:{}", key.name, key.namespace, port.port);
                let listener_name = format!("{named}@name");
                let bound = format!("0.0.0.0:{}", port.port);
                let own = listener(&listener_name, &bound, &port.protocol);
                self.destinations.insert(by_name, (named.clone(), own));
                for (index, address) in service.addresses.iter().enumerate() {
                    let address = SocketAddr::from((*address, port.port)).to_string();
                    if let Some(owner) = owners.get(&address) {
                        self.statuses.push(conflicted(key, &address, owner));
                        continue;
                    }
                    owners.insert(address.clone(), named.clone());
                    let name = match index {
                        0 => named.to_string(),
                        _ => format!("{named}@{address}"),
                    };
                    let own = listener(&name, &address, &port.protocol);
                    self.destinations.insert(address, (named.clone(), own));
                }
            }
        }
    }
}

fn conflicted(key: &Key, address: &str, owner: &PortKey) -> ObjectStatus {
    ObjectStatus {
        kind: "Service".to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        parent: address.to_owned(),
        conditions: vec![condition(
            "Accepted",
            false,
            "Conflicted",
            &format!("{address} belongs to Service {owner}, which is older"),
        )],
    }
}

pub(crate) fn condition(kind: &str, status: bool, reason: &str, message: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn listener(name: &str, address: &str, protocol: &str) -> wire::Listener {
    use wire::listener_protocol::Value;
    let protocol = match protocol {
        "http" | "http2" => Value::Http,
        "tls" => Value::Tls,
        "tcp" => Value::Tcp,
        _ => Value::Auto,
    };
    let http = matches!(protocol, Value::Http | Value::Auto).then(|| wire::HttpOptions {
        forwarded: wire::http_options::Forwarded::Preserve.into(),
        ..Default::default()
    });
    wire::Listener {
        name: name.to_owned(),
        address: address.to_owned(),
        protocol: protocol.into(),
        role: wire::listener_role::Value::Virtual.into(),
        http,
        ..Default::default()
    }
}

/// Pods that are there, by UID.
type Pods<'a> = BTreeMap<&'a str, (&'a Key, &'a Pod)>;

fn pods(objects: &Objects) -> Pods<'_> {
    objects
        .iter()
        .filter_map(|(key, object)| match &object.spec {
            Spec::Pod(pod) if !pod.uid.is_empty() => Some((pod.uid.as_str(), (key, pod))),
            _ => None,
        })
        .collect()
}

/// Slices by namespace and name of their service.
type Slices<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a Slice>>;

fn slices(objects: &Objects) -> Slices<'_> {
    let mut slices = Slices::new();
    for (key, object) in objects {
        if let Spec::Slice(slice) = &object.spec {
            let of = (key.namespace.as_str(), slice.service.as_str());
            slices.entry(of).or_default().push(slice);
        }
    }
    slices
}

struct Builder<'a> {
    trust_domain: &'a str,
    slices: Slices<'a>,
    leaving: &'a BTreeSet<String>,
    pods: &'a Pods<'a>,
    /// Ports that services name of each workload: service, port, protocol.
    ports_of: BTreeMap<String, Vec<(String, u16, String)>>,
}

impl Builder<'_> {
    fn service(&mut self, key: &Key, service: &Service, view: &mut View) {
        for port in &service.ports {
            let named = PortKey {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                port: port.port,
            };
            let name = named.to_string();
            let endpoints = self.endpoints(key, port, view);
            view.endpoints.insert(
                name.clone(),
                wire::Endpoints {
                    service: name.clone(),
                    endpoints,
                },
            );
            let protocol = match port.protocol.as_str() {
                "http2" => wire::service::Protocol::Http2,
                "tcp" | "tls" => wire::service::Protocol::Tcp,
                _ => wire::service::Protocol::Mirror,
            };
            let service = wire::Service {
                name: name.clone(),
                protocol: protocol.into(),
                // A replica that dies must not be asked again and again.
                outlier_detection: Some(wire::OutlierDetection::default()),
                ..Default::default()
            };
            view.services.insert(name, service);
        }
    }

    /// Ready endpoints; where there are none, those that still serve.
    fn endpoints(&mut self, key: &Key, port: &ServicePort, view: &mut View) -> Vec<wire::Endpoint> {
        let (mut ready, mut serving) = (BTreeMap::new(), BTreeMap::new());
        let of = (key.namespace.as_str(), key.name.as_str());
        for slice in self.slices.get(&of).cloned().unwrap_or_default() {
            let of_port = slice.ports.iter().filter(|(name, _)| *name == port.name);
            for (_, number) in of_port {
                for endpoint in &slice.endpoints {
                    let Some((address, wire)) = self.endpoint(key, endpoint, *number) else {
                        continue;
                    };
                    if !wire.workload.is_empty() {
                        let ports = self.ports_of.entry(wire.workload.clone()).or_default();
                        ports.push((key.name.clone(), *number, port.protocol.clone()));
                        direct(view, address, &wire, &port.protocol);
                    }
                    let leaving = endpoint.terminating || self.leaving.contains(&wire.workload);
                    if endpoint.ready && !leaving {
                        ready.insert(address, wire);
                    } else if endpoint.serving || endpoint.ready {
                        serving.insert(address, wire);
                    }
                }
            }
        }
        let chosen = if ready.is_empty() { serving } else { ready };
        chosen.into_values().collect()
    }

    fn endpoint(
        &self,
        key: &Key,
        endpoint: &SliceEndpoint,
        port: u16,
    ) -> Option<(SocketAddr, wire::Endpoint)> {
        let address: IpAddr = *endpoint.addresses.first()?;
        let address = SocketAddr::from((address, port));
        let mut wire = wire::Endpoint {
            address: address.to_string(),
            zone: endpoint.zone.clone(),
            ..Default::default()
        };
        let pod = endpoint.pod.as_ref().and_then(|(name, uid)| {
            let by_uid = self.pods.get(uid.as_str()).copied();
            // Without a UID: by its name, if the address is that pod's.
            by_uid.or_else(|| {
                let mut pods = self.pods.values().copied();
                pods.find(|(of, pod)| {
                    uid.is_empty()
                        && of.name == *name
                        && of.namespace == key.namespace
                        && pod.addresses.contains(&address.ip())
                })
            })
        });
        if let Some((of, pod)) = pod
            && let Some(inbound) = &pod.inbound
            && let Ok(id) = SpiffeId::new(self.trust_domain, &of.namespace, &pod.account)
        {
            wire.identity = id.to_string();
            wire.workload.clone_from(&pod.uid);
            if let Ok(port) = inbound.parse::<u16>() {
                wire.mesh_address = SocketAddr::from((address.ip(), port)).to_string();
            }
        }
        Some((address, wire))
    }
}

/// An endpoint that is dialled by its own address: that one and no other.
fn direct(view: &mut View, address: SocketAddr, endpoint: &wire::Endpoint, protocol: &str) {
    let name = format!("{}@{address}", endpoint.workload);
    let opaque = matches!(protocol, "tcp" | "tls");
    let protocol = match opaque {
        true => wire::service::Protocol::Tcp,
        false => wire::service::Protocol::Mirror,
    };
    view.services.insert(
        name.clone(),
        wire::Service {
            name: name.clone(),
            protocol: protocol.into(),
            ..Default::default()
        },
    );
    view.endpoints.insert(
        name.clone(),
        wire::Endpoints {
            service: name.clone(),
            endpoints: vec![endpoint.clone()],
        },
    );
    view.direct.insert(address.to_string(), name);
}

#[cfg(test)]
mod tests;

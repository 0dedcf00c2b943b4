//! A service's ports: how they are called, and by which names and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use weft_config::compile::timestamp::Timestamp;
use weft_config::status::ObjectStatus;
use weft_config::wire;
use weft_config::wire::route::Kind;

use super::lookup::Link;
use super::set::Set;
use super::unit::Unit;
use super::{Index, Name, PortKey, Type, condition, policy, put, said};
use crate::api::{Key, Service, ServicePort};

/// What a service has said of its ports.
#[derive(Debug, Default, PartialEq)]
pub struct Ports {
    exists: bool,
    /// Each with what it is as a backend.
    numbers: BTreeMap<u16, Takes>,
    claims: BTreeSet<(SocketAddr, Claim)>,
}

/// What a port takes as a route's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Everything,
    /// It is declared to carry something else than requests.
    Connections,
    /// Its appProtocol is one that nobody here knows.
    Nothing,
}

impl Takes {
    fn of(port: &ServicePort) -> Self {
        match port.protocol.as_str() {
            _ if port.unknown_protocol => Self::Nothing,
            "tcp" | "tls" => Self::Connections,
            _ => Self::Everything,
        }
    }
}

/// Who wants to be dialled at an address, in order of precedence: the oldest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    age: (bool, Option<Timestamp>),
    port: PortKey,
    /// Which of the service's addresses.
    index: usize,
    protocol: String,
    /// What is said of one that loses is of this generation.
    generation: i64,
}

impl Index {
    pub(super) fn compute_ports(&mut self, name: &Name) -> Vec<ObjectStatus> {
        let found = self.service_object(name);
        let policies: Vec<_> = self
            .referring(&Link::Traffic(name.clone()))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        let mut fresh = Ports {
            exists: found.is_some(),
            ..Ports::default()
        };
        let mut wires: BTreeMap<u16, (wire::Service, wire::Listener)> = BTreeMap::new();
        if let Some((object, service)) = &found
            && !service.external
        {
            for port in &service.ports {
                let key = name.port(port.port);
                let by_name = listener(
                    &format!("{key}@name"),
                    &format!("0.0.0.0:{}", port.port),
                    &port.protocol,
                );
                wires.insert(port.port, (wire_service(&key, service, port), by_name));
                fresh.numbers.insert(port.port, Takes::of(port));
                for (index, address) in service.addresses.iter().enumerate() {
                    let claim = Claim {
                        age: object.age(),
                        port: key.clone(),
                        index,
                        protocol: port.protocol.clone(),
                        generation: object.generation,
                    };
                    let address = SocketAddr::from((*address, port.port));
                    fresh.claims.insert((address, claim));
                }
            }
        }
        let services = wires.values_mut().map(|(service, _)| service);
        let said = policy::traffic(name, found.is_some(), services, &policies);
        self.exchange_ports(name, fresh, wires);
        said
    }

    fn exchange_ports(
        &mut self,
        name: &Name,
        fresh: Ports,
        mut wires: BTreeMap<u16, (wire::Service, wire::Listener)>,
    ) {
        let old = self.ports.remove(name).unwrap_or_default();
        let numbers: BTreeSet<u16> = old
            .numbers
            .keys()
            .chain(fresh.numbers.keys())
            .copied()
            .collect();
        for number in numbers {
            let port = name.port(number);
            let (wire, by_name) = wires.remove(&number).unzip();
            if put(&mut self.services, port.to_string(), wire) {
                self.touch(Type::Service, &port.to_string());
            }
            let dialled = format!("{}.{}:{number}", name.name, name.namespace);
            self.name(&dialled, by_name.map(|listener| (port, listener)));
        }
        for (address, claim) in old.claims.symmetric_difference(&fresh.claims) {
            let claims = self.claims.entry(*address).or_default();
            if !claims.remove(claim) {
                claims.insert(claim.clone());
            }
            if claims.is_empty() {
                self.claims.remove(address);
            }
            self.dirty.insert(Unit::Address(*address));
        }
        if (old.exists, &old.numbers) != (fresh.exists, &fresh.numbers) {
            let keys = |link| {
                let of = self.referring.get(&link).into_iter();
                of.flat_map(Set::iter).map(|key| Key::clone(key))
            };
            let routes = keys(Link::Backend(name.clone())).map(Unit::Route);
            let policies = keys(Link::Authorized(name.clone())).map(Unit::Authorization);
            self.dirty.extend(routes.chain(policies));
        }
        self.dirty.insert(Unit::Endpoints(name.clone()));
        self.dirty.insert(Unit::Attached(name.clone()));
        if fresh.exists {
            self.ports.insert(name.clone(), fresh);
        }
    }

    /// Why a route of this kind cannot have it as a backend, if it cannot.
    pub(super) fn backend_fault(&self, name: &Name, port: u16, kind: Kind) -> Option<&'static str> {
        let ports = self.ports.get(name);
        let takes_requests = matches!(kind, Kind::Http | Kind::Grpc);
        match ports.and_then(|ports| ports.numbers.get(&port)) {
            Some(Takes::Everything) => None,
            Some(Takes::Connections) if !takes_requests => None,
            Some(Takes::Connections | Takes::Nothing) => Some("UnsupportedProtocol"),
            None => Some("BackendNotFound"),
        }
    }

    pub(super) fn compute_address(&mut self, address: SocketAddr) -> Vec<ObjectStatus> {
        let claims: Vec<Claim> = self
            .claims
            .get(&address)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let dialled = address.to_string();
        let Some((owner, losers)) = claims.split_first() else {
            self.name(&dialled, None);
            return Vec::new();
        };
        let listener_name = match owner.index {
            0 => owner.port.to_string(),
            _ => format!("{}@{address}", owner.port),
        };
        let listener = listener(&listener_name, &dialled, &owner.protocol);
        self.name(&dialled, Some((owner.port.clone(), listener)));
        let losers = losers.iter().filter_map(|loser| {
            let key = Name::new(&loser.port.namespace, &loser.port.name).key();
            let object = self.objects.get(&key)?;
            let message = format!(
                "{address} belongs to Service {}, which is older or first by name",
                owner.port
            );
            let accepted = condition("Accepted", false, "Conflicted", &message);
            Some(said((&key, object), dialled.clone(), vec![accepted]))
        });
        losers.collect()
    }
}

fn wire_service(key: &PortKey, of: &Service, port: &ServicePort) -> wire::Service {
    // Kubernetes spreads over all zones where a Service does not ask for the near one.
    let everywhere = wire::Balancer {
        zone_healthy_percent: Some(0),
        ..Default::default()
    };
    let protocol = match port.protocol.as_str() {
        "http2" => wire::service::Protocol::Http2,
        "tcp" | "tls" => wire::service::Protocol::Tcp,
        _ => wire::service::Protocol::Mirror,
    };
    wire::Service {
        name: key.to_string(),
        protocol: protocol.into(),
        // A replica that dies must not be asked again and again.
        outlier_detection: Some(wire::OutlierDetection::default()),
        balancer: (!of.prefers_zone).then_some(everywhere),
        ..Default::default()
    }
}

/// The virtual listener of what is dialled.
pub fn listener(name: &str, address: &str, protocol: &str) -> wire::Listener {
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

impl Service {
    /// Whether routes may have it as a parent (Gateway API: it needs a ClusterIP).
    pub(super) fn takes_routes(&self) -> bool {
        !self.headless && !self.external
    }
}

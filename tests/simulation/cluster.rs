//! Pods with their sidecars and applications, the deployment that replaces them, and the API
//! server's objects, which follow late.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use weft_config::wire;
use weft_controller::api::{
    Object, ParentRef, Route, Service, ServicePort, Slice, SliceEndpoint, Spec,
};
use weft_controller::{api, index::Objects};
use weft_proxy::logic::barrier::{Barrier, Gate};

pub const NAMESPACE: &str = "shop";
pub const DOMAIN: &str = "td";
pub const DIALLED: &str = "web.shop:80";
pub const SERVICES: [&str; 2] = ["web", "next"];
const APPLICATION_PORT: u16 = 8080;
const MESH_PORT: u16 = 14008;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Ready,
    /// Being deleted: its barrier, then its sidecar's last moments.
    Leaving,
    Gone,
}

#[derive(Debug)]
pub struct Pod {
    pub uid: String,
    /// The service that it is of; "other" has its address by accident.
    pub of: &'static str,
    pub address: IpAddr,
    pub revision: usize,
    pub phase: Phase,
    /// Its sidecar says so in answers.
    pub draining: bool,
    pub gate: Gate,
    pub barrier: Option<Barrier>,
    /// Nobody could be told that it leaves, or its time was up before somebody else was listed.
    pub given_up: bool,
    /// The application takes requests.
    pub runs: bool,
    /// A fault has ended the application, and nothing has started it again.
    pub killed: bool,
    /// The sidecar accepts connections.
    pub accepts: bool,
    /// Handshakes under way, which it waits for.
    pub handshakes: usize,
    /// What the application is doing.
    pub inside: BTreeSet<usize>,
}

impl Pod {
    pub fn is_there(&self) -> bool {
        self.phase != Phase::Gone
    }
}

#[derive(Debug, Default)]
pub struct Cluster {
    pub pods: Vec<Pod>,
    pub desired: usize,
    pub revision: usize,
    pub objects: Objects,
    /// Who has an address now.
    owners: BTreeMap<IpAddr, usize>,
    addresses: u8,
}

impl Cluster {
    /// A pod, at an address that is free or given.
    pub fn create(&mut self, of: &'static str, address: Option<IpAddr>) -> usize {
        let number = self.pods.len();
        let address = address.unwrap_or_else(|| {
            self.addresses += 1;
            IpAddr::V4(Ipv4Addr::new(10, 0, 0, self.addresses))
        });
        self.owners.insert(address, number);
        self.pods.push(Pod {
            uid: format!("{of}-{number}"),
            of,
            address,
            revision: self.revision,
            phase: Phase::Starting,
            draining: false,
            gate: Gate::default(),
            barrier: None,
            given_up: false,
            killed: false,
            runs: false,
            accepts: true,
            handshakes: 0,
            inside: BTreeSet::new(),
        });
        number
    }

    pub fn owner(&self, address: IpAddr) -> Option<usize> {
        let number = *self.owners.get(&address)?;
        self.pods.get(number).filter(|pod| pod.is_there())?;
        Some(number)
    }

    /// Pods of a service that are not on their way out.
    fn staying(&self, of: &'static str) -> impl Iterator<Item = (usize, &Pod)> {
        let pods = self.pods.iter().enumerate();
        pods.filter(move |(_, pod)| {
            pod.of == of && matches!(pod.phase, Phase::Starting | Phase::Ready)
        })
    }

    /// What a deployment's controller does next: how many to create, and whom to delete.
    pub fn reconcile(&self, surge: usize, unavailable: usize) -> (usize, Vec<usize>) {
        let staying: Vec<(usize, &Pod)> = self.staying("web").collect();
        let of_now = |pod: &Pod| pod.revision == self.revision;
        let new = staying.iter().filter(|(_, pod)| of_now(pod)).count();
        let room = (self.desired + surge).saturating_sub(staying.len());
        let create = self.desired.saturating_sub(new).min(room);
        let is_ready = |pod: &Pod| pod.phase == Phase::Ready;
        let mut available = staying.iter().filter(|(_, pod)| is_ready(pod)).count();
        let least = self.desired.saturating_sub(unavailable);
        let mut delete = Vec::new();
        for (number, pod) in &staying {
            if of_now(pod) {
                continue;
            }
            if !is_ready(pod) {
                delete.push(*number);
            } else if available > least {
                available -= 1;
                delete.push(*number);
            }
        }
        let surplus = new.saturating_sub(self.desired);
        let of_now = staying.iter().filter(|(_, pod)| of_now(pod));
        delete.extend(of_now.take(surplus).map(|(number, _)| *number));
        (create, delete)
    }

    fn put(&mut self, name: &str, spec: Spec) {
        let object = Object {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            created: None,
            generation: 1,
            spec,
        };
        self.objects.insert(object.key(), Arc::new(object));
    }

    pub fn put_services(&mut self) {
        for name in SERVICES {
            let port = ServicePort {
                name: "http".to_owned(),
                port: 80,
                protocol: "http".to_owned(),
                unknown_protocol: false,
            };
            let service = Service {
                ports: vec![port],
                ..Service::default()
            };
            self.put(name, Spec::Service(service));
        }
    }

    pub fn put_pod(&mut self, number: usize) {
        let pod = &self.pods[number];
        let name = pod.uid.clone();
        let spec = api::Pod {
            uid: pod.uid.clone(),
            account: pod.of.to_owned(),
            addresses: vec![pod.address],
            inbound: Some(MESH_PORT.to_string()),
            ..api::Pod::default()
        };
        self.put(&name, Spec::Pod(spec));
    }

    pub fn remove_pod(&mut self, number: usize) {
        let uid = self.pods[number].uid.clone();
        self.objects
            .retain(|key, _| key.kind != "Pod" || key.name != uid);
    }

    /// A service's slice as it should be now.
    pub fn slice(&self, of: &'static str) -> Slice {
        let there = self.pods.iter().filter(|pod| pod.of == of);
        let listed = there.filter(|pod| matches!(pod.phase, Phase::Ready | Phase::Leaving));
        let endpoints = listed.map(|pod| SliceEndpoint {
            addresses: vec![pod.address],
            ready: pod.phase == Phase::Ready,
            serving: true,
            terminating: pod.phase == Phase::Leaving,
            zone: String::new(),
            pod: Some((pod.uid.clone(), pod.uid.clone())),
        });
        Slice {
            service: of.to_owned(),
            ports: vec![("http".to_owned(), APPLICATION_PORT)],
            endpoints: endpoints.collect(),
        }
    }

    pub fn put_slice(&mut self, slice: Slice) {
        let name = slice.service.clone();
        self.put(&name, Spec::Slice(slice));
    }

    /// Sends half of what dials `web` to `next`, or no more.
    pub fn turn_route(&mut self) {
        let before = self.objects.len();
        self.objects.retain(|key, _| key.kind != "HTTPRoute");
        if self.objects.len() < before {
            return;
        }
        let backend = |name: &str| wire::BackendRef {
            name: format!("{NAMESPACE}/{name}:80"),
            ..Default::default()
        };
        let rule = wire::Rule {
            backend_refs: SERVICES.iter().map(|name| backend(name)).collect(),
            ..Default::default()
        };
        let wire = wire::Route {
            kind: wire::route::Kind::Http.into(),
            namespace: NAMESPACE.to_owned(),
            name: "canary".to_owned(),
            rules: vec![rule],
            ..Default::default()
        };
        let parent = ParentRef {
            group: String::new(),
            kind: "Service".to_owned(),
            namespace: String::new(),
            name: "web".to_owned(),
            section_name: String::new(),
            port: 80,
        };
        let parents = vec![parent];
        self.put(
            "canary",
            Spec::Route(Route {
                parents,
                wire,
                unsupported: BTreeMap::new(),
            }),
        );
    }
}

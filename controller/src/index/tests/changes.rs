//! Thousands of random sequences of changes: after each the index is what a fresh one
//! over the same objects would be, and it has named every resource that is different.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use prost::Message as _;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use weft_config::compile::timestamp;

use crate::api::kinds::kind_with_status;
use crate::api::{
    AuthorizationPolicy, DefaultAction, Mtls, Node, ParentRef, Pod, PortMtls, Route, Selector,
    Service, ServicePort, Slice, SliceEndpoint, TargetRef, TrafficPolicy, WorkloadPolicy,
};
use crate::index::*;

const SEQUENCES: u64 = 2_000;
const CHANGES: usize = 24;
const NAMESPACES: [&str; 2] = ["a", "b"];
const NAMES: [&str; 3] = ["x", "y", "z"];

struct World {
    random: SmallRng,
    index: Index,
}

/// All that can be asked for, encoded; destinations for each namespace.
fn resources(index: &Index) -> BTreeMap<(Type, String, &'static str), Vec<u8>> {
    let mut all = BTreeMap::new();
    let dialled: Vec<String> = index.direct.keys().map(ToString::to_string).collect();
    let direct = dialled.iter().map(|of| index.dialled_direct(of).unwrap());
    let direct: Vec<String> = direct.collect();
    for name in index.services.keys().chain(&direct) {
        let of = index.service(name).unwrap();
        all.insert((Type::Service, name.clone(), ""), of.encode_to_vec());
    }
    for name in index.endpoints.keys().chain(&direct) {
        let of = index.endpoints(name).unwrap();
        all.insert((Type::Endpoints, name.clone(), ""), of.encode_to_vec());
    }
    for name in index.workloads.keys() {
        let of = index.workload(name).unwrap();
        all.insert((Type::Workload, name.clone(), ""), of.encode_to_vec());
    }
    for name in index.destinations.keys().chain(&dialled) {
        for namespace in ["a", "b", "c"] {
            let of = index.destination(namespace, name).unwrap();
            let key = (Type::Destination, name.clone(), namespace);
            all.insert(key, of.encode_to_vec());
        }
    }
    all
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            index: Index::new("td"),
        }
    }

    fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn name(&mut self) -> String {
        let index = self.below(NAMES.len());
        NAMES[index].to_owned()
    }

    fn namespace(&mut self) -> String {
        let index = self.below(NAMESPACES.len());
        NAMESPACES[index].to_owned()
    }

    fn ip(&mut self) -> IpAddr {
        let last = self.below(4) as u8;
        match self.one_in(4) {
            true => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
            false => IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
        }
    }

    fn uid(&mut self) -> String {
        format!("u{}", self.below(4))
    }

    fn service(&mut self) -> Spec {
        let ports = [(80, "http"), (81, "tcp"), (82, "")];
        let count = self.below(4);
        Spec::Service(Service {
            addresses: (0..self.below(3))
                .map(|_| self.ip())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            headless: self.one_in(5),
            external: self.one_in(6),
            publish_not_ready: self.one_in(4),
            prefers_ipv6: self.one_in(3),
            prefers_zone: self.one_in(3),
            ports: ports[..count]
                .iter()
                .map(|(port, name)| ServicePort {
                    name: (*name).to_owned(),
                    port: *port,
                    protocol: (*name).to_owned(),
                    unknown_protocol: self.one_in(6),
                })
                .collect(),
        })
    }

    fn slice(&mut self) -> Spec {
        let names = ["http", "tcp", ""];
        Spec::Slice(Slice {
            service: self.name(),
            ports: (0..self.below(3))
                .map(|_| (names[self.below(3)].to_owned(), 8080 + self.below(2) as u16))
                .collect(),
            endpoints: (0..self.below(4))
                .map(|_| SliceEndpoint {
                    addresses: vec![self.ip()],
                    ready: !self.one_in(3),
                    serving: !self.one_in(3),
                    terminating: self.one_in(4),
                    zone: String::new(),
                    pod: match self.below(3) {
                        0 => None,
                        1 => Some((self.name(), String::new())),
                        _ => Some((self.name(), self.uid())),
                    },
                })
                .collect(),
        })
    }

    fn pod(&mut self) -> Spec {
        Spec::Pod(Pod {
            uid: self.uid(),
            account: self.name(),
            labels: [("app".to_owned(), self.name())].into(),
            addresses: (0..self.below(3)).map(|_| self.ip()).collect(),
            inbound: match self.below(3) {
                0 => None,
                1 => Some("captured".to_owned()),
                _ => Some("14008".to_owned()),
            },
            node: ["", "x", "y"][self.below(3)].to_owned(),
            is_leaving: self.one_in(4),
        })
    }

    fn route(&mut self, namespace: &str, name: &str, kind: wire::route::Kind) -> Spec {
        let backends = (0..self.below(3)).map(|_| wire::BackendRef {
            name: format!(
                "{}/{}:{}",
                self.namespace(),
                self.name(),
                80 + self.below(4)
            ),
            ..Default::default()
        });
        let rule = wire::Rule {
            backend_refs: backends.collect(),
            ..Default::default()
        };
        let mut wire = wire::Route {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            rules: vec![rule],
            ..Default::default()
        };
        wire.set_kind(kind);
        let parents = (0..self.below(3)).map(|_| ParentRef {
            group: String::new(),
            kind: "Service".to_owned(),
            namespace: self.namespace(),
            name: self.name(),
            section_name: String::new(),
            port: [0, 80, 81][self.below(3)],
        });
        Spec::Route(Route {
            unsupported: BTreeMap::new(),
            parents: parents.collect(),
            wire,
        })
    }

    fn selector(&mut self) -> Option<Selector> {
        let value = self.name();
        self.one_in(2).then(|| Selector {
            match_labels: BTreeMap::from([("app".to_owned(), value)]),
        })
    }

    fn targets(&mut self) -> Vec<TargetRef> {
        (0..self.below(3))
            .map(|_| TargetRef {
                group: String::new(),
                kind: ["Service", "Service", "Pod"][self.below(3)].to_owned(),
                name: self.name(),
            })
            .collect()
    }

    fn spec(&mut self, namespace: &str, name: &str) -> Spec {
        use wire::route::Kind;
        match self.below(13) {
            0 | 1 => self.service(),
            2..=4 => self.slice(),
            5 | 6 => self.pod(),
            7 => self.route(namespace, name, Kind::Http),
            8 => {
                let kind = [Kind::Grpc, Kind::Tcp, Kind::Tls][self.below(3)];
                self.route(namespace, name, kind)
            }
            9 => Spec::Authorization(AuthorizationPolicy {
                targets: self.targets(),
                selector: self.selector(),
                rules: wire::AuthorizationRules {
                    rules: vec![wire::AuthorizationRule::default()],
                    ..Default::default()
                },
            }),
            10 => Spec::Workload(WorkloadPolicy {
                selector: self.selector(),
                mtls: [None, Some(Mtls::Strict), Some(Mtls::Permissive)][self.below(3)],
                default_action: [None, Some(DefaultAction::Deny)][self.below(2)],
                ports: (0..self.below(2))
                    .map(|_| PortMtls {
                        port: 8080,
                        mtls: [Mtls::Strict, Mtls::Permissive][self.below(2)],
                    })
                    .collect(),
                unknown_destination: None,
            }),
            11 => Spec::Node(Node { zone: self.name() }),
            _ => Spec::Traffic(Box::new(TrafficPolicy {
                targets: self.targets(),
                service: wire::Service {
                    connect_timeout: ["1s", "2s", "never"][self.below(3)].to_owned(),
                    ..Default::default()
                },
            })),
        }
    }

    fn change(&mut self) -> Change {
        let (namespace, name) = (self.namespace(), self.name());
        let spec = self.spec(&namespace, &name);
        let ages = ["", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"];
        let object = Object {
            namespace: match spec {
                Spec::Node(_) => String::new(),
                _ => namespace,
            },
            name,
            created: timestamp::parse(ages[self.below(3)]),
            generation: self.below(3) as i64,
            spec,
        };
        Change {
            key: object.key(),
            object: (!self.one_in(4)).then(|| Arc::new(object)),
        }
    }

    fn step(&mut self) -> Touched {
        match self.below(8) {
            0 => {
                let uid = self.uid();
                self.index.leave(&uid)
            }
            1 => {
                let uid = self.uid();
                self.index.returned(&uid)
            }
            _ => {
                let changes: Vec<Change> = (0..=self.below(3)).map(|_| self.change()).collect();
                self.index.apply(changes)
            }
        }
    }
}

/// Whether a proxy takes what it is told of a destination, with the services that it names.
fn usable(index: &Index, namespace: &str, name: &str) -> Result<(), String> {
    let Some(destination) = index.destination(namespace, name) else {
        return Ok(());
    };
    let mut services = Vec::new();
    for name in &destination.services {
        let service = index.service(name).ok_or(format!("no service {name}"))?;
        services.push(service.into_owned());
    }
    let config = wire::Config {
        listeners: destination.listener.into_iter().collect(),
        routes: destination.routes,
        services,
        ..Default::default()
    };
    let compiled = weft_config::compile::compile(&config);
    compiled.map(drop).map_err(|errors| errors.to_string())
}

/// The index over the same objects, which come in another order and all at once.
fn fresh(index: &Index) -> Index {
    let mut fresh = Index::new("td");
    let changes = index.objects.iter().rev().map(|(key, object)| Change {
        key: key.clone(),
        object: Some(Arc::clone(object)),
    });
    fresh.apply(changes);
    for uid in &index.leaving {
        fresh.leave(uid);
    }
    fresh
}

/// Objects with a status that is written, of which something else is said.
fn differing(before: &[ObjectStatus], after: &[ObjectStatus]) -> Vec<Key> {
    let key = |of: &ObjectStatus| {
        Some(Key {
            kind: kind_with_status(&of.kind)?,
            namespace: of.namespace.clone(),
            name: of.name.clone(),
        })
    };
    let lost = before.iter().filter(|of| !after.contains(of));
    let new = after.iter().filter(|of| !before.contains(of));
    lost.chain(new).filter_map(key).collect()
}

#[test]
fn changes_one_by_one_are_the_same_as_all_at_once() {
    let mut total = 0;
    for seed in 0..SEQUENCES {
        let mut world = World::new(seed);
        let mut before = resources(&world.index);
        for step in 0..CHANGES {
            let said = world.index.statuses();
            let touched = world.step();
            let told = world.index.take_changed();
            for key in differing(&said, &world.index.statuses()) {
                assert!(told.contains(&key), "seed {seed}, step {step}: {key}");
            }
            let after = resources(&world.index);
            let at = format!("seed {seed}, step {step}");
            let names = before.keys().chain(after.keys());
            let changed: Touched = names
                .filter(|name| before.get(name) != after.get(name))
                .map(|(kind, name, _)| (*kind, name.clone()))
                .collect();
            let unsaid: Vec<_> = changed.difference(&touched).collect();
            assert!(
                unsaid.is_empty(),
                "{at}: changed and not touched: {unsaid:?}"
            );
            total += changed.len();
            before = after;
            // A fresh one at each step would take most of the time.
            if step % 6 == 5 {
                for name in world.index.destinations.keys() {
                    for namespace in ["a", "b", "elsewhere"] {
                        let taken = usable(&world.index, namespace, name);
                        assert_eq!(taken, Ok(()), "{at}: {namespace} dials {name}");
                    }
                }
                let fresh = fresh(&world.index);
                assert_eq!(before, resources(&fresh), "{at}");
                assert_eq!(world.index.statuses(), fresh.statuses(), "{at}");
                assert_eq!(world.index.uses, fresh.uses, "{at}");
                assert_eq!(world.index.names, fresh.names, "{at}");
                assert_eq!(world.index.leaving, fresh.leaving, "{at}");
                assert_eq!(world.index.referring, fresh.referring, "{at}");
            }
        }
        // Nothing is left when everything is gone.
        let gone: Vec<Change> = world
            .index
            .objects
            .keys()
            .map(|key| Change {
                key: key.clone(),
                object: None,
            })
            .collect();
        world.index.apply(gone);
        world.index.take_changed();
        let empty = format!("{:?}", Index::new("td"));
        assert_eq!(format!("{:?}", world.index), empty, "seed {seed}");
    }
    assert!(total > 50_000, "the sequences change little: {total}");
}

/// What a change of one service touches when there are many.
#[test]
fn a_change_touches_what_depends_on_it_and_no_more() {
    let mut index = Index::new("td");
    let object = |kind: &str, name: &str, spec: Spec| {
        let object = Object {
            namespace: "a".to_owned(),
            name: format!("{kind}{name}"),
            created: None,
            generation: 0,
            spec,
        };
        Change {
            key: object.key(),
            object: Some(Arc::new(object)),
        }
    };
    let slice = |number: u8, ready| {
        let endpoint = SliceEndpoint {
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 1, 0, number))],
            ready,
            serving: true,
            terminating: false,
            zone: String::new(),
            pod: None,
        };
        Spec::Slice(Slice {
            service: format!("s{number}"),
            ports: vec![("http".to_owned(), 8080)],
            endpoints: vec![endpoint],
        })
    };
    for number in 0..200 {
        let service = Service {
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                port: 80,
                protocol: String::new(),
                unknown_protocol: false,
            }],
            ..Service::default()
        };
        let name = number.to_string();
        index.apply([
            object("s", &name, Spec::Service(service)),
            object("e", &name, slice(number, true)),
        ]);
    }
    let touched = index.apply([object("e", "7", slice(7, true))]);
    assert!(touched.is_empty(), "nothing changed: {touched:?}");
    let mut other = slice(7, true);
    if let Spec::Slice(slice) = &mut other {
        slice.ports[0].1 = 9090;
    }
    let touched = index.apply([object("e", "7", other)]);
    let only = Touched::from([(Type::Endpoints, "a/s7:80".to_owned())]);
    assert_eq!(touched, only);
    let address = SocketAddr::from(([10, 0, 0, 7], 80)).to_string();
    assert!(index.destination("b", &address).is_some());
}

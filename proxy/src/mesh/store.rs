//! What was learned from controllers: which resources are wanted, which are
//! there, which destinations are whole. Pure: what to subscribe to and what to
//! publish comes out, nothing is sent or published here.
//!
//! ```text
//! wanted ──subscribed──▶ told ─▶ services and endpoints wanted ─▶ all answered: in force
//!                          └─ removed: a stranger (stays subscribed)
//! ```
//!
//! **Invariant:** a destination is in force only with every service that it
//! names; one that is in force stays so, as it was, until its successor is whole.
//! **Invariant:** what does not compile is refused and changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_config::snapshot::{Destination, Endpoint};
use weft_config::wire;

use super::inbound;
use super::resource::{add_route, alone, check, compile_endpoints, decode, stub};

/// Destinations at once; beyond it the longest unused are forgotten.
pub const DESTINATIONS_MAX: usize = 10_000;

const TYPE_PREFIX: &str = "type.googleapis.com/weft.v1.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Destination,
    Service,
    Endpoints,
    Workload,
    TrustBundle,
}

impl Kind {
    /// What others need comes first.
    pub const ALL: [Self; 5] = [
        Self::TrustBundle,
        Self::Workload,
        Self::Endpoints,
        Self::Service,
        Self::Destination,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Destination => "Destination",
            Self::Service => "Service",
            Self::Endpoints => "Endpoints",
            Self::Workload => "Workload",
            Self::TrustBundle => "TrustBundle",
        }
    }

    pub fn type_url(self) -> String {
        format!("{TYPE_PREFIX}{}", self.name())
    }

    pub fn of_type_url(url: &str) -> Option<Self> {
        let name = url.strip_prefix(TYPE_PREFIX)?;
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A resource that was asked for: not answered yet, not there, or this.
#[derive(Clone, Debug)]
enum Answer<T> {
    Awaited,
    Absent,
    Is(T),
}

impl<T> Answer<T> {
    fn is_answered(&self) -> bool {
        !matches!(self, Self::Awaited)
    }

    fn get(&self) -> Option<&T> {
        match self {
            Self::Is(value) => Some(value),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Wanted {
    pinned: bool,
    /// The newest that was told.
    told: Answer<wire::Destination>,
    in_force: Option<wire::Destination>,
}

#[derive(Debug)]
struct ServiceSlot {
    service: Answer<wire::Service>,
    endpoints: Answer<wire::Endpoints>,
}

/// What a response changes.
#[derive(Debug, Default, PartialEq)]
pub struct Effect {
    /// Resources that are refused, and why.
    pub refused: Vec<(String, String)>,
    /// The overlay has to be built anew.
    pub rebuild: bool,
    /// Only these services' endpoints changed.
    pub endpoints: BTreeSet<String>,
    pub trust: bool,
}

#[derive(Debug)]
pub struct Store {
    uid: String,
    domain: String,
    application: String,
    destinations: BTreeMap<String, Wanted>,
    services: BTreeMap<String, ServiceSlot>,
    workload: Answer<wire::Workload>,
    trust: Answer<wire::TrustBundle>,
    /// Ports that no service names and somebody asked for, the oldest first.
    extra_ports: Vec<u16>,
    versions: HashMap<(Kind, String), String>,
    /// What the present stream was told of our interest.
    subscribed: BTreeSet<(Kind, String)>,
}

impl Store {
    pub fn new(uid: &str, domain: &str, application: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            domain: domain.to_owned(),
            application: application.to_owned(),
            destinations: BTreeMap::new(),
            services: BTreeMap::new(),
            workload: Answer::Awaited,
            trust: Answer::Awaited,
            extra_ports: Vec::new(),
            versions: HashMap::new(),
            subscribed: BTreeSet::new(),
        }
    }

    /// Wants a destination. `pinned`: for good.
    pub fn want(&mut self, destination: &Destination, pinned: bool) {
        let wanted = self
            .destinations
            .entry(destination.to_string())
            .or_insert_with(|| Wanted {
                pinned,
                told: Answer::Awaited,
                in_force: None,
            });
        wanted.pinned |= pinned;
    }

    /// Gives up destinations that nobody uses, and strangers, who are asked for
    /// again when they are dialled; true if the overlay changes.
    pub fn forget(&mut self, unused: impl Fn(&str) -> bool) -> bool {
        let before = self.destinations.len();
        self.destinations.retain(|name, wanted| {
            let idle = match (&wanted.in_force, &wanted.told) {
                (Some(_), _) => unused(name),
                (None, told) => matches!(told, Answer::Absent),
            };
            wanted.pinned || !idle
        });
        let forgotten = before != self.destinations.len();
        if forgotten {
            self.want_services();
        }
        forgotten
    }

    /// The workload's own policies are known, or that there are none.
    pub fn knows_workload(&self) -> bool {
        self.workload.is_answered()
    }

    pub fn has_room(&self) -> bool {
        self.destinations.len() < DESTINATIONS_MAX
    }

    /// Serves a port that no service names; true if the overlay changes.
    pub fn want_port(&mut self, port: u16) -> bool {
        if self.extra_ports.contains(&port) {
            return false;
        }
        if self.extra_ports.len() >= inbound::EXTRA_PORTS_MAX {
            self.extra_ports.remove(0);
        }
        self.extra_ports.push(port);
        true
    }

    /// `Some(true)`: in force; `Some(false)`: no part of the mesh.
    pub fn knows(&self, destination: &Destination) -> Option<bool> {
        let wanted = self.destinations.get(&destination.to_string())?;
        match (&wanted.in_force, &wanted.told) {
            (Some(_), _) => Some(true),
            (None, Answer::Absent) => Some(false),
            _ => None,
        }
    }

    /// What a sidecar needs before its application starts is there.
    pub fn is_synced(&self) -> bool {
        let pinned = |wanted: &&Wanted| wanted.pinned;
        self.workload.is_answered()
            && self
                .destinations
                .values()
                .filter(pinned)
                .all(|wanted| wanted.in_force.is_some() || matches!(wanted.told, Answer::Absent))
    }

    pub fn trust(&self) -> Option<&wire::TrustBundle> {
        self.trust.get()
    }

    pub fn refuses_unknown(&self) -> bool {
        self.workload.get().is_some_and(|workload| {
            workload.unknown_destination() == wire::workload::UnknownDestination::Refuse
        })
    }

    /// Every name of interest.
    fn interest(&self) -> BTreeSet<(Kind, String)> {
        let own = [
            (Kind::TrustBundle, self.domain.clone()),
            (Kind::Workload, self.uid.clone()),
        ];
        let services = self.services.keys().flat_map(|name| {
            [
                (Kind::Service, name.clone()),
                (Kind::Endpoints, name.clone()),
            ]
        });
        let destinations = self
            .destinations
            .keys()
            .map(|name| (Kind::Destination, name.clone()));
        own.into_iter()
            .chain(services)
            .chain(destinations)
            .collect()
    }

    /// A new stream knows nothing of us.
    pub fn reconnected(&mut self) {
        self.subscribed.clear();
    }

    /// What the stream must be told: for each kind names to add and to drop.
    pub fn subscriptions(&mut self) -> Vec<(Kind, Vec<String>, Vec<String>)> {
        let interest = self.interest();
        let mut changes = Vec::new();
        for kind in Kind::ALL {
            let names = |from: &BTreeSet<(Kind, String)>, not_in: &BTreeSet<(Kind, String)>| {
                from.difference(not_in)
                    .filter(|(of, _)| *of == kind)
                    .map(|(_, name)| name.clone())
                    .collect::<Vec<_>>()
            };
            let (add, drop) = (
                names(&interest, &self.subscribed),
                names(&self.subscribed, &interest),
            );
            for name in &drop {
                self.versions.remove(&(kind, name.clone()));
            }
            if !add.is_empty() || !drop.is_empty() {
                changes.push((kind, add, drop));
            }
        }
        self.subscribed = interest;
        changes
    }

    /// Versions of what is held, for a stream that begins.
    pub fn versions(&self, kind: Kind) -> HashMap<String, String> {
        let of_kind = self.versions.iter().filter(|((of, _), _)| *of == kind);
        of_kind
            .map(|((_, name), version)| (name.clone(), version.clone()))
            .collect()
    }

    /// How many resources of a kind are held.
    pub fn count(&self, kind: Kind) -> usize {
        self.versions.keys().filter(|(of, _)| *of == kind).count()
    }

    /// Takes one resource of a response.
    pub fn set(
        &mut self,
        kind: Kind,
        name: &str,
        version: &str,
        bytes: &[u8],
        effect: &mut Effect,
    ) {
        if !self.subscribed.contains(&(kind, name.to_owned())) {
            // Given up meanwhile.
            return;
        }
        match self.accept(kind, name, bytes, effect) {
            Ok(()) => {
                self.versions
                    .insert((kind, name.to_owned()), version.to_owned());
            }
            Err(problem) => effect.refused.push((name.to_owned(), problem)),
        }
    }

    fn accept(
        &mut self,
        kind: Kind,
        name: &str,
        bytes: &[u8],
        effect: &mut Effect,
    ) -> Result<(), String> {
        match kind {
            Kind::TrustBundle => {
                let bundle: wire::TrustBundle = decode(bytes)?;
                self.trust = Answer::Is(bundle);
                effect.trust = true;
            }
            Kind::Workload => {
                let workload: wire::Workload = decode(bytes)?;
                check(&inbound::overlay(&workload, &self.application, &[]))?;
                self.workload = Answer::Is(workload);
                effect.rebuild = true;
            }
            Kind::Service => {
                let service: wire::Service = decode(bytes)?;
                check(&wire::Config {
                    services: vec![service.clone()],
                    ..Default::default()
                })?;
                let slot = self.services.get_mut(name).ok_or("not asked for")?;
                slot.service = Answer::Is(service);
                effect.rebuild = true;
            }
            Kind::Endpoints => {
                let endpoints: wire::Endpoints = decode(bytes)?;
                compile_endpoints(&endpoints)?;
                let slot = self.services.get_mut(name).ok_or("not asked for")?;
                // The first ones may make a destination whole.
                if slot.endpoints.is_answered() {
                    effect.endpoints.insert(name.to_owned());
                } else {
                    effect.rebuild = true;
                }
                slot.endpoints = Answer::Is(endpoints);
            }
            Kind::Destination => {
                let destination: wire::Destination = decode(bytes)?;
                check(&alone(&destination)?)?;
                let wanted = self.destinations.get_mut(name).ok_or("not asked for")?;
                wanted.told = Answer::Is(destination);
                self.want_services();
                effect.rebuild = true;
            }
        }
        Ok(())
    }

    /// Takes the word that a resource is gone, or was never there.
    pub fn remove(&mut self, kind: Kind, name: &str, effect: &mut Effect) {
        self.versions.remove(&(kind, name.to_owned()));
        match kind {
            // Whom to trust is never taken back without a successor.
            Kind::TrustBundle => return,
            Kind::Workload => self.workload = Answer::Absent,
            Kind::Service => {
                if let Some(slot) = self.services.get_mut(name) {
                    slot.service = Answer::Absent;
                }
            }
            Kind::Endpoints => {
                if let Some(slot) = self.services.get_mut(name) {
                    slot.endpoints = Answer::Absent;
                }
            }
            Kind::Destination => {
                if let Some(wanted) = self.destinations.get_mut(name) {
                    wanted.told = Answer::Absent;
                    wanted.in_force = None;
                }
                self.want_services();
            }
        }
        effect.rebuild = true;
    }

    /// Services that a destination, told or in force, names.
    fn want_services(&mut self) {
        let needed: BTreeSet<&String> = self
            .destinations
            .values()
            .flat_map(|wanted| wanted.told.get().into_iter().chain(&wanted.in_force))
            .flat_map(|destination| &destination.services)
            .collect();
        self.services.retain(|name, _| needed.contains(name));
        for name in needed {
            if !self.services.contains_key(name) {
                let slot = ServiceSlot {
                    service: Answer::Awaited,
                    endpoints: Answer::Awaited,
                };
                self.services.insert(name.clone(), slot);
            }
        }
    }

    /// Puts in force what is whole, and returns all of it, to be merged with the
    /// file's configuration.
    pub fn overlay(&mut self) -> wire::Config {
        let services = &self.services;
        for wanted in self.destinations.values_mut() {
            let whole = wanted.told.get().filter(|told| {
                told.services.iter().all(|name| {
                    services.get(name).is_some_and(|slot| {
                        slot.service.is_answered() && slot.endpoints.is_answered()
                    })
                })
            });
            if let Some(whole) = whole {
                wanted.in_force = Some(whole.clone());
            }
        }
        self.want_services();
        let workload = self.workload.get().cloned().unwrap_or_default();
        let mut config = inbound::overlay(&workload, &self.application, &self.extra_ports);
        let mut named = BTreeSet::new();
        for destination in self.destinations.values() {
            let Some(destination) = &destination.in_force else {
                continue;
            };
            config.listeners.extend(destination.listener.clone());
            for route in &destination.routes {
                add_route(&mut config.routes, route);
            }
            named.extend(&destination.services);
        }
        for name in named {
            config.services.push(self.service(name));
        }
        config
    }

    /// A service with its endpoints; without any where the controller has none.
    fn service(&self, name: &str) -> wire::Service {
        let slot = self.services.get(name);
        let mut service = slot
            .and_then(|slot| slot.service.get().cloned())
            .unwrap_or_else(|| stub(name));
        let endpoints = slot.and_then(|slot| slot.endpoints.get());
        service.endpoints = endpoints.map_or_else(Vec::new, |told| told.endpoints.clone());
        service
    }

    /// The endpoints of a service as they are now.
    pub fn endpoints(&self, name: &str) -> Option<Vec<Endpoint>> {
        let told = self.services.get(name)?.endpoints.get()?;
        compile_endpoints(told).ok()
    }
}

#[cfg(test)]
mod tests;

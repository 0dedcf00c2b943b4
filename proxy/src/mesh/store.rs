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
//! **Invariant:** what a stream is told of grows with what has changed, not with what is held.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_config::snapshot::{Destination, Endpoint};
use weft_config::wire;

mod interest;

use super::inbound;
use super::resource::{add_route, alone, check, compile_endpoints, decode, stub};
pub use interest::Interest;
pub use weft_config::resource::Type;

/// Destinations at once; beyond it the longest unused are forgotten.
pub const DESTINATIONS_MAX: usize = 10_000;

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
    /// Of what is held, and of nothing else.
    versions: HashMap<(Type, String), String>,
    /// Names that are wanted anew, or no more, and that the stream has yet to be told of.
    untold: BTreeSet<(Type, String)>,
}

impl Store {
    pub fn new(uid: &str, domain: &str, application: &str) -> Self {
        let mut store = Self {
            uid: uid.to_owned(),
            domain: domain.to_owned(),
            application: application.to_owned(),
            destinations: BTreeMap::new(),
            services: BTreeMap::new(),
            workload: Answer::Awaited,
            trust: Answer::Awaited,
            extra_ports: Vec::new(),
            versions: HashMap::new(),
            untold: BTreeSet::new(),
        };
        store.reconnected();
        store
    }

    /// Wants a destination. `pinned`: for good.
    pub fn want(&mut self, destination: &Destination, pinned: bool) {
        let name = destination.to_string();
        let untold = &mut self.untold;
        let wanted = self.destinations.entry(name).or_insert_with_key(|name| {
            untold.insert((Type::Destination, name.clone()));
            Wanted {
                pinned,
                told: Answer::Awaited,
                in_force: None,
            }
        });
        wanted.pinned |= pinned;
    }

    /// Gives up destinations that nobody uses, and strangers, who are asked for
    /// again when they are dialled; true if the overlay changes.
    pub fn forget(&mut self, unused: impl Fn(&str) -> bool) -> bool {
        let before = self.destinations.len();
        let (versions, untold) = (&mut self.versions, &mut self.untold);
        self.destinations.retain(|name, wanted| {
            let idle = match (&wanted.in_force, &wanted.told) {
                (Some(_), _) => unused(name),
                (None, told) => matches!(told, Answer::Absent),
            };
            let stays = wanted.pinned || !idle;
            if !stays {
                let key = (Type::Destination, name.clone());
                versions.remove(&key);
                untold.insert(key);
            }
            stays
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
    fn interest(&self) -> BTreeSet<(Type, String)> {
        let own = [
            (Type::TrustBundle, self.domain.clone()),
            (Type::Workload, self.uid.clone()),
        ];
        let services = self.services.keys().flat_map(|name| {
            [
                (Type::Service, name.clone()),
                (Type::Endpoints, name.clone()),
            ]
        });
        let destinations = self
            .destinations
            .keys()
            .map(|name| (Type::Destination, name.clone()));
        own.into_iter()
            .chain(services)
            .chain(destinations)
            .collect()
    }

    /// A new stream knows nothing of us.
    pub fn reconnected(&mut self) {
        self.untold = self.interest();
    }

    fn wants(&self, kind: Type, name: &str) -> bool {
        match kind {
            Type::Destination => self.destinations.contains_key(name),
            Type::Service | Type::Endpoints => self.services.contains_key(name),
            Type::Workload => self.uid == name,
            Type::TrustBundle => self.domain == name,
        }
    }

    /// What the stream must be told now, in one piece for each kind, however much has gathered.
    /// What was given up and is wanted again is asked for again: it is not held.
    pub fn subscriptions(&mut self) -> Vec<Interest> {
        let untold = std::mem::take(&mut self.untold);
        let mut changes = Vec::new();
        for kind in Type::ALL {
            let names = untold.iter().filter(|(of, _)| *of == kind);
            let (add, drop): (Vec<_>, Vec<_>) = names
                .map(|(_, name)| name.clone())
                .partition(|name| self.wants(kind, name));
            if add.is_empty() && drop.is_empty() {
                continue;
            }
            let held = |name: &String| self.versions.get(&(kind, name.clone())).cloned();
            let versions = add
                .iter()
                .filter_map(|name| Some((name.clone(), held(name)?)));
            changes.push(Interest {
                kind,
                versions: versions.collect(),
                add,
                drop,
            });
        }
        changes
    }

    /// How many resources of a kind are held.
    pub fn count(&self, kind: Type) -> usize {
        self.versions.keys().filter(|(of, _)| *of == kind).count()
    }

    /// Takes one resource of a response.
    pub fn set(
        &mut self,
        kind: Type,
        name: &str,
        version: &str,
        bytes: &[u8],
        effect: &mut Effect,
    ) {
        if !self.wants(kind, name) {
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
        kind: Type,
        name: &str,
        bytes: &[u8],
        effect: &mut Effect,
    ) -> Result<(), String> {
        match kind {
            Type::TrustBundle => {
                let bundle: wire::TrustBundle = decode(bytes)?;
                self.trust = Answer::Is(bundle);
                effect.trust = true;
            }
            Type::Workload => {
                let workload: wire::Workload = decode(bytes)?;
                check(&inbound::overlay(&workload, &self.application, &[]))?;
                self.workload = Answer::Is(workload);
                effect.rebuild = true;
            }
            Type::Service => {
                let service: wire::Service = decode(bytes)?;
                check(&wire::Config {
                    services: vec![service.clone()],
                    ..Default::default()
                })?;
                let slot = self.services.get_mut(name).ok_or("not asked for")?;
                slot.service = Answer::Is(service);
                effect.rebuild = true;
            }
            Type::Endpoints => {
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
            Type::Destination => {
                let destination: wire::Destination = decode(bytes)?;
                check(&alone(&destination)?)?;
                let wanted = self.destinations.get_mut(name).ok_or("not asked for")?;
                // Those that it named before are given up when it is put in force.
                for name in &destination.services {
                    want_service(&mut self.services, &mut self.untold, name);
                }
                wanted.told = Answer::Is(destination);
                effect.rebuild = true;
            }
        }
        Ok(())
    }

    /// Takes the word that a resource is gone, or was never there.
    pub fn remove(&mut self, kind: Type, name: &str, effect: &mut Effect) {
        self.versions.remove(&(kind, name.to_owned()));
        match kind {
            // Whom to trust is never taken back without a successor.
            Type::TrustBundle => return,
            Type::Workload => self.workload = Answer::Absent,
            Type::Service => {
                if let Some(slot) = self.services.get_mut(name) {
                    slot.service = Answer::Absent;
                }
            }
            Type::Endpoints => {
                if let Some(slot) = self.services.get_mut(name) {
                    slot.endpoints = Answer::Absent;
                }
            }
            Type::Destination => {
                if let Some(wanted) = self.destinations.get_mut(name) {
                    wanted.told = Answer::Absent;
                    wanted.in_force = None;
                }
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
        let (versions, untold) = (&mut self.versions, &mut self.untold);
        self.services.retain(|name, _| {
            let stays = needed.contains(name);
            if !stays {
                for kind in [Type::Service, Type::Endpoints] {
                    let key = (kind, name.clone());
                    versions.remove(&key);
                    untold.insert(key);
                }
            }
            stays
        });
        for name in needed {
            want_service(&mut self.services, untold, name);
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

fn want_service(
    services: &mut BTreeMap<String, ServiceSlot>,
    untold: &mut BTreeSet<(Type, String)>,
    name: &str,
) {
    if services.contains_key(name) {
        return;
    }
    let slot = ServiceSlot {
        service: Answer::Awaited,
        endpoints: Answer::Awaited,
    };
    services.insert(name.to_owned(), slot);
    for kind in [Type::Service, Type::Endpoints] {
        untold.insert((kind, name.to_owned()));
    }
}

#[cfg(test)]
mod tests;

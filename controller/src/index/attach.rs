//! Which of the routes of a Service are in force at which of its ports, and what each is told.
//!
//! **Invariant:** what a port's routes are is bounded, and the oldest stay: whoever floods a
//! port takes nothing from those that were there before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message as _;
use weft_config::status::{Condition, ObjectStatus};
use weft_config::wire;
use weft_config::wire::route::Kind;

use super::lookup::{Link, services};
use super::route::{Groups, Resolved, parent_text};
use super::{Index, Name, PortKey, Type, condition, put, said};
use crate::api::{Key, Object, ParentRef, Service, ServicePort, Spec};

/// Routes of one port that are in force for the same callers: each change of one of them is
/// sent with all of them to every proxy that uses the port.
pub const ROUTES_MAX: usize = 1_000;
/// Their bytes, as they are sent.
pub const ROUTES_BYTES_MAX: usize = 2 << 20;
/// The reason of a route that is too many. Gateway API has none for it.
const TOO_MANY: &str = "TooManyRoutes";

/// A route, and what has been found of it.
struct Candidate<'a> {
    key: &'a Key,
    object: &'a Object,
    resolved: &'a Resolved,
}

/// One route at one of its parents.
struct Attempt<'a> {
    /// Number of the candidate.
    number: usize,
    parent: &'a ParentRef,
    /// Or why at none.
    ports: Result<Vec<u16>, Condition>,
}

/// Why a route that is good is not in force at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    /// Routes of another kind precede it.
    Conflict,
    TooMany,
}

/// Candidates of each port, the oldest first, by the namespace that they are for.
type Claims = BTreeMap<u16, BTreeMap<String, Vec<usize>>>;

impl Index {
    pub(super) fn compute_attached(&mut self, name: &Name) -> Vec<ObjectStatus> {
        let service = self.service_object(name).map(|(_, service)| service);
        let routes: Vec<(Key, Arc<Object>)> = self
            .referring(&Link::Parent(name.clone()))
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect();
        let mut candidates: Vec<Candidate<'_>> = routes
            .iter()
            .filter_map(|(key, object)| {
                let resolved = self.routes.get(key)?;
                Some(Candidate {
                    key,
                    object,
                    resolved,
                })
            })
            .collect();
        candidates.sort_by_key(|of| (of.object.created.is_none(), of.object.created));
        let attempts = attempts(name, service.as_ref(), &candidates);
        let claims = claims(name, &candidates, &attempts);
        let mut losses = BTreeMap::new();
        let mut fresh = BTreeMap::new();
        for (port, groups) in claims {
            let groups: Groups = groups
                .into_iter()
                .map(|(audience, claims)| {
                    let routes = in_force(&candidates, &claims, port, &mut losses);
                    (audience, routes)
                })
                .collect();
            fresh.insert(name.port(port), groups);
        }
        let statuses = attempts.into_iter().filter_map(|of| {
            let candidate = candidates.get(of.number)?;
            let accepted = match of.ports {
                Err(refused) => refused,
                Ok(ports) => verdict(name, of.number, &ports, &losses),
            };
            let parent = parent_text(name, of.parent);
            let conditions = vec![accepted, candidate.resolved.resolved.clone()];
            Some(said((candidate.key, candidate.object), parent, conditions))
        });
        let statuses = statuses.collect();
        self.exchange_attached(name, fresh);
        statuses
    }

    fn exchange_attached(&mut self, name: &Name, mut fresh: BTreeMap<PortKey, Groups>) {
        let old = self.ports_attached(name);
        let ports: BTreeSet<PortKey> = old.into_iter().chain(fresh.keys().cloned()).collect();
        for port in ports {
            let groups = fresh.remove(&port);
            if put(&mut self.attached, port.clone(), groups) {
                let names = self.names.get(&port).into_iter().flatten();
                let names = names.map(|name| (Type::Destination, name.clone()));
                self.touched.extend(names);
            }
        }
    }
}

fn attempts<'a>(
    name: &Name,
    service: Option<&Service>,
    candidates: &[Candidate<'a>],
) -> Vec<Attempt<'a>> {
    let mut attempts = Vec::new();
    for (number, candidate) in candidates.iter().enumerate() {
        let Spec::Route(route) = &candidate.object.spec else {
            continue;
        };
        for (of, parent) in services(candidate.key, &route.parents) {
            if of == *name {
                let ports = ports(name, service, parent, candidate.resolved);
                attempts.push(Attempt {
                    number,
                    parent,
                    ports,
                });
            }
        }
    }
    attempts
}

/// The ports of a parent that a route may be put on, or why on none.
fn ports(
    name: &Name,
    service: Option<&Service>,
    parent: &ParentRef,
    route: &Resolved,
) -> Result<Vec<u16>, Condition> {
    let refused = |reason: &str, message: &str| condition("Accepted", false, reason, message);
    let Some(service) = service else {
        let message = format!("there is no Service {name}");
        return Err(refused("NoMatchingParent", &message));
    };
    if !service.takes_routes() {
        let message = "headless and ExternalName Services take no routes";
        return Err(refused("NoMatchingParent", message));
    }
    let ports = matching(service, parent);
    if ports.is_empty() {
        let message = "the Service has no such port";
        return Err(refused("NoMatchingParent", message));
    }
    if let Err(problem) = &route.usable {
        return Err(refused("UnsupportedValue", problem));
    }
    Ok(ports.iter().map(|port| port.port).collect())
}

fn claims(name: &Name, candidates: &[Candidate<'_>], attempts: &[Attempt<'_>]) -> Claims {
    let mut claims = Claims::new();
    for attempt in attempts {
        let Some(candidate) = candidates.get(attempt.number) else {
            continue;
        };
        let audience = match name.namespace == candidate.key.namespace {
            true => "",
            false => &candidate.key.namespace,
        };
        for port in attempt.ports.iter().flatten() {
            let groups = claims.entry(*port).or_default();
            let group = groups.entry(audience.to_owned()).or_default();
            // Two parentRefs may meet at one port; those of one route come in a row.
            if group.last() != Some(&attempt.number) {
                group.push(attempt.number);
            }
        }
    }
    claims
}

/// GRPCRoute > HTTPRoute > TLSRoute > TCPRoute on one port; of the best kind the oldest,
/// as far as there is room. Notes who lost.
fn in_force(
    candidates: &[Candidate<'_>],
    claims: &[usize],
    port: u16,
    losses: &mut BTreeMap<(usize, u16), Loss>,
) -> Vec<wire::Route> {
    let of = |number: &usize| Some((*number, &candidates.get(*number)?.resolved.wire));
    let best = claims.iter().filter_map(of).map(|(_, of)| rank(of)).min();
    let (mut routes, mut bytes) = (Vec::new(), 0);
    for (number, route) in claims.iter().filter_map(of) {
        if Some(rank(route)) != best {
            losses.insert((number, port), Loss::Conflict);
            continue;
        }
        let more = match routes.len() >= ROUTES_MAX {
            true => ROUTES_BYTES_MAX,
            false => route.encoded_len(),
        };
        if routes.len() >= ROUTES_MAX || bytes + more > ROUTES_BYTES_MAX {
            losses.insert((number, port), Loss::TooMany);
            continue;
        }
        bytes += more;
        routes.push(route.clone());
    }
    routes
}

fn rank(route: &wire::Route) -> u8 {
    match route.kind() {
        Kind::Grpc => 0,
        Kind::Http => 1,
        Kind::Tls => 2,
        Kind::Tcp => 3,
    }
}

/// The Accepted condition of a route that may be put on these ports.
fn verdict(
    name: &Name,
    number: usize,
    ports: &[u16],
    losses: &BTreeMap<(usize, u16), Loss>,
) -> Condition {
    let lost = |loss: Loss| -> Vec<String> {
        let ports = ports.iter();
        let lost = ports.filter(|port| losses.get(&(number, **port)) == Some(&loss));
        lost.map(|port| name.port(*port).to_string()).collect()
    };
    let (conflicts, crowded) = (lost(Loss::Conflict), lost(Loss::TooMany));
    let mut said = Vec::new();
    if !conflicts.is_empty() {
        said.push(format!(
            "{} has routes of a kind that precedes this one",
            conflicts.join(", ")
        ));
    }
    if !crowded.is_empty() {
        said.push(format!(
            "{} has {ROUTES_MAX} older routes, or {} MiB of them, which is as many as are in force at a port; join some",
            crowded.join(", "),
            ROUTES_BYTES_MAX >> 20
        ));
    }
    let message = said.join("; ");
    match conflicts.len() + crowded.len() == ports.len() {
        true if crowded.is_empty() => condition("Accepted", false, "Conflicted", &message),
        true => condition("Accepted", false, TOO_MANY, &message),
        false => condition("Accepted", true, "Accepted", &message),
    }
}

fn matching<'a>(service: &'a Service, parent: &ParentRef) -> Vec<&'a ServicePort> {
    let matches = |port: &&ServicePort| {
        (parent.port == 0 || parent.port == port.port)
            && (parent.section_name.is_empty() || parent.section_name == port.name)
    };
    service.ports.iter().filter(matches).collect()
}

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
use super::rules::Usable;
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
    ports: Ports,
    /// Why it is in force nowhere. It may be at ports all the same: for the errors that its rules
    /// answer.
    refused: Option<Condition>,
}

/// The ports that a parent means.
#[derive(Default)]
struct Ports {
    carrying: Vec<u16>,
    /// They carry nothing that a route of this kind is about.
    others: Vec<u16>,
}

/// Why a route that is good is not in force at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    /// Routes of another kind precede it.
    Conflict,
    TooMany,
}

/// What has come of the claims.
#[derive(Default)]
struct Found {
    losses: BTreeMap<(usize, u16), Loss>,
    /// The rank of the kind that a port has, by the namespace that it is for.
    best: BTreeMap<(String, u16), u8>,
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
        let mut found = Found::default();
        let mut fresh = BTreeMap::new();
        for (port, groups) in claims {
            let groups: Groups = groups
                .into_iter()
                .map(|(audience, claims)| {
                    let at = (audience, port);
                    let routes = in_force(&candidates, &claims, &at, &mut found);
                    (at.0, routes)
                })
                .collect();
            fresh.insert(name.port(port), groups);
        }
        let statuses = attempts.into_iter().filter_map(|of| {
            let candidate = candidates.get(of.number)?;
            let accepted = match of.refused {
                Some(refused) => refused,
                None => verdict(name, (of.number, candidate), &of.ports, &found),
            };
            let parent = parent_text(name, of.parent);
            let partly = match &candidate.resolved.usable {
                Usable::Partly(partly) if accepted.status => Some(partly.clone()),
                _ => None,
            };
            let mut conditions = vec![accepted, candidate.resolved.resolved.clone()];
            conditions.extend(partly);
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
                let (ports, mut refused) = match ports {
                    Ok(ports) => (ports, None),
                    Err(refused) => (Ports::default(), Some(refused)),
                };
                if let Usable::Not(problem) = &candidate.resolved.usable {
                    refused.get_or_insert_with(|| problem.clone());
                }
                attempts.push(Attempt {
                    number,
                    parent,
                    ports,
                    refused,
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
) -> Result<Ports, Condition> {
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
    let kind = route.wire.kind();
    let (carrying, others): (Vec<&ServicePort>, Vec<&ServicePort>) =
        ports.into_iter().partition(|port| port.carries(kind));
    let numbers = |ports: Vec<&ServicePort>| ports.iter().map(|port| port.port).collect();
    Ok(Ports {
        carrying: numbers(carrying),
        others: numbers(others),
    })
}

impl ServicePort {
    /// Whether a route of this kind can be about what the port is declared to carry. To TCPRoutes
    /// everything is bytes.
    fn carries(&self, kind: Kind) -> bool {
        match self.protocol.as_str() {
            "" => true,
            "http" | "http2" => kind != Kind::Tls,
            "tls" => matches!(kind, Kind::Tls | Kind::Tcp),
            _ => kind == Kind::Tcp,
        }
    }
}

impl Candidate<'_> {
    /// For whom it is at a Service's ports; empty: for everybody.
    fn audience(&self, name: &Name) -> &str {
        match name.namespace == self.key.namespace {
            true => "",
            false => &self.key.namespace,
        }
    }

    /// One that is not accepted stands in nobody's way.
    fn rank(&self) -> (bool, u8) {
        let is_refused = matches!(self.resolved.usable, Usable::Not(_));
        (is_refused, rank(self.resolved.wire.kind()))
    }
}

fn claims(name: &Name, candidates: &[Candidate<'_>], attempts: &[Attempt<'_>]) -> Claims {
    let mut claims = Claims::new();
    for attempt in attempts {
        let Some(candidate) = candidates.get(attempt.number) else {
            continue;
        };
        if candidate.resolved.wire.rules.is_empty() {
            continue;
        }
        for port in &attempt.ports.carrying {
            let groups = claims.entry(*port).or_default();
            let group = groups
                .entry(candidate.audience(name).to_owned())
                .or_default();
            // Two parentRefs may meet at one port; those of one route come in a row.
            if group.last() != Some(&attempt.number) {
                group.push(attempt.number);
            }
        }
    }
    claims
}

/// GRPCRoute > HTTPRoute > TLSRoute > TCPRoute on one port; of the best kind the oldest,
/// as far as there is room, and of those that a connection follows one. Notes who lost.
fn in_force(
    candidates: &[Candidate<'_>],
    claims: &[usize],
    at: &(String, u16),
    found: &mut Found,
) -> Vec<wire::Route> {
    let of = |number: &usize| Some((*number, candidates.get(*number)?));
    let best = claims.iter().filter_map(of).map(|(_, of)| of.rank()).min();
    let Some((is_refused, best)) = best else {
        return Vec::new();
    };
    if !is_refused {
        found.best.insert(at.clone(), best);
    }
    let (mut routes, mut bytes) = (Vec::new(), 0);
    for (number, candidate) in claims.iter().filter_map(of) {
        let route = &candidate.resolved.wire;
        let is_full = best >= rank(Kind::Tls) && !routes.is_empty();
        if candidate.rank().1 != best || is_full {
            found.losses.insert((number, at.1), Loss::Conflict);
            continue;
        }
        let more = match routes.len() >= ROUTES_MAX {
            true => ROUTES_BYTES_MAX,
            false => route.encoded_len(),
        };
        if routes.len() >= ROUTES_MAX || bytes + more > ROUTES_BYTES_MAX {
            found.losses.insert((number, at.1), Loss::TooMany);
            continue;
        }
        bytes += more;
        routes.push(route.clone());
    }
    routes
}

fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::Grpc => 0,
        Kind::Http => 1,
        Kind::Tls => 2,
        Kind::Tcp => 3,
    }
}

/// The Accepted condition of a route that may be put on these ports.
fn verdict(
    name: &Name,
    (number, candidate): (usize, &Candidate<'_>),
    ports: &Ports,
    found: &Found,
) -> Condition {
    let lost = |loss: Loss| -> Vec<u16> {
        let is_lost = |port: &u16| found.losses.get(&(number, *port)) == Some(&loss);
        ports.carrying.iter().copied().filter(is_lost).collect()
    };
    let (mut conflicts, crowded) = (lost(Loss::Conflict), lost(Loss::TooMany));
    let is_nowhere = conflicts.len() + crowded.len() == ports.carrying.len();
    // Where another kind has the port already, that is the better reason.
    let kind = rank(candidate.resolved.wire.kind());
    let is_taken = |port: &u16| {
        let at = (candidate.audience(name).to_owned(), *port);
        found.best.get(&at).is_some_and(|best| *best < kind)
    };
    let (taken, others): (Vec<u16>, Vec<u16>) = ports.others.iter().partition(|of| is_taken(of));
    conflicts.extend(taken);
    let message = reasons(name, candidate, [&conflicts, &crowded, &others]);
    let refused = |reason| condition("Accepted", false, reason, &message);
    match is_nowhere {
        false => condition("Accepted", true, "Accepted", &message),
        true if !crowded.is_empty() => refused(TOO_MANY),
        true if !conflicts.is_empty() => refused("Conflicted"),
        true => refused("NoMatchingParent"),
    }
}

/// Why a route is not in force at some ports.
fn reasons(
    name: &Name,
    candidate: &Candidate<'_>,
    [conflicts, crowded, others]: [&Vec<u16>; 3],
) -> String {
    let texts = |ports: &[u16]| {
        let texts = ports.iter().map(|port| name.port(*port).to_string());
        texts.collect::<Vec<_>>().join(", ")
    };
    let mut said = Vec::new();
    if !conflicts.is_empty() {
        said.push(format!(
            "{} has routes that precede this one: of a better kind, or (TLSRoute, TCPRoute) older",
            texts(conflicts)
        ));
    }
    if !crowded.is_empty() {
        said.push(format!(
            "{} has {ROUTES_MAX} older routes, or {} MiB of them, which is as many as are in force at a port; join some",
            texts(crowded),
            ROUTES_BYTES_MAX >> 20
        ));
    }
    if !others.is_empty() {
        said.push(format!(
            "{} is declared (appProtocol, or the port's name) to carry something of which a {} sees nothing",
            texts(others),
            candidate.key.kind
        ));
    }
    said.join("; ")
}

fn matching<'a>(service: &'a Service, parent: &ParentRef) -> Vec<&'a ServicePort> {
    let matches = |port: &&ServicePort| {
        (parent.port == 0 || parent.port == port.port)
            && (parent.section_name.is_empty() || parent.section_name == port.name)
    };
    service.ports.iter().filter(matches).collect()
}

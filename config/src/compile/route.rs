//! `routes[]`: the rules of each, and the listeners that they apply to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::at::{At, each, known};
use super::order::Seniority;
use super::{ServiceNames, hostname, rule, timestamp};
use crate::nearest::suggestion;
use crate::snapshot::{HostnameMatch, Rule};
use crate::wire;
use crate::wire::listener_protocol::Value as Protocol;
use crate::wire::route::Kind;

/// A compiled route on its way to its listeners.
pub(super) struct Attachable {
    /// In `routes`.
    pub index: usize,
    pub kind: Kind,
    /// In `listeners`, each once.
    pub listeners: Vec<usize>,
    pub hostnames: Vec<HostnameMatch>,
    pub rules: Rules,
    pub seniority: Seniority,
}

pub(super) enum Rules {
    Http(Vec<(usize, rule::Compiled)>),
    /// `None`: it has none, which was reported.
    Stream(Option<Arc<Rule>>),
}

pub(super) fn compile_all(
    at: &At<'_>,
    config: &wire::Config,
    names: &ServiceNames<'_>,
) -> Vec<Attachable> {
    let parents = Parents::new(&config.listeners, names);
    let mut seen: HashMap<(i32, Arc<str>), usize> = HashMap::new();
    let mut index = 0;
    each(at, &config.routes, |at, route| {
        let here = index;
        index += 1;
        let at = at.owned_by("route", &route.name);
        at.field("name").required(&route.name);
        let full_name = full_name(route);
        if let Some(first) = seen.insert((route.kind, full_name.clone()), here)
            && !route.name.is_empty()
        {
            at.field("name").error(format!(
                "\"{full_name}\" is already the name of routes[{first}]"
            ));
        }
        compile(&at, route, full_name, &parents, names).map(|route| Attachable {
            index: here,
            ..route
        })
    })
}

/// `namespace/name`, or the name alone where there are no namespaces.
fn full_name(route: &wire::Route) -> Arc<str> {
    if route.namespace.is_empty() {
        route.name.as_str().into()
    } else {
        format!("{}/{}", route.namespace, route.name).into()
    }
}

fn compile(
    at: &At<'_>,
    route: &wire::Route,
    full_name: Arc<str>,
    parents: &Parents<'_>,
    names: &ServiceNames<'_>,
) -> Option<Attachable> {
    let kind = known(&at.field("kind"), route.kind)?;
    let created = created(&at.field("creationTimestamp"), &route.creation_timestamp);
    let listeners = parents.resolve(&at.field("parentRefs"), &route.parent_refs, kind);
    let hostnames = hostnames(&at.field("hostnames"), &route.hostnames, kind);
    let rules_at = at.field("rules");
    if route.rules.is_empty() {
        rules_at.error("is missing; a route needs at least one rule");
    }
    rule_names(&rules_at, &route.rules);
    let rules = match kind {
        Kind::Http | Kind::Grpc => {
            let mut index = 0;
            Rules::Http(each(&rules_at, &route.rules, |at, wire| {
                index += 1;
                let index = index - 1;
                let at = at.owned_by("route", &full_name);
                let compiled = rule::compile(&at, wire, kind, &full_name, index, names)?;
                Some((index, compiled))
            }))
        }
        Kind::Tls | Kind::Tcp => {
            if route.rules.len() > 1 {
                rules_at.error("has several; a route of kind tls or tcp has exactly one rule");
            }
            let first = rules_at.index(0);
            Rules::Stream(
                route
                    .rules
                    .first()
                    .map(|wire| rule::compile_stream(&first, wire, kind, &full_name, names)),
            )
        }
    };
    Some(Attachable {
        index: 0,
        kind,
        listeners,
        hostnames,
        rules,
        seniority: Seniority {
            undated: created.is_none(),
            created,
            route: full_name,
        },
    })
}

fn created(at: &At<'_>, text: &str) -> Option<timestamp::Timestamp> {
    if text.is_empty() {
        return None;
    }
    let created = timestamp::parse(text);
    if created.is_none() {
        at.error(format!(
            "\"{text}\" is not a time; write it as 2026-07-01T12:00:00Z (RFC 3339)"
        ));
    }
    created
}

fn hostnames(at: &At<'_>, list: &[String], kind: Kind) -> Vec<HostnameMatch> {
    if list.is_empty() {
        return vec![HostnameMatch::Any];
    }
    if kind == Kind::Tcp {
        at.error("has no effect on a route of kind tcp, which sees no name; use kind: tls or http");
    }
    let mut seen = HashSet::new();
    each(at, list, |at, text| {
        let hostname = hostname::pattern(at, text)?;
        if !seen.insert(text.to_ascii_lowercase()) {
            at.error(format!("\"{text}\" occurs twice"));
            return None;
        }
        Some(hostname)
    })
}

fn rule_names(at: &At<'_>, rules: &[wire::Rule]) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (index, rule) in rules.iter().enumerate() {
        if rule.name.is_empty() {
            continue;
        }
        if let Some(first) = seen.insert(&rule.name, index) {
            at.index(index).field("name").error(format!(
                "\"{}\" is already the name of rules[{first}]",
                rule.name
            ));
        }
    }
}

/// What a parentRef may name. Built of the wire form, so that a listener that has
/// a mistake is still found.
struct Parents<'a> {
    by_name: HashMap<&'a str, usize>,
    by_service: HashMap<&'a str, Vec<usize>>,
    listeners: &'a [wire::Listener],
    names: &'a ServiceNames<'a>,
}

impl<'a> Parents<'a> {
    fn new(listeners: &'a [wire::Listener], names: &'a ServiceNames<'a>) -> Self {
        let mut by_name = HashMap::new();
        let mut by_service: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, listener) in listeners.iter().enumerate() {
            by_name.entry(listener.name.as_str()).or_insert(index);
            by_service.entry(&listener.service).or_default().push(index);
        }
        Self {
            by_name,
            by_service,
            listeners,
            names,
        }
    }

    fn resolve(&self, at: &At<'_>, refs: &[wire::ParentRef], kind: Kind) -> Vec<usize> {
        if refs.is_empty() {
            at.error("is missing; name the listener that the route applies to");
        }
        let mut listeners = Vec::new();
        for (index, parent) in refs.iter().enumerate() {
            let at = at.index(index);
            for listener in self.resolve_one(&at, parent) {
                if !listeners.contains(listener) {
                    self.check_protocol(&at, *listener, kind);
                    listeners.push(*listener);
                }
            }
        }
        listeners
    }

    fn resolve_one(&self, at: &At<'_>, parent: &wire::ParentRef) -> &[usize] {
        let name_at = at.field("name");
        let name = parent.name.as_str();
        let Some(kind) = known(&at.field("kind"), parent.kind) else {
            return &[];
        };
        if name_at.required(name).is_none() {
            return &[];
        }
        match kind {
            wire::parent_ref::Kind::Listener => {
                if let Some(index) = self.by_name.get(name) {
                    return std::slice::from_ref(index);
                }
                name_at.error(format!(
                    "no listener is named \"{name}\"{}",
                    suggestion(name, self.by_name.keys().copied())
                ));
            }
            wire::parent_ref::Kind::Service => {
                if let Some(listeners) = self.by_service.get(name) {
                    return listeners;
                }
                if self.names.resolve(&name_at, name).is_some() {
                    name_at.error(format!(
                        "no listener has service: {name}, so the route would apply to nothing; name a listener with kind: Listener"
                    ));
                }
            }
        }
        &[]
    }

    fn check_protocol(&self, at: &At<'_>, index: usize, kind: Kind) {
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        let name = &listener.name;
        let (fits, wanted) = match (kind, listener.protocol()) {
            (_, Protocol::Auto) => (true, ""),
            (Kind::Http | Kind::Grpc, protocol) => (protocol == Protocol::Http, "http"),
            (Kind::Tls, protocol) => (protocol == Protocol::Tls, "tls"),
            (Kind::Tcp, protocol) => (protocol == Protocol::Tcp, "tcp"),
        };
        if !fits {
            at.error(format!(
                "listener \"{name}\" has protocol: {}, on which a route of kind {} sees nothing; the listener needs protocol: {wanted} or auto",
                listener.protocol().as_str_name(),
                kind.as_str_name(),
            ));
        } else if kind == Kind::Tls && listener.tls.is_some() {
            at.error(format!(
                "listener \"{name}\" terminates TLS itself, so a route of kind tls sees nothing; use kind: http or tcp"
            ));
        }
    }
}

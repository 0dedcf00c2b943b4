//! Which of a route's rules can be used, and what becomes of the others. Pure.
//!
//! ```text
//! what is wrong          what becomes of the rule             the route
//! its filters            it stays, and answers 500            Accepted, PartiallyInvalid;
//! anything else          it is dropped                        without one good rule: not Accepted
//! ```
//!
//! **Invariant:** a filter that cannot be honoured is never skipped: it may have been there to
//! keep requests out.

use std::collections::{BTreeMap, HashSet};

use weft_config::compile::compile;
use weft_config::status::Condition;
use weft_config::wire;
use weft_config::wire::route::Kind;

use super::condition;
use super::route::backends;

/// Filters that stand in each other's way.
const INCOMPATIBLE: &str = "IncompatibleFilters";
/// Everything else that we cannot do.
const UNSUPPORTED: &str = "UnsupportedValue";

/// How a route is used.
#[derive(Clone, Debug, PartialEq)]
pub enum Usable {
    Whole,
    /// PartiallyInvalid.
    Partly(Condition),
    /// Accepted, which it is not.
    Not(Condition),
}

/// What is wrong with one rule.
struct Fault {
    reason: &'static str,
    message: String,
    /// The rule as it stays; `None`: it is dropped.
    rule: Option<wire::Rule>,
}

/// The route as proxies get it. `unsupported`: filters that were left out of its rules, by the
/// rules' numbers.
pub fn usable(
    mut route: wire::Route,
    unsupported: &BTreeMap<usize, String>,
) -> (wire::Route, Usable) {
    if unsupported.is_empty() && check(&route).is_ok() {
        return (route, Usable::Whole);
    }
    let rules = std::mem::take(&mut route.rules);
    let mut left = route.clone();
    let mut faults: Vec<(&'static str, String)> = Vec::new();
    let mut good = 0;
    for (number, rule) in rules.iter().enumerate() {
        match fault(&route, number, rule, unsupported.get(&number)) {
            None => {
                good += 1;
                left.rules.push(rule.clone());
            }
            Some(fault) => {
                faults.push((fault.reason, fault.message));
                left.rules.extend(fault.rule);
            }
        }
    }
    if !left.rules.is_empty()
        && let Err(problem) = check(&left)
    {
        // It is not one rule's.
        left.rules.clear();
        return (
            left,
            Usable::Not(condition("Accepted", false, UNSUPPORTED, &problem)),
        );
    }
    let Some((reason, _)) = faults.first() else {
        let problem = "spec.rules: a route needs at least one rule";
        return (
            left,
            Usable::Not(condition("Accepted", false, UNSUPPORTED, problem)),
        );
    };
    let messages: Vec<&str> = faults.iter().map(|(_, message)| message.as_str()).collect();
    let messages = messages.join("; ");
    let usable = match good {
        0 => Usable::Not(condition("Accepted", false, reason, &messages)),
        _ => {
            let message = format!("Dropped Rule: {messages}");
            Usable::Partly(condition("PartiallyInvalid", true, reason, &message))
        }
    };
    (left, usable)
}

/// `route`: without its rules.
fn fault(
    route: &wire::Route,
    number: usize,
    rule: &wire::Rule,
    unsupported: Option<&String>,
) -> Option<Fault> {
    let alone = |rule: wire::Rule| {
        check(&wire::Route {
            rules: vec![rule],
            ..route.clone()
        })
    };
    let said = match (alone(rule.clone()), unsupported) {
        (Ok(()), None) => return None,
        (_, Some(filter)) => format!("spec.rules[{number}].{filter}"),
        (Err(problem), None) => problem
            .replace("routes[0].rules[0]", &format!("spec.rules[{number}]"))
            .replace("routes[0]", "spec"),
    };
    let failing = failing(rule);
    if alone(failing.clone()).is_err() {
        let message = format!("{said} (spec.rules[{number}] is left out)");
        return Some(Fault {
            reason: UNSUPPORTED,
            message,
            rule: None,
        });
    }
    let each_is_good = || filters_one_by_one(rule).all(|rule| alone(rule).is_ok());
    let reason = match unsupported.is_none() && each_is_good() {
        true => INCOMPATIBLE,
        false => UNSUPPORTED,
    };
    Some(Fault {
        reason,
        message: format!("{said} (its requests answer 500)"),
        rule: Some(failing),
    })
}

/// The rule's requests, and an error for each of them.
fn failing(rule: &wire::Rule) -> wire::Rule {
    let nowhere = wire::BackendRef {
        name: "filters".to_owned(),
        invalid: UNSUPPORTED.to_owned(),
        ..Default::default()
    };
    wire::Rule {
        filters: Vec::new(),
        backend_refs: vec![nowhere],
        ..rule.clone()
    }
}

/// The rule with one of its filters at a time.
fn filters_one_by_one(rule: &wire::Rule) -> impl Iterator<Item = wire::Rule> {
    let own = rule.filters.iter().map(|filter| wire::Rule {
        filters: vec![filter.clone()],
        backend_refs: Vec::new(),
        ..rule.clone()
    });
    let of_backends = rule.backend_refs.iter().flat_map(|backend| {
        backend.filters.iter().map(|filter| wire::Rule {
            filters: Vec::new(),
            backend_refs: vec![wire::BackendRef {
                filters: vec![filter.clone()],
                ..backend.clone()
            }],
            ..rule.clone()
        })
    });
    own.chain(of_backends)
}

/// Whether a proxy could use the route.
fn check(route: &wire::Route) -> Result<(), String> {
    let mut route = route.clone();
    route.parent_refs = vec![wire::ParentRef {
        name: "listener".to_owned(),
        ..Default::default()
    }];
    let opaque = matches!(route.kind(), Kind::Tls | Kind::Tcp);
    let protocol = match route.kind() {
        Kind::Tls => wire::listener_protocol::Value::Tls,
        Kind::Tcp => wire::listener_protocol::Value::Tcp,
        _ => wire::listener_protocol::Value::Http,
    };
    let (mut services, mut known) = (Vec::new(), HashSet::new());
    for backend in backends(&route).filter(|backend| backend.invalid.is_empty()) {
        if known.insert(&backend.name) {
            let protocol = match opaque {
                true => wire::service::Protocol::Tcp,
                false => wire::service::Protocol::Mirror,
            };
            services.push(wire::Service {
                name: backend.name.clone(),
                protocol: protocol.into(),
                ..Default::default()
            });
        }
    }
    let config = wire::Config {
        listeners: vec![wire::Listener {
            name: "listener".to_owned(),
            address: "0.0.0.0:1".to_owned(),
            protocol: protocol.into(),
            role: wire::listener_role::Value::Virtual.into(),
            ..Default::default()
        }],
        services,
        routes: vec![route],
        ..Default::default()
    };
    compile(&config)
        .map(drop)
        .map_err(|errors| errors.to_string())
}

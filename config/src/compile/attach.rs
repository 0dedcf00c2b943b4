//! Puts compiled routes on their listeners, in order of precedence.

use std::collections::HashMap;

use super::at::At;
use super::listener::Draft;
use super::order::{Key, hostname_rank};
use super::route::{Attachable, Rules};
use crate::snapshot::{RouteEntry, RouteTable, StreamRoute};
use crate::wire::route::Kind;

#[derive(Default)]
struct Collected {
    http: Vec<(Key, RouteEntry)>,
    /// A route without a valid rule still replaces the default.
    has_http: bool,
    tls: Vec<(Key, StreamRoute)>,
    tcp: Option<(usize, StreamRoute)>,
}

pub(super) fn attach(at: &At<'_>, routes: Vec<Attachable>, listeners: &mut [Draft]) {
    let mut collected: HashMap<usize, Collected> = HashMap::new();
    for route in &routes {
        for listener in &route.listeners {
            collect(at, route, collected.entry(*listener).or_default());
        }
    }
    for draft in listeners {
        let Some(mut routes) = collected.remove(&draft.index) else {
            continue;
        };
        draft.route_named = true;
        if routes.has_http {
            routes.http.sort_by(|(one, _), (other, _)| one.cmp(other));
            let entries = routes.http.into_iter().map(|(_, entry)| entry).collect();
            draft.listener.http_routes = Some(RouteTable::new(entries));
        }
        if !routes.tls.is_empty() {
            routes.tls.sort_by(|(one, _), (other, _)| one.cmp(other));
            draft.listener.tls_routes =
                Some(routes.tls.into_iter().map(|(_, route)| route).collect());
        }
        draft.listener.tcp_route = routes.tcp.map(|(_, route)| route);
    }
}

fn collect(at: &At<'_>, route: &Attachable, into: &mut Collected) {
    match &route.rules {
        Rules::Http(rules) => {
            into.has_http = true;
            for (rule_index, compiled) in rules {
                for (match_index, condition, specificity) in &compiled.matches {
                    for hostname in &route.hostnames {
                        let key = Key {
                            http: route.kind == Kind::Http,
                            hostname: hostname_rank(hostname),
                            specificity: Some(specificity.clone()),
                            seniority: route.seniority.clone(),
                            rule: *rule_index,
                            match_index: *match_index,
                        };
                        let entry = RouteEntry {
                            hostname: hostname.clone(),
                            condition: condition.clone(),
                            rule: compiled.rule.clone(),
                            match_index: *match_index,
                        };
                        into.http.push((key, entry));
                    }
                }
            }
        }
        Rules::Stream(None) => {}
        Rules::Stream(Some(rule)) if route.kind == Kind::Tls => {
            for hostname in &route.hostnames {
                let key = Key {
                    http: true,
                    hostname: hostname_rank(hostname),
                    specificity: None,
                    seniority: route.seniority.clone(),
                    rule: 0,
                    match_index: 0,
                };
                let stream = StreamRoute {
                    hostname: hostname.clone(),
                    rule: rule.clone(),
                };
                into.tls.push((key, stream));
            }
        }
        Rules::Stream(Some(rule)) => {
            if let Some((first, _)) = &into.tcp {
                at.index(route.index).field("parentRefs").error(format!(
                    "route \"{}\": the listener already has the tcp route routes[{first}]; a connection carries nothing to choose by",
                    route.seniority.route
                ));
                return;
            }
            let hostname = crate::snapshot::HostnameMatch::Any;
            let stream = StreamRoute {
                hostname,
                rule: rule.clone(),
            };
            into.tcp = Some((route.index, stream));
        }
    }
}

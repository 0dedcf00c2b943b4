//! The decision for whole connections: TLS by server name, TCP by listener.

use std::sync::Arc;

use super::host::Host;
use super::hostname_matches;
use super::trace::{Outcome, Reason, Trace};
use crate::snapshot::{Listener, ListenerProtocol, Rule, ServiceId};

/// Who takes a connection.
#[derive(Clone, Copy, Debug)]
pub enum StreamSelection<'s> {
    Rule(&'s Arc<Rule>),
    /// The listener has no routes for such a connection; this is its service.
    Service(ServiceId),
}

/// Chooses who takes a connection that is not HTTP. `server_name` is the SNI of a
/// TLS connection; `None`: there is none, or (on a listener whose protocol is not
/// `tls`) the connection is not TLS, and TLS routes are passed over. `None` as an
/// answer: nobody takes it, close it.
///
/// TLS routes go before a TCP route, and any route before the listener's service:
/// with TLS routes attached, a name that none of them has goes nowhere.
pub fn select_stream<'s>(
    listener: &'s Listener,
    server_name: Option<&str>,
    trace: Option<&mut Trace>,
) -> Option<StreamSelection<'s>> {
    let mut unused = Trace::default();
    let traced = trace.is_some();
    let trace = trace.unwrap_or(&mut unused);
    let is_tls = server_name.is_some() || listener.protocol == ListenerProtocol::Tls;
    if is_tls && let Some(routes) = &listener.tls_routes {
        let host = Host::of(server_name.unwrap_or_default());
        let mut found = None;
        for route in routes {
            let reason = if found.is_some() {
                Reason::NotReached
            } else if hostname_matches(&route.hostname, host.as_str()) {
                found = Some(StreamSelection::Rule(&route.rule));
                Reason::Selected
            } else if traced {
                Reason::hostname(&route.hostname, host.as_str())
            } else {
                continue;
            };
            if !traced {
                break;
            }
            trace.push_stream(&route.rule, reason);
        }
        trace.outcome = if found.is_some() {
            Outcome::Rule
        } else {
            Outcome::NoRuleMatches
        };
        return found;
    }
    if let Some(route) = &listener.tcp_route {
        if traced {
            trace.push_stream(&route.rule, Reason::Selected);
        }
        trace.outcome = Outcome::Rule;
        return Some(StreamSelection::Rule(&route.rule));
    }
    trace.outcome = match listener.service {
        Some(_) => Outcome::NoRoutes,
        None => Outcome::NothingAttached,
    };
    listener.service.map(StreamSelection::Service)
}

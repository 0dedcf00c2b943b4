//! The decision in words: which rule takes a request and why, what its filters
//! do, where it then goes, and how long and how often that is tried. The same
//! `select` and `filter` as a real request's.

mod request;
mod show;

use http::HeaderMap;
use http::uri::PathAndQuery;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::filter::{
    CorsRequest, FilterContext, FilterOutcome, RequestParts, apply_request_filters,
    apply_response_filters,
};
use crate::nearest::suggestion;
use crate::select::trace::Trace;
use crate::select::{RequestHead, Selection, StreamSelection, select, select_stream};
use crate::snapshot::{
    Backend, BackendTarget, Filter, Listener, ListenerProtocol, RetryPolicy, Rule,
    SessionPersistence, SessionSource, Snapshot,
};
pub use request::{ExplainRequest, RequestError};

/// Why there is nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    #[error("no listener is named \"{name}\"{near}")]
    ListenerUnknown { name: String, near: String },
    #[error(
        "no listener has port {port}, which the URL names (listeners: {listeners}); give one by name"
    )]
    PortUnknown { port: u16, listeners: String },
}

/// Everything that the proxy would decide about one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub revision: String,
    pub listener: String,
    /// `GET http://host/path`.
    pub request: String,
    pub trace: Trace,
    pub decision: Decision,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Decision {
    Rule(Box<RuleDecision>),
    /// Straight to the listener's service.
    Service {
        service: String,
    },
    /// 404 or, for gRPC, `UNIMPLEMENTED`; a connection is closed.
    NotFound,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleDecision {
    pub route: String,
    pub rule: String,
    pub effect: Effect,
    pub backends: Vec<BackendShare>,
    pub mirrors: Vec<MirrorShare>,
    pub timeouts: Timeouts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// What the rule's filters make of the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Effect {
    Forward {
        host: String,
        path: String,
        /// Changed by filters; `None`: removed.
        headers: Vec<HeaderChange>,
        /// What response filters make of an answer without headers.
        response_headers: Vec<HeaderChange>,
    },
    Respond {
        status: u16,
        headers: Vec<HeaderChange>,
    },
    /// A connection, passed through as it is.
    Tunnel,
    Failed {
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderChange {
    pub name: String,
    /// All values, joined by commas; `None`: removed.
    pub value: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendShare {
    /// `None`: the reference is invalid.
    pub service: Option<String>,
    /// Why this share answers 500.
    pub invalid: Option<String>,
    pub weight: u32,
    pub percent: f64,
    /// The backend's own filters, after the rule's.
    pub effect: Option<Effect>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorShare {
    pub service: Option<String>,
    pub invalid: Option<String>,
    pub percent: f64,
}

/// GEP-2257 durations; `None`: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    pub request: Option<String>,
    pub backend_request: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    pub attempts: u32,
    pub codes: Vec<u16>,
    pub grpc_codes: Vec<u8>,
    pub backoff: String,
}

/// Explains one request. The listener is `listener`, or the one with the URL's port,
/// or the only one.
pub fn explain(
    snapshot: &Snapshot,
    listener: Option<&str>,
    request: &ExplainRequest,
) -> Result<Explanation, ExplainError> {
    let listener = find_listener(snapshot, listener, request)?;
    let mut trace = Trace::default();
    let decision = match listener.protocol {
        ListenerProtocol::Auto | ListenerProtocol::Http => {
            http_decision(snapshot, listener, request, &mut trace)
        }
        ListenerProtocol::Tcp | ListenerProtocol::Tls => {
            stream_decision(snapshot, listener, request, &mut trace)
        }
    };
    Ok(Explanation {
        revision: snapshot.revision.clone(),
        listener: listener.name.to_string(),
        request: request.to_string(),
        trace,
        decision,
    })
}

fn find_listener<'s>(
    snapshot: &'s Snapshot,
    name: Option<&str>,
    request: &ExplainRequest,
) -> Result<&'s Listener, ExplainError> {
    let names = || snapshot.listeners.iter().map(|listener| &*listener.name);
    if let Some(name) = name {
        let found = snapshot
            .listeners
            .iter()
            .find(|listener| &*listener.name == name);
        return found
            .map(|listener| &**listener)
            .ok_or_else(|| ExplainError::ListenerUnknown {
                name: name.to_owned(),
                near: suggestion(name, names()),
            });
    }
    let by_port = snapshot
        .listeners
        .iter()
        .find(|listener| listener.address.port() == request.port());
    match (by_port, snapshot.listeners.as_slice()) {
        (Some(listener), _) => Ok(listener),
        (None, [only]) => Ok(only),
        (None, all) => Err(ExplainError::PortUnknown {
            port: request.port(),
            listeners: all
                .iter()
                .map(|listener| format!("{} ({})", listener.name, listener.address))
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

fn http_decision(
    snapshot: &Snapshot,
    listener: &Listener,
    request: &ExplainRequest,
    trace: &mut Trace,
) -> Decision {
    let parts = &request.parts;
    let head = RequestHead {
        method: &parts.method,
        scheme: parts.scheme,
        authority: parts.authority_str(),
        path: parts.path_and_query.path(),
        query: parts.path_and_query.query(),
        headers: &parts.headers,
    };
    match select(listener, &head, Some(trace)) {
        Selection::Rule { rule, entry } => {
            let context = FilterContext {
                entry,
                port: listener.address.port(),
            };
            let effect = effect(&rule.filters, parts, &context);
            Decision::Rule(Box::new(rule_decision(
                snapshot,
                rule,
                effect,
                Some(&context),
            )))
        }
        Selection::Service(id) => Decision::Service {
            service: snapshot.service(id).name.to_string(),
        },
        Selection::NotFound => Decision::NotFound,
    }
}

fn stream_decision(
    snapshot: &Snapshot,
    listener: &Listener,
    request: &ExplainRequest,
    trace: &mut Trace,
) -> Decision {
    let host = crate::select::host::without_port(request.parts.authority_str());
    match select_stream(listener, (!host.is_empty()).then_some(host), Some(trace)) {
        Some(StreamSelection::Rule(rule)) => {
            let tunnel = (Effect::Tunnel, request.parts.clone());
            Decision::Rule(Box::new(rule_decision(snapshot, rule, tunnel, None)))
        }
        Some(StreamSelection::Service(id)) => Decision::Service {
            service: snapshot.service(id).name.to_string(),
        },
        None => Decision::NotFound,
    }
}

/// `effect` is what the rule's own filters do, and the request after them.
fn rule_decision(
    snapshot: &Snapshot,
    rule: &Rule,
    (effect, after): (Effect, RequestParts),
    context: Option<&FilterContext<'_>>,
) -> RuleDecision {
    let share = |weight: u32| match rule.weight_total {
        0 => 0.0,
        #[allow(clippy::cast_precision_loss, reason = "a share shown to people")]
        total => f64::from(weight) * 100.0 / total as f64,
    };
    let backend = |backend: &Backend| {
        let (service, invalid) = target(snapshot, &backend.target);
        BackendShare {
            service,
            invalid,
            weight: backend.weight,
            percent: share(backend.weight),
            effect: context
                .filter(|_| !backend.filters.is_empty())
                .map(|context| self::effect(&backend.filters, &after, context).0),
        }
    };
    RuleDecision {
        route: rule.route.to_string(),
        rule: rule.name.to_string(),
        backends: rule.backends.iter().map(backend).collect(),
        mirrors: mirrors(snapshot, &rule.filters),
        timeouts: Timeouts {
            request: rule.request_timeout.and_then(duration::format),
            backend_request: rule.try_timeout.and_then(duration::format),
        },
        retry: rule.retry.as_ref().map(retry),
        session: rule.session.as_ref().map(session),
        effect,
    }
}

fn target(snapshot: &Snapshot, target: &BackendTarget) -> (Option<String>, Option<String>) {
    match target {
        BackendTarget::Service(id) => (Some(snapshot.service(*id).name.to_string()), None),
        BackendTarget::Invalid(reason) => (None, Some(reason.to_string())),
    }
}

fn mirrors(snapshot: &Snapshot, filters: &[Filter]) -> Vec<MirrorShare> {
    filters
        .iter()
        .filter_map(|filter| match filter {
            Filter::Mirror(mirror) => {
                let (service, invalid) = target(snapshot, &mirror.target);
                Some(MirrorShare {
                    service,
                    invalid,
                    percent: f64::from(mirror.numerator) * 100.0 / f64::from(mirror.denominator),
                })
            }
            _ => None,
        })
        .collect()
}

/// What filters make of a request, and the request after them.
fn effect(
    filters: &[Filter],
    before: &RequestParts,
    context: &FilterContext<'_>,
) -> (Effect, RequestParts) {
    let mut parts = before.clone();
    let cors = CorsRequest::of(filters, &parts);
    let effect = match apply_request_filters(filters, &mut parts, context) {
        FilterOutcome::Continue => {
            let mut answer = HeaderMap::new();
            apply_response_filters(filters, cors.as_ref(), &mut answer);
            let mut response_headers = changes(&HeaderMap::new(), &answer);
            response_headers.extend(removals(filters));
            Effect::Forward {
                host: parts.authority_str().to_owned(),
                path: parts.path_and_query.to_string(),
                headers: changes(&before.headers, &parts.headers),
                response_headers,
            }
        }
        FilterOutcome::Respond { status, headers } => Effect::Respond {
            status: status.as_u16(),
            headers: changes(&HeaderMap::new(), &headers),
        },
        FilterOutcome::Failed(reason) => Effect::Failed {
            reason: reason.to_owned(),
        },
    };
    (effect, parts)
}

/// Names that response filters remove, which an empty answer does not show.
fn removals(filters: &[Filter]) -> impl Iterator<Item = HeaderChange> + '_ {
    filters
        .iter()
        .filter_map(|filter| match filter {
            Filter::ResponseHeaders(modifier) => Some(&modifier.remove),
            _ => None,
        })
        .flatten()
        .map(|name| HeaderChange {
            name: name.to_string(),
            value: None,
        })
}

fn changes(before: &HeaderMap, after: &HeaderMap) -> Vec<HeaderChange> {
    let all = |headers: &HeaderMap, name: &http::HeaderName| {
        let values: Vec<_> = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        (!values.is_empty()).then(|| values.join(","))
    };
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    after
        .keys()
        .chain(gone)
        .map(|name| (name, all(before, name), all(after, name)))
        .filter(|(_, before, after)| before != after)
        .map(|(name, _, value)| HeaderChange {
            name: name.to_string(),
            value,
        })
        .collect()
}

fn retry(policy: &RetryPolicy) -> Retry {
    Retry {
        attempts: policy.attempts,
        codes: policy.codes.iter().map(|code| code.as_u16()).collect(),
        grpc_codes: policy.grpc_codes.clone(),
        backoff: duration::format(policy.backoff).unwrap_or_default(),
    }
}

fn session(session: &SessionPersistence) -> String {
    match &session.source {
        SessionSource::Cookie(name) => format!("cookie {name}"),
        SessionSource::Header(name) => format!("header {name}"),
    }
}

/// `/` for what is no path.
fn path_or_root(text: &str) -> PathAndQuery {
    text.parse()
        .unwrap_or_else(|_| PathAndQuery::from_static("/"))
}

#[cfg(test)]
mod tests;

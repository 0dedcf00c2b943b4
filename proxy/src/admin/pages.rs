//! The pages but for metrics: each reads the state as it is now.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use weft_config::explain::{ExplainRequest, explain as explain_request};
use weft_config::snapshot::{Destination, ListenerRole};

use super::{Answer, json as json_answer, text};
use crate::control::{Control, Request};
use crate::drain::Phase;
use crate::health::{application, with_sources};
use crate::state::mesh::MeshState;
use crate::state::{ServiceState, Shared};
use crate::telemetry::timestamp::rfc3339;

/// Headers of a request to explain; a client sends fewer.
const EXPLAIN_HEADERS_MAX: usize = 100;

/// Whether traffic is welcome, or why not.
pub fn ready(control: &Control) -> Answer {
    let shared = &control.shared;
    let reason = match shared.drain.phase() {
        Phase::Leaving => Some("leaving"),
        Phase::Draining => Some("draining"),
        Phase::Closing => Some("closing"),
        Phase::Running if !shared.ready.load(Ordering::Relaxed) => Some("starting"),
        Phase::Running if shared.runtime.load().listeners.is_empty() => Some("no listener"),
        Phase::Running => shared.mesh.as_deref().and_then(awaited),
    };
    let Some(reason) = reason else {
        return text(StatusCode::OK, "ready\n");
    };
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("not ready: {reason}\n"),
    )
}

/// What a sidecar waits for that is not to be ready without a controller.
fn awaited(mesh: &MeshState) -> Option<&'static str> {
    if !mesh.config.await_controller {
        None
    } else if mesh.tls.load().is_none() {
        Some("no certificate yet (/mesh says why)")
    } else if !mesh.synced.load(Ordering::Relaxed) {
        Some("no controller has told yet what the workload needs (/mesh says why)")
    } else {
        None
    }
}

pub fn config(control: &Control) -> Answer {
    let runtime = control.shared.runtime.load_full();
    let applied = control.applied.lock();
    let refused = applied.refused.as_ref().map(|(time, errors)| {
        json!({
            "time": rfc3339(*time),
            "errors": errors.lines().collect::<Vec<_>>(),
        })
    });
    let source = serde_json::to_value(applied.source.as_ref()).unwrap_or(Value::Null);
    let page = json!({
        "revision": runtime.snapshot.revision,
        "generation": runtime.generation,
        "from": applied.from,
        "since": rfc3339(applied.since),
        "lastReloadRefused": refused,
        "config": source,
    });
    json_answer(StatusCode::OK, &page)
}

pub fn listeners(control: &Control) -> Answer {
    let runtime = control.shared.runtime.load_full();
    let applied = control.applied.lock();
    let bound = |name: &str| {
        let found = applied.bound.iter().find(|(of, _)| **of == *name);
        found.map(|(_, address)| address.to_string())
    };
    let listeners: Vec<Value> = runtime
        .listeners
        .iter()
        .map(|listener| {
            let config = &listener.config;
            let certificates = listener.tls.iter().flat_map(|tls| tls.expiries());
            let (role, destination) = role(&config.role);
            json!({
                "name": *config.name,
                "address": config.address.to_string(),
                "bound": bound(&config.name),
                "role": role,
                "destination": destination.map(ToString::to_string),
                "protocol": format!("{:?}", config.protocol).to_lowercase(),
                "connections": listener.connections.load(Ordering::Relaxed),
                "certificates": certificates.map(|expiry| json!({
                    "file": expiry.file.display().to_string(),
                    "notAfterUnix": expiry.not_after,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    json_answer(StatusCode::OK, &json!({ "listeners": listeners }))
}

/// What a listener is to the mesh, and what is dialled there.
fn role(role: &ListenerRole) -> (&'static str, Option<&Destination>) {
    match role {
        ListenerRole::Direct => ("direct", None),
        ListenerRole::Outbound { destination } => ("outbound", destination.as_ref()),
        ListenerRole::Inbound => ("inbound", None),
        ListenerRole::Virtual { destination } => ("virtual", destination.as_ref()),
    }
}

pub fn endpoints(control: &Control) -> Answer {
    let runtime = control.shared.runtime.load_full();
    let services: Vec<Value> = runtime
        .services
        .iter()
        .map(|service| service_json(&control.shared, service))
        .collect();
    json_answer(StatusCode::OK, &json!({ "services": services }))
}

fn service_json(shared: &Shared, service: &ServiceState) -> Value {
    let now = shared.now();
    let set = service.endpoints.load();
    let endpoints: Vec<Value> = set
        .endpoints()
        .iter()
        .map(|endpoint| {
            let ejected = endpoint.is_ejected(now);
            let left = endpoint.ejected_until().since(now).as_secs_f64();
            json!({
                "address": endpoint.address().to_string(),
                "zone": **endpoint.zone(),
                "weight": endpoint.weight(),
                "health": format!("{:?}", endpoint.health()).to_lowercase(),
                "draining": endpoint.is_draining(),
                "ejectedForSeconds": ejected.then_some(left),
                "ejections": endpoint.ejections(),
                "consecutiveFailures": endpoint.consecutive_failures(),
                "available": endpoint.is_available(now),
                "inFlight": endpoint.in_flight(),
                "latencyMs": endpoint.latency(now).map(|time| time.as_secs_f64() * 1e3),
                "warmth": endpoint.warmth(now, service.config.balancer.slow_start),
            })
        })
        .collect();
    json!({
        "name": *service.config.name,
        "rotation": format!("{:?}", set.rotation(now)).to_lowercase(),
        "endpoints": endpoints,
    })
}

/// What would happen to a request: the same code that routes one.
pub fn explain(control: &Control, query: &str) -> Answer {
    let (mut url, mut method, mut listener) = (None, "GET".to_owned(), None);
    let mut headers = Vec::new();
    for (name, value) in parse_query(query) {
        match name.as_str() {
            "url" => url = Some(value),
            "method" => method = value,
            "listener" => listener = Some(value),
            "header" if headers.len() < EXPLAIN_HEADERS_MAX => headers.push(value),
            _ => {
                let known = "url, method, header (name: value; may be repeated), listener";
                let error = format!("unknown or too many: {name:?}; there are {known}\n");
                return text(StatusCode::BAD_REQUEST, error);
            }
        }
    }
    let Some(url) = url else {
        return text(
            StatusCode::BAD_REQUEST,
            "give a URL: /explain?url=http://host/path\n",
        );
    };
    let line = format!("{method} {url}");
    let request = match ExplainRequest::parse(&line, headers.iter().map(String::as_str)) {
        Ok(request) => request,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    let runtime = control.shared.runtime.load_full();
    match explain_request(&runtime.snapshot, listener.as_deref(), &request) {
        Ok(explanation) => match serde_json::to_value(&explanation) {
            Ok(page) => json_answer(StatusCode::OK, &page),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// `application/x-www-form-urlencoded`, as URLs have it.
fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => out.push(b' '),
            b'%' => match after.split_at_checked(2).and_then(|(hex, after)| {
                let hex = std::str::from_utf8(hex).ok()?;
                Some((u8::from_str_radix(hex, 16).ok()?, after))
            }) {
                Some((decoded, after)) => {
                    out.push(decoded);
                    rest = after;
                }
                None => out.push(byte),
            },
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub async fn reload(control: &Control) -> Answer {
    let (sender, receiver) = oneshot::channel();
    if control.requests.try_send(Request::Reload(sender)).is_err() {
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy or leaving; try again\n",
        );
    }
    match receiver.await {
        Ok(Ok(done)) => text(StatusCode::OK, format!("{done}\n")),
        Ok(Err(errors)) => text(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("refused; the configuration in force stays:\n{errors}\n"),
        ),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "leaving\n"),
    }
}

/// How a sidecar stands with its controller.
pub fn mesh(control: &Control) -> Answer {
    let Some(mesh) = &control.shared.mesh else {
        let said = "this is no sidecar: the configuration has no settings.mesh\n";
        return text(StatusCode::NOT_FOUND, said);
    };
    let told = mesh.told.lock().clone();
    let expires_in = told.certificate_expires.map(|expires| {
        let left = expires
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        left.as_secs()
    });
    let refused: Vec<Value> = told
        .refused
        .iter()
        .map(|(resource, problem)| json!({"resource": resource, "problem": problem}))
        .collect();
    let resources: serde_json::Map<String, Value> = told
        .resources
        .iter()
        .map(|(kind, count)| ((*kind).to_owned(), json!(count)))
        .collect();
    json_answer(
        StatusCode::OK,
        &json!({
            "identity": mesh.config.identity.as_str(),
            "workload": mesh.config.workload.as_ref(),
            "certificateExpiresInSeconds": expires_in,
            "controller": told.controller,
            "problem": told.problem,
            "resources": resources,
            "refused": refused,
            "inFlight": mesh.gate.inside(),
        }),
    )
}

/// A sidecar's drain barrier: answers when nothing more will reach the application.
pub async fn leave(control: &Control) -> Answer {
    let (answer, left) = tokio::sync::oneshot::channel();
    if control.requests.try_send(Request::Leave(answer)).is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "busy; ask again\n");
    }
    match left.await {
        Ok(left) => json_answer(
            StatusCode::OK,
            &json!({
                "users": left.users,
                "acknowledged": left.acknowledged,
                "inFlight": left.in_flight,
            }),
        ),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "ending\n"),
    }
}

/// A kubelet's probe that only we can make: 200, or 503 and why.
pub async fn probe(control: &Control, index: &str, headers: HeaderMap) -> Answer {
    let mesh = control.shared.mesh.as_ref();
    let index = index.parse::<usize>().ok();
    let found = mesh.zip(index).and_then(|(mesh, index)| {
        let probe = mesh.config.probes.get(index)?;
        (!probe.comes_in()).then_some((probe, mesh.config.application))
    });
    let Some((probe, application)) = found else {
        let said = "no probe of kind tcp or https has this number in settings.mesh.probes\n";
        return text(StatusCode::NOT_FOUND, said);
    };
    let tried = application::attempt(probe, application, headers).await;
    control.shared.metrics.probed(probe.label(), tried.is_ok());
    match tried {
        Ok(()) => text(StatusCode::OK, "ok\n"),
        Err(error) => {
            let error = with_sources(&error);
            text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
        }
    }
}

pub fn drain(control: &Control) -> Answer {
    match control.requests.try_send(Request::Drain) {
        Ok(()) => text(StatusCode::ACCEPTED, "draining\n"),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "busy or leaving already\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let pairs = parse_query("url=http%3A%2F%2Fa%2Fb%3Fc&header=x:+1&&bad=%zz%4&flag");
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (&**a, &**b)).collect();
        let want = [
            ("url", "http://a/b?c"),
            ("header", "x: 1"),
            ("bad", "%zz%4"),
            ("flag", ""),
        ];
        assert_eq!(pairs, want);
    }
}

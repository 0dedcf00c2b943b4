//! What a mesh of these manifests would do with a request: the caller's sidecar
//! routes it, and that of each endpoint decides whether it is let in.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use http::{HeaderMap, HeaderName, HeaderValue};
use weft_config::authorize::{Access, AccessRequest, Reason, Verdict, evaluate};
use weft_config::explain::{Decision, Effect, ExplainRequest, Explanation, HeaderChange, explain};
use weft_config::filter::RequestParts;
use weft_config::snapshot;
use weft_config::spiffe::SpiffeId;

use super::{Answer, Endpoint, Endpoints, services};
use crate::offline::Offline;

/// Who asks, in a form that policies know.
struct Caller {
    identity: SpiffeId,
    address: IpAddr,
}

pub fn answer(
    folder: &Path,
    (from, trust_domain): (&str, &str),
    (dialled, request): (&str, &ExplainRequest),
) -> Result<Answer> {
    let (namespace, account) = from
        .split_once('/')
        .with_context(|| format!("--from {from}: it has the form NAMESPACE/SERVICE-ACCOUNT"))?;
    let identity = SpiffeId::new(trust_domain, namespace, account)
        .with_context(|| format!("--from {from}"))?;
    let offline = Offline::read(folder, trust_domain)?;
    let name = name(dialled, namespace);
    let found = offline.destination(namespace, &name).ok_or_else(|| {
        let known: Vec<String> = offline.dialled().map(|(_, name)| name).collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        anyhow!(
            "{name} is no port of a Service in {}: there are {known}",
            folder.display()
        )
    })?;
    let (listener, snapshot) =
        found.map_err(|errors| anyhow!("a sidecar would refuse this destination: {errors}"))?;
    let explanation = explain(&snapshot, Some(&listener), request)?;
    let caller = Caller {
        address: address_of(&offline, namespace, account),
        identity,
    };
    let endpoints = services(&explanation).into_iter().map(|service| {
        let after = after(&explanation, &service, &request.parts);
        let found = snapshot.services.iter().find(|of| *of.name == *service);
        let endpoints = found.map_or(&[][..], |of| &of.endpoints);
        let shown = endpoints
            .iter()
            .map(|endpoint| decide(&offline, endpoint, &caller, &after));
        Endpoints {
            endpoints: shown.collect(),
            service,
        }
    });
    Ok(Answer {
        endpoints: endpoints.collect(),
        explanation,
    })
}

/// The destination's name as sidecars ask for it.
fn name(dialled: &str, namespace: &str) -> String {
    match dialled.rsplit_once(':') {
        Some((host, port)) if !host.contains(['.', ':']) => format!("{host}.{namespace}:{port}"),
        _ => dialled.to_owned(),
    }
}

/// Of a pod of this account, for policies that go by addresses.
fn address_of(offline: &Offline, namespace: &str, account: &str) -> IpAddr {
    let mut pods = offline.pods();
    let pod = pods.find(|(of, pod)| *of == namespace && pod.account == account);
    let address = pod.and_then(|(_, pod)| pod.addresses.first().copied());
    address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
}

/// The request as it reaches the endpoint.
fn after(explanation: &Explanation, service: &str, before: &RequestParts) -> RequestParts {
    let mut parts = before.clone();
    let Decision::Rule(rule) = &explanation.decision else {
        return parts;
    };
    let mut backends = rule.backends.iter();
    let backend = backends.find(|backend| backend.service.as_deref() == Some(service));
    let own = backend.and_then(|backend| backend.effect.as_ref());
    for effect in [Some(&rule.effect), own].into_iter().flatten() {
        if let Effect::Forward {
            host,
            path,
            headers,
            ..
        } = effect
        {
            parts.authority = host.parse().ok().or(parts.authority);
            parts.path_and_query = path.parse().unwrap_or(parts.path_and_query);
            headers
                .iter()
                .for_each(|change| alter(&mut parts.headers, change));
        }
    }
    parts
}

fn alter(headers: &mut HeaderMap, change: &HeaderChange) {
    let Ok(name) = HeaderName::try_from(change.name.as_str()) else {
        return;
    };
    match change.value.as_deref().map(HeaderValue::from_str) {
        Some(Ok(value)) => drop(headers.insert(name, value)),
        Some(Err(_)) => {}
        None => drop(headers.remove(name)),
    }
}

/// What the sidecar of an endpoint would say.
fn decide(
    offline: &Offline,
    endpoint: &snapshot::Endpoint,
    caller: &Caller,
    request: &RequestParts,
) -> Endpoint {
    let address = endpoint.address.to_string();
    let Some(peer) = &endpoint.peer else {
        return Endpoint {
            address,
            available: endpoint.weight > 0,
            state: "plain text: it has no sidecar, and nobody asks who is calling".to_owned(),
            ..Endpoint::default()
        };
    };
    let port = endpoint.address.port();
    let (available, state) = match offline.inbound(&peer.workload, port) {
        None => (false, "its Pod is not there".to_owned()),
        Some(Err(errors)) => (
            false,
            format!("its sidecar would refuse its policies: {errors}"),
        ),
        Some(Ok(inbound)) => {
            let access = Access {
                identity: Some(&caller.identity),
                address: caller.address,
                port,
                request: Some(AccessRequest {
                    method: &request.method,
                    path: request.path_and_query.path(),
                    authority: request.authority_str(),
                    headers: &request.headers,
                }),
            };
            let listener = inbound.listeners.first();
            let rules = listener.and_then(|listener| listener.inbound.as_ref());
            match rules.map(|rules| evaluate(&rules.authorization, &access)) {
                Some(verdict) => (verdict.allowed, said(&verdict)),
                None => (true, "allowed: no policy".to_owned()),
            }
        }
    };
    Endpoint {
        address,
        workload: peer.workload.to_string(),
        identity: peer.identity.to_string(),
        available,
        state,
    }
}

fn said(verdict: &Verdict) -> String {
    let by = |decided: &str| {
        let policy = verdict.policy.as_deref().unwrap_or_default();
        let rule = verdict.rule.as_deref().filter(|rule| !rule.is_empty());
        let rule = rule.map_or(String::new(), |rule| format!(", rule {rule}"));
        format!("{decided} by AuthorizationPolicy {policy}{rule}")
    };
    match verdict.reason {
        Reason::Allowed => by("allowed"),
        Reason::Denied => by("denied (403)"),
        Reason::NotAllowed => "denied (403): no allow policy matches".to_owned(),
        Reason::Default if verdict.allowed => "allowed: no policy is about it".to_owned(),
        Reason::Default => "denied (403): by the workload's default".to_owned(),
    }
}

//! Asks the policies of a port of the local workload, and tells what they said.

use std::sync::Arc;

use http::HeaderValue;
use weft_config::authorize::{Access, AccessRequest, Authorization, Verdict, audits, evaluate};

use super::Connection;
use super::request::Incoming;
use super::respond::{Answer, POLICY};
use crate::logic::cause::Cause;
use crate::state::ListenerState;

/// Whether a request may pass; else the answer that says who denies it.
pub fn request(
    connection: &Connection,
    listener: &ListenerState,
    incoming: &Incoming,
) -> Result<(), Answer> {
    let Some(authorization) = policies(listener) else {
        return Ok(());
    };
    let asked = AccessRequest {
        method: &incoming.parts.method,
        path: incoming.parts.path_and_query.path(),
        authority: incoming.parts.authority_str(),
        headers: &incoming.parts.headers,
    };
    let verdict = decide(connection, authorization, Some(asked));
    if verdict.allowed {
        return Ok(());
    }
    let mut answer = Answer::of(Cause::Denied, "");
    let who = named(&verdict);
    if let Ok(value) = HeaderValue::from_str(&who) {
        answer.headers.insert(POLICY, value);
    }
    Err(answer)
}

/// The same for an opaque connection; the label that it is closed with.
pub fn connection(connection: &Connection, listener: &ListenerState) -> Result<(), &'static str> {
    let Some(authorization) = policies(listener) else {
        return Ok(());
    };
    match decide(connection, authorization, None).allowed {
        true => Ok(()),
        false => Err(Cause::Denied.label()),
    }
}

/// `None`: nothing can be denied here.
fn policies(listener: &ListenerState) -> Option<&Authorization> {
    let inbound = listener.config.inbound.as_ref()?;
    let authorization = &inbound.authorization;
    (authorization.deny_by_default || !authorization.policies.is_empty()).then_some(authorization)
}

fn decide(
    connection: &Connection,
    authorization: &Authorization,
    request: Option<AccessRequest<'_>>,
) -> Verdict {
    let access = Access {
        identity: connection.peer.as_ref().map(|peer| &peer.identity),
        address: connection.client.ip().to_canonical(),
        port: connection.local.port(),
        request,
    };
    let metrics = &connection.worker.shared.metrics;
    for audit in audits(authorization, &access) {
        metrics.authorized(audit, "audit");
        tell(connection, &access, audit, "audited");
    }
    let verdict = evaluate(authorization, &access);
    if !verdict.allowed {
        let policy = verdict.policy.as_deref().unwrap_or("");
        metrics.authorized(policy, "deny");
        tell(connection, &access, &named(&verdict), "denied");
    }
    verdict
}

fn tell(connection: &Connection, access: &Access<'_>, by: &str, what: &'static str) {
    let peer = access
        .identity
        .map_or("nobody", |identity| identity.as_str());
    let (method, path) = access
        .request
        .map_or(("", ""), |request| (request.method.as_str(), request.path));
    tracing::info!(
        listener = %connection.listener, client = %connection.client, peer, method, path, by, "{what}"
    );
}

/// Policy and rule, or what stands in their place.
fn named(verdict: &Verdict) -> String {
    use weft_config::authorize::Reason;
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or("").to_owned();
    match verdict.reason {
        Reason::Denied | Reason::Allowed => {
            format!("{} rule {}", text(&verdict.policy), text(&verdict.rule))
        }
        Reason::NotAllowed => "no allow policy matches".to_owned(),
        Reason::Default => "defaultAction: deny".to_owned(),
    }
}

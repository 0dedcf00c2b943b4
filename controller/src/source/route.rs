//! Routes of Gateway API as our own: the form of their rules is the same but for references, some
//! nesting, and filters that only Gateway API knows.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_config::wire;

use super::manifest::{Fault, namespace_of, take, text_of, typed};
use crate::api::Route;

/// Gateway API's filters that are not ours, by type and field.
const UNKNOWN_FILTERS: [(&str, &str); 2] = [
    ("ExtensionRef", "extensionRef"),
    ("ExternalAuth", "externalAuth"),
];

pub(super) fn route(kind: &str, whole: &Value, mut spec: Value) -> Result<Route, Fault> {
    let parents = take(&mut spec, "parentRefs", "spec")?.unwrap_or_default();
    // Gateway API: ignored on routes whose parent is a Service.
    if let Some(map) = spec.as_object_mut() {
        map.remove("hostnames");
        map.remove("useDefaultGateways");
    }
    let mut unsupported = BTreeMap::new();
    let namespace = namespace_of(whole);
    let rules = spec.get_mut("rules").and_then(Value::as_array_mut);
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let at = format!("spec.rules[{index}]");
        if let Some(filter) = unknown_filter(rule) {
            unsupported.insert(index, filter);
        }
        cookie_lifetime(rule);
        backends(rule, namespace, &at)?;
        if kind == "GRPCRoute" {
            let matches = rule.get_mut("matches").and_then(Value::as_array_mut);
            for of in matches
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                if let Some(method) = of.remove("method") {
                    of.insert("grpcMethod".to_owned(), method);
                }
            }
        }
    }
    let mut wire: wire::Route = typed(&spec, "spec")?;
    wire.set_kind(match kind {
        "GRPCRoute" => wire::route::Kind::Grpc,
        "TLSRoute" => wire::route::Kind::Tls,
        "TCPRoute" => wire::route::Kind::Tcp,
        _ => wire::route::Kind::Http,
    });
    namespace.clone_into(&mut wire.namespace);
    text_of(whole, "/metadata/name").clone_into(&mut wire.name);
    text_of(whole, "/metadata/creationTimestamp").clone_into(&mut wire.creation_timestamp);
    Ok(Route {
        parents,
        wire,
        unsupported,
    })
}

/// Takes filters that we do not know out of a rule; where the first was.
fn unknown_filter(rule: &mut Value) -> Option<String> {
    let mut found = unknown_filters(rule, "");
    let backends = rule.get_mut("backendRefs").and_then(Value::as_array_mut);
    for (index, backend) in backends.into_iter().flatten().enumerate() {
        let of = unknown_filters(backend, &format!("backendRefs[{index}]."));
        found = found.or(of);
    }
    found
}

fn unknown_filters(owner: &mut Value, at: &str) -> Option<String> {
    let filters = owner.get_mut("filters").and_then(Value::as_array_mut)?;
    let unknown = |filter: &Value| {
        let mut known = UNKNOWN_FILTERS.iter();
        let kind = known.find(|(kind, field)| {
            filter.get("type").and_then(Value::as_str) == Some(kind) || filter.get(field).is_some()
        });
        kind.map(|(kind, _)| *kind)
    };
    let mut filters_at = filters.iter().enumerate();
    let first = filters_at.find_map(|(index, filter)| Some((index, unknown(filter)?)));
    filters.retain(|filter| unknown(filter).is_none());
    first.map(|(index, kind)| format!("{at}filters[{index}]: {kind} is not supported"))
}

/// Gateway API nests what our form has beside the rest.
fn cookie_lifetime(rule: &mut Value) {
    let session = rule.get_mut("sessionPersistence");
    if let Some(session) = session.and_then(Value::as_object_mut)
        && let Some(config) = session.remove("cookieConfig")
        && let Some(lifetime) = config.get("lifetimeType")
    {
        session.insert("cookieLifetime".to_owned(), lifetime.clone());
    }
}

/// Gives every reference to a backend, mirrors' too, the one name that the index knows.
fn backends(rule: &mut Value, namespace: &str, at: &str) -> Result<(), Fault> {
    let list = rule.get_mut("backendRefs").and_then(Value::as_array_mut);
    for (index, backend) in list.into_iter().flatten().enumerate() {
        backend_name(backend, namespace, &format!("{at}.backendRefs[{index}]"))?;
        mirrors(backend, namespace, &format!("{at}.backendRefs[{index}]"))?;
    }
    mirrors(rule, namespace, at)
}

fn mirrors(owner: &mut Value, namespace: &str, at: &str) -> Result<(), Fault> {
    let filters = owner.get_mut("filters").and_then(Value::as_array_mut);
    for (index, filter) in filters.into_iter().flatten().enumerate() {
        if let Some(backend) = filter.pointer_mut("/requestMirror/backendRef") {
            let at = format!("{at}.filters[{index}].requestMirror.backendRef");
            backend_name(backend, namespace, &at)?;
        }
    }
    Ok(())
}

fn backend_name(backend: &mut Value, namespace: &str, at: &str) -> Result<(), Fault> {
    let group: String = take(backend, "group", at)?.unwrap_or_default();
    let kind: String = take(backend, "kind", at)?.unwrap_or_else(|| "Service".to_owned());
    let own: Option<String> = take(backend, "namespace", at)?;
    let port: u16 = take(backend, "port", at)?.unwrap_or(0);
    let name = text_of(backend, "/name").to_owned();
    let Some(map) = backend.as_object_mut() else {
        return Err((at.to_owned(), "must be a map".to_owned()));
    };
    let namespace = own.as_deref().unwrap_or(namespace);
    map.insert(
        "name".to_owned(),
        json!(format!("{namespace}/{name}:{port}")),
    );
    if (group.as_str(), kind.as_str()) != ("", "Service") {
        map.insert("invalid".to_owned(), json!("InvalidKind"));
    }
    Ok(())
}

//! Configurations that many tests begin with.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// One HTTP listener, `web`, whose service `up` has these endpoints.
#[must_use]
pub fn front(listen: SocketAddr, endpoints: &[SocketAddr]) -> Value {
    json!({
        "listeners": [{
            "name": "web",
            "address": listen.to_string(),
            "protocol": "http",
            "service": "up",
        }],
        "services": [service("up", endpoints)],
        "routes": [],
    })
}

/// A service with these endpoints.
#[must_use]
pub fn service(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|address| json!({"address": address.to_string()}))
        .collect();
    json!({"name": name, "endpoints": endpoints})
}

/// A route of listener `web` with these rules.
#[must_use]
pub fn route(name: &str, rules: Value) -> Value {
    json!({
        "name": name,
        "parentRefs": [{"kind": "Listener", "name": "web"}],
        "rules": rules,
    })
}

/// One opaque listener, `port`, in front of these endpoints.
#[must_use]
pub fn opaque(listen: SocketAddr, endpoints: &[SocketAddr]) -> Value {
    let mut up = service("up", endpoints);
    up["protocol"] = json!("tcp");
    json!({
        "listeners": [{
            "name": "port",
            "address": listen.to_string(),
            "protocol": "tcp",
            "service": "up",
        }],
        "services": [up],
        "routes": [],
    })
}

/// Adds to one of a configuration's lists: `listeners`, `services`, `routes`.
pub fn push(config: &mut Value, list: &str, entry: Value) {
    config[list]
        .as_array_mut()
        .expect("it is a list")
        .push(entry);
}

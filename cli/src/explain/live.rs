//! Asking a proxy that runs: which of its listeners is dialled, what it decides,
//! and how the endpoints stand that it may pick.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use weft_config::explain::Explanation;

use super::{Answer, Endpoint, Endpoints, dialled, services};
use crate::mesh::Door;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked of whom.
pub struct Asked<'a> {
    pub proxy: Door,
    /// Addresses that the host of the URL stands for, with the port.
    pub addresses: Vec<String>,
    /// The request as it was typed.
    pub line: &'a [String],
    pub headers: &'a [String],
    pub listener: Option<&'a str>,
}

pub async fn answer(asked: &Asked<'_>) -> Result<Answer> {
    let listeners = page(&asked.proxy, "/listeners").await?;
    let listeners = list(&listeners, "listeners");
    let dialled = [vec![dialled(asked.line)], asked.addresses.clone()].concat();
    let listener = match asked.listener {
        Some(listener) => Some(listener.to_owned()),
        None => find(listeners, &dialled)?,
    };
    let (url, method) = match asked.line {
        [method, url] => (url.as_str(), method.as_str()),
        line => (line.first().map_or("", String::as_str), "GET"),
    };
    let mut query = format!("/explain?url={}&method={}", encode(url), encode(method));
    for header in asked.headers {
        query.push_str(&format!("&header={}", encode(header)));
    }
    if let Some(listener) = listener {
        query.push_str(&format!("&listener={}", encode(&listener)));
    }
    let explanation = page(&asked.proxy, &query).await?;
    let explanation: Explanation = serde_json::from_value(explanation).with_context(|| {
        format!(
            "what {} answers: is it of another version?",
            asked.proxy.name()
        )
    })?;
    let states = page(&asked.proxy, "/endpoints").await?;
    let endpoints = services(&explanation).into_iter().map(|service| {
        let named = |of: &&Value| of.get("name").and_then(Value::as_str) == Some(&service);
        let found = list(&states, "services").iter().find(named);
        let endpoints = found.map_or(&[][..], |of| list(of, "endpoints"));
        Endpoints {
            endpoints: endpoints.iter().map(endpoint).collect(),
            service,
        }
    });
    Ok(Answer {
        endpoints: endpoints.collect(),
        explanation,
    })
}

async fn page(proxy: &Door, path: &str) -> Result<Value> {
    let page = proxy.get(path, ANSWER_TIMEOUT).await;
    let page = match proxy {
        Door::Address(_) => page.context(
            "the proxy is named by --proxy, its admin address; --config and --manifests need none, --pod is a cluster's",
        )?,
        Door::Pod(..) => page?,
    };
    serde_json::from_slice(&page.body)
        .with_context(|| format!("{}{path} is not a weft-proxy's", proxy.name()))
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let list = value.get(name).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("")
}

/// The listener that is dialled, by one of these. `None`: the proxy has none of a mesh, and finds
/// it by the port.
fn find(listeners: &[Value], dialled: &[String]) -> Result<Option<String>> {
    let is = |name: &'static str, value: &str| {
        let value = value.to_owned();
        move |listener: &&Value| text(listener, name) == value
    };
    let virtual_of = |destination: &str| {
        let mut of_role = listeners.iter().filter(is("role", "virtual"));
        of_role.find(is("destination", destination))
    };
    if let Some(found) = dialled.iter().find_map(|dialled| virtual_of(dialled)) {
        return Ok(Some(text(found, "name").to_owned()));
    }
    let mut bound = listeners.iter();
    let bound = bound.find(|listener| {
        text(listener, "role") != "virtual"
            && dialled.iter().any(|dialled| {
                [text(listener, "address"), text(listener, "bound")].contains(&&**dialled)
            })
    });
    if let Some(bound) = bound {
        let destination = text(bound, "destination");
        let found = virtual_of(destination).unwrap_or(bound);
        return Ok(Some(text(found, "name").to_owned()));
    }
    let known: Vec<&str> = listeners
        .iter()
        .filter(is("role", "virtual"))
        .map(|listener| text(listener, "destination"))
        .filter(|destination| !destination.is_empty())
        .collect();
    if known.is_empty() {
        return Ok(None);
    }
    bail!(
        "this sidecar knows nothing of {}: nobody has dialled it there lately, or it is no part of the mesh; it knows {}; --listener names a listener, --manifests asks files",
        dialled.join(" or "),
        known.join(", ")
    )
}

fn endpoint(value: &Value) -> Endpoint {
    let number = |name: &str| value.get(name).and_then(Value::as_f64);
    let available = value.get("available").and_then(Value::as_bool) == Some(true);
    let draining = value.get("draining").and_then(Value::as_bool) == Some(true);
    let mut state = match () {
        () if draining => "leaving: not picked while another is there".to_owned(),
        () if text(value, "health") == "unhealthy" => "unhealthy: not picked".to_owned(),
        () => match number("ejectedForSeconds") {
            Some(seconds) => format!("ejected for its failures, for another {seconds:.1} s"),
            None if available => "in rotation".to_owned(),
            None => "not picked".to_owned(),
        },
    };
    if let Some(latency) = number("latencyMs") {
        state.push_str(&format!(", {latency:.1} ms"));
    }
    if let Some(in_flight) = number("inFlight") {
        state.push_str(&format!(", {in_flight:.0} in flight"));
    }
    Endpoint {
        address: text(value, "address").to_owned(),
        available,
        state,
        ..Endpoint::default()
    }
}

/// For a query (RFC 3986 §2.3: what need not be encoded).
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_listener_is_the_one_that_is_dialled() {
        let listeners = [
            json!({"name": "in", "role": "inbound", "address": "127.1.0.1:14008"}),
            json!({"name": "up", "role": "outbound", "address": "127.0.0.1:9001", "destination": "web.shop:80"}),
            json!({"name": "shop/web:80@name", "role": "virtual", "address": "0.0.0.0:80", "destination": "web.shop:80"}),
            json!({"name": "shop/db:80", "role": "virtual", "address": "10.0.0.1:80", "destination": "10.0.0.1:80"}),
        ];
        let find = |listeners: &[Value], dialled: &str| find(listeners, &[dialled.to_owned()]);
        let found = |dialled: &str| find(&listeners, dialled).unwrap();
        assert_eq!(found("web.shop:80").as_deref(), Some("shop/web:80@name"));
        assert_eq!(found("127.0.0.1:9001").as_deref(), Some("shop/web:80@name"));
        assert_eq!(found("10.0.0.1:80").as_deref(), Some("shop/db:80"));
        let error = find(&listeners, "none.shop:80").unwrap_err().to_string();
        assert!(
            error.contains("it knows web.shop:80, 10.0.0.1:80"),
            "{error}"
        );
        assert_eq!(find(&listeners[..1], "shop.example:80").unwrap(), None);
        let both = ["db.shop:80".to_owned(), "10.0.0.1:80".to_owned()];
        let by_address = super::find(&listeners, &both).unwrap();
        assert_eq!(by_address.as_deref(), Some("shop/db:80"));
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encode("a b&c=d/é"), "a%20b%26c%3Dd%2F%C3%A9");
    }
}

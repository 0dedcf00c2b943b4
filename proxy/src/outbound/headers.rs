//! What the proxy adds to a request on its way: Forwarded and X-Forwarded-*
//! (RFC 7239), and the request id.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use rand::RngExt as _;
use weft_config::snapshot::{Forwarded, HttpOptions};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Where the requests of a connection come from, as told to upstreams: made
/// once a connection, for it does not change.
#[derive(Clone, Debug)]
pub struct Origin {
    client: IpAddr,
    value: Option<HeaderValue>,
    tls: bool,
}

impl Origin {
    pub fn new(client: SocketAddr, tls: bool) -> Self {
        let client = client.ip().to_canonical();
        let value = HeaderValue::from_maybe_shared(Bytes::from(client.to_string())).ok();
        Self { client, value, tls }
    }

    /// Applies the listener's policy on forwarding headers.
    pub fn apply(&self, headers: &mut HeaderMap, policy: Forwarded) {
        match policy {
            Forwarded::Preserve => return,
            Forwarded::Append => {}
            Forwarded::Replace | Forwarded::Remove => {
                for name in [
                    header::FORWARDED,
                    X_FORWARDED_FOR,
                    X_FORWARDED_PROTO,
                    X_FORWARDED_HOST,
                ] {
                    headers.remove(name);
                }
            }
        }
        if policy == Forwarded::Remove {
            return;
        }
        self.append_for(headers);
        let proto = if self.tls { "https" } else { "http" };
        headers
            .entry(X_FORWARDED_PROTO)
            .or_insert(HeaderValue::from_static(proto));
        // Forwarded is continued where somebody uses it, not begun.
        if headers.contains_key(header::FORWARDED) {
            let before: Vec<&str> = headers
                .get_all(header::FORWARDED)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .collect();
            let before = before.join(", ");
            let node = match self.client {
                IpAddr::V4(address) => format!("{address}"),
                IpAddr::V6(address) => format!("\"[{address}]\""),
            };
            let joined = format!("{before}, for={node};proto={proto}");
            if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
                headers.insert(header::FORWARDED, value);
            }
        }
    }

    fn append_for(&self, headers: &mut HeaderMap) {
        if !headers.contains_key(X_FORWARDED_FOR) {
            if let Some(value) = &self.value {
                headers.insert(X_FORWARDED_FOR, value.clone());
            }
            return;
        }
        let mut joined = String::with_capacity(48);
        for before in headers.get_all(X_FORWARDED_FOR) {
            if let Ok(before) = before.to_str() {
                joined.push_str(before);
                joined.push_str(", ");
            }
        }
        let _ = write!(joined, "{}", self.client);
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
            headers.insert(X_FORWARDED_FOR, value);
        }
    }
}

/// Says which host the client asked for, where a filter has changed it: the
/// Host field no longer does.
pub fn apply_forwarded_host(headers: &mut HeaderMap, policy: Forwarded, asked: &str) {
    if matches!(policy, Forwarded::Append | Forwarded::Replace)
        && let Ok(host) = HeaderValue::from_str(asked)
    {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

/// Makes sure that the request has an id, if the listener wants one, and
/// returns it.
pub fn apply_request_id(headers: &mut HeaderMap, options: &HttpOptions) -> Option<HeaderValue> {
    let name = options.request_id_header.as_ref()?;
    if options.trust_request_id
        && let Some(sent) = headers.get(name)
    {
        return Some(sent.clone());
    }
    let random: u128 = rand::rng().random();
    let id = HeaderValue::from_maybe_shared(Bytes::from(format!("{random:032x}"))).ok()?;
    headers.insert(name, id.clone());
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn forwarded_policies() {
        let client = "[::ffff:192.0.2.7]:1234".parse().expect("an address");
        let origin = Origin::new(client, true);
        let sent = [("x-forwarded-for", "198.51.100.1"), ("forwarded", "for=a")];
        for (policy, for_, forwarded) in [
            (
                Forwarded::Append,
                Some("198.51.100.1, 192.0.2.7"),
                Some("for=a, for=192.0.2.7;proto=https"),
            ),
            (Forwarded::Replace, Some("192.0.2.7"), None),
            (Forwarded::Preserve, Some("198.51.100.1"), Some("for=a")),
            (Forwarded::Remove, None, None),
        ] {
            let mut headers = headers(&sent);
            origin.apply(&mut headers, policy);
            let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!(text(X_FORWARDED_FOR), for_, "{policy:?}");
            assert_eq!(text(header::FORWARDED), forwarded, "{policy:?}");
        }
    }

    #[test]
    fn proto_and_host_of_an_outer_proxy_stay_when_appending() {
        let origin = Origin::new("192.0.2.7:1".parse().expect("an address"), false);
        let mut map = headers(&[
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outer"),
        ]);
        origin.apply(&mut map, Forwarded::Append);
        apply_forwarded_host(&mut map, Forwarded::Append, "inner");
        assert_eq!(map[X_FORWARDED_PROTO], "https");
        assert_eq!(map[X_FORWARDED_HOST], "outer");
    }
}

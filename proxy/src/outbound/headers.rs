//! What the proxy adds to a request on its way: Forwarded and X-Forwarded-*
//! (RFC 7239), and the request id.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use rand::RngExt as _;
use weft_config::snapshot::{Forwarded, HttpOptions};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Where the request came from, as told to the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub client: SocketAddr,
    pub tls: bool,
    pub host: &'a str,
}

/// Applies the listener's policy on forwarding headers.
pub fn apply_forwarded(headers: &mut HeaderMap, policy: Forwarded, origin: Origin<'_>) {
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
    let client = origin.client.ip().to_canonical();
    append_forwarded_for(headers, client);
    let proto = if origin.tls { "https" } else { "http" };
    headers
        .entry(X_FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static(proto));
    if let Ok(host) = HeaderValue::from_str(origin.host) {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
    // Forwarded is continued where somebody uses it, not begun.
    if let Some(before) = headers.get(header::FORWARDED).and_then(|v| v.to_str().ok()) {
        let node = match client {
            IpAddr::V4(address) => format!("{address}"),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        let joined = format!("{before}, for={node};proto={proto}");
        if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
            headers.insert(header::FORWARDED, value);
        }
    }
}

fn append_forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let mut joined = String::with_capacity(48);
    for before in headers.get_all(X_FORWARDED_FOR) {
        if let Ok(before) = before.to_str() {
            joined.push_str(before);
            joined.push_str(", ");
        }
    }
    let _ = write!(joined, "{client}");
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(X_FORWARDED_FOR, value);
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
    let id = HeaderValue::from_maybe_shared(bytes::Bytes::from(format!("{random:032x}"))).ok()?;
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
        let origin = Origin {
            client: "[::ffff:192.0.2.7]:1234".parse().expect("an address"),
            tls: true,
            host: "shop.example",
        };
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
            apply_forwarded(&mut headers, policy, origin);
            let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!(text(X_FORWARDED_FOR), for_, "{policy:?}");
            assert_eq!(text(header::FORWARDED), forwarded, "{policy:?}");
        }
    }

    #[test]
    fn proto_and_host_of_an_outer_proxy_stay_when_appending() {
        let origin = Origin {
            client: "192.0.2.7:1".parse().expect("an address"),
            tls: false,
            host: "inner",
        };
        let mut map = headers(&[("x-forwarded-proto", "https")]);
        apply_forwarded(&mut map, Forwarded::Append, origin);
        assert_eq!(map[X_FORWARDED_PROTO], "https");
        assert_eq!(map[X_FORWARDED_HOST], "inner");
    }
}

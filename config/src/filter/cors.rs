//! CORS (Fetch §3.2, as `HTTPCORSFilter` wants it): preflights of allowed origins
//! are answered here, other requests go on and their answers get the headers. A
//! request of an origin that is not allowed goes on and gets none, so that the
//! browser refuses it and other clients notice nothing.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::RequestParts;
use crate::snapshot::{Cors, Filter, OriginMatch};

/// What an answer's CORS headers depend on, kept from the request as it came:
/// filters and the upstream may change or consume it.
#[derive(Clone, Debug)]
pub struct CorsRequest {
    origin: HeaderValue,
}

impl CorsRequest {
    /// `None`, and for free, unless the filters do CORS and the request has an `Origin`.
    pub fn of(filters: &[Filter], parts: &RequestParts) -> Option<Self> {
        if !filters
            .iter()
            .any(|filter| matches!(filter, Filter::Cors(_)))
        {
            return None;
        }
        let origin = parts.headers.get(header::ORIGIN)?.clone();
        Some(Self { origin })
    }
}

/// The answer to a preflight that may be answered here.
pub(super) fn preflight(cors: &Cors, parts: &RequestParts) -> Option<HeaderMap> {
    let method = parts.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let origin = parts.headers.get(header::ORIGIN)?;
    if parts.method != Method::OPTIONS || !allows(cors, origin) {
        return None;
    }
    let mut headers = HeaderMap::with_capacity(8);
    allow_origin(cors, origin, &mut headers);
    let asked_headers = parts.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    list(
        &mut headers,
        (header::ACCESS_CONTROL_ALLOW_METHODS, &cors.allow_methods),
        cors.allow_credentials,
        Some(method),
    );
    list(
        &mut headers,
        (header::ACCESS_CONTROL_ALLOW_HEADERS, &cors.allow_headers),
        cors.allow_credentials,
        asked_headers,
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, cors.max_age.into());
    Some(headers)
}

/// Headers of the answer to what is no preflight.
pub(super) fn answer(cors: &Cors, request: &CorsRequest, headers: &mut HeaderMap) {
    if !allows(cors, &request.origin) {
        return;
    }
    allow_origin(cors, &request.origin, headers);
    list(
        headers,
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose_headers),
        cors.allow_credentials,
        None,
    );
}

fn allow_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    if cors.allow_origins.contains(&OriginMatch::Any) && !cors.allow_credentials {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        );
    } else {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        // The answer differs by origin: caches must know (Fetch §3.2.5).
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    if cors.allow_credentials {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
}

/// A list header. `*` with credentials is not a wildcard to browsers, so what the
/// client asked for is said instead, and if it asked for nothing, nothing is.
fn list(
    headers: &mut HeaderMap,
    (name, values): (HeaderName, &[std::sync::Arc<str>]),
    credentials: bool,
    asked: Option<&HeaderValue>,
) {
    let wildcard = values.iter().any(|value| &**value == "*");
    let value = match (wildcard, credentials) {
        (true, true) => asked.cloned(),
        (true, false) => Some(HeaderValue::from_static("*")),
        (false, _) if values.is_empty() => None,
        // Checked by the compiler: names of methods and headers are header values.
        (false, _) => HeaderValue::from_str(&values.join(", ")).ok(),
    };
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    origin.to_str().is_ok_and(|origin| {
        cors.allow_origins
            .iter()
            .any(|allowed| origin_matches(allowed, origin))
    })
}

fn origin_matches(allowed: &OriginMatch, origin: &str) -> bool {
    match allowed {
        OriginMatch::Any => true,
        OriginMatch::Exact(exact) => exact.eq_ignore_ascii_case(origin),
        OriginMatch::Wildcard { prefix, suffix } => {
            let Some(end) = origin.len().checked_sub(suffix.len()) else {
                return false;
            };
            let (Some(start), Some(host), Some(tail)) = (
                origin.get(..prefix.len()),
                origin.get(prefix.len()..end),
                origin.get(end..),
            ) else {
                return false;
            };
            // `*` stands for labels of a name, so never for a port.
            let is_host = !host.is_empty() && (!host.contains(':') || host.ends_with(']'));
            start.eq_ignore_ascii_case(prefix) && tail.eq_ignore_ascii_case(suffix) && is_host
        }
    }
}

//! What a rule does to a request and to its answer. Pure: the proxy holds one
//! [`RequestParts`] a request and hands it through here; nothing is allocated
//! unless a filter changes something.
//!
//! Order of a request: the rule's request filters → choose a backend → the
//! backend's request filters → (upstream) → the backend's response filters → the
//! rule's response filters.

mod backend;
mod cors;
mod headers;
mod mirror;
mod path;
mod redirect;
mod rewrite;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

pub use backend::{BackendChoice, choose_backend};
pub use cors::CorsRequest;
pub use mirror::mirrors;

use crate::snapshot::{Filter, PathCondition, RouteEntry, Scheme};

/// What of a request filters may see and change.
#[derive(Clone, Debug)]
pub struct RequestParts {
    pub method: Method,
    pub scheme: Scheme,
    /// `host[:port]` of `Host` or `:authority`; absent only in HTTP/1.0. Not in `headers`.
    pub authority: Option<Authority>,
    /// As received, byte for byte, until a rewrite. For a CONNECT without a path: `/`.
    pub path_and_query: PathAndQuery,
    pub headers: HeaderMap,
}

impl RequestParts {
    /// The authority as text; empty if there is none.
    pub fn authority_str(&self) -> &str {
        self.authority.as_ref().map_or("", Authority::as_str)
    }

    /// Replaces the authority; a value that is none (the compiler of the
    /// configuration lets none through) changes nothing.
    pub(crate) fn set_authority(&mut self, host: &HeaderValue) {
        if let Ok(authority) = Authority::try_from(host.as_bytes()) {
            self.authority = Some(authority);
        }
    }
}

/// What filters need to know beside the request.
#[derive(Clone, Copy, Debug)]
pub struct FilterContext<'a> {
    /// The match that the request met; its path prefix is what ReplacePrefixMatch replaces.
    pub entry: &'a RouteEntry,
    /// The port that the client dialled: the listener's, or in a mesh the Service's.
    pub port: u16,
}

impl FilterContext<'_> {
    /// The matched prefix without its trailing slash.
    pub(crate) fn matched_prefix(&self) -> &str {
        match &self.entry.condition.path {
            PathCondition::Prefix(prefix) => prefix,
            _ => "",
        }
    }
}

/// What becomes of a request after its filters.
#[derive(Clone, Debug, PartialEq)]
pub enum FilterOutcome {
    Continue,
    /// Answer with this and an empty body. Complete: apply no response filters to it.
    Respond {
        status: StatusCode,
        headers: HeaderMap,
    },
    /// A path that a rewrite made is not a path (it could only be too long): answer 500.
    Failed(&'static str),
}

/// Applies a rule's or a backend's filters to a request, in their order.
pub fn apply_request_filters(
    filters: &[Filter],
    parts: &mut RequestParts,
    context: &FilterContext<'_>,
) -> FilterOutcome {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(modifier) => headers::modify_request(modifier, parts),
            Filter::Rewrite(rewrite) => {
                if let Err(reason) = rewrite::apply(rewrite, parts, context) {
                    return FilterOutcome::Failed(reason);
                }
            }
            Filter::Redirect(redirect) => {
                let Some(location) = redirect::location(redirect, parts, context) else {
                    return FilterOutcome::Failed("the redirect's location is not a header value");
                };
                let mut answer = HeaderMap::with_capacity(2);
                answer.insert(http::header::LOCATION, location);
                let request = CorsRequest::of(filters, parts);
                apply_response_filters(filters, request.as_ref(), &mut answer);
                return FilterOutcome::Respond {
                    status: redirect.status,
                    headers: answer,
                };
            }
            Filter::Cors(cors) => {
                if let Some(mut answer) = cors::preflight(cors, parts) {
                    // Its CORS headers are in already.
                    apply_response_filters(filters, None, &mut answer);
                    return FilterOutcome::Respond {
                        status: StatusCode::NO_CONTENT,
                        headers: answer,
                    };
                }
            }
            Filter::ResponseHeaders(_) | Filter::Mirror(_) => {}
        }
    }
    FilterOutcome::Continue
}

/// Applies a rule's or a backend's filters to an answer, in their order.
/// `request` is what [`CorsRequest::of`] kept of the request before its filters.
pub fn apply_response_filters(
    filters: &[Filter],
    request: Option<&CorsRequest>,
    headers: &mut HeaderMap,
) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(modifier) => headers::modify(modifier, headers),
            Filter::Cors(cors) => {
                if let Some(request) = request {
                    cors::answer(cors, request, headers);
                }
            }
            Filter::RequestHeaders(_)
            | Filter::Redirect(_)
            | Filter::Rewrite(_)
            | Filter::Mirror(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;

//! RequestRedirect: the `Location` of an answer that sends the client elsewhere.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::HeaderValue;

use super::{FilterContext, RequestParts, path};
use crate::select::host::without_port;
use crate::snapshot::{Redirect, Scheme};

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that a URL of this scheme leaves out.
    pub fn well_known_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// `None`: it cannot be written as a header (a path beyond all limits).
pub(super) fn location(
    redirect: &Redirect,
    parts: &RequestParts,
    context: &FilterContext<'_>,
) -> Option<HeaderValue> {
    let path_and_query = match &redirect.path {
        None => Cow::Borrowed(parts.path_and_query.as_str()),
        Some(modifier) => {
            let prefix = context.matched_prefix();
            Cow::Owned(path::modified(
                modifier,
                parts.path_and_query.as_str(),
                prefix,
            ))
        }
    };
    let slash = if path_and_query.starts_with('/') {
        ""
    } else {
        "/"
    };
    let scheme = redirect.scheme.unwrap_or(parts.scheme);
    let host = redirect
        .hostname
        .as_deref()
        .unwrap_or_else(|| without_port(parts.authority_str()));
    let mut text = String::new();
    // A request without a host (HTTP/1.0) can still be sent to another path of ours.
    if !host.is_empty() {
        let port = redirect.port.unwrap_or_else(|| match redirect.scheme {
            Some(scheme) => scheme.well_known_port(),
            None => context.port,
        });
        // Writing to a String cannot fail.
        let _ = write!(text, "{}://{host}", scheme.as_str());
        if port != scheme.well_known_port() {
            let _ = write!(text, ":{port}");
        }
    }
    text.push_str(slash);
    text.push_str(&path_and_query);
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

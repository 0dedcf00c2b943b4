//! Request and response header modifiers.

use http::{HeaderMap, header};

use super::RequestParts;
use crate::snapshot::HeaderModifier;

/// Sets, then adds, then removes; the compiler lets one name take one action only,
/// so the order never shows.
pub(super) fn modify(modifier: &HeaderModifier, headers: &mut HeaderMap) {
    for (name, value) in &modifier.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &modifier.add {
        // A further field line: the same as `a,b` to any receiver (RFC 9110 §5.3),
        // and right for Set-Cookie, which must not be joined.
        headers.append(name, value.clone());
    }
    for name in &modifier.remove {
        headers.remove(name);
    }
}

/// `host` is not among a request's headers but its authority.
pub(super) fn modify_request(modifier: &HeaderModifier, parts: &mut RequestParts) {
    modify(modifier, &mut parts.headers);
    if let Some(host) = parts.headers.remove(header::HOST) {
        parts.set_authority(&host);
    }
}

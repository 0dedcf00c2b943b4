//! The decision: which rule takes a request or a connection. Pure, and without
//! an allocation unless it is traced (or a regular expression meets an escaped
//! query value or a repeated header).
//!
//! The entries of a [`RouteTable`] are in order of precedence, so the first that
//! matches is the answer; [`index`] only leaves out entries that cannot match.
//! A request is traced over the same entries with the same [`mismatch`].
//!
//! Kinds: an entry of a gRPC route takes gRPC requests only (POST with a
//! `content-type` of `application/grpc…`), so that on one listener HTTP routes
//! take the rest.

pub(crate) mod host;
pub(crate) mod index;
mod query;
mod stream;
pub mod trace;

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use std::sync::Arc;

use crate::snapshot::{
    HeaderCondition, HostnameMatch, Listener, MatchCondition, PathCondition, RouteEntry,
    RouteTable, Rule, Scheme, ServiceId, ValueCondition,
};
use host::Host;
pub use stream::{StreamSelection, select_stream};
use trace::{Outcome, Trace};

/// What of a request decides.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    pub method: &'a Method,
    pub scheme: Scheme,
    /// `host[:port]`; may be empty.
    pub authority: &'a str,
    /// Without its query, as sent: compared byte for byte, neither decoded nor
    /// normalised.
    pub path: &'a str,
    /// Without its `?`.
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
}

/// Who takes a request.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'s> {
    Rule {
        rule: &'s Arc<Rule>,
        /// The match that the request met.
        entry: &'s RouteEntry,
    },
    /// The listener has no routes for requests; this is its service.
    Service(ServiceId),
    /// 404, for gRPC `UNIMPLEMENTED`.
    NotFound,
}

/// Chooses the rule that takes a request.
pub fn select<'s>(
    listener: &'s Listener,
    request: &RequestHead<'_>,
    trace: Option<&mut Trace>,
) -> Selection<'s> {
    let Some(table) = &listener.http_routes else {
        let selection = listener
            .service
            .map_or(Selection::NotFound, Selection::Service);
        if let Some(trace) = trace {
            trace.outcome = match selection {
                Selection::Service(_) => Outcome::NoRoutes,
                _ => Outcome::NothingAttached,
            };
        }
        return selection;
    };
    let found = match trace {
        Some(trace) => traced(table, request, trace),
        None => table.index.find(&table.entries, request),
    };
    match found.and_then(|position| table.entries.get(position)) {
        Some(entry) => Selection::Rule {
            rule: &entry.rule,
            entry,
        },
        None => Selection::NotFound,
    }
}

/// The first entry that matches, by looking at every one: what [`select`] must
/// agree with.
pub(crate) fn scan(entries: &[RouteEntry], request: &RequestHead<'_>) -> Option<usize> {
    let seen = Seen::new(request);
    entries
        .iter()
        .position(|entry| mismatch(entry, request, &seen).is_none())
}

fn traced(table: &RouteTable, request: &RequestHead<'_>, trace: &mut Trace) -> Option<usize> {
    let seen = Seen::new(request);
    let mut found = None;
    for (position, entry) in table.entries.iter().enumerate() {
        let reason = if found.is_some() {
            trace::Reason::NotReached
        } else {
            match mismatch(entry, request, &seen) {
                None => {
                    found = Some(position);
                    trace::Reason::Selected
                }
                Some(mismatch) => trace::Reason::explain(entry, request, &seen, mismatch),
            }
        };
        trace.push(entry, reason);
    }
    trace.outcome = if found.is_some() {
        Outcome::Rule
    } else {
        Outcome::NoRuleMatches
    };
    found
}

/// What of a request is looked at by every entry, looked up once.
pub(crate) struct Seen<'a> {
    pub host: Host<'a>,
    pub grpc: bool,
}

impl<'a> Seen<'a> {
    pub fn new(request: &RequestHead<'a>) -> Self {
        Self {
            host: Host::of(request.authority),
            grpc: is_grpc(request),
        }
    }
}

/// Whether a request is gRPC (gRPC over HTTP2, "Requests"): also gRPC-Web.
pub fn is_grpc(request: &RequestHead<'_>) -> bool {
    request.method == Method::POST
        && request
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.as_bytes().get(..16))
            .is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
}

/// The first thing about a request that an entry does not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    NotGrpc,
    Hostname,
    Path,
    Method,
    /// Index of the condition.
    Header(usize),
    Query(usize),
}

/// Cheap checks first.
pub(crate) fn mismatch(
    entry: &RouteEntry,
    request: &RequestHead<'_>,
    seen: &Seen<'_>,
) -> Option<Mismatch> {
    let condition = &entry.condition;
    if entry.rule.grpc && !seen.grpc {
        return Some(Mismatch::NotGrpc);
    }
    if !hostname_matches(&entry.hostname, seen.host.as_str()) {
        return Some(Mismatch::Hostname);
    }
    if !path_matches(&condition.path, request.path) {
        return Some(Mismatch::Path);
    }
    if condition
        .method
        .as_ref()
        .is_some_and(|method| method != request.method)
    {
        return Some(Mismatch::Method);
    }
    rest_mismatch(condition, request)
}

fn rest_mismatch(condition: &MatchCondition, request: &RequestHead<'_>) -> Option<Mismatch> {
    let header = condition
        .headers
        .iter()
        .position(|condition| !header_matches(condition, request.headers, request.authority));
    if let Some(index) = header {
        return Some(Mismatch::Header(index));
    }
    condition
        .query
        .iter()
        .position(|condition| !query::matches(condition, request.query.unwrap_or_default()))
        .map(Mismatch::Query)
}

/// `host` is lower-case.
pub(crate) fn hostname_matches(hostname: &HostnameMatch, host: &str) -> bool {
    match hostname {
        HostnameMatch::Any => true,
        HostnameMatch::Exact(name) => **name == *host,
        HostnameMatch::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
    }
}

pub(crate) fn path_matches(condition: &PathCondition, path: &str) -> bool {
    match condition {
        PathCondition::Any => true,
        PathCondition::Exact(exact) => **exact == *path,
        PathCondition::Prefix(prefix) => path
            .strip_prefix(&**prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        PathCondition::Regex(regex) => regex.is_match(path),
    }
}

pub(crate) fn header_matches(
    condition: &HeaderCondition,
    headers: &HeaderMap,
    authority: &str,
) -> bool {
    let mut values = headers.get_all(&condition.name).iter();
    let Some(first) = values.next() else {
        // HTTP/2 has no host header; `:authority` is what it would be.
        return condition.name == header::HOST
            && !authority.is_empty()
            && condition.value.matches(authority);
    };
    match (&condition.value, values.next()) {
        (ValueCondition::Exact(exact), None) => exact.as_bytes() == first.as_bytes(),
        (ValueCondition::Exact(exact), Some(_)) => {
            joined_equals(exact.as_bytes(), headers, &condition.name)
        }
        (ValueCondition::Regex(regex), None) => {
            std::str::from_utf8(first.as_bytes()).is_ok_and(|value| regex.is_match(value))
        }
        (ValueCondition::Regex(regex), Some(_)) => {
            joined(headers, &condition.name).is_some_and(|value| regex.is_match(&value))
        }
    }
}

/// A repeated header is one value, joined by commas (RFC 9110 §5.3), without a
/// space as Envoy joins.
fn joined_equals(mut wanted: &[u8], headers: &HeaderMap, name: &HeaderName) -> bool {
    for (index, value) in headers.get_all(name).iter().enumerate() {
        let after_comma = if index == 0 {
            Some(wanted)
        } else {
            wanted.strip_prefix(b",")
        };
        match after_comma.and_then(|wanted| wanted.strip_prefix(value.as_bytes())) {
            Some(rest) => wanted = rest,
            None => return false,
        }
    }
    wanted.is_empty()
}

pub(crate) fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let text = |value: &'a HeaderValue| std::str::from_utf8(value.as_bytes()).ok();
    let mut values = headers.get_all(name).iter();
    let first = text(values.next()?)?;
    let mut all = Cow::Borrowed(first);
    for value in values {
        let all = all.to_mut();
        all.push(',');
        all.push_str(text(value)?);
    }
    Some(all)
}

impl ValueCondition {
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

#[cfg(test)]
mod tests;

//! Precedence: which of several matches that a request meets takes it
//! (Gateway API, `HTTPRouteRule.matches` and `GRPCRouteRule.matches`).
//!
//! A gRPC request is looked for in the gRPC routes first and then in the HTTP
//! ones, since a GRPCRoute is the more specific kind. Two kinds on one *Service*
//! conflict by Gateway API's rules; that a controller resolves before it sends
//! anything here. Then: hostname, path, method, headers, query parameters, age,
//! `namespace/name`, order in the file.
//!
//! Everything is written so that the smaller key goes first.

use std::cmp::Reverse;
use std::sync::Arc;

use super::timestamp::Timestamp;
use crate::snapshot::{HostnameMatch, MatchCondition};

/// 0 precise, 1 wildcard, 2 none; then the longest.
type HostnameRank = (u8, Reverse<usize>);
/// Kind of path; then its length (of the service name and the method, for gRPC).
type PathRank = (u8, Reverse<usize>, Reverse<usize>);

/// How specific one match is, whatever route it is in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Specificity {
    path: PathRank,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
}

impl Specificity {
    pub fn new(path: PathRank, condition: &MatchCondition) -> Self {
        Self {
            path,
            method: Reverse(condition.method.is_some()),
            headers: Reverse(condition.headers.len()),
            query: Reverse(condition.query.len()),
        }
    }
}

/// Decides between routes whose matches are equally specific.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seniority {
    /// Routes that do not say when they were made come last.
    pub undated: bool,
    pub created: Option<Timestamp>,
    /// `namespace/name`.
    pub route: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub http: bool,
    pub hostname: HostnameRank,
    pub specificity: Option<Specificity>,
    pub seniority: Seniority,
    pub rule: usize,
    pub match_index: usize,
}

/// "Characters in a matching non-wildcard hostname, characters in a matching hostname."
pub(super) fn hostname_rank(hostname: &HostnameMatch) -> HostnameRank {
    match hostname {
        HostnameMatch::Exact(name) => (0, Reverse(name.len())),
        HostnameMatch::Suffix(suffix) => (1, Reverse(suffix.len())),
        HostnameMatch::Any => (2, Reverse(0)),
    }
}

//! Why a request was decided as it was: each candidate in order of precedence,
//! and what kept it from matching. Made only when asked for.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Mismatch, RequestHead, Seen, joined, query};
use crate::snapshot::{HostnameMatch, PathCondition, RouteEntry, Rule, ValueCondition};

/// The record of one decision. Hand an empty one to `select`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    pub candidates: Vec<Candidate>,
    pub outcome: Outcome,
}

/// One match of one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    pub route: Arc<str>,
    pub rule: Arc<str>,
    pub match_index: usize,
    /// What the match asks for, in short.
    pub wants: String,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    #[default]
    Undecided,
    /// The candidate that is `Selected`.
    Rule,
    /// Routes are attached and none matches.
    NoRuleMatches,
    /// No such route is attached; the listener's service takes all.
    NoRoutes,
    /// Neither a route nor a service.
    NothingAttached,
}

/// What became of a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum Reason {
    Selected,
    /// One of higher precedence was selected.
    NotReached,
    /// A gRPC route's rule, and the request is not gRPC.
    NotGrpc,
    Hostname {
        wanted: String,
        actual: String,
    },
    Path {
        wanted: String,
        actual: String,
    },
    Method {
        wanted: String,
        actual: String,
    },
    Header {
        name: String,
        wanted: String,
        actual: Option<String>,
    },
    Query {
        name: String,
        wanted: String,
        actual: Option<String>,
    },
}

impl Trace {
    pub(super) fn push(&mut self, entry: &RouteEntry, reason: Reason) {
        self.candidates.push(Candidate {
            route: entry.rule.route.clone(),
            rule: entry.rule.name.clone(),
            match_index: entry.match_index,
            wants: wants(entry),
            reason,
        });
    }

    pub(super) fn push_stream(&mut self, rule: &Rule, reason: Reason) {
        self.candidates.push(Candidate {
            route: rule.route.clone(),
            rule: rule.name.clone(),
            match_index: 0,
            wants: "connection".to_owned(),
            reason,
        });
    }
}

impl Reason {
    pub(super) fn explain(
        entry: &RouteEntry,
        request: &RequestHead<'_>,
        seen: &Seen<'_>,
        mismatch: Mismatch,
    ) -> Self {
        let condition = &entry.condition;
        match mismatch {
            Mismatch::NotGrpc => Self::NotGrpc,
            Mismatch::Hostname => Self::hostname(&entry.hostname, seen.host.as_str()),
            Mismatch::Path => Self::Path {
                wanted: condition.path.to_string(),
                actual: request.path.to_owned(),
            },
            Mismatch::Method => Self::Method {
                wanted: condition
                    .method
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                actual: request.method.to_string(),
            },
            Mismatch::Header(index) => match condition.headers.get(index) {
                Some(header) => Self::Header {
                    name: header.name.to_string(),
                    wanted: header.value.to_string(),
                    actual: joined(request.headers, &header.name).map(String::from),
                },
                None => Self::NotReached,
            },
            Mismatch::Query(index) => match condition.query.get(index) {
                Some(parameter) => Self::Query {
                    name: parameter.name.to_string(),
                    wanted: parameter.value.to_string(),
                    actual: query::first(request.query.unwrap_or_default(), &parameter.name)
                        .map(|raw| query::text(raw).unwrap_or(raw.into()).into_owned()),
                },
                None => Self::NotReached,
            },
        }
    }

    pub(super) fn hostname(wanted: &HostnameMatch, actual: &str) -> Self {
        Self::Hostname {
            wanted: wanted.to_string(),
            actual: actual.to_owned(),
        }
    }
}

fn wants(entry: &RouteEntry) -> String {
    let condition = &entry.condition;
    let mut parts = Vec::new();
    if entry.rule.grpc {
        parts.push("grpc".to_owned());
    }
    if entry.hostname != HostnameMatch::Any {
        parts.push(format!("host {}", entry.hostname));
    }
    parts.push(format!("path {}", condition.path));
    parts.extend(
        condition
            .method
            .as_ref()
            .map(|method| format!("method {method}")),
    );
    parts.extend(
        condition
            .headers
            .iter()
            .map(|header| format!("header {} {}", header.name, header.value)),
    );
    parts.extend(
        condition
            .query
            .iter()
            .map(|parameter| format!("query {} {}", parameter.name, parameter.value)),
    );
    parts.join(", ")
}

impl fmt::Display for HostnameMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

impl fmt::Display for PathCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Exact(path) => write!(f, "= {path}"),
            Self::Prefix(prefix) => write!(f, "{prefix} and below"),
            Self::Regex(regex) => write!(f, "~ {regex}"),
        }
    }
}

impl fmt::Display for ValueCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => write!(f, "= {value}"),
            Self::Regex(regex) => write!(f, "~ {regex}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actual_or_none = |actual: &Option<String>| {
            actual
                .as_ref()
                .map_or_else(|| "absent".to_owned(), |actual| format!("\"{actual}\""))
        };
        match self {
            Self::Selected => f.write_str("selected"),
            Self::NotReached => f.write_str("not reached"),
            Self::NotGrpc => f.write_str("no: the request is not gRPC"),
            Self::Hostname { wanted, actual } => {
                write!(f, "no: host is \"{actual}\", not {wanted}")
            }
            Self::Path { wanted, actual } => write!(f, "no: path is \"{actual}\", not {wanted}"),
            Self::Method { wanted, actual } => write!(f, "no: method is {actual}, not {wanted}"),
            Self::Header {
                name,
                wanted,
                actual,
            } => {
                write!(
                    f,
                    "no: header {name} is {}, not {wanted}",
                    actual_or_none(actual)
                )
            }
            Self::Query {
                name,
                wanted,
                actual,
            } => {
                write!(
                    f,
                    "no: query parameter {name} is {}, not {wanted}",
                    actual_or_none(actual)
                )
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Undecided => "undecided",
            Self::Rule => "a rule matches",
            Self::NoRuleMatches => "routes are attached and none matches",
            Self::NoRoutes => "no route is attached; the listener's service takes it",
            Self::NothingAttached => "neither a route nor a service is attached",
        })
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for candidate in &self.candidates {
            writeln!(
                f,
                "  {} rule {} match {} ({}): {}",
                candidate.route,
                candidate.rule,
                candidate.match_index,
                candidate.wants,
                candidate.reason
            )?;
        }
        write!(f, "  → {}", self.outcome)
    }
}

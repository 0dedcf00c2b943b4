//! Who may do what to a workload: AuthorizationPolicy, compiled and evaluated.
//! Pure; the inbound side of the proxy asks, and `explain` asks the same.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};

use crate::snapshot::HeaderCondition;
use crate::spiffe::SpiffeId;

/// The policies of one port of a workload.
#[derive(Debug, Default)]
pub struct Authorization {
    /// What no policy decides is denied.
    pub deny_by_default: bool,
    pub policies: Vec<Policy>,
}

#[derive(Debug)]
pub struct Policy {
    /// `namespace/name`.
    pub name: Arc<str>,
    pub action: Action,
    pub rules: Vec<PolicyRule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    Audit,
}

/// Matches when one of `from` and one of `to` does; an empty list matches all.
#[derive(Debug)]
pub struct PolicyRule {
    pub name: Arc<str>,
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
}

/// All fields that are not empty must match, each by any of its values.
#[derive(Debug, Default)]
pub struct Source {
    pub identities: Vec<Pattern>,
    pub namespaces: Vec<Arc<str>>,
    pub cidrs: Vec<Cidr>,
}

/// All fields that are not empty must match, each by any of its values.
#[derive(Debug, Default)]
pub struct Operation {
    pub ports: Vec<u16>,
    pub methods: Vec<Method>,
    pub paths: Vec<Pattern>,
    pub headers: Vec<HeaderCondition>,
}

/// A text, whole or up to a final `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
}

/// A block of addresses (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

/// Who asks, and for what. `request` is `None` for an opaque connection.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    pub identity: Option<&'a SpiffeId>,
    pub address: IpAddr,
    pub port: u16,
    pub request: Option<AccessRequest<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub struct AccessRequest<'a> {
    pub method: &'a Method,
    /// Without the query.
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

/// What was decided, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// The policy that decided; `None`: the default, or that no allow policy matched.
    pub policy: Option<Arc<str>>,
    pub rule: Option<Arc<str>>,
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A deny policy matched.
    Denied,
    /// An allow policy matched.
    Allowed,
    /// There are allow policies, and none matched.
    NotAllowed,
    /// No policy decided: the workload's default.
    Default,
}

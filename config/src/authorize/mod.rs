//! Who may do what to a workload: AuthorizationPolicy, compiled and evaluated.
//! Pure; the inbound side of the proxy asks, and `explain` asks the same.

mod path;

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};

use crate::select::header_matches;
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
    pub authority: &'a str,
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

/// Decides. Audit policies have no say: see [`audits`].
pub fn evaluate(authorization: &Authorization, access: &Access<'_>) -> Verdict {
    let of = |action: Action| {
        let policies = authorization.policies.iter();
        policies.filter(move |policy| policy.action == action)
    };
    for policy in of(Action::Deny) {
        if let Some(rule) = policy.matching(access) {
            return Verdict::by(policy, rule, false);
        }
    }
    let mut allows = false;
    for policy in of(Action::Allow) {
        allows = true;
        if let Some(rule) = policy.matching(access) {
            return Verdict::by(policy, rule, true);
        }
    }
    Verdict {
        allowed: !allows && !authorization.deny_by_default,
        policy: None,
        rule: None,
        reason: if allows {
            Reason::NotAllowed
        } else {
            Reason::Default
        },
    }
}

/// Names of the audit policies that match.
pub fn audits<'a>(
    authorization: &'a Authorization,
    access: &'a Access<'_>,
) -> impl Iterator<Item = &'a Arc<str>> {
    let policies = authorization.policies.iter();
    policies
        .filter(|policy| policy.action == Action::Audit && policy.matching(access).is_some())
        .map(|policy| &policy.name)
}

impl Verdict {
    fn by(policy: &Policy, rule: &PolicyRule, allowed: bool) -> Self {
        Self {
            allowed,
            policy: Some(Arc::clone(&policy.name)),
            rule: Some(Arc::clone(&rule.name)),
            reason: if allowed {
                Reason::Allowed
            } else {
                Reason::Denied
            },
        }
    }
}

impl Policy {
    /// The first rule that matches. What can be read in two ways (a path with
    /// `%2e%2e`, say) is allowed only if every reading is, and denied if any is.
    fn matching(&self, access: &Access<'_>) -> Option<&PolicyRule> {
        let strict = self.action == Action::Allow;
        self.rules.iter().find(|rule| rule.matches(access, strict))
    }
}

impl PolicyRule {
    fn matches(&self, access: &Access<'_>, strict: bool) -> bool {
        let from = self.from.is_empty() || self.from.iter().any(|from| from.matches(access));
        from && (self.to.is_empty() || self.to.iter().any(|to| to.matches(access, strict)))
    }
}

impl Source {
    fn matches(&self, access: &Access<'_>) -> bool {
        let identity = |of: &dyn Fn(&SpiffeId) -> bool| access.identity.is_some_and(of);
        (self.identities.is_empty()
            || identity(&|id| {
                let mut patterns = self.identities.iter();
                patterns.any(|pattern| pattern.matches(id.as_str()))
            }))
            && (self.namespaces.is_empty()
                || identity(&|id| {
                    let mut namespaces = self.namespaces.iter();
                    namespaces.any(|namespace| **namespace == *id.namespace())
                }))
            && (self.cidrs.is_empty()
                || self.cidrs.iter().any(|cidr| cidr.contains(access.address)))
    }
}

impl Operation {
    fn matches(&self, access: &Access<'_>, strict: bool) -> bool {
        (self.ports.is_empty() || self.ports.contains(&access.port))
            && match &access.request {
                Some(request) => self.matches_request(request, strict),
                // An opaque connection might be any request: no reason to allow it, one to deny it.
                None => !strict || self.is_for_connections(),
            }
    }

    fn is_for_connections(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty()
    }

    fn matches_request(&self, request: &AccessRequest<'_>, strict: bool) -> bool {
        (self.methods.is_empty() || self.methods.contains(request.method))
            && (self.paths.is_empty() || self.matches_path(request.path, strict))
            && self
                .headers
                .iter()
                .all(|condition| header_matches(condition, request.headers, request.authority))
    }

    fn matches_path(&self, path: &str, strict: bool) -> bool {
        let matches = |path: &str| self.paths.iter().any(|pattern| pattern.matches(path));
        match path::other_reading(path) {
            None => matches(path),
            Some(other) if strict => matches(path) && matches(&other),
            Some(other) => matches(path) || matches(&other),
        }
    }
}

impl Pattern {
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(whole) => **whole == *text,
            Self::Prefix(start) => text.starts_with(&**start),
        }
    }
}

impl Cidr {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(block), IpAddr::V4(address)) => {
                let bits = u32::from(block) ^ u32::from(address);
                bits.checked_shr(32 - u32::from(self.prefix.min(32)))
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V6(block), IpAddr::V6(address)) => {
                let bits = u128::from(block) ^ u128::from(address);
                bits.checked_shr(128 - u32::from(self.prefix.min(128)))
                    .unwrap_or(0)
                    == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;

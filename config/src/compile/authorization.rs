//! `inbound.authorization`: the policies of one port.

use std::net::IpAddr;
use std::sync::Arc;

use http::Method;

use super::at::{At, each, known};
use super::condition;
use crate::authorize::{
    Action, Authorization, Cidr, Operation, Pattern, Policy, PolicyRule, Source,
};
use crate::wire;
use crate::wire::authorization::Action as Wire;

pub(super) fn compile(
    at: &At<'_>,
    authorization: Option<&wire::Authorization>,
) -> Option<Authorization> {
    let Some(authorization) = authorization else {
        return Some(Authorization::default());
    };
    let default_at = at.field("default");
    let deny_by_default = match known(&default_at, authorization.default)? {
        Wire::Allow => false,
        Wire::Deny => true,
        Wire::Audit => {
            default_at.error("must be allow or deny; audit decides nothing");
            false
        }
    };
    let policies = each(&at.field("policies"), &authorization.policies, policy);
    Some(Authorization {
        deny_by_default,
        policies,
    })
}

fn policy(at: &At<'_>, policy: &wire::AuthorizationRules) -> Option<Policy> {
    let name = at.field("name").required(&policy.name)?;
    let action = match known(&at.field("action"), policy.action)? {
        Wire::Allow => Action::Allow,
        Wire::Deny => Action::Deny,
        Wire::Audit => Action::Audit,
    };
    let mut index = 0;
    let rules = each(&at.field("rules"), &policy.rules, |at, rule| {
        let name: Arc<str> = match rule.name.as_str() {
            "" => index.to_string().into(),
            name => name.into(),
        };
        index += 1;
        Some(PolicyRule {
            name,
            from: each(&at.field("from"), &rule.from, source),
            to: each(&at.field("to"), &rule.to, operation),
        })
    });
    Some(Policy {
        name: name.into(),
        action,
        rules,
    })
}

fn source(at: &At<'_>, source: &wire::AuthorizationSource) -> Option<Source> {
    Some(Source {
        identities: each(&at.field("identities"), &source.identities, |at, text| {
            let start = text.strip_suffix('*').unwrap_or(text);
            if !start.is_empty() && !start.starts_with("spiffe://") {
                at.error(format!(
                    "\"{text}\" is no SPIFFE ID; write spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, its beginning and a *, or *"
                ));
                return None;
            }
            pattern(at, text)
        }),
        namespaces: source
            .namespaces
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
        cidrs: each(&at.field("cidrs"), &source.cidrs, |at, text| cidr(at, text)),
    })
}

fn operation(at: &At<'_>, operation: &wire::AuthorizationOperation) -> Option<Operation> {
    let headers_at = at.field("headers");
    Some(Operation {
        ports: each(
            &at.field("ports"),
            &operation.ports,
            |at, port| match u16::try_from(*port) {
                Ok(port) if port > 0 => Some(port),
                _ => {
                    at.error(format!("{port} is not a port; those are 1 to 65535"));
                    None
                }
            },
        ),
        methods: each(
            &at.field("methods"),
            &operation.methods,
            |at, text| match text.parse::<Method>() {
                Ok(method) => Some(method),
                Err(_) => {
                    at.error(format!("\"{text}\" is not a method; write GET, POST, …"));
                    None
                }
            },
        ),
        paths: each(&at.field("paths"), &operation.paths, |at, text| {
            if !text.starts_with('/') && text != "*" {
                at.error(format!("\"{text}\" must begin with / (or be *)"));
                return None;
            }
            pattern(at, text)
        }),
        headers: condition::headers(&headers_at, &operation.headers),
    })
}

fn pattern(at: &At<'_>, text: &str) -> Option<Pattern> {
    let (start, open) = match text.strip_suffix('*') {
        Some(start) => (start, true),
        None => (text, false),
    };
    if start.contains('*') {
        at.error(format!("\"{text}\": * stands only at the end"));
        return None;
    }
    Some(if open {
        Pattern::Prefix(start.into())
    } else {
        Pattern::Exact(start.into())
    })
}

fn cidr(at: &At<'_>, text: &str) -> Option<Cidr> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let parsed = address.parse::<IpAddr>().ok().and_then(|address| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            "" if text.contains('/') => None,
            "" => Some(longest),
            digits => digits.parse().ok().filter(|prefix| *prefix <= longest),
        };
        Some(Cidr {
            address,
            prefix: prefix?,
        })
    });
    if parsed.is_none() {
        at.error(format!(
            "\"{text}\" is no block of addresses, such as 10.0.0.0/8"
        ));
    }
    parsed
}

//! A rule's `matches[]`: what a request must look like, and how specific that is.

use std::cmp::Reverse;
use std::collections::HashSet;

use http::Method;
use regex::Regex;

use super::at::{At, known};
use super::order::Specificity;
use super::{path, pattern};
use crate::snapshot::{
    HeaderCondition, MatchCondition, PathCondition, QueryCondition, ValueCondition,
};
use crate::wire;

/// A match of an HTTP route.
pub(super) fn http(at: &At<'_>, wire: &wire::Match) -> Option<(MatchCondition, Specificity)> {
    if wire.grpc_method.is_some() {
        at.field("grpcMethod")
            .error("is for routes of kind grpc; here write path and method");
    }
    let path = path::condition(&at.field("path"), wire.path.as_ref());
    let method = method(&at.field("method"), &wire.method);
    let headers = headers(&at.field("headers"), &wire.headers);
    let query = query(&at.field("queryParams"), &wire.query_params);
    let path = path?;
    let condition = MatchCondition {
        path,
        method: method?,
        headers,
        query,
    };
    let pattern_length = wire
        .path
        .as_ref()
        .map_or(0, |path| path.value.chars().count());
    let specificity = Specificity::new(
        match &condition.path {
            PathCondition::Exact(_) => (0, Reverse(0), Reverse(0)),
            // Gateway API leaves the place of expressions open. Envoy Gateway, Contour and
            // Cilium put them before prefixes, Istio after. Before: the usual
            // catch-all prefix `/` would otherwise hide every expression.
            PathCondition::Regex(_) => (1, Reverse(pattern_length), Reverse(0)),
            PathCondition::Prefix(prefix) => (2, Reverse(prefix.chars().count()), Reverse(0)),
            PathCondition::Any => (2, Reverse(0), Reverse(0)),
        },
        &condition,
    );
    Some((condition, specificity))
}

/// A match of a gRPC route. A gRPC method is the path `/service/method`.
pub(super) fn grpc(at: &At<'_>, wire: &wire::Match) -> Option<(MatchCondition, Specificity)> {
    for (field, present) in [
        ("path", wire.path.is_some()),
        ("method", !wire.method.is_empty()),
        ("queryParams", !wire.query_params.is_empty()),
    ] {
        if present {
            at.field(field).error(
                "is for routes of kind http; here write grpcMethod: {service: …, method: …}",
            );
        }
    }
    let headers = headers(&at.field("headers"), &wire.headers);
    let (path, rank) = match &wire.grpc_method {
        None => (PathCondition::Any, (2, 0, 0)),
        Some(method) => grpc_path(&at.field("grpcMethod"), method)?,
    };
    let condition = MatchCondition {
        path,
        method: None,
        headers,
        query: Vec::new(),
    };
    let (kind, service, method) = rank;
    let specificity = Specificity::new((kind, Reverse(service), Reverse(method)), &condition);
    Some((condition, specificity))
}

fn grpc_path(
    at: &At<'_>,
    wire: &wire::GrpcMethodMatch,
) -> Option<(PathCondition, (u8, usize, usize))> {
    use wire::grpc_method_match::Type;
    let kind: Type = known(&at.field("type"), wire.r#type)?;
    let lengths = (wire.service.chars().count(), wire.method.chars().count());
    if lengths == (0, 0) {
        at.error("must have at least one of service and method");
        return None;
    }
    if kind == Type::RegularExpression {
        let service = grpc_expression(&at.field("service"), &wire.service)?;
        let method = grpc_expression(&at.field("method"), &wire.method)?;
        let regex = pattern::full(at, &format!("/{service}/{method}"))?;
        return Some((PathCondition::Regex(regex), (1, lengths.0, lengths.1)));
    }
    for (field, text) in [("service", &wire.service), ("method", &wire.method)] {
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_'))
        {
            at.field(field).error(format!(
                "\"{text}\" is not a gRPC name; write package.Service and Method without slashes, or type: RegularExpression"
            ));
            return None;
        }
    }
    let path = match (wire.service.as_str(), wire.method.as_str()) {
        (service, "") => PathCondition::Prefix(format!("/{service}").into()),
        ("", method) => PathCondition::Regex(pattern::full(
            at,
            &format!("/[^/]+/{}", regex::escape(method)),
        )?),
        (service, method) => PathCondition::Exact(format!("/{service}/{method}").into()),
    };
    Some((path, (0, lengths.0, lengths.1)))
}

/// Checked by itself, so that a mistake is reported at its own field.
fn grpc_expression(at: &At<'_>, text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("[^/]+".to_owned());
    }
    pattern::full(at, text)?;
    Some(format!("(?:{text})"))
}

fn method(at: &At<'_>, text: &str) -> Option<Option<Method>> {
    if text.is_empty() {
        return Some(None);
    }
    let upper = text.to_ascii_uppercase();
    let standard = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    if upper != text && standard.contains(&upper.as_str()) {
        at.error(format!(
            "\"{text}\" is not a method (they are case-sensitive); write {upper}"
        ));
        return None;
    }
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) => Some(Some(method)),
        Err(_) => {
            at.error(format!("\"{text}\" is not an HTTP method"));
            None
        }
    }
}

pub(super) fn headers(at: &At<'_>, list: &[wire::ValueMatch]) -> Vec<HeaderCondition> {
    let mut seen = HashSet::new();
    super::at::each(at, list, |at, wire| {
        let name = at.field("name").header_name(&wire.name);
        let value = value(at, wire);
        let (name, value) = (name?, value?);
        // "Subsequent entries with an equivalent header name MUST be ignored."
        seen.insert(name.clone())
            .then_some(HeaderCondition { name, value })
    })
}

fn query(at: &At<'_>, list: &[wire::ValueMatch]) -> Vec<QueryCondition> {
    let mut seen = HashSet::new();
    super::at::each(at, list, |at, wire| {
        let name_at = at.field("name");
        let name = name_at.required(&wire.name);
        let value = value(at, wire);
        let (name, value) = (name?, value?);
        seen.insert(name.to_owned()).then(|| QueryCondition {
            name: name.into(),
            value,
        })
    })
}

fn value(at: &At<'_>, wire: &wire::ValueMatch) -> Option<ValueCondition> {
    use wire::value_match::Type;
    let value_at = at.field("value");
    match known(&at.field("type"), wire.r#type)? {
        Type::Exact if wire.value.is_empty() => {
            value_at.error(
                "is missing; write the value, or match any with type: RegularExpression and value: .*",
            );
            None
        }
        Type::Exact => Some(ValueCondition::Exact(wire.value.as_str().into())),
        Type::RegularExpression => {
            pattern::full(&value_at, &wire.value).map(|regex: Regex| ValueCondition::Regex(regex))
        }
    }
}

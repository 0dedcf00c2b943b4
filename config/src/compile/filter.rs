//! `filters[]` of rules and backends.

use std::collections::HashSet;
use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::at::{At, each, known, or_default};
use super::rule::{Scope, backend_target};
use super::{hostname, path};
use crate::snapshot::{
    Cors, Filter, HeaderModifier, Mirror, OriginMatch, Redirect, Rewrite, Scheme,
};
use crate::wire;
use crate::wire::filter::Type;

const CORS_MAX_AGE: u32 = 5;
const FRACTION_DENOMINATOR: u32 = 100;

/// Where a list of filters stands; not everything may stand everywhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Rule,
    Backend,
}

pub(super) fn compile_all(
    at: &At<'_>,
    list: &[wire::Filter],
    place: Place,
    scope: &Scope<'_>,
) -> Vec<Filter> {
    let mut seen: Vec<Type> = Vec::new();
    each(at, list, |at, filter| {
        let kind = kind(at, filter)?;
        if kind != Type::RequestMirror && seen.contains(&kind) {
            at.error(format!(
                "is the second {} here; only RequestMirror may repeat",
                name(kind)
            ));
            return None;
        }
        let clash = match kind {
            Type::RequestRedirect => Some(Type::UrlRewrite),
            Type::UrlRewrite => Some(Type::RequestRedirect),
            _ => None,
        };
        if clash.is_some_and(|clash| seen.contains(&clash)) {
            at.error("RequestRedirect and URLRewrite cannot stand in one rule: a redirected request goes nowhere else");
        }
        seen.push(kind);
        if !allowed(kind, place, scope.grpc()) {
            at.error(match place {
                Place::Backend => format!(
                    "{} is not possible on a backend; move it to the rule's filters",
                    name(kind)
                ),
                Place::Rule => format!("{} is not possible in a route of kind grpc", name(kind)),
            });
            return None;
        }
        compile(at, filter, kind, scope)
    })
}

fn allowed(kind: Type, place: Place, grpc: bool) -> bool {
    match kind {
        Type::RequestHeaderModifier | Type::ResponseHeaderModifier => true,
        Type::UrlRewrite => !grpc,
        Type::RequestMirror => place == Place::Rule,
        Type::RequestRedirect | Type::Cors => place == Place::Rule && !grpc,
        Type::Unset => false,
    }
}

fn name(kind: Type) -> &'static str {
    kind.as_str_name()
}

/// The kind by the one field that is there, checked against `type`.
fn kind(at: &At<'_>, filter: &wire::Filter) -> Option<Type> {
    let present: Vec<(Type, &str)> = [
        (
            filter.request_header_modifier.is_some(),
            Type::RequestHeaderModifier,
            "requestHeaderModifier",
        ),
        (
            filter.response_header_modifier.is_some(),
            Type::ResponseHeaderModifier,
            "responseHeaderModifier",
        ),
        (
            filter.request_redirect.is_some(),
            Type::RequestRedirect,
            "requestRedirect",
        ),
        (filter.url_rewrite.is_some(), Type::UrlRewrite, "urlRewrite"),
        (
            filter.request_mirror.is_some(),
            Type::RequestMirror,
            "requestMirror",
        ),
        (filter.cors.is_some(), Type::Cors, "cors"),
    ]
    .into_iter()
    .filter_map(|(there, kind, field)| there.then_some((kind, field)))
    .collect();
    let said = known(&at.field("type"), filter.r#type)?;
    match present.as_slice() {
        [(kind, field)] => {
            if said != Type::Unset && said != *kind {
                at.field("type").error(format!(
                    "is {}, but the field that is set is {field}",
                    name(said)
                ));
                return None;
            }
            Some(*kind)
        }
        [] if said == Type::Unset => {
            at.error("is empty; set one of requestHeaderModifier, responseHeaderModifier, requestRedirect, urlRewrite, requestMirror and cors");
            None
        }
        [] => {
            at.error(format!(
                "has type {} but not the field of that name",
                name(said)
            ));
            None
        }
        [(_, one), (_, other), ..] => {
            at.error(format!("has both {one} and {other}; make them two filters"));
            None
        }
    }
}

fn compile(at: &At<'_>, filter: &wire::Filter, kind: Type, scope: &Scope<'_>) -> Option<Filter> {
    match kind {
        Type::RequestHeaderModifier => {
            let wire = filter.request_header_modifier.as_ref()?;
            modifier(&at.field("requestHeaderModifier"), wire, true).map(Filter::RequestHeaders)
        }
        Type::ResponseHeaderModifier => {
            let wire = filter.response_header_modifier.as_ref()?;
            modifier(&at.field("responseHeaderModifier"), wire, false).map(Filter::ResponseHeaders)
        }
        Type::RequestRedirect => {
            let wire = filter.request_redirect.as_ref()?;
            redirect(&at.field("requestRedirect"), wire, scope).map(Filter::Redirect)
        }
        Type::UrlRewrite => {
            let wire = filter.url_rewrite.as_ref()?;
            rewrite(&at.field("urlRewrite"), wire, scope).map(Filter::Rewrite)
        }
        Type::RequestMirror => {
            let wire = filter.request_mirror.as_ref()?;
            mirror(&at.field("requestMirror"), wire, scope).map(Filter::Mirror)
        }
        Type::Cors => cors(&at.field("cors"), filter.cors.as_ref()?).map(Filter::Cors),
        Type::Unset => None,
    }
}

fn modifier(at: &At<'_>, wire: &wire::HeaderModifier, request: bool) -> Option<HeaderModifier> {
    let mut seen = HashSet::new();
    let mut name = |at: &At<'_>, text: &str, may_be_host: bool| -> Option<HeaderName> {
        let name = at.header_name(text)?;
        if framing(&name) || (name == header::HOST && !may_be_host) {
            at.error(format!(
                "\"{text}\" belongs to the connection and is set by the proxy itself"
            ));
            return None;
        }
        if !seen.insert(name.clone()) {
            at.error(format!(
                "\"{text}\" occurs twice; one header takes one action"
            ));
            return None;
        }
        Some(name)
    };
    let set = pairs(&at.field("set"), &wire.set, |at, text| {
        name(at, text, request)
    });
    let add = pairs(&at.field("add"), &wire.add, |at, text| {
        name(at, text, false)
    });
    let remove = each(&at.field("remove"), &wire.remove, |at, text| {
        name(at, text, false)
    });
    Some(HeaderModifier { set, add, remove })
}

/// Headers that describe the connection or the message's framing, which differ
/// on the other side (RFC 9110 §7.6.1).
fn framing(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ]
    .contains(name)
        || ["keep-alive", "proxy-connection", "http2-settings"].contains(&name.as_str())
}

fn pairs(
    at: &At<'_>,
    list: &[wire::Header],
    mut name: impl FnMut(&At<'_>, &str) -> Option<HeaderName>,
) -> Vec<(HeaderName, HeaderValue)> {
    each(at, list, |at, wire| {
        let name = name(&at.field("name"), &wire.name);
        let value_at = at.field("value");
        let value = value_at.header_value(&wire.value);
        let (name, value) = (name?, value?);
        // The host becomes the request's authority, which takes less than a header value.
        if name == header::HOST && Authority::try_from(value.as_bytes()).is_err() {
            value_at.error(format!(
                "\"{}\" is not a host; write name or name:port",
                wire.value
            ));
            return None;
        }
        Some((name, value))
    })
}

fn path_modifier(
    at: &At<'_>,
    wire: Option<&wire::PathModifier>,
    scope: &Scope<'_>,
) -> Option<Option<crate::snapshot::PathModifier>> {
    let Some(wire) = wire else {
        return Some(None);
    };
    if wire.replace_prefix_match.is_some() && !scope.one_prefix {
        at.field("replacePrefixMatch").error(
            "needs the rule to have exactly one match, and its path to be a PathPrefix: otherwise there is no prefix to replace",
        );
    }
    path::modifier(at, wire).map(Some)
}

fn redirect(at: &At<'_>, wire: &wire::Redirect, scope: &Scope<'_>) -> Option<Redirect> {
    let scheme = match wire.scheme.as_str() {
        "" => Some(None),
        "http" => Some(Some(Scheme::Http)),
        "https" => Some(Some(Scheme::Https)),
        other => {
            at.field("scheme")
                .error(format!("\"{other}\" is not possible; write http or https"));
            None
        }
    };
    let hostname = if wire.hostname.is_empty() {
        Some(None)
    } else {
        hostname::precise(&at.field("hostname"), &wire.hostname).map(|name| Some(Arc::from(name)))
    };
    let path = path_modifier(&at.field("path"), wire.path.as_ref(), scope);
    let port = at.field("port").port_optional(wire.port);
    let status = match wire.status_code {
        0 | 302 => Some(StatusCode::FOUND),
        301 => Some(StatusCode::MOVED_PERMANENTLY),
        303 => Some(StatusCode::SEE_OTHER),
        307 => Some(StatusCode::TEMPORARY_REDIRECT),
        308 => Some(StatusCode::PERMANENT_REDIRECT),
        other => {
            at.field("statusCode").error(format!(
                "{other} is not a redirect; use 301, 302, 303, 307 or 308"
            ));
            None
        }
    };
    Some(Redirect {
        scheme: scheme?,
        hostname: hostname?,
        path: path?,
        port: port?,
        status: status?,
    })
}

fn rewrite(at: &At<'_>, wire: &wire::UrlRewrite, scope: &Scope<'_>) -> Option<Rewrite> {
    if wire.hostname.is_empty() && wire.path.is_none() {
        at.error("rewrites nothing; set hostname, path or both");
        return None;
    }
    let hostname_at = at.field("hostname");
    let hostname = if wire.hostname.is_empty() {
        Some(None)
    } else {
        hostname::precise(&hostname_at, &wire.hostname)
            .and_then(|name| hostname_at.header_value(&name))
            .map(Some)
    };
    let path = path_modifier(&at.field("path"), wire.path.as_ref(), scope);
    Some(Rewrite {
        hostname: hostname?,
        path: path?,
    })
}

fn mirror(at: &At<'_>, wire: &wire::Mirror, scope: &Scope<'_>) -> Option<Mirror> {
    let ref_at = at.field("backendRef");
    let target = match &wire.backend_ref {
        None => {
            ref_at.error("is missing; name the service that gets the copies");
            None
        }
        Some(wire) => {
            if wire.weight.is_some() {
                ref_at
                    .field("weight")
                    .error("has no effect; use percent or fraction");
            }
            if !wire.filters.is_empty() {
                ref_at.field("filters").error("is not possible on a mirror");
            }
            backend_target(&ref_at, wire, scope)
        }
    };
    let (numerator, denominator) = match (wire.percent, &wire.fraction) {
        (None, None) => Some((100, 100)),
        (Some(percent), None) => at
            .field("percent")
            .percent(percent)
            .map(|percent| (percent, 100)),
        (None, Some(fraction)) => {
            let denominator = or_default(fraction.denominator, FRACTION_DENOMINATOR);
            if fraction.numerator > denominator {
                at.field("fraction").error(format!(
                    "{}/{denominator} is more than everything",
                    fraction.numerator
                ));
            }
            Some((fraction.numerator, denominator))
        }
        (Some(_), Some(_)) => {
            at.field("fraction")
                .error("and percent are both set; keep one");
            None
        }
    }?;
    Some(Mirror {
        target: target?,
        numerator,
        denominator,
    })
}

fn cors(at: &At<'_>, wire: &wire::Cors) -> Option<Cors> {
    let origins_at = at.field("allowOrigins");
    if wire.allow_origins.is_empty() {
        origins_at.error("is missing; list the allowed origins, or \"*\"");
    }
    alone(&origins_at, &wire.allow_origins);
    let allow_origins = each(&origins_at, &wire.allow_origins, origin);
    let methods_at = at.field("allowMethods");
    alone(&methods_at, &wire.allow_methods);
    let allow_methods = each(&methods_at, &wire.allow_methods, |at, text| {
        if Method::from_bytes(text.as_bytes()).is_err() {
            at.error(format!("\"{text}\" is not an HTTP method"));
            return None;
        }
        Some(Arc::from(text.as_str()))
    });
    let headers = |field: &str, list: &[String]| {
        let at = at.field(field);
        alone(&at, list);
        each(&at, list, |at, text| {
            at.header_name(text).map(|_| Arc::from(text.as_str()))
        })
    };
    Some(Cors {
        allow_origins,
        allow_credentials: wire.allow_credentials,
        allow_methods,
        allow_headers: headers("allowHeaders", &wire.allow_headers),
        expose_headers: headers("exposeHeaders", &wire.expose_headers),
        max_age: or_default(wire.max_age, CORS_MAX_AGE),
    })
}

fn alone(at: &At<'_>, list: &[String]) {
    if list.len() > 1 && list.iter().any(|item| item == "*") {
        at.error("has \"*\" beside others; \"*\" stands alone");
    }
}

/// An origin: `scheme://host[:port]`, the scheme's own port left out as browsers do.
fn origin(at: &At<'_>, text: &String) -> Option<OriginMatch> {
    if text == "*" {
        return Some(OriginMatch::Any);
    }
    let lower = text.to_ascii_lowercase();
    let Some((scheme, host_port)) = ["http", "https"]
        .iter()
        .find_map(|scheme| Some((*scheme, lower.strip_prefix(scheme)?.strip_prefix("://")?)))
    else {
        at.error(format!("\"{text}\" is not an origin; write http://host or https://host, with a port if it is not the usual one"));
        return None;
    };
    let default_port = if scheme == "http" { ":80" } else { ":443" };
    let host_port = host_port.strip_suffix(default_port).unwrap_or(host_port);
    let valid = !host_port.is_empty()
        && host_port
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._*:[]".contains(&byte));
    let stars = host_port.matches('*').count();
    if !valid || stars > 1 || (stars == 1 && !host_port.starts_with('*')) {
        at.error(format!("\"{text}\" is not an origin; a wildcard stands for the leftmost labels, as in {scheme}://*.example.com, and no path follows"));
        return None;
    }
    Some(match host_port.strip_prefix('*') {
        Some(suffix) => OriginMatch::Wildcard {
            prefix: format!("{scheme}://").into(),
            suffix: suffix.into(),
        },
        None => OriginMatch::Exact(format!("{scheme}://{host_port}").into()),
    })
}

//! `routes[].rules[]`: where a request goes, and what happens on the way.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::at::{At, each, known};
use super::filter::{self, Place};
use super::order::Specificity;
use super::{ServiceNames, balancer, condition, health, service};
use crate::snapshot::{
    Backend, BackendTarget, Filter, MatchCondition, RetryPolicy, Rule, SessionPersistence,
    SessionSource,
};
use crate::wire;
use crate::wire::route::Kind;

const RETRIES: u32 = 1;
/// A request is tried at most this often again; the retry budget is what really limits.
const RETRIES_MAX: u32 = 25;
const RETRY_BACKOFF: Duration = Duration::from_millis(25);
const SESSION_NAME: &str = "weft-session";

/// What a rule's parts need to know about it.
pub(super) struct Scope<'a> {
    pub kind: Kind,
    pub names: &'a ServiceNames<'a>,
    /// Exactly one match, by path prefix: there is a prefix to replace.
    pub one_prefix: bool,
}

impl Scope<'_> {
    pub fn grpc(&self) -> bool {
        self.kind == Kind::Grpc
    }
}

/// A rule, and its matches in the order of the file.
pub(super) struct Compiled {
    pub rule: Arc<Rule>,
    pub matches: Vec<(usize, MatchCondition, Specificity)>,
}

/// A rule of an HTTP or gRPC route.
pub(super) fn compile(
    at: &At<'_>,
    wire: &wire::Rule,
    kind: Kind,
    route: &Arc<str>,
    index: usize,
    names: &ServiceNames<'_>,
) -> Option<Compiled> {
    let scope = Scope {
        kind,
        names,
        one_prefix: one_prefix(&wire.matches),
    };
    let matches = matches(&at.field("matches"), &wire.matches, kind);
    let filters_at = at.field("filters");
    let filters = filter::compile_all(&filters_at, &wire.filters, Place::Rule, &scope);
    let backends_at = at.field("backendRefs");
    if !wire.backend_refs.is_empty() && filters.iter().any(|f| matches!(f, Filter::Redirect(_))) {
        backends_at.error(
            "go unused: the rule's RequestRedirect answers every request; remove one of the two",
        );
    }
    let backends = backends(&backends_at, &wire.backend_refs, &filters, &scope);
    let (request_timeout, try_timeout) = timeouts(&at.field("timeouts"), wire.timeouts.as_ref());
    let retry = match &wire.retry {
        None => Some(None),
        Some(wire) => retry(&at.field("retry"), wire).map(Some),
    };
    let session = match &wire.session_persistence {
        None => Some(None),
        Some(wire) => session(&at.field("sessionPersistence"), wire).map(Some),
    };
    let rule = Rule {
        route: route.clone(),
        name: rule_name(wire, index),
        grpc: scope.grpc(),
        filters,
        weight_total: backends
            .iter()
            .map(|backend| u64::from(backend.weight))
            .sum(),
        backends,
        request_timeout,
        try_timeout,
        retry: retry?,
        session: session?,
    };
    Some(Compiled {
        rule: Arc::new(rule),
        matches,
    })
}

/// A rule of a TLS or TCP route: backends and nothing else.
pub(super) fn compile_stream(
    at: &At<'_>,
    wire: &wire::Rule,
    kind: Kind,
    route: &Arc<str>,
    names: &ServiceNames<'_>,
) -> Arc<Rule> {
    for (field, present) in [
        ("matches", !wire.matches.is_empty()),
        ("filters", !wire.filters.is_empty()),
        ("timeouts", wire.timeouts.is_some()),
        ("retry", wire.retry.is_some()),
        ("sessionPersistence", wire.session_persistence.is_some()),
    ] {
        if present {
            at.field(field)
                .error("is only possible in routes of kind http or grpc");
        }
    }
    let scope = Scope {
        kind,
        names,
        one_prefix: false,
    };
    let backends_at = at.field("backendRefs");
    for (index, backend) in wire.backend_refs.iter().enumerate() {
        if !backend.filters.is_empty() {
            let at = backends_at.index(index);
            at.field("filters")
                .error("is only possible in routes of kind http or grpc");
        }
    }
    let backends = each(&backends_at, &wire.backend_refs, |at, wire| {
        let weight = service::weight(&at.field("weight"), wire.weight);
        let target = backend_target(at, wire, &scope);
        Some(Backend {
            weight: weight?,
            filters: Vec::new(),
            target: target?,
        })
    });
    Arc::new(Rule {
        route: route.clone(),
        name: rule_name(wire, 0),
        grpc: false,
        filters: Vec::new(),
        weight_total: backends
            .iter()
            .map(|backend| u64::from(backend.weight))
            .sum(),
        backends,
        request_timeout: None,
        try_timeout: None,
        retry: None,
        session: None,
    })
}

fn rule_name(wire: &wire::Rule, index: usize) -> Arc<str> {
    if wire.name.is_empty() {
        index.to_string().into()
    } else {
        wire.name.as_str().into()
    }
}

/// No match and no path both mean the prefix `/`.
fn one_prefix(matches: &[wire::Match]) -> bool {
    match matches {
        [] => true,
        [one] => one
            .path
            .as_ref()
            .is_none_or(|path| path.r#type() == wire::path_match::Type::PathPrefix),
        _ => false,
    }
}

fn matches(
    at: &At<'_>,
    list: &[wire::Match],
    kind: Kind,
) -> Vec<(usize, MatchCondition, Specificity)> {
    let compile = |at: &At<'_>, wire: &wire::Match| match kind {
        Kind::Grpc => condition::grpc(at, wire),
        _ => condition::http(at, wire),
    };
    let everything = [wire::Match::default()];
    let list = if list.is_empty() { &everything } else { list };
    let mut index = 0;
    each(at, list, |at, wire| {
        index += 1;
        compile(at, wire).map(|(condition, specificity)| (index - 1, condition, specificity))
    })
}

fn backends(
    at: &At<'_>,
    list: &[wire::BackendRef],
    rule_filters: &[Filter],
    scope: &Scope<'_>,
) -> Vec<Backend> {
    each(at, list, |at, wire| {
        let weight = service::weight(&at.field("weight"), wire.weight);
        let filters_at = at.field("filters");
        let filters = filter::compile_all(&filters_at, &wire.filters, Place::Backend, scope);
        let rewrites = |list: &[Filter]| list.iter().any(|f| matches!(f, Filter::Rewrite(_)));
        if rewrites(rule_filters) && rewrites(&filters) {
            filters_at
                .error("rewrites what the rule's own URLRewrite has rewritten; keep one of them");
        }
        let target = backend_target(at, wire, scope);
        Some(Backend {
            weight: weight?,
            filters,
            target: target?,
        })
    })
}

/// What a backendRef leads to; a controller's `invalid` leads to an error answer.
pub(super) fn backend_target(
    at: &At<'_>,
    wire: &wire::BackendRef,
    scope: &Scope<'_>,
) -> Option<BackendTarget> {
    use wire::service::Protocol;
    if !wire.invalid.is_empty() {
        return Some(BackendTarget::Invalid(wire.invalid.as_str().into()));
    }
    let at = at.field("name");
    let (id, service) = scope.names.resolve(&at, &wire.name)?;
    let name = &wire.name;
    match (scope.kind, service.protocol()) {
        (Kind::Http | Kind::Grpc, Protocol::Tcp) => at.error(format!(
            "service \"{name}\" has protocol: tcp, which cannot take requests; change its protocol or use a route of kind tcp"
        )),
        (Kind::Grpc, Protocol::Http1) => at.error(format!(
            "service \"{name}\" has protocol: http1, but gRPC needs HTTP/2; give it protocol: grpc"
        )),
        (Kind::Grpc, Protocol::Http) if service.tls.is_none() => at.error(format!(
            "service \"{name}\" has protocol: http, which is HTTP/1.1 without TLS, but gRPC needs HTTP/2; give it protocol: grpc"
        )),
        _ => {}
    }
    Some(BackendTarget::Service(id))
}

/// Of the whole request, and of one try.
type Deadlines = (Option<Duration>, Option<Duration>);

fn timeouts(at: &At<'_>, wire: Option<&wire::Timeouts>) -> Deadlines {
    let wire = wire.cloned().unwrap_or_default();
    let request = at.field("request").duration_or_off(&wire.request);
    let try_at = at.field("backendRequest");
    let one_try = try_at.duration_or_off(&wire.backend_request);
    if let (Some(Some(request)), Some(Some(one_try))) = (request, one_try)
        && one_try > request
    {
        try_at.error(format!(
            "{} is longer than timeouts.request ({}), which spans all tries",
            wire.backend_request, wire.request
        ));
    }
    (request.unwrap_or_default(), one_try.unwrap_or_default())
}

fn retry(at: &At<'_>, wire: &wire::Retry) -> Option<RetryPolicy> {
    let mut codes: Vec<StatusCode> = each(&at.field("codes"), &wire.codes, |at, code| {
        health::status(at, *code, 400)
    });
    codes.sort_unstable();
    codes.dedup();
    let grpc_codes = each(&at.field("grpcCodes"), &wire.grpc_codes, grpc_code);
    let attempts = wire.attempts.unwrap_or(RETRIES);
    if attempts > RETRIES_MAX {
        at.field("attempts").error(format!(
            "{attempts} retries are too many; at most {RETRIES_MAX} are possible"
        ));
    }
    let backoff = at
        .field("backoff")
        .duration_or(&wire.backoff, RETRY_BACKOFF);
    Some(RetryPolicy {
        codes,
        grpc_codes,
        attempts,
        backoff: backoff?,
    })
}

/// gRPC's status names in the order of their codes.
const GRPC_CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

fn grpc_code(at: &At<'_>, text: &String) -> Option<u8> {
    // `DEADLINE_EXCEEDED`, `deadline-exceeded` and `deadline_exceeded` are in use.
    let name = text.to_ascii_lowercase().replace('-', "_");
    let code = GRPC_CODES.iter().position(|code| *code == name);
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(0) => {
            at.error("ok is a success and cannot be tried again");
            None
        }
        Some(code) => Some(code),
        None => {
            at.error(format!(
                "\"{text}\" is not a gRPC status{}",
                crate::nearest::suggestion(&name, GRPC_CODES)
            ));
            None
        }
    }
}

fn session(at: &At<'_>, wire: &wire::SessionPersistence) -> Option<SessionPersistence> {
    use wire::session_persistence::{Lifetime, Type};
    let name_at = at.field("sessionName");
    let name = if wire.session_name.is_empty() {
        SESSION_NAME
    } else {
        &wire.session_name
    };
    let kind: Type = known(&at.field("type"), wire.r#type)?;
    let lifetime: Lifetime = known(&at.field("cookieLifetime"), wire.cookie_lifetime)?;
    let source = match kind {
        Type::Cookie => {
            balancer::cookie_name(&name_at, name).map(|name| SessionSource::Cookie(name.into()))
        }
        Type::Header => name_at
            .header_name(name)
            .map(|name: HeaderName| SessionSource::Header(name)),
    };
    let absolute_at = at.field("absoluteTimeout");
    let absolute_timeout = absolute_at.duration_or_off(&wire.absolute_timeout);
    let idle_timeout = at.field("idleTimeout").duration_or_off(&wire.idle_timeout);
    match (kind, lifetime, absolute_timeout) {
        (Type::Header, Lifetime::Permanent, _) => at
            .field("cookieLifetime")
            .error("is for type: Cookie; a header has no lifetime"),
        (Type::Cookie, Lifetime::Permanent, Some(None)) => {
            absolute_at.error("is missing; cookieLifetime: Permanent needs it");
        }
        (Type::Cookie, Lifetime::Session, Some(Some(_))) => {
            absolute_at.error("needs cookieLifetime: Permanent; a session cookie carries no expiry")
        }
        _ => {}
    }
    Some(SessionPersistence {
        source: source?,
        absolute_timeout: absolute_timeout?,
        idle_timeout: idle_timeout?,
    })
}

//! One request's life: head policies → select the rule → its filters → choose
//! the backend → forward → record.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method};
use rand::Rng as _;
use tokio::time::{Instant, timeout};
use weft_config::filter::{
    BackendChoice, CorsRequest, FilterContext, FilterOutcome, RequestParts, apply_request_filters,
    choose_backend, mirrors,
};
use weft_config::select::{RequestHead, Selection, is_grpc, select};
use weft_config::snapshot::{Backend, BackendTarget, Filter, Rule, ServiceId};

use super::forward::Forward;
use super::headers::{apply_forwarded_host, apply_request_id};
use super::record::Record;
use super::respond::Answer;
use super::sidecar::{self, Admission, InFlight};
use super::{Connection, authorize, mesh, mirror, session};
use crate::logic::cause::Cause;
use crate::net::http::message::{BodyLength, Side};
use crate::state::{ListenerState, Runtime, ServiceState};

/// How long a client may take to read a short answer of our own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A request as it came, before anything was decided.
#[derive(Debug)]
pub struct Incoming {
    pub parts: RequestParts,
    pub length: BodyLength,
    /// The protocol to switch to (HTTP/1.1 Upgrade).
    pub upgrade: Option<HeaderValue>,
    pub http2: bool,
    /// For the log: HTTP/1.0, HTTP/1.1 or HTTP/2.
    pub protocol: &'static str,
}

impl Incoming {
    /// The request asks for bytes both ways after the answer's head.
    pub fn wants_tunnel(&self) -> bool {
        self.upgrade.is_some() || self.parts.method == Method::CONNECT
    }

    /// The client waits for a 100 before it sends its body.
    pub fn expects_continue(&self) -> bool {
        self.parts.headers.contains_key(http::header::EXPECT)
    }

    /// Its messages may rest for as long as they like: gRPC.
    pub fn streams(&self) -> bool {
        let content_type = self.parts.headers.get(http::header::CONTENT_TYPE);
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
    }

    /// The same request, for a mirror: without what switches protocols.
    pub fn copy(&self) -> Self {
        Self {
            parts: self.parts.clone(),
            length: self.length,
            upgrade: None,
            http2: self.http2,
            protocol: self.protocol,
        }
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.parts.method,
            scheme: self.parts.scheme,
            authority: self.parts.authority_str(),
            path: self.parts.path_and_query.path(),
            query: self.parts.path_and_query.query(),
            headers: &self.parts.headers,
        }
    }
}

/// The configuration that one request goes by, from its start to its end.
#[derive(Clone, Debug)]
pub struct Current {
    pub runtime: Arc<Runtime>,
    pub listener: Arc<ListenerState>,
}

/// Where a request goes and on what terms.
#[derive(Debug)]
pub struct Target {
    pub service: Arc<ServiceState>,
    pub rule: Option<Arc<Rule>>,
    /// Index of the chosen backend in the rule.
    pub backend: Option<usize>,
    /// What the answer's CORS filters need of the request.
    pub cors: Option<CorsRequest>,
    pub session: Option<session::Session>,
    /// Services that get a copy.
    pub mirrors: Vec<Arc<ServiceState>>,
}

impl Target {
    /// Straight to a service, without a rule.
    pub fn direct(service: Arc<ServiceState>) -> Self {
        Self {
            service,
            rule: None,
            backend: None,
            cors: None,
            session: None,
            mirrors: Vec::new(),
        }
    }

    /// The filters of the chosen backend.
    pub fn backend_filters(&self) -> &[Filter] {
        let chosen = self.rule.as_ref().zip(self.backend);
        chosen
            .and_then(|(rule, index)| rule.backends.get(index))
            .map_or(&[], |backend| &backend.filters)
    }
}

/// Serves one request to its end; returns whether the connection can take another.
pub async fn serve(
    connection: &Connection,
    current: &Current,
    side: &mut Side,
    mut incoming: Incoming,
    keep: bool,
) -> bool {
    let mut record = Record::new(Instant::now());
    let counted = match sidecar::admit(connection, &current.listener, &incoming) {
        Admission::Usual => InFlight::enter(&connection.worker.shared, &current.listener),
        Admission::Probe(kind) => {
            record.probe = kind;
            // A kubelet asks until the end, and nobody waits for it.
            Some(InFlight::uncounted())
        }
        // As where no probe is let in: not a word.
        Admission::Refused => return false,
    };
    let options = &current.listener.config.http;
    record.request_id = apply_request_id(&mut incoming.parts.headers, options);
    if connection.worker.shared.access_log.is_on() {
        record.asked = Some((
            incoming.parts.authority.clone(),
            incoming.parts.path_and_query.clone(),
        ));
    }
    let grpc = is_grpc(&incoming.head());
    let planned = match &counted {
        Some(_) => plan(connection, current, &mut incoming, &mut record),
        None => Err(mesh::left(connection.peer.is_some())),
    };
    let kept = match planned {
        Ok(target) => {
            Forward::new(connection, current, side, &incoming, &target, &mut record)
                .run(grpc, keep)
                .await
        }
        Err(answer) => answer_now(side, &incoming, answer, grpc, keep, &mut record).await,
    };
    record.finish(connection, current, &incoming);
    if let Side::Http1(http1) = side {
        http1.recycle(incoming.parts.headers);
    }
    kept
}

/// Sends an answer of our own and waits until it is written.
pub async fn answer_now(
    side: &mut Side,
    incoming: &Incoming,
    answer: Answer,
    grpc: bool,
    keep: bool,
    record: &mut Record,
) -> bool {
    record.cause = answer.cause;
    record.detail = answer.said();
    record.status = answer.status.as_u16();
    // A body that nobody took in is still on its way on this connection.
    let keep = keep && side.is_ended();
    match answer.send(side, &incoming.parts.method, grpc, keep) {
        Ok(keep) => {
            let flush = std::future::poll_fn(|cx| side.poll_flush(cx));
            keep && matches!(timeout(ANSWER_TIMEOUT, flush).await, Ok(Ok(())))
        }
        Err(_) => false,
    }
}

/// Decides where the request goes: everything before the first byte to an upstream.
fn plan(
    connection: &Connection,
    current: &Current,
    incoming: &mut Incoming,
    record: &mut Record,
) -> Result<Target, Answer> {
    let listener = &current.listener.config;
    let policy = listener.http.forwarded;
    let body_max = listener.http.body_bytes_max;
    if record.probe.is_empty() {
        authorize::request(connection, &current.listener, incoming)?;
    }
    if let BodyLength::Known(length) = incoming.length
        && body_max > 0
        && length > body_max
    {
        let metrics = &connection.worker.shared.metrics;
        metrics.rejected(&connection.listener, Cause::BodyTooLarge.label());
        return Err(Answer::of(
            Cause::BodyTooLarge,
            "bodyBytesMax of the listener",
        ));
    }
    let (rule, entry) = match select(listener, &incoming.head(), None) {
        Selection::NotFound => return Err(Answer::of(Cause::NoRoute, "")),
        Selection::Service(id) => {
            connection.origin.apply(&mut incoming.parts.headers, policy);
            return Ok(Target::direct(service(current, id, record)?));
        }
        Selection::Rule { rule, entry } => (rule, entry),
    };
    record.rule = Some(Arc::clone(rule));
    connection.origin.apply(&mut incoming.parts.headers, policy);
    let asked = incoming.parts.authority.clone();
    let cors = CorsRequest::of(&rule.filters, &incoming.parts);
    let context = FilterContext {
        entry,
        port: connection.local.port(),
    };
    filter(&rule.filters, incoming, &context)?;
    let random = rand::rng().next_u64();
    let mirrors = mirrors(&rule.filters, random)
        .filter_map(|mirror| mirror::target(current, mirror))
        .collect();
    let session = session::Session::of(rule, &incoming.parts);
    let pinned = session
        .as_ref()
        .and_then(|session| session.backend(current, rule));
    let backend = match pinned.and_then(|index| rule.backends.get(index)) {
        Some(backend) => backend,
        None => chosen(rule, rand::rng().next_u64())?,
    };
    filter(&backend.filters, incoming, &context)?;
    if asked != incoming.parts.authority {
        let asked = asked.as_ref().map_or("", |asked| asked.as_str());
        apply_forwarded_host(&mut incoming.parts.headers, policy, asked);
    }
    let BackendTarget::Service(id) = backend.target else {
        return Err(Answer::of(Cause::InvalidBackend, ""));
    };
    Ok(Target {
        service: service(current, id, record)?,
        rule: Some(Arc::clone(rule)),
        backend: rule.backends.iter().position(|b| std::ptr::eq(b, backend)),
        cors,
        session,
        mirrors,
    })
}

fn chosen(rule: &Rule, random: u64) -> Result<&Backend, Answer> {
    match choose_backend(rule, random) {
        BackendChoice::Backend(backend) => Ok(backend),
        BackendChoice::Invalid(_) => Err(Answer::of(
            Cause::InvalidBackend,
            "the rule's backend does not resolve",
        )),
        BackendChoice::None => Err(Answer::of(
            Cause::NoBackend,
            "the rule has no backend with a weight",
        )),
    }
}

fn filter(
    filters: &[Filter],
    incoming: &mut Incoming,
    context: &FilterContext<'_>,
) -> Result<(), Answer> {
    match apply_request_filters(filters, &mut incoming.parts, context) {
        FilterOutcome::Continue => Ok(()),
        FilterOutcome::Respond { status, headers } => Err(Answer::of_filter(status, headers)),
        FilterOutcome::Failed(reason) => Err(Answer::of(Cause::NoBackend, reason)),
    }
}

fn service(
    current: &Current,
    id: ServiceId,
    record: &mut Record,
) -> Result<Arc<ServiceState>, Answer> {
    let service = current
        .runtime
        .services
        .get(id.0 as usize)
        .ok_or_else(|| Answer::of(Cause::InvalidBackend, ""))?;
    record.service = Some(Arc::clone(service));
    Ok(Arc::clone(service))
}

//! The compiled configuration: immutable, fully checked, indexed for the
//! decisions. It owns no behaviour beyond look-ups; `compile` makes it, `select`
//! and `filter` decide over it.
//!
//! **Invariant:** every index in here (`ServiceId`) is in range of its own
//! `Snapshot`; a snapshot is never changed once made.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

mod mesh;
mod upstream;

use crate::select::index::RouteIndex;
pub use mesh::{
    Destination, Inbound, ListenerRole, Mesh, Mtls, Peer, Probe, ProbeKind, TrustBundle,
};
pub use upstream::{
    Algorithm, Balancer, HashSource, HealthCheck, HealthCheckKind, Limits, OutlierDetection,
    RetryBudget,
};

/// Index of a service in its own [`Snapshot::services`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// Everything one proxy needs to know.
#[derive(Debug)]
pub struct Snapshot {
    pub settings: Settings,
    pub listeners: Vec<Arc<Listener>>,
    pub services: Vec<Arc<Service>>,
    /// Short hash of the wire form, shown by admin and logs.
    pub revision: String,
}

impl Snapshot {
    /// The listeners that have a socket.
    pub fn bound_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        let is_bound =
            |listener: &&Arc<Listener>| !matches!(listener.role, ListenerRole::Virtual { .. });
        self.listeners.iter().filter(is_bound)
    }

    /// The service behind an id that this snapshot gave out.
    pub fn service(&self, id: ServiceId) -> &Arc<Service> {
        &self.services[id.0 as usize]
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// 0: the CPU quota, rounded up.
    pub workers: usize,
    pub admin: SocketAddr,
    pub access_log: AccessLog,
    pub drain_timeout: Duration,
    pub drain_quiet: Duration,
    /// The longest that a sidecar's drain barrier takes.
    pub drain_barrier: Duration,
    /// Where anybody may ask the admin server for a drain.
    pub drain_path: Option<Arc<str>>,
    pub zone: Arc<str>,
    /// 0: what the file-descriptor limit carries.
    pub connections_max: usize,
    pub metric_label_values_max: usize,
    pub mesh: Option<Mesh>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    pub format: AccessLogFormat,
    /// `None`: standard output.
    pub path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    Off,
    Json,
    Text,
}

#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub protocol: ListenerProtocol,
    pub tls: Option<ServerTls>,
    /// Takes what no route takes, if the listener has no routes of that kind.
    pub service: Option<ServiceId>,
    /// HTTP and gRPC rules in order of precedence; `None`: no such route is
    /// attached, everything goes to `service`.
    pub http_routes: Option<RouteTable>,
    /// TLS routes by server name, most specific first.
    pub tls_routes: Option<Vec<StreamRoute>>,
    /// The TCP route's rule.
    pub tcp_route: Option<StreamRoute>,
    pub proxy_protocol: Option<ProxyProtocol>,
    pub http: HttpOptions,
    /// 0: no limit of its own.
    pub connections_max: usize,
    /// `None`: never.
    pub tcp_idle_timeout: Option<Duration>,
    pub role: ListenerRole,
    /// Of a port of the local workload.
    pub inbound: Option<Inbound>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    Auto,
    Http,
    Tcp,
    /// Passed through undecrypted, routed by server name.
    Tls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    V1,
    V2,
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// At least one; the first is the default.
    pub certificates: Vec<Certificate>,
    pub client_ca: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpOptions {
    pub forwarded: Forwarded,
    pub request_id_header: Option<HeaderName>,
    pub trust_request_id: bool,
    pub header_bytes_max: usize,
    pub headers_max: usize,
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
    pub body_idle_timeout: Duration,
    pub streams_max: u32,
    /// 0: no limit.
    pub requests_per_connection_max: u32,
    /// 0: no limit.
    pub body_bytes_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    Append,
    Replace,
    Preserve,
    Remove,
}

#[derive(Debug)]
pub struct Service {
    pub id: ServiceId,
    pub name: Arc<str>,
    pub protocol: ServiceProtocol,
    pub endpoints: Vec<Endpoint>,
    pub dns: Option<Dns>,
    pub tls: Option<ClientTls>,
    pub balancer: Balancer,
    pub health_check: Option<HealthCheck>,
    pub outlier: Option<OutlierDetection>,
    pub limits: Limits,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    pub retry_budget: RetryBudget,
    pub idempotent_retry: bool,
    pub send_proxy_protocol: Option<ProxyProtocol>,
    pub replay_bytes_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceProtocol {
    /// HTTP/1.1, or what ALPN chose over TLS.
    Http,
    Http1,
    /// HTTP/2 by prior knowledge (`http2` and `grpc`).
    Http2,
    /// The version the client used.
    Mirror,
    Tcp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// 0 takes no traffic.
    pub weight: u32,
    pub zone: Arc<str>,
    /// A workload of the mesh: reached by mTLS.
    pub peer: Option<Arc<Peer>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    pub name: Arc<str>,
    pub record: DnsRecord,
    pub refresh_min: Duration,
    pub refresh_max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsRecord {
    /// A and AAAA, with this port.
    Address {
        port: u16,
    },
    Srv,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// `None`: the request's host.
    pub server_name: Option<Arc<str>>,
    /// `None`: the system's roots.
    pub ca: Option<PathBuf>,
    pub client_certificate: Option<Certificate>,
    pub insecure_skip_verify: bool,
}

/// The HTTP and gRPC rules of one listener, ready to be searched.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Every match of every rule, in the order of precedence. Made by
    /// [`RouteTable::new`], so that the index fits it.
    pub entries: Vec<RouteEntry>,
    pub(crate) index: RouteIndex,
}

impl RouteTable {
    /// `entries` are in the order of precedence already.
    pub fn new(entries: Vec<RouteEntry>) -> Self {
        let index = RouteIndex::new(&entries);
        Self { entries, index }
    }
}

/// One match of one rule: the unit of precedence.
#[derive(Clone, Debug)]
pub struct RouteEntry {
    pub hostname: HostnameMatch,
    pub condition: MatchCondition,
    pub rule: Arc<Rule>,
    /// Index of this match in its rule.
    pub match_index: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostnameMatch {
    Any,
    Exact(Box<str>),
    /// `.example.com`: any number of labels before it.
    Suffix(Box<str>),
}

#[derive(Clone, Debug, Default)]
pub struct MatchCondition {
    pub path: PathCondition,
    pub method: Option<Method>,
    pub headers: Vec<HeaderCondition>,
    pub query: Vec<QueryCondition>,
}

#[derive(Clone, Debug, Default)]
pub enum PathCondition {
    #[default]
    Any,
    Exact(Box<str>),
    /// Without its trailing slash; whole path elements.
    Prefix(Box<str>),
    Regex(regex::Regex),
}

#[derive(Clone, Debug)]
pub struct HeaderCondition {
    pub name: HeaderName,
    pub value: ValueCondition,
}

#[derive(Clone, Debug)]
pub struct QueryCondition {
    pub name: Box<str>,
    pub value: ValueCondition,
}

#[derive(Clone, Debug)]
pub enum ValueCondition {
    Exact(Box<str>),
    Regex(regex::Regex),
}

/// A route's rule, with what it does to a request that it takes.
#[derive(Debug)]
pub struct Rule {
    /// `namespace/name` of the route, or its name.
    pub route: Arc<str>,
    /// The rule's name, or its index.
    pub name: Arc<str>,
    pub grpc: bool,
    pub filters: Vec<Filter>,
    pub backends: Vec<Backend>,
    /// Sum of the backends' weights.
    pub weight_total: u64,
    /// `None`: no limit.
    pub request_timeout: Option<Duration>,
    pub try_timeout: Option<Duration>,
    pub retry: Option<RetryPolicy>,
    pub session: Option<SessionPersistence>,
}

#[derive(Debug)]
pub struct Backend {
    pub weight: u32,
    pub filters: Vec<Filter>,
    pub target: BackendTarget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTarget {
    Service(ServiceId),
    /// Its share answers 500; the reason.
    Invalid(Arc<str>),
}

#[derive(Debug)]
pub enum Filter {
    RequestHeaders(HeaderModifier),
    ResponseHeaders(HeaderModifier),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Mirror(Mirror),
    Cors(Cors),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub hostname: Option<Arc<str>>,
    pub path: Option<PathModifier>,
    pub port: Option<u16>,
    pub status: StatusCode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rewrite {
    pub hostname: Option<HeaderValue>,
    pub path: Option<PathModifier>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    Full(Arc<str>),
    /// Replaces the rule's matched prefix.
    Prefix(Arc<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    pub target: BackendTarget,
    /// `numerator` of `denominator` requests are mirrored.
    pub numerator: u32,
    pub denominator: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    pub allow_origins: Vec<OriginMatch>,
    pub allow_credentials: bool,
    pub allow_methods: Vec<Arc<str>>,
    pub allow_headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    pub max_age: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginMatch {
    Any,
    Exact(Arc<str>),
    /// `https://*.example.com` as its two halves.
    Wildcard {
        prefix: Arc<str>,
        suffix: Arc<str>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    pub codes: Vec<StatusCode>,
    /// gRPC status codes.
    pub grpc_codes: Vec<u8>,
    /// Retries beyond the first try.
    pub attempts: u32,
    pub backoff: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SessionPersistence {
    pub source: SessionSource,
    /// `None`: a session cookie.
    pub absolute_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionSource {
    Cookie(Arc<str>),
    Header(HeaderName),
}

/// A rule for whole connections (TLS by server name, TCP).
#[derive(Debug)]
pub struct StreamRoute {
    pub hostname: HostnameMatch,
    pub rule: Arc<Rule>,
}

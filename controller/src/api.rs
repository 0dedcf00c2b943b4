//! The objects that the index works on: of Kubernetes' and Gateway API's kinds what
//! it needs, and Weft's own kinds.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use weft_config::wire;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

#[derive(Clone, Debug)]
pub struct Object {
    pub namespace: String,
    pub name: String,
    /// RFC 3339; empty: unknown, and younger than all others.
    pub created: String,
    pub spec: Spec,
}

#[derive(Clone, Debug)]
pub enum Spec {
    Service(Service),
    Slice(Slice),
    Pod(Pod),
    Route(Route),
    Authorization(AuthorizationPolicy),
    Workload(WorkloadPolicy),
    Traffic(Box<TrafficPolicy>),
}

#[derive(Clone, Debug, Default)]
pub struct Service {
    pub addresses: Vec<IpAddr>,
    pub headless: bool,
    pub external: bool,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

#[derive(Clone, Debug, Default)]
pub struct Slice {
    pub service: String,
    pub ports: Vec<(String, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug)]
pub struct SliceEndpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub zone: String,
    /// Name and UID of the pod.
    pub pod: Option<(String, String)>,
}

#[derive(Clone, Debug, Default)]
pub struct Pod {
    pub uid: String,
    pub account: String,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    /// `captured`, or the port at which the sidecar takes mTLS.
    pub inbound: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Route {
    pub parents: Vec<ParentRef>,
    /// Backends are named `namespace/name:port`.
    pub wire: wire::Route,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    #[serde(default = "gateway_group")]
    pub group: String,
    #[serde(default = "gateway")]
    pub kind: String,
    #[serde(default)]
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub section_name: String,
    #[serde(default)]
    pub port: u16,
}

fn gateway_group() -> String {
    "gateway.networking.k8s.io".to_owned()
}

fn gateway() -> String {
    "Gateway".to_owned()
}

/// A workload's pods, by their labels.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    #[serde(default)]
    pub group: String,
    pub kind: String,
    pub name: String,
}

/// Who may do what to workloads of its namespace: those that `selector` or
/// `targetRefs` (Services) name, or all.
#[derive(Clone, Debug)]
pub struct AuthorizationPolicy {
    pub targets: Vec<TargetRef>,
    pub selector: Option<Selector>,
    pub rules: wire::AuthorizationRules,
}

/// What holds for workloads of its namespace: those that `selector` names, or all.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadPolicy {
    pub selector: Option<Selector>,
    /// permissive (default) or strict.
    pub mtls: Option<Mtls>,
    /// Exceptions for single ports.
    pub ports: Vec<PortMtls>,
    /// What no AuthorizationPolicy decides; allow by default.
    pub default_action: Option<DefaultAction>,
    /// What happens to connections to what no service has; pass by default.
    pub unknown_destination: Option<UnknownDestination>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mtls {
    Permissive,
    Strict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DefaultAction {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnknownDestination {
    Pass,
    Refuse,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMtls {
    pub port: u16,
    pub mtls: Mtls,
}

/// How Services of its namespace are called: fields of a Service of the proxy's
/// configuration (balancer, outlierDetection, limits, …).
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    pub targets: Vec<TargetRef>,
    pub service: wire::Service,
}

impl Object {
    pub fn key(&self) -> Key {
        Key {
            kind: match &self.spec {
                Spec::Service(_) => "Service",
                Spec::Slice(_) => "EndpointSlice",
                Spec::Pod(_) => "Pod",
                Spec::Route(route) => route_kind(route.wire.kind()),
                Spec::Authorization(_) => "AuthorizationPolicy",
                Spec::Workload(_) => "WorkloadPolicy",
                Spec::Traffic(_) => "TrafficPolicy",
            },
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

pub fn route_kind(kind: wire::route::Kind) -> &'static str {
    match kind {
        wire::route::Kind::Http => "HTTPRoute",
        wire::route::Kind::Grpc => "GRPCRoute",
        wire::route::Kind::Tls => "TLSRoute",
        wire::route::Kind::Tcp => "TCPRoute",
    }
}

//! The objects that the index works on: of Kubernetes' and Gateway API's kinds what
//! it needs, and Weft's own kinds.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_config::compile::timestamp::Timestamp;
use weft_config::wire;

pub mod definition;
pub mod errors;
pub mod kinds;
pub mod mark;
pub mod mesh;

/// How objects name us: entries of routes' statuses, meshes.
pub const CONTROLLER: &str = "weft.dev/controller";

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

#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub namespace: String,
    pub name: String,
    /// Unknown: younger than all others.
    pub created: Option<Timestamp>,
    /// `metadata.generation`; 0: none.
    pub generation: i64,
    pub spec: Spec,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    Namespace,
    Node(Node),
    Service(Service),
    Slice(Slice),
    Pod(Pod),
    Route(Route),
    ReferenceGrant(ReferenceGrant),
    Authorization(AuthorizationPolicy),
    Workload(WorkloadPolicy),
    Traffic(Box<TrafficPolicy>),
    Mesh(mesh::Mesh),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    pub addresses: Vec<IpAddr>,
    pub headless: bool,
    /// ExternalName: a name for something outside.
    pub external: bool,
    /// Endpoints count before they are ready, too.
    pub publish_not_ready: bool,
    /// The first of its IP families.
    pub prefers_ipv6: bool,
    /// Endpoints of the caller's zone come first (`trafficDistribution`).
    pub prefers_zone: bool,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    /// `http`, `http2`, `tls`, `tcp`, or empty: detected.
    pub protocol: String,
    /// Its appProtocol is one of Kubernetes' that nobody here knows.
    pub unknown_protocol: bool,
}

/// Read, and needed by nothing yet: routes of a mesh may name Services and
/// backends of other namespaces without one (GEP-1294).
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrant {
    /// Who may refer.
    pub from: Vec<GrantFrom>,
    /// To what, in the grant's namespace.
    pub to: Vec<GrantTo>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantFrom {
    /// Of the routes that may refer.
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantTo {
    /// Of what they may refer to.
    pub group: String,
    pub kind: String,
    /// Only this one.
    pub name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    pub service: String,
    pub ports: Vec<(String, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SliceEndpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// The one that it is meant for, by its hints, else the one that it is in.
    pub zone: String,
    /// Name and UID of the pod.
    pub pod: Option<(String, String)>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    pub uid: String,
    pub account: String,
    /// A map takes half a KiB for one of them.
    pub labels: Box<[(String, String)]>,
    pub addresses: Vec<IpAddr>,
    /// `captured`, or the port at which the sidecar takes mTLS.
    pub inbound: Option<String>,
    /// Where it runs; empty: not known.
    pub node: String,
    /// It is told to end (`deletionTimestamp`), which is sooner than slices tell.
    pub is_leaving: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub zone: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub parents: Vec<ParentRef>,
    /// Backends are named `namespace/name:port`.
    pub wire: wire::Route,
    /// Filters that nobody here knows and that were left out, by the number of their rule: where
    /// and what.
    pub unsupported: BTreeMap<usize, String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// Must be there and empty for a Service.
    #[serde(default = "gateway_group")]
    pub group: String,
    /// Service; parents of other kinds are other controllers'.
    #[serde(default = "gateway")]
    pub kind: String,
    /// Default: the route's.
    #[serde(default)]
    pub namespace: String,
    pub name: String,
    /// The name of one of its ports; default: all.
    #[serde(default)]
    pub section_name: String,
    /// The number of one of its ports; default: all.
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that a pod must have, all of them.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Empty, as Services' is.
    #[serde(default)]
    pub group: String,
    /// Service.
    pub kind: String,
    /// In the policy's namespace.
    pub name: String,
}

/// What a policy is about.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Attachment {
    /// Services: what they are called by, or the pods behind them.
    pub target_refs: Vec<TargetRef>,
    /// Pods.
    pub selector: Option<Selector>,
}

impl Attachment {
    /// The fields' names.
    pub const FIELDS: [&str; 2] = ["targetRefs", "selector"];
}

/// Who may do what to workloads of its namespace: those that `selector` or
/// `targetRefs` (Services) name, or all.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    pub targets: Vec<TargetRef>,
    pub selector: Option<Selector>,
    pub rules: wire::AuthorizationRules,
}

/// What holds for workloads of its namespace: those that `selector` names, or all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "WorkloadPolicy",
    root = "WorkloadPolicyResource",
    namespaced,
    status = "definition::PolicyStatus",
    shortname = "wp",
    category = "weft",
    doc = "What holds for workloads of its namespace: those that `selector` names, or all.",
    printcolumn = r#"{"name":"mTLS", "type":"string", "jsonPath":".spec.mtls"}"#,
    printcolumn = r#"{"name":"Default", "type":"string", "jsonPath":".spec.defaultAction"}"#,
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name":"Reason", "type":"string", "jsonPath":".status.conditions[?(@.type=='Accepted')].reason"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadPolicy {
    /// Pods; default: all of the namespace.
    pub selector: Option<Selector>,
    /// Whether callers must come by mTLS; permissive by default.
    pub mtls: Option<Mtls>,
    /// Exceptions for single ports.
    pub ports: Vec<PortMtls>,
    /// What no AuthorizationPolicy decides; allow by default.
    pub default_action: Option<DefaultAction>,
    /// What happens to connections to what no service has; pass by default.
    pub unknown_destination: Option<UnknownDestination>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mtls {
    Permissive,
    Strict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DefaultAction {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UnknownDestination {
    Pass,
    Refuse,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMtls {
    /// The application's.
    pub port: u16,
    pub mtls: Mtls,
}

/// How Services of its namespace are called: fields of a Service of the proxy's
/// configuration (balancer, outlierDetection, limits, …).
#[derive(Clone, Debug, PartialEq)]
pub struct TrafficPolicy {
    pub targets: Vec<TargetRef>,
    pub service: wire::Service,
}

impl WorkloadPolicy {
    /// The first field that both set, to different values.
    pub fn contradicts(&self, other: &Self) -> Option<String> {
        fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
            a.is_some() && b.is_some() && a != b
        }
        let port = self.ports.iter().find(|own| {
            let mut theirs = other.ports.iter();
            theirs.any(|of| of.port == own.port && of.mtls != own.mtls)
        });
        if differ(&self.mtls, &other.mtls) {
            Some("mtls".to_owned())
        } else if differ(&self.default_action, &other.default_action) {
            Some("defaultAction".to_owned())
        } else if differ(&self.unknown_destination, &other.unknown_destination) {
            Some("unknownDestination".to_owned())
        } else {
            port.map(|of| format!("mtls of port {}", of.port))
        }
    }
}

impl Object {
    /// Sorts the oldest first.
    pub fn age(&self) -> (bool, Option<Timestamp>) {
        (self.created.is_none(), self.created)
    }

    pub fn key(&self) -> Key {
        Key {
            kind: match &self.spec {
                Spec::Namespace => "Namespace",
                Spec::Node(_) => "Node",
                Spec::Service(_) => "Service",
                Spec::Slice(_) => "EndpointSlice",
                Spec::Pod(_) => "Pod",
                Spec::Route(route) => route_kind(route.wire.kind()),
                Spec::ReferenceGrant(_) => "ReferenceGrant",
                Spec::Authorization(_) => "AuthorizationPolicy",
                Spec::Workload(_) => "WorkloadPolicy",
                Spec::Traffic(_) => "TrafficPolicy",
                Spec::Mesh(_) => mesh::KIND,
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

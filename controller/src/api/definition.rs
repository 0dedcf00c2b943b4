//! Weft's own kinds as Kubernetes' API server is to know them: names, columns, rules,
//! statuses. The fields that are the proxy's own (`AuthorizationRules`, `Service`) are
//! added from its wire form, by who writes the chart's CustomResourceDefinitions.
//!
//! **Invariant:** what a definition admits, `source::manifest` reads.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Selector, TargetRef, WorkloadPolicyResource};

/// Who may do what to workloads of its namespace.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "authz",
    category = "weft",
    doc = "Who may do what to workloads of its namespace: those that `selector` or `targetRefs` name, or all.",
    printcolumn = r#"{"name":"Action", "type":"string", "jsonPath":".spec.action"}"#,
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name":"Reason", "type":"string", "jsonPath":".status.conditions[?(@.type=='Accepted')].reason"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// Services: the pods behind them.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Pods.
    pub selector: Option<Selector>,
}

/// How Services of its namespace are called.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, CustomResource)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    namespaced,
    status = "PolicyStatus",
    shortname = "tp",
    category = "weft",
    doc = "How Services of its namespace are called.",
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name":"Reason", "type":"string", "jsonPath":".status.conditions[?(@.type=='Accepted')].reason"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// Services.
    pub target_refs: Vec<TargetRef>,
}

/// What has become of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyStatus {
    /// `Accepted`: whether it is in force.
    pub conditions: Vec<Condition>,
    /// What it names, one by one.
    pub targets: Vec<TargetStatus>,
}

/// As Kubernetes' metav1.Condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The generation of the policy that this is about.
    #[serde(default)]
    pub observed_generation: i64,
    /// When `status` last changed (RFC 3339).
    pub last_transition_time: String,
    /// A word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// One Service, or all pods that are selected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    pub kind: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub name: String,
    pub accepted: bool,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

/// The definitions, without the fields of the proxy's wire form.
pub fn definitions() -> [CustomResourceDefinition; 3] {
    [
        AuthorizationPolicy::crd(),
        TrafficPolicy::crd(),
        WorkloadPolicyResource::crd(),
    ]
}

//! Of a cluster that Weft is installed in: definitions, controller, webhook, pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use weft_controller::admission::inject::{DISABLED, ENABLED, INJECTED, LABEL};
use weft_controller::ca;
use weft_controller::ca::files::File;

use super::here::CLOCK_SKEW_MAX;
use super::{Finding, Findings, about};
use crate::cluster::{self, Cluster, PodName, bounded, definition};
use crate::install::apply::{trouble, unavailable};
use crate::install::manifests::{CONTROLLER, WEBHOOK, kind, text};
use crate::mesh::Known;
use crate::status;
use crate::terminal::span;

/// Pods that are named at once.
const NAMED_MAX: usize = 3;
const REINSTALL: &str = "weft install --apply (or helm upgrade) puts it right";

/// Weft's own kinds, as this weft has them.
pub async fn definitions(all: &mut Vec<Finding>, cluster: &Cluster, objects: &[Value]) {
    let mut findings = about(all, "definitions");
    let before = findings.all.len();
    let own = objects
        .iter()
        .filter(|of| kind(of) == "CustomResourceDefinition");
    let api = Api::<DynamicObject>::all_with(cluster.client.clone(), &definition());
    let mut names = Vec::new();
    for own in own {
        let name = text(own, "/metadata/name");
        names.push(name);
        let found = match bounded("asking for definitions", api.get_opt(name)).await {
            Ok(found) => found,
            Err(error) => return findings.warn(format!("{error:#}"), "they were not looked at"),
        };
        let Some(found) = found else {
            findings.wrong(format!("{name} is not there"), REINSTALL);
            continue;
        };
        let schema = |of: &Value| of.pointer("/spec/versions/0/schema").cloned();
        if schema(&found.data) != schema(own) {
            findings.warn(
                format!("{name} is of another version than this weft"),
                "fine while Weft is being upgraded; else weft install --apply",
            );
        }
        let conditions = found
            .data
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let established =
            |of: &Value| text(of, "/type") == "Established" && text(of, "/status") == "True";
        if !conditions.into_iter().flatten().any(established) {
            findings.wrong(
                format!("{name} is not established"),
                "kubectl describe crd says why",
            );
        }
    }
    if findings.all.len() == before {
        findings.ok(format!(
            "{} are there, and of this version",
            names.join(", ")
        ));
    }
}

/// The Deployment, and who writes statuses.
pub async fn controller(all: &mut Vec<Finding>, cluster: &Cluster) {
    let mut findings = about(all, "controller");
    let api = Api::<Deployment>::namespaced(cluster.client.clone(), &cluster.namespace);
    match bounded("asking for weft-controller", api.get_opt(CONTROLLER)).await {
        Err(error) => findings.warn(format!("{error:#}"), "it was not looked at"),
        Ok(None) => findings.wrong(
            format!(
                "there is no Deployment {CONTROLLER} in namespace {}",
                cluster.namespace
            ),
            "weft install --apply, or name its namespace by -n",
        ),
        Ok(Some(deployment)) => match unavailable(&deployment) {
            None => {
                let replicas = deployment
                    .status
                    .and_then(|status| status.available_replicas);
                findings.ok(format!(
                    "all {} replicas are available",
                    replicas.unwrap_or(0)
                ));
            }
            Some(short) => {
                let pods = cluster.controllers().await.unwrap_or_default();
                let why = pods.iter().find_map(trouble);
                let why = why.map_or(String::new(), |why| format!(": {why}"));
                let remedy = format!(
                    "kubectl -n {} describe pods says why; weft logs --controller",
                    cluster.namespace
                );
                findings.wrong(format!("{short}{why}"), remedy);
            }
        },
    }
    lease(&mut findings, cluster).await;
}

/// Whoever holds it writes statuses.
async fn lease(findings: &mut Findings<'_>, cluster: &Cluster) {
    let api = Api::<Lease>::namespaced(cluster.client.clone(), &cluster.namespace);
    let Ok(found) = bounded("asking for the Lease", api.get_opt(CONTROLLER)).await else {
        return;
    };
    let spec = found.and_then(|lease| lease.spec).unwrap_or_default();
    let remedy =
        "statuses of routes and policies are not written, traffic goes on: weft logs --controller";
    let (Some(holder), Some(renewed)) = (spec.holder_identity, spec.renew_time) else {
        return findings.warn("no replica holds the Lease weft-controller", remedy);
    };
    let renewed = u64::try_from(renewed.0.as_second()).unwrap_or(0);
    let ago = now().saturating_sub(renewed);
    let life = u64::try_from(spec.lease_duration_seconds.unwrap_or(15)).unwrap_or(15);
    match ago > life + CLOCK_SKEW_MAX {
        true => findings.warn(
            format!("{holder} has not renewed its Lease for {}", span(ago)),
            remedy,
        ),
        false => findings.ok(format!("{holder} writes statuses")),
    }
}

/// What the replicas say of themselves.
pub fn replicas(all: &mut Vec<Finding>, known: &Known) {
    let mut findings = about(all, "controller");
    let own = env!("CARGO_PKG_VERSION");
    let now = now();
    for controller in &known.controllers {
        let name = &controller.name;
        let status = match &controller.answer {
            Ok(status) => status,
            Err(error) => {
                findings.wrong(
                    format!("{name} does not answer: {error}"),
                    "weft logs --controller",
                );
                continue;
            }
        };
        match status.version == own {
            true => findings.ok(format!("{name} answers, version {own}")),
            false => findings.warn(
                format!("{name} is of version {}, and weft of {own}", status.version),
                "fine while Weft is being upgraded; else install one version",
            ),
        }
        let skew = now.abs_diff(status.now);
        if skew > CLOCK_SKEW_MAX {
            findings.wrong(
                format!("{name}'s clock differs from this machine's by {}", span(skew)),
                "set the clocks of its node and of this machine (NTP): certificates are refused before and after their time",
            );
        }
        for broken in status::watches(&status.watches) {
            findings.wrong(format!("{name} {broken}"), REINSTALL);
        }
    }
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    let proxies = known.proxies();
    for proxy in &proxies {
        *versions.entry(&proxy.proxy.version).or_default() += 1;
    }
    versions.retain(|version, _| *version != own);
    for (version, count) in versions {
        findings.warn(
            format!("{count} sidecars are of version {version}"),
            "restart their pods to bring them to the controller's: kubectl rollout restart",
        );
    }
}

/// The configuration, whom the API server believes, and whether a pod is injected.
pub async fn webhook(all: &mut Vec<Finding>, cluster: &Cluster, known: Option<&Known>) {
    let mut findings = about(all, "webhook");
    let api = Api::<MutatingWebhookConfiguration>::all(cluster.client.clone());
    let found = match bounded("asking for the webhook", api.get_opt(WEBHOOK)).await {
        Ok(found) => found,
        Err(error) => return findings.warn(format!("{error:#}"), "it was not looked at"),
    };
    let Some(found) = found else {
        return findings.wrong(
            format!("there is no MutatingWebhookConfiguration {WEBHOOK}: no pod is injected"),
            REINSTALL,
        );
    };
    let roots: BTreeSet<_> = known
        .into_iter()
        .flat_map(status::roots)
        .map(|(_, root)| root.fingerprint.clone())
        .collect();
    let bundles = found.webhooks.iter().flatten().map(|webhook| {
        let bytes = webhook
            .client_config
            .ca_bundle
            .clone()
            .map(|bundle| bundle.0);
        let place = format!("caBundle of {}", webhook.name);
        let prints = ca::fingerprints_of(&File { place, bytes });
        prints.map(BTreeSet::from_iter).unwrap_or_default()
    });
    match bundles.collect::<BTreeSet<BTreeSet<String>>>() {
        bundles if bundles.iter().any(BTreeSet::is_empty) => findings.wrong(
            "its caBundle is empty: the API server believes no controller",
            "the controller writes it within seconds; weft logs --controller says why it did not",
        ),
        bundles if known.is_some() && bundles.iter().any(|of| *of != roots) => findings.wrong(
            "its caBundle does not hold the controller's roots",
            "the controller writes it within seconds; weft logs --controller says why it did not",
        ),
        _ => findings.ok(format!(
            "{WEBHOOK} is there, and believes the controller's roots"
        )),
    }
    try_pod(&mut findings, cluster).await;
}

/// A pod that is made in words only: the API server asks the webhook, and stores nothing.
async fn try_pod(findings: &mut Findings<'_>, cluster: &Cluster) {
    let namespace = labelled(cluster)
        .await
        .ok()
        .and_then(|found| found.into_iter().next());
    let namespace = namespace.unwrap_or_else(|| "default".to_owned());
    let api = Api::<Pod>::namespaced(cluster.client.clone(), &namespace);
    let pod = serde_json::from_value(json!({
        "metadata": {"name": format!("weft-check-{}", std::process::id()), "labels": {LABEL: ENABLED}},
        "spec": {"containers": [{"name": "application", "image": "weft.dev/none"}]},
    }));
    let pod: Pod = match pod {
        Ok(pod) => pod,
        Err(error) => return findings.warn(error.to_string(), "no pod was tried"),
    };
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match bounded("creating a pod, as a dry run", api.create(&params, &pod)).await {
        Ok(made) if made.annotations().contains_key(INJECTED) => {
            findings.ok(format!("it answers: a pod in namespace {namespace} is injected (dry run)"));
        }
        Ok(_) => findings.wrong(
            format!("a pod in namespace {namespace} is not injected (dry run)"),
            "does another webhook undo it, or failurePolicy Ignore hide that it does not answer? weft logs --controller",
        ),
        Err(error) => {
            let said = format!("{error:#}");
            let remedy = match () {
                () if said.contains("failed calling webhook") => {
                    "the API server does not reach it: is a controller ready, and do network policies let the API server through to port 14443?"
                }
                () if said.contains("violates PodSecurity") => {
                    "the namespace's Pod Security level forbids the capture step's NET_ADMIN: label it pod-security.kubernetes.io/enforce=privileged"
                }
                () => "no pod could be tried: it needs the verb create on pods",
            };
            findings.wrong(said, remedy);
        }
    }
}

/// Namespaces whose pods are to be in the mesh.
async fn labelled(cluster: &Cluster) -> Result<Vec<String>> {
    let api = Api::<Namespace>::all(cluster.client.clone());
    let chosen = ListParams::default().labels(&format!("{LABEL}={ENABLED}"));
    let found = cluster::all(&api, chosen, "namespaces").await?;
    let alive = found
        .iter()
        .filter(|of| of.meta().deletion_timestamp.is_none());
    Ok(alive.map(Namespace::name_any).collect())
}

/// Pods that should have a sidecar and have none, and sidecars that no controller knows.
pub async fn pods(all: &mut Vec<Finding>, cluster: &Cluster, known: &Known) {
    let mut findings = about(all, "pods");
    let namespaces = match labelled(cluster).await {
        Ok(namespaces) => namespaces,
        Err(error) => return findings.warn(format!("{error:#}"), "they were not looked at"),
    };
    let before = findings.all.len();
    for namespace in &namespaces {
        let api = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
        match cluster::all(&api, ListParams::default(), "pods").await {
            Ok(pods) => without(&mut findings, namespace, &pods),
            Err(error) => findings.warn(format!("{error:#}"), "they were not looked at"),
        }
    }
    let connected: BTreeSet<String> = known
        .proxies()
        .iter()
        .map(|of| of.proxy.workload.clone())
        .collect();
    let injected = cluster.injected().await.unwrap_or_default();
    let lost = injected.iter().filter(|pod| {
        let running = pod.status.as_ref().and_then(|of| of.phase.as_deref()) == Some("Running");
        let uid = pod.uid().unwrap_or_default();
        running && pod.meta().deletion_timestamp.is_none() && !connected.contains(&uid)
    });
    for pod in lost {
        let name = PodName::of(pod);
        findings.wrong(
            format!("{name} has a sidecar that no controller knows"),
            format!("its log says why it is not connected: weft logs {name}"),
        );
    }
    if findings.all.len() == before {
        let (pods, namespaces) = (injected.len(), namespaces.len());
        findings.ok(format!(
            "{pods} have a sidecar; {namespaces} namespaces are labelled {LABEL}={ENABLED}"
        ));
    }
}

fn without(findings: &mut Findings<'_>, namespace: &str, pods: &[Pod]) {
    let names: Vec<String> = pods
        .iter()
        .filter(|pod| lacks(pod))
        .map(Pod::name_any)
        .collect();
    if names.is_empty() {
        return;
    }
    let first = names
        .iter()
        .take(NAMED_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    let more = if names.len() > NAMED_MAX { ", …" } else { "" };
    findings.warn(
        format!(
            "namespace {namespace}: {} pods have no sidecar: {first}{more}",
            names.len()
        ),
        format!(
            "they were there before the label: kubectl -n {namespace} rollout restart deployment"
        ),
    );
}

/// Would be injected if it were made now. Pure.
fn lacks(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    !pod.annotations().contains_key(INJECTED)
        && pod
            .labels()
            .get(LABEL)
            .is_none_or(|label| label != DISABLED)
        && spec.and_then(|spec| spec.host_network) != Some(true)
        && pod.meta().deletion_timestamp.is_none()
        && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_pods_lack_a_sidecar() {
        for (pod, expected) in [
            (
                json!({"metadata": {}, "status": {"phase": "Running"}}),
                true,
            ),
            (
                json!({"metadata": {"annotations": {INJECTED: "0.1.0"}}}),
                false,
            ),
            (json!({"metadata": {"labels": {LABEL: DISABLED}}}), false),
            (json!({"metadata": {"labels": {LABEL: ENABLED}}}), true),
            (
                json!({"spec": {"hostNetwork": true, "containers": []}}),
                false,
            ),
            (
                json!({"metadata": {}, "status": {"phase": "Succeeded"}}),
                false,
            ),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                false,
            ),
        ] {
            let parsed: Pod = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!(lacks(&parsed), expected, "{pod}");
        }
    }
}

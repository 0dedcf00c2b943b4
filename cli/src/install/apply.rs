//! Applying the objects, waiting until they work, and deleting them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::manifests::{CONTROLLER, MANAGER, WEBHOOK, text, title};
use crate::cluster::{Cluster, bounded};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Pods with sidecars that are named before an uninstall.
const NAMED_MAX: usize = 5;

/// Applies one after another, on the server's side.
pub async fn install(cluster: &Cluster, objects: &[Value], force: bool) -> Result<()> {
    is_free(cluster).await?;
    let mut params = PatchParams::apply(MANAGER);
    params.force = force;
    for object in objects {
        let (api, name) = api(&cluster.client, object)?;
        let what = format!("applying {}", title(object));
        let patch = Patch::Apply(object);
        let applied = bounded(&what, api.patch(&name, &params, &patch)).await;
        applied.map_err(|error| {
            let conflict = error.root_cause().to_string().contains("conflict");
            match conflict {
                true => error.context("somebody else has set it: --force-conflicts takes it over"),
                false => error,
            }
        })?;
        eprintln!("applied  {}", title(object));
    }
    Ok(())
}

/// Neither helm's nor of another namespace.
async fn is_free(cluster: &Cluster) -> Result<()> {
    let namespace = &cluster.namespace;
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), namespace);
    let found = bounded("looking for Weft", deployments.get_opt(CONTROLLER)).await?;
    let manager = found.as_ref().and_then(|found| {
        let labels = found.labels();
        labels.get("app.kubernetes.io/managed-by").cloned()
    });
    ensure!(
        manager.as_deref() != Some("Helm"),
        "Weft in namespace {namespace} is a release of helm: use helm upgrade, or helm uninstall before"
    );
    let webhooks = Api::<MutatingWebhookConfiguration>::all(cluster.client.clone());
    let found = bounded("looking for Weft", webhooks.get_opt(WEBHOOK)).await?;
    let other = found.and_then(|found| {
        let webhook = found.webhooks?.into_iter().next()?;
        Some(webhook.client_config.service?.namespace)
    });
    ensure!(
        other.as_ref().is_none_or(|other| other == namespace),
        "Weft is in namespace {} of this cluster already: -n names it",
        other.unwrap_or_default()
    );
    Ok(())
}

/// Waits until all replicas are available and the webhook is trusted; says what it waits for.
pub async fn ready(cluster: &Cluster, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    let mut said = String::new();
    loop {
        let Some(waiting) = waits_for(cluster).await? else {
            return Ok(());
        };
        if said != waiting {
            eprintln!("waiting  {waiting}");
            said = waiting;
        }
        if Instant::now() > until {
            bail!(
                "not ready within {limit:?}: {said}; kubectl -n {} describe pods -l app.kubernetes.io/name=weft says more",
                cluster.namespace
            );
        }
        sleep(LOOK_INTERVAL).await;
    }
}

async fn waits_for(cluster: &Cluster) -> Result<Option<String>> {
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), &cluster.namespace);
    let deployment = bounded("asking for weft-controller", deployments.get(CONTROLLER)).await?;
    if let Some(short) = unavailable(&deployment) {
        let pods = cluster.controllers().await.unwrap_or_default();
        let troubles: BTreeSet<String> = pods.iter().filter_map(trouble).collect();
        let troubles: Vec<String> = troubles.into_iter().collect();
        return Ok(Some(match troubles.is_empty() {
            true => short,
            false => format!("{short}: {}", troubles.join("; ")),
        }));
    }
    let webhooks = Api::<MutatingWebhookConfiguration>::all(cluster.client.clone());
    let webhook = bounded("asking for the webhook", webhooks.get(WEBHOOK)).await?;
    let trusted = webhook.webhooks.iter().flatten().all(|of| {
        let bundle = of.client_config.ca_bundle.as_ref();
        bundle.is_some_and(|bundle| !bundle.0.is_empty())
    });
    Ok((!trusted).then(|| "the webhook's trust".to_owned()))
}

/// How many replicas are there, if not all are. Pure.
pub fn unavailable(deployment: &Deployment) -> Option<String> {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let wanted = wanted.unwrap_or(1);
    let status = deployment.status.as_ref();
    let seen =
        status.and_then(|status| status.observed_generation) >= deployment.metadata.generation;
    let of = |count: Option<i32>| count.unwrap_or(0);
    let available = status.map_or(0, |of_status| of(of_status.available_replicas));
    let updated = status.map_or(0, |of_status| of(of_status.updated_replicas));
    let all = status.map_or(0, |of_status| of(of_status.replicas));
    (!seen || available < wanted || updated < wanted || all > wanted).then(|| {
        format!(
            "weft-controller: {} of {wanted} replicas",
            available.min(updated)
        )
    })
}

/// Why a pod does not start.
pub fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let pending = status.conditions.iter().flatten();
    let unscheduled = pending
        .filter(|of| of.type_ == "PodScheduled" && of.status == "False")
        .find_map(|of| of.message.clone());
    let waiting = status.container_statuses.iter().flatten().find_map(|of| {
        let waiting = of.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let message = waiting.message.as_deref().unwrap_or_default();
        let is_trouble = !["", "ContainerCreating", "PodInitializing"].contains(&reason);
        is_trouble.then(|| format!("{reason}: {message}"))
    });
    unscheduled.or(waiting)
}

/// Deletes one after another. What is not there is fine.
pub async fn uninstall(cluster: &Cluster, objects: &[Value], force: bool) -> Result<()> {
    let injected = cluster.injected().await?;
    if !injected.is_empty() && !force {
        let names = injected.iter().take(NAMED_MAX);
        let names: Vec<_> = names
            .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
            .collect();
        bail!(
            "{} pods have sidecars, which would learn nothing new and lose their certificates ({}…): unlabel their namespaces and restart them first, or --force",
            injected.len(),
            names.join(", ")
        );
    }
    for object in objects {
        let (api, name) = api(&cluster.client, object)?;
        let deleted = async {
            match api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
                Err(error) => Err(error),
                Ok(_) => Ok(true),
            }
        };
        if bounded(&format!("deleting {}", title(object)), deleted).await? {
            eprintln!("deleted  {}", title(object));
        }
    }
    Ok(())
}

/// Where an object lives, and its name.
fn api(client: &Client, object: &Value) -> Result<(Api<DynamicObject>, String)> {
    let version = text(object, "/apiVersion");
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = GroupVersionKind::gvk(group, version, text(object, "/kind"));
    let resource = ApiResource::from_gvk(&kind);
    let name = text(object, "/metadata/name").to_owned();
    ensure!(
        !name.is_empty(),
        "an object of kind {} has no name",
        kind.kind
    );
    let api = match object.pointer("/metadata/namespace") {
        Some(namespace) => {
            let namespace = namespace.as_str().context("a namespace is text")?;
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
        None => Api::all_with(client.clone(), &resource),
    };
    Ok((api, name))
}

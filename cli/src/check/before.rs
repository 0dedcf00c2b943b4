//! Of a cluster, whether Weft is installed or not: API server, nodes, what one may do, Gateway API.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use http::{Request, header};
use http_body_util::BodyExt as _;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, ListParams, PostParams};
use kube::client::Body;
use kube::core::GroupVersionKind;
use serde_json::Value;

use super::here::CLOCK_SKEW_MAX;
use super::{Finding, about};
use crate::cluster::{self, Cluster, bounded};
use crate::install::manifests::{kind, text};
use crate::terminal::span;

/// Since then init containers that go on, native sidecars, are on by default.
const SIDECARS: Version = (1, 29);
/// Since then address translation is there for both families in one nftables table.
const KERNEL: Version = (5, 2);
/// Channels and versions of Gateway API as its definitions say them.
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";
const CHANNEL: &str = "gateway.networking.k8s.io/channel";
const GATEWAY: &str = "gateway.networking.k8s.io";

type Version = (u32, u32);

/// `v1.34.4-gke.1`, `6.18.44-fc`, `5.2`.
fn version(text: &str) -> Option<Version> {
    let mut numbers = text
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// False: it cannot be reached, so there is nothing more to ask. Its time, as seconds since the
/// Unix epoch, is for who compares clocks.
pub async fn api_server(all: &mut Vec<Finding>, cluster: &Cluster) -> bool {
    let mut findings = about(all, "API server");
    let (info, date) = match asked(cluster).await {
        Ok(answer) => answer,
        Err(error) => {
            let remedy = "is the cluster there, and the kubeconfig's context the right one? kubectl version asks the same";
            findings.wrong(format!("{}: {error:#}", cluster.context), remedy);
            return false;
        }
    };
    let said = &info.git_version;
    match version(said) {
        Some(version) if version < SIDECARS => findings.wrong(
            format!(
                "Kubernetes {said} of {} has no native sidecars",
                cluster.context
            ),
            "upgrade it to 1.29 or later",
        ),
        _ => findings.ok(format!("Kubernetes {said} of {} answers", cluster.context)),
    }
    if let Some(date) = date {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let skew = now.map_or(0, |now| now.as_secs()).abs_diff(date);
        match skew > CLOCK_SKEW_MAX {
            true => findings.warn(
                format!("its clock differs from this machine's by {}", span(skew)),
                "set both clocks (NTP): times that weft shows are off by as much",
            ),
            false => findings.ok(format!(
                "its clock differs from this machine's by {skew}s at most"
            )),
        }
    }
    true
}

async fn asked(cluster: &Cluster) -> Result<(Info, Option<u64>)> {
    let request = Request::get("/version").body(Body::empty())?;
    let answer = bounded("asking for its version", cluster.client.send(request)).await?;
    let date = answer
        .headers()
        .get(header::DATE)
        .and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let date = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok());
    let status = answer.status();
    let body = bounded("reading its version", answer.into_body().collect()).await?;
    let info = serde_json::from_slice(&body.to_bytes());
    let info = info.with_context(|| format!("it answers {status} and no version"))?;
    Ok((info, date.map(|date| date.as_secs())))
}

/// Whether the nodes can run sidecars, as far as they tell.
pub async fn nodes(all: &mut Vec<Finding>, cluster: &Cluster) {
    let mut findings = about(all, "nodes");
    let api = Api::<Node>::all(cluster.client.clone());
    let nodes = match cluster::all(&api, ListParams::default(), "nodes").await {
        Ok(nodes) => nodes,
        Err(error) => {
            let remedy = "their kernels and kubelets were not looked at";
            return findings.warn(format!("{error:#}"), remedy);
        }
    };
    let mut kernels = BTreeSet::new();
    let before = findings.all.len();
    for node in &nodes {
        let Some(info) = node
            .status
            .as_ref()
            .and_then(|status| status.node_info.as_ref())
        else {
            continue;
        };
        let name = node.name_any();
        if info.operating_system != "linux" {
            findings.warn(
                format!("{name} runs {}", info.operating_system),
                "its pods cannot be in the mesh: do not label their namespaces",
            );
            continue;
        }
        kernels.insert(info.kernel_version.clone());
        if version(&info.kernel_version).is_some_and(|kernel| kernel < KERNEL) {
            findings.wrong(
                format!(
                    "{name} has kernel {}, too old to capture by nftables",
                    info.kernel_version
                ),
                "upgrade its kernel to 5.2 or later, or keep injected pods off it",
            );
        }
        if version(&info.kubelet_version).is_some_and(|kubelet| kubelet < SIDECARS) {
            findings.wrong(
                format!(
                    "{name} has kubelet {}, without native sidecars",
                    info.kubelet_version
                ),
                "upgrade it to 1.29 or later",
            );
        }
    }
    if findings.all.len() == before {
        let kernels: Vec<_> = kernels.into_iter().collect();
        let (count, kernels) = (nodes.len(), kernels.join(", "));
        findings.ok(format!("{count} can run sidecars, by version (kernel {kernels}); whether nftables is compiled in, the first injected pod shows"));
    }
}

/// Whether one may create what the manifests hold.
pub async fn permissions(all: &mut Vec<Finding>, cluster: &Cluster, objects: &[Value]) {
    let mut findings = about(all, "permissions");
    let needed: BTreeSet<(String, String, String, Option<&str>)> = objects
        .iter()
        .map(|object| {
            let version = text(object, "/apiVersion");
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let of = GroupVersionKind::gvk(group, version, kind(object));
            let plural = ApiResource::from_gvk(&of).plural;
            let namespace = object
                .pointer("/metadata/namespace")
                .and_then(Value::as_str);
            (group.to_owned(), plural, of.kind, namespace)
        })
        .collect();
    let mut missing = Vec::new();
    for (group, resource, _, namespace) in &needed {
        for verb in ["create", "patch"] {
            let attributes = ResourceAttributes {
                group: Some(group.clone()),
                resource: Some(resource.clone()),
                verb: Some(verb.to_owned()),
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            };
            match may(cluster, attributes).await {
                Ok(true) => {}
                Ok(false) => missing.push(match namespace {
                    Some(namespace) => format!("{verb} {resource} in {namespace}"),
                    None => format!("{verb} {resource}"),
                }),
                Err(error) => {
                    let remedy = "what may be done was not looked at";
                    return findings.warn(format!("{error:#}"), remedy);
                }
            }
        }
    }
    match missing.is_empty() {
        true => findings.ok(format!(
            "all {} kinds of objects may be created and changed",
            needed.len()
        )),
        false => findings.wrong(
            format!("not allowed: {}", missing.join(", ")),
            "let a cluster administrator install: weft install > weft.yaml",
        ),
    }
}

async fn may(cluster: &Cluster, attributes: ResourceAttributes) -> Result<bool> {
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let params = PostParams::default();
    let asked = reviews.create(&params, &review);
    let review = bounded("asking what may be done", asked).await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}

/// Which definitions of Gateway API are there. None is no failure: a mesh works without routes.
pub async fn gateway(all: &mut Vec<Finding>, cluster: &Cluster) {
    let mut findings = about(all, "Gateway API");
    let api = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    let found = match cluster::all(&api, ListParams::default(), "definitions").await {
        Ok(found) => found,
        Err(error) => {
            return findings.warn(
                format!("{error:#}"),
                "whether it is there was not looked at",
            );
        }
    };
    let of_gateway = found.iter().filter(|of| of.spec.group == GATEWAY);
    let mut kinds: Vec<&str> = Vec::new();
    let mut bundles = BTreeSet::new();
    for definition in of_gateway {
        kinds.push(&definition.spec.names.kind);
        let annotation = |name| {
            definition
                .annotations()
                .get(name)
                .cloned()
                .unwrap_or_default()
        };
        bundles.insert(format!("{} {}", annotation(BUNDLE), annotation(CHANNEL)));
    }
    let bundles: Vec<_> = bundles.into_iter().collect();
    match kinds.contains(&"HTTPRoute") {
        true => findings.ok(format!("{}: {}", bundles.join(" and "), kinds.join(", "))),
        false => findings.ok(
            "not installed, which is fine: only routes (HTTPRoute, GRPCRoute, …) need it, and are taken in as soon as it is",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, expected) in [
            ("v1.34.4", Some((1, 34))),
            ("v1.29.0-gke.1500", Some((1, 29))),
            ("6.18.44-fc-v657", Some((6, 18))),
            ("5.2", Some((5, 2))),
            ("5.10+", Some((5, 10))),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
        assert!(version("5.10") > Some(KERNEL) && version("4.19.0") < Some(KERNEL));
    }
}

//! The chart's objects as `helm template` makes them of its defaults (`cli/manifests.yaml`, written by
//! `make manifests`), and what an install changes in them: fields, never text. Pure.
//!
//! **Invariant:** the same choices as values of the chart give the same objects (a test runs helm).

use std::collections::BTreeMap;

use anyhow::{Context as _, Error, Result};
use serde_json::{Map, Value, json};
use weft_controller::admission::inject;

use crate::cluster::NAMESPACE;

const CHART: &str = include_str!("../../manifests.yaml");
/// As the label `app.kubernetes.io/managed-by` says it.
pub const MANAGER: &str = "weft";
pub const CONTROLLER: &str = "weft-controller";
pub const WEBHOOK: &str = "weft-injector";

const REGISTRY: &str = "ghcr.io/weft-mesh";
const DOMAIN: &str = "cluster.local";

/// What an install may change.
#[derive(Clone, Debug, clap::Args)]
pub struct Choices {
    /// Where the images are: REGISTRY/weft-controller and REGISTRY/weft-proxy
    #[arg(long, value_name = "REGISTRY", default_value = REGISTRY)]
    pub registry: String,
    /// Their tag
    #[arg(long, value_name = "TAG", default_value = env!("CARGO_PKG_VERSION"))]
    pub tag: String,
    /// When nodes pull them
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub pull_policy: String,
    /// Replicas of the controller
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub replicas: u16,
    /// Of all identities: spiffe://NAME/ns/NAMESPACE/sa/SERVICE-ACCOUNT
    #[arg(long, value_name = "NAME", default_value = DOMAIN)]
    pub trust_domain: String,
    /// Of the cluster's DNS names
    #[arg(long, value_name = "NAME", default_value = DOMAIN)]
    pub cluster_domain: String,
    /// Pods of labelled namespaces while no controller answers: Fail, they do not start; Ignore,
    /// they start without a sidecar
    #[arg(long, value_name = "POLICY", default_value = "Fail", value_parser = ["Fail", "Ignore"])]
    pub failure_policy: String,
    /// A default of injected sidecars, by its annotation's name (docs/injection.md); may be repeated
    #[arg(long = "sidecar", value_name = "NAME=VALUE", value_parser = pair)]
    pub sidecar: Vec<(String, String)>,
}

impl Default for Choices {
    /// The chart's.
    fn default() -> Self {
        Self {
            registry: REGISTRY.to_owned(),
            tag: env!("CARGO_PKG_VERSION").to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            replicas: 2,
            trust_domain: DOMAIN.to_owned(),
            cluster_domain: DOMAIN.to_owned(),
            failure_policy: "Fail".to_owned(),
            sidecar: Vec::new(),
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("is no NAME=VALUE")?;
    let options = json!({ name: value }).to_string();
    inject::Options::of_yaml(&options).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The namespace and all that is in the chart, in the order in which they are applied.
pub fn objects(choices: &Choices, namespace: &str) -> Result<Vec<Value>> {
    let mut objects: Vec<Value> =
        serde_saphyr::from_multiple(CHART).context("the manifests within weft")?;
    for object in &mut objects {
        strip(object);
        rename(object, namespace);
        match kind(object) {
            "Deployment" => deployment(object, choices)?,
            "MutatingWebhookConfiguration" => {
                let webhooks = object.get_mut("webhooks").and_then(Value::as_array_mut);
                for webhook in webhooks.into_iter().flatten() {
                    set(webhook, &["failurePolicy"], json!(choices.failure_policy));
                }
            }
            _ => {}
        }
    }
    if choices.replicas < 2 {
        objects.retain(|object| kind(object) != "PodDisruptionBudget");
    }
    let labels = json!({
        "app.kubernetes.io/name": "weft", "app.kubernetes.io/part-of": "weft",
        "app.kubernetes.io/managed-by": MANAGER,
    });
    let metadata = json!({"name": namespace, "labels": labels});
    objects.insert(
        0,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}),
    );
    Ok(objects)
}

pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub fn kind(object: &Value) -> &str {
    text(object, "/kind")
}

/// Kind and name, as errors and progress call it.
pub fn title(object: &Value) -> String {
    format!("{} {}", kind(object), text(object, "/metadata/name"))
}

pub fn yaml(objects: &[Value]) -> Result<String> {
    let texts: Result<Vec<String>, _> = objects.iter().map(serde_saphyr::to_string).collect();
    let ended = texts?
        .into_iter()
        .map(|text| text.trim_end().to_owned() + "\n");
    Ok(ended.collect::<Vec<_>>().join("---\n"))
}

/// What only matters to helm.
fn strip(object: &mut Value) {
    const MANAGED: &str = "app.kubernetes.io/managed-by";
    for pointer in ["/metadata/labels", "/spec/template/metadata/labels"] {
        if let Some(Value::Object(labels)) = object.pointer_mut(pointer) {
            labels.remove("helm.sh/chart");
            if let Some(manager) = labels.get_mut(MANAGED) {
                *manager = json!(MANAGER);
            }
        }
    }
    if let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") {
        annotations.remove("helm.sh/resource-policy");
        if annotations.is_empty()
            && let Some(Value::Object(metadata)) = object.get_mut("metadata")
        {
            metadata.remove("annotations");
        }
    }
}

/// Wherever the namespace is named.
fn rename(value: &mut Value, namespace: &str) {
    match value {
        Value::String(text) if text == NAMESPACE => namespace.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, namespace)),
        Value::Object(fields) => fields
            .values_mut()
            .for_each(|field| rename(field, namespace)),
        _ => {}
    }
}

fn set(object: &mut Value, path: &[&str], to: Value) {
    let mut place = object;
    for name in path {
        let Value::Object(fields) = place else {
            return;
        };
        place = fields.entry(*name).or_insert(Value::Null);
    }
    *place = to;
}

fn deployment(object: &mut Value, choices: &Choices) -> Result<()> {
    set(object, &["spec", "replicas"], json!(choices.replicas));
    let container = object.pointer_mut("/spec/template/spec/containers/0");
    let container = container.context("the manifests within weft have no controller")?;
    let image = |name: &str| format!("{}/{name}:{}", choices.registry, choices.tag);
    set(container, &["image"], json!(image("weft-controller")));
    set(container, &["imagePullPolicy"], json!(choices.pull_policy));
    let given = BTreeMap::from([
        ("--trust-domain", choices.trust_domain.clone()),
        ("--cluster-domain", choices.cluster_domain.clone()),
        ("--proxy-image", image("weft-proxy")),
        ("--proxy-image-pull-policy", choices.pull_policy.clone()),
    ]);
    let mut defaults = false;
    for argument in container
        .get_mut("args")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let Value::String(argument) = argument else {
            continue;
        };
        if defaults {
            *argument = sidecar(argument, &choices.sidecar)?;
        }
        defaults = argument == "--sidecar-defaults";
        if let Some((name, _)) = argument.split_once('=')
            && let Some(value) = given.get(name)
        {
            *argument = format!("{name}={value}");
        }
    }
    Ok(())
}

/// The chart's defaults with these in their place; an empty value takes one away.
fn sidecar(defaults: &str, given: &[(String, String)]) -> Result<String> {
    let mut all: Map<String, Value> = serde_json::from_str(defaults)?;
    for (name, value) in given {
        all.insert(name.clone(), json!(value));
    }
    let all = Value::Object(all).to_string();
    inject::Options::of_yaml(&all).map_err(Error::msg)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        choices: Choices,
    }

    fn parse(line: &str) -> Result<Choices, String> {
        let words = std::iter::once("install").chain(line.split_whitespace());
        let parsed = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(parsed.choices)
    }

    #[test]
    fn choices_change_what_they_name() {
        let line = "--registry localhost --tag test --replicas 1 --trust-domain shop.example \
                    --failure-policy Ignore --sidecar memory-limit=64Mi";
        let chosen = objects(&parse(line).unwrap(), "mesh").unwrap();
        let yaml = yaml(&chosen).unwrap();
        for gone in [
            "weft-system",
            "helm.sh",
            "Helm",
            "ghcr.io",
            "PodDisruptionBudget",
        ] {
            assert!(!yaml.contains(gone), "{gone}: {yaml}");
        }
        let deployment = chosen.iter().find(|of| kind(of) == "Deployment").unwrap();
        assert_eq!(deployment["metadata"]["namespace"], "mesh");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "localhost/weft-controller:test");
        let args = container["args"].to_string();
        for argument in [
            "--trust-domain=shop.example",
            "--proxy-image=localhost/weft-proxy:test",
            "\\\"memory-limit\\\":\\\"64Mi\\\"",
            "\\\"log-level\\\":\\\"info\\\"",
        ] {
            assert!(args.contains(argument), "{argument}: {args}");
        }
        assert_eq!(kind(&chosen[0]), "Namespace");
        // What is printed is read back as it is.
        let read: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap();
        assert_eq!(read, chosen);
    }

    #[test]
    fn bad_choices_are_refused() {
        for (line, expected) in [
            ("--replicas 0", "0 is not in 1..=20"),
            ("--pull-policy Sometimes", "IfNotPresent"),
            (
                "--sidecar memory-limt=64Mi",
                "expected one of `cpu-request`",
            ),
            ("--sidecar memory-limit", "is no NAME=VALUE"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}

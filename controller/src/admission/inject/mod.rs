//! Puts a sidecar into a pod: pure. The pod (or a workload's pod template) comes as
//! JSON and goes as JSON, so that fields which are younger than our types pass
//! unharmed; what is decided on is read of it as Kubernetes' own type.
//!
//! | | |
//! | --- | --- |
//! | `mod.rs` | whether, and the order of the steps |
//! | `refuse.rs` | what cannot work together with a sidecar |
//! | `options.rs`, `quantity.rs` | annotations |
//! | `probe.rs` | the kubelet's probes and hooks in strict mode |
//! | `sidecar.rs` | the containers and volumes that are added |
//!
//! **Invariant:** what is injected is never injected again (containers that came after it
//! get their part), and what is skipped or refused is not touched.
//! **Invariant:** whatever a pod had stays, but for probes that only the sidecar can
//! make and the `preStop` of containers that have none.

mod options;
mod probe;
mod quantity;
mod refuse;
mod sidecar;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use serde_json::{Map, Value, json};

pub use options::{Options, PREFIX};

/// The label of namespaces and pods.
pub const LABEL: &str = "weft.dev/inject";
pub const ENABLED: &str = "enabled";
pub const DISABLED: &str = "disabled";
/// Says, with the version, that a pod was injected.
pub const INJECTED: &str = "weft.dev/injected";
/// Says to the controllers that a pod has a sidecar.
const INBOUND: &str = "weft.dev/inbound";
/// On what the kubelet reports of pods that it starts by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Seconds between the order to stop and the kill, where a pod does not say.
const GRACE_DEFAULT: i64 = 30;
/// The barrier's bound where nothing else is said, and below which we warn.
const DRAIN_SECONDS_DEFAULT: i64 = 15;
const DRAIN_SECONDS_LOW: i64 = 5;

/// What is the same for every pod.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of both containers that are added.
    pub image: String,
    /// Kubernetes' default where none is said.
    pub pull_policy: Option<String>,
    /// `host:port`.
    pub controllers: Vec<String>,
    /// PEM.
    pub trust_bundle: String,
    pub trust_domain: String,
    /// Where a pod does not say otherwise.
    pub defaults: Options,
}

/// The path of the barrier, which nobody guesses.
#[derive(Clone, Copy, Debug)]
pub struct DrainToken(pub [u8; 16]);

impl fmt::Display for DrainToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for DrainToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("\"{text}\" is none; allowed are 32 hexadecimal digits");
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| is_hex);
        number
            .map(|number| Self(number.to_be_bytes()))
            .ok_or_else(problem)
    }
}

impl DrainToken {
    fn path(self) -> String {
        format!("/drain/{self}")
    }
}

/// Why a pod cannot be injected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Refusal {
    pub field: String,
    pub problem: String,
}

impl Refusal {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// Why a pod is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    Injected,
    Disabled,
    NotAsked,
    HostNetwork,
    Windows,
    Mirror,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Injected => "it is injected already",
            Self::Disabled => "its label weft.dev/inject says disabled",
            Self::NotAsked => {
                "neither its namespace nor the pod is labelled weft.dev/inject: enabled"
            }
            Self::HostNetwork => {
                "it is in its node's network, whose traffic is not the pod's to capture"
            }
            Self::Windows => "it is for Windows nodes",
            Self::Mirror => "the kubelet started it by itself, and asks nobody",
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Injected(Injected),
    Skipped(Skip),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    pub pod: Value,
    /// What its owner should know.
    pub warnings: Vec<String>,
}

/// A pod as it came.
struct Given {
    template: PodTemplateSpec,
    spec: PodSpec,
}

impl Given {
    fn annotations(&self) -> BTreeMap<String, String> {
        let metadata = self.template.metadata.as_ref();
        let annotations = metadata.and_then(|metadata| metadata.annotations.clone());
        annotations.unwrap_or_default()
    }
}

/// Injects, unless there is a reason not to. `pod` is a Pod or a template of pods.
pub fn inject(
    pod: &Value,
    is_namespace_enabled: bool,
    settings: &Settings,
    drain_token: DrainToken,
) -> Result<Outcome, Refusal> {
    let given = read(pod)?;
    match skip(&given, is_namespace_enabled)? {
        None => {}
        Some(Skip::Injected) => return Ok(complete(pod, &given)),
        Some(skip) => return Ok(Outcome::Skipped(skip)),
    }
    refuse::check(&given.template, &given.spec)?;
    let options = Options::of_annotations(&given.annotations())?.or(&settings.defaults);
    let mut warnings = warnings(&given.spec);
    let drain_max = drain_max(&given.spec, &options, &mut warnings)?;
    let mut after = pod.clone();
    let skipped = options.skipped_inbound();
    let probes = probe::redirect(&mut after, &given.spec, Vec::new(), skipped, &mut warnings);
    if probes.len() > probe::PROBES_MAX {
        let problem = format!(
            "have more than {} different probes and hooks",
            probe::PROBES_MAX
        );
        return Err(Refusal::new("spec.containers", problem));
    }
    let sidecar = sidecar::Sidecar {
        settings,
        options: &options,
        spec: &given.spec,
        probes: &probes,
        drain_path: drain_token.path(),
        drain_max,
    };
    let (capture, proxy) = sidecar.containers()?;
    prepend(&mut after, "initContainers", vec![capture, proxy]);
    prepend(&mut after, "volumes", sidecar::volumes());
    hold_back(&mut after, &drain_token.path());
    let marks = [(INJECTED, env!("CARGO_PKG_VERSION")), (INBOUND, "captured")];
    for (key, value) in marks {
        object(object(&mut after, "metadata"), "annotations")[key] = json!(value);
    }
    Ok(Outcome::Injected(Injected {
        pod: after,
        warnings,
    }))
}

/// Gives their part to containers that another webhook has added since.
fn complete(pod: &Value, given: &Given) -> Outcome {
    let mut after = pod.clone();
    let mut warnings = Vec::new();
    if let Some(told) = sidecar::Told::by(&given.spec) {
        // What was wrong with them then is refused already.
        let options = Options::of_annotations(&given.annotations()).unwrap_or_default();
        let skipped = options.skipped_inbound();
        let probes = told.probes.clone();
        let probes = probe::redirect(&mut after, &given.spec, probes, skipped, &mut warnings);
        if probes != told.probes {
            told.tell(&mut after, &probes);
        }
        hold_back(&mut after, &told.drain_path);
    }
    match after == *pod {
        true => Outcome::Skipped(Skip::Injected),
        false => Outcome::Injected(Injected {
            pod: after,
            warnings,
        }),
    }
}

fn read(pod: &Value) -> Result<Given, Refusal> {
    let mut template: PodTemplateSpec = serde_path_to_error::deserialize(pod)
        .map_err(|error| Refusal::new(error.path().to_string(), error.inner().to_string()))?;
    match template.spec.take() {
        Some(spec) if !spec.containers.is_empty() => Ok(Given { template, spec }),
        _ => Err(Refusal::new(
            "spec.containers",
            "is empty; a pod has containers",
        )),
    }
}

/// Whether to leave it alone. A label that says something else is refused rather than guessed at.
fn skip(given: &Given, is_namespace_enabled: bool) -> Result<Option<Skip>, Refusal> {
    let annotations = given.annotations();
    let metadata = given.template.metadata.as_ref();
    let labels = metadata.and_then(|metadata| metadata.labels.as_ref());
    let label = labels.and_then(|labels| labels.get(LABEL));
    let asked = match label.map(String::as_str) {
        None => is_namespace_enabled,
        Some(ENABLED) => true,
        Some(DISABLED) => return Ok(Some(Skip::Disabled)),
        Some(other) => {
            let problem =
                format!("\"{other}\" means nothing; allowed are \"{ENABLED}\" and \"{DISABLED}\"");
            return Err(Refusal::new(format!("metadata.labels[{LABEL}]"), problem));
        }
    };
    let init = given.spec.init_containers.iter().flatten();
    let has_sidecar = init.clone().any(|of| of.name == sidecar::NAME);
    let os = given.spec.os.as_ref().map(|os| os.name.as_str());
    let selected = given.spec.node_selector.as_ref();
    let selected = selected.and_then(|of| of.get("kubernetes.io/os"));
    Ok(match asked {
        false => Some(Skip::NotAsked),
        true if annotations.contains_key(MIRROR) => Some(Skip::Mirror),
        true if annotations.contains_key(INJECTED) && has_sidecar => Some(Skip::Injected),
        true if given.spec.host_network == Some(true) => Some(Skip::HostNetwork),
        true if os.or(selected.map(String::as_str)) == Some("windows") => Some(Skip::Windows),
        true => None,
    })
}

fn warnings(spec: &PodSpec) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(policy @ ("Default" | "None")) = spec.dns_policy.as_deref() {
        warnings.push(format!(
            "spec.dnsPolicy: with {policy} the sidecar must still find the controller's name in the cluster's DNS, or the pod never starts"
        ));
    }
    warnings
}

/// Seconds that the barrier may take.
fn drain_max(
    spec: &PodSpec,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<i64, Refusal> {
    let grace = spec
        .termination_grace_period_seconds
        .unwrap_or(GRACE_DEFAULT)
        .max(0);
    let within = (grace / 2).min(DRAIN_SECONDS_DEFAULT);
    if within < DRAIN_SECONDS_LOW && options.drain_max.is_none() {
        warnings.push(format!(
            "spec.terminationGracePeriodSeconds: {grace} leaves {within} s to take the pod out of rotation before it stops; requests may be lost"
        ));
    }
    match options.drain_max {
        Some(max) if i64::from(max.0) >= grace => Err(Refusal::new(
            options::annotation(&format!("{PREFIX}drain-max")),
            format!(
                "{} s end after the pod is killed; allowed is less than its terminationGracePeriodSeconds, which is {grace}",
                max.0
            ),
        )),
        Some(max) => Ok(max.0.into()),
        None => Ok(within),
    }
}

/// A map within a map, made where it is missing.
fn object<'a>(within: &'a mut Value, name: &str) -> &'a mut Value {
    let entry = &mut within[name];
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    entry
}

/// Puts items before those of a list of the spec.
fn prepend(pod: &mut Value, list: &str, mut items: Vec<Value>) {
    let list = &mut pod["spec"][list];
    if let Some(there) = list.as_array_mut() {
        items.append(there);
    }
    *list = Value::Array(items);
}

/// Has whatever stops a container ask the barrier first, unless it has a hook of its own.
fn hold_back(pod: &mut Value, path: &str) {
    let barrier = json!({"httpGet": {"port": sidecar::ADMIN_PORT, "path": path, "scheme": "HTTP"}});
    for (list, _) in probe::LISTS {
        let containers = pod["spec"][list].as_array_mut();
        for container in containers.into_iter().flatten() {
            let runs_on = list == "containers" || container["restartPolicy"] == json!("Always");
            if runs_on && container["name"] != json!(sidecar::NAME) {
                let lifecycle = object(container, "lifecycle");
                if lifecycle["preStop"].is_null() {
                    lifecycle["preStop"] = barrier.clone();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

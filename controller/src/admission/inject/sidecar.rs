//! The two containers and the volumes that a pod gets.
//!
//! The token's file can be read by the sidecar's user in every pod: the kubelet narrows
//! it to 0600 only where all containers are of one user, which with these two they never
//! are, and with `fsGroup` gives it (0640) to a group that every container has
//! (`pkg/volume/projected`, `FsUserFrom`).

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use super::options::{Options, annotation};
use super::probe::Probe;
use super::quantity::Quantity;
use super::{PREFIX, Refusal, Settings};

pub const CAPTURE: &str = "weft-capture";
pub const NAME: &str = "weft-proxy";
pub const UID: i64 = 1337;
pub const ADMIN_PORT: i32 = 14020;
/// Captured outbound, captured inbound, mTLS without capture, admin.
pub const PORTS: [i32; 4] = [14001, INBOUND_PORT, 14008, ADMIN_PORT];
pub const VOLUMES: [&str; 2] = [TOKEN, STATE];
const INBOUND_PORT: i32 = 14006;
const TOKEN: &str = "weft-token";
const STATE: &str = "weft-state";
/// A certificate, its key and the roots, and room for the next ones.
const STATE_SIZE_MAX: &str = "4Mi";
const TOKEN_DIRECTORY: &str = "/var/run/secrets/weft.dev";
const STATE_DIRECTORY: &str = "/var/run/weft";
const DRAIN_PATH: &str = "WEFT_DRAIN_PATH";
const PROBES: &str = "WEFT_PROBES";
/// The API server gives every container its token, but where something is mounted there.
/// Neither of ours asks it for anything.
const API_TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Whom the token is for.
const AUDIENCE: &str = "weft.dev";
const TOKEN_SECONDS: u32 = 3600;
/// How often and how long the kubelet asks whether a sidecar is ready before the pod fails.
const STARTUP_PERIOD_SECONDS: u32 = 1;
const STARTUP_FAILURES_MAX: u32 = 600;
const READINESS_PERIOD_SECONDS: u32 = 2;
const WORKERS_DEFAULT: u64 = 2;
const CPU_REQUEST: &str = "10m";
const MEMORY_REQUEST: &str = "32Mi";
const MEMORY_LIMIT: &str = "256Mi";

pub struct Sidecar<'a> {
    pub settings: &'a Settings,
    pub options: &'a Options,
    /// The pod before.
    pub spec: &'a PodSpec,
    pub probes: &'a [Probe],
    pub drain_path: String,
    /// Seconds.
    pub drain_max: i64,
}

pub fn volumes() -> Vec<Value> {
    let token = json!({"path": "token", "audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS});
    vec![
        json!({"name": TOKEN, "projected": {"sources": [{"serviceAccountToken": token}]}}),
        json!({"name": STATE, "emptyDir": {"medium": "Memory", "sizeLimit": STATE_SIZE_MAX}}),
    ]
}

impl Sidecar<'_> {
    /// The step that captures, and the sidecar.
    pub fn containers(&self) -> Result<(Value, Value), Refusal> {
        let resources = self.resources()?;
        let no_api_token =
            json!({"name": STATE, "mountPath": API_TOKEN_DIRECTORY, "readOnly": true});
        let mut capture = json!({
            "name": CAPTURE,
            "args": self.capture_args(),
            "volumeMounts": [no_api_token],
            "securityContext": self.security_context(json!({
                "runAsUser": 0,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            })),
        });
        let ready = json!({"port": ADMIN_PORT, "path": "/ready"});
        let mut proxy = json!({
            "name": NAME,
            "args": ["sidecar"],
            "restartPolicy": "Always",
            "env": self.env(),
            "ports": [
                {"name": "weft-inbound", "containerPort": INBOUND_PORT},
                {"name": "weft-admin", "containerPort": ADMIN_PORT},
            ],
            "startupProbe": {
                "httpGet": ready,
                "periodSeconds": STARTUP_PERIOD_SECONDS,
                "failureThreshold": STARTUP_FAILURES_MAX,
            },
            "readinessProbe": {"httpGet": ready, "periodSeconds": READINESS_PERIOD_SECONDS},
            "lifecycle": {"preStop": {"httpGet": {"port": ADMIN_PORT, "path": self.drain_path}}},
            "securityContext": self.security_context(json!({
                "runAsUser": UID,
                "runAsGroup": UID,
                "runAsNonRoot": true,
                "capabilities": {"drop": ["ALL"]},
            })),
            "volumeMounts": [
                {"name": TOKEN, "mountPath": TOKEN_DIRECTORY, "readOnly": true},
                {"name": STATE, "mountPath": STATE_DIRECTORY},
                no_api_token,
            ],
        });
        for container in [&mut capture, &mut proxy] {
            container["image"] = json!(self.settings.image);
            if let Some(policy) = &self.settings.pull_policy {
                container["imagePullPolicy"] = json!(policy);
            }
            if resources != json!({}) {
                container["resources"] = resources.clone();
            }
        }
        Ok((capture, proxy))
    }

    fn capture_args(&self) -> Vec<String> {
        let mut args = vec!["capture".to_owned(), "--uid".to_owned(), UID.to_string()];
        let ports = |ports: &[u16]| {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            ports.join(",")
        };
        let options = self.options;
        let lists = [
            (
                "--skip-inbound-ports",
                options.skip_inbound_ports.as_ref().map(|of| ports(&of.0)),
            ),
            (
                "--skip-outbound-ports",
                options.skip_outbound_ports.as_ref().map(|of| ports(&of.0)),
            ),
            (
                "--skip-outbound-cidrs",
                options
                    .skip_outbound_cidrs
                    .as_ref()
                    .map(|of| of.0.join(",")),
            ),
        ];
        for (flag, list) in lists {
            if let Some(list) = list.filter(|list| !list.is_empty()) {
                args.extend([flag.to_owned(), list]);
            }
        }
        args
    }

    fn env(&self) -> Vec<Value> {
        let level = self.options.log_level.as_ref();
        let values = [
            ("WEFT_CONTROLLERS", self.settings.controllers.join(",")),
            ("WEFT_TRUST_BUNDLE", self.settings.trust_bundle.clone()),
            ("WEFT_TRUST_DOMAIN", self.settings.trust_domain.clone()),
            ("WEFT_TOKEN", format!("{TOKEN_DIRECTORY}/token")),
            ("WEFT_STATE", STATE_DIRECTORY.to_owned()),
            (DRAIN_PATH, self.drain_path.clone()),
            ("WEFT_DRAIN_MAX", self.drain_max.to_string()),
            (PROBES, listed(self.probes)),
            ("WEFT_WORKERS", self.workers().to_string()),
            (
                "WEFT_LOG_LEVEL",
                level.map_or_else(|| "info".to_owned(), |level| level.0.clone()),
            ),
        ];
        let fields = [
            ("WEFT_NAMESPACE", "metadata.namespace"),
            ("WEFT_SERVICE_ACCOUNT", "spec.serviceAccountName"),
            ("WEFT_WORKLOAD", "metadata.uid"),
            ("WEFT_ADDRESSES", "status.podIPs"),
        ];
        let values = values.iter().map(|(name, value)| literal(name, value));
        let fields = fields.into_iter().map(
            |(name, path)| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}),
        );
        values.chain(fields).collect()
    }

    fn workers(&self) -> u64 {
        let limit = self.options.cpu_limit.as_ref();
        let most = limit
            .map_or(WORKERS_DEFAULT, |limit| limit.0.ceil())
            .min(WORKERS_DEFAULT);
        self.options.workers.map_or(most, |own| own.0.into())
    }

    fn security_context(&self, own: Value) -> Value {
        let mut context = json!({
            "allowPrivilegeEscalation": false,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        let of_pod = self.spec.security_context.as_ref();
        let profile = of_pod.and_then(|of| of.app_armor_profile.as_ref());
        // A profile for the application says nothing of ours. Only here: where a node has no
        // AppArmor, naming any profile stops the pod.
        if profile.is_some_and(|profile| profile.type_ == "Localhost") {
            context["appArmorProfile"] = json!({"type": "RuntimeDefault"});
        }
        merge(&mut context, own);
        context
    }

    /// Requests and limits. Where the pod as a whole has some, its containers share those,
    /// and the sum of what they ask for must not exceed them: then only what is said counts.
    fn resources(&self) -> Result<Value, Refusal> {
        let default = |text: &str| match self.spec.resources {
            Some(_) => None,
            None => Quantity::parse(text),
        };
        let options = self.options;
        let cpu = Amounts {
            request: options.cpu_request.as_ref().map(|of| &of.0),
            limit: options.cpu_limit.as_ref().map(|of| &of.0),
        };
        let memory = Amounts {
            request: options.memory_request.as_ref().map(|of| &of.0),
            limit: options.memory_limit.as_ref().map(|of| &of.0),
        };
        let all = [
            ("cpu", cpu.or(default(CPU_REQUEST), None)),
            (
                "memory",
                memory.or(default(MEMORY_REQUEST), default(MEMORY_LIMIT)),
            ),
        ];
        let mut resources = json!({});
        for (name, amounts) in all {
            let (request, limit) = amounts.map_err(|problem| {
                Refusal::new(annotation(&format!("{PREFIX}{name}-request")), problem)
            })?;
            for (kind, amount) in [("requests", request), ("limits", limit)] {
                if let Some(amount) = amount {
                    resources[kind][name] = json!(amount.text);
                }
            }
        }
        Ok(resources)
    }
}

/// What the sidecar of a pod was told when it was injected.
pub struct Told {
    pub drain_path: String,
    pub probes: Vec<Probe>,
    /// Of the sidecar among the init containers.
    index: usize,
}

impl Told {
    pub fn by(spec: &PodSpec) -> Option<Self> {
        let mut init = spec.init_containers.iter().flatten().enumerate();
        let (index, sidecar) = init.find(|(_, container)| container.name == NAME)?;
        let value = |name: &str| {
            let mut variables = sidecar.env.iter().flatten();
            let variable = variables.find(|variable| variable.name == name)?;
            Some(variable.value.as_deref()?.replace("$$", "$"))
        };
        Some(Self {
            drain_path: value(DRAIN_PATH)?,
            probes: serde_json::from_str(&value(PROBES)?).ok()?,
            index,
        })
    }

    /// Tells it of these probes.
    pub fn tell(&self, pod: &mut Value, probes: &[Probe]) {
        let env = pod["spec"]["initContainers"][self.index]["env"].as_array_mut();
        let mut variables = env.into_iter().flatten();
        if let Some(variable) = variables.find(|variable| variable["name"] == json!(PROBES)) {
            *variable = literal(PROBES, &listed(probes));
        }
    }
}

fn listed(probes: &[Probe]) -> String {
    serde_json::to_string(probes).unwrap_or_default()
}

/// A variable with this value: `$(NAME)` in one would mean a variable to the kubelet, and
/// `$$` is a dollar.
fn literal(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value.replace('$', "$$")})
}

/// What is said of a resource.
struct Amounts<'a> {
    request: Option<&'a Quantity>,
    limit: Option<&'a Quantity>,
}

impl Amounts<'_> {
    /// Request and limit. A default gives way to what is said of the other.
    fn or(
        self,
        request: Option<Quantity>,
        limit: Option<Quantity>,
    ) -> Result<(Option<Quantity>, Option<Quantity>), String> {
        if let (Some(request), Some(limit)) = (self.request, self.limit)
            && request > limit
        {
            return Err(format!(
                "{} is more than the limit; allowed is up to {}",
                request.text, limit.text
            ));
        }
        let default_request = match (request, self.limit) {
            (Some(default), Some(limit)) => Some(default.min(limit.clone())),
            (default, _) => default,
        };
        let default_limit = match (limit, self.request) {
            (Some(default), Some(request)) => Some(default.max(request.clone())),
            (default, _) => default,
        };
        Ok((
            self.request.cloned().or(default_request),
            self.limit.cloned().or(default_limit),
        ))
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

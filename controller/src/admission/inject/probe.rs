//! The kubelet's probes and hooks, which come without mTLS. HTTP and gRPC ones stay as
//! they are, and the sidecar lets exactly these through in strict mode. A TCP one would
//! tell of the sidecar, which accepts everything, and an HTTPS one cannot be told from
//! any other TLS: both become a question to the sidecar, which makes the probe itself.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, PodSpec,
    Probe as KubernetesProbe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::sidecar::ADMIN_PORT;

/// Lists of containers, and whether only those that run on have probes and hooks.
pub const LISTS: [(&str, bool); 2] = [("initContainers", true), ("containers", false)];

/// What a sidecar takes; a pod with more of them is none.
pub const PROBES_MAX: usize = 100;

/// What the sidecar lets through, or makes itself; its index is its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Probe {
    Http { port: u16, path: String },
    Https { port: u16, path: String },
    Grpc { port: u16, service: String },
    Tcp { port: u16 },
}

/// What a probe or hook does.
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    grpc: Option<&'a GRPCAction>,
    http: Option<&'a HTTPGetAction>,
    tcp: Option<&'a TCPSocketAction>,
}

impl<'a> Handler<'a> {
    fn of_probe(probe: &'a KubernetesProbe) -> Self {
        Self {
            exec: probe.exec.as_ref(),
            grpc: probe.grpc.as_ref(),
            http: probe.http_get.as_ref(),
            tcp: probe.tcp_socket.as_ref(),
        }
    }

    /// The kubelet makes no TCP hooks, whatever the type says.
    fn of_hook(hook: &'a LifecycleHandler) -> Self {
        Self {
            exec: hook.exec.as_ref(),
            grpc: None,
            http: hook.http_get.as_ref(),
            tcp: None,
        }
    }
}

/// Adds the probes of all containers to the list, and turns those that the sidecar must
/// make to it.
pub fn redirect(
    pod: &mut Value,
    spec: &PodSpec,
    probes: Vec<Probe>,
    skipped: &[u16],
    warnings: &mut Vec<String>,
) -> Vec<Probe> {
    let mut found = Found {
        probes,
        skipped,
        warnings,
    };
    let init = spec.init_containers.iter().flatten();
    for (index, container) in init.enumerate() {
        if container.restart_policy.as_deref() == Some("Always") {
            let at = format!("initContainers[{index}]");
            let value = &mut pod["spec"]["initContainers"][index];
            found.container(value, container, &at);
        }
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let value = &mut pod["spec"]["containers"][index];
        found.container(value, container, &format!("containers[{index}]"));
    }
    found.probes
}

struct Found<'a> {
    probes: Vec<Probe>,
    /// Ports at which there is no sidecar.
    skipped: &'a [u16],
    warnings: &'a mut Vec<String>,
}

impl Found<'_> {
    fn container(&mut self, value: &mut Value, container: &Container, at: &str) {
        let ports = container.ports.as_deref().unwrap_or_default();
        let probes = [
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
            ("startupProbe", &container.startup_probe),
        ];
        for (name, probe) in probes {
            if let Some(probe) = probe {
                let at = format!("spec.{at}.{name}");
                self.handler(&mut value[name], &Handler::of_probe(probe), ports, &at);
            }
        }
        let Some(lifecycle) = &container.lifecycle else {
            return;
        };
        let hooks = [
            ("postStart", &lifecycle.post_start),
            ("preStop", &lifecycle.pre_stop),
        ];
        for (name, hook) in hooks {
            if let Some(hook) = hook {
                let at = format!("spec.{at}.lifecycle.{name}");
                let value = &mut value["lifecycle"][name];
                self.handler(value, &Handler::of_hook(hook), ports, &at);
            }
        }
    }

    fn handler(
        &mut self,
        value: &mut Value,
        handler: &Handler<'_>,
        ports: &[ContainerPort],
        at: &str,
    ) {
        let (probe, is_ours) = match handler {
            Handler { exec: Some(_), .. } => return,
            Handler {
                grpc: Some(grpc), ..
            } => {
                let Some(port) = self.number(grpc.port, at) else {
                    return;
                };
                let service = grpc.service.clone().unwrap_or_default();
                (Probe::Grpc { port, service }, false)
            }
            Handler {
                http: Some(http), ..
            } => {
                let Some(port) = self.port(&http.port, http.host.as_deref(), ports, at) else {
                    return;
                };
                let path = requested(http.path.as_deref().unwrap_or_default());
                match http.scheme.as_deref() {
                    Some("HTTPS") => (Probe::Https { port, path }, true),
                    _ => (Probe::Http { port, path }, false),
                }
            }
            Handler { tcp: Some(tcp), .. } => {
                let Some(port) = self.port(&tcp.port, tcp.host.as_deref(), ports, at) else {
                    return;
                };
                (Probe::Tcp { port }, true)
            }
            _ => return,
        };
        let index = self.index(probe);
        if is_ours {
            ask(value, index);
        }
    }

    /// The port that is probed, if it is this pod's and the sidecar is in front of it.
    fn port(
        &mut self,
        port: &IntOrString,
        host: Option<&str>,
        ports: &[ContainerPort],
        at: &str,
    ) -> Option<u16> {
        // Something else is probed, from the node.
        if host.is_some_and(|host| !host.is_empty()) {
            return None;
        }
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let named = ports.iter().find(|of| of.name.as_deref() == Some(name));
                let number = named.map(|of| of.container_port);
                let Some(number) = number.or_else(|| name.parse().ok()) else {
                    self.warnings.push(format!(
                        "{at}: \"{name}\" is no port of the container; this probe cannot succeed"
                    ));
                    return None;
                };
                number
            }
        };
        self.number(number, at)
    }

    fn number(&mut self, number: i32, at: &str) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        if port.is_none() {
            self.warnings.push(format!("{at}: {number} is no port"));
        }
        // What asks the sidecar already stays so.
        let is_admin = |port: &u16| i32::from(*port) == ADMIN_PORT;
        port.filter(|port| !is_admin(port) && !self.skipped.contains(port))
    }

    /// Where it stands in the list; several may be alike.
    fn index(&mut self, probe: Probe) -> usize {
        let there = self.probes.iter().position(|of| *of == probe);
        there.unwrap_or_else(|| {
            self.probes.push(probe);
            self.probes.len() - 1
        })
    }
}

/// The path as the kubelet's request has it: completed, escaped, without a fragment.
fn requested(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut requested = String::from("/");
    for byte in path.strip_prefix('/').unwrap_or(path).bytes() {
        match byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            true => requested.push(byte.into()),
            false => requested.push_str(&format!("%{byte:02X}")),
        }
    }
    requested
}

/// Makes the handler a question to the sidecar; headers go with it.
fn ask(value: &mut Value, index: usize) {
    let Some(handler) = value.as_object_mut() else {
        return;
    };
    handler.remove("tcpSocket");
    let path = format!("/probe/{index}");
    let mut ask = json!({"port": ADMIN_PORT, "path": path, "scheme": "HTTP"});
    let before = handler.remove("httpGet");
    if let Some(headers) = before.and_then(|mut of| of.get_mut("httpHeaders").map(Value::take)) {
        ask["httpHeaders"] = headers;
    }
    handler.insert("httpGet".to_owned(), ask);
}

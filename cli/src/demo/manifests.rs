//! What the demo writes into the controller's directory, and the gateway's configuration. Replicas write
//! and remove their own manifests (`weft run --manifests`); the rest is here.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::addresses::{ADMIN_PORT, Subnet};
use super::programs::{CANARY, Service};

pub const NAMESPACE: &str = "shop";
/// The workload at the door; it has a sidecar and no application.
pub const GATEWAY: &str = "gateway";

/// Services, and who may do what.
pub fn store() -> String {
    let names = Service::ALL.iter().map(|service| service.name());
    let services = names.chain([CANARY]).map(|name| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
             spec: {{ports: [{{name: http, port: 80}}]}}\n---\n"
        )
    });
    let frontend = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/frontend");
    services.collect::<String>()
        + &format!(
            r#"apiVersion: weft.dev/v1alpha1
kind: WorkloadPolicy
metadata: {{name: only-mtls, namespace: {NAMESPACE}}}
spec: {{mtls: strict}}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: only-the-frontend-pays, namespace: {NAMESPACE}}}
spec:
  targetRefs: [{{kind: Service, name: payment}}]
  action: allow
  rules:
    - from: [{{identities: ["{frontend}"]}}]
      to: [{{methods: [POST], paths: [/pay]}}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: only-the-frontend-reads, namespace: {NAMESPACE}}}
spec:
  targetRefs:
    - {{kind: Service, name: authentication}}
    - {{kind: Service, name: catalogue}}
    - {{kind: Service, name: {CANARY}}}
  action: allow
  rules:
    - from: [{{identities: ["{frontend}"]}}]
      to: [{{methods: [GET]}}]
"#
        )
}

/// Sends `share` percent of the catalogue's requests to its next version.
pub fn canary(share: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: canary, namespace: {NAMESPACE}}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: catalogue, port: 80}}]\n  rules:\n  - backendRefs:\n    \
         - {{name: catalogue, port: 80, weight: {}}}\n    - {{name: {CANARY}, port: 80, weight: {share}}}\n",
        100_u32.saturating_sub(share)
    )
}

/// The name of a file of the controller's directory.
pub const STORE: &str = "store.yaml";
pub const ROUTE: &str = "canary.yaml";

/// Replaces a file in one step, so that nobody reads half of it.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().context("a file has a name")?;
    let new = path.with_file_name(format!(".{}", name.display()));
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("replacing {}", path.display()))
}

/// What the gateway's proxy is configured with: the store's door is an ordinary listener, which takes
/// HTTP/1.1 and HTTP/2, in front of the gateway's own way into the mesh.
#[derive(Debug)]
pub struct Gateway<'a> {
    pub subnet: &'a Subnet,
    pub controller: SocketAddr,
    pub trust: PathBuf,
    pub token: PathBuf,
    pub state: PathBuf,
}

impl Gateway<'_> {
    /// The gateway's way to a service of the mesh.
    pub fn way(&self, service: Service) -> SocketAddr {
        way(self.subnet, service)
    }

    pub fn configuration(&self) -> Value {
        let address = self.subnet.gateway();
        let outbound = |service: Service| {
            json!({
                "name": service.name(),
                "address": self.way(service),
                "role": "outbound",
                "destination": service.destination(),
            })
        };
        json!({
            "settings": {
                "admin": SocketAddr::from((address, ADMIN_PORT)),
                "drain": {"timeout": "10s", "quiet": "500ms"},
                "mesh": {
                    "controllers": [self.controller],
                    "trustBundle": self.trust,
                    "token": self.token,
                    "state": self.state,
                    "namespace": NAMESPACE,
                    "serviceAccount": GATEWAY,
                    "workload": GATEWAY,
                    "addresses": [address],
                },
            },
            "listeners": [
                {"name": "store", "address": self.subnet.store(), "protocol": "http"},
                outbound(Service::Frontend),
                // For the one who tries what it may not.
                outbound(Service::Payment),
            ],
            "services": [{
                "name": "store",
                "protocol": "http1",
                "endpoints": [{"address": self.way(Service::Frontend)}],
            }],
            "routes": [{
                "name": "store",
                "parentRefs": [{"kind": "Listener", "name": "store"}],
                "rules": [{"backendRefs": [{"name": "store"}]}],
            }],
        })
    }
}

pub fn way(subnet: &Subnet, service: Service) -> SocketAddr {
    (subnet.gateway(), service.way_port()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::file;

    #[test]
    fn the_gateway_s_configuration_is_valid() {
        let subnet = Subnet::claim().unwrap();
        let gateway = Gateway {
            subnet: &subnet,
            controller: (subnet.controller(), 14_010).into(),
            trust: PathBuf::from("/tmp/a \"quoted\" folder/trust.pem"),
            token: PathBuf::from("/tmp/token"),
            state: PathBuf::from("/tmp/state"),
        };
        let text = gateway.configuration().to_string();
        if let Err(errors) = file::load("gateway.json", &text) {
            panic!("{errors}\n{text}");
        }
    }
}

//! A mesh as it is run without Kubernetes: a folder of manifests, a controller over
//! it, workloads with join tokens and sidecars' configurations. Writes files and gives
//! commands; whoever asks starts them where they belong.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_config::spiffe::SpiffeId;
use weft_controller::ca::{Ca, token};

pub const NAMESPACE: &str = "bench";
pub const TRUST_DOMAIN: &str = "cluster.local";
const CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3600);
const TOKEN_LIFE: Duration = Duration::from_secs(600);

/// The folder of a mesh.
#[derive(Debug)]
pub struct Mesh {
    folder: PathBuf,
    /// Where sidecars connect.
    listen: SocketAddr,
    ca: Ca,
}

/// One workload: its account is its pod's name and UID too.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    pub name: &'a str,
    /// Where its application listens; the host is its pod's address.
    pub application: SocketAddr,
    /// Where its sidecar takes mutual TLS.
    pub inbound: SocketAddr,
}

impl Mesh {
    /// An empty one with a new authority, in place of what was there.
    pub fn create(folder: &Path, listen: SocketAddr) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(folder.join("manifests"))?;
        // As the controller makes it; here already, so that sidecars may start at the same time.
        let ca = Ca::open(&folder.join("ca"), TRUST_DOMAIN, CERTIFICATE_LIFE)?;
        let mesh = Self {
            folder: folder.to_owned(),
            listen,
            ca,
        };
        mesh.apply(
            "strict",
            &json!({
                "apiVersion": "weft.dev/v1alpha1",
                "kind": "WorkloadPolicy",
                "metadata": {"name": "strict", "namespace": NAMESPACE},
                "spec": {"mtls": "strict"},
            }),
        )?;
        Ok(mesh)
    }

    pub fn controller(&self, binary: &Path, admin: SocketAddr) -> Command {
        let mut command = Command::new(binary);
        command
            .arg("--manifests")
            .arg(self.folder.join("manifests"));
        command.arg("--ca-dir").arg(self.folder.join("ca"));
        command.arg("--listen").arg(self.listen.to_string());
        command.arg("--admin").arg(admin.to_string());
        command
    }

    /// A certificate for a key of one's own; the chain, leaf first.
    pub fn sign(
        &self,
        key: &rcgen::KeyPair,
        identity: &SpiffeId,
        workload: &str,
    ) -> Result<Vec<Vec<u8>>> {
        Ok(self.ca.sign_key(key, identity, workload)?)
    }

    /// Writes a manifest, whole.
    pub fn apply(&self, name: &str, manifest: &Value) -> Result<()> {
        let folder = self.folder.join("manifests");
        let fresh = folder.join(format!(".{name}"));
        fs::write(&fresh, serde_json::to_string(manifest)?)?;
        fs::rename(fresh, folder.join(format!("{name}.json")))?;
        Ok(())
    }

    /// `SERVICE.bench:80`, served by these; `protocol` as in appProtocol.
    pub fn service(&self, name: &str, protocol: &str, workloads: &[Workload<'_>]) -> Result<()> {
        self.apply(
            &format!("service-{name}"),
            &json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"ports": [{"name": "main", "port": 80, "appProtocol": protocol}]},
            }),
        )?;
        self.endpoints(name, workloads)
    }

    /// By whom a service is served from now on.
    pub fn endpoints(&self, name: &str, workloads: &[Workload<'_>]) -> Result<()> {
        let endpoints: Vec<Value> = workloads
            .iter()
            .map(|workload| {
                json!({
                    "addresses": [workload.application.ip()],
                    "targetRef": {"kind": "Pod", "name": workload.name, "uid": workload.name},
                })
            })
            .collect();
        let port = workloads
            .first()
            .map_or(80, |workload| workload.application.port());
        self.apply(
            &format!("slice-{name}"),
            &json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": "IPv4",
                "ports": [{"name": "main", "port": port}],
                "endpoints": endpoints,
            }),
        )
    }

    /// The pod of a workload that has a sidecar.
    pub fn pod(&self, workload: Workload<'_>) -> Result<()> {
        let address = workload.application.ip();
        self.apply(
            &format!("pod-{}", workload.name),
            &json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": workload.name,
                    "namespace": NAMESPACE,
                    "uid": workload.name,
                    "annotations": {"weft.dev/inbound": workload.inbound.port().to_string()},
                },
                "spec": {"serviceAccountName": workload.name, "containers": []},
                "status": {"podIP": address, "podIPs": [{"ip": address}]},
            }),
        )
    }

    /// The command of a workload's sidecar, which listens for each of `dialled`
    /// (where, and the service).
    pub fn sidecar(
        &self,
        binary: &Path,
        workload: Workload<'_>,
        admin: SocketAddr,
        dialled: &[(SocketAddr, &str)],
    ) -> Result<Command> {
        let name = workload.name;
        let file = |extension: &str| self.folder.join(format!("{name}.{extension}"));
        let token = token::mint(
            &self.folder.join("ca"),
            (NAMESPACE, name, name),
            TOKEN_LIFE,
            1,
        )?;
        fs::write(file("token"), token)?;
        let mut listeners = vec![json!({
            "name": "inbound", "address": workload.inbound, "role": "inbound",
        })];
        listeners.extend(dialled.iter().map(|(address, service)| {
            json!({
                "name": service,
                "address": address,
                "role": "outbound",
                "destination": format!("{service}.{NAMESPACE}:80"),
            })
        }));
        let config = json!({
            "settings": {
                "workers": 1,
                "admin": admin,
                "mesh": {
                    "controllers": [self.listen],
                    "trustBundle": self.folder.join("ca/trust.pem"),
                    "token": file("token"),
                    "namespace": NAMESPACE,
                    "serviceAccount": name,
                    "workload": name,
                    "addresses": [workload.application.ip()],
                },
            },
            "listeners": listeners,
        });
        fs::write(file("json"), serde_json::to_string_pretty(&config)?)?;
        let mut command = Command::new(binary);
        command.arg("--config").arg(file("json"));
        Ok(command)
    }
}

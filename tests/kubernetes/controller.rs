//! A controller that watches an API server, as a process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Once, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use weft_tests::cluster::Cluster;
use weft_tests::curl::curl;
use weft_tests::process::Program;
use weft_tests::proxy::built;
use weft_tests::{PATIENCE, eventually_within};

static INSTALLED: Once = Once::new();

/// Installs the definitions of Gateway API and of Weft, once.
pub fn install(cluster: &Cluster) {
    INSTALLED.call_once(|| {
        cluster.install_gateway_api("experimental");
        let folder = weft_tests::root().join("charts/weft/definitions");
        let folder = folder.to_str().expect("a path of letters");
        cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", folder]);
    });
}

/// Writes one for an API server that is behind this address and asks for nothing.
pub fn kubeconfig(folder: &Path, server: SocketAddr) -> PathBuf {
    let path = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{server}'}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    std::fs::write(&path, text).expect("written");
    path
}

pub struct Controller {
    pub program: Program,
    pub admin: SocketAddr,
    folder: TempDir,
}

impl Controller {
    /// Starts one that keeps its Lease in `namespace`, under this name; it need not be ready.
    pub fn start(kubeconfig: &Path, namespace: &str, name: &str) -> Self {
        Self::start_as(kubeconfig, namespace, name, "weft")
    }

    /// The same of a mesh of this name.
    pub fn start_as(kubeconfig: &Path, namespace: &str, name: &str, mesh: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let authority = folder.path().join("ca");
        Self::begin(kubeconfig, (namespace, name, mesh), folder, &authority)
    }

    /// The same with the authority in a folder that others share.
    pub fn start_sharing(kubeconfig: &Path, namespace: &str, name: &str, authority: &Path) -> Self {
        let folder = TempDir::new().expect("a folder");
        Self::begin(kubeconfig, (namespace, name, "weft"), folder, authority)
    }

    fn begin(
        kubeconfig: &Path,
        (namespace, name, mesh): (&str, &str, &str),
        folder: TempDir,
        authority: &Path,
    ) -> Self {
        static BUILT: OnceLock<std::path::PathBuf> = OnceLock::new();
        let binary = BUILT.get_or_init(|| built("weft-controller", "weft-controller"));
        let admin = weft_tests::port::free_address();
        let mut command = Command::new(binary);
        command
            .env("KUBECONFIG", kubeconfig)
            .args(["--kubernetes", "--namespace", namespace, "--identity", name])
            .args(["--mesh-name", mesh])
            .args(["--listen", "127.0.0.1:0", "--admin", &admin.to_string()])
            .arg("--ca-dir")
            .arg(authority)
            .arg("--ready-file")
            .arg(folder.path().join("ready.json"));
        let program = Program::start(name, &mut command, folder.path());
        Self {
            program,
            admin,
            folder,
        }
    }

    /// Where proxies are served, once they are.
    pub fn ready(&self) -> String {
        self.ready_within(PATIENCE)
    }

    /// The same with a patience of the caller's.
    pub fn ready_within(&self, patience: Duration) -> String {
        eventually_within(patience, "a controller that is ready", || {
            let text = std::fs::read(self.folder.path().join("ready.json")).ok()?;
            let ready: Value = serde_json::from_slice(&text).ok()?;
            ready["listen"].as_str().map(str::to_owned)
        })
    }

    pub fn page(&self, path: &str) -> String {
        curl(&["--max-time", "5", &format!("http://{}{path}", self.admin)]).text()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.page("/status")).unwrap_or(Value::Null)
    }

    /// A sample of /metrics, by its name and labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let page = self.page("/metrics");
        let mut lines = page.lines();
        lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// How a kind is watched.
    pub fn watch(&self, kind: &str) -> Value {
        let status = self.status();
        let watches = status["watches"].as_array().cloned().unwrap_or_default();
        let mut watches = watches.into_iter();
        watches.find(|of| of["kind"] == kind).unwrap_or(Value::Null)
    }
}

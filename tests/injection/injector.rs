//! A controller that injects, and the API server asking it.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;
use weft_tests::cluster::{Cluster, Namespace};
use weft_tests::process::Program;
use weft_tests::proxy::built;
use weft_tests::raw::Raw;
use weft_tests::{eventually, root};

use crate::pods::pod;

pub const IMAGE: &str = "localhost/weft-proxy:test";
pub const CONTROLLER: &str = "weft-controller.weft-system.svc.cluster.local:14010";
/// The chart's line that says whom to ask.
const SERVICE: &str =
    "service: {name: weft-webhook, namespace: weft-system, path: /inject, port: 443}";
/// A label of the namespaces that one test's webhook is about.
const SCOPE: &str = "weft-test-injector";
/// The namespaces' label, in place of weft.dev/inject: a mesh that is installed in the same
/// cluster is not asked about them.
pub const LABEL: &str = "weft-test-inject";
pub const ENABLED: (&str, &str) = (LABEL, "enabled");
const SELECTOR: &str =
    "namespaceSelector:\n      matchExpressions:\n        - {key: weft.dev/inject,";

/// A controller, and the API server asking it.
pub struct Injector {
    pub cluster: Cluster,
    pub controller: Program,
    pub folder: TempDir,
    admin: SocketAddr,
    pub webhook: SocketAddr,
    name: String,
}

impl Injector {
    /// Where there is a cluster.
    pub fn start() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cluster = Cluster::connect()?;
        let folder = TempDir::new().expect("a folder can be made");
        let ready = folder.path().join("ready.json");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("weft-test-{}-{number}", std::process::id());
        let mut command = Command::new(built("weft-controller", "weft-controller"));
        command
            .arg("--kubernetes")
            .arg("--ca-dir")
            .arg(folder.path().join("ca"))
            .arg("--ready-file")
            .arg(&ready)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--webhook", "127.0.0.1:0", "--proxy-image", IMAGE])
            .args(["--proxy-image-pull-policy", "IfNotPresent"])
            .args([
                "--webhook-configuration",
                &name,
                "--controller-address",
                CONTROLLER,
            ])
            // One that there is not: without a Lease it writes no statuses, which are the
            // business of a mesh that is installed.
            .args(["--namespace", &name])
            .env("KUBECONFIG", &cluster.kubeconfig);
        let mut controller = Program::start("controller", &mut command, folder.path());
        let ports: Value = eventually("a controller that is ready", || {
            assert!(controller.is_running(), "{}", controller.output());
            serde_json::from_slice(&fs::read(&ready).ok()?).ok()
        });
        let address = |name: &str| ports[name].as_str().unwrap().parse().unwrap();
        let injector = Self {
            admin: address("admin"),
            webhook: address("webhook"),
            name,
            cluster,
            controller,
            folder,
        };
        injector.register();
        Some(injector)
    }

    /// The chart's configuration, for this test's namespaces and by this controller's port;
    /// the controller adds by which roots it is known.
    fn register(&self) {
        let chart = root().join("charts/weft");
        let chart = chart.to_str().unwrap();
        let only = ["-n", "weft-system", "-s", "templates/webhook.yaml"];
        let manifest = self
            .cluster
            .helm(&[&["template", "weft", chart], &only[..]].concat());
        let client = format!("url: https://localhost:{}/inject", self.webhook.port());
        let names = "        - {key: kubernetes.io/metadata.name,";
        let scope = format!(
            "        - {{key: {SCOPE}, operator: In, values: [{}]}}\n{names}",
            self.name
        );
        for part in [SERVICE, SELECTOR, names] {
            assert_eq!(manifest.matches(part).count(), 2, "{part} in {manifest}");
        }
        let manifest = manifest
            .replace(SERVICE, &client)
            .replace(SELECTOR, &SELECTOR.replace("weft.dev/inject", LABEL))
            .replace(names, &scope)
            .replace("name: weft-injector", &format!("name: {}", self.name));
        self.cluster.apply(&manifest);
        let probe = self.namespace(&[ENABLED]);
        eventually("the API server asking the webhook", || {
            let made = self.dry_run(
                &probe,
                &pod("probe", "{}", "containers: [{name: a, image: a}]"),
            );
            made.ok()?["spec"]["initContainers"]
                .is_array()
                .then_some(())
        });
    }

    pub fn namespace(&self, labels: &[(&str, &str)]) -> Namespace {
        let labels = [labels, &[(SCOPE, &self.name)]].concat();
        self.cluster.namespace("inject", &labels)
    }

    /// What would become of a manifest; or what the API server says against it.
    pub fn dry_run(&self, space: &Namespace, manifest: &str) -> Result<Value, String> {
        let path = self.folder.path().join("manifest.yaml");
        fs::write(&path, manifest).unwrap();
        let arguments = [
            "-n",
            &space.name,
            "create",
            "--dry-run=server",
            "-o",
            "json",
            "-f",
        ];
        let path = path.to_str().unwrap();
        let output = self
            .cluster
            .try_kubectl(&[&arguments[..], &[path]].concat());
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn metric(&self, sample: &str) -> u64 {
        let answer = Raw::connect(self.admin).try_get("/metrics").unwrap();
        let page = answer.text();
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {sample} in {page}"))
            .parse()
            .unwrap()
    }

    pub fn counted(&self, result: &str) -> u64 {
        self.metric(&format!(
            "weft_controller_admissions_total{{result=\"{result}\"}}"
        ))
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        let arguments = ["delete", "mutatingwebhookconfiguration", &self.name];
        let _gone = self.cluster.try_kubectl(&arguments);
    }
}

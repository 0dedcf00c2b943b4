//! Weft in the cluster: its chart with the images of this tree, as a user installs it.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use crate::cluster::Cluster;
use crate::images::{NAMES, PREFIX, TAG, archive, built};
use crate::root;

/// Where it is installed.
pub const NAMESPACE: &str = "weft-system";
const RELEASE: &str = "weft";
pub const SELECTOR: &str = "app.kubernetes.io/component=controller";
/// The chart's default.
const REPLICAS: u32 = 2;
const MIB: f64 = 1024.0 * 1024.0;

/// Installs it with these further values (`key=value`), or upgrades it to them.
#[track_caller]
pub fn install(cluster: &Cluster, values: &[&str]) {
    let chart = root().join("charts/weft");
    let chart = chart.to_str().expect("a path of letters");
    let image = [
        format!("image.registry={PREFIX}"),
        format!("image.tag={TAG}"),
        "definitions.keep=false".to_owned(),
        // There is one node, and what is measured there is the sidecars.
        "controller.resources.requests.cpu=10m".to_owned(),
    ];
    let mut arguments = vec![
        "upgrade",
        "--install",
        RELEASE,
        chart,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--wait",
        "--timeout",
        "180s",
    ];
    for value in image
        .iter()
        .map(String::as_str)
        .chain(values.iter().copied())
    {
        arguments.extend(["--set", value]);
    }
    let output = cluster.try_helm(&arguments);
    assert!(
        output.status.success(),
        "helm {}: {}{}\n{}\n{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        cluster.describe(NAMESPACE),
        logs(cluster)
    );
}

/// Takes it away, if it is there.
pub fn uninstall(cluster: &Cluster) {
    if cluster
        .try_helm(&["status", RELEASE, "-n", NAMESPACE])
        .status
        .success()
    {
        cluster.helm(&["uninstall", RELEASE, "-n", NAMESPACE, "--wait"]);
    }
    cluster.kubectl(&[
        "delete",
        "namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--timeout=120s",
    ]);
}

/// While it lives, the controllers of the installed Weft are away: for tests whose own controllers
/// are to be the only ones.
#[derive(Debug)]
pub struct Away(Option<Cluster>);

impl Away {
    #[must_use]
    pub fn send(cluster: &Cluster) -> Self {
        let is_installed = cluster
            .try_helm(&["status", RELEASE, "-n", NAMESPACE])
            .status
            .success();
        if !is_installed {
            return Self(None);
        }
        send_away(cluster);
        Self(Some(cluster.clone()))
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        if let Some(cluster) = &self.0 {
            scale(cluster, REPLICAS);
            let status = [
                "-n",
                NAMESPACE,
                "rollout",
                "status",
                "deployment/weft-controller",
                "--timeout=120s",
            ];
            let _back = cluster.try_kubectl(&status);
        }
    }
}

/// Ends all controllers, and waits until they have.
pub fn send_away(cluster: &Cluster) {
    scale(cluster, 0);
    let gone = [
        "-n",
        NAMESPACE,
        "wait",
        "--for=delete",
        "pod",
        "-l",
        SELECTOR,
        "--timeout=60s",
    ];
    cluster.kubectl(&gone);
}

/// Has so many controllers run.
pub fn scale(cluster: &Cluster, replicas: u32) {
    let replicas = replicas.to_string();
    let arguments = [
        "-n",
        NAMESPACE,
        "scale",
        "deployment/weft-controller",
        "--replicas",
        &replicas,
    ];
    let _scaled = cluster.try_kubectl(&arguments);
}

/// The median and the largest resident memory of the sidecars on the node, as the kernel has it.
///
/// # Panics
/// If there is no pgrep.
#[must_use]
pub fn sidecar_memory() -> String {
    let mut pgrep = Command::new("pgrep");
    pgrep.args(["-f", "^/usr/local/bin/weft-proxy sidecar"]);
    let output = pgrep.output().expect("pgrep runs");
    let resident = |pid: &str| {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: f64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as f64 / MIB)
    };
    let pids = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut all: Vec<f64> = pids.lines().filter_map(resident).collect();
    all.sort_by(f64::total_cmp);
    match (all.get(all.len() / 2), all.last()) {
        (Some(median), Some(most)) => format!(
            "{median:.1} MiB (median of {}), {most:.1} MiB at most",
            all.len()
        ),
        _ => "unknown".to_owned(),
    }
}

/// What the controllers say.
#[must_use]
pub fn logs(cluster: &Cluster) -> String {
    let arguments = [
        "-n",
        NAMESPACE,
        "logs",
        "-l",
        SELECTOR,
        "--prefix",
        "--tail=60",
    ];
    let output = cluster.try_kubectl(&arguments);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The cluster with Weft in it, installed once for all tests of a process; none where the tests
/// are to do without.
#[must_use]
pub fn connect() -> Option<Cluster> {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let cluster = Cluster::connect()?;
    if !built() {
        return None;
    }
    INSTALLED.get_or_init(|| {
        load(&cluster);
        uninstall(&cluster);
        install(&cluster, &[]);
    });
    Some(cluster)
}

/// The images of this tree, and those of the tests' applications, are on the node.
pub fn load(cluster: &Cluster) {
    for name in NAMES {
        cluster.load(&archive(name));
    }
    cluster.load(&cluster.image("store"));
}

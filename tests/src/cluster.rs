//! A real Kubernetes: what `tests/cluster/cluster` runs, asked through kubectl and helm as a user
//! asks it.
//!
//! A test takes a namespace of its own, which goes when the test ends. What a test makes that is in
//! no namespace it names after itself and takes away.

use std::env;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::{eventually_within, stepping_aside};

/// The kubeconfig, the state folder and the built programs, as `cluster env` prints them.
const VARIABLES: [&str; 3] = ["KUBECONFIG", "WEFT_CLUSTER", "WEFT_CLUSTER_BIN"];

/// How long a cluster's own controllers may take to make an object that follows from another.
const FOLLOWS_MAX: Duration = Duration::from_secs(60);

static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// The running cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub kubeconfig: PathBuf,
    state: PathBuf,
    programs: PathBuf,
}

impl Cluster {
    /// The one that runs; none where the tests are to do without.
    ///
    /// # Panics
    /// If none runs and nobody said to do without.
    #[must_use]
    pub fn connect() -> Option<Self> {
        if stepping_aside("cluster") {
            return None;
        }
        let [kubeconfig, state, programs] = VARIABLES.map(|name| {
            env::var_os(name).map(PathBuf::from).unwrap_or_else(|| {
                panic!(
                    "{name} is not set: `make test` starts a Kubernetes; to run tests one by one, `make cluster-up` and `eval \"$(tests/cluster/cluster env)\"`, or do without by {}=cluster",
                    crate::WITHOUT
                )
            })
        });
        Some(Self {
            kubeconfig,
            state,
            programs,
        })
    }

    /// Where the logs of its own parts are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("log")
    }

    /// The key by which the cluster signs the tokens of its service accounts.
    #[must_use]
    pub fn token_key(&self) -> PathBuf {
        self.state.join("pki/sa.key")
    }

    /// Gateway API's definitions of one channel, `standard` or `experimental`.
    #[must_use]
    pub fn gateway_definitions(&self, channel: &str) -> PathBuf {
        self.programs.join("../crd").join(channel)
    }

    /// The archive of an image that was built with the cluster.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        self.programs.join(format!("../images/{name}.tar"))
    }

    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HELM_PLUGINS", "/nonexistent")
            .stdin(Stdio::null());
        command
    }

    /// Runs kubectl.
    #[must_use]
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        output(self.command(Path::new("kubectl"), arguments))
    }

    /// Runs kubectl; what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded("kubectl", arguments, &self.try_kubectl(arguments))
    }

    /// kubectl that goes on, as for `logs -f` or `port-forward`.
    #[must_use]
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        self.command(Path::new("kubectl"), arguments)
    }

    /// An object, or a list, as JSON.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn get(&self, arguments: &[&str]) -> Value {
        let arguments = [&["get", "-o", "json"], arguments].concat();
        serde_json::from_str(&self.kubectl(&arguments)).expect("kubectl prints JSON")
    }

    /// Runs helm.
    #[must_use]
    pub fn try_helm(&self, arguments: &[&str]) -> Output {
        output(self.command(&self.programs.join("helm"), arguments))
    }

    /// Runs helm; what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn helm(&self, arguments: &[&str]) -> String {
        succeeded("helm", arguments, &self.try_helm(arguments))
    }

    /// Applies manifests, on the server's side; what the server says.
    #[must_use]
    pub fn try_apply(&self, manifests: &str) -> Output {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        let mut command = self.command(Path::new("kubectl"), &arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut input = child.stdin.take().expect("its input is a pipe");
        // One that has ended already says why.
        let _ended = input.write_all(manifests.as_bytes());
        drop(input);
        child.wait_with_output().expect("kubectl ends")
    }

    /// Applies manifests.
    ///
    /// # Panics
    /// If the server refuses them.
    #[track_caller]
    pub fn apply(&self, manifests: &str) {
        succeeded("kubectl", &["apply"], &self.try_apply(manifests));
    }

    /// Installs Gateway API's definitions of a channel.
    pub fn install_gateway_api(&self, channel: &str) {
        let folder = self.gateway_definitions(channel);
        let folder = folder.to_str().expect("a path of letters");
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", folder]);
    }

    /// Imports an image (an archive of `docker save`) into the node.
    ///
    /// # Panics
    /// If containerd refuses it.
    pub fn load(&self, image: &Path) {
        let socket = self.state.join("containerd.sock");
        let mut command = Command::new("ctr");
        command
            .arg("-a")
            .arg(socket)
            .args(["-n", "k8s.io", "images", "import"])
            .arg(image);
        succeeded("ctr", &["images", "import"], &output(command));
    }

    /// Kills a container's first process on the node; whether there was one.
    #[must_use]
    pub fn kill(&self, container: &str) -> bool {
        self.signal(container, "SIGKILL")
    }

    /// Where its state is kept.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Sends a container's first process on the node a signal; whether there was one.
    #[must_use]
    pub fn signal(&self, container: &str, signal: &str) -> bool {
        let mut command = Command::new("ctr");
        command
            .arg("-a")
            .arg(self.state.join("containerd.sock"))
            .args(["-n", "k8s.io", "tasks", "kill", "-s", signal, container]);
        output(command).status.success()
    }

    /// A namespace of a test's own, with these labels.
    pub fn namespace(&self, subject: &str, labels: &[(&str, &str)]) -> Namespace {
        let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{subject}-{}-{number}", std::process::id());
        let mut manifest = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    weft-test: \"true\"\n"
        );
        for (label, value) in labels {
            let _ = writeln!(manifest, "    {label}: \"{value}\"");
        }
        self.apply(&manifest);
        let namespace = Namespace {
            cluster: self.clone(),
            name,
        };
        // A pod that no controller makes is refused, and not tried again, before there is its account.
        let account = ["-n", &namespace.name, "get", "serviceaccount", "default"];
        eventually_within(FOLLOWS_MAX, "the namespace's account", || {
            self.try_kubectl(&account).status.success().then_some(())
        });
        namespace
    }

    /// Waits until the pods with this label (`app=a`) are ready, of which there is one at least.
    ///
    /// # Panics
    /// If none is within some minutes.
    #[track_caller]
    pub fn pod_ready(&self, namespace: &str, label: &str) {
        // Of what is not there yet, kubectl says so and waits no longer.
        let exists = ["-n", namespace, "get", "pods", "-l", label, "-o", "name"];
        eventually_within(FOLLOWS_MAX, "a pod being made", || {
            (!self.kubectl(&exists).trim().is_empty()).then_some(())
        });
        let ready = ["wait", "--for=condition=Ready", "pod", "-l", label];
        self.kubectl(&[&["-n", namespace], &ready[..], &["--timeout=120s"]].concat());
    }

    /// What a failed test wants to see of a namespace.
    #[must_use]
    pub fn describe(&self, namespace: &str) -> String {
        let pods = self.try_kubectl(&["-n", namespace, "get", "pods", "-o", "wide"]);
        let events =
            self.try_kubectl(&["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"]);
        let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
        format!("{}\n{}", text(&pods), text(&events))
    }
}

/// Goes, with all that is in it, when it is dropped.
#[derive(Debug)]
pub struct Namespace {
    pub cluster: Cluster,
    pub name: String,
}

impl Namespace {
    /// Runs kubectl in it.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let arguments = [&["-n", &self.name], arguments].concat();
        self.cluster.kubectl(&arguments)
    }

    /// Applies manifests, whose namespace is written `NAMESPACE`.
    #[track_caller]
    pub fn apply(&self, manifests: &str) {
        self.cluster
            .apply(&manifests.replace("NAMESPACE", &self.name));
    }

    /// Waits until a pod with this label (`app=a`) is ready; see [`Cluster::pod_ready`].
    #[track_caller]
    pub fn pod_ready(&self, label: &str) {
        self.cluster.pod_ready(&self.name, label);
    }

    /// Waits until a Deployment's rollout is done.
    ///
    /// # Panics
    /// If it is not within some minutes, with what the namespace looks like.
    #[track_caller]
    pub fn rolled_out(&self, deployment: &str) {
        let of = format!("deployment/{deployment}");
        let arguments = ["-n", &self.name, "rollout", "status", &of, "--timeout=180s"];
        let output = self.cluster.try_kubectl(&arguments);
        assert!(
            output.status.success(),
            "{of} is not rolled out: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.cluster.describe(&self.name)
        );
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.cluster.describe(&self.name));
        }
        // Not waited for: the names differ.
        let arguments = ["delete", "namespace", &self.name, "--wait=false"];
        let _gone = self.cluster.try_kubectl(&arguments);
    }
}

fn output(mut command: Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

#[track_caller]
fn succeeded(program: &str, arguments: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "{program} {}: {}\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

//! Injection on a real API server: it asks the real controller's webhook, of the chart's
//! configuration. The pods are for a node that there is not, so nobody runs them.

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::cluster::{Cluster, Namespace};
use weft_tests::curl::curl;
use weft_tests::process::Program;
use weft_tests::proxy::built;
use weft_tests::raw::Raw;
use weft_tests::weft::{ended, weft};
use weft_tests::{eventually, root};

const IMAGE: &str = "localhost/weft-proxy:test";
const CONTROLLER: &str = "weft-controller.weft-system.svc.cluster.local:14010";
/// The chart's line that says whom to ask.
const SERVICE: &str =
    "service: {name: weft-webhook, namespace: weft-system, path: /inject, port: 443}";
/// A label of the namespaces that one test's webhook is about.
const SCOPE: &str = "weft-test-injector";
/// The namespaces' label, in place of weft.dev/inject: a mesh that is installed in the same
/// cluster is not asked about them.
const LABEL: &str = "weft-test-inject";
const ENABLED: (&str, &str) = (LABEL, "enabled");
const SELECTOR: &str =
    "namespaceSelector:\n      matchExpressions:\n        - {key: weft.dev/inject,";

/// A controller, and the API server asking it.
struct Injector {
    cluster: Cluster,
    controller: Program,
    folder: TempDir,
    admin: SocketAddr,
    webhook: SocketAddr,
    name: String,
}

impl Injector {
    /// Where there is a cluster.
    fn start() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cluster = Cluster::connect()?;
        let folder = TempDir::new().expect("a folder can be made");
        let ready = folder.path().join("ready.json");
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
            .env("KUBECONFIG", &cluster.kubeconfig);
        let mut controller = Program::start("controller", &mut command, folder.path());
        let ports: Value = eventually("a controller that is ready", || {
            assert!(controller.is_running(), "{}", controller.output());
            serde_json::from_slice(&fs::read(&ready).ok()?).ok()
        });
        let address = |name: &str| ports[name].as_str().unwrap().parse().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let injector = Self {
            admin: address("admin"),
            webhook: address("webhook"),
            name: format!("weft-test-{}-{number}", std::process::id()),
            cluster,
            controller,
            folder,
        };
        injector.register();
        Some(injector)
    }

    /// The chart's configuration, for this test's namespaces and by this controller's port.
    fn register(&self) {
        let chart = root().join("charts/weft");
        let chart = chart.to_str().unwrap();
        let only = ["-n", "weft-system", "-s", "templates/webhook.yaml"];
        let manifest = self
            .cluster
            .helm(&[&["template", "weft", chart], &only[..]].concat());
        let roots = self.folder.path().join("ca/trust.pem");
        let roots = Command::new("base64")
            .arg("-w0")
            .arg(roots)
            .output()
            .unwrap();
        let client = format!(
            "url: https://localhost:{}/inject\n      caBundle: {}",
            self.webhook.port(),
            String::from_utf8(roots.stdout).unwrap()
        );
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

    fn namespace(&self, labels: &[(&str, &str)]) -> Namespace {
        let labels = [labels, &[(SCOPE, &self.name)]].concat();
        self.cluster.namespace("inject", &labels)
    }

    /// What would become of a manifest; or what the API server says against it.
    fn dry_run(&self, space: &Namespace, manifest: &str) -> Result<Value, String> {
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

    fn counted(&self, result: &str) -> u64 {
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

/// A pod that no node takes.
fn pod(name: &str, metadata: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    let metadata: String = serde_json::from_str::<Value>(metadata)
        .unwrap()
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| format!("  {key}: {value}\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n{metadata}spec:\n  nodeSelector: {{weft.dev/nowhere: 'yes'}}\n  {spec}\n"
    )
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod["spec"][list].as_array().cloned().unwrap_or_default();
    containers
        .iter()
        .map(|of| of["name"].as_str().unwrap().to_owned())
        .collect()
}

fn is_injected(pod: &Value) -> bool {
    names(pod, "initContainers").starts_with(&["weft-capture".to_owned(), "weft-proxy".to_owned()])
}

/// Pods as people have them.
const PODS: [(&str, &str); 12] = [
    ("plain", "containers: [{name: app, image: app:1}]"),
    (
        "web",
        "containers:\n- name: app\n  image: app:1\n  ports: [{name: http, containerPort: 8080}, {name: grpc, containerPort: 9000}]\n  \
         startupProbe: {tcpSocket: {port: http}, failureThreshold: 30}\n  livenessProbe: {httpGet: {path: /healthz, port: http}}\n  \
         readinessProbe: {grpc: {port: 9000}}\n  lifecycle: {postStart: {httpGet: {port: http, path: /warm}}}",
    ),
    (
        "tls",
        "containers:\n- name: app\n  image: app:1\n  livenessProbe: {httpGet: {path: /x, port: 8443, scheme: HTTPS, httpHeaders: [{name: Host, value: shop.example}]}, terminationGracePeriodSeconds: 3}\n  \
         lifecycle: {preStop: {exec: {command: [sh, -c, 'sleep 2']}}}",
    ),
    (
        "sidecars",
        "initContainers:\n- {name: migrate, image: app:1}\n- {name: db, image: db:1, restartPolicy: Always, startupProbe: {tcpSocket: {port: 5432}}}\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "hardened",
        "automountServiceAccountToken: false\nsecurityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000, supplementalGroups: [3000], seccompProfile: {type: RuntimeDefault}}\n\
         containers: [{name: app, image: app:1, securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}}]",
    ),
    (
        "armoured",
        "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: app}}\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "hasty",
        "terminationGracePeriodSeconds: 0\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "own-dns",
        "dnsPolicy: None\ndnsConfig: {nameservers: [10.96.0.10]}\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "sized",
        "resources: {requests: {cpu: 20m, memory: 64Mi}, limits: {cpu: 1, memory: 128Mi}}\ncontainers: [{name: app, image: app:1, resources: {requests: {cpu: 20m, memory: 64Mi}}}]",
    ),
    (
        "guaranteed",
        "containers: [{name: app, image: app:1, resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}}}]",
    ),
    (
        "shared-processes",
        "shareProcessNamespace: true\nrestartPolicy: OnFailure\nactiveDeadlineSeconds: 60\ncontainers: [{name: app, image: app:1}]",
    ),
    (
        "volumes",
        "volumes: [{name: data, emptyDir: {}}, {name: other, projected: {sources: [{serviceAccountToken: {path: t, audience: vault}}]}}]\n\
         containers: [{name: app, image: app:1, volumeMounts: [{name: data, mountPath: /data}]}]",
    ),
];

#[test]
fn the_api_server_takes_injected_pods_of_every_kind() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let space = injector.namespace(&[ENABLED]);
    for (name, spec) in PODS {
        space.apply(&pod(name, "{}", spec).replacen(
            "metadata:\n",
            "metadata:\n  namespace: NAMESPACE\n",
            1,
        ));
        let made = injector.cluster.get(&["-n", &space.name, "pod", name]);
        assert!(is_injected(&made), "{made:#}");
        assert_eq!(
            made["metadata"]["annotations"]["weft.dev/inbound"],
            "captured"
        );
        let proxy = &made["spec"]["initContainers"][1];
        assert_eq!(proxy["restartPolicy"], "Always");
        // Nothing of ours can ask the API server for anything.
        for container in [&made["spec"]["initContainers"][0], proxy] {
            let mounts = container["volumeMounts"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let api = mounts.iter().find(|of| {
                of["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
                    && of["name"] != "weft-state"
            });
            assert_eq!(api, None, "{made:#}");
        }
    }
    assert_eq!(injector.counted("malformed"), 0);
    assert!(injector.counted("injected") >= PODS.len() as u64);
}

#[test]
fn who_asked_is_injected_and_nobody_else() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let (labelled, other) = (injector.namespace(&[ENABLED]), injector.namespace(&[]));
    let label = |value: &str| format!("{{\"labels\": {{\"weft.dev/inject\": \"{value}\"}}}}");
    let app = "containers: [{name: app, image: a}]";
    let on_host = "hostNetwork: true\ncontainers: [{name: app, image: a}]";
    for (space, metadata, spec, injected) in [
        (&labelled, "{}".to_owned(), app, true),
        (&labelled, label("enabled"), app, true),
        (&labelled, label("disabled"), app, false),
        (&labelled, "{}".to_owned(), on_host, false),
        (&other, "{}".to_owned(), app, false),
        (&other, label("disabled"), app, false),
        (&other, label("enabled"), app, true),
    ] {
        let made = injector
            .dry_run(space, &pod("one", &metadata, spec))
            .unwrap();
        assert_eq!(is_injected(&made), injected, "{metadata} {spec}: {made:#}");
    }
}

#[test]
fn workloads_get_injected_pods() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let space = injector.namespace(&[ENABLED]);
    let template = "template: {metadata: {labels: {app: a}}, spec: {nodeSelector: {weft.dev/nowhere: 'yes'}, containers: [{name: app, image: a}]";
    space.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: deployment, namespace: NAMESPACE}}\nspec: {{selector: {{matchLabels: {{app: a}}}}, {template}}}}}}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: set, namespace: NAMESPACE}}\nspec: {{serviceName: set, selector: {{matchLabels: {{app: a}}}}, {template}}}}}}}\n---\n\
         apiVersion: batch/v1\nkind: Job\nmetadata: {{name: job, namespace: NAMESPACE}}\nspec: {{{template}, restartPolicy: Never}}}}}}\n"
    ));
    for owner in ["deployment-", "set-", "job-"] {
        let made = eventually(owner, || {
            let pods = injector.cluster.get(&["-n", &space.name, "pods"]);
            let mut pods = pods["items"].as_array()?.iter();
            let is_theirs = |pod: &&Value| {
                pod["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with(owner))
            };
            pods.find(is_theirs).cloned()
        });
        assert!(is_injected(&made), "{made:#}");
    }
}

#[test]
fn bad_annotations_are_refused_with_what_is_allowed() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let space = injector.namespace(&[ENABLED]);
    let annotation =
        |key: &str, value: &str| format!("{{\"annotations\": {{\"{key}\": \"{value}\"}}}}");
    let app = "containers: [{name: app, image: a}]";
    for (metadata, spec, said) in [
        (
            annotation("sidecar.weft.dev/memory-limit", "256m"),
            app,
            "metadata.annotations[sidecar.weft.dev/memory-limit]: \"256m\" is no amount of memory for a sidecar; allowed is 4Mi to 1Ti",
        ),
        (
            annotation("sidecar.weft.dev/memory-limt", "256Mi"),
            app,
            "did you mean \"memory-limit\"?",
        ),
        (
            "{\"labels\": {\"weft.dev/inject\": \"yes\"}}".to_owned(),
            app,
            "metadata.labels[weft.dev/inject]: \"yes\" means nothing; allowed are \"enabled\" and \"disabled\"",
        ),
        (
            "{}".to_owned(),
            "containers: [{name: weft-proxy, image: a}]",
            "spec.containers[0].name: \"weft-proxy\" is the name of a container that injection adds",
        ),
        (
            "{}".to_owned(),
            "containers: [{name: app, image: a, securityContext: {runAsUser: 1337}}]",
            "spec.containers[0].securityContext.runAsUser: 1337 is the sidecar's user",
        ),
    ] {
        let refused = injector
            .dry_run(&space, &pod("bad", &metadata, spec))
            .unwrap_err();
        assert!(refused.contains("denied the request: "), "{refused}");
        assert!(refused.contains(said), "{refused}\nlacks {said}");
    }
    assert_eq!(injector.counted("refused"), 5);
    assert!(injector.controller.output().contains("a pod is refused"));
}

#[test]
fn a_dead_controller_stops_only_who_asked() {
    let Some(mut injector) = Injector::start() else {
        return;
    };
    let (labelled, other) = (injector.namespace(&[ENABLED]), injector.namespace(&[]));
    injector.controller.kill();
    let app = "containers: [{name: app, image: a}]";
    let refused = injector
        .dry_run(&labelled, &pod("a", "{}", app))
        .unwrap_err();
    assert!(refused.contains("namespaces.inject.weft.dev"), "{refused}");
    let asks = "{\"labels\": {\"weft.dev/inject\": \"enabled\"}}";
    let refused = injector.dry_run(&other, &pod("a", asks, app)).unwrap_err();
    assert!(refused.contains("pods.inject.weft.dev"), "{refused}");
    let out = "{\"labels\": {\"weft.dev/inject\": \"disabled\"}}";
    injector.dry_run(&labelled, &pod("a", out, app)).unwrap();
    let agent = "hostNetwork: true\ncontainers: [{name: app, image: a}]";
    injector.dry_run(&labelled, &pod("a", "{}", agent)).unwrap();
    injector.dry_run(&other, &pod("a", "{}", app)).unwrap();
    // Whoever was stopped by the label is no more.
    let label = ["label", "namespace", &labelled.name, &format!("{LABEL}-")];
    injector.cluster.kubectl(&label);
    eventually("the label being gone", || {
        injector.dry_run(&labelled, &pod("a", "{}", app)).ok()
    });
}

#[test]
fn garbage_and_plain_http_do_no_harm() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let port = injector.webhook.port();
    let url = format!("https://localhost:{port}/inject");
    let roots = injector.folder.path().join("ca/trust.pem");
    let trusted = ["--cacert", roots.to_str().unwrap()];
    let ask = |arguments: &[&str]| curl(&[&trusted[..], arguments].concat());
    let large = injector.folder.path().join("large");
    fs::write(&large, vec![b' '; (4 << 20) + 1]).unwrap();
    let large = format!("@{}", large.display());
    for version in ["--http1.1", "--http2"] {
        let nonsense = ask(&[version, "-d", "{\"kind\": 1}", &url]);
        assert_eq!(nonsense.status, 400, "{nonsense:?}");
        assert!(
            nonsense.text().contains("is no AdmissionReview"),
            "{nonsense:?}"
        );
        assert_eq!(ask(&[version, &url]).status, 405);
        assert_eq!(
            ask(&[version, "-d", "x", &url.replace("/inject", "/")]).status,
            404
        );
        let refused = ask(&[version, "--data-binary", &large, &url]);
        assert_eq!(refused.status, 413, "{refused:?}");
    }
    let plain = curl(&["-d", "x", &format!("http://localhost:{port}/inject")]);
    assert_eq!(
        (plain.status, plain.text().as_str()),
        (400, "this port speaks HTTPS\n")
    );
    for bytes in [&b"\x00\x01\x02"[..], b"\x16\x03\x01\x00\x05hello", b"\x16"] {
        let mut raw = Raw::connect(injector.webhook);
        raw.send(bytes);
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // An alert, or nothing; never anything that waits.
        let _reset = raw.stream.read_to_end(&mut answer);
        assert!(answer.len() < 64, "{answer:?}");
    }
    for (result, count) in [
        ("malformed", 2),
        ("unknown", 4),
        ("too_large", 2),
        ("not_tls", 2),
        ("handshake", 2),
    ] {
        assert_eq!(injector.counted(result), count, "{result}");
    }
    // One who opens connections and says nothing takes nobody else's place.
    let silent: Vec<Raw> = (0..64).map(|_| Raw::connect(injector.webhook)).collect();
    let mut refused = Raw::connect(injector.webhook);
    let mut answer = Vec::new();
    assert_eq!(refused.stream.read_to_end(&mut answer).unwrap_or(0), 0);
    // The API server is at the same address here, and has a place.
    assert!(injector.counted("connections_max") >= 1);
    drop(silent);
    let space = injector.namespace(&[ENABLED]);
    let made = injector.dry_run(
        &space,
        &pod("good", "{}", "containers: [{name: app, image: a}]"),
    );
    assert!(is_injected(&made.unwrap()));
}

#[test]
fn a_file_is_injected_as_the_api_server_s_pods_are() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let (labelled, other) = (injector.namespace(&[ENABLED]), injector.namespace(&[]));
    let folder = injector.folder.path();
    let token = "00112233445566778899aabbccddeeff";
    for (name, spec) in PODS {
        let path = folder.join("pods.yaml");
        fs::write(&path, pod(name, "{}", spec)).unwrap();
        let said = ended(
            weft()
                .args([
                    "inject",
                    "-f",
                    path.to_str().unwrap(),
                    "--controller",
                    CONTROLLER,
                ])
                .args([
                    "--proxy-image",
                    IMAGE,
                    "--proxy-image-pull-policy",
                    "IfNotPresent",
                ])
                .args(["--drain-token", token, "--trust-bundle"])
                .arg(folder.join("ca/trust.pem")),
        );
        said.is(0, &[]);
        let injected = injector.dry_run(&other, &said.text).unwrap();
        // Left alone, since it has a sidecar.
        assert_eq!(
            comparable(injector.dry_run(&labelled, &said.text).unwrap()),
            comparable(injected.clone())
        );
        let asked = injector.dry_run(&labelled, &pod(name, "{}", spec)).unwrap();
        assert_eq!(comparable(asked), comparable(injected), "{name}");
    }
}

/// A pod without what differs from one to the next.
fn comparable(mut pod: Value) -> Value {
    let text = pod["spec"].to_string();
    let drain = text
        .split_once("/drain/")
        .map(|(_, after)| after[..32].to_owned());
    let api = text
        .split_once("kube-api-access-")
        .map(|(_, after)| after[..5].to_owned());
    let mut text = json!([pod["spec"].take(), pod["metadata"]["annotations"].take()]).to_string();
    for one in [drain, api].into_iter().flatten() {
        text = text.replace(&one, "…");
    }
    serde_json::from_str(&text).unwrap()
}

//! `weft` with the mesh of a cluster: status, check, top, explain and logs through the API server,
//! and Weft installed by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::cluster::{Cluster, Namespace};
use weft_tests::images::{PREFIX, TAG};
use weft_tests::weft::{ended, weft};
use weft_tests::{eventually_within, install, storm};

use super::{INJECTED, PATIENCE, alone};

/// `weft` with this kubeconfig.
fn with(kubeconfig: &Path, arguments: &[&str]) -> Command {
    let mut command = weft();
    command.args(arguments).env("KUBECONFIG", kubeconfig);
    command
}

fn json_of(mut command: Command) -> Value {
    let output = command.output().expect("weft runs");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{command:?}: {error}: {output:?}"))
}

/// Its findings of one mark.
fn findings(checked: &Value, mark: &str) -> Vec<String> {
    let all = checked["findings"].as_array().expect("there are findings");
    all.iter()
        .filter(|finding| finding["mark"] == mark)
        .map(|finding| finding.to_string())
        .collect()
}

/// Waits until a command succeeds and says all that: at any moment a proxy may be behind for as
/// long as an answer takes.
#[track_caller]
fn becomes(command: impl Fn() -> Command, parts: &[&str]) {
    eventually_within(PATIENCE, &format!("{parts:?}"), || {
        let said = ended(&mut command());
        println!("{}", said.all());
        let has_all = parts.iter().all(|part| said.all().contains(part));
        (said.code == Some(0) && has_all).then_some(())
    });
}

/// The one pod of an application.
fn pod(space: &Namespace, app: &str) -> String {
    let name = "jsonpath={.items[0].metadata.name}";
    space.kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", name])
}

#[test]
fn a_mesh_in_a_cluster_is_seen_through_its_api_server() {
    let _alone = alone();
    let Some(cluster) = install::connect() else {
        return;
    };
    let space = cluster.namespace("seen", &[INJECTED]);
    space.apply(&storm::manifests(storm::OnTerm::Exits));
    space.rolled_out("web");
    space.rolled_out("chat");
    space.apply(&storm::customer(600));
    space.pod_ready("app=customer");
    let (web, customer) = (pod(&space, "web"), pod(&space, "customer"));
    let weft = |arguments: &[&str]| with(&cluster.kubeconfig, arguments);

    // Both replicas, and proxies by the names of their pods.
    let status = eventually_within(PATIENCE, "everyone having everything", || {
        let status = json_of(weft(&["status", "-k", "-o", "json"]));
        (status["healthy"] == true).then_some(status)
    });
    assert_eq!(
        status["controllers"].as_array().map(Vec::len),
        Some(2),
        "{status:#}"
    );
    let name = format!("{}/{web}", space.name);
    let proxies = status["proxies"].as_array().expect("there are proxies");
    let own = proxies.iter().find(|proxy| proxy["name"] == *name);
    let own = own.unwrap_or_else(|| panic!("{name} is not there: {status:#}"));
    let controller = own["controller"].as_str().unwrap_or_default();
    assert!(controller.starts_with("weft-controller-"), "{own:#}");
    let status = || weft(&["status", "-k"]);
    becomes(status, &[&name, "in sync", "All is well."]);

    eventually_within(PATIENCE, "nothing wrong", || {
        let checked = json_of(weft(&["check", "-k", "-o", "json"]));
        println!("{checked:#}");
        findings(&checked, "wrong").is_empty().then_some(())
    });
    let check = || weft(&["check", "-k"]);
    becomes(check, &["is injected (dry run)", "writes statuses"]);

    let top = json_of(weft(&["top", "-k", "--once", "-o", "json"]));
    let service = format!("{}/web:80", space.name);
    let services = top["services"].as_array().expect("there are services");
    let own = services.iter().find(|of| of["to"] == *service);
    let own = own.unwrap_or_else(|| panic!("{service} is not there: {top:#}"));
    assert!(own["rate"].as_f64() > Some(1.0), "{own:#}");

    let of = format!("{customer}.{}", space.name);
    let explain = weft(&["explain", "--pod", &of, "GET", "http://web/"]).output();
    let explain = String::from_utf8_lossy(&explain.expect("weft runs").stdout).into_owned();
    assert!(
        explain.contains(&format!("goes to service {service}")),
        "{explain}"
    );
    assert_eq!(explain.matches("in rotation").count(), 3, "{explain}");

    ended(&mut weft(&["logs", "-n", &space.name, "-l", "app=web"])).is(0, &[&web, " ready "]);
    ended(&mut weft(&["logs", "--controller"])).is(0, &["weft-controller-", "ready"]);
    ended(&mut weft(&["logs", "none", "-n", &space.name])).is(1, &["\"none\" not found"]);
}

#[test]
fn check_names_what_is_wrong_and_what_to_do() {
    let _alone = alone();
    let Some(cluster) = install::connect() else {
        return;
    };
    let weft = |arguments: &[&str]| with(&cluster.kubeconfig, arguments);
    // Pods that were there before the label.
    let space = cluster.namespace("late", &[]);
    space.apply(&storm::manifests(storm::OnTerm::Exits));
    space.rolled_out("web");
    let label = format!("{}={}", INJECTED.0, INJECTED.1);
    cluster.kubectl(&["label", "namespace", &space.name, &label]);
    let checked = json_of(weft(&["check", "-k", "-o", "json"]));
    let warned = findings(&checked, "warning").concat();
    let restart = format!("kubectl -n {} rollout restart deployment", space.name);
    assert!(
        warned.contains("pods have no sidecar") && warned.contains(&restart),
        "{checked:#}"
    );

    // A webhook that nobody is.
    let of = ["mutatingwebhookconfiguration", "weft-injector"];
    let mut webhook = cluster.get(&of);
    cluster.kubectl(&[&["delete"][..], &of].concat());
    let without = ended(&mut weft(&["check", "-k"]));
    let fields = webhook["metadata"]
        .as_object_mut()
        .expect("it is an object");
    for field in [
        "uid",
        "resourceVersion",
        "managedFields",
        "creationTimestamp",
        "generation",
    ] {
        fields.remove(field);
    }
    cluster.apply(&webhook.to_string());
    without.is(
        1,
        &[
            "there is no MutatingWebhookConfiguration",
            "weft install --apply",
        ],
    );

    // Another namespace has none.
    let elsewhere = weft(&["check", "-n", "default"]);
    ended(&mut { elsewhere }).is(1, &["there is no Deployment weft-controller", "-n"]);
    ended(&mut weft(&["status", "-n", "default"]))
        .is(1, &["no pod of weft-controller is in namespace default"]);
}

/// A ClusterRole and its binding, which go when it is dropped.
struct Role<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Drop for Role<'_> {
    fn drop(&mut self) {
        for kind in ["clusterrole", "clusterrolebinding"] {
            let arguments = ["delete", kind, &self.name, "--ignore-not-found"];
            let _gone = self.cluster.try_kubectl(&arguments);
        }
    }
}

/// The kubeconfig of a service account, which may do what `rules` say.
fn account(space: &Namespace, folder: &TempDir, rules: &Value) -> PathBuf {
    let name = &space.name;
    let of = |kind: &str, more: Value| {
        let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": name}});
        object
            .as_object_mut()
            .expect("it is one")
            .extend(more.as_object().cloned().unwrap_or_default());
        object
    };
    let subjects = json!([{"kind": "ServiceAccount", "name": "limited", "namespace": name}]);
    let role =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    let role = of(
        "ClusterRoleBinding",
        json!({"roleRef": role, "subjects": subjects}),
    );
    // Of its own: a namespace gets its default one a moment later.
    space.apply(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: limited, namespace: NAMESPACE}\n",
    );
    space
        .cluster
        .apply(&of("ClusterRole", json!({"rules": rules})).to_string());
    space.cluster.apply(&role.to_string());
    let mut config: Value = serde_json::from_str(&space.cluster.kubectl(&[
        "config",
        "view",
        "--raw",
        "--minify",
        "--flatten",
        "-o",
        "json",
    ]))
    .expect("kubectl prints JSON");
    config["users"][0]["user"] =
        json!({"token": space.kubectl(&["create", "token", "limited"]).trim()});
    let path = folder.path().join("kubeconfig");
    fs::write(&path, config.to_string()).expect("a file can be written");
    path
}

#[test]
fn what_is_not_allowed_is_named() {
    let _alone = alone();
    let Some(cluster) = install::connect() else {
        return;
    };
    let space = cluster.namespace("account", &[]);
    let folder = TempDir::new().expect("a folder can be made");
    let _role = Role {
        cluster: &cluster,
        name: space.name.clone(),
    };
    let none = account(&space, &folder, &json!([]));
    ended(&mut with(&none, &["status", "-k"]))
        .is(1, &["cannot list resource \"pods\"", "another --context"]);
    ended(&mut with(&none, &["check", "--pre"])).is(
        1,
        &[
            "not allowed:",
            "create clusterroles",
            "cluster administrator",
        ],
    );
    let list = account(
        &space,
        &folder,
        &json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]),
    );
    ended(&mut with(&list, &["status", "-k"])).is(1, &["pods/portforward"]);
    let nowhere = folder.path().join("none");
    ended(&mut with(
        &nowhere,
        &["status", "-k", "--kubeconfig", "/nonexistent"],
    ))
    .is(1, &["/nonexistent"]);
    let args = ["status", "--context", "other"];
    ended(&mut with(&cluster.kubeconfig, &args)).is(
        1,
        &["--context other: the kubeconfig has none of this name"],
    );
    let args = ["status", "-k", "--controller-admin", "127.0.0.1:1"];
    ended(&mut with(&cluster.kubeconfig, &args)).is(2, &["cannot be used with"]);
}

/// Objects by kind and name, without what only helm wants.
fn by_name(text: &str) -> Vec<(String, Value)> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).expect("it is YAML");
    let mut all: Vec<_> = all
        .into_iter()
        .filter(|object| object["kind"] != "Namespace" && !object.is_null())
        .map(|mut object| {
            for pointer in ["/metadata/labels", "/spec/template/metadata/labels"] {
                if let Some(Value::Object(labels)) = object.pointer_mut(pointer) {
                    labels.remove("helm.sh/chart");
                    labels.remove("app.kubernetes.io/managed-by");
                }
            }
            (
                format!("{} {}", object["kind"], object["metadata"]["name"]),
                object,
            )
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// `make manifests` writes anew what a change of the chart changes.
// tidy: allow size: mostly a table
#[test]
fn what_install_prints_is_the_chart() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let chart = weft_tests::root().join("charts/weft");
    let chart = chart.to_str().expect("a path of letters");
    let cases: [(&[&str], &[&str]); 3] = [
        (&[], &["-n", "weft-system"]),
        (
            &[
                "--replicas",
                "1",
                "--failure-policy",
                "Ignore",
                "-n",
                "mesh",
            ],
            &[
                "--set",
                "controller.replicas=1",
                "--set",
                "webhook.failurePolicy=Ignore",
                "-n",
                "mesh",
            ],
        ),
        (
            &[
                "--registry",
                "localhost:5000/weft",
                "--tag",
                "1.2.3",
                "--pull-policy",
                "Always",
                "--trust-domain",
                "shop.example",
                "--cluster-domain",
                "k8s.example",
                "--sidecar",
                "memory-limit=64Mi",
                "--sidecar",
                "log-level=debug",
            ],
            &[
                "--set",
                "image.registry=localhost:5000/weft",
                "--set",
                "image.tag=1.2.3",
                "--set",
                "image.pullPolicy=Always",
                "--set",
                "trustDomain=shop.example",
                "--set",
                "clusterDomain=k8s.example",
                "--set",
                "sidecar.memoryLimit=64Mi",
                "--set",
                "sidecar.logLevel=debug",
                "-n",
                "weft-system",
            ],
        ),
    ];
    for (chosen, values) in cases {
        let mut command = weft();
        command.arg("install").args(chosen);
        let output = command.output().expect("weft runs");
        assert!(output.status.success(), "{output:?}");
        let printed = by_name(&String::from_utf8_lossy(&output.stdout));
        let base = ["template", "weft", chart, "--set", "definitions.keep=false"];
        let rendered = by_name(&cluster.helm(&[&base[..], values].concat()));
        let names =
            |of: &[(String, Value)]| of.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&printed), names(&rendered), "make manifests?");
        for ((name, printed), (_, rendered)) in printed.iter().zip(&rendered) {
            assert_eq!(printed, rendered, "{name} {chosen:?}: make manifests?");
        }
    }
}

/// What Weft leaves that is in no namespace.
fn left(cluster: &Cluster) -> String {
    let kinds = "crd,clusterrole,clusterrolebinding,mutatingwebhookconfiguration,namespace";
    let all = cluster.kubectl(&["get", kinds, "-o", "name"]);
    let own = all.lines().filter(|name| name.contains("weft"));
    own.collect::<Vec<_>>().join(" ")
}

#[test]
fn installed_and_uninstalled_without_helm() {
    let _alone = alone();
    let Some(cluster) = install::connect() else {
        return;
    };
    let weft = |arguments: &[&str]| with(&cluster.kubeconfig, arguments);
    let own = ["install", "--apply", "--registry", PREFIX, "--tag", TAG];
    ended(&mut weft(&own)).is(1, &["is a release of helm"]);
    install::uninstall(&cluster);
    for name in [
        "authorizationpolicies",
        "trafficpolicies",
        "workloadpolicies",
    ] {
        cluster.kubectl(&[
            "delete",
            "crd",
            &format!("{name}.weft.dev"),
            "--ignore-not-found",
        ]);
    }
    ended(&mut weft(&["check", "--pre"])).is(0, &["may be created and changed"]);

    ended(&mut weft(&own)).is(
        0,
        &[
            "applied  Deployment weft-controller",
            "Weft is in namespace weft-system",
        ],
    );
    // Again, as an upgrade with another choice.
    let one = [&own[..], &["--replicas", "1"]].concat();
    ended(&mut weft(&one)).is(0, &[]);
    eventually_within(PATIENCE, "all being well", || {
        weft(&["check", "-k"])
            .output()
            .expect("weft runs")
            .status
            .success()
            .then_some(())
    });
    let space = cluster.namespace("stays", &[INJECTED]);
    space.apply(&storm::manifests(storm::OnTerm::Exits));
    space.rolled_out("web");
    ended(&mut weft(&["uninstall", "--apply", "--everything"])).is(1, &["pods have sidecars"]);
    drop(space);
    let mut uninstall = weft(&["uninstall", "--apply", "--everything", "--force"]);
    ended(&mut uninstall).is(0, &["deleted  Namespace weft-system"]);
    eventually_within(PATIENCE, "nothing being left behind", || {
        left(&cluster).is_empty().then_some(())
    });
    install::install(&cluster, &[]);
}

//! What has become of routes and policies, as it is written into their statuses; and by whom.

use std::path::Path;

use serde_json::{Value, json};
use weft_tests::cluster::{Cluster, Namespace};
use weft_tests::install::Away;
use weft_tests::process::Signal;
use weft_tests::{PATIENCE, eventually, eventually_within};

use crate::controller::{Controller, install};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NAMESPACE}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: good, namespace: NAMESPACE}
spec:
  parentRefs:
  - {name: edge}
  - {group: '', kind: Service, name: web, port: 80}
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: lost, namespace: NAMESPACE}
spec:
  parentRefs: [{group: '', kind: Service, name: none}]
  rules: [{backendRefs: [{name: nobody, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: strange, namespace: NAMESPACE}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: loses, namespace: NAMESPACE}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: calls, namespace: NAMESPACE}
spec: {targetRefs: [{kind: Service, name: web}], connectTimeout: 1s}
---
apiVersion: weft.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: strict, namespace: NAMESPACE}
spec: {mtls: strict}
";

fn conditions(of: &Value) -> Vec<(String, String, String)> {
    let text = |of: &Value, name: &str| of[name].as_str().unwrap_or("").to_owned();
    let conditions = of["conditions"].as_array().into_iter().flatten();
    conditions
        .map(|of| (text(of, "type"), text(of, "status"), text(of, "reason")))
        .collect()
}

fn status(cluster: &Cluster, space: &Namespace, kind: &str, name: &str) -> Value {
    cluster.get(&["-n", &space.name, kind, name])["status"].clone()
}

/// Waits for these conditions of our entry about the first parent that is a Service.
fn becomes(
    cluster: &Cluster,
    space: &Namespace,
    (kind, name): (&str, &str),
    expected: &[(&str, &str, &str)],
) {
    eventually(&format!("the status of {kind} {name}"), || {
        let status = status(cluster, space, kind, name);
        let entry = match status["parents"].as_array() {
            Some(parents) => parents
                .iter()
                .find(|of| of["controllerName"] == "weft.dev/controller")?,
            None => &status,
        };
        let found = conditions(entry);
        let found: Vec<_> = found
            .iter()
            .map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str()))
            .collect();
        (found == expected).then_some(())
    });
}

const GOOD: [(&str, &str, &str); 2] = [
    ("Accepted", "True", "Accepted"),
    ("ResolvedRefs", "True", "ResolvedRefs"),
];

type Verdict = &'static [(&'static str, &'static str, &'static str)];

const VERDICTS: [(&str, &str, Verdict); 6] = [
    ("httproute", "good", &GOOD),
    (
        "httproute",
        "lost",
        &[
            ("Accepted", "False", "NoMatchingParent"),
            ("ResolvedRefs", "False", "BackendNotFound"),
        ],
    ),
    (
        "httproute",
        "strange",
        &[
            ("Accepted", "False", "UnsupportedValue"),
            ("ResolvedRefs", "True", "ResolvedRefs"),
        ],
    ),
    (
        "tcproute",
        "loses",
        &[
            ("Accepted", "False", "Conflicted"),
            ("ResolvedRefs", "True", "ResolvedRefs"),
        ],
    ),
    (
        "trafficpolicy",
        "calls",
        &[("Accepted", "True", "Accepted")],
    ),
    (
        "workloadpolicy",
        "strict",
        &[("Accepted", "True", "Accepted")],
    ),
];

/// Writes the parents of the good route, as another controller might.
fn write(space: &Namespace, parents: &Value) {
    let patch = json!({"status": {"parents": parents}}).to_string();
    let of = ["patch", "httproute", "good", "--subresource=status"];
    space.kubectl(&[&of[..], &["--type=merge", "-p", &patch]].concat());
}

#[test]
fn routes_and_policies_are_told_what_has_become_of_them() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _alone = super::alone();
    let _away = Away::send(&cluster);
    install(&cluster);
    let space = cluster.namespace("statuses", &[]);
    space.apply(SHOP);
    // Another controller's word about the same route.
    let theirs = json!({
        "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"},
        "controllerName": "example.com/other",
        "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    });
    write(&space, &json!([theirs]));
    let controller = Controller::start(&cluster.kubeconfig, &space.name, "one");
    controller.ready();
    for (kind, name, expected) in VERDICTS {
        becomes(&cluster, &space, (kind, name), expected);
    }
    let parents = status(&cluster, &space, "httproute", "good")["parents"].clone();
    assert_eq!(parents[0], theirs, "another's stays as it is");
    let route = cluster.get(&["-n", &space.name, "httproute", "good"]);
    assert_eq!(
        parents[1]["parentRef"], route["spec"]["parentRefs"][1],
        "verbatim"
    );
    assert_eq!(
        parents[1]["conditions"][0]["observedGeneration"],
        route["metadata"]["generation"]
    );
    assert_eq!(parents.as_array().map(Vec::len), Some(2));
    let targets = status(&cluster, &space, "trafficpolicy", "calls")["targets"].clone();
    assert_eq!(
        (&targets[0]["name"], &targets[0]["accepted"]),
        (&json!("web"), &json!(true))
    );
    // What it refers to comes, and it is told.
    space.apply("apiVersion: v1\nkind: Service\nmetadata: {name: none, namespace: NAMESPACE}\nspec: {ports: [{port: 80}]}\n");
    becomes(
        &cluster,
        &space,
        ("httproute", "lost"),
        &[
            ("Accepted", "True", "Accepted"),
            ("ResolvedRefs", "False", "BackendNotFound"),
        ],
    );
    // Whoever takes our word away gets it again.
    write(&space, &json!([theirs]));
    becomes(&cluster, &space, ("httproute", "good"), &GOOD);
    // Somebody has a condition of another type in our entry, and keeps it.
    let mut parents = status(&cluster, &space, "httproute", "good")["parents"].clone();
    let seen = json!({"type": "example.com/Seen", "status": "True", "reason": "Seen", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    parents[1]["conditions"] = json!([seen]);
    write(&space, &parents);
    let with_theirs = [&[("example.com/Seen", "True", "Seen")][..], &GOOD[..]].concat();
    becomes(&cluster, &space, ("httproute", "good"), &with_theirs);
    // A route that is about a Service no more keeps nothing of ours.
    let patch = json!({"spec": {"parentRefs": [{"name": "edge"}]}}).to_string();
    space.kubectl(&["patch", "httproute", "good", "--type=merge", "-p", &patch]);
    eventually("our entry gone, and theirs there", || {
        (status(&cluster, &space, "httproute", "good")["parents"] == json!([theirs])).then_some(())
    });
}

const MESHES: &str = "
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XMesh
metadata: {name: NAMESPACE-theirs, labels: {weft-test: NAMESPACE}}
spec: {controllerName: example.com/mesh}
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XMesh
metadata: {name: NAMESPACE-told, labels: {weft-test: NAMESPACE}}
spec: {controllerName: weft.dev/controller, parametersRef: {group: '', kind: ConfigMap, name: a, namespace: b}}
";

/// Meshes are in no namespace: goes with what a test has made.
struct Meshes<'a>(&'a Namespace);

impl Drop for Meshes<'_> {
    fn drop(&mut self) {
        let label = format!("weft-test={}", self.0.name);
        let arguments = ["delete", "xmesh", "--ignore-not-found", "-l", &label];
        let _gone = self.0.cluster.try_kubectl(&arguments);
        let own = ["delete", "xmesh", "--ignore-not-found", &self.0.name];
        let _gone = self.0.cluster.try_kubectl(&own);
    }
}

fn mesh(cluster: &Cluster, name: &str) -> Value {
    let found = cluster.try_kubectl(&["get", "xmesh", name, "-o", "json"]);
    serde_json::from_slice(&found.stdout).unwrap_or(Value::Null)
}

#[test]
fn the_mesh_s_own_object_is_made_and_says_what_is_supported() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _alone = super::alone();
    let _away = Away::send(&cluster);
    install(&cluster);
    let space = cluster.namespace("mesh", &[]);
    let _meshes = Meshes(&space);
    space.apply(MESHES);
    let (own, told, theirs) = (
        &space.name,
        format!("{}-told", space.name),
        format!("{}-theirs", space.name),
    );
    let untouched = mesh(&cluster, &theirs)["status"].clone();
    let controller = Controller::start_as(&cluster.kubeconfig, &space.name, "one", own);
    controller.ready();
    let accepted = |name: &str| {
        eventually(&format!("a verdict on {name}"), || {
            let mesh = mesh(&cluster, name);
            let conditions = conditions(&mesh["status"]);
            let is_new = conditions.iter().all(|(_, _, reason)| reason != "Pending");
            (is_new && !conditions.is_empty()).then_some((mesh, conditions))
        })
    };
    let triple = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    let (made, conditions) = accepted(own);
    // Nothing but whose it is (GEP-3949).
    assert_eq!(
        made["spec"],
        json!({"controllerName": "weft.dev/controller"})
    );
    assert_eq!(conditions, [triple("Accepted", "True", "Accepted")]);
    let seen = &made["status"]["conditions"][0];
    assert_eq!(seen["observedGeneration"], made["metadata"]["generation"]);
    let message = seen["message"].as_str().unwrap_or_default();
    assert!(message.contains("weft-controller"), "who: {message}");
    let features = made["status"]["supportedFeatures"].as_array().cloned();
    let features = features.unwrap_or_default();
    let names: Vec<&str> = features
        .iter()
        .filter_map(|of| of["name"].as_str())
        .collect();
    assert_eq!(names, weft_controller::api::mesh::FEATURES);
    let (refused, conditions) = accepted(&told);
    assert_eq!(
        conditions,
        [triple("Accepted", "False", "InvalidParameters")]
    );
    assert_eq!(refused["status"]["supportedFeatures"], json!([]));
    // Whoever writes over our word, or takes the object away, has it again.
    let patch = json!({"status": {"supportedFeatures": []}}).to_string();
    let of = ["patch", "xmesh", own, "--subresource=status"];
    cluster.kubectl(&[&of[..], &["--type=merge", "-p", &patch]].concat());
    eventually("the features again", || {
        let again = mesh(&cluster, own)["status"]["supportedFeatures"].clone();
        (again == json!(features)).then_some(())
    });
    cluster.kubectl(&["delete", "xmesh", own]);
    let (again, _) = accepted(own);
    assert_ne!(again["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(mesh(&cluster, &theirs)["status"], untouched, "another's");
}

fn holder(cluster: &Cluster, space: &Namespace) -> String {
    let lease = cluster.try_kubectl(&[
        "-n",
        &space.name,
        "get",
        "lease",
        "weft-controller",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ]);
    String::from_utf8_lossy(&lease.stdout).into_owned()
}

fn leads(controller: &Controller) -> bool {
    controller.metric("weft_controller_leader") == Some(1.0)
}

#[test]
fn one_of_several_writes_and_the_next_takes_over() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _alone = super::alone();
    let _away = Away::send(&cluster);
    install(&cluster);
    let space = cluster.namespace("leads", &[]);
    let start = |name: &str, kubeconfig: &Path| Controller::start(kubeconfig, &space.name, name);
    let mut first = start("first", &cluster.kubeconfig);
    first.ready();
    eventually("the first leads", || leads(&first).then_some(()));
    let second = start("second", &cluster.kubeconfig);
    second.ready();
    space.apply(SHOP);
    becomes(&cluster, &space, ("httproute", "good"), &GOOD);
    assert_eq!(holder(&cluster, &space), "first");
    let writes = "weft_controller_status_writes_total{result=\"written\"}";
    assert!(first.metric(writes).is_some_and(|count| count > 0.0));
    assert_eq!(second.metric(writes), Some(0.0), "only the holder writes");
    // Given up at a clean end: nobody waits for it to expire.
    first.program.signal(Signal::TERM);
    first.program.ended();
    assert_ne!(holder(&cluster, &space), "first", "it is given up");
    // It looks every five seconds.
    eventually_within(2 * PATIENCE, "the second leads", || {
        leads(&second).then_some(())
    });
    let patch = json!({"spec": {"rules": [{"backendRefs": [{"name": "nobody", "port": 80}]}]}});
    space.kubectl(&[
        "patch",
        "httproute",
        "good",
        "--type=merge",
        "-p",
        &patch.to_string(),
    ]);
    becomes(
        &cluster,
        &space,
        ("httproute", "good"),
        &[
            ("Accepted", "True", "Accepted"),
            ("ResolvedRefs", "False", "BackendNotFound"),
        ],
    );
    assert_eq!(holder(&cluster, &space), "second");
}

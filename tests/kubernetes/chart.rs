//! The chart: what it gives the controller is what the controller uses, and what it made is gone when
//! it is uninstalled.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use weft_tests::cluster::Cluster;
use weft_tests::install::{self, NAMESPACE};
use weft_tests::{eventually_within, root};

use super::{INJECTED, PATIENCE, alone};

const ACCOUNT: &str = "system:serviceaccount:weft-system:weft-controller";

/// One thing that may be done: verb, group, resource, name (empty: any).
type Right = (String, String, String, String);

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// What the chart's roles allow, one by one.
fn allowed(cluster: &Cluster) -> BTreeSet<Right> {
    let of_cluster = cluster.get(&["clusterrole", "weft-controller"]);
    let of_namespace = cluster.get(&["-n", NAMESPACE, "role", "weft-controller"]);
    let mut rights = BTreeSet::new();
    let rules = [of_cluster, of_namespace]
        .into_iter()
        .flat_map(|role| role["rules"].as_array().cloned().unwrap_or_default());
    for rule in rules {
        let mut names = texts(&rule["resourceNames"]);
        if names.is_empty() {
            names.push(String::new());
        }
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    for name in &names {
                        rights.insert((
                            verb.clone(),
                            group.clone(),
                            resource.clone(),
                            name.clone(),
                        ));
                    }
                }
            }
        }
    }
    rights
}

/// What the controller has asked of the API server, and what of it was forbidden since a time: when
/// it is uninstalled, its role goes first.
fn asked(cluster: &Cluster, since: &str) -> (BTreeSet<Right>, BTreeSet<Right>) {
    let log =
        fs::read_to_string(cluster.logs().join("audit")).expect("the API server keeps a record");
    let (mut all, mut forbidden) = (BTreeSet::new(), BTreeSet::new());
    for line in log.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let about = &event["objectRef"];
        if event["user"]["username"] != ACCOUNT || about.is_null() {
            continue;
        }
        let (resource, part) = (text(&about["resource"]), text(&about["subresource"]));
        let resource = if part.is_empty() {
            resource
        } else {
            format!("{resource}/{part}")
        };
        let right = (
            text(&event["verb"]),
            text(&about["apiGroup"]),
            resource,
            text(&about["name"]),
        );
        let is_forbidden = event["annotations"]["authorization.k8s.io/decision"] == "forbid";
        if is_forbidden && text(&event["requestReceivedTimestamp"]).as_str() > since {
            forbidden.insert(right.clone());
        }
        all.insert(right);
    }
    (all, forbidden)
}

/// The API server's time (RFC 3339): when it made something just now.
fn now(cluster: &Cluster) -> String {
    let namespace = cluster.namespace("now", &[]);
    text(&cluster.get(&["namespace", &namespace.name])["metadata"]["creationTimestamp"])
}

/// A route of each kind, and a policy of each.
const OBJECTS: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: NAMESPACE}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a, namespace: NAMESPACE}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: a, namespace: NAMESPACE}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: a, namespace: NAMESPACE}
spec: {hostnames: [a.example], parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: a, namespace: NAMESPACE}
spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: weft.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: a, namespace: NAMESPACE}
spec: {mtls: permissive}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: a, namespace: NAMESPACE}
spec: {targetRefs: [{kind: Service, name: web}], action: audit, rules: [{}]}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: a, namespace: NAMESPACE}
spec: {targetRefs: [{kind: Service, name: web}], balancer: {algorithm: random}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: NAMESPACE, labels: {app: web}}
spec: {containers: [{name: web, image: 'localhost/store:1', args: [serve]}]}
";

#[test]
fn the_controller_s_rights_are_those_it_uses() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _alone = alone();
    cluster.install_gateway_api("experimental");
    let since = now(&cluster);
    let namespace = cluster.namespace("rights", &[INJECTED]);
    namespace.apply(OBJECTS);
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    // Somebody takes the mesh's own object away, and the controller makes it again.
    cluster.kubectl(&["delete", "xmesh", "weft", "--ignore-not-found"]);
    // Somebody breaks the webhook's configuration, and the controller mends it.
    let patch = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    cluster.kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        "weft-injector",
        "--type=json",
        "-p",
        patch,
    ]);
    let allowed = allowed(&cluster);
    // A right without a name is used by whatever has one; and whoever watches lists, where an API
    // server does not stream its lists (before 1.34, by default).
    let unused = |asked: &BTreeSet<Right>| -> Vec<Right> {
        let is_used = |right: &Right| {
            let mut right = right.clone();
            if right.0 == "list" {
                "watch".clone_into(&mut right.0);
            }
            asked.contains(&right)
                || right.3.is_empty()
                    && asked
                        .iter()
                        .any(|of| (&of.0, &of.1, &of.2) == (&right.0, &right.1, &right.2))
        };
        allowed
            .iter()
            .filter(|right| !is_used(right))
            .cloned()
            .collect()
    };
    eventually_within(PATIENCE, "every right is used", || {
        let (asked, _) = asked(&cluster, &since);
        let unused = unused(&asked);
        if !unused.is_empty() {
            println!("unused: {unused:?}");
        }
        unused.is_empty().then_some(())
    });
    let (_, forbidden) = asked(&cluster, &since);
    assert!(forbidden.is_empty(), "forbidden: {forbidden:#?}");
}

/// Everything in the cluster that is Weft's.
fn remains(cluster: &Cluster) -> String {
    let kinds = "clusterrole,clusterrolebinding,mutatingwebhookconfiguration,validatingwebhookconfiguration,customresourcedefinition,namespace";
    let all = cluster.kubectl(&["get", kinds, "-o", "name"]);
    let ours = all.lines().filter(|name| name.contains("weft"));
    ours.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_was_installed_is_gone_when_it_is_uninstalled() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _alone = alone();
    assert!(!remains(&cluster).is_empty(), "it is installed");
    // Pods that have a sidecar go on without their controller.
    let namespace = cluster.namespace("left", &[INJECTED]);
    namespace.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: NAMESPACE}\nspec: {containers: [{name: web, image: 'localhost/store:1', args: [serve]}]}\n");
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    install::uninstall(&cluster);
    let remains = remains(&cluster);
    let ready = namespace.kubectl(&[
        "get",
        "pod",
        "web",
        "-o",
        "jsonpath={.status.containerStatuses[0].ready}",
    ]);
    // New pods start as if there had never been a mesh.
    namespace.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: NAMESPACE}\nspec: {containers: [{name: web, image: 'localhost/store:1', args: [serve]}]}\n");
    install::install(&cluster, &[]);
    assert_eq!(remains, "", "left behind");
    assert_eq!(ready, "true");
}

#[test]
fn helm_finds_nothing_to_complain_of_and_bad_values_are_refused() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let chart = root().join("charts/weft");
    let chart = chart.to_str().expect("a path of letters");
    cluster.helm(&["lint", "--strict", chart]);
    let template = |values: &[&str]| {
        let mut arguments = vec!["template", "weft", chart, "-n", NAMESPACE];
        for value in values {
            arguments.extend(["--set", value]);
        }
        cluster.try_helm(&arguments)
    };
    let all = template(&[
        "podMonitor.enabled=true",
        "dashboard.enabled=true",
        "controller.replicas=1",
        "webhook.failurePolicy=Ignore",
    ]);
    assert!(
        all.status.success(),
        "{}",
        String::from_utf8_lossy(&all.stderr)
    );
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    for word in [
        "kind: PodMonitor",
        "weft-dashboard",
        "failurePolicy: Ignore",
    ] {
        assert!(all.contains(word), "{word}");
    }
    assert!(
        !all.contains("PodDisruptionBudget"),
        "one replica has no budget"
    );
    for (value, field) in [
        ("controller.replica=3", "replica"),
        ("controller.replicas=0", "replicas"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("webhook.failurePolicy=Maybe", "failurePolicy"),
        ("sidecar.memoryLimit=lots", "memoryLimit"),
        ("trustDomain=Not A Domain", "trustDomain"),
    ] {
        let said = template(&[value]);
        let problem = String::from_utf8_lossy(&said.stderr);
        assert!(
            !said.status.success() && problem.contains(field),
            "{value}: {problem}"
        );
    }
}

/// The dashboard asks for what there is.
#[test]
fn the_dashboard_s_metrics_are_those_of_the_documentation() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("it is there");
    let documented = read("docs/operations.md") + &read("docs/mesh.md");
    let dashboard = read("charts/weft/dashboard.json");
    let is_name = |of: char| of.is_ascii_lowercase() || of == '_';
    let mut seen = 0;
    for (at, _) in dashboard.match_indices("weft_") {
        let name: String = dashboard[at..]
            .chars()
            .take_while(|of| is_name(*of))
            .collect();
        let name = name.trim_end_matches("_bucket");
        assert!(
            documented.contains(&format!("`{name}`")),
            "{name} is no metric"
        );
        seen += 1;
    }
    assert!(seen > 15, "{seen} metrics");
}

//! One table of Kubernetes' rules, read from a directory of manifests and from a real API server:
//! the same objects give the same mesh.

#[path = "source/table.rs"]
mod table;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_controller::api::{Key, Spec};
use weft_controller::index::Index;
use weft_controller::source::{Source, kubernetes};
use weft_tests::cluster::{Cluster, Namespace};

use table::rows;

const PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "NAMESPACE";
/// Nodes that no kubelet runs, in zones `a` and `b`.
const NODES: [(&str, &str); 2] = [("source-test-a", "a"), ("source-test-b", "b")];

/// The mesh as lines: services' ports with their endpoints, then workloads.
fn mesh(index: &Index, namespace: &str) -> Vec<String> {
    let here = |kind: &'static str| {
        let objects = index.objects().iter();
        objects.filter(move |(key, _)| (key.kind, key.namespace.as_str()) == (kind, namespace))
    };
    let names: BTreeMap<&str, &str> = here("Pod")
        .filter_map(|(key, object)| match &object.spec {
            Spec::Pod(pod) => Some((pod.uid.as_str(), key.name.as_str())),
            _ => None,
        })
        .collect();
    let mut lines = Vec::new();
    for (key, object) in here("Service") {
        let Spec::Service(service) = &object.spec else {
            continue;
        };
        for port in &service.ports {
            lines.extend(port_lines(index, key, port.port, &names));
            if service.addresses.is_empty() && !service.external && service.headless {
                lines.push(format!("{}:{} has no address", key.name, port.port));
            }
        }
    }
    for (key, object) in here("Service") {
        if let Spec::Service(service) = &object.spec
            && service.addresses.iter().any(IpAddr::is_ipv4)
            && service.addresses.iter().any(IpAddr::is_ipv6)
        {
            lines.push(format!("{} has addresses of both families", key.name));
        }
    }
    let mut workloads: Vec<String> = names
        .iter()
        .filter_map(|(uid, name)| {
            let workload = index.workload(uid)?;
            let ports = workload.ports.iter().map(|of| format!(" {}", of.port));
            let ports: String = ports.collect();
            Some(format!("{name} in zone {}, ports{ports}", workload.zone))
        })
        .collect();
    workloads.sort();
    lines.extend(workloads);
    lines
}

fn port_lines(index: &Index, key: &Key, port: u16, names: &BTreeMap<&str, &str>) -> Option<String> {
    let name = format!("{}/{}:{port}", key.namespace, key.name);
    let Some(endpoints) = index.endpoints(&name) else {
        return Some(format!("{}:{port} is nothing", key.name));
    };
    let service = index.service(&name)?;
    let balancer = service.balancer.as_ref();
    let anywhere = balancer.is_some_and(|of| of.zone_healthy_percent == Some(0));
    let mut all: Vec<String> = endpoints
        .endpoints
        .iter()
        .map(|of| {
            let pod = names.get(of.workload.as_str()).map(|pod| format!(" {pod}"));
            let zone = match of.zone.as_str() {
                "" => String::new(),
                zone => format!(" zone {zone}"),
            };
            format!("{}{}{zone}", of.address, pod.unwrap_or_default())
        })
        .collect();
    all.sort();
    let place = if anywhere { "anywhere" } else { "nearest" };
    let line = format!("{}:{port} {place} -> {}", key.name, all.join("; "));
    Some(line.trim_end().to_owned())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn node(name: &str, zone: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "spec": {"unschedulable": true},
    })
}

#[test]
fn a_directory_of_them_makes_this_mesh() {
    for row in rows() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut objects: Vec<Value> = NODES.iter().map(|(name, zone)| node(name, zone)).collect();
        for mut object in row.objects {
            object["metadata"]["namespace"] = json!(NAMESPACE);
            object["metadata"]["uid"] = object["metadata"]["name"].clone();
            objects.push(object);
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(folder.path().join("all.json"), list.to_string()).expect("written");
        let mut index = Index::new("td");
        let update = runtime().block_on(async { Source::directory(folder.path()).next().await });
        assert!(
            update.errors.named.is_empty(),
            "{}: {:?}",
            row.name,
            update.errors
        );
        index.apply(update.changes);
        assert_eq!(mesh(&index, NAMESPACE), row.expected, "{}", row.name);
    }
}

fn apply(cluster: &Cluster, items: Vec<Value>) {
    if items.is_empty() {
        return;
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    // The namespace's service account comes a moment after it.
    let deadline = Instant::now() + PATIENCE / 4;
    loop {
        let output = cluster.try_apply(&list.to_string());
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(Instant::now() < deadline, "{said}");
    }
}

/// Puts a row's objects there, as the parts of a cluster would.
fn put(cluster: &Cluster, namespace: &Namespace, objects: &[Value]) {
    let of = |value: &Value| {
        let mut value = value.clone();
        value["metadata"]["namespace"] = json!(namespace.name);
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.remove("deletionTimestamp");
        }
        value
    };
    let is_pod = |value: &&Value| value["kind"] == "Pod";
    apply(
        cluster,
        objects
            .iter()
            .filter(|of| !is_pod(of) && of["kind"] != "EndpointSlice")
            .map(of)
            .collect(),
    );
    apply(cluster, objects.iter().filter(is_pod).map(of).collect());
    let mut uids = BTreeMap::new();
    for pod in objects.iter().filter(is_pod) {
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let status = json!({"status": pod["status"]}).to_string();
        let patch = [
            "patch",
            "pod",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ];
        namespace.kubectl(&patch);
        let uid = namespace.kubectl(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"]);
        uids.insert(name, uid);
        if pod["metadata"].get("deletionTimestamp").is_some() {
            namespace.kubectl(&["delete", "pod", name, "--wait=false", "--grace-period=300"]);
        }
    }
    let slices = objects.iter().filter(|of| of["kind"] == "EndpointSlice");
    let slices = slices.map(|slice| {
        let mut slice = of(slice);
        for endpoint in slice["endpoints"].as_array_mut().into_iter().flatten() {
            if let Some(uid) = endpoint["targetRef"]["name"]
                .as_str()
                .and_then(|of| uids.get(of))
            {
                endpoint["targetRef"]["uid"] = json!(uid);
                endpoint["targetRef"]["namespace"] = json!(namespace.name);
            } else if let Some(endpoint) = endpoint.as_object_mut() {
                endpoint.remove("targetRef");
            }
        }
        slice
    });
    apply(cluster, slices.collect());
}

#[test]
fn an_api_server_with_them_makes_the_same_mesh() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _shared = super::shared();
    let rows = rows();
    for (name, zone) in NODES {
        cluster.apply(&node(name, zone).to_string());
    }
    let namespaces: Vec<Namespace> = rows
        .iter()
        .map(|row| {
            let namespace = cluster.namespace("source", &[]);
            put(&cluster, &namespace, &row.objects);
            namespace
        })
        .collect();
    let wrong = runtime().block_on(async {
        let client = kubernetes::client().await.expect("a kubeconfig");
        let (_nobody, behind) = tokio::sync::watch::channel(Default::default());
        let mut source = Source::kubernetes(&client, &behind);
        let mut index = Index::new("td");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let update = tokio::time::timeout(PATIENCE, source.next()).await;
            index.apply(update.map(|update| update.changes).unwrap_or_default());
            let wrong: Vec<_> = rows
                .iter()
                .zip(&namespaces)
                .map(|(row, namespace)| (row, mesh(&index, &namespace.name)))
                .filter(|(row, mesh)| mesh != row.expected)
                .map(|(row, mesh)| format!("{}: {mesh:#?}, not {:#?}", row.name, row.expected))
                .collect();
            if wrong.is_empty() || Instant::now() > deadline {
                return wrong;
            }
        }
    });
    for (name, _) in NODES {
        cluster.kubectl(&["delete", "node", name, "--wait=false"]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Pods with a sidecar on a real node: what they are made of, in which order they start, what may
//! reach them, and how they end.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use weft_tests::cluster::Namespace;
use weft_tests::{eventually_within, install, storm};

use super::{INJECTED, PATIENCE, shared};

/// A Deployment's one pod.
fn pod(namespace: &Namespace, app: &str) -> Value {
    let list = namespace.kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", "json"]);
    let list: Value = serde_json::from_str(&list).expect("kubectl prints JSON");
    list["items"][0].clone()
}

fn container<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    let all = pod["spec"][list].as_array().expect("there are containers");
    all.iter()
        .find(|of| of["name"] == name)
        .unwrap_or_else(|| panic!("{list} has no {name}: {pod:#}"))
}

/// What a pod answers to a plain request from the node; none: it was refused.
fn plain(address: &str, port: u16, request: &str) -> Option<String> {
    let address: SocketAddr = format!("{address}:{port}").parse().expect("an address");
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    connection
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("it is a socket");
    let head = format!("{request} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    connection.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    let read = connection.read_to_string(&mut answer);
    (read.is_ok() && !answer.is_empty())
        .then(|| answer.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn a_sidecar_has_no_more_rights_than_it_needs_and_starts_first() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _shared = shared();
    let namespace = cluster.namespace("rights", &[INJECTED]);
    namespace.apply(&storm::manifests(storm::OnTerm::Exits));
    namespace.rolled_out("chat");
    let pod = pod(&namespace, "chat");
    let sidecar = container(&pod, "initContainers", "weft-proxy");
    assert_eq!(sidecar["restartPolicy"], "Always");
    let rights = &sidecar["securityContext"];
    assert_eq!(rights["runAsUser"], 1337);
    assert_eq!(rights["runAsNonRoot"], true);
    assert_eq!(rights["readOnlyRootFilesystem"], true);
    assert_eq!(rights["allowPrivilegeEscalation"], false);
    assert_eq!(rights["capabilities"], serde_json::json!({"drop": ["ALL"]}));
    assert_eq!(rights["seccompProfile"]["type"], "RuntimeDefault");
    let capture = container(&pod, "initContainers", "weft-capture");
    assert_eq!(
        capture["securityContext"]["capabilities"]["add"],
        serde_json::json!(["NET_ADMIN"])
    );
    let began = |list: &str, name: &str| {
        let all = pod["status"][list].as_array().expect("there are statuses");
        let of = all
            .iter()
            .find(|of| of["name"] == name)
            .expect("it has one");
        of["state"]["running"]["startedAt"]
            .as_str()
            .expect("it runs")
            .to_owned()
    };
    assert!(began("initContainerStatuses", "weft-proxy") <= began("containerStatuses", "chat"));
    for of in pod["status"]["initContainerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
    {
        assert_eq!(of["restartCount"], 0, "{of:#}");
    }
}

#[test]
fn strict_mode_lets_the_mesh_and_the_kubelet_s_probes_in_and_nobody_else() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _shared = shared();
    let namespace = cluster.namespace("strict", &[INJECTED]);
    namespace.apply("apiVersion: weft.dev/v1alpha1\nkind: WorkloadPolicy\nmetadata: {name: strict, namespace: NAMESPACE}\nspec: {mtls: strict}\n");
    namespace.apply(PROBED);
    namespace.rolled_out("web");
    let pod = pod(&namespace, "web");
    let address = pod["status"]["podIP"].as_str().expect("it has an address");
    let good = plain(address, 8080, "GET /healthz");
    assert_eq!(good.as_deref(), Some("HTTP/1.1 200 OK"), "the probed path");
    for (port, request) in [
        (8080, "GET /"),
        (8080, "POST /healthz"),
        (8080, "GET /healthz/../"),
        (8080, "GET /healthz2"),
        (9090, "GET /healthz"),
        (14006, "GET /healthz"),
    ] {
        let said = plain(address, port, request);
        assert!(
            said.as_ref().is_none_or(|said| !said.contains("200")),
            "{port} {request}: {said:?}"
        );
    }
    // The mesh gets in, by HTTP/1.1, HTTP/2 and gRPC.
    namespace.apply(&storm::customer(3).replace("chat'", "h1-get'"));
    let lanes = storm::lanes(&namespace);
    let losses = storm::losses(&lanes);
    assert!(losses.is_empty() && lanes.len() == 5, "{losses}");
    // Beyond loopback the admin server tells what probes and Prometheus need.
    assert_eq!(
        plain(address, 14020, "GET /ready").as_deref(),
        Some("HTTP/1.1 200 OK")
    );
    assert_eq!(
        plain(address, 14020, "GET /metrics").as_deref(),
        Some("HTTP/1.1 200 OK")
    );
    for path in [
        "/config",
        "/drain",
        "/drain/0123456789abcdef0123456789abcdef",
        "/mesh",
    ] {
        for method in ["GET", "POST"] {
            let said = plain(address, 14020, &format!("{method} {path}"));
            assert_eq!(
                said.as_deref(),
                Some("HTTP/1.1 404 Not Found"),
                "{method} {path}"
            );
        }
    }
}

/// A probe of each kind.
const PROBED: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: localhost/store:1
        args: [serve, --grpc=:9090]
        ports: [{name: http, containerPort: 8080}, {name: grpc, containerPort: 9090}]
        startupProbe: {tcpSocket: {port: http}, periodSeconds: 1}
        readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
        livenessProbe: {grpc: {port: 9090}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NAMESPACE}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}, {name: grpc, port: 9090, targetPort: grpc}]
";

/// A sidecar that answered for it would make these ready.
#[test]
fn a_probe_tells_of_the_application_and_not_of_the_sidecar() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _shared = shared();
    let namespace = cluster.namespace("probes", &[INJECTED]);
    for (name, probe) in [
        ("tcp", "{tcpSocket: {port: 9999}, periodSeconds: 1}"),
        ("grpc", "{grpc: {port: 9090}, periodSeconds: 1}"),
        (
            "http",
            "{httpGet: {path: /healthz, port: 9999}, periodSeconds: 1}",
        ),
    ] {
        namespace.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec: {{containers: [{{name: web, image: localhost/store:1, args: [serve], readinessProbe: {probe}}}]}}\n"
        ));
    }
    for name in ["tcp", "grpc", "http"] {
        eventually_within(PATIENCE, &format!("the probe of {name} fails"), || {
            let events = namespace.kubectl(&[
                "get",
                "events",
                "--field-selector",
                &format!("involvedObject.name={name},reason=Unhealthy"),
                "-o",
                "jsonpath={.items[*].message}",
            ]);
            events.contains("Readiness probe").then_some(())
        });
        let ready = namespace.kubectl(&[
            "get",
            "pod",
            name,
            "-o",
            "jsonpath={.status.containerStatuses[0].ready}",
        ]);
        assert_eq!(ready, "false", "{name}");
    }
}

/// An init container of the user's has the mesh's network already, and a Job ends though its
/// sidecar would go on.
#[test]
fn init_containers_have_the_network_and_jobs_end() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _shared = shared();
    let namespace = cluster.namespace("order", &[INJECTED]);
    namespace.apply("apiVersion: weft.dev/v1alpha1\nkind: WorkloadPolicy\nmetadata: {name: strict, namespace: NAMESPACE}\nspec: {mtls: strict}\n");
    namespace.apply(PROBED);
    namespace.rolled_out("web");
    namespace.apply("apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: NAMESPACE}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - {name: first, image: 'localhost/store:1', args: [load, --strict, --seconds=1, --rate=20, --lanes=h1-post, '--url=http://web/']}
      containers:
      - {name: then, image: 'localhost/store:1', args: [load, --strict, --seconds=1, --rate=20, --lanes=h2-post, '--url=http://web/']}
");
    namespace.kubectl(&[
        "wait",
        "--for=condition=Complete",
        "job/once",
        "--timeout=60s",
    ]);
    let pod = namespace.kubectl(&[
        "get",
        "pods",
        "-l",
        "job-name=once",
        "-o",
        "jsonpath={.items[0].status.phase}",
    ]);
    assert_eq!(pod, "Succeeded");
}

#[test]
fn whoever_wants_to_be_left_alone_is_and_bad_annotations_are_refused() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _shared = shared();
    let namespace = cluster.namespace("alone", &[INJECTED]);
    let pod = |name: &str, metadata: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {}{metadata}}}\nspec: {{{spec}containers: [{{name: web, image: localhost/store:1, args: [serve]}}]}}\n",
            namespace.name
        )
    };
    cluster.apply(&pod("out", ", labels: {weft.dev/inject: disabled}", ""));
    cluster.apply(&pod("host", "", "hostNetwork: true, "));
    for name in ["out", "host"] {
        let containers =
            namespace.kubectl(&["get", "pod", name, "-o", "jsonpath={.spec.initContainers}"]);
        assert!(containers.is_empty(), "{name}: {containers}");
    }
    for (annotation, words) in [
        ("sidecar.weft.dev/log-level: loud", "log-level"),
        ("sidecar.weft.dev/memory-limt: 1Gi", "memory-limit"),
        (
            "sidecar.weft.dev/skip-inbound-ports: '70000'",
            "skip-inbound-ports",
        ),
    ] {
        let said = cluster.try_apply(&pod("bad", &format!(", annotations: {{{annotation}}}"), ""));
        let problem = String::from_utf8_lossy(&said.stderr);
        assert!(
            !said.status.success() && problem.contains(words),
            "{annotation}: {problem}"
        );
    }
    // Outside of labelled namespaces a pod may ask for it itself.
    let elsewhere = cluster.namespace("elsewhere", &[]);
    let asks = pod("asks", ", labels: {weft.dev/inject: enabled}", "");
    cluster.apply(&asks.replace(&namespace.name, &elsewhere.name));
    let containers = elsewhere.kubectl(&[
        "get",
        "pod",
        "asks",
        "-o",
        "jsonpath={.spec.initContainers[*].name}",
    ]);
    assert_eq!(containers, "weft-capture weft-proxy");
}

//! The storm: a Deployment that is rolled out twice and scaled 3 → 6 → 2 → 3 while a customer sends
//! by every protocol. The application is `tests/cluster/store`; what is lost, its customer counts.

use std::fmt::{self, Write as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Namespace};

/// Requests a second of each lane; there are four, beside the WebSocket.
const RATE: u32 = 50;
/// How long the customer sends: the storm takes about so long.
const SECONDS: u32 = 75;
const LANES: &str = "h1-post,h1-get,h2-post,grpc,chat";
/// Between two acts.
const REST: Duration = Duration::from_secs(3);

/// What an application does when it is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTerm {
    /// It exits at once, whatever runs.
    Exits,
    /// It finishes what runs, then exits.
    Finishes,
}

impl fmt::Display for OnTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exits => "exits at once",
            Self::Finishes => "finishes, then exits",
        })
    }
}

/// What became of the requests of one protocol.
#[derive(Clone, Debug)]
pub struct Lane {
    pub name: String,
    pub sent: u64,
    pub lost: u64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// Some of the losses, in words.
    pub said: Vec<String>,
}

impl Lane {
    /// Of what a customer counted.
    #[must_use]
    pub fn read(of: &Value) -> Self {
        let number = |name: &str| of[name].as_u64().unwrap_or_default();
        let time = |name: &str| of[name].as_f64().unwrap_or_default();
        let said = of["said"].as_array().into_iter().flatten();
        Self {
            name: of["lane"].as_str().unwrap_or_default().to_owned(),
            sent: number("sent"),
            lost: number("lost"),
            p50: time("p50_ms"),
            p99: time("p99_ms"),
            max: time("max_ms"),
            said: said.filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }
}

/// The table that a storm prints.
#[must_use]
pub fn table(rows: &[(OnTerm, Lane)]) -> String {
    let mut text = String::from(
        "| the application on SIGTERM | protocol | sent | lost | p50 ms | p99 ms | max ms |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for (kind, lane) in rows {
        let Lane {
            name,
            sent,
            lost,
            p50,
            p99,
            max,
            ..
        } = lane;
        let _ = writeln!(
            text,
            "| {kind} | {name} | {sent} | {lost} | {p50:.1} | {p99:.1} | {max:.1} |"
        );
    }
    text
}

/// A service's Deployment and Service, and the one that the WebSocket is held to.
#[must_use]
pub fn manifests(kind: OnTerm) -> String {
    let finish = match kind {
        OnTerm::Exits => "false",
        OnTerm::Finishes => "true",
    };
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: NAMESPACE}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: web
        image: localhost/store:1
        args: [serve, --grpc=:9090, --finish={finish}]
        ports: [{{name: http, containerPort: 8080}}, {{name: grpc, containerPort: 9090}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: NAMESPACE}}
spec:
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http}}, {{name: grpc, port: 9090, targetPort: grpc}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: chat, namespace: NAMESPACE}}
spec:
  selector: {{matchLabels: {{app: chat}}}}
  template:
    metadata: {{labels: {{app: chat}}}}
    spec:
      containers:
      - name: chat
        image: localhost/store:1
        args: [serve, --finish={finish}]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: chat, namespace: NAMESPACE}}
spec:
  selector: {{app: chat}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"
    )
}

/// One customer; its Job ends by itself, and what became of its requests is its log.
#[must_use]
pub fn customer(seconds: u32) -> String {
    format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: customer, namespace: NAMESPACE}}
spec:
  backoffLimit: 0
  template:
    metadata: {{labels: {{app: customer}}}}
    spec:
      restartPolicy: Never
      containers:
      - name: customer
        image: localhost/store:1
        args: [load, --seconds={seconds}, --rate={RATE}, '--lanes={LANES}', '--url=http://web/', '--grpc=dns:///web:9090', '--chat=ws://chat/chat']
"
    )
}

/// Makes the storm in a namespace; what its customer counted.
///
/// # Panics
/// If a rollout does not end, or the customer says nothing.
#[must_use]
pub fn blow(namespace: &Namespace, kind: OnTerm) -> Vec<Lane> {
    namespace.apply(&manifests(kind));
    namespace.rolled_out("web");
    namespace.rolled_out("chat");
    namespace.apply(&customer(SECONDS));
    namespace.pod_ready("app=customer");
    let begun = Instant::now();
    sleep(REST);
    for _ in 0..2 {
        namespace.kubectl(&["rollout", "restart", "deployment/web"]);
        namespace.rolled_out("web");
    }
    for replicas in ["6", "2", "3"] {
        namespace.kubectl(&["scale", "deployment/web", "--replicas", replicas]);
        namespace.rolled_out("web");
        sleep(REST);
    }
    println!("the storm took {:?}", begun.elapsed());
    lanes(namespace)
}

/// Waits for the customer's end; what it counted.
///
/// # Panics
/// If it says nothing within some minutes.
#[must_use]
pub fn lanes(namespace: &Namespace) -> Vec<Lane> {
    namespace.kubectl(&[
        "wait",
        "--for=condition=Complete",
        "job/customer",
        "--timeout=180s",
    ]);
    let log = namespace.kubectl(&["logs", "job/customer", "-c", "customer"]);
    let last = log.lines().find(|line| line.starts_with('['));
    let last = last.unwrap_or_else(|| panic!("the customer counted nothing: {log}"));
    let counted: Value = serde_json::from_str(last).expect("it counts in JSON");
    counted
        .as_array()
        .into_iter()
        .flatten()
        .map(Lane::read)
        .collect()
}

/// The lanes with a loss, in words.
#[must_use]
pub fn losses(lanes: &[Lane]) -> String {
    let mut text = String::new();
    for lane in lanes.iter().filter(|lane| lane.lost > 0) {
        let _ = writeln!(
            text,
            "{}: {} of {}: {:#?}",
            lane.name, lane.lost, lane.sent, lane.said
        );
    }
    text
}

/// The image of the application is on the node.
pub fn prepare(cluster: &Cluster) {
    cluster.load(&cluster.image("store"));
}

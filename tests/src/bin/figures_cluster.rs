//! `make figures-cluster`: how long a change of an EndpointSlice takes from the API server to the
//! last of 50 sidecars in a real cluster, and what memory these take. Figures, not a test.
//!
//! From before kubectl is started (its own some 60 ms are in the figure) until every controller has taken it up and every
//! sidecar has acknowledged it, by the controllers' own metrics.

use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use weft_tests::cluster::Cluster;
use weft_tests::install::{self, NAMESPACE};
use weft_tests::{eventually_within, metrics, root};

const SIDECARS: usize = 50;
const CHANGES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at the controllers.
const STEP: Duration = Duration::from_millis(2);
const ADMIN: u16 = 14021;

/// Every pod asks for the service once a second, so every sidecar uses it.
const MANIFESTS: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: NAMESPACE}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web, namespace: NAMESPACE, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.198.0.1]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: users, namespace: NAMESPACE}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: users}}
  template:
    metadata: {labels: {app: users}}
    spec:
      containers:
      - {name: user, image: 'localhost/store:1', args: [load, --rate=1, --lanes=h1-get, '--url=http://web/']}
";

fn main() -> ExitCode {
    let Some(cluster) = install::connect() else {
        return ExitCode::from(2);
    };
    let namespace = cluster.namespace("figures", &[("weft.dev/inject", "enabled")]);
    namespace.apply(&MANIFESTS.replace("REPLICAS", &SIDECARS.to_string()));
    namespace.rolled_out("users");
    let controllers = controllers(&cluster);
    eventually_within(PATIENCE, "every sidecar uses the service", || {
        let proxies: f64 = controllers
            .iter()
            .map(|of| figure(*of, "weft_controller_proxies"))
            .sum();
        (proxies >= SIDECARS as f64 && is_settled(&controllers)).then_some(())
    });
    let mut took: Vec<Duration> = (0..CHANGES)
        .map(|number| change(&cluster, &namespace.name, &controllers, number))
        .collect();
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!(
        "change of an EndpointSlice to the last of {SIDECARS} sidecars: p50 {:.0} ms, p99 {:.0} ms, most {:.0} ms ({CHANGES} changes)",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    println!("a sidecar's memory: {}", install::sidecar_memory());
    let written = serde_json::json!({"sidecars": SIDECARS, "changes": CHANGES, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)});
    let file = root().join("target/figures-cluster.json");
    fs::write(&file, written.to_string()).expect("it can be written");
    ExitCode::SUCCESS
}

/// One change, from before it is sent until everybody has it.
fn change(
    cluster: &Cluster,
    namespace: &str,
    controllers: &[SocketAddr],
    number: usize,
) -> Duration {
    let before: Vec<f64> = controllers
        .iter()
        .map(|of| figure(*of, "weft_controller_revision"))
        .collect();
    let patch = serde_json::json!({"endpoints": [{"addresses": [format!("10.199.{}.{}", number / 250, number % 250 + 1)]}]});
    let arguments = [
        "-n",
        namespace,
        "patch",
        "endpointslice",
        "web",
        "--type=merge",
        "-p",
        &patch.to_string(),
    ];
    let mut command = cluster.kubectl_command(&arguments);
    let begun = Instant::now();
    let output = command.output().expect("kubectl runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    loop {
        let is_taken = controllers
            .iter()
            .zip(&before)
            .all(|(of, before)| figure(*of, "weft_controller_revision") > *before);
        if is_taken && is_settled(controllers) {
            return begun.elapsed();
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "change {number} has not reached everybody"
        );
        std::thread::sleep(STEP);
    }
}

fn is_settled(controllers: &[SocketAddr]) -> bool {
    let mut behind = controllers
        .iter()
        .map(|of| figure(*of, "weft_controller_proxies_behind"));
    behind.all(|behind| behind == 0.0)
}

fn controllers(cluster: &Cluster) -> Vec<SocketAddr> {
    let selector = "app.kubernetes.io/component=controller";
    let pods = cluster.get(&["-n", NAMESPACE, "pods", "-l", selector]);
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    pods.iter()
        .filter_map(|pod| pod["status"]["podIP"].as_str())
        .map(|address| format!("{address}:{ADMIN}").parse().expect("an address"))
        .collect()
}

fn figure(address: SocketAddr, name: &str) -> f64 {
    metrics::figure(address, name).unwrap_or(0.0)
}

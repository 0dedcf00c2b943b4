//! What is done to those who control: the controller, its configuration, its root, and the caller's
//! own sidecar.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::chaos::stage::{Stage, WEB};
use crate::eventually;
use crate::mesh::Sidecar;
use crate::process::Signal;
use crate::root_change::RootChange;

const CHURN_EACH: Duration = Duration::from_millis(100);

pub fn controller_killed(stage: &mut Stage) {
    stage.mesh.controller.kill();
    stage.go_on();
    stage.go_on();
    stage.mesh.restart_controller();
    stage.reconnected();
    stage.go_on();
    // It is heard again.
    stage.add(WEB);
    stage.publish();
    stage.all_serve();
}

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: churn-SERVICE, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: SERVICE, port: 80}]
  rules:
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-round, value: 'ROUND'}]}}]
    timeouts: {request: TIMEOUT}
    backendRefs: [{name: SERVICE, port: 80}]
";

const BYTES: &str = "\
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: churn-SERVICE, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: SERVICE, port: 80}]
  rules:
  - backendRefs: [{name: SERVICE, port: 80, weight: 1ROUND}]
";

pub fn config_churn(stage: &mut Stage) {
    let first = stage.mesh.status().revision;
    let until = Instant::now() + stage.extent.churn;
    let mut rounds = 0_u64;
    while Instant::now() < until {
        let next = Instant::now() + CHURN_EACH;
        // One of five is wrong; the last good one stays in force.
        let timeout = if rounds % 5 == 4 { "never" } else { "9s" };
        let routes = stage.lanes.iter().map(|lane| {
            let route = if lane.protocol.is_opaque() {
                BYTES
            } else {
                ROUTE
            };
            let route = route.replace("ROUND", &rounds.to_string());
            route
                .replace("TIMEOUT", timeout)
                .replace("SERVICE", lane.protocol.name())
        });
        let routes: Vec<String> = routes.collect();
        stage.mesh.apply("churn", &routes.join("---\n"));
        let torn = rounds % 7 == 3;
        stage.mesh.apply("torn", if torn { "kind: [" } else { "" });
        // A live replica is left out, another each time.
        stage.replicas.rotate_left(1);
        stage.write_without_last();
        if torn {
            // It is read, not passed over: a round may be shorter than a look at the files takes.
            eventually("the torn manifest refused", || {
                let errors = stage.mesh.status().errors;
                let refused = errors.iter().any(|of| of.file.contains("torn"));
                refused.then_some(())
            });
        }
        rounds += 1;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let revisions = stage.mesh.status().revision - first;
    assert!(
        rounds > 3 && revisions >= rounds / 2,
        "{revisions} revisions in {rounds} rounds"
    );
    for name in ["churn", "torn"] {
        stage.mesh.remove(name);
    }
    stage.publish();
    stage.go_on();
}

pub fn root_changed(stage: &mut Stage) {
    let change = RootChange::begin(&stage.mesh);
    change.trust_both();
    stage.go_on();
    let replicas = stage.replicas.iter().chain([&stage.keeper]);
    let sidecars = replicas
        .map(|replica| &replica.sidecar)
        .chain([&stage.client]);
    change.sign_with_new(&sidecars.collect::<Vec<&Sidecar>>());
    stage.go_on();
    change.drop_old();
    stage.go_on();
}

pub fn caller_upgraded(stage: &mut Stage) {
    stage.carry_retries();
    stage.client.proxy.signal(Signal::USR2);
    eventually("the old process draining", || {
        let log = stage.client.proxy.folder.path().join("weft-proxy.log");
        let log = fs::read_to_string(log).ok()?;
        log.contains("handed_over=true").then_some(())
    });
    stage.go_on();
    stage.go_on();
    // The next process is the one that answers by now.
    eventually("the new process serving", || {
        let metrics = stage.client.proxy.metrics();
        (metrics.sum("weft_requests_total", &[]) > 0.0).then_some(())
    });
}

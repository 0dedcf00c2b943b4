//! Replicas that die, hang, or are not there yet.

use std::thread;
use std::time::{Duration, Instant};

use crate::chaos::protocol::Protocol;
use crate::chaos::stage::{Stage, WEB};
use crate::eventually;
use crate::process::Signal;

/// How long what hangs does so.
const HANGS: Duration = Duration::from_secs(2);

pub fn application_killed(stage: &mut Stage) {
    let mut victim = stage.take(0);
    victim.application.kill();
    stage.go_on();
    stage.go_on();
    // Its container is started again.
    stage.restart_application(&mut victim);
    stage.replicas.push(victim);
    stage.all_serve_again();
}

pub fn sidecar_killed(stage: &mut Stage) {
    let mut victim = stage.take(0);
    victim.sidecar.proxy.program.kill();
    stage.go_on();
    stage.go_on();
    victim.sidecar.proxy.restart();
    stage.replicas.push(victim);
    stage.all_serve_again();
}

pub fn replica_killed(stage: &mut Stage) {
    let mut victim = stage.take(0);
    victim.kill();
    stage.go_on();
    stage.go_on();
    stage.left.push(victim);
    stage.publish();
    stage.go_on();
}

pub fn address_reused(stage: &mut Stage) {
    let mut victim = stage.take(0);
    victim.kill();
    let stranger = stage.replica_on(victim.sidecar.address, "other");
    // The callers do come: what is not meant for the stranger is refused before it is read.
    eventually("callers coming to the stranger", || {
        let labels = [("direction", "inbound"), ("result", "not_ours")];
        let metrics = stranger.sidecar.proxy.metrics();
        (metrics.sum("weft_mesh_handshakes_total", &labels) > 0.0).then_some(())
    });
    stage.go_on();
    stage.go_on();
    stage.left.extend([victim, stranger]);
    stage.publish();
    stage.go_on();
}

pub fn application_refuses(stage: &mut Stage) {
    stage.add(WEB);
    let Some(mut early) = stage.replicas.pop() else {
        return;
    };
    early.application.kill();
    stage.replicas.push(early);
    stage.publish();
    eventually("callers coming too early", || {
        let early = stage.replicas.last()?;
        let labels = [("direction", "inbound"), ("result", "ok")];
        let metrics = early.sidecar.proxy.metrics();
        (metrics.sum("weft_mesh_handshakes_total", &labels) > 0.0).then_some(())
    });
    stage.go_on();
    stage.go_on();
    if let Some(mut early) = stage.replicas.pop() {
        stage.restart_application(&mut early);
        stage.replicas.push(early);
    }
    stage.all_serve_again();
}

pub fn application_hangs(stage: &mut Stage) {
    stage.replicas[0].application.freeze();
    hang(stage);
    stage.replicas[0].application.signal(Signal::CONT);
    stage.all_serve_again();
}

pub fn replica_frozen(stage: &mut Stage) {
    let frozen = &stage.replicas[0];
    frozen.application.freeze();
    frozen.sidecar.proxy.program.freeze();
    hang(stage);
    let frozen = &stage.replicas[0];
    frozen.sidecar.proxy.signal(Signal::CONT);
    frozen.application.signal(Signal::CONT);
    stage.all_serve_again();
}

/// Lets the time pass; lanes may all wait for who hangs, so none is awaited.
fn hang(stage: &Stage) {
    assert!(stage.serves(&stage.replicas[0]), "it was in use");
    let until = Instant::now() + HANGS;
    while Instant::now() < until {
        thread::yield_now();
        thread::sleep(Duration::from_millis(10));
    }
}

/// What a user does who has an application that gets stuck: a bound for each try, and another try.
const BOUNDED: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: bounded-SERVICE, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: SERVICE, port: 80}]
  rules:
  - timeouts: {request: 8s, backendRequest: 1s}
    retry: {attempts: 3, codes: [503]}
    backendRefs: [{name: SERVICE, port: 80}]
";

pub fn application_stuck(stage: &mut Stage) {
    let bounded = |protocol: &Protocol| !protocol.is_long() && *protocol != Protocol::OpaqueShort;
    let services = Protocol::ALL.into_iter().filter(bounded);
    let routes = services.map(|service| BOUNDED.replace("SERVICE", service.name()));
    let routes: Vec<String> = routes.collect();
    stage.change(|mesh| mesh.apply("bounded", &routes.join("---\n")));
    stage.mesh.settled();
    let mut victim = stage.take(0);
    victim.application.freeze();
    stage.go_on_with(bounded);
    stage.go_on_with(bounded);
    victim.application.kill();
    stage.go_on();
    stage.left.push(victim);
    stage.publish();
}

pub fn everybody_killed(stage: &mut Stage) {
    stage.keeper.application.kill();
    for replica in &mut stage.replicas {
        replica.application.kill();
    }
    stage.go_on();
}

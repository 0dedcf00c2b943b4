//! Replicas that leave in order: by the drain barrier or by SIGTERM alone, with and without a
//! controller that can tell the callers in time.

use std::thread;
use std::time::{Duration, Instant};

use crate::chaos::stage::{REPLICAS, Replica, Stage, WEB};
use crate::eventually;
use crate::process::Signal;

/// One by one: a new replica, then the old one leaves.
pub fn rollout(stage: &mut Stage) {
    for _ in 0..REPLICAS {
        stage.add(WEB);
        stage.publish();
        let mut old = stage.take(0);
        leave(&mut old);
        stage.left.push(old);
        stage.publish();
        stage.go_on();
    }
    stage.all_serve();
}

pub fn scale(stage: &mut Stage) {
    stage.add(WEB);
    stage.add(WEB);
    stage.publish();
    stage.all_serve();
    let mut leaving = stage.replicas.split_off(1);
    thread::scope(|scope| {
        let all = leaving
            .iter_mut()
            .map(|replica| scope.spawn(|| leave(replica)));
        // All at once: each is begun before any is awaited.
        let all: Vec<_> = all.collect();
        while all.iter().any(|leaving| !leaving.is_finished()) {
            stage.go_on();
        }
    });
    stage.left.append(&mut leaving);
    stage.publish();
    stage.go_on();
    stage.add(WEB);
    stage.add(WEB);
    stage.publish();
    stage.all_serve();
}

pub fn rollout_without_controller(stage: &mut Stage) {
    for _ in 0..REPLICAS {
        stage.add(WEB);
    }
    stage.publish();
    stage.all_serve();
    stage.mesh.controller.kill();
    for _ in 0..REPLICAS {
        let mut old = stage.take(0);
        let told = leave(&mut old);
        assert!(told["users"].is_null(), "the controller is dead: {told}");
        stage.left.push(old);
        stage.go_on();
    }
    stage.write();
    stage.mesh.restart_controller();
    stage.reconnected();
    stage.go_on();
}

/// Barrier, application, sidecar: as `weft run` and the kubelet have it. What the barrier said.
fn leave(replica: &mut Replica) -> serde_json::Value {
    let told = replica.sidecar.drain();
    assert_eq!(told["inFlight"], 0, "{told}");
    replica.application.signal(Signal::TERM);
    let _ = replica.application.ended();
    replica.sidecar.proxy.signal(Signal::TERM);
    told
}

/// Both are told at once, as when nobody knows of a barrier; the application ends where it is.
fn leave_abruptly(replica: &mut Replica) {
    replica.application.signal(Signal::TERM);
    replica.sidecar.proxy.signal(Signal::TERM);
    let _ = replica.application.ended();
}

pub fn lag(stage: &mut Stage, seconds: u64) {
    held_back(stage, seconds, |replica| {
        leave(replica);
    });
}

pub fn lag_abrupt(stage: &mut Stage, seconds: u64) {
    held_back(stage, seconds, leave_abruptly);
}

/// A replica leaves while the controller, stopped where it is, tells nobody for so long.
fn held_back(stage: &mut Stage, seconds: u64, leave: impl FnOnce(&mut Replica) + Send) {
    stage.add(WEB);
    stage.publish();
    stage.all_serve();
    let mut old = stage.take(0);
    if seconds > 0 {
        stage.mesh.controller.freeze();
    }
    let until = Instant::now() + Duration::from_secs(seconds);
    thread::scope(|scope| {
        let leaving = scope.spawn(|| leave(&mut old));
        while Instant::now() < until {
            stage.go_on();
        }
        stage.mesh.controller.signal(Signal::CONT);
        while !leaving.is_finished() {
            stage.go_on();
        }
        leaving.join().expect("the replica leaves");
    });
    stage.left.push(old);
    stage.publish();
    stage.go_on();
}

pub fn sidecar_terminated(stage: &mut Stage) {
    let mut old = stage.take(0);
    old.sidecar.proxy.signal(Signal::TERM);
    stage.go_on();
    let what = "the sidecar's end, while its application stays";
    let ended = |old: &mut Replica| (!old.sidecar.proxy.program.is_running()).then_some(());
    eventually(what, || ended(&mut old));
    assert!(old.application.is_running());
    stage.go_on();
    stage.left.push(old);
    stage.publish();
}

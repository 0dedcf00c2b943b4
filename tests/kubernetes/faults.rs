//! What a cluster does to a mesh on its worst day, under load: parts killed, rolled, unreachable.

use weft_tests::cluster::{Cluster, Namespace};
use weft_tests::eventually_within;
use weft_tests::install::{self, NAMESPACE};
use weft_tests::storm::{self, OnTerm};

use super::{INJECTED, PATIENCE, alone};

const SECONDS: u32 = 30;

/// A store under load, in the mesh.
fn store(cluster: &Cluster, subject: &str) -> Namespace {
    let namespace = cluster.namespace(subject, &[INJECTED]);
    namespace.apply(&storm::manifests(OnTerm::Exits));
    namespace.rolled_out("web");
    namespace.rolled_out("chat");
    namespace.apply(&storm::customer(SECONDS));
    namespace.pod_ready("app=customer");
    eventually_within(PATIENCE, "the customer sends", || {
        let log = namespace.kubectl(&["logs", "job/customer", "-c", "customer"]);
        log.contains("lost/sent").then_some(())
    });
    namespace
}

#[track_caller]
fn nothing_lost(cluster: &Cluster, namespace: &Namespace) {
    let lanes = storm::lanes(namespace);
    let losses = storm::losses(&lanes);
    assert!(losses.is_empty(), "{losses}{}", install::logs(cluster));
}

#[test]
fn controllers_that_are_upgraded_or_gone_cost_nothing() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _alone = alone();
    let namespace = store(&cluster, "upgrade");
    install::install(&cluster, &["controller.podAnnotations.version=other"]);
    // While none runs, pods that are there go on, and those that leave do it without a loss.
    install::send_away(&cluster);
    namespace.kubectl(&["scale", "deployment/web", "--replicas", "2"]);
    namespace.rolled_out("web");
    // kube-system and namespaces without the label get their pods all the same.
    let other = cluster.namespace("outside", &[]);
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: NAMESPACE}\nspec: {containers: [{name: a, image: localhost/store:1, args: [serve]}]}\n";
    other.apply(pod);
    cluster.apply(&pod.replace("NAMESPACE", "kube-system"));
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "delete",
        "pod",
        "a",
        "--grace-period=1",
        "--wait=false",
    ]);
    let said = cluster.try_apply(&pod.replace("NAMESPACE", &namespace.name));
    assert!(!said.status.success(), "a pod started outside the mesh");
    install::scale(&cluster, 2);
    cluster.kubectl(&[
        "-n",
        NAMESPACE,
        "rollout",
        "status",
        "deployment/weft-controller",
        "--timeout=120s",
    ]);
    eventually_within(PATIENCE, "pods are injected again", || {
        cluster
            .try_apply(&pod.replace("NAMESPACE", &namespace.name))
            .status
            .success()
            .then_some(())
    });
    nothing_lost(&cluster, &namespace);
}

#[test]
fn an_image_that_cannot_be_pulled_costs_nothing() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let _alone = alone();
    let namespace = store(&cluster, "image");
    namespace.kubectl(&["set", "image", "deployment/web", "web=localhost/absent:1"]);
    eventually_within(PATIENCE, "a pod whose image cannot be pulled", || {
        let reasons = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}";
        let waiting = namespace.kubectl(&["get", "pods", "-l", "app=web", "-o", reasons]);
        waiting.contains("ImagePull").then_some(())
    });
    namespace.kubectl(&["rollout", "undo", "deployment/web"]);
    namespace.rolled_out("web");
    nothing_lost(&cluster, &namespace);
}

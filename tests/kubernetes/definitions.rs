//! The chart's CustomResourceDefinitions: what the API server admits and refuses by them, and in
//! which words.

use std::cell::Cell;

use weft_tests::install::connect;

fn policy(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a, namespace: default}}\nspec: {spec}\n"
    )
}

// tidy: allow size: a table
#[test]
fn good_policies_are_admitted_and_bad_ones_are_refused_by_field() {
    let Some(cluster) = connect() else {
        return;
    };
    let _shared = super::shared();
    let namespace = cluster.namespace("definitions", &[]);
    let count = Cell::new(0);
    let apply = |kind: &str, spec: &str| {
        count.set(count.get() + 1);
        let metadata = format!("name: case-{}, namespace: {}", count.get(), namespace.name);
        let manifest = policy(kind, spec).replace("name: a, namespace: default", &metadata);
        cluster.try_apply(&manifest)
    };
    for (kind, spec) in [
        (
            "AuthorizationPolicy",
            "{targetRefs: [{kind: Service, name: web}], action: deny, rules: [{from: [{namespaces: [x]}], to: [{ports: [80], methods: [GET], paths: ['/a*'], headers: [{name: x, value: '1'}]}]}]}",
        ),
        (
            "AuthorizationPolicy",
            "{selector: {matchLabels: {app: web}}}",
        ),
        (
            "WorkloadPolicy",
            "{mtls: strict, ports: [{port: 80, mtls: permissive}], defaultAction: deny, unknownDestination: refuse}",
        ),
        ("WorkloadPolicy", "{}"),
        (
            "TrafficPolicy",
            "{targetRefs: [{kind: Service, name: web}], balancer: {algorithm: consistent_hash, hash: [{header: x}], slowStart: 1m30s}, limits: {requestsMax: 5}, retryBudget: {percent: 20}}",
        ),
    ] {
        let said = apply(kind, spec);
        assert!(
            said.status.success(),
            "{kind} {spec}: {}",
            String::from_utf8_lossy(&said.stderr)
        );
    }
    for (kind, spec, words) in [
        (
            "AuthorizationPolicy",
            "{targetRefs: [{kind: Service, name: web}], selector: {matchLabels: {a: b}}}",
            "targetRefs or selector, not both",
        ),
        ("AuthorizationPolicy", "{action: perhaps}", "spec.action"),
        (
            "AuthorizationPolicy",
            "{rules: [{to: [{ports: [70000]}]}]}",
            "spec.rules[0].to[0].ports[0]",
        ),
        (
            "AuthorizationPolicy",
            "{targetRefs: [{kind: Pod, name: a}]}",
            "spec.targetRefs[0].kind",
        ),
        ("WorkloadPolicy", "{mtls: maybe}", "spec.mtls"),
        ("WorkloadPolicy", "{mlts: strict}", "mlts"),
        (
            "WorkloadPolicy",
            "{ports: [{port: 80, mtls: strict}, {port: 80, mtls: permissive}]}",
            "duplicate entries for key [port=80]",
        ),
        (
            "TrafficPolicy",
            "{balancer: {algorithm: random}}",
            "spec.targetRefs",
        ),
        (
            "TrafficPolicy",
            "{targetRefs: [], balancer: {algorithm: random}}",
            "spec.targetRefs",
        ),
        (
            "TrafficPolicy",
            "{targetRefs: [{kind: Service, name: a}], connectTimeout: soon}",
            "spec.connectTimeout",
        ),
        (
            "TrafficPolicy",
            "{targetRefs: [{kind: Service, name: a}], endpoints: []}",
            "endpoints",
        ),
        (
            "TrafficPolicy",
            "{targetRefs: [{kind: Service, name: a}], retryBudget: {percent: 101}}",
            "spec.retryBudget.percent",
        ),
    ] {
        let said = apply(kind, spec);
        let problem = String::from_utf8_lossy(&said.stderr);
        assert!(!said.status.success(), "{kind} {spec} was admitted");
        assert!(problem.contains(words), "{kind} {spec}: {problem}");
    }
}

#[test]
fn kubectl_knows_their_short_names_columns_and_fields() {
    let Some(cluster) = connect() else {
        return;
    };
    let _shared = super::shared();
    let namespace = cluster.namespace("columns", &[]);
    let policy = policy("WorkloadPolicy", "{mtls: strict}");
    cluster.apply(&policy.replace(
        "namespace: default",
        &format!("namespace: {}", namespace.name),
    ));
    let listed = namespace.kubectl(&["get", "wp"]);
    for column in [
        "NAME", "MTLS", "DEFAULT", "ACCEPTED", "REASON", "AGE", "strict",
    ] {
        assert!(listed.contains(column), "{listed}");
    }
    let all = namespace.kubectl(&["get", "weft"]);
    assert!(all.contains("workloadpolicy.weft.dev/a"), "{all}");
    let explained = cluster.kubectl(&["explain", "trafficpolicy.spec.balancer.slowStart"]);
    assert!(explained.contains("reaches its full share"), "{explained}");
}

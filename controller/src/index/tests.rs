//! Manifests in, resources and statuses out.

mod changes;
mod floods;
mod semantics;

use super::*;
use crate::api::CONTROLLER;
use crate::source::manifest;

fn view(yaml: &str) -> Index {
    leaving(yaml, &[])
}

fn leaving(yaml: &str, uids: &[&str]) -> Index {
    let parsed = manifest::parse("x.yaml", yaml);
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    let mut index = Index::new("td");
    index.apply(parsed.objects.into_iter().map(|object| Change {
        key: object.key(),
        object: Some(Arc::new(object)),
    }));
    for uid in uids {
        index.leave(uid);
    }
    index
}

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u1, annotations: {weft.dev/inbound: '14008'}, labels: {app: web}}
spec: {serviceAccountName: web, containers: []}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, uid: u2}
spec: {containers: []}
status: {podIP: 10.1.0.2}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.1.0.1], targetRef: {kind: Pod, name: web-1, uid: u1}}
- {addresses: [10.1.0.2], targetRef: {kind: Pod, name: web-2, uid: u2}}
- {addresses: [10.1.0.3], conditions: {ready: false, serving: true, terminating: true}}
---
";

#[test]
fn endpoints_have_the_identity_of_their_pods() {
    let view = view(SHOP);
    let endpoints = &view.endpoints("shop/web:80").unwrap().endpoints;
    assert_eq!(endpoints.len(), 2, "terminating ones are left out");
    assert_eq!(endpoints[0].identity, "spiffe://td/ns/shop/sa/web");
    assert_eq!(endpoints[0].workload, "u1");
    assert_eq!(endpoints[0].mesh_address, "10.1.0.1:14008");
    assert_eq!(endpoints[1].identity, "", "no sidecar");
    for name in ["10.96.0.1:80", "web.shop:80"] {
        let destination = view.destination("other", name).unwrap();
        assert_eq!(destination.services, ["shop/web:80"], "{name}");
    }
    let direct = view.destination("other", "10.1.0.1:8080").unwrap();
    assert_eq!(
        view.endpoints(&direct.services[0]).unwrap().endpoints.len(),
        1
    );
    assert!(view.destination("other", "10.96.0.9:80").is_none());
    let ports = &view.workload("u1").unwrap().ports;
    assert_eq!((ports.len(), ports[0].port), (1, 8080));
}

#[test]
fn who_leaves_is_out_unless_nobody_is_left() {
    let addresses = |view: &Index| -> Vec<String> {
        let endpoints = &view.endpoints("shop/web:80").unwrap().endpoints;
        endpoints
            .iter()
            .map(|endpoint| endpoint.address.clone())
            .collect()
    };
    assert_eq!(addresses(&leaving(SHOP, &["u1"])), ["10.1.0.2:8080"]);
    let gone = SHOP.replace(
        "{kind: Pod, name: web-2, uid: u2}}",
        "{kind: Pod, name: web-2, uid: u2}, conditions: {ready: false}}",
    );
    assert_eq!(
        addresses(&leaving(&gone, &["u1"])).len(),
        2,
        "those that still serve"
    );
}

#[test]
fn another_pod_with_the_address_is_not_taken_for_the_old_one() {
    let reused = SHOP.replace("uid: u1, annotations", "uid: u9, annotations");
    let moved = SHOP.replace("podIP: 10.1.0.1", "podIP: 10.1.0.9");
    for stale in [reused, moved] {
        let view = view(&stale);
        let endpoints = &view.endpoints("shop/web:80").unwrap().endpoints;
        let addresses: Vec<&str> = endpoints.iter().map(|of| of.address.as_str()).collect();
        assert_eq!(addresses, ["10.1.0.2:8080"], "never called in plain text");
        let said = accepted(&view, "web-x").remove(0);
        assert_eq!(said.reason, "PodNotFound");
        assert!(said.message.contains("10.1.0.1"), "{said:?}");
    }
}

fn route(namespace: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r-{namespace}, namespace: {namespace}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: web, namespace: shop, port: 80}}], rules: [{{backendRefs: [{{name: {backend}, namespace: shop, port: 80}}]}}]}}\n---\n"
    )
}

fn accepted(view: &Index, name: &str) -> Vec<Condition> {
    let all = view.statuses();
    let status = all.iter().find(|status| status.name == name);
    status
        .unwrap_or_else(|| panic!("{name}: {all:?}"))
        .conditions
        .clone()
}

#[test]
fn a_mesh_is_ours_by_its_controller_s_name_and_takes_no_parameters() {
    let mesh = |name: &str, controller: &str, more: &str| {
        format!(
            "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XMesh\nmetadata: {{name: {name}, generation: 3}}\nspec: {{controllerName: {controller}{more}}}\n---\n"
        )
    };
    let parameters = ", parametersRef: {group: '', kind: ConfigMap, name: a, namespace: b}";
    let view = view(&format!(
        "{}{}{}",
        mesh("weft", CONTROLLER, ", description: ours"),
        mesh("told", CONTROLLER, parameters),
        mesh("theirs", "example.com/mesh", ""),
    ));
    let said = |name: &str| {
        let condition = accepted(&view, name).remove(0);
        assert_eq!(condition.observed_generation, 3, "{name}");
        (condition.status, condition.reason)
    };
    assert_eq!(said("weft"), (true, "Accepted".to_owned()));
    assert_eq!(said("told"), (false, "InvalidParameters".to_owned()));
    assert_eq!(view.statuses().len(), 2, "of others nothing is said");
    let message = accepted(&view, "weft").remove(0).message;
    assert!(message.contains("trust domain td"), "{message}");
}

#[test]
fn consumer_routes_replace_producer_routes_for_their_namespace() {
    let view = view(&format!(
        "{SHOP}{}{}",
        route("shop", "web"),
        route("other", "none")
    ));
    let producer = view.destination("third", "web.shop:80").unwrap();
    assert_eq!(producer.routes[0].name, "r-shop");
    let consumer = view.destination("other", "web.shop:80").unwrap();
    assert_eq!(consumer.routes.len(), 1);
    assert_eq!(consumer.routes[0].name, "r-other");
    assert_eq!(
        consumer.routes[0].rules[0].backend_refs[0].invalid,
        "BackendNotFound"
    );
    let conditions = accepted(&view, "r-other");
    assert!(conditions[0].status && !conditions[1].status);
    assert_eq!(conditions[1].reason, "BackendNotFound");
}

#[test]
fn a_route_that_no_proxy_could_use_is_not_published() {
    let bad = route("shop", "web").replace("rules: [{", "rules: [{timeouts: {request: never}, ");
    let view = view(&format!("{SHOP}{bad}"));
    assert_eq!(accepted(&view, "r-shop")[0].reason, "UnsupportedValue");
    assert!(
        view.destination("shop", "web.shop:80")
            .unwrap()
            .routes
            .is_empty()
    );
}

#[test]
fn two_services_with_one_address() {
    let other = "apiVersion: v1\nkind: Service\nmetadata: {name: aaa, namespace: shop, creationTimestamp: '2026-02-01T00:00:00Z'}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
    let shop = SHOP.replace(
        "{name: web, namespace: shop}\nspec: {clusterIP",
        "{name: web, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}\nspec: {clusterIP",
    );
    let view = view(&format!("{shop}{other}"));
    let destination = view.destination("x", "10.96.0.1:80").unwrap();
    assert_eq!(destination.services, ["shop/web:80"]);
    let lost = accepted(&view, "aaa").remove(0);
    assert_eq!(lost.reason, "Conflicted");
    assert!(lost.message.contains("shop/web:80"));
}

#[test]
fn policies_reach_their_workloads() {
    let policies = "
apiVersion: weft.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: strict, namespace: shop}
spec: {mtls: strict, ports: [{port: 9090, mtls: permissive}], unknownDestination: refuse}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: reads, namespace: shop}
spec: {targetRefs: [{kind: Service, name: web}], action: allow, rules: [{to: [{methods: [GET]}]}]}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: others, namespace: shop}
spec: {selector: {matchLabels: {app: other}}, action: deny, rules: [{}]}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: calls, namespace: shop}
spec: {targetRefs: [{kind: Service, name: web}], connectTimeout: 1s}
---
";
    let view = view(&format!("{SHOP}{policies}"));
    let workload = view.workload("u1").unwrap();
    let inbound = |port: usize| workload.ports[port].inbound.clone().unwrap();
    assert_eq!(inbound(0).mtls(), wire::inbound::Mtls::Strict);
    assert_eq!(inbound(1).mtls(), wire::inbound::Mtls::Permissive);
    let names: Vec<String> = inbound(0)
        .authorization
        .unwrap()
        .policies
        .iter()
        .map(|rules| rules.name.clone())
        .collect();
    assert_eq!(names, ["shop/reads"]);
    assert_eq!(
        workload.unknown_destination(),
        wire::workload::UnknownDestination::Refuse
    );
    assert_eq!(view.service("shop/web:80").unwrap().connect_timeout, "1s");
}

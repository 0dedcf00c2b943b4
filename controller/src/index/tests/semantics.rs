//! Kubernetes' and Gateway API's rules, row by row.

use super::{SHOP, view};
use crate::index::*;
use crate::source::manifest;

/// What is said of an object about a parent, by condition: reason, and whether it is true.
fn reasons(index: &Index, name: &str, parent: &str) -> Vec<(String, bool)> {
    let statuses = index.statuses();
    let of = statuses
        .iter()
        .find(|status| status.name == name && status.parent == parent)
        .unwrap_or_else(|| panic!("{name}, {parent}: {statuses:?}"));
    let conditions = of.conditions.iter();
    conditions
        .map(|of| (of.reason.clone(), of.status))
        .collect()
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop, generation: 3}}\nspec: {{{spec}}}\n---\n"
    )
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n---\n"
    )
}

const TWO_PORTS: &str =
    "clusterIP: 10.96.0.2, ports: [{name: http, port: 80}, {name: admin, port: 81}]";

#[test]
fn a_parent_ref_means_these_ports() {
    let attached = |parent: &str| {
        let spec = format!("parentRefs: [{{{parent}}}], rules: [{{}}]");
        let yaml = service("two", TWO_PORTS) + &route("HTTPRoute", "r", &spec);
        let index = view(&yaml);
        let has = |port: u16| {
            let name = format!("two.shop:{port}");
            !index.destination("shop", &name).unwrap().routes.is_empty()
        };
        let statuses = index.statuses();
        (
            has(80),
            has(81),
            statuses.first().map(|of| of.conditions[0].reason.clone()),
        )
    };
    let accepted = Some("Accepted".to_owned());
    let nowhere = Some("NoMatchingParent".to_owned());
    for (parent, expected) in [
        (
            "group: '', kind: Service, name: two",
            (true, true, accepted.clone()),
        ),
        (
            "group: '', kind: Service, name: two, port: 81",
            (false, true, accepted.clone()),
        ),
        (
            "group: '', kind: Service, name: two, sectionName: http",
            (true, false, accepted.clone()),
        ),
        (
            "group: '', kind: Service, name: two, sectionName: http, port: 80",
            (true, false, accepted),
        ),
        (
            "group: '', kind: Service, name: two, sectionName: http, port: 81",
            (false, false, nowhere.clone()),
        ),
        (
            "group: '', kind: Service, name: two, port: 82",
            (false, false, nowhere.clone()),
        ),
        (
            "group: '', kind: Service, name: three",
            (false, false, nowhere),
        ),
        // Another controller's.
        ("name: two", (false, false, None)),
    ] {
        assert_eq!(attached(parent), expected, "{parent}");
    }
}

#[test]
fn some_services_take_no_routes() {
    for spec in [
        "clusterIP: None, ports: [{name: http, port: 80}]",
        "type: ExternalName, externalName: example.com, ports: [{name: http, port: 80}]",
    ] {
        let spec_of_route = "parentRefs: [{group: '', kind: Service, name: odd}], rules: [{}]";
        let index = view(&(service("odd", spec) + &route("HTTPRoute", "r", spec_of_route)));
        let expected = [
            ("NoMatchingParent".to_owned(), false),
            ("ResolvedRefs".to_owned(), true),
        ];
        assert_eq!(reasons(&index, "r", "Service shop/odd"), expected, "{spec}");
    }
    // One without a selector is like any other, and so is one without slices.
    let spec = "parentRefs: [{group: '', kind: Service, name: two}], rules: [{}]";
    let index = view(&(service("two", TWO_PORTS) + &route("HTTPRoute", "r", spec)));
    assert!(reasons(&index, "r", "Service shop/two")[0].1);
    assert!(index.endpoints("shop/two:80").unwrap().endpoints.is_empty());
}

#[test]
fn kinds_precede_each_other_on_a_port() {
    let of = |kind: &str, port: &str| {
        let backends = match kind {
            "TCPRoute" | "TLSRoute" => "backendRefs: [{name: two, port: 81}]",
            _ => "",
        };
        let spec = format!(
            "parentRefs: [{{group: '', kind: Service, name: two{port}}}], rules: [{{{backends}}}]"
        );
        route(kind, &kind.to_lowercase(), &spec)
    };
    // Declared to carry nothing in particular.
    let two = service("two", &TWO_PORTS.replace("name: http", "name: main"));
    let kinds = ["GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute"];
    for (best, winner) in kinds.iter().enumerate() {
        let routes: String = kinds[best..].iter().map(|kind| of(kind, "")).collect();
        let index = view(&(two.clone() + &routes));
        for kind in &kinds[best..] {
            let accepted = reasons(&index, &kind.to_lowercase(), "Service shop/two")[0].clone();
            match kind == winner {
                true => assert_eq!(accepted, ("Accepted".to_owned(), true), "{kind}"),
                false => assert_eq!(accepted, ("Conflicted".to_owned(), false), "{kind}"),
            }
        }
        let routes = index.destination("shop", "two.shop:80").unwrap().routes;
        assert_eq!(routes.len(), 1, "{winner}");
    }
    // On one of two ports: the other one is its own.
    let mixed = two + &of("GRPCRoute", ", port: 80") + &of("HTTPRoute", "");
    let index = view(&mixed);
    assert_eq!(
        reasons(&index, "httproute", "Service shop/two")[0].0,
        "Accepted"
    );
    let statuses = index.statuses();
    let http = statuses.iter().find(|of| of.name == "httproute").unwrap();
    assert!(
        http.conditions[0].message.contains("shop/two:80"),
        "{http:?}"
    );
    assert_eq!(http.conditions[0].observed_generation, 3);
}

#[test]
fn a_route_meets_a_port_once_however_often_it_is_named() {
    let spec = "parentRefs: [{group: '', kind: Service, name: two}, {group: '', kind: Service, name: two, port: 80}], rules: [{}]";
    let index = view(&(service("two", TWO_PORTS) + &route("HTTPRoute", "r", spec)));
    assert_eq!(
        index
            .destination("shop", "two.shop:80")
            .unwrap()
            .routes
            .len(),
        1
    );
    assert!(reasons(&index, "r", "Service shop/two")[0].1);
    assert!(reasons(&index, "r", "Service shop/two:80")[0].1);
}

#[test]
fn backends_that_lead_nowhere_are_said_and_keep_their_share() {
    let others = service(
        "odd",
        "clusterIP: 10.96.0.3, ports: [{name: x, port: 80, appProtocol: kubernetes.io/odd}]",
    ) + &service(
        "out",
        "type: ExternalName, externalName: example.com, ports: [{port: 80}]",
    ) + "apiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: away}\nspec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}\n---\n";
    for (backend, invalid) in [
        ("name: two, port: 80", ""),
        ("name: two, port: 80, weight: 0", ""),
        // No grant is needed in a mesh (GEP-1294).
        ("name: far, namespace: away, port: 80", ""),
        ("name: two, port: 99", "BackendNotFound"),
        ("name: two", "BackendNotFound"),
        ("name: none, port: 80", "BackendNotFound"),
        ("name: none, port: 80, weight: 0", "BackendNotFound"),
        ("name: out, port: 80", "BackendNotFound"),
        ("name: odd, port: 80", "UnsupportedProtocol"),
        ("name: two, kind: Bucket, group: x, port: 80", "InvalidKind"),
    ] {
        for mirrored in [false, true] {
            let rule = match mirrored {
                false => format!("{{backendRefs: [{{{backend}}}]}}"),
                true => {
                    let backend = backend.split(", weight").next().unwrap();
                    format!(
                        "{{backendRefs: [{{name: two, port: 80}}], filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{{backend}}}}}}}]}}"
                    )
                }
            };
            let spec =
                format!("parentRefs: [{{group: '', kind: Service, name: two}}], rules: [{rule}]");
            let index =
                view(&(service("two", TWO_PORTS) + &others + &route("HTTPRoute", "r", &spec)));
            let resolved = reasons(&index, "r", "Service shop/two").remove(1);
            let expected = match invalid {
                "" => ("ResolvedRefs".to_owned(), true),
                reason => (reason.to_owned(), false),
            };
            assert_eq!(resolved, expected, "{rule}");
            let destination = index.destination("shop", "two.shop:80").unwrap();
            let backends: Vec<_> = route::backends(&destination.routes[0]).collect();
            assert!(
                backends.iter().any(|of| of.invalid == invalid),
                "{rule}: {backends:?}"
            );
            let needed = destination
                .services
                .iter()
                .all(|name| index.service(name).is_some());
            assert!(needed, "only what is there is needed: {destination:?}");
        }
    }
    let spec = "parentRefs: [{group: '', kind: Service, name: two}], rules: [{}]";
    let index = view(&(service("two", TWO_PORTS) + &route("HTTPRoute", "r", spec)));
    assert!(
        reasons(&index, "r", "Service shop/two")[1].1,
        "no backends are no wrong ones"
    );
}

#[test]
fn a_backend_s_other_routes_are_not_followed() {
    let to_web = "parentRefs: [{group: '', kind: Service, name: two}], rules: [{backendRefs: [{name: web, port: 80}]}]";
    let back = "parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: two, port: 80}]}]";
    let yaml = SHOP.to_owned()
        + &service("two", TWO_PORTS)
        + &route("HTTPRoute", "r", to_web)
        + &route("HTTPRoute", "back", back);
    let index = view(&yaml);
    let destination = index.destination("shop", "two.shop:80").unwrap();
    assert_eq!(destination.services, ["shop/web:80"]);
    // Nor does one who dials a pod meet a route.
    let direct = index.destination("shop", "10.1.0.1:8080").unwrap();
    assert!(direct.routes.is_empty());
}

fn slice(name: &str, of: &str, rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {of}}}}}\n{rest}\n---\n"
    )
}

fn addresses(index: &Index, name: &str) -> Vec<String> {
    let found = index.endpoints(name).unwrap_or_else(|| panic!("{name}"));
    found
        .endpoints
        .iter()
        .map(|of| of.address.clone())
        .collect()
}

#[test]
fn ports_are_found_by_name_and_have_the_numbers_of_their_slices() {
    let yaml = service("two", TWO_PORTS)
        // A named target port is another number in other pods, and so another slice.
        + &slice("a", "two", "addressType: IPv4\nports: [{name: http, port: 8080}, {name: admin, port: 9000}]\nendpoints: [{addresses: [10.2.0.1]}]")
        + &slice("b", "two", "addressType: IPv4\nports: [{name: http, port: 8081}, {name: admin, port: 9000, protocol: UDP}]\nendpoints: [{addresses: [10.2.0.2, 10.2.0.3]}]")
        + &slice("c", "two", "addressType: FQDN\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [example.com]}]")
        + &slice("d", "other", "addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.2.0.9]}]");
    let index = view(&yaml);
    assert_eq!(
        addresses(&index, "shop/two:80"),
        ["10.2.0.1:8080", "10.2.0.2:8081"]
    );
    assert_eq!(addresses(&index, "shop/two:81"), ["10.2.0.1:9000"]);
}

#[test]
fn who_gets_requests_depends_on_conditions() {
    let all = "addressType: IPv4\nports: [{name: http, port: 80}]\nendpoints:\n\
        - {addresses: [10.2.0.1], conditions: {ready: true}}\n\
        - {addresses: [10.2.0.2], conditions: {ready: false}}\n\
        - {addresses: [10.2.0.3], conditions: {ready: false, serving: true, terminating: true}}\n\
        - {addresses: [10.2.0.4], conditions: {ready: true, terminating: true}}\n\
        - {addresses: [10.2.0.5]}";
    let none_ready = all
        .replace("ready: true", "ready: false, serving: true")
        .replace("- {addresses: [10.2.0.5]}", "");
    let early = format!("{TWO_PORTS}, publishNotReadyAddresses: true");
    for (spec, slices, expected) in [
        (TWO_PORTS, all, "1 5"),
        (TWO_PORTS, none_ready.trim(), "1 3 4"),
        (early.as_str(), all, "1 2 5"),
    ] {
        let index = view(&(service("two", spec) + &slice("a", "two", slices)));
        let expected: Vec<String> = expected
            .split(' ')
            .map(|last| format!("10.2.0.{last}:80"))
            .collect();
        assert_eq!(
            addresses(&index, "shop/two:80"),
            expected,
            "{spec}\n{slices}"
        );
    }
}

#[test]
fn a_pod_with_an_address_of_each_family_is_one_endpoint() {
    let pods = "apiVersion: v1\nkind: Pod\nmetadata: {name: both, namespace: shop, uid: u1}\nspec: {containers: []}\nstatus: {podIP: 10.2.0.1, podIPs: [{ip: 10.2.0.1}, {ip: 'fd00::1'}]}\n---\n\
        apiVersion: v1\nkind: Pod\nmetadata: {name: six, namespace: shop, uid: u2}\nspec: {containers: []}\nstatus: {podIP: 'fd00::2'}\n---\n";
    let slices = slice(
        "a",
        "two",
        "addressType: IPv4\nports: [{name: http, port: 80}]\nendpoints: [{addresses: [10.2.0.1], targetRef: {kind: Pod, name: both, uid: u1}}]",
    ) + &slice(
        "b",
        "two",
        "addressType: IPv6\nports: [{name: http, port: 80}]\nendpoints: [{addresses: ['fd00::1'], targetRef: {kind: Pod, name: both, uid: u1}}, {addresses: ['fd00::2'], targetRef: {kind: Pod, name: six, uid: u2}}]",
    );
    let four = "clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2, 'fd00:96::2'], ports: [{name: http, port: 80}]";
    let six = "clusterIP: 'fd00:96::2', clusterIPs: ['fd00:96::2', 10.96.0.2], ports: [{name: http, port: 80}]";
    let headless = "clusterIP: None, ipFamilies: [IPv6, IPv4], ports: [{name: http, port: 80}]";
    for (spec, expected) in [
        (four, vec!["10.2.0.1:80", "[fd00::2]:80"]),
        (six, vec!["[fd00::1]:80", "[fd00::2]:80"]),
        (headless, vec!["[fd00::1]:80", "[fd00::2]:80"]),
    ] {
        let index = view(&(service("two", spec) + pods + &slices));
        assert_eq!(addresses(&index, "shop/two:80"), expected, "{spec}");
        for dialled in ["10.96.0.2:80", "[fd00:96::2]:80"] {
            let is_there = index.destination("x", dialled).is_some();
            assert_eq!(is_there, !spec.contains("None"), "{dialled}, {spec}");
        }
    }
}

#[test]
fn headless_services_are_dialled_by_their_pods_and_outside_ones_not_at_all() {
    let headless = SHOP.replace("clusterIP: 10.96.0.1", "clusterIP: None");
    let index = view(&headless);
    let direct = index.destination("x", "10.1.0.1:8080").unwrap();
    assert_eq!(direct.services, ["u1@10.1.0.1:8080"]);
    assert!(
        index.destination("x", "web.shop:80").is_some(),
        "and by name"
    );
    let outside = view(&SHOP.replace(
        "clusterIP: 10.96.0.1",
        "type: ExternalName, externalName: example.com",
    ));
    assert!(outside.destination("x", "web.shop:80").is_none());
    assert!(outside.endpoints("shop/web:80").is_none());
}

fn policy(kind: &str, name: &str, created: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop, generation: 7, creationTimestamp: '{created}'}}\nspec: {{{spec}}}\n---\n"
    )
}

const OLD: &str = "2026-01-01T00:00:00Z";
/// The same instant, and a later one, as other clocks write them.
const OLD_TOO: &str = "2026-01-01T02:00:00+02:00";
const YOUNG: &str = "2026-01-01T00:30:00-01:00";

#[test]
fn of_policies_that_contradict_each_other_the_oldest_counts() {
    let target = "targetRefs: [{kind: Service, name: web}]";
    for (first, second, winner) in [(OLD, YOUNG, "1s"), (YOUNG, OLD, "2s"), (OLD, OLD_TOO, "1s")] {
        let yaml = SHOP.to_owned()
            + &policy(
                "TrafficPolicy",
                "a",
                first,
                &format!("{target}, connectTimeout: 1s"),
            )
            + &policy(
                "TrafficPolicy",
                "b",
                second,
                &format!("{target}, connectTimeout: 2s"),
            )
            + &policy("WorkloadPolicy", "c", first, "mtls: strict")
            + &policy(
                "WorkloadPolicy",
                "d",
                second,
                "mtls: permissive, defaultAction: deny",
            );
        let index = view(&yaml);
        assert_eq!(
            index.service("shop/web:80").unwrap().connect_timeout,
            winner
        );
        let workload = index.workload("u1").unwrap();
        let strict = workload.other_ports.as_ref().unwrap().mtls() == wire::inbound::Mtls::Strict;
        assert_eq!(strict, winner == "1s");
        for (names, parent) in [(["a", "b"], "Service shop/web"), (["c", "d"], "")] {
            for (name, wins) in names.iter().zip([winner == "1s", winner == "2s"]) {
                let expected = if wins { "Accepted" } else { "Conflicted" };
                assert_eq!(
                    reasons(&index, name, parent),
                    [(expected.to_owned(), wins)],
                    "{name}"
                );
            }
        }
        let generations = index.statuses().into_iter().flat_map(|of| of.conditions);
        assert!(
            generations
                .into_iter()
                .all(|of| of.observed_generation == 7 || of.observed_generation == 0)
        );
    }
}

#[test]
fn a_selector_s_policy_counts_before_the_namespace_s_and_they_are_no_conflict() {
    let yaml = SHOP.to_owned()
        + &policy(
            "WorkloadPolicy",
            "all",
            OLD,
            "mtls: strict, unknownDestination: refuse",
        )
        + &policy(
            "WorkloadPolicy",
            "web",
            YOUNG,
            "selector: {matchLabels: {app: web}}, mtls: permissive",
        );
    let index = view(&yaml);
    let workload = index.workload("u1").unwrap();
    assert_eq!(
        workload.other_ports.as_ref().unwrap().mtls(),
        wire::inbound::Mtls::Permissive
    );
    assert_eq!(
        workload.unknown_destination(),
        wire::workload::UnknownDestination::Refuse
    );
    for name in ["all", "web"] {
        assert_eq!(reasons(&index, name, ""), [("Accepted".to_owned(), true)]);
    }
}

#[test]
fn policies_about_nothing_say_so() {
    let rules = "action: allow, rules: [{}]";
    let yaml = SHOP.to_owned()
        + &policy(
            "AuthorizationPolicy",
            "lost",
            OLD,
            &format!("targetRefs: [{{kind: Service, name: none}}], {rules}"),
        )
        + &policy(
            "AuthorizationPolicy",
            "odd",
            OLD,
            &format!("targetRefs: [{{kind: Pod, name: web-1}}], {rules}"),
        )
        + &policy(
            "TrafficPolicy",
            "lost-too",
            OLD,
            "targetRefs: [{kind: Service, name: none}]",
        )
        + &policy(
            "TrafficPolicy",
            "bad",
            OLD,
            "targetRefs: [{kind: Service, name: web}], connectTimeout: never",
        )
        + &policy(
            "TrafficPolicy",
            "good",
            YOUNG,
            "targetRefs: [{kind: Service, name: web}], connectTimeout: 3s",
        )
        + &policy("TrafficPolicy", "empty", OLD, "connectTimeout: 3s");
    let index = view(&yaml);
    for (name, parent, reason) in [
        ("lost", "Service shop/none", "TargetNotFound"),
        ("odd", "Pod shop/web-1", "Invalid"),
        ("lost-too", "Service shop/none", "TargetNotFound"),
        ("bad", "Service shop/web", "Invalid"),
        ("empty", "", "Invalid"),
    ] {
        assert_eq!(
            reasons(&index, name, parent),
            [(reason.to_owned(), false)],
            "{name}"
        );
    }
    // One that nobody could use stands in nobody's way.
    assert!(reasons(&index, "good", "Service shop/web")[0].1);
    assert_eq!(index.service("shop/web:80").unwrap().connect_timeout, "3s");
}

#[test]
fn each_target_of_a_policy_is_judged_by_itself() {
    let targets = "targetRefs: [{kind: Service, name: a}, {kind: Service, name: b}]";
    let spec = format!("{targets}, action: allow, rules: [{{}}]");
    let mut index = view(&policy("AuthorizationPolicy", "p", OLD, &spec));
    let parsed = manifest::parse("b.yaml", &service("b", "ports: [{name: http, port: 80}]"));
    let service = Arc::new(parsed.objects.into_iter().next().unwrap());
    for (object, reason) in [
        (None, "TargetNotFound"),
        (Some(&service), "Accepted"),
        (None, "TargetNotFound"),
    ] {
        index.apply([Change {
            key: service.key(),
            object: object.cloned(),
        }]);
        let changed = index.take_changed();
        assert!(changed.iter().any(|key| key.name == "p"), "{reason}");
        let of = |parent: &str| reasons(&index, "p", parent)[0].0.clone();
        assert_eq!(of("Service shop/b"), reason);
        assert_eq!(of("Service shop/a"), "TargetNotFound");
    }
}

#[test]
fn who_has_left_is_back_when_it_returns_or_is_another() {
    let mut index = view(SHOP);
    index.leave("u1");
    assert_eq!(addresses(&index, "shop/web:80"), ["10.1.0.2:8080"]);
    assert_eq!(
        index.services_of("u1"),
        ["shop/web:80".to_owned(), "u1@10.1.0.1:8080".to_owned()].into()
    );
    let touched = index.returned("u1");
    assert_eq!(
        touched,
        [(Type::Endpoints, "shop/web:80".to_owned())].into()
    );
    assert_eq!(addresses(&index, "shop/web:80").len(), 2);
    assert!(index.leave("nobody").is_empty());
    assert!(
        index.leaving.is_empty(),
        "what is made up is not remembered"
    );
    index.leave("u1");
    let pod = Key {
        kind: "Pod",
        ..Name::new("shop", "web-1").key()
    };
    let object = index.objects[&pod].clone();
    index.apply([Change {
        key: pod.clone(),
        object: None,
    }]);
    assert!(index.leaving.is_empty());
    index.apply([Change {
        key: pod,
        object: Some(object),
    }]);
    assert_eq!(addresses(&index, "shop/web:80").len(), 2);
}

//! What pods look like before and after.

use super::*;

const TOKEN: DrainToken = DrainToken([0xab; 16]);
const DRAIN: &str = "/drain/abababababababababababababababab";

fn settings() -> Settings {
    Settings {
        image: "localhost/weft-proxy:1".to_owned(),
        pull_policy: Some("IfNotPresent".to_owned()),
        controllers: vec!["weft-controller.weft-system.svc.cluster.local:14010".to_owned()],
        trust_bundle: "-----BEGIN CERTIFICATE-----\n".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        defaults: Options::default(),
    }
}

fn pod(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap()
}

/// A pod with this in its spec.
fn with(spec: &str) -> Value {
    pod(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{app: a}}}}\nspec:\n{spec}"
    ))
}

/// A pod with a container that has this.
fn with_container(fields: &str) -> Value {
    let fields = fields.replace('\n', "\n    ");
    with(&format!(
        "  containers:\n  - name: app\n    image: app:1\n    {fields}\n"
    ))
}

fn outcome(pod: &Value) -> Result<Outcome, Refusal> {
    inject(pod, true, &settings(), TOKEN)
}

#[track_caller]
fn injected(pod: &Value) -> Injected {
    match outcome(pod) {
        Ok(Outcome::Injected(injected)) => injected,
        other => panic!("{other:?}\n{pod:#}"),
    }
}

#[track_caller]
fn refused(pod: &Value) -> String {
    outcome(pod).unwrap_err().to_string()
}

fn names(list: &Value) -> Vec<&str> {
    let items = list.as_array().unwrap().iter();
    items.map(|of| of["name"].as_str().unwrap()).collect()
}

fn env<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let variables = pod["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let mut found = variables.iter().filter(|of| of["name"] == json!(name));
    let variable = found.next().unwrap_or_else(|| panic!("{name}"));
    assert!(found.next().is_none(), "{name} is there twice");
    variable
        .get("value")
        .unwrap_or(&variable["valueFrom"]["fieldRef"]["fieldPath"])
}

fn probes(pod: &Value) -> Value {
    serde_json::from_str(env(pod, "WEFT_PROBES").as_str().unwrap()).unwrap()
}

const CATALOGUE: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: catalogue
  labels: {app: catalogue}
spec:
  serviceAccountName: catalogue
  initContainers:
  - {name: migrate, image: catalogue:1, command: [migrate]}
  - {name: cache, image: cache:1, restartPolicy: Always}
  containers:
  - name: catalogue
    image: catalogue:1
    ports: [{name: http, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /healthz, port: http}}
    livenessProbe: {tcpSocket: {port: http}, periodSeconds: 7, timeoutSeconds: 3}
  - name: sweeper
    image: sweeper:1
    lifecycle: {preStop: {exec: {command: [sweep]}}}
  volumes: [{name: data, emptyDir: {}}]
";

#[test]
fn a_pod_gets_the_two_containers_first_and_keeps_what_it_had() {
    let before = pod(CATALOGUE);
    let Injected {
        pod: after,
        warnings,
    } = injected(&before);
    assert_eq!(warnings, [""; 0]);
    let spec = &after["spec"];
    assert_eq!(
        names(&spec["initContainers"]),
        ["weft-capture", "weft-proxy", "migrate", "cache"]
    );
    assert_eq!(names(&spec["containers"]), ["catalogue", "sweeper"]);
    assert_eq!(
        names(&spec["volumes"]),
        ["weft-token", "weft-state", "data"]
    );
    assert_eq!(
        spec["initContainers"][2],
        before["spec"]["initContainers"][0]
    );
    assert_eq!(spec["containers"][1], before["spec"]["containers"][1]);
    let annotations = &after["metadata"]["annotations"];
    assert_eq!(annotations["weft.dev/inbound"], json!("captured"));
    assert_eq!(
        annotations["weft.dev/injected"],
        json!(env!("CARGO_PKG_VERSION"))
    );
    let barrier = json!({"port": 14020, "path": DRAIN, "scheme": "HTTP"});
    for container in [&spec["containers"][0], &spec["initContainers"][3]] {
        assert_eq!(container["lifecycle"]["preStop"]["httpGet"], barrier);
    }
    let catalogue = &spec["containers"][0];
    assert_eq!(
        catalogue["readinessProbe"],
        before["spec"]["containers"][0]["readinessProbe"]
    );
    assert_eq!(
        catalogue["livenessProbe"],
        json!({
            "httpGet": {"port": 14020, "path": "/probe/0", "scheme": "HTTP"},
            "periodSeconds": 7, "timeoutSeconds": 3,
        })
    );
    assert_eq!(
        probes(&after),
        json!([{"kind": "tcp", "port": 8080}, {"kind": "http", "port": 8080, "path": "/healthz"}])
    );
    for (name, value) in [
        (
            "WEFT_CONTROLLERS",
            "weft-controller.weft-system.svc.cluster.local:14010",
        ),
        ("WEFT_TRUST_BUNDLE", "-----BEGIN CERTIFICATE-----\n"),
        ("WEFT_TRUST_DOMAIN", "cluster.local"),
        ("WEFT_NAMESPACE", "metadata.namespace"),
        ("WEFT_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ("WEFT_WORKLOAD", "metadata.uid"),
        ("WEFT_ADDRESSES", "status.podIPs"),
        ("WEFT_TOKEN", "/var/run/secrets/weft.dev/token"),
        ("WEFT_STATE", "/var/run/weft"),
        ("WEFT_DRAIN_PATH", DRAIN),
        ("WEFT_DRAIN_MAX", "15"),
        ("WEFT_WORKERS", "2"),
        ("WEFT_LOG_LEVEL", "info"),
    ] {
        assert_eq!(env(&after, name), &json!(value), "{name}");
    }
}

#[test]
fn only_the_capturing_step_has_a_capability() {
    // Whatever the pod says of its users, ours have theirs.
    let after = injected(&with(
        "  securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000, seccompProfile: {type: Unconfined}, appArmorProfile: {type: Localhost, localhostProfile: app}}\n  containers: [{name: app, image: a}]\n",
    ))
    .pod;
    let of = |index: usize| after["spec"]["initContainers"][index]["securityContext"].clone();
    let hardened = |own: Value| {
        let mut all = json!({
            "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true,
            "seccompProfile": {"type": "RuntimeDefault"}, "appArmorProfile": {"type": "RuntimeDefault"},
        });
        all.as_object_mut()
            .unwrap()
            .extend(own.as_object().unwrap().clone());
        all
    };
    assert_eq!(
        of(0),
        hardened(json!({
            "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        }))
    );
    assert_eq!(
        of(1),
        hardened(json!({
            "runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]},
        }))
    );
    let plain = injected(&with_container("")).pod;
    let context = &plain["spec"]["initContainers"][1]["securityContext"];
    assert!(context.get("appArmorProfile").is_none(), "{context}");
}

#[test]
fn what_is_injected_is_left_alone() {
    let once = injected(&pod(CATALOGUE)).pod;
    assert_eq!(outcome(&once), Ok(Outcome::Skipped(Skip::Injected)));
}

#[test]
fn containers_that_come_after_injection_get_their_part() {
    let mut once = injected(&pod(CATALOGUE)).pod;
    let late = json!({
        "name": "late", "image": "l", "readinessProbe": {"tcpSocket": {"port": 5432}},
        "startupProbe": {"httpGet": {"port": 8080, "path": "/healthz"}},
    });
    once["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(late);
    let twice = injected(&once).pod;
    let mut expected = once.clone();
    let barrier = json!({"httpGet": {"port": 14020, "path": DRAIN, "scheme": "HTTP"}});
    let late = &mut expected["spec"]["containers"][2];
    late["lifecycle"] = json!({"preStop": barrier});
    late["readinessProbe"] =
        json!({"httpGet": {"port": 14020, "path": "/probe/2", "scheme": "HTTP"}});
    let told = [
        json!({"kind": "tcp", "port": 8080}),
        json!({"kind": "http", "port": 8080, "path": "/healthz"}),
        json!({"kind": "tcp", "port": 5432}),
    ];
    assert_eq!(probes(&twice), json!(told));
    let env = twice["spec"]["initContainers"][1]["env"].clone();
    expected["spec"]["initContainers"][1]["env"] = env;
    assert_eq!(twice, expected);
    assert_eq!(outcome(&twice), Ok(Outcome::Skipped(Skip::Injected)));
}

#[test]
fn what_asked_to_be_left_alone_is() {
    let label = |value: &str| {
        let mut pod = with_container("");
        pod["metadata"]["labels"][LABEL] = json!(value);
        pod
    };
    for (pod, is_enabled, skip) in [
        (label("disabled"), true, Some(Skip::Disabled)),
        (label("disabled"), false, Some(Skip::Disabled)),
        (label("enabled"), false, None),
        (with_container(""), false, Some(Skip::NotAsked)),
        (with_container(""), true, None),
        (
            with("  hostNetwork: true\n  containers: [{name: a, image: a}]"),
            true,
            Some(Skip::HostNetwork),
        ),
        (
            with("  os: {name: windows}\n  containers: [{name: a, image: a}]"),
            true,
            Some(Skip::Windows),
        ),
        (
            with(
                "  nodeSelector: {kubernetes.io/os: windows}\n  containers: [{name: a, image: a}]",
            ),
            true,
            Some(Skip::Windows),
        ),
        (
            with("  os: {name: linux}\n  containers: [{name: a, image: a}]"),
            true,
            None,
        ),
        (
            pod(
                "metadata: {annotations: {kubernetes.io/config.mirror: x}}\nspec: {containers: [{name: a, image: a}]}",
            ),
            true,
            Some(Skip::Mirror),
        ),
    ] {
        let skipped = match inject(&pod, is_enabled, &settings(), TOKEN).unwrap() {
            Outcome::Skipped(skip) => Some(skip),
            Outcome::Injected(_) => None,
        };
        assert_eq!(skipped, skip, "{pod:#}");
    }
    let refusal = outcome(&label("true")).unwrap_err().to_string();
    assert_eq!(
        refusal,
        "metadata.labels[weft.dev/inject]: \"true\" means nothing; allowed are \"enabled\" and \"disabled\""
    );
}

#[test]
fn what_cannot_work_is_refused_with_its_field() {
    let annotated = |key: &str, value: &str| {
        let mut pod = with_container("");
        pod["metadata"]["annotations"] = json!({ key: value });
        pod
    };
    for (pod, parts) in [
        (
            with("  containers: [{name: weft-proxy, image: a}]"),
            &["spec.containers[0].name: \"weft-proxy\"", "another"][..],
        ),
        (
            with(
                "  initContainers: [{name: weft-capture, image: a}]\n  containers: [{name: a, image: a}]",
            ),
            &["spec.initContainers[0].name: "],
        ),
        (
            with("  volumes: [{name: x}, {name: weft-state}]\n  containers: [{name: a, image: a}]"),
            &["spec.volumes[1].name: \"weft-state\""],
        ),
        (
            with_container("securityContext: {runAsUser: 1337}"),
            &[
                "spec.containers[0].securityContext.runAsUser: 1337",
                "every other",
            ],
        ),
        (
            with(
                "  securityContext: {runAsUser: 1337}\n  containers: [{name: a, image: a, securityContext: {runAsUser: 1}}, {name: b, image: a}]",
            ),
            &["spec.securityContext.runAsUser: 1337", "container b"],
        ),
        (
            with_container("ports: [{containerPort: 80}, {containerPort: 14020}]"),
            &["spec.containers[0].ports[1].containerPort: 14020"],
        ),
        (
            annotated("weft.dev/inject", "enabled"),
            &["metadata.annotations[weft.dev/inject]: ", "make it a label"],
        ),
        (
            annotated("weft.dev/inbound", "14008"),
            &["metadata.annotations[weft.dev/inbound]: ", "remove it"],
        ),
        (
            annotated("sidecar.weft.dev/cpu", "1"),
            &[
                "metadata.annotations[sidecar.weft.dev/cpu]: ",
                "cpu-request",
            ],
        ),
        (
            annotated("sidecar.weft.dev/drain-max", "30"),
            &[
                "metadata.annotations[sidecar.weft.dev/drain-max]: 30 s",
                "which is 30",
            ],
        ),
        (
            pod(
                "metadata: {annotations: {sidecar.weft.dev/memory-request: 1Gi, sidecar.weft.dev/memory-limit: 512Mi}}\nspec: {containers: [{name: a, image: a}]}",
            ),
            &[
                "metadata.annotations[sidecar.weft.dev/memory-request]: 1Gi",
                "up to 512Mi",
            ],
        ),
        (
            with("  containers: [{name: 7, image: a}]"),
            &["spec.containers[0].name: "],
        ),
        (with("  containers: []"), &["spec.containers: "]),
        (pod("kind: Pod"), &["spec.containers: "]),
    ] {
        let refusal = refused(&pod);
        for part in parts {
            assert!(refusal.contains(part), "{refusal}\nlacks {part}");
        }
    }
    // Every container has another user than the pod's: no one is the sidecar's.
    injected(&with(
        "  securityContext: {runAsUser: 1337}\n  containers: [{name: a, image: a, securityContext: {runAsUser: 1}}]",
    ));
}

#[test]
fn annotations_shape_the_sidecar() {
    let after = injected(&pod("
metadata:
  annotations:
    sidecar.weft.dev/cpu-request: 50m
    sidecar.weft.dev/cpu-limit: 900m
    sidecar.weft.dev/memory-limit: 24Mi
    sidecar.weft.dev/log-level: info,weft_proxy::mesh=debug
    sidecar.weft.dev/skip-inbound-ports: 22, 9100
    sidecar.weft.dev/skip-outbound-ports: '5432'
    sidecar.weft.dev/skip-outbound-cidrs: 169.254.169.254,fd00::/8
    sidecar.weft.dev/drain-max: '20'
spec:
  containers:
  - name: app
    image: a
    livenessProbe: {tcpSocket: {port: 9100}}
    readinessProbe: {httpGet: {port: 22}}
"))
    .pod;
    let [capture, proxy] = [0, 1].map(|index| &after["spec"]["initContainers"][index]);
    assert_eq!(
        capture["args"],
        json!([
            "capture",
            "--uid",
            "1337",
            "--skip-inbound-ports",
            "22,9100",
            "--skip-outbound-ports",
            "5432",
            "--skip-outbound-cidrs",
            "169.254.169.254,fd00::/8"
        ])
    );
    assert_eq!(proxy["args"], json!(["sidecar"]));
    for container in [capture, proxy] {
        assert_eq!(
            container["resources"],
            json!({
                "requests": {"cpu": "50m", "memory": "24Mi"},
                "limits": {"cpu": "900m", "memory": "24Mi"},
            })
        );
    }
    assert_eq!(env(&after, "WEFT_WORKERS"), "1");
    assert_eq!(env(&after, "WEFT_LOG_LEVEL"), "info,weft_proxy::mesh=debug");
    assert_eq!(env(&after, "WEFT_DRAIN_MAX"), "20");
    // There is no sidecar in front of these.
    assert_eq!(probes(&after), json!([]));
    let app = &after["spec"]["containers"][0];
    assert_eq!(app["livenessProbe"], json!({"tcpSocket": {"port": 9100}}));
}

#[test]
fn resources_have_defaults_that_give_way() {
    let resources = |annotations: &str, spec: &str| {
        let text = format!(
            "metadata: {{annotations: {{{annotations}}}}}\nspec: {{containers: [{{name: a, image: a}}]{spec}}}"
        );
        let after = injected(&pod(&text)).pod;
        after["spec"]["initContainers"][1]["resources"].clone()
    };
    let usual =
        json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}});
    assert_eq!(resources("", ""), usual);
    assert_eq!(
        resources("sidecar.weft.dev/memory-request: 1Gi", ""),
        json!({"requests": {"cpu": "10m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}})
    );
    assert_eq!(
        resources("sidecar.weft.dev/cpu-limit: 5m", ""),
        json!({"requests": {"cpu": "5m", "memory": "32Mi"}, "limits": {"cpu": "5m", "memory": "256Mi"}})
    );
    // The pod's own sum is its containers' bound.
    let of_pod = ", resources: {requests: {cpu: 10m, memory: 16Mi}}";
    assert_eq!(resources("", of_pod), Value::Null);
    assert_eq!(
        resources("sidecar.weft.dev/cpu-request: 5m", of_pod),
        json!({"requests": {"cpu": "5m"}})
    );
    let mut settings = settings();
    settings.defaults = serde_saphyr::from_str("memory-limit: 64Mi\nworkers: 1").unwrap();
    let Ok(Outcome::Injected(of)) = inject(&with_container(""), true, &settings, TOKEN) else {
        panic!();
    };
    let proxy = &of.pod["spec"]["initContainers"][1];
    assert_eq!(proxy["resources"]["limits"], json!({"memory": "64Mi"}));
    assert_eq!(env(&of.pod, "WEFT_WORKERS"), "1");
}

#[test]
fn probes_of_each_kind() {
    let asked = |index: usize| json!({"httpGet": {"port": 14020, "path": format!("/probe/{index}"), "scheme": "HTTP"}});
    let ports = "ports: [{name: web, containerPort: 8080}, {name: tls, containerPort: 8443}]\n";
    for (probe, list, after) in [
        (
            "{httpGet: {port: web, path: /a?b=c}}",
            json!([{"kind": "http", "port": 8080, "path": "/a?b=c"}]),
            None,
        ),
        (
            "{httpGet: {port: 8080, path: a}}",
            json!([{"kind": "http", "port": 8080, "path": "/a"}]),
            None,
        ),
        (
            "{httpGet: {port: '8080'}}",
            json!([{"kind": "http", "port": 8080, "path": "/"}]),
            None,
        ),
        (
            "{httpGet: {port: 8080, scheme: HTTP, httpHeaders: [{name: Host, value: a}]}}",
            json!([{"kind": "http", "port": 8080, "path": "/"}]),
            None,
        ),
        (
            "{httpGet: {port: tls, path: /x, scheme: HTTPS}}",
            json!([{"kind": "https", "port": 8443, "path": "/x"}]),
            Some(asked(0)),
        ),
        (
            "{tcpSocket: {port: web}}",
            json!([{"kind": "tcp", "port": 8080}]),
            Some(asked(0)),
        ),
        (
            "{grpc: {port: 9000}}",
            json!([{"kind": "grpc", "port": 9000, "service": ""}]),
            None,
        ),
        (
            "{grpc: {port: 9000, service: a.B}}",
            json!([{"kind": "grpc", "port": 9000, "service": "a.B"}]),
            None,
        ),
        ("{exec: {command: [a]}}", json!([]), None),
        (
            "{tcpSocket: {port: web, host: example.org}}",
            json!([]),
            None,
        ),
        ("{httpGet: {port: 80, host: example.org}}", json!([]), None),
        ("{tcpSocket: {port: nope}}", json!([]), None),
        ("{tcpSocket: {port: 0}}", json!([]), None),
    ] {
        let before = with_container(&format!("{ports}readinessProbe: {probe}"));
        let injected = injected(&before);
        let app = |pod: &Value| pod["spec"]["containers"][0]["readinessProbe"].clone();
        assert_eq!(probes(&injected.pod), list, "{probe}");
        assert_eq!(
            app(&injected.pod),
            after.unwrap_or_else(|| app(&before)),
            "{probe}"
        );
        let warned = probe.contains("nope") || probe.contains("port: 0");
        assert_eq!(injected.warnings.len(), usize::from(warned), "{injected:?}");
    }
}

#[test]
fn probed_paths_are_those_that_the_kubelet_requests() {
    for (path, requested) in [
        ("a b", "/a%20b"),
        ("/grüße?x=1", "/gr%C3%BC%C3%9Fe?x=1"),
        ("/a%20b", "/a%20b"),
        ("/a#b", "/a"),
        ("/{x}", "/%7Bx%7D"),
    ] {
        let mut before = with_container("");
        before["spec"]["containers"][0]["livenessProbe"] =
            json!({"httpGet": {"port": 80, "path": path}});
        assert_eq!(probes(&injected(&before).pod)[0]["path"], json!(requested));
    }
    let many = (0..101)
        .map(|n| json!({"name": format!("c{n}"), "livenessProbe": {"tcpSocket": {"port": n + 1}}}));
    let mut before = with_container("");
    before["spec"]["containers"] = many.collect();
    assert!(refused(&before).starts_with("spec.containers: have more than 100"));
}

#[test]
fn probes_that_are_alike_are_one_and_headers_go_with_them() {
    let after = injected(&with("
  initContainers:
  - {name: mesh-db, image: a, restartPolicy: Always, startupProbe: {tcpSocket: {port: 5432}}}
  - {name: once, image: a}
  containers:
  - name: a
    image: a
    startupProbe: {httpGet: {port: 8443, scheme: HTTPS, path: /x, httpHeaders: [{name: Host, value: shop.example}]}}
    livenessProbe: {tcpSocket: {port: 5432}, terminationGracePeriodSeconds: 5}
    lifecycle:
      postStart: {httpGet: {port: 8080, path: /warm}}
      preStop: {httpGet: {port: 8443, scheme: HTTPS, path: /bye}}
  - {name: b, image: a, lifecycle: {preStop: {sleep: {seconds: 3}}, postStart: {tcpSocket: {port: 1}}}}
"))
    .pod;
    assert_eq!(
        probes(&after),
        json!([
            {"kind": "tcp", "port": 5432},
            {"kind": "https", "port": 8443, "path": "/x"},
            {"kind": "http", "port": 8080, "path": "/warm"},
            {"kind": "https", "port": 8443, "path": "/bye"},
        ])
    );
    let a = &after["spec"]["containers"][0];
    assert_eq!(a["livenessProbe"]["httpGet"]["path"], json!("/probe/0"));
    assert_eq!(
        a["livenessProbe"]["terminationGracePeriodSeconds"],
        json!(5)
    );
    assert_eq!(
        a["startupProbe"]["httpGet"]["httpHeaders"],
        json!([{"name": "Host", "value": "shop.example"}])
    );
    assert_eq!(
        a["lifecycle"]["postStart"]["httpGet"]["path"],
        json!("/warm")
    );
    assert_eq!(
        a["lifecycle"]["preStop"]["httpGet"]["path"],
        json!("/probe/3")
    );
    let b = &after["spec"]["containers"][1]["lifecycle"];
    assert_eq!(b["preStop"], json!({"sleep": {"seconds": 3}}));
    assert_eq!(b["postStart"], json!({"tcpSocket": {"port": 1}}));
    let init = &after["spec"]["initContainers"];
    assert_eq!(
        init[2]["startupProbe"]["httpGet"]["path"],
        json!("/probe/0")
    );
    assert_eq!(
        init[2]["lifecycle"]["preStop"]["httpGet"]["path"],
        json!(DRAIN)
    );
    // A step that ends has no lifecycle.
    assert_eq!(init[3], json!({"name": "once", "image": "a"}));
}

#[test]
fn the_barrier_fits_into_the_time_to_stop() {
    for (grace, seconds, is_warned) in [
        ("", "15", false),
        ("terminationGracePeriodSeconds: 60", "15", false),
        ("terminationGracePeriodSeconds: 20", "10", false),
        ("terminationGracePeriodSeconds: 5", "2", true),
        ("terminationGracePeriodSeconds: 0", "0", true),
        ("terminationGracePeriodSeconds: -1", "0", true),
    ] {
        let injected = injected(&with(&format!(
            "  {grace}\n  containers: [{{name: a, image: a}}]"
        )));
        assert_eq!(env(&injected.pod, "WEFT_DRAIN_MAX"), seconds, "{grace}");
        let warned = injected
            .warnings
            .iter()
            .any(|of| of.contains("terminationGracePeriodSeconds"));
        assert_eq!(warned, is_warned, "{grace}");
    }
    let policy = injected(&with(
        "  dnsPolicy: None\n  containers: [{name: a, image: a}]",
    ));
    assert!(
        policy.warnings[0].contains("spec.dnsPolicy"),
        "{:?}",
        policy.warnings
    );
}

#[test]
fn values_are_not_expanded_by_the_kubelet() {
    let after = injected(&with_container(
        "readinessProbe: {httpGet: {port: 80, path: /$(HOME)}}",
    ))
    .pod;
    let text = env(&after, "WEFT_PROBES").as_str().unwrap();
    assert!(text.contains("/$$(HOME)"), "{text}");
}

#[test]
fn what_is_younger_than_our_types_passes_unharmed() {
    let before = with(
        "  novelty: {a: 1}\n  containers:\n  - {name: a, image: a, knob: [2], lifecycle: {stopSignal: SIGQUIT}, livenessProbe: {tcpSocket: {port: 1}, whim: 3}}",
    );
    let spec = &injected(&before).pod["spec"];
    assert_eq!(spec["novelty"], json!({"a": 1}));
    let a = &spec["containers"][0];
    assert_eq!(
        (
            &a["knob"],
            &a["lifecycle"]["stopSignal"],
            &a["livenessProbe"]["whim"]
        ),
        (&json!([2]), &json!("SIGQUIT"), &json!(3))
    );
}

#[test]
fn drain_tokens_are_read_as_they_are_written() {
    assert_eq!(TOKEN.to_string().parse::<DrainToken>().unwrap().0, TOKEN.0);
    for text in ["", "ab", &"x".repeat(32), &"+".repeat(32), &"a".repeat(33)] {
        let refused = text.parse::<DrainToken>().unwrap_err();
        assert!(refused.contains("32 hexadecimal digits"), "{refused}");
    }
}

/// Any node of a pod may be anything.
#[test]
fn no_pod_makes_it_panic() {
    let whole = injected(&pod(CATALOGUE)).pod;
    for base in [pod(CATALOGUE), whole] {
        let mut paths = Vec::new();
        collect(&base, String::new(), &mut paths);
        let others = [
            json!(null),
            json!({}),
            json!([]),
            json!("x"),
            json!(-1),
            json!([null]),
            json!(true),
        ];
        for path in &paths {
            for other in &others {
                let mut broken = base.clone();
                *broken.pointer_mut(path).unwrap() = other.clone();
                let _ = outcome(&broken);
            }
        }
    }
}

fn collect(value: &Value, at: String, paths: &mut Vec<String>) {
    let escaped = |key: &String| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                collect(value, format!("{at}/{}", escaped(key)), paths);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect(value, format!("{at}/{index}"), paths);
            }
        }
        _ => {}
    }
    paths.push(at);
}

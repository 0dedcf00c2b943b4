//! docs/reference.md is what the types say. `make reference` (or WEFT_WRITE_REFERENCE=1)
//! writes it anew; otherwise a difference is a failure.
//!
//! Of Kubernetes' and Gateway API's kinds it lists the fields that are read, and each of
//! those is tried here: with another value the object is another one.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use weft_controller::admission::inject::{Options, Outcome, PREFIX, Settings, inject};
use weft_controller::api::{Attachment, ParentRef, ReferenceGrant, WorkloadPolicy};
use weft_controller::source::manifest;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Rows of a type: field, type, what is said of it; fields of fields as `a.b`.
fn rows<T: JsonSchema>() -> String {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut text = String::new();
    describe(schema.as_value(), "", &mut text);
    text
}

fn describe(schema: &Value, within: &str, text: &mut String) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, property) in properties {
        let path = format!("{within}{name}");
        let (kind, inner) = kind_of(property);
        let needed = if required.contains(&name.as_str()) {
            "required"
        } else {
            ""
        };
        let about = property["description"]
            .as_str()
            .unwrap_or("")
            .replace('\n', " ");
        let _ = writeln!(text, "| `{path}` | {kind} | {needed} | {about} |");
        let list = if kind.starts_with("list") { "[]" } else { "" };
        describe(inner, &format!("{path}{list}."), text);
    }
}

/// What a field holds, and the schema of what is within.
fn kind_of(property: &Value) -> (String, &Value) {
    // `Option`: the one that is not null.
    if let Some(some) = property["anyOf"].as_array().and_then(|of| of.first()) {
        return kind_of(some);
    }
    if let Some(values) = property["enum"].as_array() {
        let values = values.iter().filter_map(Value::as_str);
        let values: Vec<String> = values.map(|value| format!("`{value}`")).collect();
        return (values.join(" or "), &Value::Null);
    }
    let kind = match &property["type"] {
        Value::Array(kinds) => kinds[0].as_str().unwrap_or(""),
        kind => kind.as_str().unwrap_or(""),
    };
    match kind {
        "array" => {
            let (of, inner) = kind_of(&property["items"]);
            (format!("list of {of}"), inner)
        }
        "object" if property["additionalProperties"].is_object() => {
            ("map of strings".to_owned(), &Value::Null)
        }
        "integer" => ("number".to_owned(), property),
        "object" => ("object".to_owned(), property),
        kind => (kind.to_owned(), property),
    }
}

/// Rows of a message of the proxy's configuration, without the fields that a policy may not set.
fn message(name: &str, without: &[&str]) -> String {
    let set = protox::Compiler::new([root().join("config/proto")])
        .unwrap()
        .include_source_info(true)
        .include_imports(true)
        .open_file("weft/v1/config.proto")
        .unwrap()
        .file_descriptor_set();
    let file = set
        .file
        .iter()
        .find(|file| file.name().ends_with("config.proto"))
        .unwrap();
    let number = file
        .message_type
        .iter()
        .position(|of| of.name() == name)
        .unwrap();
    let mut text = String::new();
    for (index, field) in file.message_type[number].field.iter().enumerate() {
        if without.contains(&field.json_name()) {
            continue;
        }
        let path = [4, number as i32, 2, index as i32];
        let locations = &file.source_code_info.as_ref().unwrap().location;
        let about = locations.iter().find(|location| location.path == path);
        let about = about
            .map_or("", |of| of.leading_comments())
            .trim()
            .replace('\n', "");
        let of = field.type_name().rsplit('.').next().unwrap_or("");
        let is_message = field.r#type() == prost_types::field_descriptor_proto::Type::Message;
        let kind = match (is_message, of) {
            (true, of) => format!("[{of}](configuration.md#{})", of.to_lowercase()),
            (false, "") => format!("{:?}", field.r#type()).to_lowercase(),
            (false, of) => of.to_owned(),
        };
        let list = match field.label() {
            prost_types::field_descriptor_proto::Label::Repeated => "list of ",
            _ => "",
        };
        let _ = writeln!(
            text,
            "| `{}` | {list}{kind} | | {about} |",
            field.json_name()
        );
    }
    text
}

/// A field that is read: where it is, another value than the example's, what it does.
type Read = (&'static str, &'static str, &'static str);

struct Kind {
    name: &'static str,
    version: &'static str,
    /// An object with everything that is read.
    example: &'static str,
    read: &'static [Read],
    others: &'static str,
}

const KINDS: [Kind; 9] = [
    Kind {
        name: "Service",
        version: "v1",
        example: "metadata: {name: a, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z', generation: 1}\nspec: {type: ClusterIP, clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], ipFamilies: [IPv4], publishNotReadyAddresses: false, ports: [{name: http, port: 80, protocol: TCP, appProtocol: http}]}",
        read: &[
            (
                "/metadata/creationTimestamp",
                "'2026-01-02T00:00:00Z'",
                "of two Services that claim one address the older has it",
            ),
            (
                "/metadata/generation",
                "2",
                "returned as `observedGeneration`",
            ),
            (
                "/spec/type",
                "ExternalName",
                "`ExternalName`: no part of the mesh, and no backend; others are alike",
            ),
            (
                "/spec/clusterIP",
                "None",
                "an address that is dialled; `None`: headless, its pods are dialled themselves and it takes no routes",
            ),
            (
                "/spec/clusterIPs",
                "[10.0.0.1, 'fd00::1']",
                "further addresses; the first one's family is preferred of pods that have both",
            ),
            (
                "/spec/publishNotReadyAddresses",
                "true",
                "endpoints that are not ready count as ready ones, unless they terminate",
            ),
            (
                "/spec/ports/0/name",
                "grpc",
                "finds the slices' port; its prefix (`http-`, `grpc-`, `tcp-`, …) is the protocol where `appProtocol` is not there",
            ),
            ("/spec/ports/0/port", "81", "what is dialled"),
            ("/spec/ports/0/protocol", "UDP", "only TCP is of the mesh"),
            (
                "/spec/ports/0/appProtocol",
                "kubernetes.io/h2c",
                "`http`, `kubernetes.io/ws`; `h2c`, `http2`, `grpc`; `https`, `tls`, `kubernetes.io/wss`; `tcp`, `mongo`, `mysql`, `postgres`, `redis`. Another of `kubernetes.io/`: no backend (`UnsupportedProtocol`); any other: detected",
            ),
        ],
        others: "`selector` and `targetPort` are what Kubernetes makes EndpointSlices of, `sessionAffinity`, `externalIPs`, node ports, load balancers and traffic policies are kube-proxy's. `ipFamilies` is read where there is no address.",
    },
    Kind {
        name: "EndpointSlice",
        version: "discovery.k8s.io/v1",
        example: "metadata: {name: a-1, namespace: shop, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\nports: [{name: http, port: 8080, protocol: TCP}]\nendpoints: [{addresses: [10.1.0.1], zone: z, conditions: {ready: true, serving: true, terminating: false}, targetRef: {kind: Pod, name: p, uid: u}}]",
        read: &[
            (
                "/metadata/labels/kubernetes.io~1service-name",
                "b",
                "the Service",
            ),
            ("/ports/0/name", "grpc", "the Service's port"),
            (
                "/ports/0/port",
                "9090",
                "where its pods listen; named target ports have been looked up by Kubernetes",
            ),
            ("/ports/0/protocol", "UDP", "only TCP is read"),
            ("/endpoints/0/addresses", "[10.1.0.2]", "the first is used"),
            (
                "/endpoints/0/zone",
                "other",
                "near ones are preferred (`balancer.zone`)",
            ),
            (
                "/endpoints/0/conditions/ready",
                "false",
                "gets requests; default true",
            ),
            (
                "/endpoints/0/conditions/serving",
                "false",
                "gets requests when no endpoint is ready; default as `ready`",
            ),
            (
                "/endpoints/0/conditions/terminating",
                "true",
                "leaves rotation, unless all do",
            ),
            (
                "/endpoints/0/targetRef/kind",
                "Node",
                "Pods have identities; whatever else is called in plain text",
            ),
            (
                "/endpoints/0/targetRef/uid",
                "v",
                "must be that pod: if it is gone, or has another address, the endpoint is left out",
            ),
            (
                "/endpoints/0/targetRef/name",
                "q",
                "the pod, where there is no `uid`",
            ),
        ],
        others: "`hints`, `hostname` and `nodeName` are not read.",
    },
    Kind {
        name: "Pod",
        version: "v1",
        example: "metadata: {name: a, namespace: shop, uid: u, labels: {app: a}, annotations: {weft.dev/inbound: captured}}\nspec: {serviceAccountName: s, containers: []}\nstatus: {podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}]}",
        read: &[
            ("/metadata/uid", "v", "the workload"),
            (
                "/metadata/labels",
                "{app: b}",
                "what policies' selectors select",
            ),
            (
                "/metadata/annotations/weft.dev~1inbound",
                "'14008'",
                "it has a sidecar: `captured`, or the port at which that takes mTLS. Without it the pod is called in plain text",
            ),
            (
                "/spec/serviceAccountName",
                "t",
                "its identity; default `default`",
            ),
            ("/status/podIP", "10.1.0.2", "its address"),
            (
                "/status/podIPs",
                "[{ip: 10.1.0.1}, {ip: 'fd00::1'}]",
                "all its addresses",
            ),
        ],
        others: "Nothing else is read: whether it is ready, its EndpointSlices say.",
    },
    Kind {
        name: "HTTPRoute",
        version: "gateway.networking.k8s.io/v1",
        example: "metadata: {name: a, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}\nspec: {parentRefs: [{group: '', kind: Service, name: s, port: 80}], rules: [{name: r, matches: [{path: {type: PathPrefix, value: /a}}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}}}], backendRefs: [{name: b, port: 80, weight: 1}], timeouts: {request: 1s}, retry: {attempts: 1}}]}",
        read: &[
            (
                "/metadata/creationTimestamp",
                "'2026-01-02T00:00:00Z'",
                "precedence of matches that are alike: the oldest, then by name",
            ),
            (
                "/spec/parentRefs",
                "[{group: '', kind: Service, name: t}]",
                "Services: in the route's namespace for everybody, in another for clients of the route's namespace. See below",
            ),
            ("/spec/rules/0/name", "q", "in logs and metrics"),
            (
                "/spec/rules/0/matches",
                "[{method: GET}]",
                "[Match](configuration.md#match)",
            ),
            (
                "/spec/rules/0/filters",
                "[]",
                "[Filter](configuration.md#filter); one that cannot be honoured is never skipped: its rule answers 500",
            ),
            (
                "/spec/rules/0/backendRefs",
                "[{name: c, namespace: o, port: 81}]",
                "Services; another namespace's need no ReferenceGrant. The share of one that is not there answers 500",
            ),
            (
                "/spec/rules/0/timeouts",
                "{backendRequest: 1s}",
                "[Timeouts](configuration.md#timeouts)",
            ),
            (
                "/spec/rules/0/retry",
                "{attempts: 2}",
                "[Retry](configuration.md#retry)",
            ),
        ],
        others: "`hostnames` are ignored, as Gateway API says of routes whose parent is a Service. Other fields of a rule are those of [Rule](configuration.md#rule); what is not there is an error.",
    },
    Kind {
        name: "GRPCRoute",
        version: "gateway.networking.k8s.io/v1",
        example: "metadata: {name: a, namespace: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: s}], rules: [{matches: [{method: {service: x.Y, method: Z}}], backendRefs: [{name: b, port: 80}]}]}",
        read: &[
            ("/spec/parentRefs", "[]", "as an HTTPRoute's"),
            (
                "/spec/rules/0/matches",
                "[{method: {service: x.Z}}]",
                "service and method, and headers",
            ),
            (
                "/spec/rules/0/backendRefs",
                "[]",
                "as an HTTPRoute's; the share of one that is not there answers UNAVAILABLE",
            ),
        ],
        others: "As of HTTPRoute. On one port a GRPCRoute beats HTTPRoutes, they TLSRoutes, and those TCPRoutes; who loses is `Conflicted`. A connection follows one route: of several TLSRoutes or TCPRoutes the oldest.",
    },
    Kind {
        name: "TLSRoute, TCPRoute",
        version: "gateway.networking.k8s.io/v1, v1alpha2",
        example: "metadata: {name: a, namespace: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: s}], rules: [{backendRefs: [{name: b, port: 80}]}]}",
        read: &[
            ("/spec/parentRefs", "[]", "as an HTTPRoute's"),
            (
                "/spec/rules/0/backendRefs",
                "[]",
                "Services, weighted; a connection to one that is not there is closed",
            ),
        ],
        others: "`hostnames` are ignored.",
    },
    Kind {
        name: "XMesh",
        version: "gateway.networking.x-k8s.io/v1alpha1",
        example: "metadata: {name: weft}\nspec: {controllerName: weft.dev/controller, parametersRef: {group: '', kind: ConfigMap, name: c, namespace: shop}}",
        read: &[
            (
                "/spec/controllerName",
                "example.com/other",
                "whose it is: ours is `weft.dev/controller`, and others are left alone",
            ),
            (
                "/spec/parametersRef",
                "null",
                "must not be there: `InvalidParameters`",
            ),
        ],
        others: "The controller makes the one named `weft` (`--mesh-name`) if there is none; its status says what we support.",
    },
    Kind {
        name: "ReferenceGrant",
        version: "gateway.networking.k8s.io/v1",
        example: "metadata: {name: a, namespace: shop}\nspec: {from: [{group: g, kind: k, namespace: o}], to: [{group: '', kind: Service}]}",
        read: &[
            ("/spec/from", "[]", "read and checked"),
            ("/spec/to", "[]", "read and checked"),
        ],
        others: "Nothing of a mesh needs one: neither a route's parent nor its backends.",
    },
    Kind {
        name: "Namespace",
        version: "v1",
        example: "metadata: {name: a}",
        read: &[(
            "/metadata/name",
            "b",
            "policies name namespaces; one need not be written down to be used",
        )],
        others: "Nothing else is read.",
    },
];

/// A kind's example as it is read.
fn parsed(kind: &str, version: &str, example: &Value) -> String {
    let mut whole = example.clone();
    whole["apiVersion"] = json!(version);
    whole["kind"] = json!(kind);
    let parsed = manifest::parse("x", &whole.to_string());
    assert!(parsed.errors.is_empty(), "{parsed:?}");
    format!("{:?}", parsed.objects)
}

#[test]
fn every_field_that_is_said_to_be_read_is() {
    for of in &KINDS {
        let version = of.version.split(',').next().unwrap();
        let example: Value = serde_saphyr::from_str(of.example).unwrap();
        for kind in of.name.split(", ") {
            let before = parsed(kind, version, &example);
            for (path, other, _) in of.read {
                let mut changed = example.clone();
                let field = changed.pointer_mut(path);
                let field = field.unwrap_or_else(|| panic!("{kind}{path} is not in the example"));
                let other: Value = serde_saphyr::from_str(other).unwrap();
                assert_ne!(*field, other, "{kind}{path}");
                *field = other;
                // The ClusterIP is the first of the list, which says more.
                if *path == "/spec/clusterIP" {
                    changed["spec"]
                        .as_object_mut()
                        .unwrap()
                        .remove("clusterIPs");
                }
                assert_ne!(
                    parsed(kind, version, &changed),
                    before,
                    "{kind}{path} is not read"
                );
            }
            let mut more = example.clone();
            more["metadata"]["resourceVersion"] = json!("7");
            more["status"]["nothing"] = json!({});
            assert_eq!(parsed(kind, version, &more), before, "{kind}");
        }
    }
}

fn reference() -> String {
    let mut page = String::from(
        "# Reference of kinds

What the controller reads: Weft's own kinds, and what it takes from Kubernetes' and Gateway API's.
Written by `make reference` from the types; a test holds it to them. How to use them is in
[mesh.md](mesh.md); messages that are linked are the proxy's, in [configuration.md](configuration.md).

Every object needs `apiVersion`, `kind` and `metadata.name`; `metadata.namespace` is `default` where it is
not there. An unknown field of Weft's kinds, or of a route's rules, is an error with its path; a document with
an error keeps its last good version.

## Weft's kinds

All are `weft.dev/v1alpha1`, and are about their own namespace. Of policies that contradict each other the
oldest (`metadata.creationTimestamp`) counts, then the first by name; the others' conditions say so.
",
    );
    let head = "\n| field of `spec` | type | | |\n| --- | --- | --- | --- |\n";
    let attachment = rows::<Attachment>();
    let line = |name: &str| {
        let rows = attachment
            .lines()
            .filter(|row| row.starts_with(&format!("| `{name}")));
        rows.fold(String::new(), |text, row| text + row + "\n")
    };
    let (targets, selector) = (line("targetRefs"), line("selector"));
    let rules = message("AuthorizationRules", &["name"]);
    let _ = write!(
        page,
        "\n### AuthorizationPolicy\n\nWho may do what to the pods behind `targetRefs`, to those that `selector` selects, or to all of the\nnamespace; with both, to those that both name. Denying rules come before allowing ones; where an allowing\npolicy is about a workload, what none allows is denied.\n{head}{targets}{selector}{rules}"
    );
    let _ = write!(
        page,
        "\n### WorkloadPolicy\n\nHow the sidecars of its pods take and make connections. A policy with a selector counts before one without.\nOf two for the same pods that say different things of one field the younger is out as a whole.\n{head}{}",
        rows::<WorkloadPolicy>()
    );
    let service = message("Service", &["name", "protocol", "endpoints", "dns", "tls"]);
    let _ = write!(
        page,
        "\n### TrafficPolicy\n\nHow Services are called. One policy counts for a Service.\n{head}{targets}{service}"
    );
    page.push_str("\n## Kubernetes' and Gateway API's kinds\n");
    for kind in &KINDS {
        let _ = write!(
            page,
            "\n### {}\n\n`{}`\n\n| field | what it does |\n| --- | --- |\n",
            kind.name,
            kind.version.replace(", ", "`, `")
        );
        for (path, _, does) in kind.read {
            let path = path
                .trim_start_matches('/')
                .replace("/0/", "[].")
                .replace('/', ".")
                .replace("~1", "/");
            let _ = writeln!(page, "| `{path}` | {does} |");
        }
        let _ = write!(page, "\n{}\n", kind.others);
    }
    let _ = write!(
        page,
        "\n### parentRefs of routes\n\n| field | type | | |\n| --- | --- | --- | --- |\n{}",
        rows::<ParentRef>()
    );
    let _ = write!(
        page,
        "\n### spec of ReferenceGrant\n\n| field | type | | |\n| --- | --- | --- | --- |\n{}",
        rows::<ReferenceGrant>()
    );
    let annotations: String = rows::<Options>()
        .lines()
        .map(|row| {
            // Annotations are strings, and none has to be there.
            let cells: Vec<&str> = row.splitn(5, '|').collect();
            let name = cells[1].trim().trim_matches('`');
            format!("| `{PREFIX}{name}` |{}\n", cells[4])
        })
        .collect();
    let _ = write!(
        page,
        "\n## Annotations of pods\n\nWhat a pod says of its sidecar when it is [injected](injection.md). Others with this prefix, and values that are\nnot allowed, are refused.\n\n| annotation | |\n| --- | --- |\n{annotations}"
    );
    page.push_str("
## Conditions

`/status` of the controller's admin port lists them by object, with `observedGeneration` where the object has a
generation.

| kind | condition | reasons where it is false |
| --- | --- | --- |
| routes, for each parentRef | `Accepted` | `NoMatchingParent` (no such Service or port, one that takes no routes, or a port that is declared to carry something else), `UnsupportedValue` (we cannot do that), `IncompatibleFilters` (each is good, but not beside the other), `Conflicted` |
| routes, for each parentRef | `ResolvedRefs` | `BackendNotFound`, `InvalidKind`, `UnsupportedProtocol` |
| routes, for each parentRef | `PartiallyInvalid`, only where it is true | `UnsupportedValue`, `IncompatibleFilters`: of these rules some are left out, or answer 500 |
| XMesh | `Accepted` | `InvalidParameters` |
| AuthorizationPolicy, WorkloadPolicy, TrafficPolicy | `Accepted` | `TargetNotFound`, `Conflicted`, `Invalid` |
| Service, for an address | `Accepted` | `Conflicted`: the address belongs to another |
| EndpointSlice | `ResolvedRefs` | `PodNotFound`: an endpoint is left out |
");
    page
}

/// The pod that docs/injection.md shows.
#[test]
fn the_documented_pod_is_what_injection_makes() {
    let text = fs::read_to_string(root().join("docs/injection.md")).unwrap();
    let text = text.replace("VERSION", env!("CARGO_PKG_VERSION"));
    let pod = |heading: &str| -> Value {
        let (_, after) = text.split_once(heading).unwrap();
        let (_, block) = after.split_once("```yaml\n").unwrap();
        serde_saphyr::from_str(block.split("```").next().unwrap()).unwrap()
    };
    let settings = Settings {
        image: format!("ghcr.io/weft-mesh/weft-proxy:{}", env!("CARGO_PKG_VERSION")),
        pull_policy: None,
        controllers: vec!["weft-controller.weft-system.svc.cluster.local:14010".to_owned()],
        trust_bundle: "…".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        defaults: Options::default(),
    };
    let token = "00112233445566778899aabbccddeeff".parse().unwrap();
    let Ok(Outcome::Injected(injected)) = inject(&pod("\nBefore:"), true, &settings, token) else {
        panic!("it is not injected");
    };
    assert_eq!(injected.warnings, [""; 0]);
    let shown = pod("\nAfter:");
    assert_eq!(shown, injected.pod, "{:#}", injected.pod);
}

#[test]
fn what_is_checked_in_is_what_the_types_say() {
    let (page, file) = (reference(), root().join("docs/reference.md"));
    if std::env::var_os("WEFT_WRITE_REFERENCE").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == page,
        "docs/reference.md is not what the types say: run `make reference`"
    );
}

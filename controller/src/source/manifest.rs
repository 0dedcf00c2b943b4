//! Manifests as objects: what the index needs of each kind, and nothing else.
//! Core kinds are read as Kubernetes' own types; the rules of routes are our
//! wire form's, whose JSON is Gateway API's but for references.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_config::compile::timestamp;
use weft_config::status::SourceError;
use weft_config::wire;

use super::route::route;
use crate::api::{
    Attachment, AuthorizationPolicy, Node, Object, Pod, Service, ServicePort, Slice, SliceEndpoint,
    Spec, TrafficPolicy, mesh,
};

/// Documents of a file, and values, maps and lists in them; one that has more is not read. An
/// alias counts as what it stands for.
const DOCUMENTS_MAX: usize = 50_000;
const NODES_MAX: usize = 2_000_000;

#[derive(Debug, Default)]
pub struct Parsed {
    pub objects: Vec<Object>,
    pub errors: Vec<SourceError>,
}

/// Reads the documents of a file.
pub fn parse(file: &str, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: DOCUMENTS_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
        },
    };
    let documents = match serde_saphyr::from_multiple_with_options::<Value>(text, options) {
        Ok(documents) => documents,
        Err(error) => {
            parsed.errors.push(SourceError {
                file: file.to_owned(),
                message: error.without_snippet().to_string(),
                ..SourceError::default()
            });
            return parsed;
        }
    };
    for (index, document) in documents.into_iter().enumerate() {
        let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let items = match document {
            Value::Null => continue,
            Value::Object(ref map) if map.get("kind") == Some(&json!("List")) => {
                let items = map.get("items").and_then(Value::as_array);
                items.cloned().unwrap_or_default()
            }
            document => vec![document],
        };
        for item in items {
            match one(file, item) {
                Ok(object) => parsed.objects.extend(object),
                Err(error) => parsed.errors.push(SourceError {
                    document: number,
                    ..error
                }),
            }
        }
    }
    parsed
}

/// Reads one object. `None`: of a kind that is not ours to read, or of no use any more.
pub fn one(file: &str, value: Value) -> Result<Option<Object>, SourceError> {
    let named = format!(
        "{} {}/{}",
        text_of(&value, "/kind"),
        namespace_of(&value),
        text_of(&value, "/metadata/name")
    );
    object(value).map_err(|(field, message)| SourceError {
        file: file.to_owned(),
        document: 0,
        object: named,
        field,
        message,
    })
}

pub(super) fn text_of<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

pub(super) fn namespace_of(value: &Value) -> &str {
    match text_of(value, "/metadata/namespace") {
        "" if is_of_the_cluster(value) => "",
        "" => "default",
        namespace => namespace,
    }
}

/// Whether it is in no namespace.
fn is_of_the_cluster(value: &Value) -> bool {
    matches!(text_of(value, "/kind"), "Namespace" | "Node" | mesh::KIND)
}

/// Field and problem.
pub(super) type Fault = (String, String);

pub(super) fn typed<T: DeserializeOwned>(value: &Value, within: &str) -> Result<T, Fault> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { "" } else { &path };
        let dot = if within.is_empty() || path.is_empty() {
            ""
        } else {
            "."
        };
        (format!("{within}{dot}{path}"), error.inner().to_string())
    })
}

fn object(value: Value) -> Result<Option<Object>, Fault> {
    let name = text_of(&value, "/metadata/name").to_owned();
    let group = text_of(&value, "/apiVersion")
        .split('/')
        .next()
        .unwrap_or("");
    let spec = value.get("spec").cloned().unwrap_or_else(|| json!({}));
    let namespace = match is_of_the_cluster(&value) {
        true => String::new(),
        false => namespace_of(&value).to_owned(),
    };
    let created = text_of(&value, "/metadata/creationTimestamp");
    let created = match created {
        "" => None,
        text => Some(timestamp::parse(text).ok_or_else(|| {
            let problem = format!("\"{text}\" is no time (RFC 3339)");
            ("metadata.creationTimestamp".to_owned(), problem)
        })?),
    };
    let generation = value.pointer("/metadata/generation");
    let generation = generation.and_then(Value::as_i64).unwrap_or(0);
    let spec = match (group, text_of(&value, "/kind")) {
        ("v1", "Namespace") => Spec::Namespace,
        ("v1", "Node") => Spec::Node(node(&value)),
        ("v1", "Service") => Spec::Service(service(typed(&value, "")?)?),
        ("v1", "Pod") => match pod(typed(&value, "")?) {
            Some(pod) => Spec::Pod(pod),
            None => return Ok(None),
        },
        ("discovery.k8s.io", "EndpointSlice") => Spec::Slice(slice(typed(&value, "")?)),
        (
            "gateway.networking.k8s.io",
            kind @ ("HTTPRoute" | "GRPCRoute" | "TCPRoute" | "TLSRoute"),
        ) => Spec::Route(route(kind, &value, spec)?),
        ("gateway.networking.k8s.io", "ReferenceGrant") => {
            Spec::ReferenceGrant(typed(&spec, "spec")?)
        }
        ("gateway.networking.x-k8s.io", mesh::KIND) => Spec::Mesh(typed(&spec, "spec")?),
        ("weft.dev", "AuthorizationPolicy") => Spec::Authorization(authorization(spec)?),
        ("weft.dev", "WorkloadPolicy") => Spec::Workload(typed(&spec, "spec")?),
        ("weft.dev", "TrafficPolicy") => Spec::Traffic(Box::new(traffic(spec)?)),
        ("weft.dev", kind) => {
            return Err((
                "kind".to_owned(),
                format!(
                    "\"{kind}\" is not a kind of weft.dev; there are AuthorizationPolicy, TrafficPolicy and WorkloadPolicy"
                ),
            ));
        }
        _ => return Ok(None),
    };
    if name.is_empty() {
        return Err(("metadata.name".to_owned(), "is missing".to_owned()));
    }
    Ok(Some(Object {
        namespace,
        name,
        created,
        generation,
        spec,
    }))
}

fn port(field: &str, number: i32) -> Result<u16, Fault> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| (field.to_owned(), format!("{number} is not a port")))
}

fn service(service: core::Service) -> Result<Service, Fault> {
    let spec = service.spec.unwrap_or_default();
    let ips = spec.cluster_ips.unwrap_or_default();
    let mut ports = Vec::new();
    for (index, of) in spec.ports.unwrap_or_default().into_iter().enumerate() {
        if of.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            continue;
        }
        let declared = of.app_protocol.as_deref();
        let protocol = protocol(declared, of.name.as_deref());
        let kubernetes = declared.is_some_and(|word| word.starts_with("kubernetes.io/"));
        ports.push(ServicePort {
            port: port(&format!("spec.ports[{index}].port"), of.port)?,
            unknown_protocol: kubernetes && protocol.is_empty(),
            protocol,
            name: of.name.unwrap_or_default(),
        });
    }
    let addresses = ips
        .iter()
        .chain(&spec.cluster_ip)
        .filter_map(|ip| ip.parse().ok())
        .fold(Vec::new(), |mut all: Vec<IpAddr>, ip| {
            if !all.contains(&ip) {
                all.push(ip);
            }
            all
        });
    let families = spec.ip_families.unwrap_or_default();
    let annotations = service.metadata.annotations.unwrap_or_default();
    let mode = annotations.get("service.kubernetes.io/topology-mode");
    Ok(Service {
        // PreferClose, PreferSameZone and PreferSameNode: our nearest is the zone.
        prefers_zone: spec.traffic_distribution.is_some()
            || mode.is_some_and(|mode| mode.eq_ignore_ascii_case("auto")),
        headless: spec.cluster_ip.as_deref() == Some("None"),
        external: spec.type_.as_deref() == Some("ExternalName"),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        prefers_ipv6: match (addresses.first(), families.first()) {
            (Some(address), _) => address.is_ipv6(),
            (None, family) => family.is_some_and(|family| family == "IPv6"),
        },
        addresses,
        ports,
    })
}

/// `http`, `http2`, `tls`, `tcp`, or empty where nothing is declared.
fn protocol(declared: Option<&str>, name: Option<&str>) -> String {
    let named = name.unwrap_or("").split('-').next().unwrap_or("");
    let word = match declared {
        Some(word) => word.strip_prefix("kubernetes.io/").unwrap_or(word),
        None => named,
    };
    match word.to_ascii_lowercase().as_str() {
        "http" | "ws" => "http",
        "h2c" | "http2" | "grpc" => "http2",
        "https" | "tls" | "wss" => "tls",
        "tcp" | "mongo" | "mysql" | "redis" | "postgres" => "tcp",
        _ => "",
    }
    .to_owned()
}

fn slice(slice: EndpointSlice) -> Slice {
    let labels = slice.metadata.labels.unwrap_or_default();
    let ports = slice.ports.unwrap_or_default();
    let endpoints = slice.endpoints.into_iter();
    Slice {
        service: labels
            .get("kubernetes.io/service-name")
            .cloned()
            .unwrap_or_default(),
        ports: ports
            .into_iter()
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
            .filter_map(|port| {
                Some((
                    port.name.unwrap_or_default(),
                    u16::try_from(port.port?).ok()?,
                ))
            })
            .collect(),
        endpoints: endpoints
            .map(|endpoint| {
                let conditions = endpoint.conditions.unwrap_or_default();
                let own = endpoint.zone.unwrap_or_default();
                let hints = endpoint.hints.unwrap_or_default().for_zones;
                let hints = hints.unwrap_or_default();
                let is_meant_for_own = hints.iter().any(|hint| hint.name == own);
                let zone = match hints.into_iter().next() {
                    Some(hint) if !is_meant_for_own => hint.name,
                    _ => own,
                };
                let ready = conditions.ready.unwrap_or(true);
                SliceEndpoint {
                    addresses: endpoint
                        .addresses
                        .iter()
                        .filter_map(|ip| ip.parse().ok())
                        .collect(),
                    ready,
                    serving: conditions.serving.unwrap_or(ready),
                    terminating: conditions.terminating.unwrap_or(false),
                    zone,
                    pod: endpoint
                        .target_ref
                        .filter(|target| target.kind.as_deref() == Some("Pod"))
                        .map(|target| {
                            (
                                target.name.unwrap_or_default(),
                                target.uid.unwrap_or_default(),
                            )
                        }),
                }
            })
            .collect(),
    }
}

/// `None`: it has ended, and its address may be another's, though its status still has it.
fn pod(pod: core::Pod) -> Option<Pod> {
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let ips = status.pod_ips.into_iter().flatten().map(|ip| ip.ip);
    // The first of them, where there is a list.
    let mut addresses: Vec<IpAddr> = ips
        .chain(status.pod_ip)
        .filter_map(|ip| ip.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.shrink_to_fit();
    let annotations = pod.metadata.annotations.unwrap_or_default();
    let inbound = annotations.get("weft.dev/inbound").cloned();
    // In the node's own network nothing is captured, whatever a template says.
    let captures_nothing = spec.host_network == Some(true);
    Some(Pod {
        uid: pod.metadata.uid.unwrap_or_default(),
        account: match spec.service_account_name.as_deref() {
            None | Some("") => "default".to_owned(),
            Some(account) => account.to_owned(),
        },
        labels: pod.metadata.labels.into_iter().flatten().collect(),
        addresses,
        inbound: inbound.filter(|at| at != "captured" || !captures_nothing),
        node: spec.node_name.unwrap_or_default(),
        is_leaving: pod.metadata.deletion_timestamp.is_some(),
    })
}

fn node(value: &Value) -> Node {
    let labels = value.pointer("/metadata/labels");
    let zone = labels.and_then(|labels| labels.get("topology.kubernetes.io/zone"));
    Node {
        zone: zone.and_then(Value::as_str).unwrap_or("").to_owned(),
    }
}

fn authorization(spec: Value) -> Result<AuthorizationPolicy, Fault> {
    let (attachment, rest) = attachment(spec)?;
    let rules: wire::AuthorizationRules = typed(&rest, "spec")?;
    // Here, so that a mistake keeps the last good policy.
    let named = wire::AuthorizationRules {
        name: "spec".to_owned(),
        ..rules.clone()
    };
    crate::index::check_rules(&named).map_err(|problem| ("spec".to_owned(), problem))?;
    Ok(AuthorizationPolicy {
        targets: attachment.target_refs,
        selector: attachment.selector,
        rules,
    })
}

fn traffic(spec: Value) -> Result<TrafficPolicy, Fault> {
    let (attachment, rest) = attachment(spec)?;
    if attachment.selector.is_some() {
        let problem = "a TrafficPolicy is about Services: use targetRefs";
        return Err(("spec.selector".to_owned(), problem.to_owned()));
    }
    Ok(TrafficPolicy {
        targets: attachment.target_refs,
        service: typed(&rest, "spec")?,
    })
}

/// What a policy is about, and the rest of it.
fn attachment(mut spec: Value) -> Result<(Attachment, Value), Fault> {
    let mut own = serde_json::Map::new();
    if let Some(map) = spec.as_object_mut() {
        for name in Attachment::FIELDS {
            own.extend(map.remove_entry(name));
        }
    }
    Ok((typed(&Value::Object(own), "spec")?, spec))
}

/// Takes a field out of a tree, and reads it.
pub(super) fn take<T: DeserializeOwned>(
    from: &mut Value,
    name: &str,
    within: &str,
) -> Result<Option<T>, Fault> {
    match from.as_object_mut().and_then(|map| map.remove(name)) {
        None => Ok(None),
        Some(value) => typed(&value, &format!("{within}.{name}")).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_name_object_and_field() {
        for (text, field, problem) in [
            (
                "apiVersion: weft.dev/v1alpha1\nkind: WorkloadPolicy\nmetadata: {name: a}\nspec: {mtls: maybe}",
                "spec.mtls",
                "maybe",
            ),
            (
                "apiVersion: weft.dev/v1alpha1\nkind: WorkloadPolicy\nmetadata: {name: a}\nspec: {mlts: strict}",
                "spec.mlts",
                "unknown field",
            ),
            (
                "apiVersion: weft.dev/v1alpha1\nkind: Nonsense\nmetadata: {name: a}",
                "kind",
                "WorkloadPolicy",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 99999}]}",
                "spec.ports[0].port",
                "not a port",
            ),
            (
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {rules: [{matches: [{pth: {}}]}]}",
                "spec.rules[0].matches[0].pth",
                "unknown field",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {}",
                "metadata.name",
                "missing",
            ),
        ] {
            let parsed = parse("x.yaml", text);
            assert_eq!(parsed.errors.len(), 1, "{text}: {parsed:?}");
            let error = &parsed.errors[0];
            assert_eq!(error.field, field, "{error:?}");
            assert!(error.message.contains(problem), "{error:?}");
        }
    }

    #[test]
    fn a_file_has_as_many_documents_as_the_page_says() {
        let one = "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
        let parsed = parse("x.yaml", &one.repeat(DOCUMENTS_MAX));
        assert_eq!(
            (parsed.objects.len(), parsed.errors.len()),
            (DOCUMENTS_MAX, 0)
        );
        let parsed = parse("x.yaml", &one.repeat(DOCUMENTS_MAX + 1));
        assert!(parsed.objects.is_empty());
        let problem = &parsed.errors[0].message;
        assert!(problem.contains("documents"), "{problem}");
        // Each line stands for ten times the one before.
        let lines = (0..9).map(|number| {
            let ten = vec![format!("*a{number}"); 10].join(", ");
            format!("a{}: &a{} [{ten}]\n", number + 1, number + 1)
        });
        let laughs = format!("a0: &a0 [x]\n{}", lines.collect::<String>());
        let parsed = parse("x.yaml", &laughs);
        assert_eq!(parsed.errors.len(), 1, "{parsed:?}");
    }

    #[test]
    fn references_get_one_name() {
        let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: a, namespace: shop}\nspec:\n  parentRefs: [{group: '', kind: Service, name: web, port: 80}]\n  rules:\n  - matches: [{method: {service: x.Y, method: Z}}]\n    backendRefs: [{name: b, port: 80, weight: 3}, {name: c, namespace: other, port: 81}, {kind: Bucket, name: d}]\n";
        let parsed = parse("x.yaml", text);
        assert!(parsed.errors.is_empty(), "{parsed:?}");
        let Spec::Route(route) = &parsed.objects[0].spec else {
            panic!("{parsed:?}")
        };
        let backends = &route.wire.rules[0].backend_refs;
        assert_eq!(backends[0].name, "shop/b:80");
        assert_eq!(backends[1].name, "other/c:81");
        assert_eq!(backends[2].invalid, "InvalidKind");
        assert!(route.wire.rules[0].matches[0].grpc_method.is_some());
        assert_eq!(route.parents[0].port, 80);
    }
}

//! The table: objects, and the mesh that they make.

use serde_json::{Value, json};

use super::NODES;

/// Objects, and the mesh that they make, line by line.
pub struct Row {
    pub name: &'static str,
    pub objects: Vec<Value>,
    pub expected: &'static [&'static str],
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// In the mesh, in zone `a`; `more` is merged into it.
fn pod(name: &str, ips: &[&str], more: Value) -> Value {
    let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": {"weft.dev/inbound": "captured"}},
        "spec": {"nodeName": NODES[0].0, "containers": [{"name": "app", "image": "app"}]},
        "status": {"phase": "Running", "podIPs": addresses},
    });
    if let Some(ip) = ips.first() {
        pod["status"]["podIP"] = json!(ip);
    }
    merge(&mut pod, more);
    pod
}

fn slice(service: &str, ports: Value, endpoints: Value) -> Value {
    let addresses = endpoints[0]["addresses"][0].as_str().unwrap_or("");
    let family = if addresses.contains(':') {
        "IPv6"
    } else {
        "IPv4"
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn endpoint(ip: &str, pod: &str, more: Value) -> Value {
    let mut endpoint = json!({"addresses": [ip]});
    if !pod.is_empty() {
        endpoint["targetRef"] = json!({"kind": "Pod", "name": pod, "uid": pod});
    }
    merge(&mut endpoint, more);
    endpoint
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn http() -> Value {
    json!([{"name": "http", "port": 8080}])
}

fn port_80() -> Value {
    json!({"ports": [{"name": "http", "port": 80}]})
}

/// A service without a selector, and what is behind it.
fn web(spec: Value, endpoints: Value, pods: Vec<Value>) -> Vec<Value> {
    let mut own = port_80();
    merge(&mut own, spec);
    let mut objects = vec![service("web", own)];
    objects.extend(pods);
    objects.push(slice("web", http(), endpoints));
    objects
}

// tidy: allow size: a table
pub fn rows() -> Vec<Row> {
    let none = || json!({});
    vec![
        Row {
            name: "endpoints by hand, of no pod",
            objects: web(
                none(),
                json!([
                    endpoint("192.0.2.1", "", none()),
                    endpoint("192.0.2.2", "", json!({"zone": "b"})),
                ]),
                vec![],
            ),
            expected: &["web:80 anywhere -> 192.0.2.1:8080; 192.0.2.2:8080 zone b"],
        },
        Row {
            name: "several ports, by names and numbers of their own",
            objects: vec![
                service(
                    "web",
                    json!({"ports": [
                        {"name": "http", "port": 80, "targetPort": "web"},
                        {"name": "admin", "port": 81, "targetPort": 9000},
                        {"name": "dns", "port": 53, "protocol": "UDP"},
                    ]}),
                ),
                pod("p-1", &["192.0.2.1"], none()),
                pod("p-2", &["192.0.2.2"], none()),
                slice(
                    "web",
                    json!([{"name": "http", "port": 8080}, {"name": "admin", "port": 9000}, {"name": "dns", "port": 53, "protocol": "UDP"}]),
                    json!([endpoint("192.0.2.1", "p-1", none())]),
                ),
                {
                    // The other pod calls another number by that name.
                    let mut other = slice(
                        "web",
                        json!([{"name": "http", "port": 8081}, {"name": "admin", "port": 9000}]),
                        json!([endpoint("192.0.2.2", "p-2", none())]),
                    );
                    other["metadata"]["name"] = json!("web-other");
                    other
                },
            ],
            expected: &[
                "web:80 anywhere -> 192.0.2.1:8080 p-1; 192.0.2.2:8081 p-2",
                "web:81 anywhere -> 192.0.2.1:9000 p-1; 192.0.2.2:9000 p-2",
                "p-1 in zone a, ports 8080 9000",
                "p-2 in zone a, ports 8081 9000",
            ],
        },
        Row {
            name: "a pod with an address of each family",
            objects: {
                let mut objects = web(
                    none(),
                    json!([endpoint("192.0.2.1", "p", none())]),
                    vec![pod("p", &["192.0.2.1", "2001:db8::1"], none())],
                );
                let six = endpoint("2001:db8::1", "p", none());
                objects.push(slice("web", http(), json!([six])));
                objects
            },
            expected: &[
                "web:80 anywhere -> 192.0.2.1:8080 p",
                "p in zone a, ports 8080",
            ],
        },
        Row {
            name: "a Service of both families, IPv6 first",
            objects: {
                let mut objects = web(
                    json!({
                        "ipFamilyPolicy": "RequireDualStack",
                        "ipFamilies": ["IPv6", "IPv4"],
                        "clusterIP": "fd00:96::7701",
                        "clusterIPs": ["fd00:96::7701", "10.96.77.1"],
                    }),
                    json!([endpoint("192.0.2.1", "p", none())]),
                    vec![pod("p", &["192.0.2.1", "2001:db8::1"], none())],
                );
                let six = endpoint("2001:db8::1", "p", none());
                objects.push(slice("web", http(), json!([six])));
                objects
            },
            expected: &[
                "web:80 anywhere -> [2001:db8::1]:8080 p",
                "web has addresses of both families",
                "p in zone a, ports 8080",
            ],
        },
        Row {
            name: "headless: dialled by its pods",
            objects: web(
                json!({"clusterIP": "None"}),
                json!([endpoint("192.0.2.1", "p", json!({"hostname": "p"}))]),
                vec![pod(
                    "p",
                    &["192.0.2.1"],
                    json!({"spec": {"hostname": "p", "subdomain": "web"}}),
                )],
            ),
            expected: &[
                "web:80 anywhere -> 192.0.2.1:8080 p",
                "web:80 has no address",
                "p in zone a, ports 8080",
            ],
        },
        Row {
            name: "another name for something outside",
            objects: vec![service(
                "web",
                json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"name": "http", "port": 80}]}),
            )],
            expected: &["web:80 is nothing"],
        },
        Row {
            name: "not ready, and published all the same",
            objects: web(
                json!({"publishNotReadyAddresses": true}),
                json!([
                    endpoint("192.0.2.1", "", json!({"conditions": {"ready": false}})),
                    endpoint("192.0.2.2", "", none()),
                ]),
                vec![],
            ),
            expected: &["web:80 anywhere -> 192.0.2.1:8080; 192.0.2.2:8080"],
        },
        Row {
            name: "terminating, and serving: only where nobody else does",
            objects: web(
                none(),
                json!([
                    endpoint(
                        "192.0.2.1",
                        "",
                        json!({"conditions": {"ready": false, "serving": true, "terminating": true}})
                    ),
                    endpoint(
                        "192.0.2.2",
                        "",
                        json!({"conditions": {"ready": false, "serving": false, "terminating": true}})
                    ),
                ]),
                vec![],
            ),
            expected: &["web:80 anywhere -> 192.0.2.1:8080"],
        },
        Row {
            name: "the caller's zone first, and hints that say which it is for",
            objects: web(
                json!({"trafficDistribution": "PreferClose"}),
                json!([
                    endpoint(
                        "192.0.2.1",
                        "",
                        json!({"zone": "a", "hints": {"forZones": [{"name": "a"}]}})
                    ),
                    endpoint(
                        "192.0.2.2",
                        "",
                        json!({"zone": "a", "hints": {"forZones": [{"name": "b"}]}})
                    ),
                    endpoint("192.0.2.3", "", json!({"zone": "b"})),
                ]),
                vec![],
            ),
            expected: &[
                "web:80 nearest -> 192.0.2.1:8080 zone a; 192.0.2.2:8080 zone b; 192.0.2.3:8080 zone b",
            ],
        },
        Row {
            name: "in the node's network nothing is captured, and an address is shared",
            objects: web(
                none(),
                json!([
                    endpoint("192.0.2.9", "host-1", none()),
                    endpoint("192.0.2.1", "p", none()),
                ]),
                vec![
                    pod(
                        "host-1",
                        &["192.0.2.9"],
                        json!({"spec": {"hostNetwork": true}, "status": {"hostIP": "192.0.2.9", "hostIPs": [{"ip": "192.0.2.9"}]}}),
                    ),
                    pod(
                        "host-2",
                        &["192.0.2.9"],
                        json!({"spec": {"hostNetwork": true}, "status": {"hostIP": "192.0.2.9", "hostIPs": [{"ip": "192.0.2.9"}]}}),
                    ),
                    pod(
                        "p",
                        &["192.0.2.1"],
                        json!({"spec": {"nodeName": NODES[1].0}}),
                    ),
                ],
            ),
            expected: &[
                "web:80 anywhere -> 192.0.2.1:8080 p; 192.0.2.9:8080",
                "p in zone b, ports 8080",
            ],
        },
        Row {
            name: "a Job's pod that has ended has no address any more, and another has it",
            objects: web(
                none(),
                json!([
                    endpoint("192.0.2.1", "done", none()),
                    endpoint("192.0.2.2", "failed", none()),
                ]),
                vec![
                    pod(
                        "done",
                        &["192.0.2.1"],
                        json!({"status": {"phase": "Succeeded"}}),
                    ),
                    pod(
                        "failed",
                        &["192.0.2.2"],
                        json!({"status": {"phase": "Failed"}}),
                    ),
                    pod("fresh", &["192.0.2.1"], none()),
                ],
            ),
            expected: &["web:80 anywhere ->", "fresh in zone a, ports"],
        },
        Row {
            name: "a pod whose address is not the slice's",
            objects: web(
                none(),
                json!([endpoint("192.0.2.1", "p", none())]),
                vec![
                    pod("p", &["192.0.2.7"], none()),
                    pod("other", &["192.0.2.1"], none()),
                ],
            ),
            expected: &[
                "web:80 anywhere ->",
                "other in zone a, ports",
                "p in zone a, ports",
            ],
        },
        Row {
            name: "told to end, which its slice does not know yet",
            objects: web(
                none(),
                json!([
                    endpoint("192.0.2.1", "p", none()),
                    endpoint("192.0.2.2", "q", none()),
                ]),
                vec![
                    pod(
                        "p",
                        &["192.0.2.1"],
                        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                    ),
                    pod("q", &["192.0.2.2"], none()),
                ],
            ),
            expected: &[
                "web:80 anywhere -> 192.0.2.2:8080 q",
                "p in zone a, ports 8080",
                "q in zone a, ports 8080",
            ],
        },
    ]
}

//! What policies make of a workload's ports, and of how services are called.

use std::collections::BTreeMap;

use weft_config::compile::compile;
use weft_config::status::ObjectStatus;
use weft_config::wire;

use super::{Objects, condition};
use crate::api::{
    DefaultAction, Key, Mtls, Pod, Selector, Spec, UnknownDestination, WorkloadPolicy,
};

/// A workload as its own proxy has to know it. `named`: service, port and
/// protocol of each port that a Service names.
pub fn workload(
    objects: &Objects,
    key: &Key,
    pod: &Pod,
    named: Option<&Vec<(String, u16, String)>>,
) -> wire::Workload {
    let policy = merged(objects, key, pod);
    let mut ports: BTreeMap<u16, wire::WorkloadPort> = BTreeMap::new();
    for (_, port, protocol) in named.into_iter().flatten() {
        use wire::listener_protocol::Value;
        let protocol = match protocol.as_str() {
            "http" | "http2" => Value::Http,
            "tls" | "tcp" => Value::Tcp,
            _ => Value::Auto,
        };
        let of: Vec<&str> = named
            .into_iter()
            .flatten()
            .filter(|(_, other, _)| other == port)
            .map(|(service, ..)| service.as_str())
            .collect();
        ports.insert(
            *port,
            wire::WorkloadPort {
                port: u32::from(*port),
                protocol: protocol.into(),
                inbound: Some(inbound(objects, (key, pod), &policy, (*port, &of))),
            },
        );
    }
    // A port with an exception of its own is known, whether a Service names it or not.
    for exception in &policy.ports {
        ports
            .entry(exception.port)
            .or_insert_with(|| wire::WorkloadPort {
                port: u32::from(exception.port),
                protocol: wire::listener_protocol::Value::Auto.into(),
                inbound: Some(inbound(objects, (key, pod), &policy, (exception.port, &[]))),
            });
    }
    let refuse = policy.unknown_destination == Some(UnknownDestination::Refuse);
    let mut workload = wire::Workload {
        uid: pod.uid.clone(),
        namespace: key.namespace.clone(),
        service_account: pod.account.clone(),
        ports: ports.into_values().collect(),
        other_ports: Some(inbound(objects, (key, pod), &policy, (0, &[]))),
        ..Default::default()
    };
    if refuse {
        workload.set_unknown_destination(wire::workload::UnknownDestination::Refuse);
    }
    workload
}

/// The policies of a workload as one: a selector's beats the namespace's, and of
/// several alike the first by name counts.
fn merged(objects: &Objects, key: &Key, pod: &Pod) -> WorkloadPolicy {
    let mut policies: Vec<&WorkloadPolicy> = objects
        .iter()
        .filter_map(|(of, object)| match &object.spec {
            Spec::Workload(policy)
                if of.namespace == key.namespace && selects(policy.selector.as_ref(), pod) =>
            {
                Some(policy)
            }
            _ => None,
        })
        .collect();
    policies.sort_by_key(|policy| policy.selector.is_none());
    let mut merged = WorkloadPolicy::default();
    for policy in policies {
        merged.mtls = merged.mtls.or(policy.mtls);
        merged.default_action = merged.default_action.or(policy.default_action);
        merged.unknown_destination = merged.unknown_destination.or(policy.unknown_destination);
        for port in &policy.ports {
            if merged.ports.iter().all(|known| known.port != port.port) {
                merged.ports.push(port.clone());
            }
        }
    }
    merged
}

fn selects(selector: Option<&Selector>, pod: &Pod) -> bool {
    selector.is_none_or(|selector| {
        let mut labels = selector.match_labels.iter();
        labels.all(|(name, value)| pod.labels.get(name) == Some(value))
    })
}

fn inbound(
    objects: &Objects,
    (key, pod): (&Key, &Pod),
    policy: &WorkloadPolicy,
    (port, services): (u16, &[&str]),
) -> wire::Inbound {
    let exception = policy.ports.iter().find(|exception| exception.port == port);
    let mtls = exception.map(|exception| exception.mtls).or(policy.mtls);
    let policies = objects
        .iter()
        .filter_map(|(of, object)| match &object.spec {
            Spec::Authorization(policy) if of.namespace == key.namespace => Some((of, policy)),
            _ => None,
        })
        .filter(|(_, policy)| {
            let mut targets = policy.targets.iter();
            selects(policy.selector.as_ref(), pod)
                && (policy.targets.is_empty()
                    || targets.any(|target| {
                        target.kind == "Service" && services.contains(&target.name.as_str())
                    }))
        })
        .map(|(of, policy)| wire::AuthorizationRules {
            name: format!("{}/{}", of.namespace, of.name),
            ..policy.rules.clone()
        })
        .filter(|rules| compiles(rules).is_ok())
        .collect();
    let mut authorization = wire::Authorization {
        policies,
        ..Default::default()
    };
    if policy.default_action == Some(DefaultAction::Deny) {
        authorization.set_default(wire::authorization::Action::Deny);
    }
    let mut inbound = wire::Inbound {
        authorization: Some(authorization),
        ..Default::default()
    };
    if mtls == Some(Mtls::Strict) {
        inbound.set_mtls(wire::inbound::Mtls::Strict);
    }
    inbound
}

fn compiles(rules: &wire::AuthorizationRules) -> Result<(), String> {
    let inbound = wire::Inbound {
        authorization: Some(wire::Authorization {
            policies: vec![rules.clone()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let config = wire::Config {
        listeners: vec![wire::Listener {
            name: "x".to_owned(),
            address: "0.0.0.0:1".to_owned(),
            service: "x".to_owned(),
            role: wire::listener_role::Value::Virtual.into(),
            inbound: Some(inbound),
            ..Default::default()
        }],
        services: vec![wire::Service {
            name: "x".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    compile(&config)
        .map(drop)
        .map_err(|errors| errors.to_string())
}

/// Applies TrafficPolicies to their Services, and says of each policy, and of
/// AuthorizationPolicies, whether it is in force.
pub fn traffic(
    objects: &Objects,
    services: &mut BTreeMap<String, wire::Service>,
    statuses: &mut Vec<ObjectStatus>,
) {
    for (key, object) in objects {
        let accepted = match &object.spec {
            Spec::Authorization(policy) => {
                let mut rules = policy.rules.clone();
                rules.name = format!("{}/{}", key.namespace, key.name);
                compiles(&rules)
            }
            Spec::Traffic(policy) => policy.targets.iter().try_for_each(|target| {
                let prefix = format!("{}/{}:", key.namespace, target.name);
                let mut found = false;
                for (name, service) in services.iter_mut() {
                    if !name.starts_with(&prefix) {
                        continue;
                    }
                    found = true;
                    let changed = with_policy(service, &policy.service);
                    let config = wire::Config {
                        services: vec![changed.clone()],
                        ..Default::default()
                    };
                    compile(&config).map_err(|errors| errors.to_string())?;
                    *service = changed;
                }
                match found {
                    true => Ok(()),
                    false => Err(format!(
                        "there is no Service {}/{}",
                        key.namespace, target.name
                    )),
                }
            }),
            _ => continue,
        };
        let accepted = match accepted {
            Ok(()) => condition("Accepted", true, "Accepted", ""),
            Err(problem) => condition("Accepted", false, "Invalid", &problem),
        };
        statuses.push(ObjectStatus {
            kind: key.kind.to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            parent: String::new(),
            conditions: vec![accepted],
        });
    }
}

/// A service as the policy has it: its name and protocol stay.
fn with_policy(service: &wire::Service, policy: &wire::Service) -> wire::Service {
    let outlier = policy.outlier_detection.clone();
    wire::Service {
        name: service.name.clone(),
        protocol: service.protocol,
        outlier_detection: outlier.or_else(|| service.outlier_detection.clone()),
        endpoints: Vec::new(),
        dns: None,
        tls: None,
        ..policy.clone()
    }
}

//! What policies make of a workload's ports, and of how services are called.

use std::collections::BTreeMap;

use weft_config::compile::compile;
use weft_config::status::ObjectStatus;
use weft_config::wire;

use super::{Objects, condition};
use crate::api::{
    AuthorizationPolicy, DefaultAction, Key, Mtls, Pod, Selector, Spec, TargetRef,
    UnknownDestination, WorkloadPolicy,
};

/// What is said of workloads, by namespace; only what a proxy could use.
#[derive(Debug, Default)]
pub struct Policies<'a> {
    workload: BTreeMap<&'a str, Vec<&'a WorkloadPolicy>>,
    authorization: BTreeMap<&'a str, Vec<(&'a AuthorizationPolicy, wire::AuthorizationRules)>>,
}

impl<'a> Policies<'a> {
    /// Also says of each AuthorizationPolicy whether it is in force.
    pub fn of(objects: &'a Objects, statuses: &mut Vec<ObjectStatus>) -> Self {
        let mut policies = Self::default();
        for (key, object) in objects {
            let namespace = key.namespace.as_str();
            match &object.spec {
                Spec::Workload(policy) => {
                    policies.workload.entry(namespace).or_default().push(policy);
                }
                Spec::Authorization(policy) => {
                    let rules = wire::AuthorizationRules {
                        name: format!("{}/{}", key.namespace, key.name),
                        ..policy.rules.clone()
                    };
                    let good = compiles(&rules);
                    statuses.push(accepted(key, &good));
                    if good.is_ok() {
                        let of = policies.authorization.entry(namespace).or_default();
                        of.push((policy, rules));
                    }
                }
                _ => {}
            }
        }
        for of in policies.workload.values_mut() {
            // A selector's beats the namespace's; of several alike the first by name counts.
            of.sort_by_key(|policy| policy.selector.is_none());
        }
        policies
    }

    /// A workload as its own proxy has to know it. `named`: service, port and
    /// protocol of each port that a Service names.
    pub fn workload(
        &self,
        key: &Key,
        pod: &Pod,
        named: Option<&Vec<(String, u16, String)>>,
    ) -> wire::Workload {
        use wire::listener_protocol::Value;
        let policy = self.merged(key, pod);
        let inbound =
            |port: u16, services: &[&str]| self.inbound(key, pod, &policy, (port, services));
        let mut ports: BTreeMap<u16, wire::WorkloadPort> = BTreeMap::new();
        for (_, port, protocol) in named.into_iter().flatten() {
            let protocol = match protocol.as_str() {
                "http" | "http2" => Value::Http,
                "tls" | "tcp" => Value::Tcp,
                _ => Value::Auto,
            };
            let services: Vec<&str> = named
                .into_iter()
                .flatten()
                .filter(|(_, other, _)| other == port)
                .map(|(service, ..)| service.as_str())
                .collect();
            ports.insert(
                *port,
                workload_port(*port, protocol, inbound(*port, &services)),
            );
        }
        // A port with an exception of its own is known, whether a Service names it or not.
        for exception in &policy.ports {
            let port = exception.port;
            ports
                .entry(port)
                .or_insert_with(|| workload_port(port, Value::Auto, inbound(port, &[])));
        }
        let mut workload = wire::Workload {
            uid: pod.uid.clone(),
            namespace: key.namespace.clone(),
            service_account: pod.account.clone(),
            ports: ports.into_values().collect(),
            other_ports: Some(inbound(0, &[])),
            ..Default::default()
        };
        if policy.unknown_destination == Some(UnknownDestination::Refuse) {
            workload.set_unknown_destination(wire::workload::UnknownDestination::Refuse);
        }
        workload
    }

    /// The policies of a workload as one.
    fn merged(&self, key: &Key, pod: &Pod) -> WorkloadPolicy {
        let mut merged = WorkloadPolicy::default();
        let of = self.workload.get(key.namespace.as_str());
        for policy in of.into_iter().flatten() {
            if !selects(policy.selector.as_ref(), pod) {
                continue;
            }
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

    fn inbound(
        &self,
        key: &Key,
        pod: &Pod,
        policy: &WorkloadPolicy,
        (port, services): (u16, &[&str]),
    ) -> wire::Inbound {
        let exception = policy.ports.iter().find(|exception| exception.port == port);
        let mtls = exception.map(|exception| exception.mtls).or(policy.mtls);
        let of = self.authorization.get(key.namespace.as_str());
        let policies = of
            .into_iter()
            .flatten()
            .filter(|(policy, _)| {
                let mut targets = policy.targets.iter();
                selects(policy.selector.as_ref(), pod)
                    && (policy.targets.is_empty()
                        || targets.any(|target| {
                            target.kind == "Service" && services.contains(&target.name.as_str())
                        }))
            })
            .map(|(_, rules)| rules.clone())
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
}

fn workload_port(
    port: u16,
    protocol: wire::listener_protocol::Value,
    inbound: wire::Inbound,
) -> wire::WorkloadPort {
    wire::WorkloadPort {
        port: u32::from(port),
        protocol: protocol.into(),
        inbound: Some(inbound),
    }
}

fn selects(selector: Option<&Selector>, pod: &Pod) -> bool {
    selector.is_none_or(|selector| {
        let mut labels = selector.match_labels.iter();
        labels.all(|(name, value)| pod.labels.get(name) == Some(value))
    })
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

/// Applies TrafficPolicies to their Services, and says of each whether it is in force.
pub fn traffic(
    objects: &Objects,
    services: &mut BTreeMap<String, wire::Service>,
    statuses: &mut Vec<ObjectStatus>,
) {
    for (key, object) in objects {
        let Spec::Traffic(policy) = &object.spec else {
            continue;
        };
        let applied = policy
            .targets
            .iter()
            .try_for_each(|target| apply(&key.namespace, target, &policy.service, services));
        statuses.push(accepted(key, &applied));
    }
}

fn apply(
    namespace: &str,
    target: &TargetRef,
    policy: &wire::Service,
    services: &mut BTreeMap<String, wire::Service>,
) -> Result<(), String> {
    if target.kind != "Service" {
        return Err(format!("targetRefs: kind {} is not Service", target.kind));
    }
    let prefix = format!("{namespace}/{}:", target.name);
    let of = |name: &String| name.starts_with(&prefix);
    let mut found = false;
    for (_, service) in services
        .range_mut(prefix.clone()..)
        .take_while(|(name, _)| of(name))
    {
        found = true;
        let changed = with_policy(service, policy);
        let config = wire::Config {
            services: vec![changed.clone()],
            ..Default::default()
        };
        compile(&config).map_err(|errors| errors.to_string())?;
        *service = changed;
    }
    match found {
        true => Ok(()),
        false => Err(format!("there is no Service {namespace}/{}", target.name)),
    }
}

fn accepted(key: &Key, result: &Result<(), String>) -> ObjectStatus {
    let accepted = match result {
        Ok(()) => condition("Accepted", true, "Accepted", ""),
        Err(problem) => condition("Accepted", false, "Invalid", problem),
    };
    ObjectStatus {
        kind: key.kind.to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        parent: String::new(),
        conditions: vec![accepted],
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

//! What policies make of a workload's ports, and of how services are called.
//!
//! Of policies that contradict each other the oldest counts, then the first by name.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;

use prost::Message as _;
use weft_config::compile::compile;
use weft_config::status::{Condition, ObjectStatus};
use weft_config::wire;

use super::set::Set;
use super::{Index, Name, Type, condition, put, said};
use crate::api::{
    AuthorizationPolicy, DefaultAction, Key, Mtls, Object, Pod, Selector, Spec, TargetRef,
    UnknownDestination, WorkloadPolicy,
};

type Policy = (Key, Arc<Object>);

impl Index {
    pub(super) fn compute_authorization(&mut self, key: &Key) -> Vec<ObjectStatus> {
        let object = self.objects.get(key).cloned();
        let Some((object, policy)) = object.as_ref().and_then(authorization) else {
            self.authorizations.remove(key);
            return Vec::new();
        };
        let rules = wire::AuthorizationRules {
            name: format!("{}/{}", key.namespace, key.name),
            ..policy.rules.clone()
        };
        let usable = check(&rules);
        let statuses = match &usable {
            Ok(()) if !policy.targets.is_empty() => {
                let each = policy.targets.iter();
                each.map(|target| {
                    let parent = target_text(&key.namespace, target);
                    let verdict = self.target(&key.namespace, target);
                    said((key, object), parent, vec![verdict])
                })
                .collect()
            }
            // It is the pods' of its namespace, or nobody's.
            _ => {
                let verdict = match &usable {
                    Ok(()) => condition("Accepted", true, "Accepted", ""),
                    Err(problem) => condition("Accepted", false, "Invalid", problem),
                };
                vec![said((key, object), String::new(), vec![verdict])]
            }
        };
        let rules = usable.is_ok().then_some(rules);
        put(&mut self.authorizations, key.clone(), rules);
        statuses
    }

    /// Whether a target is there: of each it is said by itself, so that one that comes or goes
    /// is told of, whatever the others are.
    fn target(&self, namespace: &str, target: &TargetRef) -> Condition {
        let name = Name::new(namespace, &target.name);
        if target.kind != "Service" {
            not_a_service(target)
        } else if self.service_object(&name).is_none() {
            target_not_found(&name)
        } else {
            condition("Accepted", true, "Accepted", "")
        }
    }

    /// Speaks of the targets that are no Services; of the others, their Services' ports do.
    pub(super) fn compute_traffic(&mut self, key: &Key) -> Vec<ObjectStatus> {
        let Some(object) = self.objects.get(key) else {
            return Vec::new();
        };
        let Spec::Traffic(policy) = &object.spec else {
            return Vec::new();
        };
        if policy.targets.is_empty() {
            let verdict = condition("Accepted", false, "Invalid", "targetRefs: names no Service");
            return vec![said((key, object), String::new(), vec![verdict])];
        }
        let strange = policy.targets.iter().filter(|of| of.kind != "Service");
        strange
            .map(|target| {
                let parent = target_text(&key.namespace, target);
                said((key, object), parent, vec![not_a_service(target)])
            })
            .collect()
    }

    pub(super) fn compute_policies(&mut self, namespace: &str) -> Vec<ObjectStatus> {
        let found = self.within("WorkloadPolicy", namespace);
        let mut all: Vec<Policy> = found
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect();
        all.sort_by_key(|(key, object)| (object.age(), key.clone()));
        let mut in_force: Vec<Policy> = Vec::new();
        let mut statuses = Vec::new();
        for (key, object) in all {
            let verdict = match contradicted(&object, &in_force) {
                Some((older, field)) => {
                    let message = format!(
                        "{field} is set by {older} for the same pods, which is older or first by name; nothing of this policy is in force"
                    );
                    condition("Accepted", false, "Conflicted", &message)
                }
                None => condition("Accepted", true, "Accepted", ""),
            };
            let counts = verdict.status;
            statuses.push(said((&key, &object), String::new(), vec![verdict]));
            if counts {
                in_force.push((key, object));
            }
        }
        // A selector's beats the namespace's.
        in_force.sort_by_key(|(_, object)| {
            workload(object).is_some_and(|policy| policy.selector.is_none())
        });
        let objects: Vec<Arc<Object>> = in_force.into_iter().map(|(_, object)| object).collect();
        let objects = (!objects.is_empty()).then_some(objects);
        put(&mut self.policies, namespace.to_owned(), objects);
        statuses
    }

    pub(super) fn compute_workload(&mut self, uid: &str) -> Vec<ObjectStatus> {
        let pod = self.pod(uid).filter(|(_, pod)| pod.inbound.is_some());
        let fresh = pod.map(|(key, pod)| {
            let mut hasher = DefaultHasher::new();
            hasher.write(&self.workload_of(key, pod).encode_to_vec());
            hasher.finish()
        });
        if put(&mut self.workloads, uid.to_owned(), fresh) {
            self.touch(Type::Workload, uid);
        }
        Vec::new()
    }

    /// A workload as its own proxy has to know it.
    pub(super) fn workload_of(&self, key: &Key, pod: &Pod) -> wire::Workload {
        use wire::listener_protocol::Value;
        let policy = self.merged(&key.namespace, pod);
        let inbound =
            |port: u16, services: &[&str]| self.inbound(key, pod, &policy, (port, services));
        let mut named: BTreeMap<u16, (Value, Vec<&str>)> = BTreeMap::new();
        for of in self.uses.get(&pod.uid).into_iter().flat_map(Set::iter) {
            let protocol = match of.protocol.as_str() {
                "http" | "http2" => Value::Http,
                "tls" | "tcp" => Value::Tcp,
                _ => Value::Auto,
            };
            let entry = named
                .entry(of.address.port())
                .or_insert((Value::Auto, Vec::new()));
            // Of services that declare different protocols the first by name counts.
            if entry.0 == Value::Auto {
                entry.0 = protocol;
            }
            if !entry.1.contains(&&*of.port.name) {
                entry.1.push(&of.port.name);
            }
        }
        // A port with an exception of its own is known, whether a Service names it or not.
        for exception in &policy.ports {
            named
                .entry(exception.port)
                .or_insert((Value::Auto, Vec::new()));
        }
        let ports = named.iter().map(|(port, (protocol, services))| {
            let inbound = Some(inbound(*port, services));
            wire::WorkloadPort {
                port: u32::from(*port),
                protocol: (*protocol).into(),
                inbound,
            }
        });
        let mut workload = wire::Workload {
            uid: pod.uid.clone(),
            namespace: key.namespace.clone(),
            service_account: pod.account.clone(),
            zone: self.zone_of(pod).to_owned(),
            ports: ports.collect(),
            other_ports: Some(inbound(0, &[])),
            ..Default::default()
        };
        if policy.unknown_destination == Some(UnknownDestination::Refuse) {
            workload.set_unknown_destination(wire::workload::UnknownDestination::Refuse);
        }
        workload
    }

    /// The policies of a workload as one.
    fn merged(&self, namespace: &str, pod: &Pod) -> WorkloadPolicy {
        let mut merged = WorkloadPolicy::default();
        let of = self.policies.get(namespace).into_iter().flatten();
        for policy in of.filter_map(|object| workload(object)) {
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
        let of = self.within("AuthorizationPolicy", &key.namespace);
        let policies = of
            .filter_map(|(key, object)| {
                let (_, policy) = authorization(object)?;
                let mut targets = policy.targets.iter();
                let concerns = selects(policy.selector.as_ref(), pod)
                    && (policy.targets.is_empty()
                        || targets.any(|target| {
                            target.kind == "Service" && services.contains(&target.name.as_str())
                        }));
                let rules = concerns.then(|| self.authorizations.get(key));
                rules.flatten().cloned()
            })
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

fn authorization(object: &Arc<Object>) -> Option<(&Arc<Object>, &AuthorizationPolicy)> {
    match &object.spec {
        Spec::Authorization(policy) => Some((object, policy)),
        _ => None,
    }
}

fn workload(object: &Object) -> Option<&WorkloadPolicy> {
    match &object.spec {
        Spec::Workload(policy) => Some(policy),
        _ => None,
    }
}

/// The policy for the same pods that says something else of the same field, and which.
fn contradicted(object: &Object, older: &[Policy]) -> Option<(Key, String)> {
    let policy = workload(object)?;
    older.iter().find_map(|(key, other)| {
        let other = workload(other)?;
        if other.selector != policy.selector {
            return None;
        }
        let field = policy.contradicts(other)?;
        Some((key.clone(), field))
    })
}

pub fn selects(selector: Option<&Selector>, pod: &Pod) -> bool {
    selector.is_none_or(|selector| {
        let mut labels = selector.match_labels.iter();
        labels.all(|(name, value)| {
            let mut own = pod.labels.iter();
            own.any(|(of, own)| (of, own) == (name, value))
        })
    })
}

fn target_text(namespace: &str, target: &TargetRef) -> String {
    format!("{} {namespace}/{}", target.kind, target.name)
}

fn not_a_service(target: &TargetRef) -> Condition {
    let message = format!("targetRefs: kind {} is not Service", target.kind);
    condition("Accepted", false, "Invalid", &message)
}

fn target_not_found(name: &Name) -> Condition {
    let message = format!("there is no Service {name}");
    condition("Accepted", false, "TargetNotFound", &message)
}

/// Whether a proxy could use the rules.
pub fn check(rules: &wire::AuthorizationRules) -> Result<(), String> {
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

/// Applies the TrafficPolicy that counts to a service's ports; what becomes of each.
pub fn traffic<'a>(
    name: &Name,
    exists: bool,
    services: impl Iterator<Item = &'a mut wire::Service>,
    policies: &[Policy],
) -> Vec<ObjectStatus> {
    let mut services: Vec<&mut wire::Service> = services.collect();
    let mut sorted: Vec<&Policy> = policies.iter().collect();
    sorted.sort_by_key(|(key, object)| (object.age(), key.clone()));
    let mut winner: Option<&Key> = None;
    let mut statuses = Vec::new();
    for (key, object) in sorted {
        let Spec::Traffic(policy) = &object.spec else {
            continue;
        };
        let changed: Result<Vec<wire::Service>, String> = services
            .iter()
            .map(|service| with_policy(service, &policy.service))
            .collect();
        let verdict = match (winner, changed) {
            _ if !exists => target_not_found(name),
            (_, Err(problem)) => condition("Accepted", false, "Invalid", &problem),
            (Some(winner), Ok(_)) => {
                let message = format!("{winner} has this Service, and is older or first by name");
                condition("Accepted", false, "Conflicted", &message)
            }
            (None, Ok(changed)) => {
                for (service, changed) in services.iter_mut().zip(changed) {
                    **service = changed;
                }
                winner = Some(key);
                condition("Accepted", true, "Accepted", "")
            }
        };
        statuses.push(said(
            (key, object),
            format!("Service {name}"),
            vec![verdict],
        ));
    }
    statuses
}

/// A service as the policy has it: its name and protocol stay.
fn with_policy(service: &wire::Service, policy: &wire::Service) -> Result<wire::Service, String> {
    let outlier = policy.outlier_detection.clone();
    let mut balancer = policy.balancer.clone().or_else(|| service.balancer.clone());
    let zones = service
        .balancer
        .as_ref()
        .and_then(|of| of.zone_healthy_percent);
    if let Some(balancer) = &mut balancer {
        // The Service has said whether zones matter, unless the policy does.
        balancer.zone_healthy_percent = balancer.zone_healthy_percent.or(zones);
    }
    let changed = wire::Service {
        name: service.name.clone(),
        protocol: service.protocol,
        outlier_detection: outlier.or_else(|| service.outlier_detection.clone()),
        balancer,
        endpoints: Vec::new(),
        dns: None,
        tls: None,
        ..policy.clone()
    };
    let config = wire::Config {
        services: vec![changed.clone()],
        ..Default::default()
    };
    compile(&config).map_err(|errors| errors.to_string())?;
    Ok(changed)
}

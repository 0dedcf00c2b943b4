//! What cannot work together with a sidecar, each with the field that says so.

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};

use super::options::annotation;
use super::sidecar::{CAPTURE, NAME, PORTS, UID, VOLUMES};
use super::{DISABLED, ENABLED, INBOUND, LABEL, Refusal};

pub fn check(template: &PodTemplateSpec, spec: &PodSpec) -> Result<(), Refusal> {
    marks(template)?;
    let init = spec.init_containers.iter().flatten();
    for (index, of) in init.enumerate() {
        container(spec, of, &format!("spec.initContainers[{index}]"))?;
    }
    for (index, of) in spec.containers.iter().enumerate() {
        container(spec, of, &format!("spec.containers[{index}]"))?;
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if VOLUMES.contains(&volume.name.as_str()) {
            let field = format!("spec.volumes[{index}].name");
            return Err(taken(field, &volume.name, "volume"));
        }
    }
    Ok(())
}

fn marks(template: &PodTemplateSpec) -> Result<(), Refusal> {
    let metadata = template.metadata.as_ref();
    let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
    let has = |key: &str| annotations.is_some_and(|annotations| annotations.contains_key(key));
    if has(LABEL) {
        let problem = format!(
            "is an annotation here, and nobody reads it; make it a label, which says \"{ENABLED}\" or \"{DISABLED}\""
        );
        return Err(Refusal::new(annotation(LABEL), problem));
    }
    if has(INBOUND) {
        let problem = format!(
            "says that there is a sidecar, which injection would say by itself; remove it, or label the pod {LABEL}: {DISABLED} if it brings one of its own"
        );
        return Err(Refusal::new(annotation(INBOUND), problem));
    }
    Ok(())
}

fn container(spec: &PodSpec, container: &Container, at: &str) -> Result<(), Refusal> {
    if [NAME, CAPTURE].contains(&container.name.as_str()) {
        return Err(taken(format!("{at}.name"), &container.name, "container"));
    }
    let of_pod = spec.security_context.as_ref().and_then(|of| of.run_as_user);
    let own = container.security_context.as_ref();
    let own = own.and_then(|of| of.run_as_user);
    if own.or(of_pod) == Some(UID) {
        let field = match own {
            Some(_) => format!("{at}.securityContext.runAsUser"),
            None => "spec.securityContext.runAsUser".to_owned(),
        };
        let problem = format!(
            "{UID} is the sidecar's user, whose traffic is never captured; allowed is every other for container {}",
            container.name
        );
        return Err(Refusal::new(field, problem));
    }
    for (index, port) in container.ports.iter().flatten().enumerate() {
        if PORTS.contains(&port.container_port) {
            let field = format!("{at}.ports[{index}].containerPort");
            let problem = format!(
                "{} is a port of the sidecar, which has {}; allowed is every other",
                port.container_port,
                PORTS.map(|port| port.to_string()).join(", ")
            );
            return Err(Refusal::new(field, problem));
        }
    }
    Ok(())
}

fn taken(field: String, name: &str, what: &str) -> Refusal {
    let problem = format!(
        "\"{name}\" is the name of a {what} that injection adds; give yours another, or label the pod {LABEL}: {DISABLED}"
    );
    Refusal::new(field, problem)
}

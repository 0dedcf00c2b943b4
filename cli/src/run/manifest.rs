//! What a kubelet and the endpoint controller say of a pod in Kubernetes: the
//! Pod, and an EndpointSlice with it as its only endpoint, in one file.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde_json::json;

use super::plan::Plan;

/// How the endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does not answer, or not any more.
    NotReady,
    Ready,
    /// It answers, and is about to go.
    Leaving,
}

/// The text of the file; JSON, which YAML is a superset of. Pure.
pub fn text(plan: &Plan, standing: Standing) -> String {
    let arguments = &plan.arguments;
    let service = arguments.service.as_deref().unwrap_or_default();
    let address = arguments.address.to_string();
    let mut labels = BTreeMap::from([("app", service)]);
    let own = arguments.labels.iter();
    labels.extend(own.map(|(name, value)| (name.as_str(), value.as_str())));
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": plan.name,
            "namespace": arguments.namespace,
            "uid": plan.uid,
            "labels": labels,
            "annotations": {"weft.dev/inbound": arguments.inbound_port.to_string()},
        },
        "spec": {"serviceAccountName": arguments.service_account, "containers": []},
        "status": {"podIP": address},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": plan.name,
            "namespace": arguments.namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": if arguments.address.is_ipv4() { "IPv4" } else { "IPv6" },
        "ports": [{"name": arguments.port_name, "port": arguments.port}],
        "endpoints": [{
            "addresses": [address],
            "conditions": {
                "ready": standing == Standing::Ready,
                "serving": standing == Standing::Ready || standing == Standing::Leaving,
                "terminating": standing == Standing::Leaving,
            },
            "targetRef": {"kind": "Pod", "name": plan.name, "uid": plan.uid},
        }],
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [pod, slice]});
    format!("# Kept by `weft run` while it runs.\n{list:#}\n")
}

/// Writes it so that half of it is never seen.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Files that begin with a dot are not read.
    let fresh = path.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&fresh, text)?;
    fs::rename(&fresh, path)
}

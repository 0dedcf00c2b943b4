//! The sidecar's configuration, as the plan says. Pure.

use std::path::Path;

use serde_json::{Value, json};

use super::plan::{Plan, Proof};

/// Once the application has gone there is little to wait for.
const DRAIN_TIMEOUT: &str = "5s";
const DRAIN_QUIET: &str = "100ms";

/// JSON, which YAML is a superset of.
pub fn text(plan: &Plan) -> String {
    let arguments = &plan.arguments;
    let (trust_bundle, token) = match &plan.proof {
        Proof::Authority(directory) => (directory.join("trust.pem"), token_file(&plan.private)),
        Proof::Given {
            trust_bundle,
            token,
        } => (trust_bundle.clone(), token.clone()),
    };
    let mut listeners = vec![json!({
        "name": "inbound",
        "address": plan.inbound().to_string(),
        "role": "inbound",
    })];
    listeners.extend(arguments.upstreams.iter().map(|upstream| -> Value {
        let destination = upstream.destination(&arguments.namespace);
        json!({
            "name": format!("{}-at-{}", destination, upstream.listen),
            "address": upstream.listen.to_string(),
            "role": "outbound",
            "destination": destination,
        })
    }));
    let configuration = json!({
        "settings": {
            "admin": plan.admin.to_string(),
            "drain": {"timeout": DRAIN_TIMEOUT, "quiet": DRAIN_QUIET},
            "mesh": {
                "controllers": arguments.controllers,
                "trustDomain": arguments.trust_domain,
                "trustBundle": trust_bundle,
                "token": token,
                "state": plan.state,
                "namespace": arguments.namespace,
                "serviceAccount": arguments.service_account,
                "workload": plan.uid,
                "addresses": [arguments.address.to_string()],
            },
        },
        "listeners": listeners,
    });
    format!("{configuration:#}\n")
}

/// Where tokens that we make ourselves lie.
pub fn token_file(private: &Path) -> std::path::PathBuf {
    private.join("token")
}

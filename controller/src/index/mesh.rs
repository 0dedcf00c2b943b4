//! What is said of meshes: those that name us are accepted, of others nothing is said.

use weft_config::status::ObjectStatus;

use super::{Index, condition, said};
use crate::api::{CONTROLLER, Key, Spec};

impl Index {
    pub(super) fn compute_mesh(&self, key: &Key) -> Vec<ObjectStatus> {
        let Some(object) = self.objects.get(key) else {
            return Vec::new();
        };
        let Spec::Mesh(mesh) = &object.spec else {
            return Vec::new();
        };
        if mesh.controller_name != CONTROLLER {
            return Vec::new();
        }
        let verdict = match &mesh.parameters_ref {
            Some(_) => {
                let message = "spec.parametersRef: Weft has no parameters; leave it out";
                condition("Accepted", false, "InvalidParameters", message)
            }
            // Which instance it is, for whoever runs more than one mesh.
            None => {
                let message = format!(
                    "by weft-controller {}, trust domain {}",
                    env!("CARGO_PKG_VERSION"),
                    self.trust_domain
                );
                condition("Accepted", true, "Accepted", &message)
            }
        };
        vec![said((key, object), String::new(), vec![verdict])]
    }
}

//! The object that stands for the mesh itself, and what it says that we can do (GEP-3949).

use serde::Deserialize;
use serde_json::Value;

use super::Key;

/// Its name, unless `--mesh-name` says another.
pub const NAME: &str = "weft";

pub const KIND: &str = "XMesh";

/// What we support of what Gateway API's conformance tests ask of a mesh: the names of its
/// module `pkg/features`, sorted, as the status has to have them. Everybody who needs the
/// list reads it there.
pub const FEATURES: [&str; 17] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// Whose it is.
    pub controller_name: String,
    /// Configuration of the implementation's own; we have none there.
    pub parameters_ref: Option<Value>,
}

/// Meshes are in no namespace.
pub fn key(name: &str) -> Key {
    Key {
        kind: KIND,
        namespace: String::new(),
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_sorted_and_fit_into_a_status() {
        assert!(FEATURES.is_sorted_by(|a, b| a < b), "{FEATURES:?}");
        assert!(FEATURES.len() <= 64, "the definition's maxItems");
    }
}

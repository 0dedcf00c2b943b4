//! The kinds that the API server is asked for, and in which version.

use kube::core::ApiResource;

use super::mesh;

/// One kind at the API server.
#[derive(Debug, PartialEq, Eq)]
pub struct Watched {
    pub kind: &'static str,
    pub group: &'static str,
    pub plural: &'static str,
    /// What we can read, the best first: all the same to us.
    pub versions: &'static [&'static str],
    /// Every API server has it; the others come with a CRD.
    pub is_built_in: bool,
    /// Objects that match are all that matters.
    pub fields: Option<&'static str>,
    /// We write what has become of an object into its status.
    pub has_status: bool,
}

const GATEWAY: &str = "gateway.networking.k8s.io";
const GATEWAY_EXPERIMENTAL: &str = "gateway.networking.x-k8s.io";
const WEFT: &str = "weft.dev";
/// A pod that has ended has its address no more, though its status still says so.
const RUNNING: &str = "status.phase!=Succeeded,status.phase!=Failed";

const fn built_in(group: &'static str, kind: &'static str, plural: &'static str) -> Watched {
    Watched {
        kind,
        group,
        plural,
        versions: &["v1"],
        is_built_in: true,
        fields: None,
        has_status: false,
    }
}

const fn custom(
    (group, versions): (&'static str, &'static [&'static str]),
    kind: &'static str,
    plural: &'static str,
) -> Watched {
    Watched {
        kind,
        group,
        plural,
        versions,
        is_built_in: false,
        fields: None,
        has_status: true,
    }
}

/// All of them. What others are looked up by comes first, for reading's sake only.
pub const WATCHED: [Watched; 14] = [
    built_in("", "Namespace", "namespaces"),
    built_in("", "Node", "nodes"),
    Watched {
        fields: Some(RUNNING),
        ..built_in("", "Pod", "pods")
    },
    built_in("", "Service", "services"),
    built_in("discovery.k8s.io", "EndpointSlice", "endpointslices"),
    Watched {
        has_status: false,
        ..custom(
            (GATEWAY, &["v1", "v1beta1"]),
            "ReferenceGrant",
            "referencegrants",
        )
    },
    custom((GATEWAY, &["v1", "v1beta1"]), "HTTPRoute", "httproutes"),
    custom((GATEWAY, &["v1", "v1alpha2"]), "GRPCRoute", "grpcroutes"),
    custom(
        (GATEWAY, &["v1", "v1alpha3", "v1alpha2"]),
        "TLSRoute",
        "tlsroutes",
    ),
    custom((GATEWAY, &["v1", "v1alpha2"]), "TCPRoute", "tcproutes"),
    custom(
        (WEFT, &["v1alpha1"]),
        "AuthorizationPolicy",
        "authorizationpolicies",
    ),
    custom((WEFT, &["v1alpha1"]), "WorkloadPolicy", "workloadpolicies"),
    custom((WEFT, &["v1alpha1"]), "TrafficPolicy", "trafficpolicies"),
    custom((GATEWAY_EXPERIMENTAL, &["v1alpha1"]), mesh::KIND, "xmeshes"),
];

impl Watched {
    pub fn resource(&self, version: &str) -> ApiResource {
        let api_version = match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

/// The kind of this name, if we write into its objects' statuses.
pub fn kind_with_status(name: &str) -> Option<&'static str> {
    let mut all = WATCHED.iter().filter(|of| of.has_status);
    all.find(|of| of.kind == name).map(|of| of.kind)
}

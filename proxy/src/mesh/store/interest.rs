//! The kinds of resources, and what a stream is told of our interest in them.

use std::collections::HashMap;

use weft_config::xds::DeltaDiscoveryRequest;

const TYPE_PREFIX: &str = "type.googleapis.com/weft.v1.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Destination,
    Service,
    Endpoints,
    Workload,
    TrustBundle,
}

impl Kind {
    /// What others need comes first.
    pub const ALL: [Self; 5] = [
        Self::TrustBundle,
        Self::Workload,
        Self::Endpoints,
        Self::Service,
        Self::Destination,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Destination => "Destination",
            Self::Service => "Service",
            Self::Endpoints => "Endpoints",
            Self::Workload => "Workload",
            Self::TrustBundle => "TrustBundle",
        }
    }

    pub fn type_url(self) -> String {
        format!("{TYPE_PREFIX}{}", self.name())
    }

    pub fn of_type_url(url: &str) -> Option<Self> {
        let name = url.strip_prefix(TYPE_PREFIX)?;
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What a stream has to be told of our interest in one kind.
#[derive(Debug)]
pub struct Interest {
    pub kind: Kind,
    pub add: Vec<String>,
    pub drop: Vec<String>,
    /// Versions of those that are added and held already: not to be sent again.
    pub versions: HashMap<String, String>,
}

impl Interest {
    pub fn request(self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.kind.type_url(),
            resource_names_subscribe: self.add,
            resource_names_unsubscribe: self.drop,
            initial_resource_versions: self.versions,
            ..DeltaDiscoveryRequest::default()
        }
    }
}

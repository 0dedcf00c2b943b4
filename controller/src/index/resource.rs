//! What proxies can ask for, by type and name.

use std::collections::BTreeSet;

const PREFIX: &str = "type.googleapis.com/weft.v1.";

/// In the order in which they are sent: what others need comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    TrustBundle,
    Workload,
    Endpoints,
    Service,
    Destination,
}

/// Names of resources that are not what they were.
pub type Touched = BTreeSet<(Type, String)>;

impl Type {
    pub const ALL: [Self; 5] = [
        Self::TrustBundle,
        Self::Workload,
        Self::Endpoints,
        Self::Service,
        Self::Destination,
    ];
    pub const NAMES: [&'static str; 5] = [
        "TrustBundle",
        "Workload",
        "Endpoints",
        "Service",
        "Destination",
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::TrustBundle => "TrustBundle",
            Self::Workload => "Workload",
            Self::Endpoints => "Endpoints",
            Self::Service => "Service",
            Self::Destination => "Destination",
        }
    }

    pub fn url(self) -> String {
        format!("{PREFIX}{}", self.name())
    }

    pub fn of_url(url: &str) -> Option<Self> {
        let name = url.strip_prefix(PREFIX)?;
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

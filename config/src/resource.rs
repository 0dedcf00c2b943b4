//! What a controller tells proxies, by type.

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

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TrustBundle => "TrustBundle",
            Self::Workload => "Workload",
            Self::Endpoints => "Endpoints",
            Self::Service => "Service",
            Self::Destination => "Destination",
        }
    }

    /// Of its resources in a request or response (`google.protobuf.Any`).
    #[must_use]
    pub fn url(self) -> String {
        format!("{PREFIX}{}", self.name())
    }

    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        let name = url.strip_prefix(PREFIX)?;
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

//! What a stream is told of the resources that we want.

use std::collections::HashMap;

use weft_config::resource::Type;
use weft_config::xds::DeltaDiscoveryRequest;

/// What a stream has to be told of our interest in one kind.
#[derive(Debug)]
pub struct Interest {
    pub kind: Type,
    pub add: Vec<String>,
    pub drop: Vec<String>,
    /// Versions of those that are added and held already: not to be sent again.
    pub versions: HashMap<String, String>,
}

impl Interest {
    pub fn request(self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.kind.url(),
            resource_names_subscribe: self.add,
            resource_names_unsubscribe: self.drop,
            initial_resource_versions: self.versions,
            ..DeltaDiscoveryRequest::default()
        }
    }
}

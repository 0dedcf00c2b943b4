//! What a controller tells of itself at `/status`: JSON, read by `weft status`,
//! `weft check` and `weft top`.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    pub version: String,
    pub trust_domain: String,
    /// Grows with every change of the index.
    pub revision: u64,
    /// Of several replicas the one that writes statuses.
    pub leads: bool,
    /// Seconds since the Unix epoch.
    pub now: u64,
    pub roots: Vec<RootStatus>,
    /// What could not be read or is wrong, file by file.
    pub errors: Vec<SourceError>,
    /// How many more there are than are named.
    pub errors_beyond: u64,
    /// Where objects come from an API server: how each kind is watched.
    pub watches: Vec<WatchStatus>,
    pub objects: Vec<ObjectStatus>,
    /// Of the replica that writes statuses: those that it cannot write.
    pub unwritten: Vec<Unwritten>,
    pub proxies: Vec<ProxyStatus>,
}

/// An object whose status cannot be written, or does not stay as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Unwritten {
    /// Kind namespace/name.
    pub object: String,
    pub problem: String,
    /// In a row.
    pub tries: u32,
    /// Seconds since the Unix epoch.
    pub since: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RootStatus {
    pub subject: String,
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
    /// Seconds since the Unix epoch.
    pub not_after: u64,
    /// Signs new certificates now.
    pub signing: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceError {
    pub file: String,
    /// Index of the document in the file, from 1.
    pub document: u32,
    /// Kind namespace/name, as far as known.
    pub object: String,
    pub field: String,
    pub message: String,
}

/// One kind of objects at an API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WatchStatus {
    pub kind: String,
    /// In which it is watched; empty: it is not there.
    pub version: String,
    pub state: WatchState,
    /// Seconds since the Unix epoch.
    pub since: u64,
    /// Why it is broken.
    pub message: String,
    pub objects: u64,
    /// How often it was listed, and how often that or watching failed.
    pub lists: u64,
    pub failures: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WatchState {
    #[default]
    Listing,
    Watching,
    /// What is known stays in force.
    Broken,
    /// Not installed; it is looked for.
    Absent,
}

/// An object with its conditions (as in `status.conditions`, or for routes
/// `status.parents[].conditions`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectStatus {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// What the conditions are about: the parentRef or target (`Service shop/catalogue:80`); may be empty.
    pub parent: String,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: bool,
    pub reason: String,
    pub message: String,
    /// The `metadata.generation` that this is said of; 0: the object has none.
    #[serde(skip_serializing_if = "is_zero")]
    pub observed_generation: i64,
}

impl Condition {
    /// Whether somebody has to look at it: it is false, or the one that is bad news when true
    /// (Gateway API's).
    pub fn is_bad(&self) -> bool {
        self.status == (self.kind == "PartiallyInvalid")
    }
}

fn is_zero(generation: &i64) -> bool {
    *generation == 0
}

/// A connected proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyStatus {
    /// UID of its workload.
    pub workload: String,
    pub identity: String,
    /// Where it connects from.
    pub address: String,
    /// Where its /metrics is, ip:port.
    pub admin: String,
    pub version: String,
    /// Seconds since the Unix epoch.
    pub connected_since: u64,
    pub certificate_expires: u64,
    /// The root that signed the certificate in use, as the proxy says: SHA-256, hex.
    pub signing_root: String,
    /// Resources subscribed.
    pub resources: u32,
    /// Everything sent up to this revision is acknowledged.
    pub acknowledged: u64,
    /// Responses sent and not answered yet.
    pub pending: u32,
    pub leaving: bool,
    /// Resources that it refuses now.
    pub refused: Vec<Refusal>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refusal {
    pub resource: String,
    pub message: String,
    /// Seconds since the Unix epoch.
    pub since: u64,
}

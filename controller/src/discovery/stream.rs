//! One proxy's stream: what it wants, what it was sent, what it has acknowledged.
//!
//! **Invariant:** at most one response of a type is unanswered; what changes
//! meanwhile is sent together, after the answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use weft_config::status::{ProxyStatus, Refusal};
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};

use super::Caller;
use super::hub::{Hub, seconds_now};

/// Resources that one proxy may want.
const SUBSCRIPTIONS_MAX: usize = 50_000;
const NAME_BYTES_MAX: usize = 512;
/// Responses that wait to be written: one of each type, and room.
const RESPONSES_MAX: usize = 8;
/// Why a stream is refused or ended by us.
pub const REFUSALS: &[&str] = &[
    "no_certificate",
    "proxies_max",
    "subscriptions_max",
    "malformed",
];
/// What others need comes first.
pub const TYPES: [&str; 5] = [
    "TrustBundle",
    "Workload",
    "Endpoints",
    "Service",
    "Destination",
];
const PREFIX: &str = "type.googleapis.com/weft.v1.";

/// What a stream knows of one type.
#[derive(Debug, Default)]
struct Subscriptions {
    /// Wanted names, and the version that was sent; empty: sent as absent.
    names: BTreeMap<String, Option<String>>,
    /// The nonce of a response that is not answered, and what was in it.
    unanswered: Option<(String, Vec<String>)>,
}

struct Delta {
    hub: Arc<Hub>,
    caller: Caller,
    id: u64,
    types: BTreeMap<&'static str, Subscriptions>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    count: u64,
    refused: BTreeMap<String, Refusal>,
    node: Option<Node>,
}

/// Serves a stream in a task of its own.
pub fn open(
    hub: Arc<Hub>,
    caller: Caller,
    requests: Streaming<DeltaDiscoveryRequest>,
) -> Result<impl Stream<Item = Result<DeltaDiscoveryResponse, Status>> + use<>, Status> {
    let (responses, receiver) = mpsc::channel(RESPONSES_MAX);
    let id = hub.connected(ProxyStatus {
        workload: caller.workload.clone(),
        identity: caller.identity.to_string(),
        address: caller.address.clone(),
        connected_since: seconds_now(),
        certificate_expires: caller.expires,
        ..ProxyStatus::default()
    })?;
    let delta = Delta {
        hub,
        caller,
        id,
        types: TYPES
            .iter()
            .map(|name| (*name, Subscriptions::default()))
            .collect(),
        responses,
        count: 0,
        refused: BTreeMap::new(),
        node: None,
    };
    // Ends with its connection: the request stream ends, or the receiver is gone.
    tokio::spawn(delta.run(requests));
    Ok(ReceiverStream::new(receiver))
}

impl Drop for Delta {
    fn drop(&mut self) {
        self.hub.disconnected(self.id);
    }
}

impl Delta {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let mut revisions = self.hub.subscribe();
        loop {
            let revision = *revisions.borrow_and_update();
            if !self.send().await {
                return;
            }
            self.tell(revision);
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => if let Err(status) = self.receive(request) {
                        let _ = self.responses.send(Err(status)).await;
                        return;
                    },
                    _ => return,
                },
                changed = revisions.changed() => if changed.is_err() { return },
                () = self.responses.closed() => return,
            }
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(node) = request.node {
            self.node = Some(node);
        }
        let name = request.type_url.strip_prefix(PREFIX).unwrap_or("");
        let total: usize = self.types.values().map(|of| of.names.len()).sum();
        if total + request.resource_names_subscribe.len() > SUBSCRIPTIONS_MAX {
            self.hub.metrics.streams_refused.count("subscriptions_max");
            return Err(Status::resource_exhausted(
                "too many subscriptions on one stream",
            ));
        }
        let Some(of) = self.types.get_mut(name) else {
            self.hub.metrics.streams_refused.count("malformed");
            return Err(Status::invalid_argument(format!(
                "no type {}",
                request.type_url
            )));
        };
        let changed = !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        for name in request.resource_names_unsubscribe {
            of.names.remove(&name);
            self.refused.remove(&name);
        }
        for name in request.resource_names_subscribe {
            if name.len() > NAME_BYTES_MAX {
                self.hub.metrics.streams_refused.count("malformed");
                return Err(Status::invalid_argument("a resource's name is too long"));
            }
            let held = request.initial_resource_versions.get(&name).cloned();
            of.names.insert(name, held);
        }
        if name == "Endpoints" && changed {
            self.hub.wants(self.id, of.names.keys().cloned().collect());
        }
        let answered = of
            .unanswered
            .take_if(|(nonce, _)| *nonce == request.response_nonce);
        let Some((_, sent)) = answered else {
            return Ok(());
        };
        match request.error_detail {
            None => self.refused.retain(|name, _| !sent.contains(name)),
            Some(error) => {
                self.hub.metrics.nacks.inc();
                tracing::error!(workload = %self.caller.workload, problem = %error.message, "a proxy refuses what it was sent");
                let named = |name: &String| error.message.contains(name.as_str());
                // One that names nothing refuses all.
                let any = sent.iter().any(named);
                for name in sent.into_iter().filter(|name| !any || named(name)) {
                    let refusal = Refusal {
                        resource: name.clone(),
                        message: error.message.clone(),
                        since: seconds_now(),
                    };
                    self.refused.insert(name, refusal);
                }
            }
        }
        Ok(())
    }

    /// Sends what differs from what was sent; false: nobody reads any more.
    async fn send(&mut self) -> bool {
        for kind in TYPES {
            let Some(of) = self.types.get_mut(kind) else {
                continue;
            };
            if of.unanswered.is_some() {
                continue;
            }
            let type_url = format!("{PREFIX}{kind}");
            let (mut resources, mut removed) = (Vec::new(), Vec::new());
            for (name, sent) in &mut of.names {
                match self.hub.resource(&type_url, name, &self.caller) {
                    Some(encoded) if sent.as_deref() != Some(&encoded.version) => {
                        *sent = Some(encoded.version.clone());
                        resources.push(Resource {
                            name: name.clone(),
                            version: encoded.version,
                            resource: Some(Any {
                                type_url: type_url.clone(),
                                value: encoded.bytes.to_vec(),
                            }),
                        });
                    }
                    None if sent.as_deref() != Some("") => {
                        *sent = Some(String::new());
                        removed.push(name.clone());
                    }
                    _ => {}
                }
            }
            if resources.is_empty() && removed.is_empty() {
                continue;
            }
            let metrics = &self.hub.metrics;
            let count = resources.len() + removed.len();
            metrics.resources_sent.add(kind, count as u64);
            let bytes = resources.iter().filter_map(|of| of.resource.as_ref());
            let bytes: usize = bytes.map(|any| any.value.len()).sum();
            metrics.bytes_sent.add(kind, bytes as u64);
            self.count += 1;
            let nonce = self.count.to_string();
            let names = resources.iter().map(|resource| resource.name.clone());
            of.unanswered = Some((
                nonce.clone(),
                names.chain(removed.iter().cloned()).collect(),
            ));
            let response = DeltaDiscoveryResponse {
                type_url,
                nonce,
                resources,
                removed_resources: removed,
                ..Default::default()
            };
            if self.responses.send(Ok(response)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Tells the hub how far this proxy has come.
    fn tell(&self, revision: u64) {
        let pending = self
            .types
            .values()
            .filter(|of| of.unanswered.is_some())
            .count();
        let resources: usize = self.types.values().map(|of| of.names.len()).sum();
        let admin = self.node.as_ref().and_then(|node| {
            let field = node.metadata.as_ref()?.fields.get("admin")?;
            match &field.kind {
                Some(prost_types::value::Kind::StringValue(text)) => Some(text.clone()),
                _ => None,
            }
        });
        let version = self
            .node
            .as_ref()
            .map(|node| node.user_agent_version.clone());
        self.hub.progress(self.id, |status| {
            status.pending = u32::try_from(pending).unwrap_or(u32::MAX);
            status.resources = u32::try_from(resources).unwrap_or(u32::MAX);
            status.refused = self.refused.values().cloned().collect();
            if let Some(admin) = admin {
                status.admin = admin;
            }
            if let Some(version) = version {
                status.version = version;
            }
            if pending == 0 {
                status.acknowledged = revision;
            }
        });
    }
}

//! A client's sidecar: what it has learned (`mesh::store`), what it has put in force (`Runtime`), and
//! its connections. It learns, publishes and acknowledges as `mesh::discovery` does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_config::compile::compile;
use weft_config::snapshot::Destination;
use weft_config::wire;
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_proxy::logic::time::Nanos;
use weft_proxy::mesh::store::{Effect, Interest, Store, Type};
use weft_proxy::net::pool::FRESH;
use weft_proxy::state::Runtime;

use super::cluster::{DIALLED, DOMAIN};
use super::plan::Without;

/// Changes within this time are published together.
const COALESCE: Duration = Duration::from_millis(5);

/// A connection to an endpoint, as its client sees it.
#[derive(Clone, Debug)]
pub struct Connection {
    pub address: SocketAddr,
    /// Whom it was opened to.
    pub peer: String,
    /// Who is at the other end.
    pub pod: usize,
    pub used: Nanos,
    /// It has carried nothing yet.
    pub fresh: bool,
    /// The other end has closed it, and when that is known here.
    pub closed: Option<Nanos>,
}

pub struct Proxy {
    pub uid: String,
    pub store: Store,
    pub runtime: Arc<Runtime>,
    /// The stream that it has, and the number that the controller gave it.
    pub stream: Option<u64>,
    /// Last moment without a stream.
    pub cut_at: Nanos,
    pub idle: Vec<Connection>,
    unacknowledged: Vec<(Type, String)>,
    pub rebuild_at: Option<Nanos>,
    changed: BTreeSet<String>,
    /// Services that have had endpoints here.
    filled: BTreeSet<String>,
}

impl Proxy {
    pub fn new(number: usize) -> Self {
        let uid = format!("client-{number}");
        let mut store = Store::new(&uid, DOMAIN, "127.0.0.1");
        let destination = Destination::parse(DIALLED).expect("it is one");
        store.want(&destination, true);
        Self {
            uid,
            store,
            runtime: Arc::new(runtime(&wire::Config::default(), None, Nanos::ZERO)),
            stream: None,
            cut_at: Nanos::ZERO,
            idle: Vec::new(),
            unacknowledged: Vec::new(),
            rebuild_at: None,
            changed: BTreeSet::new(),
            filled: BTreeSet::new(),
        }
    }

    pub fn connected(&mut self, stream: u64) -> Vec<DeltaDiscoveryRequest> {
        self.stream = Some(stream);
        self.store.reconnected();
        self.subscribe()
    }

    pub fn disconnected(&mut self, now: Nanos) {
        self.stream = None;
        self.cut_at = now;
        self.unacknowledged.clear();
    }

    pub fn subscribe(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let changes = self.store.subscriptions().into_iter();
        changes.map(Interest::request).collect()
    }

    pub fn subscribe_if_connected(&mut self) -> Option<(u64, Vec<DeltaDiscoveryRequest>)> {
        let stream = self.stream?;
        Some((stream, self.subscribe()))
    }

    /// Takes a response.
    pub fn receive(&mut self, response: &DeltaDiscoveryResponse, now: Nanos) {
        let kind = Type::of_url(&response.type_url).expect("it is one of ours");
        let mut effect = Effect::default();
        for resource in &response.resources {
            let bytes = resource.resource.as_ref().map_or(&[][..], |any| &any.value);
            let (name, version) = (&resource.name, &resource.version);
            self.store.set(kind, name, version, bytes, &mut effect);
        }
        for name in &response.removed_resources {
            self.store.remove(kind, name, &mut effect);
        }
        assert_eq!(effect.refused, [], "a controller sends what compiles");
        if effect.rebuild {
            self.rebuild_at.get_or_insert(now + COALESCE);
        }
        self.changed.extend(effect.endpoints);
        self.unacknowledged.push((kind, response.nonce.clone()));
    }

    pub fn is_due(&self, now: Nanos) -> bool {
        self.rebuild_at.is_none_or(|at| at <= now)
    }

    /// Puts in force what has come.
    pub fn publish(&mut self, now: Nanos) {
        if self.rebuild_at.take().is_some() {
            self.changed.clear();
            let overlay = self.store.overlay();
            let runtime = runtime(&overlay, Some(&self.runtime), now);
            runtime.commit();
            self.runtime = Arc::new(runtime);
        }
        for name in std::mem::take(&mut self.changed) {
            if let (Some(service), Some(endpoints)) = (
                self.runtime.service_named(&name),
                self.store.endpoints(&name),
            ) {
                service.set_listed(endpoints, now);
            }
        }
        self.check_whole();
    }

    /// Make before break: what comes into force has somewhere to go.
    fn check_whole(&mut self) {
        for service in &self.runtime.services {
            let name = service.config.name.to_string();
            let filled = !service.endpoints.load().is_empty();
            assert!(
                filled || self.filled.contains(&name),
                "{}: {name} came into force without an endpoint",
                self.uid
            );
            self.filled.insert(name);
        }
    }

    pub fn acknowledge(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let answered = std::mem::take(&mut self.unacknowledged).into_iter();
        let request = |(kind, nonce): (Type, String)| DeltaDiscoveryRequest {
            type_url: kind.url(),
            response_nonce: nonce,
            ..Default::default()
        };
        answered.map(request).collect()
    }

    /// An idle connection to whom is meant, as `net::pool` gives it.
    pub fn take(
        &mut self,
        (address, peer): (SocketAddr, &str),
        (now, fresh, without): (Nanos, bool, Without),
    ) -> Option<Connection> {
        let is_for = |connection: &Connection| {
            connection.address == address
                && (connection.peer == peer || without == Without::Identity)
        };
        loop {
            let last = self.idle.iter().rposition(is_for)?;
            if fresh && now.since(self.idle[last].used) > FRESH {
                return None;
            }
            let connection = self.idle.remove(last);
            if connection.closed.is_none_or(|at| at > now) {
                return Some(connection);
            }
        }
    }

    pub fn endpoints(&self, service: &str) -> Vec<(SocketAddr, String)> {
        let service = self.runtime.service_named(service);
        let set = service.map(|service| service.endpoints.load_full());
        let endpoints = set.iter().flat_map(|set| set.endpoints());
        let named = endpoints.map(|endpoint| {
            let peer = endpoint.peer().map(|peer| peer.workload.to_string());
            (endpoint.address(), peer.unwrap_or_default())
        });
        named.collect()
    }
}

fn runtime(overlay: &wire::Config, previous: Option<&Runtime>, now: Nanos) -> Runtime {
    let snapshot = compile(overlay).expect("the overlay compiles");
    Runtime::build(Arc::new(snapshot), previous, now).expect("it names no files")
}

//! A compiled configuration with its live parts, ready to be published.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use weft_config::snapshot::{
    self, Destination, ListenerProtocol, ListenerRole, ServiceId, Snapshot,
};
use weft_config::{ConfigError, Errors};

use super::service::ServiceState;
use crate::logic::time::Nanos;
use crate::net::tls::{FileError, ServerTls};

/// One generation of the configuration.
#[derive(Debug)]
pub struct Runtime {
    /// Grows by one with every one that is published.
    pub generation: u64,
    pub snapshot: Arc<Snapshot>,
    /// In the order of the snapshot's.
    pub listeners: Vec<Arc<ListenerState>>,
    /// Indexed by [`ServiceId`].
    pub services: Vec<Arc<ServiceState>>,
    by_name: HashMap<Arc<str>, usize>,
    /// Virtual listeners by what was dialled.
    destinations: HashMap<Destination, usize>,
    /// Virtual listeners of the local workload's ports.
    ports: HashMap<u16, usize>,
    services_by_name: HashMap<Arc<str>, usize>,
}

/// A listener as it runs.
#[derive(Debug)]
pub struct ListenerState {
    pub config: Arc<snapshot::Listener>,
    pub tls: Option<Arc<ServerTls>>,
    /// Open connections; outlives reloads.
    pub connections: Arc<AtomicUsize>,
    /// When a virtual listener was last handed a connection; outlives reloads.
    pub used: Arc<AtomicU64>,
}

impl Runtime {
    /// Opens every file that the snapshot names and takes over from `previous`
    /// what goes on living, without changing it: what is built may yet be refused.
    /// Reports all mistakes at once.
    pub fn build(
        snapshot: Arc<Snapshot>,
        previous: Option<&Self>,
        now: Nanos,
    ) -> Result<Self, Errors> {
        let mut errors = Errors::default();
        let mut listeners = Vec::with_capacity(snapshot.listeners.len());
        let mut by_name = HashMap::with_capacity(snapshot.listeners.len());
        for (index, config) in snapshot.listeners.iter().enumerate() {
            let old = previous.and_then(|runtime| runtime.listener(&config.name));
            match ListenerState::build(config, old) {
                Ok(state) => {
                    by_name.insert(Arc::clone(&config.name), listeners.len());
                    listeners.push(Arc::new(state));
                }
                Err(files) => report(&mut errors, files, ("listener", index, &config.name)),
            }
        }
        let zone = &snapshot.settings.zone;
        let old_services: HashMap<&str, &ServiceState> = previous
            .into_iter()
            .flat_map(|runtime| &runtime.services)
            .map(|service| (service.config.name.as_ref(), service.as_ref()))
            .collect();
        let mut services = Vec::with_capacity(snapshot.services.len());
        for (index, config) in snapshot.services.iter().enumerate() {
            let old = old_services.get(config.name.as_ref()).copied();
            match ServiceState::build(config, zone, old, now) {
                Ok(state) => services.push(Arc::new(state)),
                Err(files) => report(&mut errors, files, ("service", index, &config.name)),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let (destinations, ports) = virtual_listeners(&listeners);
        Ok(Self {
            services_by_name: services
                .iter()
                .enumerate()
                .map(|(index, service)| (Arc::clone(&service.config.name), index))
                .collect(),
            generation: previous.map_or(1, |runtime| runtime.generation + 1),
            listeners,
            services,
            by_name,
            destinations,
            ports,
            snapshot,
        })
    }

    /// The listener of this name.
    pub fn listener(&self, name: &str) -> Option<&Arc<ListenerState>> {
        self.listeners.get(*self.by_name.get(name)?)
    }

    /// The virtual listener of what was dialled.
    pub fn destination(&self, destination: &Destination) -> Option<&Arc<ListenerState>> {
        self.listeners.get(*self.destinations.get(destination)?)
    }

    /// The virtual listener of a port of the local workload.
    pub fn port(&self, port: u16) -> Option<&Arc<ListenerState>> {
        self.listeners.get(*self.ports.get(&port)?)
    }

    /// Where a sidecar takes what is meant for its workload.
    pub fn inbound(&self) -> Option<&Arc<ListenerState>> {
        let mut listeners = self.listeners.iter();
        listeners.find(|listener| listener.config.role == ListenerRole::Inbound)
    }

    /// The service of this name.
    pub fn service_named(&self, name: &str) -> Option<&Arc<ServiceState>> {
        self.services.get(*self.services_by_name.get(name)?)
    }

    /// Brings what is shared with the runtime before this one in line with it. To
    /// be called right before this one is published, when nothing can fail.
    pub fn commit(&self) {
        for service in &self.services {
            service.commit();
        }
    }

    /// The service behind an id of this runtime's snapshot; `None` only for an
    /// id of another snapshot.
    pub fn service(&self, id: ServiceId) -> Option<&Arc<ServiceState>> {
        self.services.get(id.0 as usize)
    }
}

/// Indexes of the virtual listeners: by destination, and by port.
fn virtual_listeners(
    listeners: &[Arc<ListenerState>],
) -> (HashMap<Destination, usize>, HashMap<u16, usize>) {
    let (mut destinations, mut ports) = (HashMap::new(), HashMap::new());
    for (index, listener) in listeners.iter().enumerate() {
        match &listener.config.role {
            ListenerRole::Virtual {
                destination: Some(destination),
            } => {
                destinations.insert(destination.clone(), index);
            }
            ListenerRole::Virtual { destination: None } => {
                ports.insert(listener.config.address.port(), index);
            }
            _ => {}
        }
    }
    (destinations, ports)
}

impl ListenerState {
    fn build(
        config: &Arc<snapshot::Listener>,
        previous: Option<&Arc<Self>>,
    ) -> Result<Self, Vec<FileError>> {
        let http = matches!(
            config.protocol,
            ListenerProtocol::Auto | ListenerProtocol::Http
        );
        let tls = match (&config.tls, previous.and_then(|old| old.tls.as_ref())) {
            (None, _) => None,
            (Some(tls), Some(old)) if old.is_for(tls, http) => Some(Arc::clone(old)),
            (Some(tls), _) => Some(Arc::new(ServerTls::open(tls, http)?)),
        };
        Ok(Self {
            config: Arc::clone(config),
            tls,
            connections: previous.map_or_else(Arc::default, |old| Arc::clone(&old.connections)),
            used: previous.map_or_else(Arc::default, |old| Arc::clone(&old.used)),
        })
    }
}

/// Adds file errors in the form of all other mistakes of a configuration.
fn report(errors: &mut Errors, files: Vec<FileError>, owner: (&str, usize, &str)) {
    let (kind, index, name) = owner;
    for error in files {
        errors.list.push(ConfigError {
            path: format!("{kind}s[{index}].{}", error.field),
            message: format!(
                "{kind} \"{name}\": {}: {}",
                error.file.display(),
                error.problem
            ),
        });
    }
}

//! A directory of manifests as a controller would read it, without one: the same
//! source and index, and the same compiler as a proxy's.

use std::path::Path;

use anyhow::{Result, ensure};
use weft_config::compile::compile;
use weft_config::error::Errors;
use weft_config::snapshot::Snapshot;
use weft_config::status::{ObjectStatus, SourceError};
use weft_config::wire;
use weft_controller::api::{Pod, Spec};
use weft_controller::index::Index;
use weft_controller::source::directory::Directory;

#[derive(Debug)]
pub struct Offline {
    pub errors: Vec<SourceError>,
    index: Index,
}

impl Offline {
    pub fn read(folder: &Path, trust_domain: &str) -> Result<Self> {
        ensure!(
            folder.is_dir(),
            "--manifests {}: is no directory; name the one that weft-controller reads",
            folder.display()
        );
        let mut directory = Directory::new(folder);
        let mut index = Index::new(trust_domain);
        index.apply(directory.look().changes);
        Ok(Self {
            errors: directory.errors(),
            index,
        })
    }

    pub fn statuses(&self) -> Vec<ObjectStatus> {
        self.index.statuses()
    }

    pub fn objects(&self) -> usize {
        self.index.objects().len()
    }

    /// Each name by which a port of a Service is dialled: its namespace, and
    /// `service.namespace:port`.
    pub fn dialled(&self) -> impl Iterator<Item = (&str, String)> {
        self.index.objects().iter().flat_map(|(key, object)| {
            let ports = match &object.spec {
                Spec::Service(service) if !service.external => service.ports.as_slice(),
                _ => &[],
            };
            ports.iter().map(|port| {
                let name = format!("{}.{}:{}", key.name, key.namespace, port.port);
                (key.namespace.as_str(), name)
            })
        })
    }

    /// Pods with their namespaces.
    pub fn pods(&self) -> impl Iterator<Item = (&str, &Pod)> {
        self.index
            .objects()
            .iter()
            .filter_map(|(key, object)| match &object.spec {
                Spec::Pod(pod) => Some((key.namespace.as_str(), pod)),
                _ => None,
            })
    }

    /// What a sidecar in `namespace` would have of a destination: its listener's
    /// name, and the snapshot.
    pub fn destination(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<Result<(String, Snapshot), Errors>> {
        let destination = self.index.destination(namespace, name)?;
        let listener = destination.listener?;
        let with_endpoints = |service: &String| {
            let mut found = self.index.service(service)?.into_owned();
            let endpoints = self.index.endpoints(service);
            found.endpoints = endpoints.map_or_else(Vec::new, |of| of.into_owned().endpoints);
            Some(found)
        };
        let services = destination.services.iter().filter_map(with_endpoints);
        let config = wire::Config {
            services: services.collect(),
            listeners: vec![listener.clone()],
            routes: destination.routes,
            settings: None,
        };
        Some(compile(&config).map(|snapshot| (listener.name, snapshot)))
    }

    /// What the sidecar of a workload would make of one of its ports; none: there
    /// is no such workload with a sidecar.
    pub fn inbound(&self, uid: &str, port: u16) -> Option<Result<Snapshot, Errors>> {
        let workload = self.index.workload(uid)?;
        let known = workload.ports.iter().find(|of| of.port == u32::from(port));
        let inbound = known.map_or(&workload.other_ports, |of| &of.inbound);
        let service = wire::Service {
            name: "inbound".to_owned(),
            ..Default::default()
        };
        let listener = wire::Listener {
            name: "inbound".to_owned(),
            address: format!("0.0.0.0:{port}"),
            service: "inbound".to_owned(),
            role: wire::listener_role::Value::Virtual.into(),
            inbound: Some(inbound.clone().unwrap_or_default()),
            ..Default::default()
        };
        Some(compile(&wire::Config {
            listeners: vec![listener],
            services: vec![service],
            ..Default::default()
        }))
    }

    /// What a sidecar would refuse, though the index took it: object and problem.
    pub fn refused(&self) -> Vec<(String, String)> {
        let destinations = self.dialled().filter_map(|(namespace, name)| {
            let problem = self.destination(namespace, &name)?.err()?;
            Some((format!("destination {name}"), problem.to_string()))
        });
        let workloads = self.pods().filter_map(|(namespace, pod)| {
            let workload = self.index.workload(&pod.uid)?;
            // And one that nothing names, for `other_ports`.
            let ports = workload.ports.iter();
            let ports = ports
                .map(|of| u16::try_from(of.port).unwrap_or(1))
                .chain([1]);
            let problem = ports
                .filter_map(|port| self.inbound(&pod.uid, port)?.err())
                .next()?;
            Some((
                format!("workload {namespace}/{}", pod.uid),
                problem.to_string(),
            ))
        });
        destinations.chain(workloads).collect()
    }
}

//! What a fault is done to: a mesh with replicas of `web`, one of them never touched, a caller of
//! it, and a load for each protocol.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::Protocol;
use super::{Extent, application};
use crate::load::{Load, Tally};
use crate::mesh::{APPLICATION_PORT, Mesh, Sidecar, own_address};
use crate::process::Program;
use crate::successors::Successors;
use crate::{eventually, eventually_within};

/// Replicas that faults are done to; beside them the keeper, which none is.
pub const REPLICAS: usize = 3;
/// The identity that all replicas have.
pub const WEB: &str = "web";
/// Who is ejected, or waits before it connects again, comes back in this time on the busiest machine.
const BACK_MAX: Duration = Duration::from_secs(60);
/// Who was ejected comes back soon enough to be seen coming back.
const EJECTED: &str = "1s";

/// A workload: an application and its sidecar.
pub struct Replica {
    pub sidecar: Sidecar,
    pub application: Program,
}

pub struct Stage {
    pub mesh: Mesh,
    pub keeper: Replica,
    pub replicas: Vec<Replica>,
    /// Have left or died; what is left of them ends with the stage.
    pub left: Vec<Replica>,
    pub client: Sidecar,
    pub lanes: Vec<Lane>,
    pub extent: Extent,
    binary: PathBuf,
    /// Retries that a process counted which is no longer asked.
    carried: BTreeMap<&'static str, u64>,
    _successors: Successors,
}

/// One protocol's load.
pub struct Lane {
    pub protocol: Protocol,
    pub load: Load,
}

/// What became of a lane.
pub struct Outcome {
    pub protocol: Protocol,
    pub tally: Tally,
    pub retried: u64,
}

impl Stage {
    /// Sets it up and starts the load; `binary` is the program that has the application in it.
    #[must_use]
    pub fn set(binary: &Path, protocols: &[Protocol], extent: Extent) -> Self {
        let mesh = Mesh::start();
        let replica = || Replica::start(&mesh, binary, (own_address(), WEB));
        let keeper = replica();
        let replicas: Vec<Replica> = (0..REPLICAS).map(|_| replica()).collect();
        // Long-lived connections are opened while the keeper alone serves, so that they are on it.
        changed(&mesh, || write(&mesh, &[&keeper]));
        let names = protocols
            .iter()
            .map(|protocol| format!("{}.shop:80", protocol.name()));
        let names: Vec<String> = names.collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let client = mesh.sidecar("client", &names);
        let lanes = protocols.iter().zip(&client.upstreams);
        let lanes = lanes
            .map(|(protocol, address)| Lane::start(*protocol, *address))
            .collect();
        let stage = Self {
            _successors: Successors(client.proxy.config_path()),
            mesh,
            keeper,
            replicas,
            left: Vec::new(),
            client,
            lanes,
            extent,
            binary: binary.to_owned(),
            carried: BTreeMap::new(),
        };
        stage.publish();
        stage.all_serve();
        stage.go_on();
        stage
    }

    /// Tells who serves now, and waits until the controller has read it.
    pub fn publish(&self) {
        changed(&self.mesh, || self.write());
    }

    /// Changes manifests, and waits until the controller has read them.
    pub fn change(&self, change: impl FnOnce(&Mesh)) {
        changed(&self.mesh, || change(&self.mesh));
    }

    /// Writes down who serves now.
    pub fn write(&self) {
        let serving: Vec<&Replica> = self.replicas.iter().chain([&self.keeper]).collect();
        write(&self.mesh, &serving);
    }

    /// The same without the last replica.
    pub fn write_without_last(&self) {
        let serving = self.replicas.iter().rev().skip(1).chain([&self.keeper]);
        write(&self.mesh, &serving.collect::<Vec<_>>());
    }

    /// Starts a replica; it is ready and not yet published.
    pub fn add(&mut self, account: &str) {
        let replica = self.replica_on(own_address(), account);
        self.replicas.push(replica);
    }

    /// Starts a workload at an address.
    #[must_use]
    pub fn replica_on(&self, address: IpAddr, account: &str) -> Replica {
        Replica::start(&self.mesh, &self.binary, (address, account))
    }

    /// Takes one that is in use, for a fault to be done to it.
    #[track_caller]
    pub fn take(&mut self, index: usize) -> Replica {
        let replica = self.replicas.remove(index);
        assert!(self.serves(&replica), "it was in use");
        replica
    }

    pub fn restart_application(&self, replica: &mut Replica) {
        let folder = self.mesh.folder.path();
        let (address, name) = (replica.sidecar.application(), &replica.sidecar.uid);
        replica.application = application::start(&self.binary, address, name, folder);
    }

    /// Every lane goes on by a step.
    #[track_caller]
    pub fn go_on(&self) {
        self.go_on_with(|_| true);
    }

    /// The lanes of these protocols do.
    #[track_caller]
    pub fn go_on_with(&self, wanted: impl Fn(&Protocol) -> bool) {
        let lanes = self.lanes.iter().filter(|lane| wanted(&lane.protocol));
        let aims = lanes.map(|lane| (&lane.load, lane.load.ended() + self.extent.step));
        for (load, aim) in aims.collect::<Vec<_>>() {
            load.goes_on(aim.saturating_sub(load.ended()));
        }
    }

    /// Whether this replica has answered on every lane that goes to whoever serves.
    #[must_use]
    pub fn serves(&self, replica: &Replica) -> bool {
        self.served(replica).iter().all(|count| *count > 0)
    }

    fn served(&self, replica: &Replica) -> Vec<u64> {
        let short = self.lanes.iter().filter(|lane| !lane.protocol.is_long());
        short
            .map(|lane| lane.load.served_by(&replica.sidecar.uid))
            .collect()
    }

    /// Waits until every replica serves.
    #[track_caller]
    pub fn all_serve(&self) {
        self.all_serve_since(&vec![Vec::new(); self.replicas.len()]);
    }

    /// Waits until every replica has served once more from now on.
    #[track_caller]
    pub fn all_serve_again(&self) {
        let before: Vec<Vec<u64>> = self.replicas.iter().map(|one| self.served(one)).collect();
        self.all_serve_since(&before);
    }

    #[track_caller]
    fn all_serve_since(&self, before: &[Vec<u64>]) {
        for (replica, before) in self.replicas.iter().zip(before) {
            let what = format!("{} serving, having served {before:?}", replica.sidecar.uid);
            eventually_within(BACK_MAX, &what, || {
                let now = self.served(replica);
                let before = before.iter().chain(std::iter::repeat(&0));
                let more = now.iter().zip(before).all(|(now, before)| now > before);
                more.then_some(())
            });
        }
    }

    /// Waits until all who live are connected to the controller and have acknowledged everything.
    pub fn reconnected(&self) {
        eventually_within(BACK_MAX, "everybody being back", || {
            (self.mesh.status().proxies.len() >= self.replicas.len() + 2).then_some(())
        });
        self.mesh.settled();
    }

    /// Remembers what the caller's sidecar has counted, for it is about to be replaced.
    pub fn carry_retries(&mut self) {
        for lane in &self.lanes {
            let name = lane.protocol.name();
            let counted = self.retries(name);
            self.carried.insert(name, counted);
        }
    }

    fn retries(&self, name: &str) -> u64 {
        let metrics = self.client.proxy.metrics();
        let service = format!("shop/{name}:80");
        let counted = ["free", "budgeted"].map(|result| {
            let labels = [("service", service.as_str()), ("result", result)];
            metrics.sum("weft_retries_total", &labels)
        });
        // Counters are whole numbers.
        format!("{:.0}", counted.iter().sum::<f64>())
            .parse()
            .unwrap_or_default()
    }

    /// Stops the load; what became of each lane.
    #[must_use]
    pub fn stop(mut self) -> Vec<Outcome> {
        let lanes = std::mem::take(&mut self.lanes);
        let stopped: Vec<(Protocol, Tally)> = lanes
            .into_iter()
            .map(|lane| (lane.protocol, lane.load.stop()))
            .collect();
        let outcome = |(protocol, tally): (Protocol, Tally)| Outcome {
            protocol,
            tally,
            retried: self.retries(protocol.name())
                + self
                    .carried
                    .get(protocol.name())
                    .copied()
                    .unwrap_or_default(),
        };
        stopped.into_iter().map(outcome).collect()
    }
}

impl Lane {
    fn start(protocol: Protocol, address: std::net::SocketAddr) -> Self {
        let load = protocol.load(address);
        if protocol.is_long() {
            load.goes_on(2 * protocol.at_once());
        }
        Self { protocol, load }
    }
}

/// Makes a change, and waits until the controller has read it.
fn changed(mesh: &Mesh, change: impl FnOnce()) {
    let before = mesh.status().revision;
    change();
    eventually("the controller having read it", || {
        (mesh.status().revision > before).then_some(())
    });
}

/// Writes the services, with these behind all of them.
fn write(mesh: &Mesh, serving: &[&Replica]) {
    let mut endpoints = String::new();
    for replica in serving {
        let (address, uid) = (replica.sidecar.address, &replica.sidecar.uid);
        let _ = writeln!(
            endpoints,
            "- {{addresses: ['{address}'], targetRef: {{kind: Pod, name: {uid}, uid: {uid}}}}}"
        );
    }
    let mut documents = Protocol::ALL
        .map(|protocol| {
            let name = protocol.name();
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
                 spec: {{ports: [{{name: auto, port: 80}}]}}\n---\n\
                 apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
                 addressType: IPv4\nports: [{{name: auto, port: {APPLICATION_PORT}}}]\nendpoints:\n{endpoints}"
            )
        })
        .to_vec();
    let targets = Protocol::ALL.map(|one| format!("{{kind: Service, name: {}}}", one.name()));
    documents.push(format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: soon-back, namespace: shop}}\n\
         spec: {{targetRefs: [{}], outlierDetection: {{baseEjectionTime: {EJECTED}}}}}\n",
        targets.join(", ")
    ));
    mesh.apply("services", &documents.join("---\n"));
}

impl Replica {
    fn start(mesh: &Mesh, binary: &Path, (address, account): (IpAddr, &str)) -> Self {
        let sidecar = mesh.sidecar_on(address, account, &[]);
        let address = sidecar.application();
        let application = application::start(binary, address, &sidecar.uid, mesh.folder.path());
        Self {
            sidecar,
            application,
        }
    }

    /// Application and sidecar at once.
    pub fn kill(&mut self) {
        self.sidecar.proxy.program.kill();
        self.application.kill();
    }
}

//! What a fault is done to: a mesh with replicas of `web`, one of them never touched, a caller of
//! it, and a load for each protocol.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::application;
use super::protocol::Protocol;
use crate::eventually;
use crate::load::{Load, Tally};
use crate::mesh::{APPLICATION_PORT, Mesh, Sidecar};
use crate::process::{Program, Signal};

/// Replicas that faults are done to; beside them the keeper, which none is.
pub const REPLICAS: usize = 3;
/// The identity that all replicas have.
pub const WEB: &str = "web";

/// A workload: an application and its sidecar.
pub struct Replica {
    pub sidecar: Sidecar,
    pub application: Program,
}

pub struct Stage {
    pub mesh: Mesh,
    pub keeper: Replica,
    pub replicas: Vec<Replica>,
    /// Have left; what is left of them ends with the stage.
    pub left: Vec<Replica>,
    pub client: Sidecar,
    pub lanes: Vec<Lane>,
    /// What each lane sends at least before, between and after the steps of a fault.
    pub step: u64,
    binary: PathBuf,
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
    pub fn set(binary: &Path, protocols: &[Protocol], step: u64) -> Self {
        let mesh = Mesh::start();
        let replica = || Replica::start(&mesh, binary, WEB);
        let keeper = replica();
        let replicas = (0..REPLICAS).map(|_| replica()).collect();
        publish(&mesh, &[&keeper]);
        let names = protocols
            .iter()
            .map(|protocol| format!("{}.shop:80", protocol.name()));
        let names: Vec<String> = names.collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let client = mesh.sidecar("client", &names);
        let mut stage = Self {
            mesh,
            keeper,
            replicas,
            left: Vec::new(),
            client,
            lanes: Vec::new(),
            step,
            binary: binary.to_owned(),
        };
        stage.start_lanes(protocols);
        stage
    }

    /// Long-lived connections are opened while the keeper alone serves, so that they are on it.
    fn start_lanes(&mut self, protocols: &[Protocol]) {
        for (index, protocol) in protocols.iter().enumerate() {
            let load = protocol.load(self.client.upstreams[index]);
            if protocol.is_long() {
                load.goes_on(2 * protocol.at_once());
            }
            self.lanes.push(Lane {
                protocol: *protocol,
                load,
            });
        }
        self.publish();
        eventually("every replica serving", || {
            let all = self.replicas.iter().all(|replica| self.serves(replica));
            all.then_some(())
        });
    }

    /// Tells the controller who serves now.
    pub fn publish(&self) {
        let serving: Vec<&Replica> = self.replicas.iter().chain([&self.keeper]).collect();
        publish(&self.mesh, &serving);
    }

    /// A new replica, ready but not yet published.
    #[must_use]
    pub fn replica(&self, account: &str) -> Replica {
        Replica::start(&self.mesh, &self.binary, account)
    }

    /// Every lane goes on by a step.
    #[track_caller]
    pub fn go_on(&self) {
        let aims: Vec<u64> = self
            .lanes
            .iter()
            .map(|lane| lane.load.ended() + self.step)
            .collect();
        for (lane, aim) in self.lanes.iter().zip(aims) {
            let more = aim.saturating_sub(lane.load.ended());
            lane.load.goes_on(more);
        }
    }

    /// Whether this replica has answered on every lane that is not long.
    #[must_use]
    pub fn serves(&self, replica: &Replica) -> bool {
        let mut short = self.lanes.iter().filter(|lane| !lane.protocol.is_long());
        short.all(|lane| lane.load.served_by(&replica.sidecar.uid) > 0)
    }

    fn retries(&self, protocol: Protocol) -> u64 {
        let metrics = self.client.proxy.metrics();
        let services = metrics.values("weft_retries_total", "service");
        let own = services
            .iter()
            .filter(|service| service.contains(protocol.name()));
        let counted = own.flat_map(|service| {
            ["free", "budgeted"].map(|result| {
                metrics.sum(
                    "weft_retries_total",
                    &[("service", service), ("result", result)],
                )
            })
        });
        // Counters are whole numbers.
        format!("{:.0}", counted.sum::<f64>())
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
        let outcome = |(protocol, tally)| Outcome {
            protocol,
            tally,
            retried: self.retries(protocol),
        };
        stopped.into_iter().map(outcome).collect()
    }
}

/// Writes the services, and waits until the controller has them.
fn publish(mesh: &Mesh, serving: &[&Replica]) {
    let mut endpoints = String::new();
    for replica in serving {
        let (address, uid) = (replica.sidecar.address, &replica.sidecar.uid);
        let _ = writeln!(
            endpoints,
            "- {{addresses: ['{address}'], targetRef: {{kind: Pod, name: {uid}, uid: {uid}}}}}"
        );
    }
    let documents = Protocol::ALL.map(|protocol| {
        let name = protocol.name();
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{ports: [{{name: auto, port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: auto, port: {APPLICATION_PORT}}}]\nendpoints:\n{endpoints}"
        )
    });
    let before = mesh.status().revision;
    mesh.apply("services", &documents.join("---\n"));
    eventually("the controller having read it", || {
        (mesh.status().revision > before).then_some(())
    });
}

impl Replica {
    fn start(mesh: &Mesh, binary: &Path, account: &str) -> Self {
        let sidecar = mesh.sidecar(account, &[]);
        let address = sidecar.application();
        let application = application::start(binary, address, &sidecar.uid, mesh.folder.path());
        Self {
            sidecar,
            application,
        }
    }

    /// Leaves as `weft run` and the kubelet have it: barrier, application, sidecar.
    pub fn leave(&mut self) {
        let told = self.sidecar.drain();
        assert_eq!(told["inFlight"], 0, "{told}");
        self.application.signal(Signal::TERM);
        let _ = self.application.ended();
        self.sidecar.proxy.signal(Signal::TERM);
    }
}

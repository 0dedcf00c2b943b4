//! A controller: the hub and its sessions as `weft-controller` has them; what carries bytes there is
//! a queue of events here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tempfile::TempDir;
use weft_config::spiffe::SpiffeId;
use weft_config::wire;
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_controller::api::Key;
use weft_controller::ca::{Ca, token::Verifier};
use weft_controller::discovery::Caller;
use weft_controller::discovery::hub::Hub;
use weft_controller::discovery::leave::{Farewell, Standing};
use weft_controller::discovery::stream::Session;
use weft_controller::index::{Change, Objects};

use super::cluster::{DOMAIN, NAMESPACE};

/// A running process.
pub struct Controller {
    hub: Arc<Hub>,
    objects: Objects,
    sessions: BTreeMap<u64, Session>,
    /// Pods that wait to hear that everybody knows.
    farewells: BTreeMap<usize, Farewell>,
}

/// The authority of all runs; nothing is signed.
fn authority() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| TempDir::new().expect("a folder can be made"));
    folder.path()
}

fn hub() -> Hub {
    static OPENING: Mutex<()> = Mutex::new(());
    let _one = OPENING.lock();
    let life = Duration::from_secs(3600);
    let ca = Ca::open(authority(), DOMAIN, life).expect("an authority can be made");
    Hub::new(ca, Verifier::open(authority()).expect("its key is there"))
}

fn caller(account: &str, workload: &str) -> Caller {
    Caller {
        identity: SpiffeId::new(DOMAIN, NAMESPACE, account).expect("it is one"),
        workload: workload.to_owned(),
        expires: u64::MAX,
        address: String::new(),
        certificate: Vec::new().into(),
    }
}

impl Controller {
    pub fn start(objects: Objects) -> Self {
        let mut controller = Self {
            hub: Arc::new(hub()),
            objects: Objects::new(),
            sessions: BTreeMap::new(),
            farewells: BTreeMap::new(),
        };
        controller.update(objects);
        controller
    }

    pub fn update(&mut self, objects: Objects) {
        let keys: BTreeSet<&Key> = self.objects.keys().chain(objects.keys()).collect();
        let changed = |key: &&Key| self.objects.get(key) != objects.get(key);
        let changes = keys.into_iter().filter(changed).map(|key| Change {
            key: key.clone(),
            object: objects.get(key).cloned(),
        });
        self.hub.update(changes.collect(), Arc::default());
        self.objects = objects;
    }

    /// `stream`: a number that no other stream has had.
    pub fn connect(&mut self, stream: u64, workload: &str) {
        let session = Session::open(Arc::clone(&self.hub), caller("client", workload));
        let (session, _) = session.expect("there are few proxies");
        self.sessions.insert(stream, session);
    }

    pub fn disconnect(&mut self, stream: u64) {
        self.sessions.remove(&stream);
    }

    pub fn receive(&mut self, stream: u64, request: DeltaDiscoveryRequest) {
        if let Some(session) = self.sessions.get_mut(&stream) {
            let received = session.receive(request);
            received
                .map_err(|(reason, _)| reason)
                .expect("it asks well");
        }
    }

    /// What every stream has to be sent now.
    pub fn responses(&mut self) -> Vec<(u64, DeltaDiscoveryResponse)> {
        let mut all = Vec::new();
        for (stream, session) in &mut self.sessions {
            let turn = session.turn().map_err(|(reason, _)| reason);
            let turn = turn.expect("its certificate is good");
            all.extend(turn.into_iter().map(|response| (*stream, response)));
            session.tell();
        }
        all
    }

    pub fn endpoints(&self, service: &str) -> Vec<wire::Endpoint> {
        self.hub.endpoints(service)
    }

    /// A pod leaves.
    pub fn leave(&mut self, pod: usize, (account, uid): (&str, &str)) {
        let farewell = self.hub.begin_leave(&caller(account, uid));
        self.farewells
            .insert(pod, farewell.expect("it is its own workload"));
    }

    /// Pods of which everybody who is there knows that they leave.
    pub fn known_to_leave(&mut self) -> Vec<(usize, Standing)> {
        let mut known = Vec::new();
        let hub = &self.hub;
        self.farewells.retain(|pod, farewell| {
            let standing = hub.standing(farewell);
            if standing.behind == 0 {
                known.push((*pod, standing));
            }
            standing.behind > 0
        });
        known
    }

    /// Gives up waiting; how it stands.
    pub fn give_up(&mut self, pod: usize) -> Option<Standing> {
        let mut farewell = self.farewells.remove(&pod)?;
        Some(self.hub.standing(&mut farewell))
    }
}

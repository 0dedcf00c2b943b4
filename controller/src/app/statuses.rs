//! Who writes statuses, and of what: joins the hub, the Lease and the writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kube::Client;
use tokio::sync::watch;
use weft_config::status::ObjectStatus;

use super::args::Cluster;
use crate::api::{Key, mesh};
use crate::discovery::hub::Hub;
use crate::lease::Candidate;
use crate::source::Update;
use crate::status::{Sayings, Writer};

#[derive(Debug)]
pub struct Statuses {
    /// The object that stands for us.
    mesh: Key,
    writer: Arc<Writer>,
    candidate: Candidate,
}

/// The part that follows the source.
#[derive(Debug)]
pub struct Teller {
    mesh: Key,
    writer: Arc<Writer>,
    leads: watch::Receiver<bool>,
}

impl Statuses {
    pub fn new(client: &Client, cluster: &Cluster, hub: &Hub) -> Self {
        let results = hub.metrics.status_writes.clone();
        let writer = Writer::new(client.clone(), &cluster.mesh_name, results);
        Self {
            mesh: mesh::key(&cluster.mesh_name),
            writer: Arc::new(writer),
            candidate: Candidate::new(client.clone(), &cluster.namespace, &cluster.identity()),
        }
    }

    pub fn teller(&self) -> Teller {
        Teller {
            mesh: self.mesh.clone(),
            writer: Arc::clone(&self.writer),
            leads: self.candidate.leads(),
        }
    }

    pub fn writer(&self) -> &Arc<Writer> {
        &self.writer
    }

    /// Takes part in the election, and writes while it is won.
    pub async fn run(&self, hub: &Hub) {
        let sayings = Said { hub };
        let mut leads = self.candidate.leads();
        let write = async {
            loop {
                if leads.wait_for(|leads| *leads).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = self.writer.run(&sayings) => {}
                    _ = leads.wait_for(|leads| !leads) => {}
                }
            }
        };
        tokio::select! {
            () = write => {}
            () = self.candidate.run() => {}
        }
    }

    /// Gives the Lease up.
    pub async fn release(&self) {
        self.candidate.release().await;
    }
}

impl Teller {
    /// Waits until we lead, or do so no more; tells of everything, or of nothing more.
    pub async fn turned(&mut self, hub: &Hub) {
        if self.leads.changed().await.is_err() {
            return std::future::pending().await;
        }
        let leads = *self.leads.borrow_and_update();
        hub.leads.store(leads, Ordering::Relaxed);
        self.writer.stop();
        if leads {
            self.writer.start();
        }
    }

    /// Tells of what an update has changed.
    pub fn take(&self, hub: &Hub, update: Update) {
        let served = self.writer.served(&update.watches);
        hub.watched(update.watches);
        hub.marked(update.marks);
        self.writer.saw(&update.seen);
        let mut keys = hub.update(update.changes, update.errors);
        if *self.leads.borrow() {
            keys.extend(update.seen.into_keys());
            if served.iter().any(|kind| kind == self.mesh.kind) {
                keys.insert(self.mesh.clone());
            }
            keys.into_iter().for_each(|key| self.writer.tell(key));
        }
    }
}

/// What the hub has to say.
struct Said<'a> {
    hub: &'a Hub,
}

impl Sayings for Said<'_> {
    fn said(&self, key: &Key) -> Vec<ObjectStatus> {
        self.hub.said_of(key)
    }
}

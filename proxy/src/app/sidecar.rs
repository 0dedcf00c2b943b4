//! What the process does as a sidecar: puts in force what a controller told, and
//! passes the drain barrier.
//!
//! The barrier: the workload is taken out of rotation, everybody who used it has
//! acknowledged that, and nothing is in flight; then nothing more reaches the
//! application, and it may end at once. Bounded, for the worst day.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use weft_config::snapshot::{ListenerRole, Snapshot};
use weft_config::{snapshot::Destination, wire};

use super::process::Process;
use crate::control::{Left, Request};
use crate::drain::Phase;
use crate::state::mesh::MeshState;
use crate::state::{Runtime, Shared};

/// Waiting for everybody's acknowledgement.
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);
/// All of the barrier.
const BARRIER_MAX: Duration = Duration::from_secs(8);
/// Nothing in flight for this long: nobody is about to send another.
const QUIET: Duration = Duration::from_millis(100);
/// The same where no controller could tell anybody: our answers have to.
const QUIET_ALONE: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(5);
/// How long a start waits for what the workload needs first.
const SYNCED_MAX: Duration = Duration::from_secs(10);

/// Destinations of explicit listeners.
pub fn pinned(snapshot: &Snapshot) -> Vec<Destination> {
    let of_role = snapshot.listeners.iter().map(|listener| &listener.role);
    of_role
        .filter_map(|role| match role {
            ListenerRole::Outbound { destination } => destination.clone(),
            _ => None,
        })
        .collect()
}

impl Process {
    /// Waits a while for the certificate and what the controller has to tell, and
    /// puts in force what comes; false: a sidecar without a certificate.
    pub(super) async fn first_contact(&mut self, requests: &mut mpsc::Receiver<Request>) -> bool {
        let shared = Arc::clone(&self.shared);
        let Some(mesh) = &shared.mesh else {
            return true;
        };
        let ready = |mesh: &MeshState| {
            let synced = mesh.synced.load(Ordering::Relaxed);
            (synced && mesh.tls.load().is_some()).then_some(())
        };
        let mut awaited = std::pin::pin!(mesh.await_change(SYNCED_MAX, ready));
        loop {
            tokio::select! {
                Some(Request::Overlay(overlay, done)) = requests.recv() => {
                    let _ = done.send(self.apply_overlay(*overlay));
                }
                came = &mut awaited => {
                    if came.is_none() {
                        tracing::warn!(waited = ?SYNCED_MAX, "ready without having heard all from a controller");
                    }
                    return mesh.tls.load().is_some();
                }
            }
        }
    }

    /// Publishes the file's configuration with this beside it.
    pub(super) fn apply_overlay(&mut self, overlay: wire::Config) -> Result<(), String> {
        let source = Arc::clone(&self.control.applied.lock().source);
        let merged = self.file.merged(&source, &overlay);
        let loaded = merged.map_err(|errors| errors.to_string())?;
        let old = self.shared.runtime.load_full();
        let runtime = Runtime::build(loaded.snapshot, Some(&old), self.shared.now())
            .map_err(|errors| errors.to_string())?;
        let runtime = Arc::new(runtime);
        runtime.commit();
        self.shared.runtime.store(Arc::clone(&runtime));
        self.overlay = overlay;
        self.after_publish(&runtime);
        Ok(())
    }

    /// Passes the drain barrier unless that is done; `None`: nothing to wait for.
    pub(super) fn barrier(&self) -> Option<oneshot::Receiver<Left>> {
        let mesh = self.shared.mesh.as_ref()?;
        if mesh.left.load(Ordering::Relaxed) {
            return None;
        }
        let (answer, passed) = oneshot::channel();
        self.leave(answer);
        Some(passed)
    }

    /// What is asked of a process that is leaving: what its connections that
    /// still run need to know is put in force.
    pub(super) fn asked_while_leaving(&mut self, request: Request) {
        match request {
            Request::Overlay(overlay, done) => {
                let _ = done.send(self.apply_overlay(*overlay));
            }
            Request::Leave(answer) => self.leave(answer),
            Request::Reload(answer) => {
                let _ = answer.send(Err("the process is leaving".to_owned()));
            }
            Request::Drain => {}
        }
    }

    /// Passes the drain barrier in a task of its own, and tells how.
    pub(super) fn leave(&self, answer: oneshot::Sender<Left>) {
        let shared = Arc::clone(&self.shared);
        let telling = self.mesh.as_ref().map(|mesh| mesh.leave(ACKNOWLEDGED_MAX));
        shared.drain.advance(Phase::Draining);
        tokio::spawn(async move {
            let limit = Instant::now() + BARRIER_MAX;
            let told = match telling {
                Some(telling) => telling.await,
                None => None,
            };
            let quiet = if told.is_some() { QUIET } else { QUIET_ALONE };
            let in_flight = quiet_for(&shared, quiet, limit).await;
            let left = Left {
                users: told.as_ref().map(|told| told.users),
                acknowledged: told.as_ref().map_or(0, |told| told.acknowledged),
                in_flight,
            };
            if let Some(mesh) = &shared.mesh
                && in_flight == 0
            {
                mesh.left.store(true, Ordering::Relaxed);
            }
            tracing::info!(?left, "nothing more will reach the application");
            let _ = answer.send(left);
        });
    }
}

/// Waits until nothing has been in flight for `quiet`; what still is at `limit`.
async fn quiet_for(shared: &Shared, quiet: Duration, limit: Instant) -> usize {
    let Some(mesh) = &shared.mesh else { return 0 };
    let mut since = Instant::now();
    loop {
        let in_flight = mesh.inbound_in_flight.load(Ordering::Relaxed);
        let now = Instant::now();
        if in_flight > 0 {
            since = now;
        }
        if now - since >= quiet || now >= limit {
            return in_flight;
        }
        sleep(STEP).await;
    }
}

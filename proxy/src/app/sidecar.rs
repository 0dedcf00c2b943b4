//! What the process does as a sidecar: puts in force what a controller told, and
//! passes the drain barrier.
//!
//! The barrier: the workload is taken out of rotation, everybody who used it has
//! acknowledged that, and nothing is in flight; then nothing more reaches the
//! application, and it may end at once. Bounded, for the worst day. When it ends,
//! and that it stays shut, is `logic::barrier`'s.
//!
//! **Invariant:** there is one barrier, whoever asks for it and however often, and
//! it goes on when who asked is gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use weft_config::snapshot::{ListenerRole, Snapshot};
use weft_config::{snapshot::Destination, wire};

use super::process::Process;
use crate::control::{Left, Request};
use crate::drain::Phase;
use crate::logic::barrier::{Barrier, acknowledged_max};
use crate::logic::time::Nanos;
use crate::state::mesh::MeshState;
use crate::state::{Runtime, Shared};

const STEP: Duration = Duration::from_millis(5);
/// How long a start waits for what the workload needs first; then it serves with
/// what it knows, since the application may be running already.
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
                        tracing::warn!(waited = ?SYNCED_MAX, "serving without having heard all from a controller");
                    }
                    return mesh.tls.load().is_some();
                }
            }
        }
    }

    /// Publishes the file's configuration with this beside it.
    pub(super) fn apply_overlay(&mut self, overlay: wire::Config) -> Result<(), String> {
        let source = Arc::clone(&self.control.applied.lock().source);
        let merged = self.source.merged(&source, &overlay);
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
    pub(super) fn barrier(&mut self) -> Option<oneshot::Receiver<Left>> {
        let mesh = self.shared.mesh.as_ref()?;
        if mesh.gate.is_shut() {
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

    /// Tells how the drain barrier was passed, once it is.
    pub(super) fn leave(&mut self, answer: oneshot::Sender<Left>) {
        let mut passed = match &self.leaving {
            Some(passed) => passed.clone(),
            None => self.pass_barrier(),
        };
        self.leaving = Some(passed.clone());
        tokio::spawn(async move {
            if let Ok(left) = passed.wait_for(Option::is_some).await
                && let Some(left) = *left
            {
                let _ = answer.send(left);
            }
        });
    }

    /// Passes the drain barrier, in a task of its own.
    fn pass_barrier(&self) -> watch::Receiver<Option<Left>> {
        let shared = Arc::clone(&self.shared);
        let most = shared.runtime.load().snapshot.settings.drain_barrier;
        let telling = self
            .mesh
            .as_ref()
            .map(|mesh| mesh.leave(acknowledged_max(most)));
        let (tell, passed) = watch::channel(None);
        shared.drain.advance(Phase::Leaving);
        tokio::spawn(async move {
            let began = shared.now();
            let told = match telling {
                Some(telling) => telling.await,
                None => None,
            };
            // A controller that knows of no user may have only just started.
            let all_told = told.is_some_and(|told| {
                told.by_all && told.users > 0 && told.acknowledged == told.users
            });
            let left = Left {
                users: told.map(|told| told.users),
                acknowledged: told.map_or(0, |told| told.acknowledged),
                in_flight: shut(&shared, all_told, (most, began)).await,
            };
            tracing::info!(?left, "nothing more will reach the application");
            tell.send_replace(Some(left));
        });
        passed
    }
}

/// Waits until nothing more will reach the application; what still runs there.
async fn shut(shared: &Shared, all_told: bool, (most, began): (Duration, Nanos)) -> usize {
    let Some(mesh) = &shared.mesh else { return 0 };
    let mut barrier = Barrier::within(most, (began, shared.now()), all_told);
    while !barrier.step(&mesh.gate, shared.now()) {
        sleep(STEP).await;
    }
    mesh.gate.inside()
}

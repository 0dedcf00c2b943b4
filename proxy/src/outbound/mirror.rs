//! Request mirroring: a copy of a request goes to one endpoint of another
//! service; its answer is dropped and its failure is never seen.
//!
//! A body is mirrored once it has been received whole within the replay limit;
//! a larger one is not. At most [`MIRRORS_MAX`] copies are under way, the next
//! is dropped. Both are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use weft_config::snapshot::{BackendTarget, Mirror};

use super::Connection;
use super::forward::Forward;
use super::record::Record;
use super::request::{Current, Incoming, Target};
use crate::logic::cause::Cause;
use crate::net::http::exchange::Replay;
use crate::net::http::message::Side;
use crate::state::ServiceState;

/// Copies under way at once, in all workers.
const MIRRORS_MAX: usize = 256;
/// The whole of a mirrored request.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(10);

static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// The service that a mirror copies to, if it resolves.
pub fn target(current: &Current, mirror: &Mirror) -> Option<Arc<ServiceState>> {
    match mirror.target {
        BackendTarget::Service(id) => current.runtime.service(id).cloned(),
        BackendTarget::Invalid(_) => None,
    }
}

/// Sends the copies of a request, if it has been received whole.
pub fn send(
    connection: &Connection,
    current: &Current,
    incoming: &Incoming,
    target: &Target,
    replay: &Replay,
) {
    if incoming.wants_tunnel() {
        return;
    }
    for service in &target.mirrors {
        let name = Arc::clone(&service.config.name);
        let metrics = Arc::clone(&connection.worker.shared.metrics);
        let Some(replay) = replay.copy() else {
            metrics.mirrored(&name, "body_not_kept");
            continue;
        };
        let place = Place::new();
        if place.0 >= MIRRORS_MAX {
            metrics.mirrored(&name, "full");
            continue;
        }
        let copy = Copy {
            connection: connection.detached(),
            current: current.clone(),
            incoming: incoming.copy(),
            target: Target::direct(Arc::clone(service)),
            replay,
        };
        let guard = connection.worker.shared.drain.track();
        tokio::spawn(async move {
            let answered = matches!(timeout(MIRROR_TIMEOUT, copy.send()).await, Ok(true));
            metrics.mirrored(&name, if answered { "answered" } else { "failed" });
            drop((place, guard));
        });
    }
}

/// A place among the copies under way; holds how many there were before it.
struct Place(usize);

impl Place {
    fn new() -> Self {
        Self(UNDER_WAY.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One copy, with all that it needs.
struct Copy {
    connection: Connection,
    current: Current,
    incoming: Incoming,
    target: Target,
    replay: Replay,
}

impl Copy {
    /// Forwards the copy for nobody: a stream without a peer takes the answer.
    async fn send(self) -> bool {
        let mut nobody = Side::Http2(Box::default());
        let mut record = Record::new(Instant::now());
        let mut forward = Forward::new(
            &self.connection,
            &self.current,
            &mut nobody,
            &self.incoming,
            &self.target,
            &mut record,
        );
        forward.replay = self.replay;
        forward.run(false, false).await;
        record.cause == Cause::Answered
    }
}

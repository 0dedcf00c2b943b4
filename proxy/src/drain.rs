//! The end of the process, told to everyone who must know.
//!
//! ```text
//! Running ──the drain barrier──▶ Leaving ──SIGTERM──▶ Draining ──deadline──▶ Closing
//!    └────────────────SIGTERM / handover────────────────▲
//! ```
//!
//! Running: normal. Leaving: who calls the workload is told to go elsewhere; what the
//! workload itself dials goes on, for it runs still. Draining: connections tell their
//! peers to leave (`Connection: close`, GOAWAY) and still answer what arrives. Closing:
//! the deadline has passed; connections end where they are.
//!
//! **Invariant:** the phase only moves forward; every connection task holds a
//! [`Guard`], so the process knows when the last one has ended.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    Running = 0,
    Leaving = 1,
    Draining = 2,
    Closing = 3,
}

#[derive(Debug)]
pub struct Drain {
    /// The same as the channel's value, for a check without a lock.
    phase: AtomicU8,
    changes: watch::Sender<Phase>,
    open: AtomicUsize,
    idle: Notify,
    began: OnceLock<Instant>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Running as u8),
            changes: watch::Sender::new(Phase::Running),
            open: AtomicUsize::new(0),
            idle: Notify::new(),
            began: OnceLock::new(),
        }
    }
}

impl Drain {
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Running,
            1 => Phase::Leaving,
            2 => Phase::Draining,
            _ => Phase::Closing,
        }
    }

    /// When peers began to be told.
    pub fn began(&self) -> Option<Instant> {
        self.began.get().copied()
    }

    /// Moves on to `phase`; going back is ignored.
    pub fn advance(&self, phase: Phase) {
        if phase != Phase::Running {
            let _ = self.began.set(Instant::now());
        }
        if self.phase.fetch_max(phase as u8, Ordering::Relaxed) < phase as u8 {
            self.changes.send_replace(phase);
        }
    }

    /// A receiver whose `changed` is ready at once if the drain has begun, and
    /// at every later phase.
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        let mut receiver = self.changes.subscribe();
        if *receiver.borrow() != Phase::Running {
            receiver.mark_changed();
        }
        receiver
    }

    /// Counts a connection (or another task that the process must wait for)
    /// until the guard is dropped.
    pub fn track(self: &Arc<Self>) -> Guard {
        self.open.fetch_add(1, Ordering::Relaxed);
        Guard(Arc::clone(self))
    }

    /// Connections and tasks now open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Waits until nothing is open.
    pub async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One open connection or task.
#[derive(Debug)]
pub struct Guard(Arc<Drain>);

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_move_forward() {
        let drain = Drain::default();
        drain.advance(Phase::Closing);
        drain.advance(Phase::Draining);
        assert_eq!(drain.phase(), Phase::Closing);
        assert_eq!(*drain.subscribe().borrow(), Phase::Closing);
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_guard() {
        let drain = Arc::new(Drain::default());
        let guards = [drain.track(), drain.track()];
        let waiter = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(guards);
        waiter.await.expect("the waiter does not panic");
        assert_eq!(drain.open(), 0);
    }
}

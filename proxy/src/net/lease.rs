//! Which downstream connections are idle, and since when, so that the idlest
//! can be closed when room is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

/// Added to the time of opaque connections: they are never known to be between
/// two requests, so they go last, and none only because it rests.
const OPAQUE: u64 = 1 << 63;

/// One connection's claim on its descriptor.
#[derive(Debug, Default)]
pub struct Lease {
    /// A number that grows with time; 0 while busy.
    idle_since: AtomicU64,
    /// It came in for the local workload of a sidecar.
    inbound: AtomicBool,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

impl Lease {
    pub fn set_busy(&self) {
        self.idle_since.store(0, Ordering::Relaxed);
    }

    pub fn set_inbound(&self) {
        self.inbound.store(true, Ordering::Relaxed);
    }

    fn evict(&self) {
        self.evicted.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Ready when the connection, if idle, must close.
    pub fn poll_evicted(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.evicted.load(Ordering::Relaxed) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// The leases of one worker's connections.
#[derive(Debug, Default)]
pub struct Leases {
    all: Mutex<slab::Slab<Arc<Lease>>>,
    ticks: AtomicU64,
}

/// Ends the lease when dropped.
#[derive(Debug)]
pub struct Held {
    leases: Arc<Leases>,
    index: usize,
    lease: Arc<Lease>,
}

impl std::ops::Deref for Held {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl Held {
    pub fn set_idle(&self) {
        let now = self.leases.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        self.lease.idle_since.store(now, Ordering::Relaxed);
    }

    /// Of an opaque connection: bytes have just passed.
    pub fn set_resting(&self) {
        let now = self.leases.ticks.fetch_add(1, Ordering::Relaxed) + 1;
        self.lease.idle_since.store(now | OPAQUE, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leases.all.lock().remove(self.index);
    }
}

impl Leases {
    pub fn hold(self: &Arc<Self>) -> Held {
        let lease = Arc::new(Lease::default());
        let index = self.all.lock().insert(Arc::clone(&lease));
        Held {
            leases: Arc::clone(self),
            index,
            lease,
        }
    }

    /// This moment, for `shed_since`.
    pub fn now(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Tells those to close that have been idle since `moment` or longer, but
    /// no opaque ones.
    pub fn shed_since(&self, moment: u64) {
        let all = self.all.lock();
        for (_, lease) in all.iter() {
            let since = lease.idle_since.load(Ordering::Relaxed);
            if since > 0 && since <= moment {
                lease.evict();
            }
        }
    }

    /// Tells idle connections to close that came in for the local workload, but
    /// no opaque ones: for when it is known that nothing more will come.
    pub fn shed_inbound(&self) {
        let all = self.all.lock();
        for (_, lease) in all.iter() {
            let since = lease.idle_since.load(Ordering::Relaxed);
            if since > 0 && since < OPAQUE && lease.inbound.load(Ordering::Relaxed) {
                lease.evict();
            }
        }
    }

    /// Tells up to `count` of the idlest connections to close; returns how many.
    pub fn shed(&self, count: usize) -> usize {
        let all = self.all.lock();
        let mut idle: Vec<(u64, &Arc<Lease>)> = all
            .iter()
            .map(|(_, lease)| (lease.idle_since.load(Ordering::Relaxed), lease))
            .filter(|(since, lease)| *since > 0 && !lease.evicted.load(Ordering::Relaxed))
            .collect();
        let count = count.min(idle.len());
        if count == 0 {
            return 0;
        }
        idle.select_nth_unstable_by_key(count - 1, |(since, _)| *since);
        for (_, lease) in idle.iter().take(count) {
            lease.evict();
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idlest_go_first_and_the_busy_stay() {
        let leases = Arc::new(Leases::default());
        let held: Vec<_> = (0..4).map(|_| leases.hold()).collect();
        for index in [2, 0, 1] {
            held[index].set_idle();
        }
        held[1].set_busy();
        assert_eq!(leases.shed(1), 1);
        let evicted: Vec<_> = held
            .iter()
            .map(|lease| lease.evicted.load(Ordering::Relaxed))
            .collect();
        assert_eq!(evicted, [false, false, true, false]);
        assert_eq!(leases.shed(9), 1);
        assert_eq!(leases.shed(9), 0);
        let opaque = leases.hold();
        opaque.set_resting();
        held[1].set_idle();
        let moment = leases.now();
        held[3].set_idle();
        leases.shed_since(moment);
        let evicted = |lease: &Held| lease.evicted.load(Ordering::Relaxed);
        assert!(evicted(&held[1]) && !evicted(&held[3]) && !evicted(&opaque));
        opaque.set_inbound();
        leases.shed_inbound();
        assert!(!evicted(&held[3]) && !evicted(&opaque));
        held[3].set_inbound();
        leases.shed_inbound();
        assert!(evicted(&held[3]) && !evicted(&opaque));
        drop((held, opaque));
        assert!(leases.all.lock().is_empty());
    }
}

//! The circuit limits of one service: how many connections, waiting requests
//! and requests in flight it may have, over all workers. Owns the counting;
//! leaves to the caller the 503 that a refusal becomes.
//!
//! **Invariant:** a counter equals the number of its live permits, and never
//! passes its limit, but after a reload that lowered it: then nothing is cut
//! off, and nothing new let in until enough have ended.

use std::ops::Deref;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use weft_config::snapshot::Limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// An upstream connection, idle or not.
    Connection,
    /// A request that waits for a connection.
    Pending,
    /// A request in flight, waiting or not.
    Request,
}

impl Resource {
    pub const ALL: [Resource; 3] = [Resource::Connection, Resource::Pending, Resource::Request];

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Resource::Connection => "connection",
            Resource::Pending => "pending",
            Resource::Request => "request",
        }
    }
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Counter {
    used: AtomicUsize,
    max: AtomicUsize,
}

/// One for each service, for as long as the service exists.
#[derive(Debug, Default)]
pub struct Circuit {
    connections: Counter,
    pending: Counter,
    requests: Counter,
}

impl Circuit {
    pub fn new(limits: &Limits) -> Circuit {
        let circuit = Circuit::default();
        circuit.set_limits(limits);
        circuit
    }

    /// For a reload.
    pub fn set_limits(&self, limits: &Limits) {
        self.connections.max.store(limits.connections_max, Relaxed);
        self.pending.max.store(limits.pending_max, Relaxed);
        self.requests.max.store(limits.requests_max, Relaxed);
    }

    pub fn used(&self, resource: Resource) -> usize {
        self.counter(resource).used.load(Relaxed)
    }

    pub fn max(&self, resource: Resource) -> usize {
        self.counter(resource).max.load(Relaxed)
    }

    fn counter(&self, resource: Resource) -> &Counter {
        match resource {
            Resource::Connection => &self.connections,
            Resource::Pending => &self.pending,
            Resource::Request => &self.requests,
        }
    }
}

/// `None`: the limit is reached. `circuit` is a `&Circuit` where the permit
/// lives shorter than the service, an `Arc<Circuit>` where nobody knows.
pub fn try_acquire<C: Deref<Target = Circuit>>(
    circuit: C,
    resource: Resource,
) -> Option<Permit<C>> {
    let counter = circuit.counter(resource);
    let max = counter.max.load(Relaxed);
    // Add first and take back: one step where there is room, which is the rule,
    // and never past the limit for longer than it takes to see it.
    if counter.used.fetch_add(1, Relaxed) >= max {
        counter.used.fetch_sub(1, Relaxed);
        return None;
    }
    Some(Permit { circuit, resource })
}

/// Gives its place back when dropped.
#[derive(Debug)]
#[must_use = "dropping a permit gives its place back"]
pub struct Permit<C: Deref<Target = Circuit>> {
    circuit: C,
    resource: Resource,
}

impl<C: Deref<Target = Circuit>> Permit<C> {
    /// Somebody waits for a place like this.
    pub fn is_wanted(&self) -> bool {
        self.circuit.used(Resource::Pending) > 0
    }
}

impl<C: Deref<Target = Circuit>> Drop for Permit<C> {
    fn drop(&mut self) {
        self.circuit
            .counter(self.resource)
            .used
            .fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn limits(connections_max: usize, pending_max: usize, requests_max: usize) -> Limits {
        Limits {
            connections_max,
            pending_max,
            requests_max,
            streams_per_connection_max: 100,
        }
    }

    #[test]
    fn each_resource_has_its_own_limit() {
        let circuit = Circuit::new(&limits(1, 2, 3));
        for (resource, max) in Resource::ALL.into_iter().zip([1, 2, 3]) {
            let permits: Vec<_> = (0..max).map(|_| try_acquire(&circuit, resource)).collect();
            assert!(permits.iter().all(Option::is_some), "{resource:?}");
            assert!(try_acquire(&circuit, resource).is_none(), "{resource:?}");
            assert_eq!((circuit.used(resource), circuit.max(resource)), (max, max));
            drop(permits);
            assert_eq!(circuit.used(resource), 0, "{resource:?}");
        }
    }

    #[test]
    fn a_lowered_limit_cuts_nothing_off() {
        let circuit = Arc::new(Circuit::new(&limits(3, 1, 1)));
        let acquire = || try_acquire(Arc::clone(&circuit), Resource::Connection);
        let mut permits: Vec<_> = (0..3).filter_map(|_| acquire()).collect();
        circuit.set_limits(&limits(1, 1, 1));
        assert!(acquire().is_none());
        permits.truncate(1);
        assert!(acquire().is_none());
        permits.clear();
        assert!(acquire().is_some());
    }

    #[test]
    fn threads_never_pass_the_limit() {
        let circuit = Circuit::new(&limits(4, 1, 1));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let held =
                            (0..3).filter_map(|_| try_acquire(&circuit, Resource::Connection));
                        assert!(held.collect::<Vec<_>>().len() <= 3);
                    }
                });
            }
        });
        assert_eq!(circuit.used(Resource::Connection), 0);
    }
}

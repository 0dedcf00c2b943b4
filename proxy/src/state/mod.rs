//! What all workers and the control thread share: the current configuration
//! with its live parts, the counters, the drain.
//!
//! **Invariant:** a [`Runtime`] is never changed once published; what lives
//! longer than one configuration (an endpoint's health and load, budgets,
//! limits in use, open connections) is shared by reference from one to the
//! next, so a reload forgets nothing. Building a runtime changes none of it, so
//! one that is refused leaves no trace; [`Runtime::commit`] does.

mod endpoints;
pub mod mesh;
mod runtime;
mod service;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Instant;

use arc_swap::ArcSwap;

pub use runtime::{ListenerState, Runtime};
pub use service::ServiceState;

use crate::drain::Drain;
use crate::logic::time::Nanos;
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::{Metrics, process};

/// Descriptors that are not connections: listening sockets, files, epoll.
const DESCRIPTORS_RESERVED: usize = 64;

/// Turns the clock into what the pure logic takes.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub fn now(&self) -> Nanos {
        self.at(Instant::now())
    }

    /// The same moment as the pure logic counts it.
    pub fn at(&self, instant: Instant) -> Nanos {
        Nanos::from(instant.saturating_duration_since(self.start))
    }
}

/// One for the process.
#[derive(Debug)]
pub struct Shared {
    pub runtime: ArcSwap<Runtime>,
    pub metrics: Arc<Metrics>,
    pub access_log: Arc<AccessLog>,
    pub drain: Arc<Drain>,
    pub clock: Clock,
    /// Open downstream connections.
    pub connections: AtomicUsize,
    /// Downstream connections accepted so far.
    pub accepted: AtomicU64,
    /// Accepting, not merely started: what /ready says.
    pub ready: AtomicBool,
    /// Set where the configuration has settings.mesh.
    pub mesh: Option<Arc<mesh::MeshState>>,
    /// What the descriptor limit carries.
    descriptors_max: usize,
}

impl Shared {
    /// To be made after the descriptor limit was raised.
    pub fn new(runtime: Runtime, clock: Clock) -> Self {
        runtime.commit();
        let metrics = Arc::new(Metrics::default());
        metrics.set_label_values_max(runtime.snapshot.settings.metric_label_values_max);
        let limit = process::descriptors_max().and_then(|max| usize::try_from(max).ok());
        let limit = limit.unwrap_or(usize::MAX);
        Self {
            runtime: ArcSwap::from_pointee(runtime),
            metrics,
            access_log: Arc::default(),
            drain: Arc::default(),
            clock,
            connections: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            mesh: None,
            descriptors_max: limit.saturating_sub(DESCRIPTORS_RESERVED).max(1),
        }
    }

    pub fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// Downstream connections that may be open at once.
    pub fn connections_max(&self) -> usize {
        match self.runtime.load().snapshot.settings.connections_max {
            0 => self.descriptors_max,
            max => max.min(self.descriptors_max),
        }
    }
}

#[cfg(test)]
pub mod tests;

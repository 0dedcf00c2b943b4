//! What a seed draws: how large the deployment is, how slow everything, and what goes wrong.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use weft_proxy::logic::time::Nanos;

use super::clock::{at, millis};

/// Parts of Weft that a test takes away, to see that the simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    Nothing,
    /// Applications are told to stop at once.
    Barrier,
    /// Whoever has an address is taken for whom it was.
    Identity,
    /// A proxy acknowledges what it has not put in force yet.
    LateAcknowledgement,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    ControllerDies {
        back_after: Duration,
    },
    /// A client's sidecar loses its stream.
    Cut {
        proxy: usize,
        back_after: Duration,
    },
    /// `kill -9` of one application, which its kubelet starts again.
    ApplicationDies,
    /// All connections of a client's sidecar to one replica are reset.
    Resets {
        proxy: usize,
    },
    Scale {
        replicas: usize,
    },
    Rollout,
    /// The route to both services comes, or goes.
    Route,
}

#[derive(Debug)]
pub struct Plan {
    pub replicas: usize,
    pub surge: usize,
    pub unavailable: usize,
    pub proxies: usize,
    pub requests_per_second: f64,
    /// How long clients go on.
    pub end: Nanos,
    /// One way, and what comes on top at random.
    pub latency: (Duration, Duration),
    /// How late EndpointSlices are, at most.
    pub lag: Duration,
    /// Share of the addresses that get another workload once they are free.
    pub reuse: f64,
    pub faults: Vec<(Nanos, Fault)>,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x5eed);
        let proxies = random.random_range(1..=3);
        let lag = match random.random_range(0..3) {
            0 => Duration::ZERO,
            1 => millis(random.random_range(0.0..500.0)),
            _ => millis(random.random_range(500.0..10_000.0)),
        };
        let latency = match random.random_range(0..3) {
            0 | 1 => (millis(0.1), millis(2.0)),
            _ => (millis(random.random_range(1.0..20.0)), millis(150.0)),
        };
        let surge = random.random_range(0..=2);
        let mut faults = vec![(at(random.random_range(4.0..8.0)), Fault::Rollout)];
        for _ in 0..random.random_range(0..6) {
            let time = at(random.random_range(3.0..25.0));
            let back_after = millis(random.random_range(10.0..4_000.0));
            let fault = match random.random_range(0..8) {
                0 => Fault::ControllerDies { back_after },
                1 | 2 => Fault::Cut {
                    proxy: random.random_range(0..proxies),
                    back_after,
                },
                3 => Fault::ApplicationDies,
                4 => Fault::Resets {
                    proxy: random.random_range(0..proxies),
                },
                5 => Fault::Scale {
                    replicas: random.random_range(2..=5),
                },
                6 => Fault::Rollout,
                _ => Fault::Route,
            };
            faults.push((time, fault));
        }
        Self {
            replicas: random.random_range(2..=4),
            surge,
            unavailable: match surge {
                0 => 1,
                _ => random.random_range(0..=1),
            },
            proxies,
            requests_per_second: random.random_range(5.0..30.0),
            end: at(30.0),
            latency,
            lag,
            reuse: random.random_range(0.0..1.0),
            faults,
        }
    }
}

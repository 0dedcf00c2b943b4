//! The endpoints of one service, ready to be picked from: an immutable list
//! in a fixed order, and a small cached [`View`] of how many are available.
//! Owns construction and the view; `pick` owns the choice.
//!
//! ```text
//! endpoints: │ our zone │ other zones │ weight 0 (never picked) │
//!            0        local        weighted                  len()
//! ```
//!
//! The view says what takes a look at every endpoint to know: panic or not,
//! what share of the traffic stays in our zone, who is still warming up. One
//! worker recomputes it every [`REFRESH`] as it picks; outlier detection does
//! after each ejection, and whoever changes health or draining should. What a
//! stale view can do is bounded: every endpoint is still judged by itself,
//! live, when it is drawn, so a view never sends a request to one that is out;
//! it can only enter or leave panic mode, or move the zone shares, up to
//! `REFRESH` late. And a pick that finds nothing by the view looks again with a
//! fresh one.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use weft_config::snapshot::{Algorithm, Balancer};

use super::endpoint::EndpointState;
use super::health::Health;
use super::ring::Ring;
use super::weights::Weights;
use crate::logic::time::Nanos;

/// 1,000 endpoints take some 8 µs to count, 13 with slow start: 0.3 % of this.
pub const REFRESH: Duration = Duration::from_millis(5);

/// Which endpoints may be picked just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The available ones.
    Normal,
    /// Too few are available (`panic_percent`): all that do not drain, whatever
    /// their health, for the few would only follow the many.
    Panic,
    /// Every endpoint drains: those, since they still answer.
    Draining,
    /// None.
    Empty,
}

/// Endpoints of weight above 0, by state; one may be both unhealthy and ejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All but the draining ones: what percentages are taken of.
    pub eligible: usize,
    pub available: usize,
    pub ejected: usize,
    pub unhealthy: usize,
    pub draining: usize,
}

pub struct EndpointSet {
    pub(super) endpoints: Box<[Arc<EndpointState>]>,
    pub(super) local: usize,
    pub(super) weighted: usize,
    pub(super) weights: Weights,
    pub(super) algorithm: Algorithm,
    pub(super) slow_start: Duration,
    /// Only for consistent hashing.
    pub(super) ring: Option<Ring>,
    /// Round-robin turns taken, in our zone and beyond it.
    pub(super) turns: [AtomicU64; 2],
    /// Indices in the order of the endpoints' addresses.
    by_address: Box<[u32]>,
    panic_percent: u32,
    zone_healthy_percent: u32,
    /// Of `endpoints`, in their order: what `commit` gives them.
    given_weights: Box<[u32]>,
    ewma_decay: Duration,
    view: AtomicU64,
    refresh_at: AtomicU64,
}

impl EndpointSet {
    /// Of endpoints with the weights that they have; see `with_weights`.
    pub fn new(
        endpoints: Vec<Arc<EndpointState>>,
        balancer: &Balancer,
        local_zone: &str,
    ) -> EndpointSet {
        let weigh = |endpoint: Arc<EndpointState>| (endpoint.weight(), endpoint);
        let endpoints = endpoints.into_iter().map(weigh).collect();
        EndpointSet::with_weights(endpoints, balancer, local_zone)
    }

    /// Changes nothing in the endpoints, which another set may be using: that is
    /// `commit`'s. Of two endpoints with one address the first counts. An empty
    /// `local_zone`, or consistent hashing (one key must meet one endpoint from
    /// wherever it comes), turns zones off.
    pub fn with_weights(
        mut endpoints: Vec<(u32, Arc<EndpointState>)>,
        balancer: &Balancer,
        local_zone: &str,
    ) -> EndpointSet {
        endpoints.sort_by_key(|(_, endpoint)| endpoint.address());
        endpoints.dedup_by_key(|(_, endpoint)| endpoint.address());
        let zones = balancer.zone_healthy_percent > 0
            && balancer.algorithm != Algorithm::ConsistentHash
            && !local_zone.is_empty();
        let is_local = |endpoint: &EndpointState| zones && **endpoint.zone() == *local_zone;
        // A stable sort by place keeps addresses sorted within each place.
        let mut placed: Vec<(u8, u32, Arc<EndpointState>)> = endpoints
            .into_iter()
            .map(|(weight, endpoint)| {
                let place = if weight == 0 {
                    2
                } else {
                    u8::from(!is_local(&endpoint))
                };
                (place, weight, endpoint)
            })
            .collect();
        placed.sort_by_key(|(place, ..)| *place);
        let local = placed.partition_point(|(place, ..)| *place == 0);
        let weighted = placed.partition_point(|(place, ..)| *place < 2);
        let given_weights: Box<[u32]> = placed.iter().map(|(_, weight, _)| *weight).collect();
        let weights = &given_weights[..weighted];
        let endpoints: Box<[_]> = placed.into_iter().map(|(.., endpoint)| endpoint).collect();
        let mut by_address: Box<[u32]> = (0..endpoints.len() as u32).collect();
        by_address.sort_by_key(|index| endpoints[*index as usize].address());
        let ring = (balancer.algorithm == Algorithm::ConsistentHash)
            .then(|| Ring::new(&endpoints[..weighted], weights));
        EndpointSet {
            local,
            weighted,
            weights: Weights::new(weights),
            algorithm: balancer.algorithm,
            slow_start: balancer.slow_start,
            ring,
            turns: Default::default(),
            by_address,
            panic_percent: balancer.panic_percent,
            zone_healthy_percent: balancer.zone_healthy_percent,
            given_weights,
            ewma_decay: balancer.ewma_decay,
            view: AtomicU64::new(View::default().pack()),
            refresh_at: AtomicU64::new(0),
            endpoints,
        }
    }

    /// Gives the endpoints, which outlive this set, their weights and the decay
    /// of their latencies. To be called as the set is published, not before: one
    /// that is thrown away must leave no trace.
    pub fn commit(&self) {
        for (endpoint, weight) in self.endpoints.iter().zip(&self.given_weights) {
            endpoint.set_weight(*weight);
            endpoint.set_ewma_decay(self.ewma_decay);
        }
    }

    /// Every endpoint, those of weight 0 too; our zone first.
    pub fn endpoints(&self) -> &[Arc<EndpointState>] {
        &self.endpoints
    }

    /// Endpoints that traffic may be sent to at all: weight above 0.
    pub fn weighted(&self) -> &[Arc<EndpointState>] {
        self.endpoints.get(..self.weighted).unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// How many there are for a request: those, and who was tried and has gone since.
    pub fn len_with(&self, tried: &[SocketAddr]) -> usize {
        let gone = |index: &usize| {
            let address = tried.get(*index);
            address.is_some_and(|address| {
                self.find(*address).is_none() && !tried.iter().take(*index).any(|of| of == address)
            })
        };
        self.len() + (0..tried.len()).filter(gone).count()
    }

    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The endpoint at an address, as session persistence needs it. The caller
    /// asks `is_available`.
    pub fn find(&self, address: SocketAddr) -> Option<&Arc<EndpointState>> {
        self.endpoints.get(self.index_of(address)?)
    }

    pub(super) fn index_of(&self, address: SocketAddr) -> Option<usize> {
        let address_at = |index: &u32| self.endpoints.get(*index as usize).map(|e| e.address());
        let found = self
            .by_address
            .binary_search_by(|index| address_at(index).cmp(&Some(address)))
            .ok()?;
        self.by_address.get(found).map(|index| *index as usize)
    }

    /// The states of all endpoints, counted now.
    pub fn counts(&self, now: Nanos) -> Counts {
        let mut counts = Counts::default();
        for endpoint in self.weighted() {
            counts.draining += usize::from(endpoint.is_draining());
            counts.eligible += usize::from(!endpoint.is_draining());
            counts.available += usize::from(endpoint.is_available(now));
            counts.ejected += usize::from(endpoint.is_ejected(now));
            counts.unhealthy += usize::from(endpoint.health() == Health::Unhealthy);
        }
        counts
    }

    /// What a pick at `now` chooses from, for metrics and `explain`.
    pub fn rotation(&self, now: Nanos) -> Rotation {
        self.survey(now).rotation
    }

    /// Recomputes the view at once. Call it after changing an endpoint's
    /// health or draining.
    pub fn refresh(&self, now: Nanos) {
        self.refreshed(now);
    }

    pub(super) fn refreshed(&self, now: Nanos) -> View {
        let view = self.survey(now);
        self.view.store(view.pack(), Relaxed);
        self.refresh_at.store((now + REFRESH).0, Relaxed);
        view
    }

    /// The cached view, refreshed by one of the callers when it is due.
    pub(super) fn view(&self, now: Nanos) -> View {
        let due = self.refresh_at.load(Relaxed);
        if now.0 >= due {
            let next = (now + REFRESH).0;
            if self
                .refresh_at
                .compare_exchange(due, next, Relaxed, Relaxed)
                .is_ok()
            {
                return self.refreshed(now);
            }
        }
        View::unpack(self.view.load(Relaxed))
    }

    fn survey(&self, now: Nanos) -> View {
        let (mut eligible, mut available) = ([0usize; 2], [0usize; 2]);
        let (mut coldest, mut warmest) = (1f64, 0f64);
        for (index, endpoint) in self.weighted().iter().enumerate() {
            let zone = usize::from(index >= self.local);
            eligible[zone] += usize::from(!endpoint.is_draining());
            if endpoint.is_available(now) {
                available[zone] += 1;
                let warmth = endpoint.warmth(now, self.slow_start);
                coldest = coldest.min(warmth);
                warmest = warmest.max(warmth);
            }
        }
        let (all, up) = (eligible[0] + eligible[1], available[0] + available[1]);
        let rotation = if self.weighted == 0 {
            Rotation::Empty
        } else if all == 0 {
            Rotation::Draining
        } else if up * 100 < all * self.panic_percent as usize {
            Rotation::Panic
        } else if up == 0 {
            Rotation::Empty
        } else {
            Rotation::Normal
        };
        View {
            rotation,
            local_share: self.local_share(eligible[0], available),
            warming: rotation == Rotation::Normal && coldest < warmest,
            warmest: if up == 0 { 1.0 } else { warmest },
        }
    }

    /// All of it while enough of our zone is available; below that in
    /// proportion, so that no endpoint of ours gets more than it had when the
    /// spilling began.
    fn local_share(&self, eligible: usize, available: [usize; 2]) -> f64 {
        match available {
            [0, _] => 0.0,
            [_, 0] => 1.0,
            [ours, _] => {
                let enough = eligible as f64 * f64::from(self.zone_healthy_percent) / 100.0;
                (ours as f64 / enough).min(1.0)
            }
        }
    }
}

impl fmt::Debug for EndpointSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSet")
            .field("algorithm", &self.algorithm)
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// See the file's head. One atomic word: 2 bits of rotation, 1 of warming, and
/// the two shares in 65,535ths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct View {
    pub(super) rotation: Rotation,
    /// Share of the picks that stay in our zone.
    pub(super) local_share: f64,
    /// Some available endpoint is warmer than another.
    pub(super) warming: bool,
    /// The warmest endpoint's warmth: what the others are measured against, so
    /// that a start of all of them at once slows nobody down.
    pub(super) warmest: f64,
}

impl Default for View {
    fn default() -> Self {
        View {
            rotation: Rotation::Normal,
            local_share: 1.0,
            warming: false,
            warmest: 1.0,
        }
    }
}

impl View {
    const SCALE: f64 = 65_535.0;

    fn pack(self) -> u64 {
        let rotation = match self.rotation {
            Rotation::Normal => 0,
            Rotation::Panic => 1,
            Rotation::Draining => 2,
            Rotation::Empty => 3,
        };
        let fraction = |share: f64| (share * Self::SCALE).round() as u64;
        rotation
            | u64::from(self.warming) << 2
            | fraction(self.local_share) << 16
            | fraction(self.warmest) << 32
    }

    fn unpack(word: u64) -> View {
        let fraction = |bits: u64| f64::from(bits as u16) / Self::SCALE;
        View {
            rotation: match word & 3 {
                0 => Rotation::Normal,
                1 => Rotation::Panic,
                2 => Rotation::Draining,
                _ => Rotation::Empty,
            },
            warming: word & 4 != 0,
            local_share: fraction(word >> 16),
            warmest: fraction(word >> 32),
        }
    }
}

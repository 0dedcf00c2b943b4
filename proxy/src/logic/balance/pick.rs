//! Picks an endpoint for one try.
//!
//! Draw, then judge: an endpoint is drawn by weight without looking at the
//! others, judged by itself (available? not tried? warm enough?), and drawn
//! again if it will not do. While most endpoints are available that takes one or
//! two draws however many there are; after [`DRAWS_MAX`] a scan settles it.
//!
//! P2C draws two and prefers the one that costs less. Alike weights: two
//! different endpoints. Unlike ones (or some that warm up): two independent
//! draws, since only these keep the shares exact when nothing distinguishes the
//! endpoints (a pair of *different* ones would give a heavy endpoint of two half
//! of the traffic, whatever its weight); if they meet on one endpoint, another
//! gets the try only if it costs less than half.
//!
//! Under least request the cheaper of the two takes the try. Under peak EWMA it
//! is chosen by lot, with the odds of the inverse squares of the costs: 50 % for
//! equals, 80 % for one half as dear, 99 % for a tenth. A latency is a memory: at
//! a low rate, with nothing in flight, the same one of two equals would win every
//! comparison until the other's last peak has decayed, seconds later.
//!
//! Preference, in order: untried in the zone chosen for this pick, untried in
//! the other zones, untried though ejected, untried though leaving, tried before
//! (the longest ago first). After [`ZONE_TRIES_MAX`] tries the other zones come first.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rand::{Rng, RngExt};
use weft_config::snapshot::Algorithm;

use super::endpoint::EndpointState;
use super::health::Health;
use super::ring::{self, Ring};
use super::set::{EndpointSet, Rotation, View};
use crate::logic::time::Nanos;

/// With half of the endpoints out, all of this many draws miss once in 65,536 picks.
const DRAWS_MAX: usize = 16;

/// An endpoint without a latency costs nothing while idle, so it is tried at
/// once, and this (in nanoseconds) for each request on it until its first
/// answer, so that it is not buried before anybody knows it.
const UNKNOWN_LATENCY: f64 = 1e9;

/// Tries that stay in our zone as long as anything in it is untried. A zone that
/// fails as a whole must not use up a request's retries.
const ZONE_TRIES_MAX: usize = 2;

/// How many times cheaper another endpoint must be to take a try from one that
/// its weight chose.
const CLEARLY_CHEAPER: f64 = 2.0;

#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    pub endpoint: &'a Arc<EndpointState>,
    /// `Panic` is to be counted in a metric.
    pub rotation: Rotation,
    /// Outside our zone although it has endpoints.
    pub spilled: bool,
}

impl EndpointSet {
    /// `None`: the set has no endpoint that may take traffic. `hash` is for
    /// consistent hashing; without it the key is random. `tried` are the
    /// addresses that this request has been sent to already.
    pub fn pick<R: Rng + ?Sized>(
        &self,
        now: Nanos,
        random: &mut R,
        hash: Option<u64>,
        tried: &[SocketAddr],
    ) -> Option<Pick<'_>> {
        let view = self.view(now);
        let mut search = Search {
            set: self,
            view,
            now,
            tried,
            lenience: Lenience::None,
            random,
        };
        let mut found = search.run(hash);
        if found.is_none() {
            // What the view promised may have left since.
            search.view = self.refreshed(now);
            search.tried = tried;
            found = search.run(hash);
        }
        let index = found?;
        let rotation = search.view.rotation;
        let endpoint = self.endpoints.get(index)?;
        Some(Pick {
            endpoint,
            rotation,
            spilled: self.local > 0 && index >= self.local,
        })
    }
}

/// Who will do beside the available ones, for a request that somebody has failed.
#[derive(Clone, Copy)]
enum Lenience {
    None,
    Ejected,
    /// Those, and who is leaving but still answers.
    Draining,
}

/// One pick's inputs, gathered.
struct Search<'a, R: ?Sized> {
    set: &'a EndpointSet,
    view: View,
    now: Nanos,
    tried: &'a [SocketAddr],
    lenience: Lenience,
    random: &'a mut R,
}

impl<R: Rng + ?Sized> Search<'_, R> {
    fn run(&mut self, hash: Option<u64>) -> Option<usize> {
        if self.view.rotation == Rotation::Empty {
            return None;
        }
        if self.tried.is_empty() {
            return self.choose(hash);
        }
        // Whoever has just failed this request comes last, and of those the one whose
        // try is longest ago: the lowest cost is that of whoever fails fastest.
        let tried = self.tried;
        (0..=tried.len()).find_map(|since| {
            self.tried = tried.get(since..).unwrap_or_default();
            [Lenience::None, Lenience::Ejected, Lenience::Draining]
                .into_iter()
                .find_map(|lenience| {
                    self.lenience = lenience;
                    self.choose(hash)
                })
        })
    }

    fn choose(&mut self, hash: Option<u64>) -> Option<usize> {
        if let Some(ring) = &self.set.ring {
            let key = hash.unwrap_or_else(|| self.random.next_u64());
            return self.by_key(ring, key);
        }
        let (first, second) = self.zones();
        self.choose_in(first).or_else(|| self.choose_in(second))
    }

    /// The zones to look in, in order.
    fn zones(&mut self) -> (Range<usize>, Range<usize>) {
        let (local, all) = (self.set.local, self.set.weighted);
        if local == 0 || local == all || self.view.rotation != Rotation::Normal {
            return (0..all, 0..0);
        }
        if self.tried.len() >= ZONE_TRIES_MAX {
            return (local..all, 0..local);
        }
        let share = self.view.local_share;
        if share >= 1.0 || self.random.random::<f64>() < share {
            (0..local, local..all)
        } else {
            (local..all, 0..local)
        }
    }

    fn choose_in(&mut self, range: Range<usize>) -> Option<usize> {
        if range.is_empty() {
            return None;
        }
        match self.set.algorithm {
            Algorithm::PeakEwma | Algorithm::LeastRequest => self.cheaper_of_two(range),
            Algorithm::RoundRobin => {
                for _ in 0..DRAWS_MAX {
                    let turn = self.turn(range.start);
                    let index = self.set.weights.at_turn(&range, turn);
                    if self.will_do(index, None) && self.warm_enough(index) {
                        return Some(index);
                    }
                }
                self.scan(range, None)
            }
            // A hash without a ring cannot be; random is what it would come to.
            Algorithm::Random | Algorithm::ConsistentHash => self.draw(&range, None),
        }
    }

    fn cheaper_of_two(&mut self, range: Range<usize>) -> Option<usize> {
        let first = self.draw(&range, None)?;
        if range.len() == 1 {
            return Some(first);
        }
        let even = self.set.weights.are_even() && !self.view.warming;
        let (second, margin) = if even {
            (self.draw(&range, Some(first)), 1.0)
        } else {
            match self.draw(&range, None) {
                Some(second) if second != first => (Some(second), 1.0),
                _ => (self.draw(&range, Some(first)), CLEARLY_CHEAPER),
            }
        };
        match second {
            Some(second) if self.prefers(second, first, margin) => Some(second),
            _ => Some(first),
        }
    }

    /// Whether `second` takes the try from `first`. With a `margin` above 1 never
    /// unless it is that many times cheaper, and from there on with a probability
    /// that grows from nothing: (margin·b/a)² of the tries stay.
    fn prefers(&mut self, second: usize, first: usize, margin: f64) -> bool {
        let (a, b) = (self.cost(first), self.cost(second) * margin);
        if self.set.algorithm != Algorithm::PeakEwma {
            return b < a;
        }
        let (a, b) = (a * a, b * b);
        let whole = if margin > 1.0 { a } else { a + b };
        // Both unknown and idle cost nothing: the first, which was drawn at random.
        self.random.random::<f64>() * whole < whole - b
    }

    /// What one more request on this endpoint would wait, about: the time of
    /// one times those ahead of it, measured by what the endpoint's weight and
    /// warmth say that it can take.
    fn cost(&self, index: usize) -> f64 {
        let Some(endpoint) = self.set.endpoints.get(index) else {
            return f64::INFINITY;
        };
        let capacity = self.set.weights.relative(index) * self.warmth(endpoint);
        let ahead = f64::from(endpoint.in_flight()) / capacity;
        if self.set.algorithm != Algorithm::PeakEwma {
            return ahead + 1.0;
        }
        match endpoint.latency_nanos(self.now) {
            Some(latency) => latency * (ahead + 1.0),
            None => UNKNOWN_LATENCY * ahead,
        }
    }

    /// A random endpoint that will do, by weight.
    fn draw(&mut self, range: &Range<usize>, except: Option<usize>) -> Option<usize> {
        for _ in 0..DRAWS_MAX {
            let index = self.set.weights.at_random(range, self.random.next_u64());
            if self.will_do(index, except) && self.warm_enough(index) {
                return Some(index);
            }
        }
        self.scan(range.clone(), except)
    }

    /// The same, by looking at all of them: each replaces the choice so far
    /// with the probability of its weight among those seen (Chao's reservoir).
    fn scan(&mut self, range: Range<usize>, except: Option<usize>) -> Option<usize> {
        let (mut chosen, mut seen) = (None, 0.0);
        for index in range {
            if !self.will_do(index, except) {
                continue;
            }
            let Some(endpoint) = self.set.endpoints.get(index) else {
                continue;
            };
            let weight = self.set.weights.relative(index) * self.warmth(endpoint);
            seen += weight;
            if self.random.random::<f64>() * seen <= weight {
                chosen = Some(index);
            }
        }
        chosen
    }

    /// Along the ring from the key on; where that takes too long, the endpoint
    /// that the key likes best of those that will do. Both always give one key
    /// the same endpoint while the same endpoints are available.
    fn by_key(&self, ring: &Ring, key: u64) -> Option<usize> {
        for address in ring.walk(key) {
            let Some(index) = self.set.index_of(*address) else {
                continue;
            };
            if self.will_do(index, None) && self.warm_for_key(index, key) {
                return Some(index);
            }
        }
        let mut best = (None, 0.0);
        for (index, endpoint) in self.set.weighted().iter().enumerate() {
            if self.will_do(index, None) {
                let weight = self.set.weights.relative(index);
                let liking = ring::liking(key, endpoint.address(), weight);
                if liking > best.1 {
                    best = (Some(index), liking);
                }
            }
        }
        best.0
    }

    fn will_do(&self, index: usize, except: Option<usize>) -> bool {
        let Some(endpoint) = self.set.endpoints.get(index) else {
            return false;
        };
        let in_rotation = match self.view.rotation {
            Rotation::Normal => match self.lenience {
                Lenience::None => endpoint.is_available(self.now),
                Lenience::Ejected => {
                    endpoint.health() != Health::Unhealthy && !endpoint.is_draining()
                }
                Lenience::Draining => endpoint.health() != Health::Unhealthy,
            },
            Rotation::Panic => !endpoint.is_draining(),
            Rotation::Draining => true,
            Rotation::Empty => false,
        };
        in_rotation && Some(index) != except && !self.tried.contains(&endpoint.address())
    }

    fn warmth(&self, endpoint: &EndpointState) -> f64 {
        if self.view.warming {
            endpoint.warmth(self.now, self.set.slow_start)
        } else {
            1.0
        }
    }

    fn warm_enough(&mut self, index: usize) -> bool {
        if !self.view.warming {
            return true;
        }
        let threshold = self.random.random::<f64>() * self.view.warmest;
        self.set
            .endpoints
            .get(index)
            .is_some_and(|endpoint| self.warmth(endpoint) > threshold)
    }

    /// With each key decided once: as an endpoint warms up it takes over one
    /// key after the other, and none goes back and forth.
    fn warm_for_key(&self, index: usize, key: u64) -> bool {
        let Some(endpoint) = self.set.endpoints.get(index) else {
            return false;
        };
        !self.view.warming
            || ring::unit(key, endpoint.address()) * self.view.warmest < self.warmth(endpoint)
    }

    /// The next turn of the zone that begins at `start`.
    fn turn(&mut self, start: usize) -> u64 {
        let [ours, beyond] = &self.set.turns;
        let turns = if start == 0 { ours } else { beyond };
        let turn = turns.fetch_add(1, Relaxed);
        if turn != 0 {
            return turn;
        }
        // Each proxy begins elsewhere, or a fleet that restarts together would
        // send all its first requests to the same endpoint.
        let first = self.random.next_u64() | 1;
        turns.store(first.wrapping_add(1), Relaxed);
        first
    }
}

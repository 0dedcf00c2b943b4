//! Virtual time: what happens next, in order of time and then of scheduling. One seed, one run.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use weft_proxy::logic::time::Nanos;

pub fn millis(millis: f64) -> Duration {
    Duration::from_secs_f64(millis / 1e3)
}

pub fn at(seconds: f64) -> Nanos {
    Nanos::from(Duration::from_secs_f64(seconds))
}

pub struct Clock<Event> {
    pub now: Nanos,
    pub random: SmallRng,
    queue: BinaryHeap<Reverse<(Nanos, u64)>>,
    pending: HashMap<u64, Event>,
    next: u64,
    /// Tells what happens.
    pub told: bool,
}

impl<Event> Clock<Event> {
    pub fn new(seed: u64) -> Self {
        Self {
            now: Nanos::ZERO,
            random: SmallRng::seed_from_u64(seed),
            queue: BinaryHeap::new(),
            pending: HashMap::new(),
            next: 0,
            told: std::env::var_os("WEFT_SEED").is_some(),
        }
    }

    pub fn at(&mut self, time: Nanos, event: Event) {
        self.queue.push(Reverse((time.max(self.now), self.next)));
        self.pending.insert(self.next, event);
        self.next += 1;
    }

    pub fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Moves on to the next event.
    pub fn next(&mut self) -> Option<Event> {
        let Reverse((time, number)) = self.queue.pop()?;
        self.now = time;
        self.pending.remove(&number)
    }

    pub fn say(&self, what: std::fmt::Arguments<'_>) {
        if self.told {
            println!("{:10.3} {what}", self.now.0 as f64 / 1e9);
        }
    }

    /// From 0 to 1.
    pub fn random_share(&mut self) -> f64 {
        self.random.random()
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.random.random::<f64>() < probability
    }

    pub fn between(&mut self, least: f64, most: f64) -> f64 {
        least + (most - least) * self.random.random::<f64>()
    }

    pub fn below(&mut self, count: usize) -> usize {
        self.random.random_range(0..count.max(1))
    }
}

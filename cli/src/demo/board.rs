//! What the demo knows at a moment: acts, events, clients, services, replicas.
//! Written by the load, the stage and the readings of the sidecars; read by the
//! screen and the report. It decides nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::load::{Lane, Loss, Version};
use super::metrics::Sample;
use super::programs::Service;
use super::timeline::Act;
use super::window::{SPAN, Window};
use crate::exposition::Buckets;

/// Losses that get a line of their own; the rest is only counted.
const LOSSES_TOLD_MAX: u64 = 20;
/// Events kept; a demo has some sixty.
const EVENTS_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Bad,
}

#[derive(Clone, Debug)]
pub struct Event {
    /// Since the start of the demo.
    pub at: Duration,
    pub tone: Tone,
    pub text: String,
}

/// One kind of traffic.
#[derive(Debug)]
pub struct LaneTally {
    pub name: &'static str,
    pub key: &'static str,
    pub sent: u64,
    pub answered: u64,
    pub lost: u64,
    pub window: Window,
    /// Microseconds, of the whole run.
    pub latency: Histogram<u64>,
}

/// A service as those see it who call it.
#[derive(Debug)]
pub struct ServiceRow {
    pub service: Service,
    pub served: u64,
    pub failed: u64,
    pub window: Window,
    /// Of the whole run.
    pub durations: Buckets,
    recent: VecDeque<(Duration, Buckets)>,
    /// Answers by the version that gave them.
    pub versions: BTreeMap<u32, (u64, Window)>,
}

impl ServiceRow {
    pub fn new(service: Service) -> Self {
        Self {
            service,
            served: 0,
            failed: 0,
            window: Window::default(),
            durations: Buckets::default(),
            recent: VecDeque::new(),
            versions: BTreeMap::new(),
        }
    }

    /// How long it took lately.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let mut sum = Buckets::default();
        self.recent
            .iter()
            .for_each(|(_, buckets)| sum.merge(buckets));
        sum.quantile(share)
    }

    fn took(&mut self, now: Duration, buckets: &Buckets) {
        self.durations.merge(buckets);
        self.recent.push_back((now, buckets.clone()));
        let old = |at: Duration| now.saturating_sub(at) > SPAN;
        while self.recent.front().is_some_and(|(at, _)| old(*at)) {
            self.recent.pop_front();
        }
    }
}

/// Where a replica is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Starting,
    Serving,
    Leaving,
    Killed,
    Gone,
}

#[derive(Debug)]
pub struct ReplicaRow {
    pub service: Service,
    pub name: String,
    pub version: u32,
    /// Where its application listens.
    pub address: SocketAddr,
    pub life: Life,
    pub ended: Option<Duration>,
    pub served: u64,
}

/// One part of the timeline.
#[derive(Debug)]
pub struct ActRow {
    pub act: Act,
    pub begun: Option<Duration>,
    pub ended: Option<Duration>,
}

#[derive(Debug)]
pub struct State {
    pub acts: Vec<ActRow>,
    /// What is being done now.
    pub doing: String,
    pub events: Vec<Event>,
    pub lanes: Vec<LaneTally>,
    pub services: Vec<ServiceRow>,
    pub replicas: Vec<ReplicaRow>,
    /// Tries that the callers' sidecars made elsewhere.
    pub retries: u64,
    /// Memory of the sidecar that was read last.
    pub resident_bytes: u64,
    samples: HashMap<SocketAddr, Sample>,
}

impl Default for State {
    fn default() -> Self {
        let planned = |act| ActRow {
            act,
            begun: None,
            ended: None,
        };
        Self {
            acts: Act::ALL.into_iter().map(planned).collect(),
            doing: "starting".to_owned(),
            events: Vec::new(),
            lanes: Vec::new(),
            services: Service::ALL.into_iter().map(ServiceRow::new).collect(),
            replicas: Vec::new(),
            retries: 0,
            resident_bytes: 0,
            samples: HashMap::new(),
        }
    }
}

/// Shared by all parts of the demo.
#[derive(Debug)]
pub struct Board {
    started: Instant,
    state: Mutex<State>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            state: Mutex::default(),
        }
    }
}

impl Board {
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Never held across an `.await`; nothing panics while it is.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tell(&self, tone: Tone, text: impl Into<String>) {
        let at = self.now();
        let mut state = self.state();
        if state.events.len() < EVENTS_MAX {
            let text = text.into();
            state.events.push(Event { at, tone, text });
        }
    }

    /// What is done from now on.
    pub fn doing(&self, what: impl Into<String>) {
        self.state().doing = what.into();
    }

    pub fn begin(&self, act: Act) {
        let now = self.now();
        let mut state = self.state();
        if let Some(row) = state.acts.iter_mut().find(|row| row.act == act) {
            row.begun = Some(now);
        }
    }

    pub fn end(&self, act: Act) {
        let now = self.now();
        let mut state = self.state();
        if let Some(row) = state.acts.iter_mut().find(|row| row.act == act) {
            row.ended = Some(now);
        }
        state.doing = "nothing, but serving".to_owned();
    }

    pub fn add_lanes(&self, lanes: &[Lane]) {
        let tally = |lane: &Lane| LaneTally {
            name: lane.name(),
            key: lane.key(),
            sent: 0,
            answered: 0,
            lost: 0,
            window: Window::default(),
            latency: Histogram::new(3).expect("three digits are allowed"),
        };
        self.state().lanes = lanes.iter().map(tally).collect();
    }

    pub fn sent(&self, lane: usize) {
        if let Some(lane) = self.state().lanes.get_mut(lane) {
            lane.sent += 1;
        }
    }

    pub fn answered(&self, lane: usize, latency: Duration, by: &[Version]) {
        let now = self.now();
        let mut state = self.state();
        for (service, version) in by {
            if let Some(row) = state
                .services
                .iter_mut()
                .find(|row| row.service == *service)
            {
                let (count, window) = row.versions.entry(*version).or_default();
                *count += 1;
                window.count(now, 1, 0);
            }
        }
        if let Some(lane) = state.lanes.get_mut(lane) {
            lane.answered += 1;
            lane.window.count(now, 1, 0);
            lane.window.took(now, latency);
            // A histogram that sizes itself takes every value.
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            let _recorded = lane.latency.record(micros);
        }
    }

    pub fn lost(&self, lane: usize, number: u64, loss: &Loss) {
        let now = self.now();
        let mut state = self.state();
        let Some(lane) = state.lanes.get_mut(lane) else {
            return;
        };
        lane.lost += 1;
        lane.window.count(now, 0, 1);
        let name = lane.name.split_whitespace().collect::<Vec<_>>().join(" ");
        let lost = state.lost();
        drop(state);
        if lost <= LOSSES_TOLD_MAX {
            let text = format!("LOST request {number}, {name}: {}", loss.0);
            self.tell(Tone::Bad, text);
        }
    }

    pub fn add_replica(&self, row: ReplicaRow) {
        self.state().replicas.push(row);
    }

    pub fn set_life(&self, address: SocketAddr, life: Life) {
        let now = self.now();
        let mut state = self.state();
        let mut rows = state.replicas.iter_mut();
        if let Some(row) = rows.find(|row| row.address == address) {
            row.life = life;
            row.ended = matches!(life, Life::Killed | Life::Gone).then_some(now);
        }
    }

    /// Takes a reading of the sidecar whose admin address is `of`.
    pub fn read(&self, of: SocketAddr, sample: Sample) {
        let now = self.now();
        let mut state = self.state();
        let delta = match state.samples.get(&of) {
            Some(before) => sample.since(before),
            None => sample.clone(),
        };
        for ((service, address), counts) in &delta.requests {
            let mut services = state.services.iter_mut();
            if let Some(row) = services.find(|row| row.service == *service) {
                row.served += counts.good;
                row.failed += counts.bad;
                row.window.count(now, counts.good, counts.bad);
            }
            let mut replicas = state.replicas.iter_mut();
            if let Some(row) = replicas.find(|row| row.address == *address) {
                row.served += counts.good + counts.bad;
            }
        }
        for (service, buckets) in &delta.durations {
            let mut services = state.services.iter_mut();
            if let Some(row) = services.find(|row| row.service == *service) {
                row.took(now, buckets);
            }
        }
        if delta.retries > 0 {
            let text = format!(
                "sidecars tried {} elsewhere",
                counted(delta.retries, "request")
            );
            let tone = Tone::Good;
            state.events.push(Event {
                at: now,
                tone,
                text,
            });
        }
        state.retries += delta.retries;
        state.resident_bytes = sample.resident_bytes;
        state.samples.insert(of, sample);
    }
}

pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

impl State {
    pub fn sent(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.sent).sum()
    }

    pub fn answered(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.answered).sum()
    }

    pub fn lost(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.lost).sum()
    }
}

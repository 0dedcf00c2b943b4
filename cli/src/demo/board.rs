//! What the demo knows at a moment: events, clients, backends, the proxy.
//! Written by the load, the stage and the readings of the proxy; read by the
//! screen and the report. It decides nothing.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::load::{Lane, Loss};
use super::metrics::{Rotation, Sample};
use super::window::Window;

/// Losses that get a line of their own; the rest is only counted.
const LOSSES_TOLD_MAX: u64 = 20;
/// Events kept; a demo has some forty.
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

/// Where a backend is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Starting,
    Serving,
    Killed,
    Leaving,
    Gone,
}

#[derive(Debug)]
pub struct BackendRow {
    pub name: String,
    /// The program that it is.
    pub program: &'static str,
    pub address: SocketAddr,
    pub pid: u32,
    pub life: Life,
    pub ended: Option<Duration>,
    /// Whether the proxy would pick it; none while it does not know it.
    pub rotation: Option<Rotation>,
    pub served: u64,
    pub window: Window,
}

/// The proxy, summed over the processes that it has been.
#[derive(Debug, Default)]
pub struct ProxyRow {
    pub pid: u32,
    pub retries: u64,
    pub reloads: u64,
    pub reloads_refused: u64,
    pub resident_bytes: u64,
}

#[derive(Debug, Default)]
pub struct State {
    pub events: Vec<Event>,
    pub lanes: Vec<LaneTally>,
    pub backends: Vec<BackendRow>,
    pub proxy: ProxyRow,
    sample: Sample,
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

    pub fn answered(&self, lane: usize, latency: Duration) {
        let now = self.now();
        if let Some(lane) = self.state().lanes.get_mut(lane) {
            lane.answered += 1;
            lane.window.count(now, 1, 0);
            lane.window.took(now, latency);
            // A histogram that sizes itself takes every value.
            let _recorded = lane
                .latency
                .record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
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
        let lost: u64 = state.lanes.iter().map(|lane| lane.lost).sum();
        drop(state);
        if lost <= LOSSES_TOLD_MAX {
            self.tell(
                Tone::Bad,
                format!("LOST request {number}, {name}: {}", loss.0),
            );
        }
    }

    pub fn add_backend(&self, row: BackendRow) {
        let mut state = self.state();
        // One that was started again on its port takes the place it had.
        match state
            .backends
            .iter_mut()
            .find(|other| other.address == row.address)
        {
            Some(other) => *other = row,
            None => {
                let after = state
                    .backends
                    .iter()
                    .rposition(|other| other.name == row.name);
                let place = after.map_or(state.backends.len(), |place| place + 1);
                state.backends.insert(place, row);
            }
        }
    }

    pub fn set_life(&self, address: SocketAddr, life: Life) {
        let now = self.now();
        let mut state = self.state();
        if let Some(row) = state.backends.iter_mut().find(|row| row.address == address) {
            row.life = life;
            row.ended = matches!(life, Life::Killed | Life::Gone).then_some(now);
        }
    }

    /// Takes a reading of the proxy's metrics.
    pub fn read(&self, sample: Sample) {
        let now = self.now();
        let mut state = self.state();
        let delta = sample.since(&state.sample);
        let mut events = Vec::new();
        for row in &mut state.backends {
            let rotation = sample.rotation.get(&row.address).copied();
            events.extend(turn(row, rotation).map(|(tone, text)| Event {
                at: now,
                tone,
                text,
            }));
            row.rotation = rotation;
            if let Some(counts) = delta.requests.get(&row.address) {
                row.served += counts.good + counts.bad;
                row.window.count(now, counts.good, counts.bad);
            }
        }
        if delta.retries > 0 {
            let text = format!(
                "the proxy tried {} elsewhere",
                counted(delta.retries, "request")
            );
            events.push(Event {
                at: now,
                tone: Tone::Good,
                text,
            });
        }
        state.proxy.retries += delta.retries;
        state.proxy.reloads += delta.reloads;
        state.proxy.reloads_refused += delta.reloads_refused;
        state.proxy.resident_bytes = sample.resident_bytes;
        state.sample = sample;
        state.events.extend(events);
    }

    /// How long a backend took for a request, by the proxy's access log.
    pub fn took(&self, backend: SocketAddr, latency: Duration) {
        let now = self.now();
        if let Some(row) = self
            .state()
            .backends
            .iter_mut()
            .find(|row| row.address == backend)
        {
            row.window.took(now, latency);
        }
    }
}

pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// What there is to say when the proxy thinks of a backend otherwise than before.
fn turn(row: &BackendRow, now: Option<Rotation>) -> Option<(Tone, String)> {
    let name = &row.name;
    match (row.rotation?, now?) {
        (before, now) if before == now => None,
        (_, Rotation::In) => Some((
            Tone::Good,
            format!("the proxy has {name} in rotation again"),
        )),
        (Rotation::In, Rotation::Unhealthy) => Some((
            Tone::Plain,
            format!("the proxy takes {name} out: its health check fails"),
        )),
        (Rotation::In, _) => Some((
            Tone::Plain,
            format!("the proxy ejects {name}: requests to it fail"),
        )),
        _ => None,
    }
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

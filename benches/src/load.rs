//! The load generator. `http1` (epoll; also TLS, new connections, open loop),
//! `idle`, `http2` (the h2 crate; also gRPC) and `tcp` each drive one kind of
//! case; all check every answer (status and length), and the first wrong one
//! fails the case. Nothing here knows which subject it talks to.

pub mod http1;
pub mod http2;
pub mod idle;
pub mod tcp;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::case::{Case, STREAMS};

/// Longest without any answer before the case is failed.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Latencies from 1 ns to 100 s, in three digits.
const LATENCY_MAX_NS: u64 = 100_000_000_000;

/// What to do to whom.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One of a single hop: the load of a pair's case is its hop's.
    pub case: Case,
    pub addr: SocketAddr,
    pub warm_up: Duration,
    pub window: Duration,
    pub connections: usize,
    pub h2_connections: usize,
    pub idle: usize,
    pub rate: u32,
    pub tls: Arc<rustls::ClientConfig>,
}

/// The two ends of the measured window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Start,
    End,
}

/// Called at both ends of the window, while the load is on.
pub type OnEdge<'a> = &'a mut dyn FnMut(Edge) -> Result<()>;

/// What a window held.
#[derive(Debug)]
pub struct Outcome {
    pub requests: u64,
    pub elapsed: Duration,
    pub latency_ns: Histogram<u64>,
}

impl Outcome {
    pub fn new() -> Result<Self> {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?;
        Ok(Self {
            requests: 0,
            elapsed: Duration::ZERO,
            latency_ns,
        })
    }

    pub fn record(&mut self, latency: Duration) {
        self.requests += 1;
        self.latency_ns
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Runs one case.
pub fn run(plan: &Plan, on_edge: OnEdge<'_>) -> Result<Outcome> {
    match plan.case {
        Case::Idle => idle::run(plan, on_edge),
        Case::H2Small | Case::GrpcUnary => http2::run(plan, STREAMS, on_edge),
        Case::H2SmallSingle => http2::run(plan, 1, on_edge),
        Case::TcpStream => tcp::run(plan, on_edge),
        _ => http1::run(plan, on_edge),
    }
}

/// One real request of the case: what readiness means.
pub fn probe(plan: &Plan) -> Result<()> {
    match plan.case {
        Case::TcpStream => tcp::probe(plan),
        Case::H2Small | Case::H2SmallSingle | Case::GrpcUnary => http2::probe(plan),
        _ => http1::probe(plan),
    }
}

/// Where in its course a run is.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    begin: Instant,
    window: Option<Instant>,
    warm_up: Duration,
    length: Duration,
}

impl Clock {
    pub fn new(plan: &Plan) -> Self {
        Self {
            begin: Instant::now(),
            window: None,
            warm_up: plan.warm_up,
            length: plan.window,
        }
    }

    pub fn measuring(&self) -> bool {
        self.window.is_some()
    }

    /// Moves on; the edge that has just been reached, if any.
    pub fn tick(&mut self, now: Instant) -> Option<Edge> {
        match self.window {
            None if now >= self.begin + self.warm_up => {
                self.window = Some(now);
                Some(Edge::Start)
            }
            Some(start) if now >= start + self.length => Some(Edge::End),
            _ => None,
        }
    }

    pub fn elapsed(&self, now: Instant) -> Duration {
        self.window.map_or(Duration::ZERO, |start| now - start)
    }
}

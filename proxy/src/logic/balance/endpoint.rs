//! What all workers know of one endpoint: its health, its load, its recent
//! failures. Owns the bookkeeping; leaves the judgement to `set`, `pick` and
//! `outlier`.
//!
//! Everything is an atomic on its own and read with relaxed order: a pick may
//! see a count that is one request old, which costs nothing, and no decision
//! needs two of these fields to agree.
//!
//! **Invariant:** `in_flight` equals the number of live [`InFlight`] guards.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::time::Duration;

use http::StatusCode;
use weft_config::snapshot::{Endpoint, HealthCheck, Peer};

use super::health::Health;
use super::latency::{PeakEwma, Sample};
use crate::logic::time::Nanos;

/// The share of its weight that an endpoint starts with (Envoy's figure):
/// nothing at all would leave it cold for good.
pub(super) const SLOW_START_SHARE_MIN: f64 = 0.1;

/// Used until an `EndpointSet` is committed and brings the policy's.
const EWMA_DECAY_DEFAULT: Duration = Duration::from_secs(10);

/// How a try ended, as far as it says something of the endpoint. A request
/// that the client gave up says nothing: see [`InFlight::abandon`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The endpoint answered, and the answer says that it failed.
    Failure,
    /// No connection, no answer, no answer in time, or one cut short.
    Unreachable,
}

impl Outcome {
    /// 5xx is the server's failure (RFC 9110 §15.6); everything else, 4xx too,
    /// is the work of a server that works.
    pub fn of_status(status: StatusCode) -> Outcome {
        if status.is_server_error() {
            Outcome::Failure
        } else {
            Outcome::Success
        }
    }

    /// gRPC's codes that correspond to a 5xx: DEADLINE_EXCEEDED (4), INTERNAL
    /// (13), UNAVAILABLE (14) and DATA_LOSS (15). UNKNOWN (2) is what many
    /// servers answer for an exception in the application: it counts as well.
    pub fn of_grpc_status(code: u8) -> Outcome {
        if matches!(code, 2 | 4 | 13 | 14 | 15) {
            Outcome::Failure
        } else {
            Outcome::Success
        }
    }

    pub fn is_success(self) -> bool {
        self == Outcome::Success
    }
}

/// Written with every request: on cache lines of its own, so that the rest of
/// the endpoint stays readable without a miss.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Load {
    in_flight: AtomicU32,
    consecutive_failures: AtomicU32,
    latency: PeakEwma,
    /// Requests of this success-rate interval in the upper half, successes
    /// among them in the lower: one word, so that a sweep takes both at once.
    interval: AtomicU64,
}

#[derive(Debug)]
pub struct EndpointState {
    address: SocketAddr,
    /// Whom it must prove to be, if it is of the mesh.
    peer: Option<Arc<Peer>>,
    zone: Arc<str>,
    weight: AtomicU32,
    health: AtomicU8,
    draining: AtomicBool,
    /// The last return from an ejection has yet to be reported by a sweep.
    returning: AtomicBool,
    checks_in_row: AtomicU32,
    last_check_passed: AtomicBool,
    ejections: AtomicU32,
    ejected_until: AtomicU64,
    ready_since: AtomicU64,
    ewma_decay_nanos: AtomicU64,
    load: Load,
}

impl EndpointState {
    /// An endpoint first seen at `now`, which is where its slow start begins.
    pub fn new(address: SocketAddr, zone: Arc<str>, weight: u32, now: Nanos) -> EndpointState {
        EndpointState {
            address,
            peer: None,
            zone,
            weight: AtomicU32::new(weight),
            health: AtomicU8::new(Health::Unknown as u8),
            draining: AtomicBool::new(false),
            returning: AtomicBool::new(false),
            checks_in_row: AtomicU32::new(0),
            last_check_passed: AtomicBool::new(false),
            ejections: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ready_since: AtomicU64::new(now.0),
            ewma_decay_nanos: AtomicU64::new(Nanos::from(EWMA_DECAY_DEFAULT).0),
            load: Load::default(),
        }
    }

    /// As [`Self::new`], of what a configuration lists.
    pub fn of(endpoint: &Endpoint, now: Nanos) -> EndpointState {
        let zone = Arc::clone(&endpoint.zone);
        EndpointState {
            peer: endpoint.peer.clone(),
            ..Self::new(endpoint.address, zone, endpoint.weight, now)
        }
    }

    pub fn peer(&self) -> Option<&Arc<Peer>> {
        self.peer.as_ref()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn zone(&self) -> &Arc<str> {
        &self.zone
    }

    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// An `EndpointSet` keeps the weight that it was made with.
    pub(super) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Relaxed);
    }

    pub fn health(&self) -> Health {
        Health::from_bits(self.health.load(Relaxed))
    }

    /// True if it changed; then `refresh` the sets that hold this endpoint.
    /// One that recovers starts anew: unknown latency, slow start.
    pub fn set_health(&self, health: Health, now: Nanos) -> bool {
        let before = Health::from_bits(self.health.swap(health as u8, Relaxed));
        if before == Health::Unhealthy && health != Health::Unhealthy {
            self.start_anew(now);
        }
        before != health
    }

    /// Takes the result of one active check; the new health if it changed.
    /// Checks of one endpoint follow each other, they never overlap.
    pub fn checked(&self, passed: bool, check: &HealthCheck, now: Nanos) -> Option<Health> {
        let same = self.last_check_passed.swap(passed, Relaxed) == passed;
        let streak = if same {
            self.checks_in_row.load(Relaxed).saturating_add(1)
        } else {
            1
        };
        self.checks_in_row.store(streak, Relaxed);
        let health = self.health().after(passed, streak, check);
        self.set_health(health, now).then_some(health)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// True if it changed; then `refresh` the sets that hold this endpoint.
    pub fn set_draining(&self, draining: bool, now: Nanos) -> bool {
        let before = self.draining.swap(draining, Relaxed);
        if before && !draining {
            self.start_anew(now);
        }
        before != draining
    }

    pub fn is_ejected(&self, now: Nanos) -> bool {
        self.ejected_until.load(Relaxed) > now.0
    }

    /// End of the current or last ejection; zero: never ejected.
    pub fn ejected_until(&self) -> Nanos {
        Nanos(self.ejected_until.load(Relaxed))
    }

    /// How often it was ejected of late: grows with each ejection, shrinks as
    /// the endpoint behaves.
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }

    /// Healthy as far as we know, not ejected, not draining. Weight is not asked.
    pub fn is_available(&self, now: Nanos) -> bool {
        self.health() != Health::Unhealthy && !self.is_draining() && !self.is_ejected(now)
    }

    pub fn in_flight(&self) -> u32 {
        self.load.in_flight.load(Relaxed)
    }

    pub fn consecutive_failures(&self) -> u32 {
        self.load.consecutive_failures.load(Relaxed)
    }

    /// Peak-EWMA latency; `None`: no recent sample.
    pub fn latency(&self, now: Nanos) -> Option<Duration> {
        let nanos = self.latency_nanos(now)?;
        Some(Duration::from_nanos(nanos as u64))
    }

    pub(super) fn latency_nanos(&self, now: Nanos) -> Option<f64> {
        self.load.latency.estimate(now, self.decay_nanos())
    }

    /// When it last became able to take traffic: made, recovered, undrained
    /// or back from an ejection.
    pub fn ready_since(&self) -> Nanos {
        Nanos(
            self.ready_since
                .load(Relaxed)
                .max(self.ejected_until.load(Relaxed)),
        )
    }

    /// Share of its weight that it has at `now`, from `SLOW_START_SHARE_MIN`
    /// to 1, in a straight line over `slow_start`; zero turns slow start off.
    pub fn warmth(&self, now: Nanos, slow_start: Duration) -> f64 {
        if slow_start.is_zero() {
            return 1.0;
        }
        let warm = now.since(self.ready_since()).as_secs_f64() / slow_start.as_secs_f64();
        warm.clamp(SLOW_START_SHARE_MIN, 1.0)
    }

    /// Counts a request in until the guard is finished or dropped.
    pub fn begin(self: &Arc<Self>, now: Nanos) -> InFlight {
        self.load.in_flight.fetch_add(1, Relaxed);
        InFlight {
            endpoint: Arc::clone(self),
            began: now,
        }
    }

    pub(super) fn set_ewma_decay(&self, decay: Duration) {
        // At least a microsecond: it divides.
        self.ewma_decay_nanos
            .store(Nanos::from(decay).0.max(1_000), Relaxed);
    }

    fn decay_nanos(&self) -> f64 {
        self.ewma_decay_nanos.load(Relaxed) as f64
    }

    fn start_anew(&self, now: Nanos) {
        self.load.latency.reset();
        self.ready_since.store(now.0, Relaxed);
    }
}

/// What outlier detection keeps on an endpoint.
impl EndpointState {
    /// Counts one outcome; the failures in a row, this one included.
    pub(in crate::logic) fn count(&self, outcome: Outcome) -> u32 {
        let success = outcome.is_success();
        self.load
            .interval
            .fetch_add((1 << 32) | u64::from(success), Relaxed);
        if !success {
            return self
                .load
                .consecutive_failures
                .fetch_add(1, Relaxed)
                .saturating_add(1);
        }
        // Success is the rule: leave the cache line alone if it says so already.
        if self.consecutive_failures() != 0 {
            self.load.consecutive_failures.store(0, Relaxed);
        }
        0
    }

    /// Successes and requests since the last call.
    pub(in crate::logic) fn take_interval(&self) -> (u32, u32) {
        let word = self.load.interval.swap(0, Relaxed);
        (word as u32, (word >> 32) as u32)
    }

    pub(in crate::logic) fn forget_failures(&self) {
        self.load.consecutive_failures.store(0, Relaxed);
    }

    /// The caller holds the ejection lock and checked the floor.
    pub(in crate::logic) fn eject(&self, until: Nanos, ejections: u32) {
        self.forget_failures();
        self.ejections.store(ejections, Relaxed);
        self.returning.store(true, Relaxed);
        self.load.latency.reset();
        self.ejected_until.store(until.0, Relaxed);
    }

    /// True once after each ejection that has ended by `now`.
    pub(in crate::logic) fn take_return(&self, now: Nanos) -> bool {
        !self.is_ejected(now) && self.returning.load(Relaxed) && self.returning.swap(false, Relaxed)
    }

    pub(in crate::logic) fn forgive_one_ejection(&self) {
        self.ejections
            .store(self.ejections().saturating_sub(1), Relaxed);
    }
}

/// One request (or connection) on an endpoint. Dropping it counts the request
/// out; nothing more, for a drop has no clock.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<EndpointState>,
    began: Nanos,
}

impl InFlight {
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.endpoint
    }

    pub fn began(&self) -> Nanos {
        self.began
    }

    /// Takes the latency (to the head of the answer) and leaves the request
    /// counted: its body is still being sent.
    pub fn observe(&self, outcome: Outcome, latency: Duration, now: Nanos) {
        let sample = match outcome {
            Outcome::Success => Sample::Answer,
            Outcome::Failure => Sample::AtLeast,
            Outcome::Unreachable => Sample::Unreachable,
        };
        self.sample(sample, latency, now);
    }

    /// `observe`, and the request is over.
    pub fn finish(self, outcome: Outcome, latency: Duration, now: Nanos) {
        self.observe(outcome, latency, now);
    }

    /// Nobody waits for the answer any more: that it would have taken at least
    /// this long still counts, or an endpoint that hangs would look idle.
    pub fn abandon(self, now: Nanos) {
        self.sample(Sample::AtLeast, now.since(self.began), now);
    }

    fn sample(&self, sample: Sample, latency: Duration, now: Nanos) {
        let decay = self.endpoint.decay_nanos();
        self.endpoint
            .load
            .latency
            .update(sample, latency, now, decay);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.load.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Arc<EndpointState> {
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        Arc::new(EndpointState::new(address, Arc::from("a"), 1, Nanos::ZERO))
    }

    fn at(seconds: u64) -> Nanos {
        Nanos::from(Duration::from_secs(seconds))
    }

    #[test]
    fn every_end_of_a_request_counts_it_out() {
        let endpoint = endpoint();
        let requests: Vec<_> = (0..4).map(|_| endpoint.begin(at(1))).collect();
        assert_eq!(endpoint.in_flight(), 4);
        for (index, request) in requests.into_iter().enumerate() {
            match index {
                0 => request.finish(Outcome::Success, Duration::from_millis(5), at(1)),
                1 => request.abandon(at(2)),
                2 => {
                    request.observe(Outcome::Success, Duration::from_millis(5), at(1));
                    assert_eq!(request.endpoint().in_flight(), 2);
                }
                _ => drop(request),
            }
        }
        assert_eq!(endpoint.in_flight(), 0);
        assert_eq!(
            endpoint.latency(at(2)).map(|latency| latency.as_millis()),
            Some(1000)
        );
    }

    #[test]
    fn outcomes() {
        for (status, success) in [
            (200, true),
            (404, true),
            (429, true),
            (500, false),
            (503, false),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(Outcome::of_status(status).is_success(), success, "{status}");
        }
        for code in 0..=16 {
            let failure = [2, 4, 13, 14, 15].contains(&code);
            assert_eq!(
                Outcome::of_grpc_status(code).is_success(),
                !failure,
                "{code}"
            );
        }
    }

    #[test]
    fn slow_start_restarts_with_every_return() {
        let endpoint = endpoint();
        let slow = Duration::from_secs(10);
        assert_eq!(endpoint.warmth(at(0), slow), SLOW_START_SHARE_MIN);
        assert_eq!(endpoint.warmth(at(5), slow), 0.5);
        assert_eq!(endpoint.warmth(at(50), slow), 1.0);
        assert_eq!(endpoint.warmth(at(0), Duration::ZERO), 1.0);
        assert!(endpoint.set_health(Health::Unhealthy, at(60)));
        assert!(endpoint.set_health(Health::Healthy, at(70)));
        assert!(!endpoint.set_health(Health::Healthy, at(71)));
        assert_eq!(endpoint.warmth(at(75), slow), 0.5);
        endpoint.eject(at(100), 1);
        assert!(endpoint.is_ejected(at(99)) && !endpoint.take_return(at(99)));
        assert!(!endpoint.is_ejected(at(100)));
        assert_eq!(endpoint.warmth(at(105), slow), 0.5);
        assert!(endpoint.take_return(at(105)) && !endpoint.take_return(at(105)));
        assert!(endpoint.set_draining(true, at(110)) && !endpoint.is_available(at(110)));
        assert!(endpoint.set_draining(false, at(120)) && endpoint.is_available(at(120)));
        assert_eq!(endpoint.warmth(at(125), slow), 0.5);
    }

    #[test]
    fn failures_in_a_row_and_interval() {
        let endpoint = endpoint();
        assert_eq!(endpoint.count(Outcome::Failure), 1);
        assert_eq!(endpoint.count(Outcome::Unreachable), 2);
        assert_eq!(endpoint.count(Outcome::Success), 0);
        assert_eq!(endpoint.count(Outcome::Failure), 1);
        assert_eq!(endpoint.take_interval(), (1, 4));
        assert_eq!(endpoint.take_interval(), (0, 0));
    }
}

//! Passive health: ejects an endpoint that fails, for a while. Owns the
//! judgement and the floor under it; the numbers live in `EndpointState`.
//!
//! - Failures in a row eject at once ([`record`]).
//! - Once an interval, success rates are compared ([`sweep`]): an endpoint well
//!   below its peers is ejected, the worst first.
//! - The n-th ejection lasts n times the base time, up to the maximum. One is
//!   forgiven in each sweep that finds the endpoint in rotation for a whole
//!   interval, so that a flapping one stays out longer and longer and one that
//!   mended starts afresh.
//!
//! **Invariant:** an ejection never leaves more than `ejected_percent_max` of
//! the endpoints ejected, nor a set without an available endpoint. Ejections are
//! rare, so one lock orders them all; it guards no data, only that the counting
//! and the ejection are one step.

use std::sync::Arc;

use parking_lot::Mutex;
use weft_config::snapshot::OutlierDetection;

use super::balance::{EndpointSet, EndpointState, Outcome};
use super::time::Nanos;

/// Orders ejections, over all services: two sets may share endpoints while a
/// reload replaces one by the other, so a lock in the set would not do.
static EJECTING: Mutex<()> = Mutex::new(());

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cause {
    /// This many failures in a row.
    Consecutive(u32),
    /// The endpoint's success rate, and the rate below which it is ejected.
    SuccessRate { rate: f64, threshold: f64 },
}

#[derive(Clone, Debug)]
pub struct Ejection {
    pub endpoint: Arc<EndpointState>,
    pub cause: Cause,
    pub until: Nanos,
    /// Ejections in a row, which is what the time grows with.
    pub ejections: u32,
}

#[derive(Clone, Debug)]
pub enum Change {
    Ejected(Ejection),
    /// Its ejection ended (at `ejected_until`; a sweep only says so).
    Returned(Arc<EndpointState>),
}

/// Takes the outcome of one try on `endpoint`, which is one of `set`; a request
/// that the client gave up is not to be recorded. Without a policy, don't call.
pub fn record(
    endpoint: &Arc<EndpointState>,
    policy: &OutlierDetection,
    outcome: Outcome,
    now: Nanos,
    set: &EndpointSet,
) -> Option<Ejection> {
    // It serves its time; what comes in late or by panic is not held against it.
    if endpoint.is_ejected(now) {
        return None;
    }
    let failures = endpoint.count(outcome);
    if policy.consecutive_failures == 0 || failures < policy.consecutive_failures {
        return None;
    }
    // Whether or not it may be ejected, the next try at it is as many failures
    // away: an outage of everything must not take the lock for every request.
    endpoint.forget_failures();
    let _order = EJECTING.lock();
    let ejection = eject(endpoint, policy, Cause::Consecutive(failures), now, set)?;
    set.refresh(now);
    Some(ejection)
}

/// Compares success rates, forgives, and reports returns. To be called once in
/// each `policy.interval`, by one thread.
pub fn sweep(set: &EndpointSet, policy: &OutlierDetection, now: Nanos) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut rates = Vec::new();
    for endpoint in set.weighted() {
        if endpoint.take_return(now) {
            changes.push(Change::Returned(Arc::clone(endpoint)));
        }
        if endpoint.ejections() > 0 && now >= endpoint.ejected_until() + policy.interval {
            endpoint.forgive_one_ejection();
        }
        let (successes, requests) = endpoint.take_interval();
        if requests >= policy.success_rate_requests_min.max(1) && !endpoint.is_ejected(now) {
            rates.push((endpoint, f64::from(successes) / f64::from(requests)));
        }
    }
    let outliers = below_the_rest(rates, policy);
    if !outliers.is_empty() {
        let _order = EJECTING.lock();
        for (endpoint, cause) in outliers {
            changes.extend(eject(endpoint, policy, cause, now, set).map(Change::Ejected));
        }
    }
    if !changes.is_empty() {
        set.refresh(now);
    }
    changes
}

/// Those whose rate is too far below the mean, the worst first.
fn below_the_rest<'a>(
    mut rates: Vec<(&'a Arc<EndpointState>, f64)>,
    policy: &OutlierDetection,
) -> Vec<(&'a Arc<EndpointState>, Cause)> {
    let judged = rates.len();
    if policy.success_rate_stdev <= 0.0
        || judged < policy.success_rate_endpoints_min.max(1) as usize
    {
        return Vec::new();
    }
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / judged as f64;
    let variance = rates
        .iter()
        .map(|(_, rate)| (rate - mean).powi(2))
        .sum::<f64>()
        / judged as f64;
    let threshold = mean - policy.success_rate_stdev * variance.sqrt();
    rates.retain(|(_, rate)| *rate < threshold);
    rates.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    rates
        .into_iter()
        .map(|(endpoint, rate)| (endpoint, Cause::SuccessRate { rate, threshold }))
        .collect()
}

/// The caller holds `EJECTING`.
fn eject(
    endpoint: &Arc<EndpointState>,
    policy: &OutlierDetection,
    cause: Cause,
    now: Nanos,
    set: &EndpointSet,
) -> Option<Ejection> {
    if endpoint.is_ejected(now) || !allowed(endpoint, policy, now, set) {
        return None;
    }
    let ejections = endpoint.ejections().saturating_add(1);
    let time = policy.base_ejection_time.saturating_mul(ejections);
    let until = now + time.min(policy.ejection_time_max.max(policy.base_ejection_time));
    endpoint.eject(until, ejections);
    Some(Ejection {
        endpoint: Arc::clone(endpoint),
        cause,
        until,
        ejections,
    })
}

/// Whether the floor lets this one go.
fn allowed(
    endpoint: &EndpointState,
    policy: &OutlierDetection,
    now: Nanos,
    set: &EndpointSet,
) -> bool {
    let counts = set.counts(now);
    let ejected_max = set.weighted().len() * policy.ejected_percent_max.min(100) as usize / 100;
    let left = counts
        .available
        .saturating_sub(usize::from(endpoint.is_available(now)));
    counts.ejected < ejected_max && left > 0
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use weft_config::snapshot::{Algorithm, Balancer};

    use super::super::balance::Health;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> OutlierDetection {
        OutlierDetection {
            consecutive_failures: 3,
            interval: 10 * SECOND,
            base_ejection_time: 30 * SECOND,
            ejection_time_max: 100 * SECOND,
            ejected_percent_max: 50,
            success_rate_stdev: 1.9,
            success_rate_requests_min: 100,
            success_rate_endpoints_min: 5,
        }
    }

    fn set(count: u8) -> EndpointSet {
        let endpoints = (1..=count)
            .map(|host| SocketAddr::from(([10, 0, 0, host], 80)))
            .map(|addr| Arc::new(EndpointState::new(addr, Arc::from(""), 1, Nanos::ZERO)))
            .collect();
        let balancer = Balancer {
            algorithm: Algorithm::PeakEwma,
            hash: Vec::new(),
            slow_start: Duration::ZERO,
            panic_percent: 50,
            zone_healthy_percent: 0,
            ewma_decay: 10 * SECOND,
        };
        EndpointSet::new(endpoints, &balancer, "")
    }

    fn at(seconds: u32) -> Nanos {
        Nanos::from(seconds * SECOND)
    }

    fn fail(set: &EndpointSet, index: usize, times: u32, now: Nanos) -> Option<Ejection> {
        let endpoint = &set.endpoints()[index];
        (0..times).find_map(|_| record(endpoint, &policy(), Outcome::Failure, now, set))
    }

    #[test]
    fn failures_in_a_row_eject_at_once() {
        let set = set(5);
        let endpoint = &set.endpoints()[0];
        assert!(fail(&set, 0, 2, at(1)).is_none());
        assert!(record(endpoint, &policy(), Outcome::Success, at(1), &set).is_none());
        assert!(fail(&set, 0, 2, at(1)).is_none());
        let ejection = record(endpoint, &policy(), Outcome::Unreachable, at(1), &set);
        let ejection = ejection.expect("the third failure in a row ejects");
        assert_eq!(ejection.cause, Cause::Consecutive(3));
        assert_eq!((ejection.until, ejection.ejections), (at(31), 1));
        assert!(endpoint.is_ejected(at(30)) && !endpoint.is_ejected(at(31)));
        // Late failures during the ejection are not carried over its end.
        assert!(fail(&set, 0, 10, at(2)).is_none());
        assert!(fail(&set, 0, 2, at(31)).is_none());
        // Off is off.
        let off = OutlierDetection {
            consecutive_failures: 0,
            ..policy()
        };
        let other = &set.endpoints()[1];
        let record_off = || record(other, &off, Outcome::Failure, at(1), &set);
        assert!((0..100).all(|_| record_off().is_none()));
    }

    #[test]
    fn ejections_grow_up_to_the_maximum_and_are_forgiven() {
        let set = set(5);
        let endpoint = &set.endpoints()[0];
        let mut now = at(0);
        for (ejections, seconds) in [(1, 30), (2, 60), (3, 90), (4, 100), (5, 100)] {
            let ejection = fail(&set, 0, 3, now).expect("three failures eject");
            assert_eq!(ejection.ejections, ejections);
            assert_eq!(ejection.until.since(now), seconds * SECOND);
            now = ejection.until;
            // A sweep within an interval of the return forgives nothing.
            sweep(&set, &policy(), now + 9 * SECOND);
            assert_eq!(endpoint.ejections(), ejections);
        }
        for left in (0..5).rev() {
            now = now + 10 * SECOND;
            sweep(&set, &policy(), now);
            assert_eq!(endpoint.ejections(), left);
        }
        sweep(&set, &policy(), now + 10 * SECOND);
        assert_eq!(endpoint.ejections(), 0);
    }

    #[test]
    fn the_floor_holds() {
        for (count, percent, ejected) in [
            (1, 100, 0),
            (2, 100, 1),
            (3, 50, 1),
            (4, 50, 2),
            (5, 10, 0),
            (10, 30, 3),
            (10, 500, 9),
        ] {
            let set = set(count);
            let policy = OutlierDetection {
                ejected_percent_max: percent,
                ..policy()
            };
            for endpoint in set.endpoints() {
                for _ in 0..10 {
                    record(endpoint, &policy, Outcome::Failure, at(1), &set);
                }
            }
            assert_eq!(
                set.counts(at(1)).ejected,
                ejected,
                "{count} endpoints, {percent} %"
            );
        }
    }

    #[test]
    fn the_last_available_endpoint_stays() {
        let set = set(4);
        let all = OutlierDetection {
            ejected_percent_max: 100,
            ..policy()
        };
        set.endpoints()[0].set_health(Health::Unhealthy, at(0));
        set.endpoints()[1].set_draining(true, at(0));
        let eject = |index: usize| {
            let endpoint = &set.endpoints()[index];
            (0..3).find_map(|_| record(endpoint, &all, Outcome::Failure, at(1), &set))
        };
        assert!(eject(2).is_some());
        assert!(eject(3).is_none());
        // One that is out anyway takes nothing away.
        assert!(eject(0).is_some());
        assert_eq!(set.counts(at(1)).available, 1);
    }

    fn traffic(set: &EndpointSet, rates: &[u32], requests: u32) {
        for (endpoint, rate) in set.endpoints().iter().zip(rates) {
            for request in 0..requests {
                // Spread, so that no three failures come in a row.
                let success = request * rate / 100 != (request + 1) * rate / 100;
                endpoint.count(if success {
                    Outcome::Success
                } else {
                    Outcome::Failure
                });
            }
        }
    }

    #[test]
    fn success_rates() {
        for (name, rates, requests, ejected) in [
            (
                "one far below",
                &[100, 100, 100, 100, 60, 100][..],
                100,
                &[4][..],
            ),
            ("all alike", &[90, 90, 90, 90, 90, 90], 100, &[]),
            (
                "spread, none far below",
                &[80, 82, 84, 86, 88, 90],
                100,
                &[],
            ),
            ("too few requests", &[100, 100, 100, 100, 60, 100], 99, &[]),
            ("too few endpoints", &[100, 100, 100, 60], 100, &[]),
            ("the only five", &[100, 100, 0, 100, 100], 100, &[2]),
        ] {
            let set = set(rates.len() as u8);
            traffic(&set, rates, requests);
            sweep(&set, &policy(), at(10));
            let out: Vec<usize> = (0..rates.len())
                .filter(|i| set.endpoints()[*i].is_ejected(at(10)))
                .collect();
            assert_eq!(out, ejected, "{name}");
            // The interval began anew.
            assert!(sweep(&set, &policy(), at(11)).is_empty(), "{name}");
        }
    }

    #[test]
    fn success_rate_off_and_the_worst_first() {
        let rates = [100, 100, 100, 100, 100, 100, 100, 100, 50, 40];
        let set = set(10);
        traffic(&set, &rates, 100);
        let off = OutlierDetection {
            success_rate_stdev: 0.0,
            ..policy()
        };
        assert!(sweep(&set, &off, at(10)).is_empty());
        traffic(&set, &rates, 100);
        let one = OutlierDetection {
            ejected_percent_max: 10,
            success_rate_stdev: 1.0,
            ..policy()
        };
        let changes = sweep(&set, &one, at(20));
        let [Change::Ejected(ejection)] = &changes[..] else {
            panic!("{changes:?}")
        };
        assert!(Arc::ptr_eq(&ejection.endpoint, &set.endpoints()[9]));
        assert!(matches!(ejection.cause, Cause::SuccessRate { rate, .. } if rate == 0.4));
    }

    #[test]
    fn a_return_is_reported_once() {
        let set = set(5);
        fail(&set, 0, 3, at(1)).expect("three failures eject");
        assert!(sweep(&set, &policy(), at(30)).is_empty());
        let changes = sweep(&set, &policy(), at(31));
        assert!(matches!(&changes[..], [Change::Returned(_)]), "{changes:?}");
        assert!(sweep(&set, &policy(), at(32)).is_empty());
    }

    #[test]
    fn threads_cannot_pass_the_floor_together() {
        for _ in 0..20 {
            let set = set(10);
            std::thread::scope(|scope| {
                for index in 0..10 {
                    let set = &set;
                    scope.spawn(move || fail(set, index, 300, at(1)));
                }
            });
            assert_eq!(set.counts(at(1)).ejected, 5);
        }
    }
}

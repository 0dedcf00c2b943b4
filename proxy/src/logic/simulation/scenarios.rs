//! What users of other proxies were hurt by, as scenarios. Each bound says what
//! must hold for any seed; the figures of the runs behind them stand beside.

use super::*;
use http::StatusCode;
use weft_config::snapshot::HealthCheckKind;

const UNAVAILABLE: Failure = Failure::Status(StatusCode::SERVICE_UNAVAILABLE);

fn retry_policy() -> RetryPolicy {
    RetryPolicy {
        codes: vec![StatusCode::SERVICE_UNAVAILABLE],
        grpc_codes: Vec::new(),
        attempts: 3,
        backoff: Duration::from_millis(25),
    }
}

fn with_algorithm(mut plan: Plan, algorithm: Algorithm) -> Plan {
    plan.balancer.algorithm = algorithm;
    plan
}

#[test]
fn a_slow_replica_gets_little() {
    let plan = |seed| {
        // Five replicas of 10 ms, the third of 200.
        let behaviour = |replica, _, random: &mut SmallRng| {
            Conduct::Serve(noisy(if replica == 2 { 200.0 } else { 10.0 }, random))
        };
        Plan::new(seed, 5, Box::new(behaviour))
    };
    for_each_seed(|seed| {
        let ewma = World::run(plan(seed));
        let robin = World::run(with_algorithm(plan(seed), Algorithm::RoundRobin));
        let (ewma_share, robin_share) = (
            ewma.share((5.0, 60.0), 2..3),
            robin.share((5.0, 60.0), 2..3),
        );
        let (ewma_p99, robin_p99) = (ewma.percentile(99), robin.percentile(99));
        println!("share {ewma_share:.4} {robin_share:.4}, p99 {ewma_p99:?} {robin_p99:?}");
        assert!(
            (robin_share - 0.2).abs() < 0.01,
            "round robin: {robin_share}"
        );
        assert!(ewma_share < 0.02, "peak EWMA: {ewma_share}");
        assert!(
            ewma_p99 * 4 < robin_p99,
            "{ewma_p99:?} against {robin_p99:?}"
        );
    });
}

#[test]
fn a_replica_that_turns_slow_is_left_and_found_again() {
    for_each_seed(|seed| {
        let behaviour = |replica, now: Nanos, random: &mut SmallRng| {
            let slow = replica == 0 && now >= at(20.0) && now < at(60.0);
            Conduct::Serve(noisy(if slow { 300.0 } else { 10.0 }, random))
        };
        let report = World::run(Plan {
            seconds: 200.0,
            ..Plan::new(seed, 5, Box::new(behaviour))
        });
        let shares = [(0.0, 20.0), (22.0, 60.0), (120.0, 200.0)].map(|w| report.share(w, 0..1));
        println!("before, slow, after: {shares:.3?}");
        assert!(
            shares[0] > 0.1 && shares[1] < 0.03 && shares[2] > 0.1,
            "{shares:?}"
        );
    });
}

#[test]
fn a_flapping_replica_stays_out_longer_and_longer() {
    for_each_seed(|seed| {
        // Bad for 5 s of every 10, for 5 minutes; good from then on.
        let behaviour = |replica, now: Nanos, random: &mut SmallRng| {
            let second = now.0 / 1_000_000_000;
            if replica == 0 && second < 300 && second % 10 < 5 {
                Conduct::Fail(UNAVAILABLE, millis(1.0))
            } else {
                Conduct::Serve(noisy(10.0, random))
            }
        };
        let plan = |outlier| Plan {
            seconds: 600.0,
            outlier,
            retry: Some(retry_policy()),
            ..with_algorithm(
                Plan::new(seed, 5, Box::new(behaviour)),
                Algorithm::RoundRobin,
            )
        };
        let report = World::run(plan(Some(outlier_policy())));
        let times: Vec<_> = report
            .ejections
            .iter()
            .map(|(now, ejection)| ejection.until.since(*now))
            .collect();
        println!(
            "ejections {times:?}, failed {} of {}",
            report.failed.len(),
            report.requests
        );
        // Every ejection is of the one that flaps; there are few, and they grow.
        let first = SocketAddr::from(([10, 0, 0, 1], 80));
        assert!(
            report
                .ejections
                .iter()
                .all(|(_, e)| e.endpoint.address() == first)
        );
        assert!((2..=9).contains(&times.len()), "{times:?}");
        assert!(times.last() > times.first());
        // Nobody saw it, and it came back once it was well.
        assert_eq!(report.failed.len(), 0);
        assert!((report.share((500.0, 600.0), 0..1) - 0.2).abs() < 0.02);
        // Without ejection it keeps failing a tenth of all tries.
        let without = World::run(plan(None));
        let tries = |report: &Report| report.tries.len() - report.requests;
        assert!(
            tries(&report) * 10 < tries(&without),
            "{} {}",
            tries(&report),
            tries(&without)
        );
    });
}

/// What one outage of all replicas, from 20 s to 50 s of 80, is run with.
#[derive(Clone, Copy, Debug)]
struct Outage {
    failure: Failure,
    requests_per_second: f64,
    percent: u32,
    retries_min_per_second: u32,
}

impl Outage {
    fn plan(self, seed: u64) -> Plan {
        let behaviour = move |_, now: Nanos, random: &mut SmallRng| {
            if now >= at(20.0) && now < at(50.0) {
                Conduct::Fail(self.failure, millis(5.0))
            } else {
                Conduct::Serve(noisy(5.0, random))
            }
        };
        Plan {
            requests_per_second: self.requests_per_second,
            seconds: 80.0,
            outlier: Some(outlier_policy()),
            retry: Some(retry_policy()),
            budget: RetryBudget {
                percent: self.percent,
                interval: 10 * SECOND,
                retries_min_per_second: self.retries_min_per_second,
            },
            ..Plan::new(seed, 5, Box::new(behaviour))
        }
    }

    /// The budget's promise, over `seconds` that had so many requests.
    fn retries_max(self, requests: f64, seconds: f64) -> f64 {
        let share = requests * f64::from(self.percent) / 100.0;
        share.max(f64::from(self.retries_min_per_second) * seconds)
    }

    fn check(self, report: &Report) {
        let retries = report.tries.len() - report.requests;
        println!(
            "{self:?}: {retries} retries of {} requests",
            report.requests
        );
        assert_eq!(retries, report.budgeted, "{self:?}: nothing here is free");
        let max = self.retries_max(report.requests as f64, 80.0);
        assert!(
            retries as f64 <= max,
            "{self:?}: {retries} retries, {max} allowed"
        );
        // The same for any 10 s in the midst of it. Retries of one interval may
        // be spent in its last slot and those of the next in its first: twice.
        for start in 20..40 {
            let window = at(f64::from(start))..at(f64::from(start + 10));
            let tries = report
                .tries
                .iter()
                .filter(|(time, _)| window.contains(time))
                .count() as f64;
            let due = self.requests_per_second * 10.0;
            // Arrivals are random: six standard deviations.
            let requests = due + 6.0 * due.sqrt();
            let allowed = requests + 2.0 * self.retries_max(requests, 10.0);
            assert!(
                tries <= allowed,
                "{self:?}: {tries} tries in 10 s, {allowed} allowed"
            );
        }
        // At most half are ejected, so three of five stay; and all is well after.
        assert!(
            report.in_rotation_min >= 3,
            "{self:?}: {}",
            report.in_rotation_min
        );
        assert!(report.failed_between((20.0, 51.0)) > 0, "{self:?}");
        assert_eq!(report.failed_between((51.0, 80.0)), 0, "{self:?}");
    }
}

#[test]
fn an_outage_of_everything_makes_no_storm() {
    for (failure, requests_per_second, percent, retries_min_per_second) in [
        (UNAVAILABLE, 200.0, 20, 10),
        (Failure::ConnectionDied, 200.0, 20, 10),
        (Failure::TryTimeout, 200.0, 20, 0),
        (UNAVAILABLE, 5.0, 20, 10),
        (UNAVAILABLE, 1000.0, 5, 1),
    ] {
        let outage = Outage {
            failure,
            requests_per_second,
            percent,
            retries_min_per_second,
        };
        for_each_seed(|seed| outage.check(&World::run(outage.plan(seed))));
    }
}

#[test]
fn refused_connections_everywhere_end_too() {
    for_each_seed(|seed| {
        let refuse = |_, _, _: &mut SmallRng| {
            Conduct::Fail(Failure::ConnectFailed, Duration::from_micros(50))
        };
        for replicas in [1, 3, 100] {
            let mut plan = Plan::new(seed, replicas, Box::new(refuse));
            plan.seconds = 5.0;
            plan.outlier = Some(outlier_policy());
            let report = World::run(plan);
            let most = (replicas + 2).min(1 + retry::FREE_RETRIES_MAX as usize);
            assert_eq!(report.failed.len(), report.requests);
            assert!(
                report.tries.len() <= report.requests * most,
                "{}",
                report.tries.len()
            );
            assert!(report.in_rotation_min >= 1);
        }
    });
}

#[test]
fn a_dead_replica_costs_nobody_a_request() {
    // No outlier detection, no policy: what the defaults give. POST, even.
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
    ] {
        for_each_seed(|seed| {
            let behaviour = |replica, now: Nanos, random: &mut SmallRng| {
                if replica == 1 && now >= at(10.0) {
                    Conduct::Fail(Failure::ConnectFailed, Duration::from_micros(50))
                } else {
                    Conduct::Serve(noisy(10.0, random))
                }
            };
            let plan = Plan {
                method: Method::POST,
                ..Plan::new(seed, 3, Box::new(behaviour))
            };
            let report = World::run(with_algorithm(plan, algorithm));
            let share = report.share((12.0, 60.0), 1..2);
            println!("{algorithm:?}: {share:.4} of the tries at the dead one");
            assert_eq!(report.failed.len(), 0, "{algorithm:?}");
            assert!(algorithm != Algorithm::PeakEwma || share < 0.02, "{share}");
        });
    }
}

#[test]
fn a_zone_outage_spills_over_and_comes_home() {
    for_each_seed(|seed| {
        // Zone a is ours: half of it dies at 20 s, the rest at 40 s; back at 60 s.
        let behaviour = |replica, now: Nanos, random: &mut SmallRng| {
            let second = now.0 as f64 / 1e9;
            let dead = match replica {
                0 | 1 => (20.0..60.0).contains(&second),
                2 | 3 => (40.0..60.0).contains(&second),
                _ => false,
            };
            if dead {
                Conduct::Fail(Failure::ConnectionDied, millis(2.0))
            } else {
                Conduct::Serve(noisy(10.0, random))
            }
        };
        let mut plan = Plan::new(seed, 12, Box::new(behaviour));
        plan.zones = (0..12).map(|index| ["a", "b", "c"][index / 4]).collect();
        plan.seconds = 200.0;
        plan.health_check = Some(HealthCheck {
            kind: HealthCheckKind::Tcp,
            interval: SECOND,
            timeout: SECOND,
            healthy_threshold: 2,
            unhealthy_threshold: 3,
            port: None,
        });
        let report = World::run(plan);
        let windows = [(0.0, 20.0), (24.0, 40.0), (44.0, 60.0), (63.0, 200.0)];
        let local = windows.map(|window| report.share(window, 0..4));
        println!(
            "ours {local:.3?}, failed {} of {}",
            report.failed.len(),
            report.requests
        );
        assert!(local[0] > 0.999 && local[3] > 0.999, "{local:?}");
        assert!(
            (local[1] - 0.5 / 0.7).abs() < 0.04,
            "half of ours: {local:?}"
        );
        assert!(local[2] == 0.0, "none of ours: {local:?}");
        assert!(
            report.failed.len() * 200 < report.requests,
            "{} failed",
            report.failed.len()
        );
        assert_eq!(report.panics, 0);
    });
}

#[test]
fn a_new_replica_warms_up() {
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
    ] {
        for_each_seed(|seed| {
            let behaviour = |_, _, random: &mut SmallRng| Conduct::Serve(noisy(10.0, random));
            let mut plan = with_algorithm(Plan::new(seed, 5, Box::new(behaviour)), algorithm);
            plan.requests_per_second = 400.0;
            plan.seconds = 100.0;
            plan.joins = Some((4, at(20.0)));
            plan.balancer.slow_start = 30 * SECOND;
            let report = World::run(plan);
            assert_eq!(report.share((0.0, 20.0), 4..5), 0.0);
            let windows = [(20.0, 25.0), (30.0, 35.0), (40.0, 45.0), (55.0, 100.0)];
            let shares = windows.map(|window| report.share(window, 4..5));
            println!("{algorithm:?}: {shares:.3?}");
            assert!(shares[0] < 0.07, "{algorithm:?}: {shares:?}");
            assert!(
                shares.windows(2).all(|pair| pair[0] < pair[1]),
                "{algorithm:?}: {shares:?}"
            );
            assert!((shares[3] - 0.2).abs() < 0.05, "{algorithm:?}: {shares:?}");
        });
    }
}

#[test]
fn weights_hold_under_load() {
    // Peak EWMA evens out a little: an endpoint with less traffic is measured
    // less often, and its average decays meanwhile.
    for (algorithm, tolerance) in [(Algorithm::PeakEwma, 0.08), (Algorithm::LeastRequest, 0.03)] {
        for rate in [20.0, 200.0, 800.0] {
            for_each_seed(|seed| {
                let behaviour = |_, _, random: &mut SmallRng| Conduct::Serve(noisy(10.0, random));
                let mut plan = with_algorithm(Plan::new(seed, 4, Box::new(behaviour)), algorithm);
                plan.weights = vec![1, 2, 3, 4];
                plan.servers = 32;
                plan.requests_per_second = rate;
                plan.seconds = 12_000.0 / rate;
                let seconds = plan.seconds;
                let report = World::run(plan);
                let shares: Vec<_> = (0..4)
                    .map(|i| report.share((0.0, seconds), i..i + 1))
                    .collect();
                println!("{algorithm:?} at {rate}/s: {shares:.3?}");
                for (share, due) in shares.iter().zip([0.1, 0.2, 0.3, 0.4]) {
                    let off = (share - due).abs();
                    assert!(off < tolerance, "{algorithm:?} at {rate}/s: {shares:.3?}");
                }
            });
        }
    }
}

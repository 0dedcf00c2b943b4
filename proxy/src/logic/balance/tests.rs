//! The rules of picking, one test each. Shares are statistical, with fixed
//! seeds, and bounds of at least five standard deviations.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use weft_config::snapshot::{Algorithm, Balancer};

use super::set::REFRESH;
use super::*;
use crate::logic::time::Nanos;

const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::PeakEwma,
    Algorithm::LeastRequest,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::ConsistentHash,
];

fn balancer(algorithm: Algorithm) -> Balancer {
    Balancer {
        algorithm,
        hash: Vec::new(),
        slow_start: Duration::ZERO,
        panic_percent: 50,
        zone_healthy_percent: 70,
        ewma_decay: Duration::from_secs(10),
    }
}

fn address(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (index / 250) as u8, (index % 250) as u8 + 1], 80))
}

fn endpoint(index: usize, zone: &str, weight: u32) -> Arc<EndpointState> {
    Arc::new(EndpointState::new(
        address(index),
        Arc::from(zone),
        weight,
        Nanos::ZERO,
    ))
}

/// Endpoints in zone `a` with these weights.
fn weighted(weights: &[u32]) -> Vec<Arc<EndpointState>> {
    weights
        .iter()
        .enumerate()
        .map(|(index, weight)| endpoint(index, "a", *weight))
        .collect()
}

fn set(endpoints: &[Arc<EndpointState>], balancer: &Balancer) -> EndpointSet {
    EndpointSet::new(endpoints.to_vec(), balancer, "a")
}

fn at(millis: u64) -> Nanos {
    Nanos::from(Duration::from_millis(millis))
}

/// Picks with nothing in flight; how often each of `endpoints` was picked.
fn shares(
    set: &EndpointSet,
    endpoints: &[Arc<EndpointState>],
    picks: u32,
    now: Nanos,
    tried: &[SocketAddr],
) -> Vec<f64> {
    let mut random = SmallRng::seed_from_u64(7);
    let mut hits = vec![0u32; endpoints.len()];
    for _ in 0..picks {
        let hash = Some(random.next_u64());
        let pick = set.pick(now, &mut random, hash, tried).expect("a pick");
        hits[endpoints
            .iter()
            .position(|e| Arc::ptr_eq(e, pick.endpoint))
            .expect("known")] += 1;
    }
    hits.iter()
        .map(|hits| f64::from(*hits) / f64::from(picks))
        .collect()
}

fn assert_shares(found: &[f64], wanted: &[f64], tolerance: f64, what: &str) {
    for (found_one, wanted_one) in found.iter().zip(wanted) {
        let off = (found_one - wanted_one).abs();
        assert!(off <= tolerance, "{what}: {found:.4?}, wanted {wanted:.4?}");
    }
}

#[test]
fn every_algorithm_respects_weights() {
    for algorithm in ALGORITHMS {
        // A ring of 160 points a unit is not exact.
        let tolerance = if algorithm == Algorithm::ConsistentHash {
            0.05
        } else {
            0.01
        };
        for weights in [
            &[1, 1, 1, 1, 1][..],
            &[1, 3],
            &[5, 1, 1, 3],
            &[100, 300, 0, 600],
            &[1, 1, 8],
        ] {
            let endpoints = weighted(weights);
            let total: u32 = weights.iter().sum();
            let due: Vec<_> = weights
                .iter()
                .map(|w| f64::from(*w) / f64::from(total))
                .collect();
            let set = set(&endpoints, &balancer(algorithm));
            let found = shares(&set, &endpoints, 60_000, at(0), &[]);
            assert_shares(
                &found,
                &due,
                tolerance,
                &format!("{algorithm:?} {weights:?}"),
            );
            for (weight, share) in weights.iter().zip(&found) {
                assert!(
                    *weight > 0 || *share == 0.0,
                    "{algorithm:?}: weight 0 was picked"
                );
            }
        }
    }
}

#[test]
fn a_thousand_endpoints_are_all_used_evenly() {
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::RoundRobin,
        Algorithm::Random,
    ] {
        let endpoints = weighted(&[1; 1000]);
        let set = set(&endpoints, &balancer(algorithm));
        let found = shares(&set, &endpoints, 200_000, at(0), &[]);
        assert_shares(&found, &[0.001; 1000], 0.0005, &format!("{algorithm:?}"));
    }
}

#[test]
fn round_robin_takes_turns() {
    let endpoints = weighted(&[1; 5]);
    let set = set(&endpoints, &balancer(Algorithm::RoundRobin));
    // The first pick chooses where the turns begin.
    shares(&set, &endpoints, 1, at(0), &[]);
    assert_eq!(shares(&set, &endpoints, 10, at(0), &[]), [0.2; 5]);
    // The turns of one that is out do not all go to its neighbour.
    endpoints[2].set_health(Health::Unhealthy, at(0));
    set.refresh(at(0));
    assert_eq!(
        shares(&set, &endpoints, 400, at(0), &[]),
        [0.25, 0.25, 0.0, 0.25, 0.25]
    );
}

#[test]
fn nothing_to_pick() {
    for algorithm in ALGORITHMS {
        for weights in [&[][..], &[0, 0]] {
            let set = set(&weighted(weights), &balancer(algorithm));
            let pick = set.pick(at(0), &mut SmallRng::seed_from_u64(1), None, &[]);
            assert!(pick.is_none(), "{algorithm:?} {weights:?}");
            assert_eq!(set.rotation(at(0)), Rotation::Empty);
        }
    }
}

#[test]
fn what_is_out_is_never_picked() {
    for algorithm in ALGORITHMS {
        for weights in [&[1; 6][..], &[1, 2, 3, 4, 5, 6]] {
            let endpoints = weighted(weights);
            let set = set(&endpoints, &balancer(algorithm));
            shares(&set, &endpoints, 1, at(0), &[]);
            // The view is not refreshed: each endpoint is judged live.
            endpoints[0].set_health(Health::Unhealthy, at(0));
            endpoints[1].eject(at(60_000), 1);
            endpoints[2].set_draining(true, at(0));
            let found = shares(&set, &endpoints, 5_000, at(1), &[]);
            assert_eq!(found[..3], [0.0; 3], "{algorithm:?}");
            assert!(
                found[3..].iter().all(|share| *share > 0.05),
                "{algorithm:?} {found:?}"
            );
            // An ejection ends by itself.
            let found = shares(&set, &endpoints, 5_000, at(60_000), &[]);
            assert!(found[1] > 0.02, "{algorithm:?} {found:?}");
        }
    }
}

#[test]
fn when_all_were_tried_the_first_is_next_and_not_who_fails_fastest() {
    for algorithm in ALGORITHMS {
        let endpoints = weighted(&[1, 1, 1]);
        let set = set(&endpoints, &balancer(algorithm));
        for (endpoint, millis) in endpoints.iter().zip([900, 500, 1]) {
            let latency = Duration::from_millis(millis);
            endpoint
                .begin(at(0))
                .finish(Outcome::Success, latency, at(1));
        }
        let mut tried: Vec<_> = endpoints.iter().map(|e| e.address()).collect();
        for next in [0, 1, 2, 0] {
            let found = shares(&set, &endpoints, 50, at(2), &tried);
            assert_eq!(found[next], 1.0, "{algorithm:?}: {found:?}");
            tried.push(endpoints[next].address());
        }
    }
}

#[test]
fn one_that_is_ejected_or_leaves_is_better_than_one_that_has_just_failed() {
    for algorithm in ALGORITHMS {
        let endpoints = weighted(&[1, 1, 1]);
        let set = set(&endpoints, &balancer(algorithm));
        endpoints[0].eject(at(10_000), 1);
        endpoints[2].set_draining(true, at(0));
        set.refresh(at(0));
        let mut tried = Vec::new();
        for next in [1, 0, 2, 1, 0] {
            let found = shares(&set, &endpoints, 50, at(0), &tried);
            assert_eq!(found[next], 1.0, "{algorithm:?}: {found:?}");
            tried.push(endpoints[next].address());
        }
    }
}

#[test]
fn who_was_tried_and_has_gone_still_counts() {
    let set = set(&weighted(&[1, 1]), &balancer(Algorithm::Random));
    let tried = [address(0), address(7), address(7), address(8)];
    assert_eq!((set.len_with(&[]), set.len_with(&tried)), (2, 4));
}

#[test]
fn tried_endpoints_come_last() {
    for algorithm in ALGORITHMS {
        let endpoints = weighted(&[1; 4]);
        let set = set(&endpoints, &balancer(algorithm));
        let tried: Vec<_> = endpoints
            .iter()
            .map(|endpoint| endpoint.address())
            .collect();
        let found = shares(&set, &endpoints, 1_000, at(0), &tried[..2]);
        assert_eq!(found[..2], [0.0; 2], "{algorithm:?}");
        // All were tried: again, but not one that is out.
        endpoints[0].set_health(Health::Unhealthy, at(0));
        let found = shares(&set, &endpoints, 1_000, at(0), &tried);
        assert_eq!(found[..2], [0.0, 1.0], "{algorithm:?}");
        // An untried one that is out does not come before a tried one that is not.
        let found = shares(&set, &endpoints, 1_000, at(0), &tried[1..]);
        assert_eq!(found[0], 0.0, "{algorithm:?}");
    }
}

#[test]
fn panic_ignores_health_but_not_draining() {
    for (percent, out, rotation) in [
        (50, 0, Rotation::Normal),
        (50, 2, Rotation::Normal),
        (50, 3, Rotation::Panic),
        (50, 4, Rotation::Panic),
        (100, 1, Rotation::Panic),
        (0, 3, Rotation::Normal),
        (0, 4, Rotation::Empty),
    ] {
        for algorithm in ALGORITHMS {
            // The fifth drains, and is not counted.
            let endpoints = weighted(&[1; 5]);
            endpoints[4].set_draining(true, at(0));
            for endpoint in &endpoints[..out] {
                endpoint.set_health(Health::Unhealthy, at(0));
            }
            let policy = Balancer {
                panic_percent: percent,
                ..balancer(algorithm)
            };
            let set = set(&endpoints, &policy);
            let what = format!("{algorithm:?}, {out} of 4 out, panic at {percent}");
            assert_eq!(set.rotation(at(0)), rotation, "{what}");
            let mut random = SmallRng::seed_from_u64(3);
            let pick = set.pick(at(0), &mut random, None, &[]);
            assert_eq!(
                pick.map(|pick| pick.rotation),
                (rotation != Rotation::Empty).then_some(rotation)
            );
            if rotation == Rotation::Panic {
                let found = shares(&set, &endpoints, 4_000, at(0), &[]);
                assert!(
                    found[..4].iter().all(|share| *share > 0.15),
                    "{what}: {found:?}"
                );
                assert_eq!(found[4], 0.0, "{what}");
            }
        }
    }
}

#[test]
fn when_all_drain_all_are_used() {
    for algorithm in ALGORITHMS {
        let endpoints = weighted(&[1; 3]);
        let set = set(&endpoints, &balancer(algorithm));
        for endpoint in &endpoints {
            endpoint.set_draining(true, at(0));
        }
        let mut random = SmallRng::seed_from_u64(3);
        let pick = set.pick(at(0), &mut random, None, &[]).expect("a pick");
        assert_eq!(pick.rotation, Rotation::Draining);
        // One that does not drain takes it all, from the next refresh on.
        endpoints[1].set_draining(false, at(1));
        let found = shares(&set, &endpoints, 100, at(0) + REFRESH, &[]);
        assert_eq!(found, [0.0, 1.0, 0.0]);
    }
}

/// Four endpoints in each of the zones a (ours), b and c.
fn zoned() -> Vec<Arc<EndpointState>> {
    (0..12)
        .map(|index| endpoint(index, ["a", "b", "c"][index / 4], 1))
        .collect()
}

#[test]
fn our_zone_first_and_spilling_in_proportion() {
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
        Algorithm::Random,
    ] {
        for (out, ours) in [
            (0, 1.0),
            (1, 1.0),
            (2, 0.5 / 0.7),
            (3, 0.25 / 0.7),
            (4, 0.0),
        ] {
            let endpoints = zoned();
            for endpoint in &endpoints[..out] {
                endpoint.set_health(Health::Unhealthy, at(0));
            }
            let set = set(&endpoints, &balancer(algorithm));
            let found = shares(&set, &endpoints, 20_000, at(0), &[]);
            let local: f64 = found[..4].iter().sum();
            assert_shares(
                &[local],
                &[ours],
                0.02,
                &format!("{algorithm:?}, {out} of 4 out"),
            );
        }
    }
}

#[test]
fn zones_that_play_no_part() {
    let spread = [1.0 / 12.0; 12];
    for (name, policy, zone) in [
        (
            "off",
            Balancer {
                zone_healthy_percent: 0,
                ..balancer(Algorithm::Random)
            },
            "a",
        ),
        ("we have no zone", balancer(Algorithm::Random), ""),
        ("nobody is in ours", balancer(Algorithm::Random), "z"),
    ] {
        let endpoints = zoned();
        let set = EndpointSet::new(endpoints.clone(), &policy, zone);
        assert_shares(
            &shares(&set, &endpoints, 50_000, at(0), &[]),
            &spread,
            0.01,
            name,
        );
    }
    let endpoints = zoned();
    let hashed = set(&endpoints, &balancer(Algorithm::ConsistentHash));
    let found = shares(&hashed, &endpoints, 50_000, at(0), &[]);
    assert_shares(&found, &spread, 0.03, "consistent hash");
    // Panic trusts no zone: all of ours and some others are out.
    for endpoint in &endpoints[..7] {
        endpoint.set_health(Health::Unhealthy, at(0));
    }
    let set = set(&endpoints, &balancer(Algorithm::Random));
    assert_shares(
        &shares(&set, &endpoints, 50_000, at(0), &[]),
        &spread,
        0.01,
        "panic",
    );
}

#[test]
fn retries_and_zones() {
    // Ours and how many of its endpoints were tried; whether the next try spills.
    for (ours, tried, spilled) in [
        (4, 0, false),
        (4, 1, false),
        (4, 2, true),
        (4, 4, true),
        (1, 0, false),
        (1, 1, true),
    ] {
        let endpoints: Vec<_> = zoned().into_iter().skip(4 - ours).collect();
        let set = set(&endpoints, &balancer(Algorithm::PeakEwma));
        let tried: Vec<_> = endpoints[..tried].iter().map(|e| e.address()).collect();
        for seed in 0..20 {
            let mut random = SmallRng::seed_from_u64(seed);
            let pick = set.pick(at(0), &mut random, None, &tried).expect("a pick");
            assert_eq!(pick.spilled, spilled, "{tried:?} of {ours}");
            assert!(!tried.contains(&pick.endpoint.address()));
        }
    }
    // Nothing else is left: a zone of ours that was tried twice is better than none.
    let endpoints = zoned();
    for endpoint in &endpoints[4..] {
        endpoint.set_draining(true, at(0));
    }
    let set = set(&endpoints, &balancer(Algorithm::PeakEwma));
    let tried: Vec<_> = endpoints[..2].iter().map(|e| e.address()).collect();
    let mut random = SmallRng::seed_from_u64(1);
    let pick = set.pick(at(0), &mut random, None, &tried).expect("a pick");
    assert!(!pick.spilled && !tried.contains(&pick.endpoint.address()));
}

#[test]
fn slow_start_ramps_in_every_algorithm() {
    let slow_start = Duration::from_secs(10);
    for algorithm in ALGORITHMS {
        let policy = Balancer {
            slow_start,
            ..balancer(algorithm)
        };
        let warm: Vec<_> = (0..4).map(|index| endpoint(index, "a", 1)).collect();
        let start = at(60_000);
        let new = EndpointState::new(address(4), Arc::from("a"), 1, start);
        let endpoints: Vec<_> = warm.into_iter().chain([Arc::new(new)]).collect();
        let set = set(&endpoints, &policy);
        for (elapsed, warmth) in [
            (0, 0.1),
            (1_000, 0.1),
            (3_000, 0.3),
            (6_000, 0.6),
            (10_000, 1.0),
        ] {
            let due = warmth / (4.0 + warmth);
            let now = start + Duration::from_millis(elapsed);
            let found = shares(&set, &endpoints, 40_000, now, &[])[4];
            let tolerance = if algorithm == Algorithm::ConsistentHash {
                0.04
            } else {
                0.01
            };
            assert_shares(
                &[found],
                &[due],
                tolerance,
                &format!("{algorithm:?} {elapsed} ms"),
            );
        }
    }
}

#[test]
fn a_cold_start_of_all_slows_nobody() {
    let policy = Balancer {
        slow_start: Duration::from_secs(10),
        ..balancer(Algorithm::PeakEwma)
    };
    let endpoints = weighted(&[1; 5]);
    let set = set(&endpoints, &policy);
    assert_shares(
        &shares(&set, &endpoints, 50_000, at(0), &[]),
        &[0.2; 5],
        0.01,
        "all cold",
    );
}

#[test]
fn a_key_keeps_its_endpoint() {
    let endpoints = weighted(&[1; 20]);
    let policy = balancer(Algorithm::ConsistentHash);
    let whole = set(&endpoints, &policy);
    let mut random = SmallRng::seed_from_u64(5);
    let keys: Vec<u64> = (0..5_000).map(|_| random.next_u64()).collect();
    let mut homes = |set: &EndpointSet, now: Nanos, tried: &[SocketAddr]| -> Vec<SocketAddr> {
        let mut pick = |key| {
            set.pick(now, &mut random, Some(key), tried)
                .expect("a pick")
        };
        keys.iter()
            .map(|key| pick(*key).endpoint.address())
            .collect()
    };
    let before = homes(&whole, at(0), &[]);
    assert_eq!(homes(&whole, at(0), &[]), before);
    // The order of the list does not matter.
    let reversed = endpoints.iter().rev().cloned().collect::<Vec<_>>();
    assert_eq!(homes(&set(&reversed, &policy), at(0), &[]), before);
    // One that leaves, is out or was tried gives up its own keys and no others.
    let gone = endpoints[3].address();
    let only_its_own = |after: &[SocketAddr]| {
        let pairs = before.iter().zip(after);
        pairs.filter(|(a, _)| **a != gone).all(|(a, b)| a == b) && !after.contains(&gone)
    };
    let fewer: Vec<_> = endpoints
        .iter()
        .filter(|e| e.address() != gone)
        .cloned()
        .collect();
    assert!(only_its_own(&homes(&set(&fewer, &policy), at(0), &[])));
    assert!(only_its_own(&homes(&whole, at(0), &[gone])));
    endpoints[3].set_health(Health::Unhealthy, at(0));
    let after = homes(&whole, at(0), &[]);
    assert!(only_its_own(&after));
    // And its keys are spread, not dumped on a neighbour.
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(a, _)| **a == gone)
        .map(|(_, b)| b);
    assert!(moved.collect::<std::collections::HashSet<_>>().len() > 10);
}

#[test]
fn a_warming_endpoint_takes_over_keys_one_way() {
    let policy = Balancer {
        slow_start: Duration::from_secs(10),
        ..balancer(Algorithm::ConsistentHash)
    };
    let start = at(60_000);
    let new = Arc::new(EndpointState::new(address(4), Arc::from("a"), 1, start));
    let endpoints: Vec<_> = (0..4)
        .map(|index| endpoint(index, "a", 1))
        .chain([Arc::clone(&new)])
        .collect();
    let set = set(&endpoints, &policy);
    let mut random = SmallRng::seed_from_u64(5);
    for _ in 0..500 {
        let key = random.next_u64();
        let mut arrived = false;
        for step in 0..=20 {
            let now = start + Duration::from_millis(500 * step);
            let pick = set.pick(now, &mut random, Some(key), &[]).expect("a pick");
            let here = Arc::ptr_eq(pick.endpoint, &new);
            assert!(here || !arrived, "the key came and went");
            arrived = here;
        }
    }
}

#[test]
fn few_of_many_are_found() {
    for algorithm in ALGORITHMS {
        for weights in [vec![1; 1000], (1..=1000).collect()] {
            let endpoints = weighted(&weights);
            for (index, endpoint) in endpoints.iter().enumerate() {
                let health = if index % 500 == 77 {
                    Health::Healthy
                } else {
                    Health::Unhealthy
                };
                endpoint.set_health(health, at(0));
            }
            let policy = Balancer {
                panic_percent: 0,
                ..balancer(algorithm)
            };
            let set = set(&endpoints, &policy);
            let found = shares(&set, &endpoints, 3_000, at(0), &[]);
            let total = f64::from(weights[77] + weights[577]);
            let due = f64::from(weights[77]) / total;
            assert_shares(&[found[77]], &[due], 0.05, &format!("{algorithm:?}"));
            assert!((found[77] + found[577] - 1.0).abs() < 1e-9, "{algorithm:?}");
        }
    }
}

fn answer(endpoint: &Arc<EndpointState>, millis: u64, now: Nanos) {
    endpoint
        .begin(now)
        .finish(Outcome::Success, Duration::from_millis(millis), now);
}

#[test]
fn peak_ewma_prefers_the_cheaper_with_the_odds_of_inverse_squares() {
    // Milliseconds and requests in flight of two; the share of the first.
    for (first, second, share) in [
        ((10, 0), (10, 0), 0.5),
        ((10, 0), (20, 0), 0.8),
        ((20, 0), (10, 0), 0.2),
        ((10, 0), (100, 0), 100.0 / 101.0),
        // 20 ms against 25, then 30 against 25.
        ((10, 1), (25, 0), 625.0 / 1025.0),
        ((10, 2), (25, 0), 625.0 / 1525.0),
    ] {
        let endpoints = weighted(&[1; 2]);
        let set = set(&endpoints, &balancer(Algorithm::PeakEwma));
        let mut in_flight = Vec::new();
        for (endpoint, (millis, requests)) in endpoints.iter().zip([first, second]) {
            answer(endpoint, millis, at(0));
            in_flight.extend((0..requests).map(|_| endpoint.begin(at(0))));
        }
        let found = shares(&set, &endpoints, 60_000, at(0), &[])[0];
        assert_shares(&[found], &[share], 0.01, &format!("{first:?} {second:?}"));
    }
}

#[test]
fn least_request_takes_the_idler_and_does_not_look_at_latency() {
    let endpoints = weighted(&[1; 2]);
    let set = set(&endpoints, &balancer(Algorithm::LeastRequest));
    answer(&endpoints[0], 10, at(0));
    answer(&endpoints[1], 25, at(0));
    let even = shares(&set, &endpoints, 60_000, at(0), &[]);
    assert_shares(&even, &[0.5, 0.5], 0.01, "a tie");
    let _two: Vec<_> = (0..2).map(|_| endpoints[0].begin(at(0))).collect();
    assert_eq!(shares(&set, &endpoints, 100, at(0), &[]), [0.0, 1.0]);
    let _three: Vec<_> = (0..3).map(|_| endpoints[1].begin(at(0))).collect();
    assert_eq!(shares(&set, &endpoints, 100, at(0), &[]), [1.0, 0.0]);
}

/// One peak of one of two equals once kept everything from it for seconds.
#[test]
fn equals_share_evenly_at_a_low_rate() {
    const PER_SECOND: u64 = 45;
    const WINDOW: u64 = 5 * PER_SECOND;
    for seed in 0..20 {
        let endpoints = weighted(&[1; 2]);
        let set = set(&endpoints, &balancer(Algorithm::PeakEwma));
        let mut random = SmallRng::seed_from_u64(seed);
        // Whether each request of a minute went to the first.
        let mut hits = Vec::new();
        for request in 0..60 * PER_SECOND {
            let now = at(request * 1_000 / PER_SECOND);
            let pick = set.pick(now, &mut random, None, &[]).expect("a pick");
            hits.push(Arc::ptr_eq(pick.endpoint, &endpoints[0]));
            let latency = Duration::from_micros(random.random_range(1_000..5_000));
            let request = pick.endpoint.begin(now);
            request.finish(Outcome::Success, latency, now + latency);
        }
        for (start, window) in hits.windows(WINDOW as usize).enumerate() {
            let share = window.iter().filter(|hit| **hit).count() as f64 / WINDOW as f64;
            assert!(
                (0.3..0.7).contains(&share),
                "seed {seed}, from request {start}: {share}"
            );
        }
    }
}

#[test]
fn a_new_endpoint_is_tried_at_once_but_not_buried() {
    let endpoints = weighted(&[1; 3]);
    let set = set(&endpoints, &balancer(Algorithm::PeakEwma));
    answer(&endpoints[0], 10, at(0));
    answer(&endpoints[1], 10, at(0));
    let idle = shares(&set, &endpoints, 3_000, at(0), &[])[2];
    assert!(
        (idle - 2.0 / 3.0).abs() < 0.05,
        "whenever it is drawn: {idle}"
    );
    let _first = endpoints[2].begin(at(0));
    // 1 s against 10 ms: one in 10,000 of the draws that it is in.
    let busy = shares(&set, &endpoints, 3_000, at(0), &[])[2];
    assert!(busy < 0.002, "until it answers: {busy}");
}

#[test]
fn p2c_turns_from_what_cannot_be_reached_and_comes_back() {
    let endpoints = weighted(&[1; 3]);
    let set = set(&endpoints, &balancer(Algorithm::PeakEwma));
    for endpoint in &endpoints {
        answer(endpoint, 1, at(0));
    }
    // 10 ms against 1, then 20: by the odds of the squares, where it is drawn.
    for share in [2.0 / 3.0 / 101.0, 2.0 / 3.0 / 401.0] {
        let refused = Duration::from_micros(50);
        let request = endpoints[0].begin(at(0));
        request.finish(Outcome::Unreachable, refused, at(0));
        let found = shares(&set, &endpoints, 60_000, at(1), &[])[0];
        assert_shares(&[found], &[share], 0.002, "cannot be reached");
    }
    for now in (0..40_000).step_by(100) {
        answer(&endpoints[1], 1, at(now));
        answer(&endpoints[2], 1, at(now));
    }
    assert!(
        shares(&set, &endpoints, 1_000, at(40_000), &[])[0] > 0.5,
        "its turn to be tried"
    );
    // A quick 503 does not make an endpoint attractive.
    for endpoint in &endpoints {
        answer(endpoint, 10, at(50_000));
    }
    endpoints[0]
        .begin(at(50_000))
        .finish(Outcome::Failure, Duration::from_micros(50), at(50_000));
    assert!(endpoints[0].latency(at(50_000)) >= endpoints[1].latency(at(50_000)));
}

#[test]
fn a_heavy_slow_endpoint_loses_its_weight() {
    let endpoints = weighted(&[3, 1]);
    let set = set(&endpoints, &balancer(Algorithm::PeakEwma));
    answer(&endpoints[0], 100, at(0));
    answer(&endpoints[1], 10, at(0));
    // The heavy one is drawn twice 9 times of 16, and then keeps (2·10/100)² of
    // the tries; both are drawn 6 times of 16, and it wins 1 of 101.
    let heavy = 9.0 / 16.0 * 0.04 + 6.0 / 16.0 / 101.0;
    let found = shares(&set, &endpoints, 60_000, at(0), &[]);
    assert_shares(&found, &[heavy, 1.0 - heavy], 0.005, "100 ms against 10");
}

#[test]
fn a_stale_view_heals_itself() {
    let endpoints = weighted(&[1; 4]);
    let policy = Balancer {
        panic_percent: 0,
        ..balancer(Algorithm::PeakEwma)
    };
    let set = set(&endpoints, &policy);
    for endpoint in &endpoints {
        endpoint.set_health(Health::Unhealthy, at(0));
    }
    let mut random = SmallRng::seed_from_u64(1);
    let mut pick = |now| {
        set.pick(now, &mut random, None, &[])
            .map(|pick| pick.endpoint.address())
    };
    assert_eq!(pick(at(0)), None);
    endpoints[2].set_health(Health::Healthy, at(1));
    // Nobody refreshed the set, and none is due: the pick does it itself.
    assert_eq!(pick(at(1)), Some(endpoints[2].address()));
}

#[test]
fn lists_and_lookups() {
    let twice = [
        endpoint(1, "a", 1),
        endpoint(0, "b", 1),
        endpoint(1, "a", 9),
        endpoint(2, "a", 0),
    ];
    let set = set(&twice, &balancer(Algorithm::PeakEwma));
    assert_eq!(
        (set.len(), set.weighted().len(), set.is_empty()),
        (3, 2, false)
    );
    for index in 0..3 {
        let found = set.find(address(index)).expect("listed");
        assert_eq!(found.address(), address(index));
    }
    assert!(set.find(address(3)).is_none());
    let order: Vec<_> = set
        .endpoints()
        .iter()
        .map(|endpoint| endpoint.address())
        .collect();
    assert_eq!(
        order,
        [address(1), address(0), address(2)],
        "ours, theirs, weight 0"
    );
    let counts = Counts {
        eligible: 2,
        available: 2,
        ..Counts::default()
    };
    assert_eq!(set.counts(at(0)), counts);
}

/// Threads that pick, answer and change everything at once: nothing is lost.
#[test]
fn workers_share_everything() {
    let endpoints = weighted(&[1, 2, 3, 4]);
    for algorithm in ALGORITHMS {
        let set = set(&endpoints, &balancer(algorithm));
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (set, endpoints) = (&set, &endpoints);
                scope.spawn(move || {
                    let mut random = SmallRng::seed_from_u64(seed);
                    for step in 0..5_000 {
                        let now = at(step);
                        let index = random.random_range(0..4);
                        match random.random_range(0..20) {
                            0 => drop(endpoints[index].set_health(Health::Unhealthy, now)),
                            1 => drop(endpoints[index].set_health(Health::Healthy, now)),
                            2 => set.refresh(now),
                            _ => {}
                        }
                        let pick = set.pick(now, &mut random, None, &[]).expect("panic mode");
                        let latency = Duration::from_millis(random.random_range(1..10));
                        pick.endpoint
                            .begin(now)
                            .finish(Outcome::Success, latency, now);
                    }
                });
            }
        });
        assert!(endpoints.iter().all(|endpoint| endpoint.in_flight() == 0));
    }
}

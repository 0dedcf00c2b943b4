//! A rollout on a virtual clock, by thousands of seeds: what the proxy and the controller decide is
//! their own code (index, sessions, farewells; store, runtime, picks, retries, budget, drain barrier), and
//! the world around it is drawn from the seed: slow networks, late slices, addresses given to others,
//! controllers and applications that die, streams and connections that break.
//!
//! `WEFT_SEED=<n>` runs one seed; what fails names its own.

#[path = "simulation/clock.rs"]
mod clock;
#[path = "simulation/cluster.rs"]
mod cluster;
#[path = "simulation/control.rs"]
mod control;
#[path = "simulation/controller.rs"]
mod controller;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/proxy.rs"]
mod proxy;
#[path = "simulation/request.rs"]
mod request;
#[path = "simulation/world.rs"]
mod world;

use plan::Without;
use world::{Report, World};

const SEEDS: u64 = 3_000;
/// A part that is missing must show within so many.
const NOTICED_WITHIN: u64 = 10_000;

/// What a seed did, or why it failed.
fn outcome(seed: u64, without: Without) -> Result<Report, String> {
    std::panic::catch_unwind(|| World::run(seed, without)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.unwrap_or_else(|| {
            panic
                .downcast_ref::<&str>()
                .map_or_else(String::new, |text| (*text).to_owned())
        })
    })
}

#[test]
fn nothing_is_lost_that_can_be_saved() {
    let seeds = match std::env::var("WEFT_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("WEFT_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    };
    let mut total = Report::default();
    let mut failed = Vec::new();
    for seed in seeds {
        match outcome(seed, Without::Nothing) {
            Ok(report) => {
                total.requests += report.requests;
                total.retried += report.retried;
                total.excused += report.excused;
                total.left += report.left;
                total.elsewhere += report.elsewhere;
            }
            Err(problem) => failed.push(format!("WEFT_SEED={seed}: {problem}")),
        }
    }
    println!("{total:?}");
    assert!(
        failed.is_empty(),
        "{} seeds fail; the first:\n{}",
        failed.len(),
        failed
            .iter()
            .take(5)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
}

/// The simulation can fail: without this part of Weft some seed does, and says so.
fn is_noticed(without: Without, says: &str) {
    let mut problems = (0..NOTICED_WITHIN).filter_map(|seed| outcome(seed, without).err());
    let noticed = problems.find(|problem| problem.contains(says));
    assert!(noticed.is_some(), "{without:?} is not noticed");
}

#[test]
fn without_the_barrier_requests_are_lost() {
    is_noticed(Without::Barrier, "is lost");
}

#[test]
fn without_the_identity_check_others_answer() {
    is_noticed(Without::Identity, "answered for");
}

#[test]
fn an_acknowledgement_that_comes_too_early_is_seen() {
    is_noticed(Without::LateAcknowledgement, "still use it");
}

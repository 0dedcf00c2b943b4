//! The controllers and the API server killed under load, in full: `make faults-cluster`.

use std::process::ExitCode;
use std::time::Duration;

use weft_tests::install;
use weft_tests::replicas::{Extent, losses, run, table};

const FULL: Extent = Extent {
    away: Duration::from_secs(300),
    down: Duration::from_secs(60),
    returns: true,
};

fn main() -> ExitCode {
    let Some(cluster) = install::connect() else {
        return ExitCode::FAILURE;
    };
    let rows = run(&cluster, FULL);
    println!("{}", table(&rows));
    let losses = losses(&rows);
    print!("{losses}");
    match losses.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

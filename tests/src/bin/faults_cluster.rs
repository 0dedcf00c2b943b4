//! The controllers and the API server killed under load, in full: `make faults-cluster`
//! (ARGS: how the faults that are wanted begin).

use std::process::ExitCode;
use std::time::Duration;

use weft_tests::install;
use weft_tests::replicas::{Extent, losses, run, table};

const FULL: Extent = Extent {
    away: Duration::from_secs(300),
    down: Duration::from_secs(30),
};

fn main() -> ExitCode {
    let Some(cluster) = install::connect() else {
        return ExitCode::FAILURE;
    };
    let only: Vec<String> = std::env::args().skip(1).collect();
    let rows = run(&cluster, FULL, &only);
    println!("{}", table(&rows));
    let losses = losses(&rows);
    print!("{losses}");
    match losses.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

//! The fault matrix: everything that can go wrong, under load of every protocol, and what was lost.
//!
//! A cell is one fault and one protocol. **Invariant:** a cell in which too little was sent, or whose
//! fault did not happen, is a failure and never a good cell.

use std::path::Path;
use std::time::Duration;

pub mod application;
pub mod fault;
pub mod protocol;
pub mod report;
pub mod stage;

use fault::Fault;
use protocol::Protocol;
use report::Cell;
use stage::Stage;

/// How much is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// By each lane between two steps of a fault.
    pub step: u64,
    /// How long the configuration is rewritten again and again.
    pub churn: Duration,
    /// In a cell, at least.
    pub sent_min: u64,
}

/// Does one fault to a fresh mesh under load of these protocols.
#[must_use]
pub fn run(binary: &Path, fault: Fault, protocols: &[Protocol], extent: Extent) -> Vec<Cell> {
    let mut stage = Stage::set(binary, protocols, extent);
    fault.strike(&mut stage);
    stage.go_on();
    let outcomes = stage.stop();
    outcomes
        .into_iter()
        .map(|outcome| Cell::new(fault, outcome, extent.sent_min))
        .collect()
}

//! The fault matrix, shortened: `make chaos` runs all of it.

use std::path::Path;
use std::time::Duration;

use weft_tests::chaos::fault::Fault;
use weft_tests::chaos::protocol::Protocol;
use weft_tests::chaos::report::{self, Cell};
use weft_tests::chaos::{Extent, run};

const EXTENT: Extent = Extent {
    step: 20,
    churn: Duration::from_secs(2),
    sent_min: 80,
};

fn cells(faults: &[Fault]) -> Vec<Cell> {
    let binary = Path::new(env!("CARGO_BIN_EXE_chaos"));
    let one = |fault: &Fault| run(binary, *fault, &Protocol::ALL, EXTENT);
    let cells: Vec<Cell> = faults.iter().flat_map(one).collect();
    print!("{}", report::table(&cells));
    cells
}

#[test]
fn what_a_proxy_can_save_is_saved() {
    let cells = cells(&[
        Fault::Rollout,
        Fault::RolloutWithoutController,
        Fault::AddressReused,
        Fault::ConfigChurn,
        Fault::CallerUpgraded,
    ]);
    let complaints: Vec<String> = cells.iter().filter_map(Cell::complaint).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// A matrix that shows 0 shows something only if it would show more.
#[test]
fn losses_are_seen() {
    for cell in cells(&[Fault::EverybodyKilled]) {
        assert!(cell.lost > 0, "{cell:?}");
        assert!(!cell.savable() || cell.complaint().is_some(), "{cell:?}");
    }
}

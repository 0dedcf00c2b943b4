//! The fault matrix, shortened: `make chaos` runs all of it.

use std::path::Path;

use weft_tests::chaos::fault::Fault;
use weft_tests::chaos::protocol::Protocol;
use weft_tests::chaos::report::{self, Cell};
use weft_tests::chaos::{Extent, run};

const EXTENT: Extent = Extent {
    step: 30,
    sent_min: 100,
};

#[test]
fn what_a_proxy_can_save_is_saved() {
    let binary = Path::new(env!("CARGO_BIN_EXE_chaos"));
    let mut cells = Vec::new();
    for fault in [Fault::Rollout, Fault::ApplicationKilled] {
        cells.extend(run(binary, fault, &Protocol::ALL, EXTENT));
    }
    print!("{}", report::table(&cells));
    let complaints: Vec<String> = cells.iter().filter_map(Cell::complaint).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

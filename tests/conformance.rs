//! Gateway API's conformance suite, all of it that is about meshes, on a real cluster; and the report
//! in docs/conformance/, which must be what the suite says of this tree.

use std::fs;
use std::time::Duration;

use weft_tests::{conformance, install};

#[path = "conformance/stricter.rs"]
mod stricter;

/// The label of a namespace whose pods get a sidecar.
const INJECTED: (&str, &str) = ("weft.dev/inject", "enabled");
/// How long a route may take to be in force on a busy node.
const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn every_test_of_a_mesh_passes_and_the_report_is_true() {
    let Some(cluster) = install::connect() else {
        return;
    };
    let run = conformance::run(&cluster);
    println!("{}", run.summary());
    assert!(
        !run.tests.is_empty(),
        "the suite ran nothing: {:?}",
        run.log
    );
    let not_passed = run.not_passed();
    assert!(not_passed.is_empty(), "{not_passed:?}: {:?}", run.log);
    let kept = conformance::kept();
    let report = fs::read_to_string(&kept).unwrap_or_else(|error| {
        panic!("{}: {error}; `make conformance` writes it", kept.display())
    });
    assert_eq!(
        run.claims(),
        conformance::claims(&report),
        "{} is not what the suite says; `make conformance` writes it anew",
        kept.display()
    );
}

//! Gateway API's conformance suite, all of it that is about meshes, on a real cluster; and the report
//! in docs/conformance/, which must be what the suite says of this tree.

use std::fs;

use weft_tests::{conformance, install};

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

//! `make conformance`: Gateway API's conformance suite against Weft in a real cluster; the report
//! goes to docs/conformance/. Fails unless every test of a mesh passed and none was left out.

use std::fs;
use std::process::ExitCode;

use weft_tests::{conformance, install};

fn main() -> ExitCode {
    let Some(cluster) = install::connect() else {
        return ExitCode::from(2);
    };
    let run = conformance::run(&cluster);
    println!("\n{}", run.summary());
    let not_passed = run.not_passed();
    if !not_passed.is_empty() || run.tests.is_empty() {
        println!(
            "not passed: {}; what the suite said: {}",
            not_passed.join(", "),
            run.log.display()
        );
        return ExitCode::FAILURE;
    }
    let kept = conformance::kept();
    fs::copy(&run.report, &kept).expect("docs/conformance can be written");
    println!("the report: {}", kept.display());
    ExitCode::SUCCESS
}

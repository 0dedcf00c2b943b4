//! The demo as a user runs it: real programs behind the proxy, one killed, all replaced, the proxy
//! itself too, under load. What it counts as lost must be none.

use std::process::Command;

use serde_json::Value;
use weft_tests::{proxy, root, stepping_aside};

/// Long enough for every event of the timeline.
const SECONDS: &str = "20";

#[test]
fn the_demo_loses_nothing() {
    if stepping_aside("nginx") {
        return;
    }
    let weft_proxy = proxy::binary();
    let folder = weft_proxy.parent().expect("a binary lies in a folder");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "weft-cli", "--bin", "weft"])
        .args(if folder.ends_with("release") {
            ["--profile", "release"]
        } else {
            ["--profile", "dev"]
        })
        .current_dir(root())
        .status();
    assert!(built.is_ok_and(|status| status.success()), "weft builds");
    let work = tempfile::tempdir().expect("a folder");
    let output = Command::new(folder.join("weft"))
        .args(["demo", "--seconds", SECONDS, "-o", "json", "--dir"])
        .arg(work.path())
        .arg("--proxy")
        .arg(weft_proxy)
        .current_dir(root())
        .output()
        .expect("weft runs");
    let told = String::from_utf8_lossy(&output.stderr);
    let line = String::from_utf8_lossy(&output.stdout);
    let line = line.lines().last().unwrap_or_default();
    let report: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}\n{told}"));
    assert_eq!(report["lost"], 0, "{report:#}\n{told}");
    assert!(report["sent"].as_u64() > Some(1000), "{report:#}\n{told}");
    assert!(output.status.success(), "{}\n{told}", output.status);
}

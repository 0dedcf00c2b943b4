//! The demo as a user runs it: an online store in a mesh, under load, while it is rolled out and scaled
//! and parts of it are killed. All of that must have happened, and no request may be lost.

use serde_json::Value;
use weft_tests::proxy::{self, built};
use weft_tests::root;
use weft_tests::weft::weft;

/// Acts follow each other without a pause worth the name, and take as long as they take.
const SECONDS: &str = "10";
/// For two slow cores that others use as well.
const RATE: &str = "30";
const ACTS: [&str; 9] = [
    "policy",
    "rollout",
    "scale out",
    "canary",
    "crash",
    "scale in",
    "outage",
    "gateway",
    "mistake",
];

fn list<'a>(report: &'a Value, name: &str) -> &'a Vec<Value> {
    report[name].as_array().expect("it is a list")
}

fn names<'a>(report: &'a Value, list_name: &str, field: &str) -> Vec<&'a str> {
    let list = list(report, list_name).iter();
    list.map(|of| of[field].as_str().unwrap_or_default())
        .collect()
}

/// The last line of `weft demo`, and whether it says success by its exit code.
fn demo() -> (Value, bool, String) {
    let work = tempfile::tempdir().expect("a folder");
    let output = weft()
        .args(["demo", "--seconds", SECONDS, "--rate", RATE])
        .args(["-o", "json", "--dir"])
        .arg(work.path())
        .arg("--proxy")
        .arg(proxy::binary())
        .arg("--controller")
        .arg(built("weft-controller", "weft-controller"))
        .current_dir(root())
        .output()
        .expect("weft runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = String::from_utf8_lossy(&output.stdout);
    let line = line.lines().last().unwrap_or_default();
    let report = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}\n{told}"));
    (report, output.status.success(), told)
}

#[test]
fn the_store_loses_nothing() {
    let (report, success, told) = demo();
    let told = format!("{report:#}\n{told}");
    assert_eq!(report["lost"], 0, "{told}");
    assert!(success, "{told}");
    assert_eq!(report["result"], "complete", "{told}");
    assert!(report["sent"].as_u64() > Some(250), "{told}");
    assert_eq!(report["sent"], report["answered"], "{told}");
    for client in list(&report, "clients") {
        assert!(client["sent"].as_u64() > Some(20), "{told}");
        assert_eq!(client["sent"], client["answered"], "{told}");
    }

    // All of it has happened.
    assert_eq!(names(&report, "acts", "act"), ACTS, "{told}");
    for act in list(&report, "acts") {
        assert!(
            act["begun"].is_number() && act["ended"].is_number(),
            "{told}"
        );
    }
    // Every service was answered for by both versions, the catalogue by the canary, too.
    for service in list(&report, "services") {
        let catalogue = service["service"] == "catalogue";
        let versions: &[&str] = if catalogue {
            &["v1", "v2", "v3"]
        } else {
            &["v1", "v2"]
        };
        for version in versions {
            assert!(
                service["versions"][version].as_u64() > Some(0),
                "{version} of {told}"
            );
        }
        assert!(service["p50_ms"].is_number(), "{told}");
    }
    // None of the beginning's replicas is left: those of v1 and the canary left by the barrier.
    let replicas = list(&report, "replicas");
    let old = |replica: &&Value| replica["version"] != "v2";
    assert_eq!(replicas.iter().filter(old).count(), 10, "{told}");
    assert!(
        replicas.iter().filter(old).all(|of| of["life"] == "left"),
        "{told}"
    );
    let lives = names(&report, "replicas", "life");
    let count = |life: &str| lives.iter().filter(|of| **of == life).count();
    assert_eq!((count("serving"), count("killed")), (9, 1), "{told}");
    assert!(
        replicas.iter().all(|of| of["requests"].as_u64() > Some(0)),
        "{told}"
    );
}

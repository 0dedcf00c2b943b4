//! docs/ names what the proxy tells of itself: every cause, every metric and
//! every reason for a refusal; and no metric that there is not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use weft_proxy::logic::cause::Cause;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let found = fs::read_to_string(root().join(path));
    found.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names in `text` that begin with one of `prefixes` right behind `mark`.
fn names(text: &str, mark: char, prefixes: &[&str]) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(mark)
        .filter(|piece| prefixes.iter().any(|prefix| piece.starts_with(prefix)))
        .map(|piece| piece.chars().take_while(|c| is_name(*c)).collect())
        .collect()
}

#[test]
fn every_metric_is_documented_and_no_other() {
    const PREFIXES: [&str; 2] = ["weft_", "process_"];
    let mut metrics = BTreeSet::new();
    for file in [
        "proxy/src/telemetry/metrics/mod.rs",
        "proxy/src/telemetry/metrics/events.rs",
        "proxy/src/telemetry/metrics/series.rs",
        "proxy/src/telemetry/metrics/process.rs",
        "proxy/src/admin/gauges.rs",
    ] {
        metrics.extend(names(&read(file), '"', &PREFIXES));
    }
    assert!(metrics.len() > 40, "{metrics:#?}");
    let page = read("docs/operations.md");
    let (_, table) = page.split_once("## Metrics").expect("it has that section");
    assert_eq!(names(table, '`', &["weft_", "process_"]), {
        metrics.insert("weft_".to_owned());
        metrics.insert("process_".to_owned());
        metrics.clone()
    });
    // Elsewhere no name is wrong.
    for page in [
        "docs/limits.md",
        "docs/behaviour.md",
        "docs/operations.md",
        "README.md",
        "ARCHITECTURE.md",
    ] {
        let text = read(page);
        let all = names(&text, '`', &["weft_"]);
        // The controller's own tests hold those to its metrics.
        for name in all.iter().filter(|of| !of.starts_with("weft_controller_")) {
            assert!(
                metrics.contains(name),
                "{page} names {name}, which is no metric"
            );
        }
    }
}

#[test]
fn every_cause_has_its_row() {
    let page = read("docs/operations.md");
    let (_, table) = page.split_once("## Causes").expect("it has that section");
    let (table, _) = table.split_once("## ").expect("another section follows");
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    assert_eq!(rows.len(), Cause::ALL.len());
    for (row, cause) in rows.iter().zip(Cause::ALL) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[1], format!("`{}`", cause.label()));
        // What is passed on or cut off has no status of ours.
        if cells[2].chars().all(|c| c.is_ascii_digit()) && !cells[2].is_empty() {
            assert_eq!(cells[2], cause.status().as_str(), "{row}");
        }
        if !cells[3].is_empty() {
            assert_eq!(cells[3], cause.grpc_status().to_string(), "{row}");
        }
    }
}

#[test]
fn every_reason_is_documented() {
    let source = read("proxy/src/logic/http1/reject.rs");
    let page = read("docs/behaviour.md");
    let reasons: Vec<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once("=> \""))
        .filter_map(|(_, reason)| reason.strip_suffix("\","))
        .collect();
    assert!(reasons.len() > 25, "{reasons:?}");
    for reason in reasons {
        let code = format!("`{reason}`");
        assert!(
            page.contains(&code),
            "docs/behaviour.md does not name {code}"
        );
    }
}

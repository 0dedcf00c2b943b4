//! Gateway API's conformance suite, run against the Weft that is installed in a cluster.
//!
//! The suite decides what passes and writes the report; this starts it, and reads both.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_controller::api::mesh;

use crate::cluster::Cluster;
use crate::{eventually_within, root};

const PROFILES: &str = "MESH-HTTP,MESH-GRPC";
const CHANNEL: &str = "experimental";
/// A definition that is new is looked for every five seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Tests of a mesh are called so; those of gateways, which the suite leaves out by itself, are not.
const OF_A_MESH: &str = "Mesh";

/// What became of one of the suite's tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Skipped,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "SKIPPED",
        }
    }
}

/// One of the suite's tests of a mesh.
#[derive(Debug)]
pub struct Test {
    pub name: String,
    /// What of a mesh it needs, as the suite has it.
    pub features: Vec<String>,
    pub outcome: Outcome,
}

/// A run of the suite.
#[derive(Debug)]
pub struct Run {
    pub tests: Vec<Test>,
    /// Answers that were not what a test wants, and that it asked for again.
    pub again: usize,
    /// The report that the suite wrote.
    pub report: PathBuf,
    /// All that the suite said.
    pub log: PathBuf,
    pub seconds: f64,
}

/// Where the report of this version is kept.
#[must_use]
pub fn kept() -> PathBuf {
    root().join(format!(
        "docs/conformance/{CHANNEL}-v{VERSION}-default-report.yaml"
    ))
}

/// Runs all of the suite that is about meshes; a line for each test as it ends.
///
/// # Panics
/// If it cannot be built or started, or writes no report.
#[must_use]
pub fn run(cluster: &Cluster) -> Run {
    let suite = built();
    let _its_image = echo(cluster);
    cluster.install_gateway_api(CHANNEL);
    await_claims(cluster);
    let folder = root().join("target/conformance");
    fs::create_dir_all(&folder).expect("target can be written");
    let (report, log) = (folder.join("report.yaml"), folder.join("log"));
    let _none_yet = fs::remove_file(&report);
    let begun = Instant::now();
    let mut child = Command::new(suite.join("suite"))
        .args(arguments(&report))
        .env("KUBECONFIG", &cluster.kubeconfig)
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the suite runs");
    let said = child.stdout.take().expect("its output is a pipe");
    let mut kept = fs::File::create(&log).expect("target can be written");
    let mut reading = Reading::default();
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        writeln!(kept, "{line}").expect("target can be written");
        if let Some(test) = reading.line(&line) {
            println!("{}", row(test));
        }
    }
    let status = child.wait().expect("it ends");
    let (report_text, log_name) = (fs::read_to_string(&report), log.display());
    assert!(
        report_text.is_ok(),
        "the suite wrote no report ({status}): {log_name}"
    );
    Run {
        tests: reading.tests,
        again: reading.again,
        report,
        log,
        seconds: begun.elapsed().as_secs_f64(),
    }
}

/// The name of the suite's application, whose image is then on the node.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn echo(cluster: &Cluster) -> String {
    let suite = built();
    cluster.load(&suite.join("echo.tar"));
    let name = fs::read_to_string(suite.join("image")).expect("it was built");
    name.trim().to_owned()
}

/// Waits until the mesh's own object says what this tree supports, which is what the suite then runs.
fn await_claims(cluster: &Cluster) {
    let path = "jsonpath={.status.supportedFeatures[*].name}";
    let arguments = ["get", "xmeshes", mesh::NAME, "-o", path];
    eventually_within(PATIENCE, "the XMesh says what is supported", || {
        let output = cluster.try_kubectl(&arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.split_whitespace().eq(mesh::FEATURES).then_some(())
    });
}

/// Builds the suite, once for this machine; the folder with it.
fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut command = Command::new(root().join("tests/cluster/cluster"));
        command.args(["build", "conformance"]).stdin(Stdio::null());
        let output = command.stderr(Stdio::inherit()).output();
        let output = output.expect("it can be run");
        assert!(output.status.success(), "{command:?}: {}", output.status);
        let said = String::from_utf8_lossy(&output.stdout);
        PathBuf::from(said.lines().last().unwrap_or_default())
    })
}

fn arguments(report: &Path) -> Vec<String> {
    let mut all = vec!["-test.v".to_owned(), "-test.timeout=20m".to_owned()];
    let flags = [
        ("conformance-profiles", PROFILES),
        ("mesh-name", mesh::NAME),
        // With neither class nor features given, the suite asks the XMesh's status.
        ("gateway-class", ""),
        ("namespace-labels", "weft.dev/inject=enabled"),
        ("mode", "default"),
        ("organization", "weft-mesh"),
        ("project", "weft"),
        ("url", REPOSITORY),
        ("version", VERSION),
        ("contact", &format!("{REPOSITORY}/issues/new")),
        ("report-output", &report.display().to_string()),
    ];
    all.extend(flags.map(|(name, value)| format!("-{name}={value}")));
    all
}

/// What the suite's lines say of its tests.
#[derive(Default)]
struct Reading {
    features: Vec<(String, Vec<String>)>,
    tests: Vec<Test>,
    again: usize,
}

impl Reading {
    /// Takes up a line; the test that ended with it.
    fn line(&mut self, line: &str) -> Option<&Test> {
        if let Some((_, said)) = line.split_once(": Running ") {
            let (name, features) = said.split_once(", relying on the following features: ")?;
            let features = features.split(", ").map(feature).collect();
            self.features.push((name.to_owned(), features));
            return None;
        }
        if line.contains(": Request ") || line.contains(": Response expectation ") {
            self.again += usize::from(line.contains("not ready yet"));
        }
        let test = self.ended(line.strip_prefix("    --- ")?)?;
        self.tests.push(test);
        self.tests.last()
    }

    fn ended(&self, line: &str) -> Option<Test> {
        let (outcome, rest) = line.split_once(": TestConformance/")?;
        let (name, _) = rest.split_once(" (")?;
        if !name.starts_with(OF_A_MESH) {
            return None;
        }
        let features = self.features.iter().find(|(of, _)| of == name);
        Some(Test {
            name: name.to_owned(),
            features: features
                .map(|(_, features)| features.clone())
                .unwrap_or_default(),
            outcome: match outcome {
                "PASS" => Outcome::Passed,
                "SKIP" => Outcome::Skipped,
                _ => Outcome::Failed,
            },
        })
    }
}

/// `MeshConsumerRoute-Standard` without its channel.
fn feature(said: &str) -> String {
    let name = said.rsplit_once('-').map_or(said, |(name, _)| name);
    name.to_owned()
}

fn row(test: &Test) -> String {
    format!(
        "{:<42} {:<8} {}",
        test.name,
        test.outcome.word(),
        test.features.join(", ")
    )
}

impl Run {
    /// What the report says, without what differs from run to run: the date, and the order of the
    /// profiles.
    ///
    /// # Panics
    /// If it is no report.
    #[must_use]
    pub fn claims(&self) -> Value {
        claims(&fs::read_to_string(&self.report).expect("the suite wrote it"))
    }

    /// The tests that did not pass.
    #[must_use]
    pub fn not_passed(&self) -> Vec<&str> {
        let all = self.tests.iter();
        all.filter(|test| test.outcome != Outcome::Passed)
            .map(|test| test.name.as_str())
            .collect()
    }

    /// A line for each profile, and what it comes to.
    #[must_use]
    pub fn summary(&self) -> String {
        let claims = self.claims();
        let profiles = claims["profiles"].as_array().cloned().unwrap_or_default();
        let mut lines: Vec<String> = profiles.iter().map(profile).collect();
        let passed = self.tests.len() - self.not_passed().len();
        lines.push(format!(
            "{passed} of the suite's {} tests of a mesh passed, in {:.0} s; {} answers were asked for again",
            self.tests.len(),
            self.seconds,
            self.again
        ));
        lines.join("\n")
    }
}

/// A report without what differs from run to run.
///
/// # Panics
/// If it is no report.
#[must_use]
pub fn claims(report: &str) -> Value {
    let mut report: Value = serde_saphyr::from_str(report).expect("a report is YAML");
    let all = report.as_object_mut().expect("a report is a map");
    all.remove("date").expect("a report has a date");
    let profiles = report["profiles"].as_array_mut();
    let profiles = profiles.expect("a report has profiles");
    profiles.sort_by_key(|of| of["name"].as_str().unwrap_or_default().to_owned());
    report
}

/// A profile's figures: `MESH-HTTP  core 7 passed, 0 failed, 0 skipped; …`.
fn profile(of: &Value) -> String {
    let figures = |level: &Value| {
        let figure = |name: &str| level["statistics"][name].as_u64().unwrap_or(0);
        let [passed, failed, skipped] = ["Passed", "Failed", "Skipped"].map(figure);
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    };
    let count = |list: &str| of["extended"][list].as_array().map_or(0, Vec::len);
    let name = of["name"].as_str().unwrap_or_default();
    let mut line = format!("{name}: core {}", figures(&of["core"]));
    if of["extended"].is_object() {
        let (claimed, not) = (count("supportedFeatures"), count("unsupportedFeatures"));
        line += &format!(
            "; extended {}, {claimed} of {} features",
            figures(&of["extended"]),
            claimed + not
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suites_lines_become_tests() {
        let mut reading = Reading::default();
        for line in [
            "=== RUN   TestConformance/MeshBasic",
            "    conformance.go:85: 2026-11-26T01:02:03.4Z: Running MeshBasic, relying on the following features: Mesh-Standard, HTTPRoute-Standard",
            "    pod.go:73: 2026-11-26T01:02:03.4Z: Response expectation failed for request: [client]  not ready yet: wanted status code to be one of [200], got 503 (after 1s)",
            "    pod.go:66: 2026-11-26T01:02:03.4Z: Request [client] failed, not ready yet: EOF (after 1s)",
            "    helpers.go:456: 2026-11-26T01:02:03.4Z: Pod a/b not ready yet",
            "        --- PASS: TestConformance/MeshBasic/0_request (0.10s)",
            "    --- PASS: TestConformance/MeshBasic (1.25s)",
            "    --- SKIP: TestConformance/GatewayInfrastructure (0.00s)",
            "    --- SKIP: TestConformance/MeshPorts (0.00s)",
            "    --- FAIL: TestConformance/MeshTrafficSplit (31.00s)",
            "--- FAIL: TestConformance (40.00s)",
        ] {
            reading.line(line);
        }
        let seen: Vec<(&str, Outcome)> = reading
            .tests
            .iter()
            .map(|test| (test.name.as_str(), test.outcome))
            .collect();
        assert_eq!(
            seen,
            [
                ("MeshBasic", Outcome::Passed),
                ("MeshPorts", Outcome::Skipped),
                ("MeshTrafficSplit", Outcome::Failed)
            ]
        );
        assert_eq!(reading.tests[0].features, ["Mesh", "HTTPRoute"]);
        assert_eq!(reading.again, 2);
    }

    #[test]
    fn a_reports_claims_are_all_but_its_date_and_order() {
        let report = |date: &str, first: &str, second: &str, passed: u32| {
            claims(&format!(
                "date: {date}\nprofiles:\n- name: {first}\n- name: {second}\npassed: {passed}\n"
            ))
        };
        let one = report("'2026-01-01'", "MESH-HTTP", "MESH-GRPC", 7);
        assert_eq!(one, report("'2026-02-02'", "MESH-GRPC", "MESH-HTTP", 7));
        assert_ne!(one, report("'2026-01-01'", "MESH-HTTP", "MESH-GRPC", 6));
    }

    #[test]
    fn a_profile_in_one_line() {
        let of: Value = serde_saphyr::from_str(
            "name: MESH-HTTP\ncore: {statistics: {Passed: 7, Failed: 0, Skipped: 0}}\nextended: {statistics: {Passed: 8, Failed: 1, Skipped: 0}, supportedFeatures: [a, b], unsupportedFeatures: [c]}",
        )
        .expect("YAML");
        assert_eq!(
            profile(&of),
            "MESH-HTTP: core 7 passed, 0 failed, 0 skipped; extended 8 passed, 1 failed, 0 skipped, 2 of 3 features"
        );
    }
}

//! `weft-proxy` as a test runs it: built once, started from a configuration, awaited by its own
//! readiness, asked through its admin port, ended by its pid.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::metrics::Metrics;
use crate::process::{Program, Signal};
use crate::raw::{Answer, Raw};
use crate::{PATIENCE, eventually, port, root};

/// A binary to test in place of the one that cargo builds.
const BINARY: &str = "WEFT_PROXY";
/// Two, so that what workers share and what they do not is seen.
const WORKERS: u32 = 2;

/// The proxy's binary, of the profile that this test was built with.
#[must_use]
pub fn binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| match env::var_os(BINARY) {
        Some(path) => PathBuf::from(path),
        None => built("weft-proxy", "weft-proxy"),
    })
}

/// Builds a program of ours.
#[must_use]
pub fn built(package: &str, name: &str) -> PathBuf {
    // target/PROFILE/deps/test-0123, or target/PROFILE/program
    let test = env::current_exe().expect("this test has a path");
    let folder = test
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps"))
        .expect("a test lies in target/PROFILE/deps");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", package, "--bin", name])
        .args(["--profile", profile])
        .current_dir(root())
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "{package} does not build"
    );
    folder.join(name)
}

pub struct Proxy {
    pub program: Program,
    pub admin: SocketAddr,
    pub folder: TempDir,
    config: Value,
}

impl Proxy {
    /// Starts it and waits until it is ready. Workers and the admin address are filled in.
    #[track_caller]
    pub fn start(config: Value) -> Self {
        Self::start_with(config, |_| ())
    }

    /// The same with more arguments, variables or a wrapping command.
    #[track_caller]
    pub fn start_with(config: Value, change: impl FnOnce(&mut Command)) -> Self {
        Self::start_as(config, |folder| {
            let mut command = Command::new(binary());
            command.arg("--config").arg(folder.join("weft.yaml"));
            change(&mut command);
            command
        })
    }

    /// The same with a command of the test's own, which gets the folder of `weft.yaml`.
    #[track_caller]
    pub fn start_as(mut config: Value, command: impl FnOnce(&Path) -> Command) -> Self {
        let folder = TempDir::new().expect("a folder can be made");
        let admin = port::free_address();
        fill(&mut config, admin);
        write(&folder.path().join("weft.yaml"), &config);
        let program = Program::start("weft-proxy", &mut command(folder.path()), folder.path());
        let mut proxy = Self {
            program,
            admin,
            folder,
            config,
        };
        proxy.await_ready();
        proxy
    }

    /// Kills it and starts it again as it was.
    #[track_caller]
    pub fn restart(&mut self) {
        self.program.kill();
        let mut command = Command::new(binary());
        command.arg("--config").arg(self.config_path());
        self.program = Program::start("weft-proxy", &mut command, self.folder.path());
        self.await_ready();
    }

    #[track_caller]
    fn await_ready(&mut self) {
        let admin = self.admin;
        self.program.accepts(admin);
        eventually("the proxy being ready", || {
            Raw::try_connect(admin)
                .and_then(|mut raw| raw.try_get("/ready"))
                .filter(|answer| answer.status == 200)
        });
    }

    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("weft.yaml")
    }

    /// Changes the file by `change`, says so, and waits until the proxy has taken it.
    #[track_caller]
    pub fn reload(&mut self, change: impl FnOnce(&mut Value)) {
        let before = self.reloads("success");
        change(&mut self.config);
        write(&self.config_path(), &self.config);
        self.signal(Signal::HUP);
        eventually("the new configuration being applied", || {
            (self.reloads("success") > before).then_some(())
        });
    }

    /// Reloads so far of one result: `success` or `failure`.
    #[must_use]
    pub fn reloads(&self, result: &str) -> f64 {
        self.metrics()
            .sum("weft_reloads_total", &[("result", result)])
    }

    #[track_caller]
    pub fn ask(&self, path: &str) -> Answer {
        Raw::connect(self.admin).get(path)
    }

    #[must_use]
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let answer = self.ask("/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        Metrics::parse(&answer.text())
    }

    /// Requests so far that ended for `cause`.
    #[must_use]
    #[track_caller]
    pub fn requests(&self, cause: &str) -> f64 {
        self.metrics()
            .sum("weft_requests_total", &[("cause", cause)])
    }

    /// Endpoints of a service that are neither unhealthy nor ejected.
    #[must_use]
    #[track_caller]
    pub fn available(&self, service: &str) -> f64 {
        let labels = [("service", service), ("state", "available")];
        self.metrics().sum("weft_endpoints", &labels)
    }

    /// Waits until as many requests ended for `cause`; a request is recorded after its answer.
    #[track_caller]
    pub fn counts(&self, cause: &str, expected: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.requests(cause) < expected && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        let counted = self.requests(cause);
        assert!(
            (counted - expected).abs() < 0.5,
            "{counted} requests rather than {expected} ended with {cause}:\n{}",
            self.page("weft_requests_total")
        );
    }

    /// The samples of one metric, as the proxy writes them.
    fn page(&self, name: &str) -> String {
        let text = self.ask("/metrics").text();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.collect::<Vec<_>>().join("\n")
    }

    pub fn signal(&self, signal: Signal) {
        self.program.signal(signal);
    }

    /// Still running, still ready.
    #[track_caller]
    pub fn is_well(&mut self) {
        assert!(self.program.is_running(), "the proxy has ended");
        assert_eq!(self.ask("/ready").status, 200);
    }
}

/// Runs the proxy to its end (`--check`, `--explain`, or a start that fails).
pub fn run(config: &Value, arguments: &[&str]) -> Output {
    let folder = TempDir::new().expect("a folder can be made");
    let mut config = config.clone();
    fill(&mut config, port::free_address());
    write(&folder.path().join("weft.yaml"), &config);
    run_file(&folder.path().join("weft.yaml"), arguments)
}

/// The same with a file as it is.
pub fn run_file(file: &Path, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .arg("20")
        .arg(binary())
        .arg("--config")
        .arg(file)
        .args(arguments)
        .output()
        .expect("timeout can be run")
}

fn fill(config: &mut Value, admin: SocketAddr) {
    let settings = &mut config["settings"];
    if settings.is_null() {
        *settings = json!({});
    }
    if settings["workers"].is_null() {
        settings["workers"] = json!(WORKERS);
    }
    if settings["admin"].is_null() {
        settings["admin"] = json!(admin.to_string());
    }
}

/// JSON is YAML.
pub fn write(path: &Path, config: &Value) {
    write_text(
        path,
        &serde_json::to_string_pretty(config).expect("it is JSON"),
    );
}

/// The file is replaced whole, as an editor or a ConfigMap does: half of it is never seen.
pub fn write_text(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("the configuration can be written");
    fs::rename(&new, path).expect("the configuration can be replaced");
}

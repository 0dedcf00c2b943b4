//! `make scale`: a thousand simulated proxies at a real controller that a real API server feeds.
//! Prints each act, writes target/scale.json, and fails if a proxy was told what it does not use,
//! or a bar is missed.

use std::cell::Cell;
use std::env;
use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use weft_tests::proxy::built;
use weft_tests::root;
use weft_tests::scale::figures::Figures;
use weft_tests::scale::run::{Plan, Run, Teller};
use weft_tests::scale::size::Size;

/// A controller to look at in place of the one that cargo builds.
const BINARY: &str = "WEFT_CONTROLLER";
/// Changes of endpoints in a second.
const CHANGES_PER_SECOND: u32 = 50;

/// A number from the environment.
fn number(name: &str, usual: usize) -> usize {
    env::var(name).map_or(usual, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number"))
    })
}

fn main() -> ExitCode {
    let Some(kubeconfig) = env::var_os("KUBECONFIG").map(PathBuf::from) else {
        eprintln!("KUBECONFIG is not set: `make scale` starts a control plane of its own");
        return ExitCode::from(2);
    };
    let services = number("SERVICES", 2000);
    let plan = Plan {
        size: Size {
            proxies: number("PROXIES", 1000),
            services,
            endpoints: (number("ENDPOINTS", 10 * services) / services).max(2),
            uses: number("USES", 20),
            namespaces: 20,
            has_nodes: true,
        },
        changes: number("CHANGES", 2000),
        interval: Duration::from_secs(1) / CHANGES_PER_SECOND,
    };
    let screen = Screen::new();
    let controller = env::var_os(BINARY).map(PathBuf::from);
    let controller = controller.unwrap_or_else(|| built("weft-controller", "weft-controller"));
    let prefix = format!("scale-{}", std::process::id());
    let played =
        Run::begin(plan, &prefix, (&controller, &kubeconfig), &screen).and_then(|mut run| {
            run.play()
                .inspect_err(|_| screen.log(&run.controller.log()))
        });
    screen.act("done");
    match played {
        Ok(figures) => report(&figures, &plan.size),
        Err(problem) => {
            eprintln!("failed: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn report(figures: &Figures, size: &Size) -> ExitCode {
    let written = figures.json(size);
    let file = root().join("target/scale.json");
    let text = format!("{written:#}\n");
    print!("{text}");
    if let Err(error) = fs::write(&file, &text) {
        eprintln!("{}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    let missed = figures.missed();
    for bar in &missed {
        println!("missed: {bar}");
    }
    match missed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Lines; on a terminal the last one moves.
struct Screen {
    begun: Instant,
    is_terminal: bool,
    shown: Cell<Option<Instant>>,
}

impl Screen {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            is_terminal: std::io::stdout().is_terminal(),
            shown: Cell::new(None),
        }
    }

    fn line(&self, text: &str) {
        if self.is_terminal && self.shown.take().is_some() {
            print!("\r\x1b[K");
        }
        println!("{:6.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    fn log(&self, log: &str) {
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(20);
        for line in lines.iter().skip(last) {
            self.line(line);
        }
    }
}

impl Teller for Screen {
    fn act(&self, what: &str) {
        self.line(what);
    }

    fn step(&self, what: &str, done: usize, of: usize) {
        const SHOWN_INTERVAL: Duration = Duration::from_millis(200);
        let is_due = self
            .shown
            .get()
            .is_none_or(|at| at.elapsed() > SHOWN_INTERVAL);
        if self.is_terminal && is_due {
            self.shown.set(Some(Instant::now()));
            print!("\r\x1b[K          {what}: {done} of {of}");
            let _shown = std::io::stdout().flush();
        }
    }

    fn said(&self, what: &str) {
        self.line(&format!("  {what}"));
    }
}

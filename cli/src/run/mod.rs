//! `weft run`: one application with its sidecar, without root and without
//! capture. Owns the order of things: the sidecar is ready before the
//! application starts, and has passed the drain barrier before it is told to
//! end.
//!
//! | part | does |
//! | --- | --- |
//! | `plan` | the arguments, checked as a whole |
//! | `configuration` | the sidecar's configuration (pure) |
//! | `manifest` | Pod and EndpointSlice (pure), and writing them |
//! | `sidecar` | weft-proxy, started again when it dies |
//! | `rotation` | whether the application answers, and saying so in the manifest |
//!
//! ```text
//! sidecar ready ──▶ application ──▶ in rotation ──▶ SIGTERM: the barrier ──▶ SIGTERM to the application
//!                        └── ends by itself: out of rotation, the barrier ──────────┴──▶ the sidecar's end
//! ```

mod configuration;
mod manifest;
mod plan;
mod rotation;
mod sidecar;

use std::future::pending;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::process::Child;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::{Instant, timeout};

pub use plan::Arguments;

use crate::guard::Guard;
use plan::Plan;
use rotation::Rotation;
use sidecar::Sidecar;

/// As shells have them: a command that is not there, and one that cannot be run.
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_NOT_RUN: u8 = 126;
/// And 128 with the signal's number for what a signal ended.
const EXIT_SIGNAL: i32 = 128;

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let private = tempfile::Builder::new().prefix("weft-run-").tempdir();
    let private = private.context("making a folder for the sidecar's configuration")?;
    let plan = Arc::new(Plan::new(arguments, private.path())?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(perform(&plan))
}

/// A line of ours, beside what the application writes itself.
fn say(text: &str) {
    // A closed standard error leaves nobody to tell.
    let _told = writeln!(io::stderr(), "weft: {text}");
}

/// What asks us to end. What our parent had ignored stays so: `nohup` means it.
struct Signals {
    terminate: unix::Signal,
    interrupt: Option<unix::Signal>,
    hangup: Option<unix::Signal>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let heeded = |kind: SignalKind| match is_ignored(kind) {
            true => Ok(None),
            false => signal(kind).map(Some),
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: heeded(SignalKind::interrupt())?,
            hangup: heeded(SignalKind::hangup())?,
        })
    }

    /// The next one's name and number.
    async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 15),
            () = heard(&mut self.interrupt) => ("SIGINT", 2),
            () = heard(&mut self.hangup) => ("SIGHUP", 1),
        }
    }
}

async fn heard(signal: &mut Option<unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => pending().await,
    }
}

/// By the kernel's mask, whose lowest bit is signal 1.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}

async fn perform(plan: &Arc<Plan>) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut removed = vec![plan.private.as_path()];
    removed.extend(plan.manifest.as_deref());
    let mut sidecar = Sidecar::start(Arc::clone(plan), Guard::start(&removed)?);
    tokio::select! {
        ready = sidecar.ready() => ready?,
        (name, number) = signals.next() => {
            say(&format!("{name}: the end, before the application was started"));
            sidecar.end().await;
            return Ok(ExitCode::from(128 + number));
        }
    }
    let group = Guard::start(&removed)?;
    let ended = match start(plan, &group) {
        Ok(child) => serve(plan, &mut sidecar, child, &group, &mut signals).await,
        Err(error) => {
            let (program, _) = plan.command();
            say(&format!("{}: {error}", program.display()));
            let missing = error.kind() == io::ErrorKind::NotFound;
            let code = if missing {
                EXIT_NOT_FOUND
            } else {
                EXIT_NOT_RUN
            };
            Ok(ExitCode::from(code))
        }
    };
    // What the application leaves behind serves nobody.
    drop(group);
    sidecar.end().await;
    ended
}

fn start(plan: &Plan, group: &Guard) -> io::Result<Child> {
    let (program, arguments) = plan.command();
    // It is in the background of a terminal, where reading would stop it.
    let input = match io::stdin().is_terminal() {
        true => Stdio::null(),
        false => Stdio::inherit(),
    };
    tokio::process::Command::new(program)
        .args(arguments)
        .stdin(input)
        .process_group(group.group())
        .spawn()
}

/// From the application's start to its end.
async fn serve(
    plan: &Plan,
    sidecar: &mut Sidecar,
    mut child: Child,
    group: &Guard,
    signals: &mut Signals,
) -> Result<ExitCode> {
    let name = Path::new(plan.command().0).display().to_string();
    let pid = child.id().unwrap_or_default();
    say(&format!("started {name} (pid {pid})"));
    let mut rotation = Rotation::new(plan);
    let ended = tokio::select! {
        ended = child.wait() => Some(ended?),
        never = rotation.follow(sidecar) => match never {},
        (signal, _) = signals.next() => {
            say(&format!("{signal}: leaving; {name} is told once nothing more can reach it"));
            None
        }
    };
    // An application that has gone needs it as well: callers learn of it at once.
    rotation.leave(ended.is_none());
    let mut child = Application {
        name,
        child,
        ended,
        group,
    };
    let left = tokio::select! {
        left = sidecar.leave() => left,
        (signal, _) = signals.next() => Err(anyhow::anyhow!("{signal} again: not waiting for it")),
    };
    match left {
        Ok(left) => say(&left),
        Err(error) => say(&format!("the drain barrier: {error:#}")),
    }
    let status = child.end(plan, signals).await?;
    say(&format!("{} has ended: {status}", child.name));
    Ok(ExitCode::from(code(status)))
}

struct Application<'a> {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    group: &'a Guard,
}

impl Application<'_> {
    /// SIGTERM, and SIGKILL when it does not heed it or a second signal says so.
    async fn end(&mut self, plan: &Plan, signals: &mut Signals) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let told = Instant::now();
        self.group.signal(Signal::TERM)?;
        let why = tokio::select! {
            ended = timeout(plan.grace, self.child.wait()) => match ended {
                Ok(status) => return Ok(status?),
                Err(_) => format!("still runs {:?} after SIGTERM", told.elapsed()),
            },
            (signal, _) = signals.next() => format!("still runs at another {signal}"),
        };
        say(&format!("{} {why}: SIGKILL", self.name));
        self.child.start_kill()?;
        Ok(self.child.wait().await?)
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => EXIT_SIGNAL + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(1)
}

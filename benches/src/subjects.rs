//! What is measured: the floor, Weft and its peers. Each has a file that writes
//! its configuration for one mode and gives its command, one worker each; this
//! file starts them on their core and waits until a real request is answered.

mod envoy;
mod haproxy;
mod nginx;
mod weft;

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::case::{Case, Mode};
use crate::load::{self, Plan};
use crate::process::Process;

const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// Connections that a subject is configured for; what 20,000 open files carry.
const CONNECTIONS_MAX: u32 = 12_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Floor,
    Weft,
    Nginx,
    Haproxy,
    Envoy,
}

impl Subject {
    pub const ALL: [Self; 5] = [
        Self::Floor,
        Self::Weft,
        Self::Nginx,
        Self::Haproxy,
        Self::Envoy,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Weft => "weft",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }

    /// The floor has no HTTP/2 and no TLS; everybody else does every case
    /// (nginx speaks HTTP/1.1 to its upstream in the h2 cases: it has no other way).
    pub fn can(self, case: Case) -> bool {
        self != Self::Floor || matches!(case.mode(), Mode::Http1 | Mode::Tcp)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|subject| subject.name() == name)
            .ok_or_else(|| {
                format!(
                    "unknown subject; one of {}",
                    Self::ALL.map(Self::name).join(",")
                )
            })
    }
}

/// What a subject is configured with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub mode: Mode,
    pub listen: SocketAddr,
    pub upstream: SocketAddr,
    /// Where Weft's admin listens; the peers have theirs off.
    pub admin: SocketAddr,
    /// Configuration files, certificates (cert.pem, key.pem, both.pem) and logs.
    pub folder: PathBuf,
    /// The binary of the subject; the floor is this one.
    pub binary: PathBuf,
}

impl Setup {
    /// Writes a configuration file; gives its path.
    fn write(&self, subject: &str, extension: &str, text: &str) -> Result<PathBuf> {
        let path = self
            .folder
            .join(format!("{subject}-{}.{extension}", self.mode.name()));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// A subject that answers.
#[derive(Debug)]
pub struct Running {
    pub process: Process,
    pub rss_start_bytes: u64,
    pub log: PathBuf,
}

/// Starts a subject on `core` and waits for its first answer.
pub fn start(subject: Subject, setup: &Setup, plan: &Plan, core: usize) -> Result<Running> {
    let command = command(subject, setup)?;
    let log = setup
        .folder
        .join(format!("{subject}-{}.log", setup.mode.name()));
    let mut process = Process::start(subject.name(), &command, core, &log)?;
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        process.check_running(&log)?;
        match load::probe(plan) {
            Ok(()) => break,
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| {
                    format!("not ready after {READY_TIMEOUT:?} (log: {})", log.display())
                });
            }
            Err(_not_ready) => sleep(Duration::from_millis(20)),
        }
    }
    let rss_start_bytes = process.rss_bytes()?;
    Ok(Running {
        process,
        rss_start_bytes,
        log,
    })
}

fn command(subject: Subject, setup: &Setup) -> Result<Command> {
    match subject {
        Subject::Floor => Ok(floor(setup)),
        Subject::Weft => weft::command(setup),
        Subject::Nginx => nginx::command(setup),
        Subject::Haproxy => haproxy::command(setup),
        Subject::Envoy => envoy::command(setup),
    }
}

fn floor(setup: &Setup) -> Command {
    let mut command = Command::new(&setup.binary);
    command
        .arg("floor")
        .arg("--listen")
        .arg(setup.listen.to_string());
    command.arg("--upstream").arg(setup.upstream.to_string());
    if setup.mode == Mode::Tcp {
        command.arg("--tcp");
    }
    command
}

/// Whether nginx can do opaque TCP: its module is a package of its own.
pub fn nginx_has_stream() -> bool {
    nginx::has_stream()
}

/// The folder's absolute path: subjects run wherever they like.
pub fn folder(out: &Path) -> Result<PathBuf> {
    let folder = out.join("conf");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    fs::canonicalize(&folder).with_context(|| format!("finding {}", folder.display()))
}

//! What is measured: the floor, Weft and its peers. Each has a file that writes
//! its configuration for one mode and gives its command, one worker each; this
//! file starts them on their core and waits until a real request is answered.
//!
//! A pair is two processes of a subject on that one core, mutual TLS between them;
//! `identity` has the peers' certificates, and Weft's pair is a mesh (`mesh`).

mod envoy;
mod haproxy;
pub mod identity;
mod mesh;
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
use crate::process::{Cpu, Process};

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
    /// A pair of Envoys that speaks HTTP/2 between the two, whatever comes in.
    EnvoyH2,
}

impl Subject {
    pub const ALL: [Self; 6] = [
        Self::Floor,
        Self::Weft,
        Self::Nginx,
        Self::Haproxy,
        Self::Envoy,
        Self::EnvoyH2,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Weft => "weft",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::EnvoyH2 => "envoy-h2",
        }
    }

    /// The floor has no HTTP/2 and no TLS; everybody else does every case of one hop
    /// (nginx speaks HTTP/1.1 to its upstream in the h2 cases: it has no other way).
    pub fn can(self, case: Case) -> bool {
        self.why_not(case).is_none()
    }

    /// What keeps a subject from a case.
    pub fn why_not(self, case: Case) -> Option<&'static str> {
        match (self, case.is_pair(), case.mode()) {
            (Self::Floor, true, _) => Some("has no TLS"),
            (Self::Floor, _, Mode::Tls) => Some("has no TLS"),
            (Self::Floor, _, Mode::Http2 | Mode::Grpc) => Some("has no HTTP/2"),
            (Self::Nginx, true, Mode::Http2) => Some("has no HTTP/2 to its upstreams"),
            (Self::Envoy, true, Mode::Grpc) => Some("gRPC takes HTTP/2 between the two: envoy-h2"),
            (Self::EnvoyH2, false, _) => Some("is a pair"),
            (Self::EnvoyH2, true, Mode::Tcp) => Some("opaque bytes have no HTTP: envoy"),
            _ => None,
        }
    }

    /// What its pair speaks inside TLS where clients and upstreams speak `mode`.
    pub fn between(self, mode: Mode) -> Mode {
        match (self, mode) {
            (Self::Envoy, Mode::Http2) => Mode::Http1,
            (Self::EnvoyH2, Mode::Http1) => Mode::Http2,
            _ => mode,
        }
    }

    /// Whether it belongs beside the others in a table of pairs, or of hops.
    pub fn is_beside(self, pair: bool) -> bool {
        match self {
            Self::Floor => !pair,
            Self::EnvoyH2 => pair,
            _ => true,
        }
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

/// Which of a pair a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// None: it is one hop.
    Alone,
    /// Takes plain connections, and makes mutual TLS.
    Client,
    /// Takes mutual TLS, and makes plain connections.
    Server,
}

/// What a subject is configured with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What clients and upstreams speak.
    pub mode: Mode,
    pub side: Side,
    /// What the two of a pair speak inside TLS.
    pub between: Mode,
    pub listen: SocketAddr,
    pub upstream: SocketAddr,
    /// Where Weft's admin listens; the peers have theirs off.
    pub admin: SocketAddr,
    /// Where the controller of Weft's pair listens.
    pub controller: SocketAddr,
    pub controller_admin: SocketAddr,
    /// Configuration files, certificates (cert.pem, key.pem, both.pem) and logs.
    pub folder: PathBuf,
    /// The binary of the subject; the floor is this one.
    pub binary: PathBuf,
}

impl Setup {
    /// Two instead of one: the client's side, and the server's that listens `between`.
    pub fn pair(self, between: SocketAddr, other_admin: SocketAddr) -> [Self; 2] {
        let server = Self {
            side: Side::Server,
            listen: between,
            admin: other_admin,
            ..self.clone()
        };
        let client = Self {
            side: Side::Client,
            upstream: between,
            ..self
        };
        [client, server]
    }

    /// What is spoken to its downstream.
    fn downstream(&self) -> Mode {
        match self.side {
            Side::Alone | Side::Client => self.mode,
            Side::Server => self.between,
        }
    }

    /// What it speaks to its upstream.
    fn upstream_mode(&self) -> Mode {
        match self.side {
            Side::Alone | Side::Server => self.mode,
            Side::Client => self.between,
        }
    }

    /// What its files are called.
    fn label(&self, subject: &str) -> String {
        let side = match self.side {
            Side::Alone => "",
            Side::Client => "-client",
            Side::Server => "-server",
        };
        format!("{subject}-{}{side}", self.mode.name())
    }

    /// Writes a configuration file; gives its path.
    fn write(&self, subject: &str, extension: &str, text: &str) -> Result<PathBuf> {
        let path = self
            .folder
            .join(format!("{}.{extension}", self.label(subject)));
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
    /// One process; of a pair both. What is measured is their sum.
    pub measured: Vec<Process>,
    pub rss_start_bytes: u64,
    pub log: PathBuf,
    /// Weft's controller, on the other core and not measured.
    _beside: Option<Process>,
}

impl Running {
    pub fn cpu(&self) -> Result<Cpu> {
        self.measured
            .iter()
            .try_fold(Cpu::default(), |sum, process| Ok(sum + process.cpu()?))
    }

    pub fn rss_bytes(&self) -> Result<u64> {
        self.measured
            .iter()
            .try_fold(0, |sum, process| Ok(sum + process.rss_bytes()?))
    }

    pub fn check_running(&mut self) -> Result<()> {
        let log = &self.log;
        self.measured
            .iter_mut()
            .try_for_each(|process| process.check_running(log))
    }
}

/// Starts a subject on the first of `cores` and waits for its first answer; what is
/// not measured runs on the second.
pub fn start(
    subject: Subject,
    sides: &[Setup],
    plan: &Plan,
    (core, other_core): (usize, usize),
) -> Result<Running> {
    let first = sides.first().context("a subject has a side")?;
    let log = first
        .folder
        .join(format!("{}.log", first.label(subject.name())));
    let mut beside = None;
    let commands = match (subject, sides) {
        (Subject::Weft, [client, server]) => {
            let mesh = mesh::prepare(client, server)?;
            let log = first.folder.join("weft-controller.log");
            beside = Some(Process::start(
                "weft-controller",
                &mesh.controller,
                other_core,
                &log,
            )?);
            mesh.sidecars
        }
        _ => sides
            .iter()
            .map(|setup| command(subject, setup))
            .collect::<Result<_>>()?,
    };
    let mut running = Running {
        measured: Vec::new(),
        rss_start_bytes: 0,
        log,
        _beside: beside,
    };
    for (setup, command) in sides.iter().zip(&commands) {
        let log = setup
            .folder
            .join(format!("{}.log", setup.label(subject.name())));
        let process = Process::start(subject.name(), command, core, &log)?;
        running.measured.push(process);
    }
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        running.check_running()?;
        match load::probe(plan) {
            Ok(()) => break,
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| {
                    format!(
                        "not ready after {READY_TIMEOUT:?} (log: {})",
                        running.log.display()
                    )
                });
            }
            Err(_not_ready) => sleep(Duration::from_millis(20)),
        }
    }
    running.rss_start_bytes = running.rss_bytes()?;
    Ok(running)
}

/// The command of one process of a subject.
pub fn command(subject: Subject, setup: &Setup) -> Result<Command> {
    match subject {
        Subject::Floor => Ok(floor(setup)),
        Subject::Weft => weft::command(setup),
        Subject::Nginx => nginx::command(setup),
        Subject::Haproxy => haproxy::command(setup),
        Subject::Envoy | Subject::EnvoyH2 => envoy::command(setup, subject),
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

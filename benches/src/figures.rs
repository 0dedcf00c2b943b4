//! `hop mesh`: what of the mesh is no request's cost. Memory of a sidecar with many
//! services, handshakes, how long a change takes to everybody, how long a dead replica
//! is still asked. Each is a file with one function; this one has the command line,
//! the stage that they share, and mesh.json.

mod handshakes;
mod kill;
mod memory;
mod spread;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::mesh::{Mesh, Workload};
use crate::options::Options as HopOptions;
use crate::process::{Process, pin};

/// How long anything may take to get ready.
pub const PATIENCE: Duration = Duration::from_secs(60);
const APPLICATION_PORT: u16 = 18_080;
const INBOUND_PORT: u16 = 14_008;
const ADMIN_PORT: u16 = 14_020;
/// An outbound listener of a sidecar, and those after it.
const DIALLED_PORT: u16 = 19_000;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub hop: HopOptions,
    /// Figures to take, separated by commas: memory, handshakes, spread, kill.
    #[arg(long, value_delimiter = ',', default_values = ["memory", "handshakes", "spread", "kill"])]
    pub figures: Vec<String>,
    /// Services that the measured sidecar uses.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub services: u16,
    /// Sidecars that are told of a change.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub proxies: u16,
    /// Changes made.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub changes: u32,
    /// Replicas killed, of each kind.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub kills: u32,
}

/// An entry of mesh.json.
#[derive(Debug, Serialize)]
pub struct Figure {
    pub case: String,
    pub subject: String,
    pub value: f64,
    pub unit: &'static str,
    /// The bar that is set for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    /// More of the same measurement, by name.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub beside: std::collections::BTreeMap<&'static str, f64>,
}

impl Figure {
    fn new(case: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            case: case.into(),
            subject: "weft".to_owned(),
            value,
            unit,
            at_most: None,
            beside: std::collections::BTreeMap::new(),
        }
    }
}

/// Measured times, in milliseconds.
#[derive(Debug, Default)]
pub struct Times(Vec<f64>);

impl Times {
    fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1000.0);
        self.0.sort_by(f64::total_cmp);
    }

    /// The smallest that so many of all are not above.
    fn quantile(&self, quantile: f64) -> f64 {
        let rank = (quantile * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }
}

/// What every figure starts from.
pub struct Stage<'a> {
    pub options: &'a Options,
    pub folder: PathBuf,
    pub weft: PathBuf,
}

/// A replica: an application and its sidecar.
pub struct Replica {
    pub application: Process,
    pub sidecar: Process,
}

pub fn run(options: &Options) -> Result<()> {
    let folder = crate::subjects::folder(&options.hop.out)?;
    let weft = crate::peers::find(crate::subjects::Subject::Weft, &options.hop)?;
    pin(options.hop.load_core)?;
    crate::subjects::identity::write(&folder)?;
    let stage = Stage {
        options,
        folder,
        weft: fs::canonicalize(weft)?,
    };
    let mut figures = Vec::new();
    for name in &options.figures {
        eprintln!("{name} …");
        let taken = match name.as_str() {
            "memory" => memory::take(&stage),
            "handshakes" => handshakes::take(&stage),
            "spread" => spread::take(&stage),
            "kill" => kill::take(&stage),
            other => bail!("no figure {other}; take memory, handshakes, spread or kill"),
        };
        for figure in taken.with_context(|| name.clone())? {
            println!("{}", line(&figure));
            figures.push(figure);
        }
    }
    let path = options.hop.out.join("mesh.json");
    fs::write(&path, serde_json::to_string_pretty(&figures)? + "\n")?;
    println!("\n{}", path.display());
    Ok(())
}

fn line(figure: &Figure) -> String {
    let verdict = figure.at_most.map_or(String::new(), |most| {
        let met = if figure.value <= most {
            "met"
        } else {
            "NOT MET"
        };
        format!("at most {most}: {met}")
    });
    let beside: String = figure
        .beside
        .iter()
        .map(|(name, value)| format!("  {name} {value:.1}"))
        .collect();
    format!(
        "{:<26} {:<8} {:>8.1} {:<20}{beside}  {verdict}",
        figure.case, figure.subject, figure.value, figure.unit
    )
}

/// The `number`th host, on loopback and away from other runs' and the tests'.
pub fn host(number: u16) -> Ipv4Addr {
    let own = u8::try_from(std::process::id() % 60).unwrap_or(0);
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 2 + own, high, low)
}

/// A workload on a host of its own.
pub fn workload(name: &str, number: u16) -> Workload<'_> {
    Workload {
        name,
        application: SocketAddr::from((host(number), APPLICATION_PORT)),
        inbound: SocketAddr::from((host(number), INBOUND_PORT)),
    }
}

pub fn admin(number: u16) -> SocketAddr {
    SocketAddr::from((host(number), ADMIN_PORT))
}

/// Where the `index`th of what it dials is, at a sidecar.
pub fn dialled(number: u16, index: u16) -> SocketAddr {
    SocketAddr::from((host(number), DIALLED_PORT + index))
}

impl Stage<'_> {
    /// Host 1 is the controller's.
    pub fn controller_admin(&self) -> SocketAddr {
        SocketAddr::from((host(1), 14_021))
    }

    /// An empty mesh and its controller.
    pub fn mesh(&self) -> Result<(Mesh, Process)> {
        let folder = self.folder.join("mesh");
        let mesh = Mesh::create(&folder, SocketAddr::from((host(1), 14_010)))?;
        let binary = self.weft.with_file_name("weft-controller");
        ensure!(
            binary.exists(),
            "no {}: cargo build --release -p weft-controller",
            binary.display()
        );
        let command = mesh.controller(&binary, self.controller_admin());
        let controller = self.start("weft-controller", &command, self.options.hop.load_core)?;
        until("the controller", || {
            Ok(get(self.controller_admin(), "/ready").is_ok())
        })?;
        Ok((mesh, controller))
    }

    pub fn start(&self, name: &str, command: &Command, core: usize) -> Result<Process> {
        Process::start(
            name,
            command,
            core,
            &self.folder.join(format!("mesh-{name}.log")),
        )
    }

    /// The bench's upstream as a workload's application.
    pub fn application(&self, workload: Workload<'_>) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        let port = workload.application.port();
        command.args(["upstream", "--host"]);
        command.arg(workload.application.ip().to_string());
        for (index, kind) in (0..).zip(["http1", "http2", "tcp"]) {
            command.arg(format!("--{kind}={}", port + index));
        }
        let name = format!("{}-application", workload.name);
        let application = self.start(&name, &command, self.options.hop.load_core)?;
        until("an application", || {
            Ok(TcpStream::connect(workload.application).is_ok())
        })?;
        Ok(application)
    }

    /// A replica on a host, its pod among the manifests, ready.
    pub fn replica(&self, mesh: &Mesh, name: &str, number: u16) -> Result<Replica> {
        let workload = workload(name, number);
        mesh.pod(workload)?;
        Ok(Replica {
            application: self.application(workload)?,
            sidecar: self.sidecar(mesh, workload, number, &[])?,
        })
    }

    /// A workload's sidecar on the subject's core, ready.
    pub fn sidecar(
        &self,
        mesh: &Mesh,
        workload: Workload<'_>,
        number: u16,
        dialled: &[(SocketAddr, &str)],
    ) -> Result<Process> {
        let command = mesh.sidecar(&self.weft, workload, admin(number), dialled)?;
        let sidecar = self.start(workload.name, &command, self.options.hop.subject_core)?;
        until("a sidecar", || Ok(get(admin(number), "/ready").is_ok()))?;
        Ok(sidecar)
    }
}

/// Looks again and again.
pub fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The body of a page that answers 200.
pub fn get(addr: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer's head")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{addr}{path}: {head}");
    Ok(body.to_owned())
}

/// The sum of a metric's series that have this in their labels.
pub fn metric(addr: SocketAddr, name: &str, label: &str) -> Result<f64> {
    let page = get(addr, "/metrics")?;
    let of = |line: &&str| line.starts_with(name) && line.contains(label);
    page.lines()
        .filter(of)
        .map(|line| Ok(line.rsplit(' ').next().unwrap_or_default().parse::<f64>()?))
        .sum()
}

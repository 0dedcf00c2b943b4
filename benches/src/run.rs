//! The order of a run: pin, start the upstream, then for each repeat each case
//! on each subject in turn (interleaved, so that a noisy minute of the machine
//! falls on all of them), each subject started fresh and ended by its pid; then
//! the report.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::case::{Case, Mode};
use crate::load::{self, Edge, Plan};
use crate::options::Options;
use crate::process::{Cpu, Process, pin};
use crate::report::{self, Sample};
use crate::subjects::{self, Running, Setup, Side, Subject};
use crate::upstream::{Ports, local};
use crate::{peers, plot};

/// Where free ports are looked for: below those that the kernel gives to
/// outgoing connections, which would take one between looking and listening.
const PORTS: std::ops::Range<u16> = 21_000..32_000;
const WARM_UP_MAX: Duration = Duration::from_secs(1);

struct Bench<'a> {
    options: &'a Options,
    folder: PathBuf,
    binaries: BTreeMap<Subject, PathBuf>,
    upstream: Ports,
    listen: u16,
    /// Where the second of a pair listens.
    between: u16,
    /// Of both of a pair, then the controller's two.
    admin: [u16; 4],
    tls: Arc<rustls::ClientConfig>,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(
        options.seconds >= 0.1 && options.seconds <= 3600.0,
        "--seconds takes 0.1 to 3600"
    );
    let folder = subjects::folder(&options.out)?;
    let binaries = binaries(options)?;
    pin(options.load_core)?;
    let [http1, http2, tcp, listen, between, admin @ ..] = free_ports::<9>()?;
    let upstream = Ports {
        host: Ipv4Addr::LOCALHOST,
        http1,
        http2,
        tcp,
    };
    let tls = load::tls::certificate(&folder)?;
    subjects::identity::write(&folder)?;
    let bench = Bench {
        options,
        folder,
        binaries,
        upstream,
        listen,
        between,
        admin,
        tls,
    };
    let _upstream = bench.start_upstream()?;
    let mut samples = Vec::new();
    let mut failures = Vec::new();
    for repeat in 1..=options.repeats {
        for &case in &options.cases {
            for &subject in &options.subjects {
                if !bench.binaries.contains_key(&subject) || !subject.can(case) {
                    continue;
                }
                match bench.measure(case, subject) {
                    Ok(sample) => {
                        eprintln!("{repeat}/{} {sample}", options.repeats);
                        samples.push(sample);
                    }
                    Err(error) => {
                        eprintln!(
                            "{repeat}/{} {case} {subject}: FAILED: {error:#}",
                            options.repeats
                        );
                        failures.push(format!("{case} {subject}: {error:#}"));
                    }
                }
            }
        }
    }
    finish(options, &samples, &failures)
}

fn finish(options: &Options, samples: &[Sample], failures: &[String]) -> Result<()> {
    let summaries = report::summarise(samples);
    let write = |name: &str, text: String| {
        let path = options.out.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("hop.json", report::json(&summaries)?)?;
    write("hop-runs.json", serde_json::to_string_pretty(samples)?)?;
    if !summaries.is_empty() {
        plot::draw(&summaries, &options.out.join("hop.svg"))?;
    }
    report::print(options, &summaries);
    if failures.is_empty() {
        return Ok(());
    }
    bail!(
        "{} measurement(s) failed:\n  {}",
        failures.len(),
        failures.join("\n  ")
    );
}

/// Those of the subjects asked for that are there.
fn binaries(options: &Options) -> Result<BTreeMap<Subject, PathBuf>> {
    let mut binaries = BTreeMap::new();
    for &subject in &options.subjects {
        match peers::find(subject, options) {
            Ok(path) => drop(binaries.insert(subject, fs::canonicalize(path)?)),
            Err(error) => eprintln!("{subject}: left out: {error:#}"),
        }
    }
    ensure!(
        !binaries.is_empty(),
        "nothing to measure: not one of the subjects is there"
    );
    Ok(binaries)
}

fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    // All held until all are found, so that they differ.
    let mut held = Vec::new();
    for port in PORTS {
        held.extend(TcpListener::bind(local(port)));
        if held.len() == COUNT {
            break;
        }
    }
    let ports: Vec<u16> = held
        .iter()
        .map(|held| held.local_addr().map(|addr| addr.port()))
        .collect::<Result<_, _>>()?;
    ports
        .try_into()
        .ok()
        .context("no free ports between 21000 and 32000 on 127.0.0.1")
}

impl Bench<'_> {
    fn start_upstream(&self) -> Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        let Ports {
            http1, http2, tcp, ..
        } = self.upstream;
        command.arg("upstream").arg(format!("--http1={http1}"));
        command
            .arg(format!("--http2={http2}"))
            .arg(format!("--tcp={tcp}"));
        let log = self.folder.join("upstream.log");
        let mut process = Process::start("upstream", &command, self.options.load_core, &log)?;
        for case in [Case::H1Small, Case::H2Small, Case::TcpStream] {
            let plan = self.plan(case, self.upstream_port(case.mode()));
            for attempt in 0.. {
                process.check_running(&log)?;
                match load::probe(&plan) {
                    Ok(()) => break,
                    Err(error) if attempt == 100 => {
                        return Err(error).context("the upstream does not answer");
                    }
                    Err(_not_ready) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        }
        Ok(process)
    }

    fn upstream_port(&self, mode: Mode) -> u16 {
        match mode {
            Mode::Http1 | Mode::Tls => self.upstream.http1,
            Mode::Http2 | Mode::Grpc => self.upstream.http2,
            Mode::Tcp => self.upstream.tcp,
        }
    }

    fn plan(&self, case: Case, port: u16) -> Plan {
        let window = Duration::from_secs_f64(self.options.seconds);
        Plan {
            case: case.load(),
            addr: local(port),
            warm_up: (window / 5).min(WARM_UP_MAX),
            window,
            connections: self.options.connections as usize,
            h2_connections: self.options.h2_connections as usize,
            idle: self.options.idle as usize,
            rate: self.options.rate,
            tls: Arc::clone(&self.tls),
        }
    }

    fn measure(&self, case: Case, subject: Subject) -> Result<Sample> {
        let mode = case.mode();
        // The one thing that nginx cannot: HTTP/2 to its upstream, but for gRPC.
        let upstream_mode = if subject == Subject::Nginx && mode == Mode::Http2 {
            Mode::Http1
        } else {
            mode
        };
        let [admin, other_admin, controller, controller_admin] = self.admin;
        let setup = Setup {
            mode,
            side: Side::Alone,
            between: subject.between(mode),
            listen: local(self.listen),
            upstream: local(self.upstream_port(upstream_mode)),
            admin: local(admin),
            controller: local(controller),
            controller_admin: local(controller_admin),
            folder: self.folder.clone(),
            binary: self
                .binaries
                .get(&subject)
                .context("a subject that was found")?
                .clone(),
        };
        let sides = if case.is_pair() {
            setup.pair(local(self.between), local(other_admin)).to_vec()
        } else {
            vec![setup]
        };
        let plan = self.plan(case, self.listen);
        let cores = (self.options.subject_core, self.options.load_core);
        let mut running = subjects::start(subject, &sides, &plan, cores)?;
        let mut readings = Vec::with_capacity(2);
        let outcome = load::run(&plan, &mut |edge| {
            let rss = if edge == Edge::End {
                running.rss_bytes()?
            } else {
                0
            };
            readings.push((running.cpu()?, rss));
            Ok(())
        });
        let outcome = outcome.with_context(|| ended(&mut running))?;
        let &[(before, _), (after, rss_bytes)] = readings.as_slice() else {
            bail!("a window without its two ends")
        };
        sample(
            case,
            subject,
            &outcome,
            (before, after),
            (running.rss_start_bytes, rss_bytes),
        )
    }
}

/// Whether the subject was still there when its case failed.
fn ended(running: &mut Running) -> String {
    match running.check_running() {
        Ok(()) => format!("under load (log: {})", running.log.display()),
        Err(error) => format!("under load: {error:#}"),
    }
}

fn sample(
    case: Case,
    subject: Subject,
    outcome: &load::Outcome,
    (before, after): (Cpu, Cpu),
    (rss_start_bytes, rss_bytes): (u64, u64),
) -> Result<Sample> {
    ensure!(
        outcome.requests > 0,
        "not one request in the window: more --seconds"
    );
    let requests = outcome.requests as f64;
    let (user_us, system_us) = after.since(before);
    let quantile = |quantile| outcome.latency_ns.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Sample {
        case,
        subject,
        cpu_user_us: user_us / requests,
        cpu_sys_us: system_us / requests,
        rps: requests / outcome.elapsed.as_secs_f64(),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        p999_us: quantile(0.999),
        rss_bytes,
        rss_start_bytes,
        requests: outcome.requests,
    })
}

//! From kill -9 of a replica to the last try that its caller sends there, with nobody
//! telling the caller: one of three replicas under load, application and sidecar
//! killed at once, or the application alone, whose sidecar then says "unprocessed".
//! A try that fails is counted by the caller; its count is looked at every few
//! milliseconds for as long as an ejection lasts. Every request must be answered.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{Figure, Stage, Times, admin, dialled, get, until, workload};
use crate::case::Case;
use crate::load::{self, Plan};
use crate::mesh::Workload;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// How long it is looked: less than the first ejection.
const WATCHED: Duration = Duration::from_secs(3);
const CONNECTIONS: usize = 16;

pub fn take(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    [
        ("mesh-kill-replica", true),
        ("mesh-kill-application", false),
    ]
    .into_iter()
    .map(|(case, sidecar_too)| {
        let (mut times, mut tries) = (Times::default(), 0.0);
        for _kill in 0..stage.options.kills {
            let (time, failed) = kill(stage, sidecar_too)?;
            times.push(time);
            tries += failed;
        }
        let kills = f64::from(stage.options.kills);
        let mut figure = Figure::new(case, times.quantile(1.0), "ms, slowest");
        figure.beside.insert("kills", kills);
        figure.beside.insert("p50_ms", times.quantile(0.5));
        figure.beside.insert("tries_each", tries / kills);
        figure.beside.insert("lost", 0.0);
        Ok(figure)
    })
    .collect()
}

fn kill(stage: &Stage<'_>, sidecar_too: bool) -> Result<(Duration, f64)> {
    let (mesh, _controller) = stage.mesh()?;
    let named = [("k0", 10), ("k1", 11), ("k2", 12)];
    let mut replicas = named
        .iter()
        .map(|&(name, number)| stage.replica(&mesh, name, number))
        .collect::<Result<Vec<_>>>()?;
    let workloads: Vec<Workload<'_>> = named
        .iter()
        .map(|&(name, number)| workload(name, number))
        .collect();
    mesh.service("up", "http", &workloads)?;
    let client = workload("client", 20);
    mesh.pod(client)?;
    let front = dialled(20, 0);
    let _sidecar = stage.sidecar(&mesh, client, 20, &[(front, "up")])?;
    until("the service", || Ok(get(front, "/64").is_ok()))?;
    let plan = Plan {
        case: Case::H1Small,
        addr: front,
        warm_up: Duration::from_secs(1),
        window: WATCHED + Duration::from_millis(500),
        connections: CONNECTIONS,
        h2_connections: 0,
        idle: 0,
        rate: 0,
        tls: load::tls::certificate(&stage.folder)?,
    };
    let victim = replicas.pop().context("a replica")?;
    thread::scope(|scope| {
        let load = scope.spawn(|| load::run(&plan, &mut |_edge| Ok(())));
        thread::sleep(Duration::from_millis(1200));
        let before = failed()?;
        let killed = Instant::now();
        victim.application.signal(Signal::KILL);
        if sidecar_too {
            victim.sidecar.signal(Signal::KILL);
        }
        let (mut last, mut count) = (Duration::ZERO, before);
        while killed.elapsed() < WATCHED {
            thread::sleep(LOOK);
            let now = failed()?;
            if now > count {
                (last, count) = (killed.elapsed(), now);
            }
        }
        let outcome = load
            .join()
            .map_err(|_panic| anyhow::anyhow!("the load panicked"))?;
        outcome.context("a request was lost")?;
        ensure!(count > before, "the caller never noticed");
        Ok((last, count - before))
    })
}

/// Tries of the caller that failed, whether tried again or not.
fn failed() -> Result<f64> {
    super::metric(admin(20), "weft_retries_total", "service=")
}

//! From an endpoint's change in the directory to the last of many sidecars: real
//! processes, each using the service that changes. A sidecar acknowledges what it has
//! published, so the controller's /status says when it has it; looked at every few
//! milliseconds, which are part of the figure.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_config::status::Status;

use super::{Figure, PATIENCE, Stage, Times, admin, dialled, get, until, workload};
use crate::process::Process;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// Between two changes.
const REST: Duration = Duration::from_millis(100);
const P99_MAX_MS: f64 = 100.0;
/// Hosts of the sidecars, from this on.
const FIRST: u16 = 256;

pub fn take(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let (mesh, controller) = stage.mesh()?;
    let (one, other) = (workload("one", 10), workload("other", 11));
    mesh.pod(one)?;
    mesh.pod(other)?;
    mesh.service("changing", "http", &[one])?;
    let proxies = stage.options.proxies;
    let names: Vec<String> = (0..proxies).map(|number| format!("p{number}")).collect();
    let mut sidecars: Vec<Process> = Vec::new();
    for (name, number) in names.iter().zip(FIRST..) {
        let own = workload(name, number);
        mesh.pod(own)?;
        let listener = [(dialled(number, 0), "changing")];
        let command = mesh.sidecar(&stage.weft, own, admin(number), &listener)?;
        // On both cores: two hundred are not one's.
        let cores = [stage.options.hop.subject_core, stage.options.hop.load_core];
        sidecars.push(stage.start(name, &command, cores[usize::from(number) % 2])?);
    }
    let connected = || -> Result<bool> {
        let status = status(stage)?;
        let all = status.proxies.len() == usize::from(proxies);
        Ok(all
            && status
                .proxies
                .iter()
                .all(|proxy| proxy.acknowledged == status.revision && proxy.resources > 2))
    };
    until("all sidecars having everything", connected)?;
    sleep(Duration::from_secs(2));
    let mut times = Times::default();
    for change in 0..stage.options.changes {
        let before = status(stage)?.revision;
        let (both, single) = ([one, other], [one]);
        let changed = Instant::now();
        mesh.endpoints("changing", if change % 2 == 0 { &both } else { &single })?;
        times.push(last(stage, before, changed)?);
        sleep(REST);
    }
    let rss: u64 = sidecars
        .iter()
        .map(Process::rss_bytes)
        .sum::<Result<u64>>()?;
    let mut figure = Figure::new(
        format!("mesh-spread-{proxies}"),
        times.quantile(0.99),
        "ms, p99",
    );
    figure.at_most = Some(P99_MAX_MS);
    figure
        .beside
        .insert("changes", f64::from(stage.options.changes));
    figure.beside.insert("p50_ms", times.quantile(0.5));
    figure.beside.insert("max_ms", times.quantile(1.0));
    figure.beside.insert(
        "rss_each_mib",
        rss as f64 / f64::from(proxies) / 1024.0 / 1024.0,
    );
    figure.beside.insert(
        "rss_controller_mib",
        controller.rss_bytes()? as f64 / 1024.0 / 1024.0,
    );
    Ok(vec![figure])
}

/// How long after `changed` all had a later revision than `before`.
fn last(stage: &Stage<'_>, before: u64, changed: Instant) -> Result<Duration> {
    loop {
        sleep(LOOK);
        let status = status(stage)?;
        let seen = changed.elapsed();
        let all = status
            .proxies
            .iter()
            .all(|proxy| proxy.acknowledged > before);
        if status.revision > before && all {
            ensure!(
                status.proxies.len() == usize::from(stage.options.proxies),
                "a sidecar is gone"
            );
            return Ok(seen);
        }
        ensure!(seen < PATIENCE, "a change has not reached everybody");
    }
}

fn status(stage: &Stage<'_>) -> Result<Status> {
    let page = get(stage.controller_admin(), "/status")?;
    serde_json::from_str(&page).context("the controller's status")
}

//! Memory of a sidecar: with one service, and with so many in use, each of three
//! replicas or of one, and asked again and again. One worker; RSS as the kernel counts it, which
//! includes the pages of the program that all sidecars of a host share (`anonymous`
//! does not).

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Figure, Stage, dialled, get, until, workload};
use crate::mesh::Workload;

const REPLICAS: u16 = 3;
/// How long they are in use, each asked about once a second: what starting and
/// learning took for a moment has been given back by then.
const USED_FOR: Duration = Duration::from_secs(15);
const MIB: f64 = 1024.0 * 1024.0;
const WITH_100_MAX_MIB: f64 = 12.0;

pub fn take(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let services = stage.options.services;
    let (mesh, _controller) = stage.mesh()?;
    let names: Vec<String> = (0..REPLICAS).map(|number| format!("r{number}")).collect();
    let numbered = || names.iter().zip(10..);
    let _replicas = numbered()
        .map(|(name, number)| stage.replica(&mesh, name, number))
        .collect::<Result<Vec<_>>>()?;
    let workloads: Vec<Workload<'_>> = numbered()
        .map(|(name, number)| workload(name, number))
        .collect();
    let dialled_names: Vec<String> = (0..services).map(|index| format!("s{index}")).collect();
    let listeners: Vec<(SocketAddr, &str)> = (0..services)
        .zip(&dialled_names)
        .map(|(index, name)| (dialled(20, index), name.as_str()))
        .collect();
    let client = workload("client", 20);
    mesh.pod(client)?;
    let mut figures = Vec::new();
    for (count, replicas) in [(1, REPLICAS), (services, REPLICAS), (services, 1)] {
        for (name, index) in dialled_names.iter().zip(0..) {
            // Of one replica: each replica has its share of the services.
            let first = if replicas == 1 {
                index % usize::from(REPLICAS)
            } else {
                0
            };
            let by = &workloads[first..first + usize::from(replicas)];
            mesh.service(name, "http", by)?;
        }
        let used = &listeners[..usize::from(count)];
        let sidecar = stage.sidecar(&mesh, client, 20, used)?;
        use_all(used)?;
        let value = sidecar.rss_bytes()? as f64 / MIB;
        let mut figure = Figure::new(format!("mesh-rss-{count}x{replicas}"), value, "MiB");
        let anonymous = sidecar.anonymous_bytes()? as f64 / MIB;
        figure.beside.insert("anonymous_mib", anonymous);
        figure.at_most = (count == 100).then_some(WITH_100_MAX_MIB);
        figures.push(figure);
    }
    Ok(figures)
}

fn use_all(used: &[(SocketAddr, &str)]) -> Result<()> {
    for &(addr, service) in used {
        until(service, || Ok(get(addr, "/64").is_ok()))?;
    }
    let begun = Instant::now();
    while begun.elapsed() < USED_FOR {
        let round = Instant::now();
        for &(addr, service) in used {
            let body = get(addr, "/64")?;
            ensure!(
                body.len() == crate::case::SMALL_BYTES,
                "{service}: {body:?}"
            );
        }
        sleep(Duration::from_secs(1).saturating_sub(round.elapsed()));
    }
    Ok(())
}

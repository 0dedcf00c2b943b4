//! Clocks that are an hour off, of real processes (faketime): whoever judges a certificate by one
//! that is behind or ahead takes part in the mesh like anybody else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weft_tests::curl::curl;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::Mesh;
use weft_tests::stepping_aside;
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, eventually_within};

/// Seconds.
const HOUR: u64 = 3600;

#[test]
fn sidecars_an_hour_behind_and_ahead_serve_and_are_served() {
    if stepping_aside("faketime") {
        return;
    }
    let mut mesh = Mesh::start();
    let mut replicas = Vec::new();
    for clock in ["-1h", "+1h", "+0s"] {
        mesh.clock = clock.to_owned();
        let sidecar = mesh.sidecar("web", &[]);
        let application = Upstream::echo_at(sidecar.application(), clock);
        replicas.push((sidecar, application));
    }
    let sidecars: Vec<_> = replicas.iter().map(|(sidecar, _)| sidecar).collect();
    mesh.service("web", &sidecars);
    for clock in ["-1h", "+1h"] {
        mesh.clock = clock.to_owned();
        let client = mesh.sidecar("client", &["web.shop:80"]);
        let load = Load::start(client.upstreams[0], Mode::Post, 3);
        load.goes_on(60);
        load.stop().none_lost();
        let answer = curl(&[&format!("http://{}/", client.upstreams[0])]);
        assert_eq!(answer.status, 200, "{clock}: {answer:?}");
        let log = client.proxy.program.output();
        assert!(!log.contains("refused"), "{clock}: {log}");
    }
    for (sidecar, application) in &replicas {
        assert!(application.count() > 0, "{}: nobody came", sidecar.uid);
    }
    mesh.settled();
    assert_eq!(mesh.status().proxies.len(), replicas.len());
}

#[test]
fn a_controller_an_hour_behind_or_ahead_signs_what_everybody_believes() {
    if stepping_aside("faketime") {
        return;
    }
    for (controller, other) in [("-1h", "+1h"), ("+1h", "")] {
        let mut mesh = Mesh::start_clocked(controller);
        let _replicas = mesh.replicas(&["one", "two"]);
        mesh.clock = other.to_owned();
        let client = mesh.sidecar("client", &["web.shop:80"]);
        let load = Load::start(client.upstreams[0], Mode::Post, 3);
        load.goes_on(60);
        load.stop().none_lost();
        let status = mesh.status();
        assert_eq!(status.proxies.len(), 3, "{controller}");
        // Most of a day is left, by any of these clocks.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.expect("a clock after 1970").as_secs();
        for proxy in status.proxies {
            let left = proxy.certificate_expires.saturating_sub(now);
            assert!(left > 22 * HOUR, "{controller}: {left} s left: {proxy:?}");
        }
    }
}

/// Asleep for most of its certificate's life, or its clock set: the time that it slept is not what counts.
#[test]
fn a_clock_that_leaps_renews_the_certificate() {
    if stepping_aside("faketime") {
        return;
    }
    let mut mesh = Mesh::start();
    let clock = mesh.folder.path().join("clock");
    std::fs::write(&clock, "+0s").expect("it can be written");
    mesh.clock = clock.display().to_string();
    let sidecar = mesh.sidecar("web", &[]);
    let renewed = |count: usize| {
        let log = sidecar.proxy.program.output();
        (log.matches("new certificate identity").count() == count).then_some(())
    };
    eventually("its first certificate", || renewed(1));
    // The controller's clock stays: it is not the one that sends everybody for another.
    std::fs::write(&clock, "+20h").expect("it can be written");
    // It looks every ten seconds.
    let patience = Duration::from_secs(40);
    eventually_within(patience, "another certificate", || renewed(2));
    let log = sidecar.proxy.program.output();
    assert!(!log.contains("no new certificate"), "{log}");
}

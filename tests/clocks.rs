//! Clocks that are an hour off, of real processes (faketime): whoever judges a certificate by one
//! that is behind or ahead takes part in the mesh like anybody else.

use std::time::{SystemTime, UNIX_EPOCH};

use weft_tests::curl::curl;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::Mesh;
use weft_tests::stepping_aside;
use weft_tests::upstream::Upstream;

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
        mesh.clock = clock;
        let sidecar = mesh.sidecar("web", &[]);
        let application = Upstream::echo_at(sidecar.application(), clock);
        replicas.push((sidecar, application));
    }
    let sidecars: Vec<_> = replicas.iter().map(|(sidecar, _)| sidecar).collect();
    mesh.service("web", &sidecars);
    for clock in ["-1h", "+1h"] {
        mesh.clock = clock;
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
        mesh.clock = other;
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

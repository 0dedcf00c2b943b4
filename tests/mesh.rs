//! Two sidecars and a controller make a mesh: mTLS between them, routes and policies from manifests,
//! a drain barrier that loses nothing, and a controller whose death nobody notices.

use std::process::Command;

use weft_tests::curl::curl;
use weft_tests::eventually;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::{Mesh, Sidecar};
use weft_tests::process::Signal;
use weft_tests::upstream::Upstream;

/// `shop/web` with as many replicas as names, and a client of it.
fn shop(names: &[&'static str]) -> (Mesh, Vec<(Sidecar, Upstream)>, Sidecar) {
    let mesh = Mesh::start();
    let replicas: Vec<(Sidecar, Upstream)> = names
        .iter()
        .map(|name| {
            let sidecar = mesh.sidecar("web", &[]);
            let application = Upstream::echo_at(sidecar.application(), name);
            (sidecar, application)
        })
        .collect();
    let sidecars: Vec<&Sidecar> = replicas.iter().map(|(sidecar, _)| sidecar).collect();
    mesh.service("web", &sidecars);
    let client = mesh.sidecar("client", &["web.shop:80"]);
    (mesh, replicas, client)
}

fn url(client: &Sidecar, path: &str) -> String {
    format!("http://{}{path}", client.upstreams[0])
}

#[test]
fn requests_reach_the_service_by_mtls() {
    let (mesh, replicas, client) = shop(&["one"]);
    // The application speaks HTTP/1.1 only, as most do.
    let answer = curl(&[&url(&client, "/a")]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(replicas[0].1.last().target(), "/a");
    let handshakes = |sidecar: &Sidecar, direction: &str| {
        let labels = [("direction", direction), ("result", "ok")];
        sidecar
            .proxy
            .metrics()
            .sum("weft_mesh_handshakes_total", &labels)
    };
    assert!(handshakes(&client, "outbound") >= 1.0);
    assert!(handshakes(&replicas[0].0, "inbound") >= 1.0);
    let status = mesh.status();
    assert_eq!(status.proxies.len(), 2, "{status:#?}");
    assert!(
        status.proxies.iter().all(|proxy| proxy.refused.is_empty()),
        "{status:#?}"
    );
    let identities: Vec<&str> = status
        .proxies
        .iter()
        .map(|proxy| proxy.identity.as_str())
        .collect();
    assert!(
        identities.contains(&"spiffe://cluster.local/ns/shop/sa/web"),
        "{status:#?}"
    );
}

#[test]
fn strangers_are_refused() {
    let (_mesh, replicas, _client) = shop(&["one"]);
    let inbound = replicas[0].0.inbound().to_string();
    let plain = curl(&[&format!("http://{inbound}/")]);
    assert_ne!(plain.exit, 0, "{plain:?}");
    let name = format!("p8080.{}.workload.weft", replicas[0].0.uid);
    for (alpn, server_name) in [
        ("h2", name.as_str()),
        ("weft-http/1.1", &name),
        ("weft-http/1.1", "p8080.other.workload.weft"),
    ] {
        let output = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &inbound,
                "-alpn",
                alpn,
                "-servername",
                server_name,
                "-ign_eof",
            ])
            .stdin(std::process::Stdio::null())
            .output()
            .expect("openssl can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            !text.contains("HTTP/1.1 200"),
            "{alpn} {server_name}: {text}"
        );
    }
    let refused = |reason: &str| {
        let labels = [("direction", "inbound"), ("result", reason)];
        replicas[0]
            .0
            .proxy
            .metrics()
            .sum("weft_mesh_handshakes_total", &labels)
    };
    eventually("the refusals being counted", || {
        let all = [
            refused("mtls_required"),
            refused("not_ours"),
            refused("no_certificate"),
        ];
        (all[0] >= 2.0 && all[1] >= 1.0 && all[2] >= 1.0).then_some(())
    });
}

#[test]
fn a_policy_denies_and_says_so() {
    let (mesh, _replicas, client) = shop(&["one"]);
    mesh.apply(
        "policy",
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: reads, namespace: shop}\n\
         spec:\n  targetRefs: [{kind: Service, name: web}]\n  action: allow\n  rules:\n  - from: [{identities: ['spiffe://cluster.local/ns/shop/sa/client']}]\n    to: [{methods: [GET], paths: ['/public/*']}]\n",
    );
    eventually("the policy being in force", || {
        (curl(&[&url(&client, "/private")]).status == 403).then_some(())
    });
    let denied = curl(&["-i", &url(&client, "/private")]);
    assert!(
        denied.text().contains("no allow policy matches"),
        "{denied:?}"
    );
    assert_eq!(curl(&[&url(&client, "/public/a")]).status, 200);
    assert_eq!(
        curl(&["-X", "POST", &url(&client, "/public/a")]).status,
        403
    );
    assert_eq!(
        curl(&["--path-as-is", &url(&client, "/public/../private")]).status,
        403
    );
}

#[test]
fn a_route_sends_a_share_elsewhere() {
    let (mesh, _replicas, client) = shop(&["one"]);
    let next = mesh.sidecar("next", &[]);
    let application = Upstream::echo_at(next.application(), "two");
    mesh.service("next", &[&next]);
    let route = |backends: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: canary, namespace: shop}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: web, port: 80}}], rules: [{{backendRefs: [{backends}]}}]}}\n"
        )
    };
    // A Service without a ClusterIP takes routes by its name all the same.
    mesh.apply("route", &route("{name: next, port: 80}"));
    eventually("the route being in force", || {
        curl(&[&url(&client, "/")]);
        (application.count() > 0).then_some(())
    });
    mesh.apply("route", &route("{name: none, port: 80}"));
    eventually("the missing backend's share being 500", || {
        (curl(&[&url(&client, "/")]).status == 500).then_some(())
    });
    let status = mesh.status();
    let route = status.objects.iter().find(|object| object.name == "canary");
    let conditions = &route.expect("it has a status").conditions;
    assert!(
        conditions
            .iter()
            .any(|condition| condition.reason == "BackendNotFound"),
        "{conditions:?}"
    );
}

#[test]
fn a_replica_that_leaves_through_the_barrier_loses_nothing() {
    let (mesh, mut replicas, client) = shop(&["one", "two", "three"]);
    let loads = [
        Load::start(client.upstreams[0], Mode::KeepAlive, 4),
        Load::start(client.upstreams[0], Mode::ConnectEach, 2),
    ];
    for load in &loads {
        load.goes_on(50);
    }
    for _ in 0..2 {
        let (mut leaving, mut application) = replicas.remove(0);
        let left = leaving.drain();
        assert_eq!(left["users"], 1, "{left}");
        assert_eq!(left["acknowledged"], 1, "{left}");
        assert_eq!(left["inFlight"], 0, "{left}");
        // Nothing will come: it may go at once.
        application.stop();
        drop(application);
        leaving.proxy.program.kill();
        let sidecars: Vec<&Sidecar> = replicas.iter().map(|(sidecar, _)| sidecar).collect();
        mesh.service("web", &sidecars);
        for load in &loads {
            load.goes_on(50);
        }
    }
    for load in loads {
        load.stop().none_lost();
    }
}

#[test]
fn a_controller_that_dies_is_not_missed() {
    let (mut mesh, mut replicas, client) = shop(&["one", "two"]);
    let load = Load::start(client.upstreams[0], Mode::KeepAlive, 4);
    load.goes_on(50);
    mesh.controller.signal(Signal::KILL);
    load.goes_on(200);
    // A replica dies meanwhile: its sidecar answers that the request was not processed.
    let (_sidecar, application) = &mut replicas[0];
    application.stop();
    load.goes_on(200);
    mesh.restart_controller();
    eventually("everybody being back", || {
        (mesh.status().proxies.len() == 3).then_some(())
    });
    mesh.settled();
    load.goes_on(50);
    load.stop().none_lost();
}

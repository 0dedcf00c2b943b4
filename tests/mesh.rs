//! Two sidecars and a controller make a mesh: mTLS between them, routes and policies from manifests,
//! a drain barrier that loses nothing, and a controller whose death nobody notices.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use serde_json::Value;

use weft_tests::curl::curl;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::{Mesh, Sidecar};
use weft_tests::process::{Program, Signal};
use weft_tests::raw::Raw;
use weft_tests::root_change::RootChange;
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, script};

/// `shop/web` with as many replicas as names, and a client of it.
fn shop(names: &[&'static str]) -> (Mesh, Vec<(Sidecar, Upstream)>, Sidecar) {
    let mesh = Mesh::start();
    let replicas = mesh.replicas(names);
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

/// It runs still, and may have to ask others to finish what it has begun.
#[test]
fn what_a_workload_that_leaves_dials_goes_on() {
    let (_mesh, _replicas, client) = shop(&["one"]);
    let mut http1 = Raw::connect(client.upstreams[0]);
    assert_eq!(http1.get("/").status, 200);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let (mut http2, driver) = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(client.upstreams[0]).await;
        let stream = stream.expect("the sidecar accepts");
        let (http2, driver) = h2::client::handshake(stream).await.expect("it is HTTP/2");
        (http2, tokio::spawn(driver))
    });
    let mut get = || {
        runtime.block_on(async {
            let request = http::Request::get("http://web.shop/").body(());
            let request = request.expect("the request is valid");
            let (answer, _) = http2.send_request(request, true)?;
            answer.await.map(|answer| answer.status())
        })
    };
    // The application speaks HTTP/1.1 only: that it cannot be asked is an answer, too.
    assert_eq!(get().expect("an answer"), 502);
    assert_eq!(client.drain()["inFlight"], 0);
    for _ in 0..3 {
        let answer = http1.get("/");
        assert_eq!((answer.status, answer.header("connection")), (200, None));
        assert_eq!(get().expect("the connection goes on"), 502);
    }
    assert!(!driver.is_finished(), "the connection has ended");
}

#[test]
fn a_controller_that_starts_anew_is_told_who_leaves() {
    let (mut mesh, replicas, _client) = shop(&["one", "two"]);
    mesh.controller.kill();
    let (leaving, _application) = &replicas[0];
    assert_eq!(leaving.drain()["users"], Value::Null);
    mesh.restart_controller();
    eventually("the controller knowing it", || {
        let status = mesh.status();
        let mut proxies = status.proxies.iter();
        let proxy = proxies.find(|proxy| proxy.workload == leaving.uid)?;
        proxy.leaving.then_some(())
    });
}

#[test]
fn sigterm_passes_the_barrier_too() {
    let (mesh, mut replicas, client) = shop(&["one", "two"]);
    let loads = [
        Load::start(client.upstreams[0], Mode::KeepAlive, 4),
        Load::start(client.upstreams[0], Mode::ConnectEach, 2),
    ];
    for load in &loads {
        load.goes_on(50);
    }
    let (mut leaving, mut application) = replicas.remove(0);
    leaving.proxy.signal(Signal::TERM);
    let log = leaving.proxy.folder.path().join("weft-proxy.log");
    eventually("the barrier being passed", || {
        let log = fs::read_to_string(&log).ok()?;
        let passed = log.contains("nothing more will reach the application");
        let told = log.contains("users: Some(1), acknowledged: 1, in_flight: 0");
        (passed && told).then_some(())
    });
    // It still listens for a moment, and nobody comes.
    application.stop();
    assert!(leaving.proxy.program.ended().success());
    mesh.service("web", &[&replicas[0].0]);
    for load in &loads {
        load.goes_on(50);
    }
    for load in loads {
        load.stop().none_lost();
    }
}

#[test]
fn what_comes_after_the_barrier_goes_elsewhere() {
    let (mut mesh, replicas, client) = shop(&["one", "two"]);
    for _ in 0..20 {
        assert_eq!(curl(&[&url(&client, "/")]).status, 200);
    }
    // Nobody tells the client, as nobody tells a request that has picked its endpoint already.
    mesh.controller.kill();
    let (leaving, application) = &replicas[0];
    let left = leaving.drain();
    assert_eq!(left["inFlight"], 0, "{left}");
    let before = application.count();
    for _ in 0..10 {
        // Nobody may send it twice, unless it is said that the application has not seen it.
        let answer = curl(&["-d", "an order", &url(&client, "/order")]);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(application.count(), before, "its application was asked");
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

/// Echoes what connections send, where a sidecar's application is.
fn echo(sidecar: &Sidecar) {
    let listener = TcpListener::bind(sidecar.application()).expect("the address is free");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut reader = stream.try_clone().expect("a stream can be shared");
                let _ = std::io::copy(&mut reader, &mut stream);
            });
        }
    });
}

/// Sends a line to `address` that is no request, and reads it back.
fn echoed(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(weft_tests::PATIENCE))?;
    stream.write_all(b"\x01\x02 no request\n")?;
    let mut back = [0; 14];
    stream.read_exact(&mut back)?;
    Ok(&back == b"\x01\x02 no request\n")
}

#[test]
fn opaque_bytes_go_elsewhere_when_a_replica_leaves() {
    let mesh = Mesh::start();
    let replicas = [mesh.sidecar("db", &[]), mesh.sidecar("db", &[])];
    for replica in &replicas {
        echo(replica);
    }
    mesh.service("db", &[&replicas[0], &replicas[1]]);
    let client = mesh.sidecar("client", &["db.shop:80"]);
    let connect = || echoed(client.upstreams[0]).expect("it is echoed");
    assert!((0..20).all(|_| connect()));
    // Nobody can be told of it: the replica's own word has to do.
    mesh.controller.signal(Signal::KILL);
    let opened = |replica: &Sidecar| {
        let labels = [("direction", "inbound"), ("result", "ok")];
        replica
            .proxy
            .metrics()
            .sum("weft_mesh_handshakes_total", &labels)
    };
    let left = thread::scope(|scope| {
        let leaving = scope.spawn(|| replicas[0].drain());
        while !leaving.is_finished() {
            assert!(connect());
        }
        leaving.join().expect("it does not panic")
    });
    assert_eq!(left["users"], Value::Null, "{left}");
    assert_eq!(left["inFlight"], 0, "{left}");
    let before = opened(&replicas[0]);
    assert!((0..20).all(|_| connect()));
    let after = opened(&replicas[0]);
    assert!(after <= before, "{before} {after}: it is still used");
}

#[test]
fn grpc_and_websockets_pass() {
    let mesh = Mesh::start();
    let (rpc, socket) = (mesh.sidecar("rpc", &[]), mesh.sidecar("socket", &[]));
    let serve = |name: &str, sidecar: &Sidecar| {
        let mut command = script(name);
        command.arg(sidecar.application().port().to_string());
        command.arg(sidecar.application().ip().to_string());
        let mut program = Program::start(name, &mut command, mesh.folder.path());
        program.accepts(sidecar.application());
        program
    };
    let _servers = [
        serve("grpc_server.py", &rpc),
        serve("websocket_server.py", &socket),
    ];
    mesh.service("rpc", &[&rpc]);
    mesh.service("socket", &[&socket]);
    let client = mesh.sidecar("client", &["rpc.shop:80", "socket.shop:80"]);
    let rpc_address = client.upstreams[0].to_string();
    let chat = format!("ws://{}/chat?room=1", client.upstreams[1]);
    for (name, arguments) in [
        ("grpc_client.py", vec![rpc_address.as_str(), "calls"]),
        ("grpc_client.py", vec![rpc_address.as_str(), "many"]),
        ("grpc_client.py", vec![rpc_address.as_str(), "deadline"]),
        ("websocket_client.py", vec![chat.as_str()]),
    ] {
        let output = script(name).args(&arguments).output();
        let output = output.expect("Python runs; `make test` installs it");
        assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
    }
}

#[test]
fn the_root_is_changed_under_load() {
    let (mesh, replicas, client) = shop(&["one", "two"]);
    let loads = [
        Load::start(client.upstreams[0], Mode::KeepAlive, 2),
        Load::start(client.upstreams[0], Mode::ConnectEach, 2),
    ];
    let go_on = || loads.iter().for_each(|load| load.goes_on(50));
    let sidecars: Vec<&Sidecar> = replicas.iter().map(|(sidecar, _)| sidecar).collect();
    let change = RootChange::begin(&mesh);
    go_on();
    change.trust_both();
    go_on();
    change.sign_with_new(&[&sidecars[..], &[&client]].concat());
    go_on();
    change.drop_old();
    go_on();
    for load in loads {
        load.stop().none_lost();
    }
}

#[test]
fn a_sidecar_s_own_page_says_what_is_wrong() {
    let (mut mesh, _replicas, client) = shop(&["one"]);
    let page = || -> Value {
        serde_json::from_slice(&client.proxy.ask("/mesh").body).expect("it answers JSON")
    };
    let told = page();
    assert_eq!(
        told["identity"], "spiffe://cluster.local/ns/shop/sa/client",
        "{told}"
    );
    assert_eq!(told["controller"], mesh.listen.to_string(), "{told}");
    assert_eq!(told["resources"]["Endpoints"], 1, "{told}");
    mesh.controller.kill();
    eventually("the loss being told", || {
        page()["problem"].is_string().then_some(())
    });
}

#[test]
fn a_sidecar_is_replaced_under_load() {
    let (mesh, _replicas, client) = shop(&["one"]);
    let load = Load::start(client.upstreams[0], Mode::ConnectEach, 2);
    load.goes_on(50);
    // The next process has the certificate of the one before, and asks for what it dials.
    client.proxy.signal(Signal::USR2);
    eventually("the old process having left", || {
        let left = fs::read_to_string(client.proxy.folder.path().join("weft-proxy.log"));
        left.ok()?.contains("the end").then_some(())
    });
    load.goes_on(50);
    load.stop().none_lost();
    mesh.settled();
}

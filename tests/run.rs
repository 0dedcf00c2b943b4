//! `weft run`: one application with its sidecar. It is reached by mTLS, leaves without a loss though
//! it ends at once on SIGTERM, and neither its sidecar's death nor weft's own leaves anything behind.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use weft_tests::curl::curl;
use weft_tests::eventually;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::{Mesh, own_address};
use weft_tests::process::{Program, Signal, signal_pid};
use weft_tests::weft::{Run, weft};

/// `shop/web`, whose endpoints are written by `weft run`.
fn shop() -> Mesh {
    let mesh = Mesh::start();
    mesh.service("web", &[]);
    mesh
}

fn shell(script: &'static str) -> impl FnOnce(IpAddr) -> Vec<String> {
    move |_| ["sh", "-c", script].map(str::to_owned).to_vec()
}

fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

/// What the manifest says of the endpoint: is it ready?
fn is_ready(manifest: &Path) -> Option<bool> {
    let text = fs::read_to_string(manifest).ok()?;
    let json = text.lines().skip(1).collect::<Vec<_>>().join("\n");
    let list: Value = serde_json::from_str(&json).expect("it is whole");
    list.pointer("/items/1/endpoints/0/conditions/ready")?
        .as_bool()
}

#[test]
fn an_application_is_reached_by_mtls_and_reaches_others() {
    let mesh = shop();
    let mut server = Run::echo(&mesh, "web");
    assert_eq!(is_ready(&server.manifest), Some(true));
    // The client is an application under `weft run` too, with an upstream.
    let dialled = weft_tests::port::free_address();
    let upstream = format!("{dialled}=web:80");
    let mut client = Run::start(
        &mesh,
        "client",
        |command| {
            command.args(["--upstream", &upstream]);
        },
        shell("exec sleep 1000"),
    );
    client.sidecar_is_ready();
    eventually("an answer through both sidecars", || {
        let answer = curl(&[&format!("http://{dialled}/hello")]);
        (answer.status == 200 && answer.text() == "/hello").then_some(())
    });
    let metrics = curl(&[&format!("http://{}/metrics", server.admin())]).text();
    let handshakes = "weft_mesh_handshakes_total{direction=\"inbound\",result=\"ok\"";
    assert!(metrics.contains(handshakes), "{metrics}");
    for run in [&mut client, &mut server] {
        run.program.signal(Signal::TERM);
        let ended = run.program.ended();
        assert_eq!(ended.code(), Some(143), "{}", run.program.output());
        assert!(!run.manifest.exists(), "the manifest is left");
    }
    assert!(server.program.output().contains("the drain barrier:"));
}

#[test]
fn a_rollout_loses_nothing_though_applications_exit_at_once() {
    let mesh = shop();
    let mut replicas: Vec<Run> = (0..3).map(|_| Run::echo(&mesh, "web")).collect();
    let client = mesh.sidecar("client", &["web.shop:80"]);
    let loads = [
        Load::start(client.upstreams[0], Mode::KeepAlive, 4),
        Load::start(client.upstreams[0], Mode::ConnectEach, 2),
    ];
    let go_on = || loads.iter().for_each(|load| load.goes_on(100));
    go_on();
    for _ in 0..3 {
        let mut leaving = replicas.remove(0);
        leaving.program.signal(Signal::TERM);
        assert_eq!(leaving.program.ended().code(), Some(143));
        let said = leaving.program.output();
        assert!(said.contains("1 of 1 callers have acknowledged"), "{said}");
        go_on();
        replicas.push(Run::echo(&mesh, "web"));
        go_on();
    }
    for load in loads {
        load.stop().none_lost();
    }
}

#[test]
fn the_application_s_exit_code_is_passed_on() {
    let mesh = shop();
    for (application, code) in [
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("exit 0", 0),
        ("exec /nonexistent/program", 127),
    ] {
        let mut run = Run::start(&mesh, "web", |_| (), shell(application));
        assert_eq!(
            run.program.ended().code(),
            Some(code),
            "{application}: {}",
            run.program.output()
        );
        assert!(!run.manifest.exists());
    }
    let missing = |_| vec!["/nonexistent/program".to_owned()];
    let mut run = Run::start(&mesh, "web", |_| (), missing);
    assert_eq!(run.program.ended().code(), Some(127));
    let said = run.program.output();
    assert!(
        said.contains("/nonexistent/program: No such file"),
        "{said}"
    );
}

#[test]
fn a_dying_application_s_requests_go_elsewhere() {
    let mesh = shop();
    let mut replicas = [Run::echo(&mesh, "web"), Run::echo(&mesh, "web")];
    let client = mesh.sidecar("client", &["web.shop:80"]);
    let load = Load::start(client.upstreams[0], Mode::ConnectEach, 2);
    load.goes_on(100);
    let [application] = replicas[0].pids("echo_server")[..] else {
        panic!("there is one application");
    };
    // What is inside the application is lost with it, so it is idle when it dies.
    signal_pid(application, Signal::STOP);
    signal_pid(application, Signal::KILL);
    assert_eq!(replicas[0].program.ended().code(), Some(137));
    assert!(!replicas[0].manifest.exists());
    load.goes_on(100);
    let tally = load.stop();
    // GETs whose connection died before an answer are tried again.
    tally.none_lost();
}

#[test]
fn a_killed_sidecar_comes_back() {
    let mesh = shop();
    let mut run = Run::echo(&mesh, "web");
    let client = mesh.sidecar("client", &["web.shop:80"]);
    let url = format!("http://{}/again", client.upstreams[0]);
    assert_eq!(curl(&[&url]).status, 200);
    let [application] = run.pids("echo_server")[..] else {
        panic!("there is one application");
    };
    for round in 1..=2 {
        let [sidecar] = run.pids("weft.yaml")[..] else {
            panic!("there is one sidecar");
        };
        signal_pid(sidecar, Signal::KILL);
        eventually("another sidecar", || {
            let pids = run.pids("weft.yaml");
            (pids.len() == 1 && pids[0] != sidecar).then_some(())
        });
        eventually("an answer through the new sidecar", || {
            (curl(&[&url]).status == 200).then_some(())
        });
        let said = run.program.output();
        let told = said.matches("the sidecar has ended (signal: 9").count();
        assert_eq!(told, round, "{said}");
    }
    assert_eq!(run.pids("echo_server"), [application], "it is the same one");
    // The only endpoint of a service that is in use waits for another one, unless told twice.
    run.program.signal(Signal::TERM);
    eventually("the barrier being waited for", || {
        let said = run.program.output();
        said.contains("SIGTERM: leaving").then_some(())
    });
    run.program.signal(Signal::TERM);
    assert_eq!(run.program.ended().code(), Some(143));
    let said = run.program.output();
    assert!(said.contains("SIGTERM again: not waiting for it"), "{said}");
}

#[test]
fn a_sidecar_that_replaces_itself_is_kept() {
    let mesh = shop();
    let mut run = Run::echo(&mesh, "web");
    let [sidecar] = run.pids("weft.yaml")[..] else {
        panic!("there is one sidecar");
    };
    signal_pid(sidecar, Signal::USR2);
    eventually("the replacement being noticed", || {
        let said = run.program.output();
        said.contains("has replaced itself").then_some(())
    });
    run.sidecar_is_ready();
    run.program.signal(Signal::TERM);
    assert_eq!(run.program.ended().code(), Some(143));
    let said = run.program.output();
    assert!(said.contains("the drain barrier: 0 of 0"), "{said}");
}

#[test]
fn what_its_parent_ignores_it_ignores() {
    let mesh = shop();
    let address = own_address().to_string();
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(weft().get_program())
        .args(["run", "--address", &address, "--ca-dir"])
        .arg(mesh.folder.path().join("ca"))
        .args(["--controller", &mesh.listen.to_string(), "--proxy"])
        .arg(weft_tests::proxy::binary())
        .args(["--", "sleep", "1000"]);
    let mut run = Program::start("nohup", &mut command, mesh.folder.path());
    eventually("the start", || {
        run.output().contains("started sleep").then_some(())
    });
    run.signal(Signal::HUP);
    run.signal(Signal::TERM);
    assert_eq!(run.ended().code(), Some(143), "{}", run.output());
    let said = run.output();
    assert!(
        said.contains("SIGTERM: leaving") && !said.contains("SIGHUP"),
        "{said}"
    );
}

#[test]
fn an_application_that_never_answers_is_never_in_rotation() {
    let mesh = shop();
    let mut run = Run::start(&mesh, "web", |_| (), shell("exec sleep 1000"));
    eventually("the manifest", || is_ready(&run.manifest));
    run.sidecar_is_ready();
    assert_eq!(is_ready(&run.manifest), Some(false));
    run.program.signal(Signal::INT);
    assert_eq!(run.program.ended().code(), Some(143));
    assert!(!run.program.output().contains("in rotation as"));
}

#[test]
fn rotation_follows_the_readiness_path() {
    let mesh = shop();
    let folder = mesh.folder.path().join("files");
    fs::create_dir(&folder).expect("a folder can be made");
    let files = folder.display().to_string();
    let serve = |address: IpAddr| {
        let address = address.to_string();
        let words = [
            "python3",
            "-m",
            "http.server",
            "8080",
            "--bind",
            &address,
            "--directory",
            &files,
        ];
        words.map(str::to_owned).to_vec()
    };
    let add = |command: &mut Command| {
        command.args(["--ready-path", "/health"]);
    };
    let run = Run::start(&mesh, "web", add, serve);
    eventually("the manifest", || is_ready(&run.manifest));
    run.sidecar_is_ready();
    assert_eq!(is_ready(&run.manifest), Some(false));
    fs::write(folder.join("health"), "ok").expect("it can be written");
    run.is_in_rotation();
    fs::remove_file(folder.join("health")).expect("it can be removed");
    eventually("the end of its rotation", || {
        (is_ready(&run.manifest) == Some(false)).then_some(())
    });
}

#[test]
fn an_application_that_ignores_sigterm_is_killed() {
    let mesh = shop();
    let grace = |command: &mut Command| {
        command.args(["--grace", "200ms"]);
    };
    let stubborn = shell("trap '' TERM; while :; do sleep 1; done");
    let mut run = Run::start(&mesh, "web", grace, stubborn);
    eventually("the start", || {
        run.program.output().contains("started sh").then_some(())
    });
    run.program.signal(Signal::TERM);
    assert_eq!(
        run.program.ended().code(),
        Some(137),
        "{}",
        run.program.output()
    );
}

#[test]
fn killed_itself_it_leaves_nothing_behind() {
    let mesh = shop();
    let mut run = Run::echo(&mesh, "web");
    let left = [run.pids("echo_server"), run.pids("weft.yaml")].concat();
    assert_eq!(left.len(), 2);
    run.program.kill();
    eventually("the end of its programs", || {
        left.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
    assert!(
        !run.manifest.exists(),
        "nobody may be sent to what has gone"
    );
}

/// Exit code and words of a `weft run` that does not come to start anything.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = weft();
    command.arg("run").args(arguments).args(["--", "true"]);
    let output = command.output().expect("weft runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn wrong_arguments_are_told_with_what_to_do() {
    let mesh = shop();
    let ca = mesh.folder.path().join("ca").display().to_string();
    let address = own_address().to_string();
    let own = ["--address", &address, "--ca-dir", &ca];
    let busy = mesh.listen.to_string();
    for (arguments, code, part) in [
        (&["--ca-dir", &ca][..], 2, "--address"),
        (&["--address", &address], 2, "--ca-dir"),
        (
            &["--address", &address, "--token", "x"],
            2,
            "--trust-bundle",
        ),
        (
            &["--address", &address, "--ca-dir", "/none"],
            1,
            "start weft-controller",
        ),
        (
            &[&own[..], &["--upstream", "9001=web:80"]].concat(),
            2,
            "LISTEN=SERVICE.NAMESPACE:PORT",
        ),
        (
            &[&own[..], &["--manifests", "/none"]].concat(),
            2,
            "--service",
        ),
        (
            &[
                &own[..],
                &["--manifests", "/none", "--service", "web", "--port", "1"],
            ]
            .concat(),
            1,
            "name the one that weft-controller reads",
        ),
        (
            &[&own[..], &["--namespace", "a/b"]].concat(),
            1,
            "--namespace",
        ),
        (
            &[&own[..], &["--workload", "A_b"]].concat(),
            1,
            "--workload A_b",
        ),
        (
            &[&own[..], &["--admin", &busy]].concat(),
            1,
            "address of its own",
        ),
        (
            &[&own[..], &["--proxy", "/none"]].concat(),
            1,
            "--proxy /none",
        ),
        (&[&own[..], &["--grace", "soon"]].concat(), 2, "--grace"),
    ] {
        let (ended, text) = refused(arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}

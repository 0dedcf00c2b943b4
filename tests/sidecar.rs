//! `weft-proxy sidecar`: told by variables as injection sets them, ready only when it is of use, and
//! passing one drain barrier whoever asks for it.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use serde_json::Value;
use weft_tests::mesh::{Mesh, own_address, uid};
use weft_tests::process::{Program, Signal};
use weft_tests::proxy::binary;
use weft_tests::raw::Raw;
use weft_tests::upstream::{Then, Upstream, answer};
use weft_tests::{PATIENCE, eventually, eventually_within};

const DRAIN_PATH: &str = "/drain/0123456789abcdef0123456789abcdef";

struct Pod {
    program: Program,
    address: IpAddr,
}

impl Pod {
    /// Several live on this host, so each keeps to an address of its own.
    fn start(mesh: &Mesh, account: &str, variables: &[(&str, &str)]) -> Self {
        let address = own_address();
        let mut command = mesh.pod_command(address, account, "14008");
        for (name, port) in [
            ("WEFT_OUTBOUND", 14001),
            ("WEFT_INBOUND", 14006),
            ("WEFT_INBOUND_MESH", 14008),
            ("WEFT_ADMIN", 14020),
        ] {
            command.env(name, SocketAddr::new(address, port).to_string());
        }
        command.env("WEFT_DRAIN_PATH", DRAIN_PATH);
        command.envs(variables.iter().copied());
        let mut program = Program::start(account, &mut command, mesh.folder.path());
        program.accepts(SocketAddr::new(address, 14020));
        Self { program, address }
    }

    fn admin(&self) -> Raw {
        Raw::connect(SocketAddr::new(self.address, 14020))
    }

    fn ready(&self) -> (u16, String) {
        let answer = self.admin().get("/ready");
        (answer.status, answer.text())
    }

    fn becomes_ready(&self) {
        eventually("the sidecar being ready", || {
            (self.ready().0 == 200).then_some(())
        });
    }

    /// As a kubelet asks: GET.
    fn drain(&self) -> Value {
        let answer = self.admin().get(DRAIN_PATH);
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_slice(&answer.body).expect("it answers JSON")
    }
}

fn said(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("it can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_wrong_value_is_named_by_flag_and_variable() {
    let mesh = Mesh::start();
    for (variable, value, flag) in [
        ("WEFT_CONTROLLERS", "nowhere", "--controllers"),
        ("WEFT_ADDRESSES", "10.0.0.1,x", "--addresses"),
        ("WEFT_WORKLOAD", "No UID", "--workload"),
        ("WEFT_DRAIN_MAX", "soon", "--drain-max"),
        ("WEFT_DRAIN_PATH", "/drain", "--drain-path"),
        ("WEFT_WORKERS", "0", "--workers"),
    ] {
        let mut command = mesh.pod_command(own_address(), "wrong", "14008");
        let (code, _, errors) = said(command.env(variable, value));
        assert!(code.is_some_and(|code| code != 0), "{variable}: {errors}");
        assert!(
            errors.contains(variable) && errors.contains(flag),
            "{variable}: {errors}"
        );
    }
    // Without a word of whose it is.
    let (_, _, errors) = said(Command::new(binary()).arg("sidecar").env_clear());
    assert!(errors.contains("WEFT_CONTROLLERS"), "{errors}");
}

#[test]
fn what_it_prints_is_a_configuration() {
    let mesh = Mesh::start();
    let mut command = mesh.pod_command(own_address(), "printed", "14008");
    let (code, text, errors) = said(command.arg("--print"));
    assert_eq!(code, Some(0), "{errors}");
    let file = mesh.folder.path().join("printed.yaml");
    std::fs::write(&file, text).expect("it can be written");
    let (code, good, errors) = said(
        Command::new(binary())
            .arg("--check")
            .arg("--config")
            .arg(file),
    );
    assert_eq!(code, Some(0), "{errors}");
    assert!(good.contains("3 listeners"), "{good}");
}

#[test]
fn it_is_ready_once_a_controller_was_heard() {
    let mut mesh = Mesh::start();
    mesh.controller.kill();
    let pod = Pod::start(&mesh, "early", &[]);
    let (status, text) = pod.ready();
    assert_eq!(status, 503, "{text}");
    // It serves by and by, since the application may be there already; ready it is not.
    eventually_within(3 * PATIENCE, "serving all the same", || {
        pod.ready().1.contains("no certificate yet").then_some(())
    });
    mesh.restart_controller();
    // It asked in vain meanwhile, and lets ever more time pass before it asks again.
    eventually_within(3 * PATIENCE, "the sidecar being ready", || {
        (pod.ready().0 == 200).then_some(())
    });
    // What it has heard it knows.
    mesh.controller.kill();
    pod.program.signal(Signal::HUP);
    eventually("a word about SIGHUP", || {
        let output = pod.program.output();
        output.contains("nothing to read again").then_some(())
    });
    assert_eq!(pod.ready().0, 200);
    assert_eq!(pod.admin().request("POST", "/reload", &[], b"").status, 422);
}

#[test]
fn there_is_one_barrier_whoever_asks() {
    let mesh = Mesh::start();
    let pod = Pod::start(&mesh, "leaving", &[]);
    pod.becomes_ready();
    // A kubelet that gives up at once.
    let mut gone = pod.admin();
    gone.send(format!("GET {DRAIN_PATH} HTTP/1.1\r\nHost: pod\r\n\r\n"));
    drop(gone);
    eventually("leaving", || {
        pod.ready().1.contains("leaving").then_some(())
    });
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| pod.drain())).collect();
        asking
            .into_iter()
            .map(|asked| asked.join().expect("it is answered"))
            .collect()
    });
    assert!(
        answers.iter().all(|answer| answer["inFlight"] == 0),
        "{answers:?}"
    );
    let passed = pod.program.output();
    let passed = passed
        .matches("nothing more will reach the application")
        .count();
    assert_eq!(passed, 1, "one barrier");
    for wrong in ["/drain/0123456789abcdef0123456789abcdee", "/drain/"] {
        assert_eq!(pod.admin().get(wrong).status, 404);
    }
}

#[test]
fn the_barrier_has_its_bound() {
    let mesh = Mesh::start();
    let pod = Pod::start(&mesh, "bounded", &[("WEFT_DRAIN_MAX", "2")]);
    pod.becomes_ready();
    let (release, held) = sync_channel::<()>(1);
    let held = Mutex::new(held);
    let application = SocketAddr::new(pod.address, 8080);
    let application = Upstream::start_at(application, move |_, stream| {
        // For as long as the test lasts.
        let _ = held.lock().map(|held| held.recv());
        answer(stream, 200, &[], b"late");
        Then::Close
    });
    let client = mesh.sidecar("client", &["bounded.shop:80"]);
    let workload = (pod.address, uid(pod.address, "bounded"));
    mesh.service_of("bounded", "", &[workload]);
    let mut raw = eventually("a request in flight", || {
        let mut raw = Raw::connect(client.upstreams[0]);
        raw.send("GET / HTTP/1.1\r\nHost: bounded\r\n\r\n");
        // Before it knows of the service the sidecar answers at once.
        while raw.is_silent(Duration::from_millis(300)) {
            if application.count() == 1 {
                return Some(raw);
            }
        }
        None
    });
    let drained = pod.drain();
    assert_eq!(drained["inFlight"], 1, "{drained}");
    // What was inside when the bound was reached may still end.
    drop(release);
    assert_eq!(raw.answer().text(), "late");
}

//! A kubelet's probes under capture, in strict mode and past a policy that denies all: exactly the
//! probed requests are let in, and what a sidecar tries for a kubelet tells of the application.
//!
//! The kubelet is root on another host, with real clients; the sidecar is `weft-proxy sidecar`.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use tempfile::TempDir;
use weft_tests::certificate::Authority;
use weft_tests::curl::{Curled, curl};
use weft_tests::mesh::Mesh;
use weft_tests::namespace::Pair;
use weft_tests::process::Program;
use weft_tests::proxy::binary;
use weft_tests::raw::{Answer, Raw};
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, script};

const POD: &str = "10.88.0.2";
const PROBES: &str = r#"[
    {"kind": "http", "port": 8080, "path": "/healthz"},
    {"kind": "grpc", "port": 9000, "service": ""},
    {"kind": "tcp", "port": 6379},
    {"kind": "https", "port": 8443, "path": "/"}]"#;
const DRAIN_PATH: &str = "/drain/0123456789abcdef0123456789abcdef";
/// Nothing without mTLS, and nobody at all by policy.
const CLOSED: &str = "\
apiVersion: weft.dev/v1alpha1
kind: WorkloadPolicy
metadata: {name: closed, namespace: shop}
spec: {mtls: strict, defaultAction: deny}
";

/// A pod on one host, whose kubelet is on the other.
struct Probed {
    application: Option<Upstream>,
    sidecar: Program,
    _mesh: Mesh,
    pair: Pair,
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(POD.parse().expect("it is an address"), port)
}

impl Probed {
    fn open(name: &str) -> Option<Self> {
        let pair = Pair::new(name)?;
        let mesh = pair.two.within(|| Mesh::start_at(at(14010)));
        // Before the sidecar asks: nothing is let in without mTLS, however early.
        mesh.apply("closed", CLOSED);
        eventually("the policy being known", || {
            let admin = mesh.admin;
            let page = pair.two.within(|| Raw::connect(admin).get("/metrics"));
            let known = "weft_controller_objects{kind=\"WorkloadPolicy\"} 1\n";
            page.text().contains(known).then_some(())
        });
        let sidecar = pair.two.within(|| {
            let mut command = mesh.pod_command(POD.parse().expect("it is one"), "web", "captured");
            command
                .env("WEFT_PROBES", PROBES)
                .env("WEFT_DRAIN_PATH", DRAIN_PATH)
                .env("WEFT_ACCESS_LOG", "json");
            Program::start("sidecar", &mut command, mesh.folder.path())
        });
        let capture = pair.two.within(|| {
            Command::new(binary())
                .args(["capture", "--uid=0", "--skip-inbound-ports=14010"])
                .output()
        });
        assert!(capture.is_ok_and(|output| output.status.success()));
        let application = pair
            .two
            .within(|| Upstream::echo_at(at(8080), "application"));
        // From here on dropped where it is.
        let probed = Self {
            application: Some(application),
            sidecar,
            _mesh: mesh,
            pair,
        };
        eventually("the sidecar being ready", || {
            (probed.admin("/ready")?.status == 200).then_some(())
        });
        eventually("strict mode being in force", || {
            (probed.kubelet(&["/other"]).exit != 0).then_some(())
        });
        Some(probed)
    }

    /// As the kubelet, with curl: a path and more arguments.
    fn kubelet(&self, arguments: &[&str]) -> Curled {
        let (path, more) = arguments.split_first().expect("a path");
        let url = format!("http://{POD}:8080{path}");
        let all = [&["-m", "5", "-i", "--path-as-is"], more, &[url.as_str()]].concat();
        self.pair.one.within(|| curl(&all))
    }

    /// A page of the admin server, as the kubelet sees it.
    fn admin(&self, path: &str) -> Option<Answer> {
        self.pair
            .one
            .within(|| Raw::try_connect(at(14020))?.try_get(path))
    }

    fn probe(&self, number: usize) -> Answer {
        let path = format!("/probe/{number}");
        self.admin(&path).expect("the admin server answers")
    }

    fn counted(&self, metric: &str) -> f64 {
        let text = self.admin("/metrics").expect("it answers").text();
        let lines = text.lines().filter(|line| line.starts_with(metric));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    fn stop_application(&mut self) {
        if let Some(mut application) = self.application.take() {
            self.pair.two.within(|| application.stop());
        }
    }
}

impl Drop for Probed {
    fn drop(&mut self) {
        self.stop_application();
    }
}

// tidy: allow size: mostly a table
#[test]
fn exactly_the_probed_request_is_let_in() {
    let Some(mut pod) = Probed::open("probed") else {
        return;
    };
    for arguments in [
        ["/healthz"].as_slice(),
        &[
            "/healthz",
            "-A",
            "kube-probe/1.34",
            "-H",
            "Connection: close",
        ],
        &["/healthz", "--head"],
    ] {
        let answer = pod.kubelet(arguments);
        assert_eq!(answer.status, 200, "{arguments:?}: {answer:?}");
        assert!(answer.text().contains("application"), "{answer:?}");
    }
    for arguments in [
        ["/"].as_slice(),
        &["/healthz/"],
        &["/healthz?all"],
        &["/x/../healthz"],
        &["/%68ealthz"],
        &["/healthz", "-X", "POST"],
        &["/healthz", "-X", "OPTIONS"],
        &[
            "/healthz",
            "-H",
            "Connection: upgrade",
            "-H",
            "Upgrade: websocket",
        ],
        &["/other", "--http2-prior-knowledge"],
        &["/healthz", "-X", "DELETE", "--http2-prior-knowledge"],
    ] {
        let answer = pod.kubelet(arguments);
        assert_ne!(answer.exit, 0, "{arguments:?}: {answer:?}");
        assert_eq!(answer.status, 0, "{arguments:?}: {answer:?}");
    }
    // A second request on a connection is looked at like the first.
    let mut raw = pod.pair.one.within(|| Raw::connect(at(8080)));
    assert_eq!(raw.get("/healthz").status, 200);
    assert!(raw.try_get("/other").is_none(), "it is closed");
    // Bytes that are no HTTP, and somebody else's TLS.
    for bytes in [
        b"\0\x01hello\r\n\r\n".as_slice(),
        b"\x16\x03\x01\0\x05hello",
    ] {
        let mut raw = pod.pair.one.within(|| Raw::connect(at(8080)));
        raw.send(bytes);
        assert_eq!(raw.try_closed().unwrap_or_default(), b"");
    }
    eventually("the probes being counted", || {
        let good = r#"weft_probes_total{kind="http",result="ok"}"#;
        (pod.counted(good) >= 4.0).then_some(())
    });
    assert_eq!(pod.counted("weft_requests_total"), 0.0, "no traffic");
    assert!(
        pod.counted("weft_mesh_handshakes_total{direction=\"inbound\",result=\"mtls_required\"}")
            >= 13.0
    );
    eventually("its line in the access log", || {
        let output = pod.sidecar.output();
        output.contains(r#""probe":"http""#).then_some(())
    });
    // It tells of the application, not of the proxy in front of it.
    pod.stop_application();
    let answer = pod.kubelet(&["/healthz"]);
    assert_eq!(answer.status, 503, "{answer:?}");
    // It is counted once it is answered.
    eventually("the failed probe being counted", || {
        let failed = r#"weft_probes_total{kind="http",result="failed"}"#;
        (pod.counted(failed) >= 1.0).then_some(())
    });
}

#[test]
fn a_grpc_probe_is_let_in_and_no_other_call() {
    let Some(pod) = Probed::open("grpcp") else {
        return;
    };
    let folder = TempDir::new().expect("a folder can be made");
    let server = pod.pair.two.within(|| {
        let mut command = script("grpc_server.py");
        command.args(["9000", POD]);
        let mut program = Program::start("grpc", &mut command, folder.path());
        program.accepts(at(9000));
        program
    });
    let said = pod.pair.one.within(|| {
        let mut command = script("grpc_probe.py");
        command.arg(format!("{POD}:9000")).output()
    });
    let said = said.expect("Python can be run");
    let (out, errors) = (
        String::from_utf8_lossy(&said.stdout).into_owned(),
        String::from_utf8_lossy(&said.stderr).into_owned(),
    );
    assert!(
        out.contains("serving; else "),
        "{out}{errors}\n{}",
        server.output()
    );
    assert!(!out.contains("let in"), "{out}");
    assert!(pod.counted("weft_probes_total{kind=\"grpc\",result=\"ok\"}") >= 1.0);
}

#[test]
fn what_a_kubelet_cannot_tell_apart_is_tried_for_it() {
    let Some(pod) = Probed::open("tried") else {
        return;
    };
    // Through the sidecar's open port it would look as if somebody listened.
    let refused = pod.probe(2);
    assert_eq!(refused.status, 503);
    assert!(
        refused.text().contains("10.88.0.2:6379"),
        "{}",
        refused.text()
    );
    let listener = pod.pair.two.within(|| TcpListener::bind(at(6379)));
    assert_eq!(pod.probe(2).status, 200);
    drop(listener);
    assert_eq!(pod.probe(2).status, 503);
    assert_eq!(pod.probe(3).status, 503);
    let folder = TempDir::new().expect("a folder can be made");
    // By nobody's authority, for another name.
    let authority = Authority::new(folder.path(), "nobody");
    let pair = authority.issue("app", &["elsewhere.example"]);
    let tls = pod.pair.two.within(|| {
        let mut command = Command::new("openssl");
        command
            .args([
                "s_server",
                "-quiet",
                "-www",
                "-accept",
                &format!("{POD}:8443"),
            ])
            .arg("-cert")
            .arg(&pair.certificate)
            .arg("-key")
            .arg(&pair.key);
        let mut program = Program::start("openssl", &mut command, folder.path());
        program.accepts(at(8443));
        program
    });
    let tried = pod.probe(3);
    assert_eq!(tried.status, 200, "{}\n{}", tried.text(), tls.output());
    drop(tls);
    assert_eq!(pod.probe(3).status, 503);
    // What the kubelet asks itself, and what there is not.
    for number in [0, 1, 4] {
        assert_eq!(pod.probe(number).status, 404, "{number}");
    }
    assert_eq!(pod.admin("/probe/x").map(|answer| answer.status), Some(404));
}

#[test]
fn probes_are_answered_while_draining() {
    let Some(pod) = Probed::open("drainp") else {
        return;
    };
    let wrong = pod.admin("/drain").map(|answer| answer.status);
    assert_eq!(wrong, Some(404));
    let drained = pod.admin(DRAIN_PATH).expect("it answers");
    assert_eq!(drained.status, 200, "{}", drained.text());
    assert_eq!(pod.admin("/ready").map(|answer| answer.status), Some(503));
    let answer = pod.kubelet(&["/healthz"]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.text().contains("application"), "{answer:?}");
    assert_ne!(pod.kubelet(&["/other"]).exit, 0);
}

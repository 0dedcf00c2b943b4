//! gRPC: a real server and a real client (grpcio), every kind of call, and what the proxy says in
//! gRPC's own terms when it answers itself.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{ChildStdin, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::certificate::Authority;
use weft_tests::config::{front, route};
use weft_tests::proxy::Proxy;
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{eventually, http2, port, script};

struct Server {
    address: SocketAddr,
    child: std::process::Child,
    health: ChildStdin,
}

impl Server {
    fn start() -> Self {
        let address = port::free_address();
        let mut child = script("grpc_server.py")
            .arg(address.port().to_string())
            .stdin(Stdio::piped())
            .spawn()
            .expect("Python runs; `make test` installs it");
        let health = child.stdin.take().expect("it is piped");
        let server = Self {
            address,
            child,
            health,
        };
        eventually("the gRPC server listening", || {
            std::net::TcpStream::connect(address).ok()
        });
        server
    }

    fn set_health(&mut self, service: &str, status: &str) {
        writeln!(self.health, "{service}={status}").expect("the server reads");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn grpc_front(web: SocketAddr, endpoints: &[SocketAddr]) -> Value {
    let mut config = front(web, endpoints);
    config["services"][0]["protocol"] = json!("grpc");
    config
}

/// Runs the client; gives what it printed.
#[track_caller]
fn client(address: &str, what: &str, change: impl FnOnce(&mut Command)) -> String {
    let mut command = script("grpc_client.py");
    command.args([address, what]);
    change(&mut command);
    let output = command
        .output()
        .expect("Python runs; `make test` installs it");
    assert!(
        output.status.success(),
        "{what}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn every_kind_of_call_passes() {
    let server = Server::start();
    let web = port::free_address();
    let proxy = Proxy::start(grpc_front(web, &[server.address]));
    client(&web.to_string(), "calls", |_| ());
    let answered = proxy.metrics();
    let labels = [("cause", "answered"), ("service", "up")];
    assert!(answered.sum("weft_requests_total", &labels) >= 20.0);
}

#[test]
fn every_kind_of_call_passes_under_tls() {
    let server = Server::start();
    let folder = TempDir::new().expect("a folder can be made");
    let authority = Authority::new(folder.path(), "root");
    let pair = authority.issue("server", &["localhost"]);
    let web = port::free_address();
    let mut config = grpc_front(web, &[server.address]);
    config["listeners"][0]["tls"] = json!({"certificates": [pair.config()]});
    let _proxy = Proxy::start(config);
    client(&format!("localhost:{}", web.port()), "calls", |command| {
        command.arg(&authority.file);
    });
}

#[test]
fn many_calls_share_connections() {
    let server = Server::start();
    let web = port::free_address();
    let proxy = Proxy::start(grpc_front(web, &[server.address]));
    client(&web.to_string(), "many", |_| ());
    proxy.counts("answered", 1600.0);
    let opened = proxy
        .metrics()
        .sum("weft_upstream_connections_opened_total", &[]);
    assert!(opened <= 4.0, "{opened} connections for 1,600 calls");
}

/// A deadline that passes, and a call that is cancelled, end the call upstream too.
#[test]
fn cancelled_calls_end_upstream() {
    let server = Server::start();
    let web = port::free_address();
    let proxy = Proxy::start(grpc_front(web, &[server.address]));
    client(&web.to_string(), "deadline", |_| ());
    // At its deadline either the client goes or the server answers, whichever is first.
    eventually("both calls ending", || {
        let metrics = proxy.metrics();
        let gone = metrics.sum("weft_requests_total", &[("cause", "downstream_gone")]);
        let all = metrics.sum("weft_requests_total", &[]);
        (gone > 0.5 && all > 1.5).then_some(())
    });
    let held = [("service", "up"), ("limit", "request")];
    assert!(proxy.metrics().sum("weft_limit_used", &held) < 0.5);
}

#[test]
fn methods_choose_the_rule() {
    let server = Server::start();
    let web = port::free_address();
    let mut config = grpc_front(web, &[server.address]);
    let mut grpc = route(
        "calls",
        json!([{"matches": [{"grpcMethod": {"service": "weft.Test", "method": "Echo"}}],
                "backendRefs": [{"name": "up"}]}]),
    );
    grpc["kind"] = json!("grpc");
    config["routes"] = json!([grpc]);
    let _proxy = Proxy::start(config);
    let web = web.to_string();
    assert_eq!(client(&web, "method:/weft.Test/Echo", |_| ()), "OK x");
    let said = client(&web, "method:/weft.Test/Count", |_| ());
    assert!(said.starts_with("UNIMPLEMENTED"), "{said}");
}

/// gRPC clients do not read HTTP statuses: each of our own answers is a gRPC status in a 200.
#[test]
fn own_answers_are_grpc_statuses() {
    let nobody = port::free_address();
    let web = port::free_address();
    let mut proxy = Proxy::start(grpc_front(web, &[nobody]));
    let said = client(&web.to_string(), "method:/weft.Test/Echo", |_| ());
    assert!(said.starts_with("UNAVAILABLE"), "{said}");
    proxy.counts("connect_failed", 1.0);

    let request = || {
        http::Request::post("http://test/weft.Test/Echo")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(b"\0\0\0\0\0".to_vec())
            .expect("it is valid")
    };
    let answer = http2::exchange(web, request(), None).expect("it is answered");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("grpc-status"), Some("14"));
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    assert_eq!(answer.reason(), "connect_failed");

    proxy.reload(|config| config["services"][0]["endpoints"] = json!([]));
    let answer = http2::exchange(web, request(), None).expect("it is answered");
    assert_eq!(
        (answer.header("grpc-status"), answer.reason()),
        (Some("14"), "no_endpoint")
    );
}

#[test]
fn unavailable_is_tried_again_when_a_rule_says_so() {
    let server = Server::start();
    let web = port::free_address();
    let mut config = grpc_front(web, &[server.address]);
    config["routes"] = json!([route(
        "calls",
        json!([
            {"backendRefs": [{"name": "up"}],
             "retry": {"attempts": 3, "backoff": "1ms", "grpcCodes": ["unavailable"]}},
        ])
    )]);
    let proxy = Proxy::start(config);
    // It fails twice and then answers with the number of tries.
    assert_eq!(
        client(&web.to_string(), "method:/weft.Test/Flaky", |_| ()),
        "OK 3"
    );
    let tried = [("kind", "grpc_status"), ("result", "budgeted")];
    let retries = proxy.metrics().sum("weft_retries_total", &tried);
    assert!((retries - 2.0).abs() < 0.5, "{retries}");
}

#[test]
fn the_health_protocol_takes_endpoints_out_and_in() {
    let mut server = Server::start();
    let healthy = Server::start();
    let web = port::free_address();
    let mut config = grpc_front(web, &[server.address, healthy.address]);
    config["services"][0]["balancer"] = json!({"algorithm": "round_robin"});
    config["services"][0]["healthCheck"] = json!({"kind": "grpc", "interval": "50ms", "timeout": "2s",
        "unhealthyThreshold": 2, "healthyThreshold": 2});
    let proxy = Proxy::start(config);
    let healthy_now = || proxy.available("up");
    eventually("both healthy", || (healthy_now() > 1.5).then_some(()));
    server.set_health("", "NOT_SERVING");
    eventually("one unhealthy", || (healthy_now() < 1.5).then_some(()));
    let ours = server.address.to_string();
    let ask = |name: &str| {
        let labels = [("backend", name)];
        proxy.metrics().sum("weft_requests_total", &labels)
    };
    let before = ask(&ours);
    for _ in 0..6 {
        assert_eq!(
            client(&web.to_string(), "method:/weft.Test/Echo", |_| ()),
            "OK x"
        );
    }
    assert!(
        (ask(&ours) - before).abs() < 0.5,
        "it got calls while unhealthy"
    );
    server.set_health("", "SERVING");
    eventually("both healthy again", || (healthy_now() > 1.5).then_some(()));
}

/// gRPC over HTTP/1.1 upstreams cannot work for real servers, but a trailers-only answer that an
/// HTTP/1.1 upstream gives must still arrive as what it is.
#[test]
fn a_status_in_the_head_arrives() {
    let upstream = Upstream::start(|_, stream| {
        let fields = [
            "content-type: application/grpc",
            "grpc-status: 7",
            "grpc-message: no",
        ];
        upstream::answer(stream, 200, &fields, b"");
        Then::Keep
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let said = client(&web.to_string(), "method:/weft.Test/Echo", |_| ());
    assert_eq!(said, "PERMISSION_DENIED no");
}

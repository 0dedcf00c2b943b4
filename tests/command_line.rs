//! The command line: `--check`, `--explain`, `--help`, starts that fail, and the service manager. What is
//! wrong is said with its place and what to do about it.

use std::net::SocketAddr;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::config::{front, push, route, service};
use weft_tests::port;
use weft_tests::process::Signal;
use weft_tests::proxy::{self, Proxy, binary};
use weft_tests::upstream::Upstream;

fn routed(web: SocketAddr, endpoint: SocketAddr) -> Value {
    let mut config = front(web, &[endpoint]);
    config["routes"] = json!([route(
        "shop",
        json!([
            {"name": "cart", "matches": [{"path": {"value": "/cart"}}], "backendRefs": [{"name": "up"}]},
            {"name": "beta", "matches": [{"headers": [{"name": "x-beta", "value": "1"}]}],
             "backendRefs": [{"name": "up"}], "timeouts": {"request": "3s"}},
        ])
    )]);
    config
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Every mistake of a file at once, each with its object and field.
#[test]
fn check_finds_every_mistake() {
    let good = front(port::free_address(), &[port::free_address()]);
    let output = proxy::run(&good, &["--check"]);
    assert!(output.status.success(), "{}", said(&output));

    let mut bad = good;
    push(
        &mut bad,
        "services",
        service("other", &[port::free_address()]),
    );
    bad["services"][1]["endpoints"][0]["address"] = json!("web.example:80");
    bad["services"][1]["connectTimeout"] = json!("5 parsecs");
    bad["services"][1]["balancer"] = json!({"algorithm": "best"});
    bad["listeners"][0]["service"] = json!("upp");
    push(
        &mut bad,
        "routes",
        route("r", json!([{"backendRefs": [{"name": "nobody"}]}])),
    );
    let output = proxy::run(&bad, &["--check"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    // The enum's name is a mistake of form, told before the rest is looked at.
    assert!(
        text.contains("services[1].balancer.algorithm") && text.contains("best"),
        "{text}"
    );
    bad["services"][1]["balancer"] = json!({});
    let text = said(&proxy::run(&bad, &["--check"]));
    for field in [
        "services[1].endpoints[0].address",
        "services[1].connectTimeout",
        "listeners[0].service",
        "routes[0].rules[0].backendRefs[0]",
    ] {
        assert!(text.contains(field), "no {field} in\n{text}");
    }
    assert!(text.contains("\"up\""), "no suggestion in\n{text}");
    assert_eq!(text.lines().count(), 4, "{text}");

    let mut unknown = front(port::free_address(), &[port::free_address()]);
    unknown["listeners"][0]["protocl"] = json!("http");
    let text = said(&proxy::run(&unknown, &["--check"]));
    assert!(
        text.contains("listeners[0].protocl") && text.contains("protocol"),
        "{text}"
    );
    let text = said(&proxy::run_file(
        std::path::Path::new("/nowhere.yaml"),
        &["--check"],
    ));
    assert!(
        text.contains("/nowhere.yaml") && text.contains("--config"),
        "{text}"
    );
}

#[test]
fn explain_says_what_would_happen_and_why() {
    let config = routed(port::free_address(), port::free_address());
    let explain = |request: &str, more: &[&str]| {
        let output = proxy::run(&config, &[&["--explain", request][..], more].concat());
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let text = explain("GET http://shop.example/x", &["-H", "X-Beta: 1"]);
    for part in [
        "rule cart",
        "/cart",
        "rule beta",
        "selected",
        "service up",
        "3s",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let json = explain("GET http://shop.example/cart/1", &["-o", "json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["decision"]["rule"], json!("cart"), "{json}");
    assert_eq!(
        json["decision"]["backends"][0]["service"],
        json!("up"),
        "{json}"
    );
    let text = explain("GET http://shop.example/x", &[]);
    assert!(text.contains("404") || text.contains("no rule"), "{text}");
    let output = proxy::run(&config, &["--explain", "GET nonsense"]);
    assert!(!output.status.success() && !said(&output).is_empty());
}

/// Whatever keeps it from starting says what, where, and what to do.
#[test]
fn failed_starts_say_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let config = front(address, &[port::free_address()]);
    let output = proxy::run(&config, &[]);
    let text = said(&output);
    assert!(matches!(output.status.code(), Some(1)), "{text}");
    assert!(
        text.contains(&address.to_string()) && text.contains("web"),
        "{text}"
    );

    let mut config = front(port::free_address(), &[port::free_address()]);
    config["settings"] = json!({"admin": address.to_string()});
    let text = said(&proxy::run(&config, &[]));
    assert!(
        text.contains(&address.to_string()) && text.contains("settings.admin"),
        "{text}"
    );

    config["settings"] = json!({"accessLog": {"format": "json", "path": "/nowhere/at/all.log"}});
    let text = said(&proxy::run(&config, &[]));
    assert!(text.contains("settings.accessLog.path"), "{text}");

    let help = Command::new(binary())
        .arg("--help")
        .output()
        .expect("it runs");
    let text = said(&help);
    for part in [
        "--check",
        "--explain",
        "--upgrade-socket",
        "SIGUSR2",
        "Examples",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let output = Command::new(binary()).output().expect("it runs");
    assert!(!output.status.success() && said(&output).contains("--config"));
}

/// systemd's own protocol: ready when ready, stopping when stopping.
#[test]
fn the_service_manager_is_told() {
    let upstream = Upstream::echo("up");
    let folder = TempDir::new().expect("a folder can be made");
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    socket
        .set_read_timeout(Some(weft_tests::PATIENCE))
        .expect("it is open");
    let mut proxy = Proxy::start_with(
        front(port::free_address(), &[upstream.address]),
        |command| {
            command.env("NOTIFY_SOCKET", &path);
        },
    );
    let told = || {
        let mut room = [0; 512];
        let count = socket.recv(&mut room).expect("it is told");
        String::from_utf8_lossy(&room[..count]).into_owned()
    };
    let ready = told();
    assert!(
        ready.contains("READY=1") && ready.contains(&proxy.program.pid().to_string()),
        "{ready}"
    );
    proxy.signal(Signal::TERM);
    assert!(told().contains("STOPPING=1"));
    assert!(proxy.program.ended().success());
}

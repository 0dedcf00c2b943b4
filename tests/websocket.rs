//! WebSocket and other upgrades, with a real server and a real client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use weft_tests::certificate::Authority;
use weft_tests::config::front;
use weft_tests::process::Program;
use weft_tests::proxy::Proxy;
use weft_tests::raw::Raw;
use weft_tests::upstream::{self, Then, Upstream};
use weft_tests::{eventually, port, script};

struct Server {
    address: SocketAddr,
    _program: Program,
    _folder: TempDir,
}

fn server() -> Server {
    let folder = TempDir::new().expect("a folder can be made");
    let address = port::free_address();
    let mut command = script("websocket_server.py");
    command.arg(address.port().to_string());
    let mut program = Program::start("websocket_server", &mut command, folder.path());
    program.accepts(address);
    Server {
        address,
        _program: program,
        _folder: folder,
    }
}

/// Runs the client through its whole conversation.
#[track_caller]
fn converse(change: impl FnOnce(&mut Command)) {
    let mut command = script("websocket_client.py");
    change(&mut command);
    let output = command
        .output()
        .expect("Python runs; `make test` installs it");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_conversation_passes() {
    let server = server();
    let web = port::free_address();
    let mut config = front(web, &[server.address]);
    // Frames are no head and no body: their timeouts must not end a quiet conversation.
    config["listeners"][0]["http"] =
        json!({"headerTimeout": "300ms", "bodyIdleTimeout": "300ms", "idleTimeout": "300ms"});
    let proxy = Proxy::start(config);
    converse(|command| {
        command.arg(format!("ws://{web}/chat?room=1"));
    });
    let switched = [("code_class", "1xx")];
    eventually("the upgrade being counted", || {
        (proxy.metrics().sum("weft_requests_total", &switched) >= 1.0).then_some(())
    });
}

#[test]
fn a_conversation_passes_under_tls() {
    let server = server();
    let folder = TempDir::new().expect("a folder can be made");
    let authority = Authority::new(folder.path(), "root");
    let pair = authority.issue("server", &["localhost"]);
    let web = port::free_address();
    let mut config = front(web, &[server.address]);
    config["listeners"][0]["tls"] = json!({"certificates": [pair.config()]});
    let _proxy = Proxy::start(config);
    converse(|command| {
        command
            .arg(format!("wss://localhost:{}/chat?room=1", web.port()))
            .arg(&authority.file);
    });
}

/// An upgrade that the upstream declines is a plain exchange.
#[test]
fn a_declined_upgrade_keeps_http() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    let ask = ["Connection: Upgrade", "Upgrade: websocket"];
    let answer = raw.request("GET", "/ws", &ask, b"");
    assert_eq!((answer.status, answer.text().as_str()), (200, "/ws"));
    let seen = upstream.last();
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    assert_eq!(
        seen.header("connection").map(str::to_lowercase).as_deref(),
        Some("upgrade")
    );
    assert_eq!(raw.get("/next").text(), "/next");
}

/// A 101 that nobody asked for would let an upstream take the client's connection.
#[test]
fn an_upgrade_nobody_asked_for_is_refused() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n",
        Then::Close,
    );
    let web = port::free_address();
    let proxy = Proxy::start(front(web, &[upstream.address]));
    let answer = Raw::connect(web).get("/");
    assert_eq!((answer.status, answer.reason()), (502, "upstream_protocol"));
    proxy.counts("upstream_protocol", 1.0);
}

#[test]
fn any_protocol_may_be_switched_to() {
    let address = upstream::opaque(|mut stream: TcpStream| {
        let mut room = [0; 4096];
        let count = stream.read(&mut room).unwrap_or(0);
        assert!(room[..count].ends_with(b"\r\n\r\nearly") || count > 0);
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: chat/2\r\nX-Kept: 1\r\n\r\nfirst",
        );
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
        let _ = stream.write_all(b"bye");
    });
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[address]));
    let mut raw = Raw::connect(web);
    raw.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: chat/2\r\n\r\n");
    let answer = raw.answer();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("upgrade"), Some("chat/2"));
    assert_eq!(answer.header("x-kept"), Some("1"));
    raw.expect("first");
    raw.send("0\r\n\r\nHTTP/1.1 400\r\n");
    raw.expect("0\r\n\r\nHTTP/1.1 400\r\n");
    raw.finish();
    // The upstream sees our end and still has a word.
    raw.expect("bye");
    assert!(raw.closed().is_empty());
}

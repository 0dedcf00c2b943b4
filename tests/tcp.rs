//! Opaque TCP: PostgreSQL through it, half-closes, large transfers, a server that speaks first, and
//! what happens when there is nobody to speak to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::json;
use weft_tests::config::{front, opaque};
use weft_tests::postgres::{Postgres, psql};
use weft_tests::proxy::Proxy;
use weft_tests::raw::Raw;
use weft_tests::upstream::{self, Upstream};
use weft_tests::{eventually, port, stepping_aside};

#[track_caller]
fn query(address: SocketAddr, options: &str, text: &str) -> String {
    let output = psql(address, options, text);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn psql_reaches_its_database() {
    if stepping_aside("initdb") || stepping_aside("psql") {
        return;
    }
    let database = Postgres::start();
    for protocol in ["tcp", "auto"] {
        let address = port::free_address();
        let mut config = opaque(address, &[database.address]);
        config["listeners"][0]["protocol"] = json!(protocol);
        let proxy = Proxy::start(config);
        for options in ["sslmode=disable", "sslmode=require"] {
            assert_eq!(
                query(address, options, "select 6 * 7"),
                "42",
                "{protocol} {options}"
            );
            // A few MiB back, and a sum that shows a lost or doubled row.
            let sum = "select sum(n), count(*), sum(length(t)) from \
                       (select n, repeat('x', 1000) t from generate_series(1, 5000) n) s";
            assert_eq!(query(address, options, sum), "12502500|5000|5000000");
            let rows = "select n, repeat('x', 1000) from generate_series(1, 3000) n";
            assert_eq!(query(address, options, rows).lines().count(), 3000);
        }
        // The server ends the session: psql must hear why.
        let ended = psql(address, "", "select pg_terminate_backend(pg_backend_pid())");
        let heard = String::from_utf8_lossy(&ended.stderr);
        assert!(heard.contains("terminating connection"), "{heard}");
        eventually("the sessions being counted", || {
            let ended = proxy
                .metrics()
                .sum("weft_tcp_connections_total", &[("service", "up")]);
            (ended >= 7.0).then_some(())
        });
    }
}

#[test]
fn two_psql_at_once_keep_apart() {
    if stepping_aside("initdb") || stepping_aside("psql") {
        return;
    }
    let database = Postgres::start();
    let address = port::free_address();
    let _proxy = Proxy::start(opaque(address, &[database.address]));
    query(address, "", "create table marks (client int, n int)");
    let clients: Vec<_> = (0..6)
        .map(|client| {
            thread::spawn(move || {
                let insert = format!("insert into marks select {client}, generate_series(1, 2000)");
                query(address, "", &insert);
                query(
                    address,
                    "",
                    &format!("select count(*) from marks where client = {client}"),
                )
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().expect("psql does not panic"), "2000");
    }
}

/// Either side may end its half and still read the other's.
#[test]
fn half_closes_pass() {
    let count = upstream::opaque(|mut stream: TcpStream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let _ = stream.write_all(format!("{} bytes", all.len()).as_bytes());
    });
    let greet = upstream::opaque(|mut stream: TcpStream| {
        let _ = stream.write_all(b"that is all");
        let _ = stream.shutdown(Shutdown::Write);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        assert_eq!(all, b"thanks");
    });
    for protocol in ["tcp", "auto"] {
        for (server, sent, heard) in [
            (count, &b"0123456789"[..], "10 bytes"),
            (greet, b"", "that is all"),
        ] {
            let address = port::free_address();
            let mut config = opaque(address, &[server]);
            config["listeners"][0]["protocol"] = json!(protocol);
            let _proxy = Proxy::start(config);
            let mut raw = Raw::connect(address);
            if sent.is_empty() {
                assert_eq!(raw.closed(), heard.as_bytes(), "{protocol}");
                raw.send("thanks");
                raw.finish();
            } else {
                raw.send(sent);
                raw.finish();
                assert_eq!(raw.closed(), heard.as_bytes(), "{protocol}");
            }
        }
    }
}

#[test]
fn large_transfers_arrive_whole() {
    const LENGTH: usize = 64 << 20;
    let echo = upstream::opaque(|mut stream: TcpStream| {
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
        let _ = copy.shutdown(Shutdown::Write);
    });
    let address = port::free_address();
    let proxy = Proxy::start(opaque(address, &[echo]));
    let mut stream = TcpStream::connect(address).expect("the proxy accepts");
    let mut sink = stream.try_clone().expect("a socket can be cloned");
    let piece: Vec<u8> = (0..1_000_003_usize).map(|n| (n % 251) as u8).collect();
    let sender = thread::spawn({
        let piece = piece.clone();
        move || {
            let mut sent = 0;
            while sent < LENGTH {
                sink.write_all(&piece).expect("it is taken");
                sent += piece.len();
            }
            sink.shutdown(Shutdown::Write).expect("it is open");
            sent
        }
    });
    let mut room = vec![0; piece.len()];
    let mut received = 0;
    while stream.read_exact(&mut room).is_ok() {
        assert!(room == piece, "after {received} bytes");
        received += room.len();
    }
    assert_eq!(sender.join().expect("the sender does not panic"), received);
    let metrics = proxy.metrics();
    eventually("the bytes being counted", || {
        let sent = proxy.metrics().sum("weft_bytes_sent_total", &[]);
        (sent >= received as f64).then_some(())
    });
    drop(metrics);
}

/// Nobody waits ten seconds for a protocol to be guessed (nor is a greeting ever held back).
#[test]
fn a_server_that_speaks_first_is_heard() {
    let mail = upstream::opaque(|mut stream: TcpStream| {
        let _ = stream.write_all(b"220 mail ready\r\n");
        let mut room = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut room) {
            let _ = stream.write_all(b"250 ");
            let _ = stream.write_all(&room[..count]);
        }
    });
    let address = port::free_address();
    let mut config = opaque(address, &[mail]);
    config["listeners"][0]["protocol"] = json!("auto");
    let _proxy = Proxy::start(config);
    let mut raw = Raw::connect(address);
    raw.expect("220 mail ready\r\n");
    raw.send("EHLO test\r\n");
    raw.expect("250 EHLO test\r\n");
}

/// One `auto` port takes HTTP/1.1, HTTP/2 and what is neither; a slow client is never misread.
#[test]
fn auto_tells_protocols_apart() {
    let upstream = Upstream::echo("up");
    let address = port::free_address();
    let mut config = front(address, &[upstream.address]);
    config["listeners"][0]["protocol"] = json!("auto");
    let proxy = Proxy::start(config);
    assert_eq!(weft_tests::raw::get(address, "/one").text(), "/one");
    assert_eq!(weft_tests::http2::get(address, "/two").text(), "/two");
    let mut slow = Raw::connect(address);
    assert!(slow.is_silent(Duration::from_millis(400)));
    for piece in ["G", "ET /slow HTT", "P/1.1\r\nHost: test\r\n\r\n"] {
        slow.send(piece);
        assert!(piece.ends_with("\r\n\r\n") || slow.is_silent(Duration::from_millis(100)));
    }
    assert_eq!(slow.answer().text(), "/slow");
    let seen = upstream.last();
    // Only an HTTP proxy writes this.
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    // Bytes that are no HTTP go through as they are; here the upstream answers none.
    let mut other = Raw::connect(address);
    other.send(b"\x00\x01\x02\x03 neither\r\n\r\n");
    let _ = other.try_head();
    eventually("the opaque bytes upstream", || {
        upstream.last().head.contains("neither").then_some(())
    });
    drop(other);
    eventually("the opaque connection being counted", || {
        proxy
            .metrics()
            .has("weft_tcp_connections_total", &[("service", "up")])
            .then_some(())
    });
}

#[test]
fn an_endpoint_that_is_down_is_passed_over() {
    let echo = upstream::opaque(|mut stream: TcpStream| {
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let address = port::free_address();
    let mut proxy = Proxy::start(opaque(address, &[port::free_address(), echo]));
    for _ in 0..20 {
        let mut raw = Raw::connect(address);
        raw.send("here");
        raw.expect("here");
    }
    proxy.reload(|config| {
        config["services"][0]["endpoints"] = json!([{"address": port::free_address().to_string()}]);
    });
    assert!(Raw::connect(address).closed().is_empty());
    proxy.is_well();
}

#[test]
fn idle_connections_end_when_asked() {
    let echo = upstream::opaque(|mut stream: TcpStream| {
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let address = port::free_address();
    let mut config = opaque(address, &[echo]);
    config["listeners"][0]["tcpIdleTimeout"] = json!("3s");
    let _proxy = Proxy::start(config);
    let mut raw = Raw::connect(address);
    // Together longer than the timeout, each far shorter.
    for _ in 0..12 {
        thread::sleep(Duration::from_millis(300));
        raw.send("x");
        raw.expect("x");
    }
    assert!(raw.closed().is_empty());
}

/// A reset must not look like a clean end.
#[test]
fn a_reset_is_passed_on() {
    let rude = upstream::opaque(|mut stream: TcpStream| {
        let mut byte = [0];
        let _ = stream.read(&mut byte);
        // What was sent and never read makes the close a reset.
        thread::sleep(Duration::from_millis(50));
    });
    let address = port::free_address();
    let _proxy = Proxy::start(opaque(address, &[rude]));
    let mut raw = Raw::connect(address);
    raw.send("much that nobody reads");
    let mut room = [0; 16];
    let ended = raw.stream.read(&mut room);
    assert!(ended.is_err(), "{ended:?} rather than a reset");
}

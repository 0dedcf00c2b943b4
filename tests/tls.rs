//! TLS on listeners and to services, with curl, openssl and nginx at the other end; certificates
//! that change while connections are open; passthrough by server name.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::certificate::{Authority, Pair};
use weft_tests::config::{front, push, route, service};
use weft_tests::curl::{Curled, curl};
use weft_tests::nginx::{ECHO, Nginx};
use weft_tests::proxy::{self, Proxy};
use weft_tests::raw::{self, Raw};
use weft_tests::upstream::{self, Upstream};
use weft_tests::{eventually, port, stepping_aside};

struct Setting {
    folder: TempDir,
    authority: Authority,
    web: SocketAddr,
}

fn setting() -> Setting {
    let folder = TempDir::new().expect("a folder can be made");
    let authority = Authority::new(folder.path(), "root");
    Setting {
        folder,
        authority,
        web: port::free_address(),
    }
}

impl Setting {
    /// A TLS listener with these certificates.
    fn front(&self, pairs: &[&Pair], endpoint: SocketAddr) -> Value {
        let mut config = front(self.web, &[endpoint]);
        let pairs: Vec<Value> = pairs.iter().map(|pair| pair.config()).collect();
        config["listeners"][0]["tls"] = json!({"certificates": pairs});
        config
    }

    /// curl to `name` at the proxy, trusting our root.
    fn curl(&self, name: &str, arguments: &[&str]) -> Curled {
        let port = self.web.port();
        let resolve = format!("{name}:{port}:127.0.0.1");
        let root = self.authority.file.display().to_string();
        let url = format!("https://{name}:{port}/path");
        let fixed = ["-v", "--cacert", &root, "--resolve", &resolve, &url];
        curl(&[&fixed[..], arguments].concat())
    }
}

/// What `openssl s_client` says about one handshake.
fn s_client(address: SocketAddr, arguments: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("openssl can be run; `make test` installs it");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn subject(address: SocketAddr, name: &str) -> String {
    let said = s_client(address, &["-servername", name]);
    let line = said.lines().find(|line| line.starts_with("subject="));
    line.unwrap_or("").replace(' ', "")
}

#[test]
fn curl_speaks_tls_to_it() {
    if stepping_aside("curl") || stepping_aside("openssl") {
        return;
    }
    let setting = setting();
    let upstream = Upstream::echo("up");
    let pair = setting.authority.issue("server", &["shop.example"]);
    let proxy = Proxy::start(setting.front(&[&pair], upstream.address));
    for (arguments, version) in [
        (&["--http1.1"][..], "1.1"),
        (&["--http2"], "2"),
        (&["--no-alpn"], "1.1"),
        (&["--tls-max", "1.2"], "2"),
        (&["--tlsv1.3"], "2"),
    ] {
        let got = setting.curl("shop.example", arguments);
        assert_eq!(
            (got.exit, got.status),
            (0, 200),
            "{arguments:?}: {}",
            got.log
        );
        assert_eq!(
            (got.version.as_str(), got.text().as_str()),
            (version, "/path")
        );
        assert_eq!(upstream.last().header("x-forwarded-proto"), Some("https"));
    }
    // TLS 1.1 is refused, and so is plain HTTP; both are counted.
    let old = s_client(setting.web, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(old.contains("alert") || old.contains("error"), "{old}");
    let mut plain = Raw::connect(setting.web);
    plain.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let _ = plain.closed();
    eventually("the failed handshakes being counted", || {
        let failed = proxy
            .metrics()
            .sum("weft_tls_handshakes_failed_total", &[("listener", "web")]);
        (failed >= 2.0).then_some(())
    });
}

#[test]
fn the_name_chooses_the_certificate() {
    if stepping_aside("openssl") {
        return;
    }
    let setting = setting();
    let upstream = Upstream::echo("up");
    let first = setting.authority.issue("first", &["first.example"]);
    let wild = setting.authority.issue("wild", &["*.shop.example"]);
    let _proxy = Proxy::start(setting.front(&[&first, &wild], upstream.address));
    for (name, certificate) in [
        ("first.example", "first.example"),
        ("a.shop.example", "*.shop.example"),
        ("unknown.example", "first.example"),
    ] {
        assert!(subject(setting.web, name).ends_with(certificate), "{name}");
    }
    let nameless = s_client(setting.web, &["-noservername"]);
    assert!(nameless.contains("first.example"), "{nameless}");
}

#[test]
fn sessions_resume() {
    if stepping_aside("openssl") {
        return;
    }
    let setting = setting();
    let upstream = Upstream::echo("up");
    let pair = setting.authority.issue("server", &["shop.example"]);
    let _proxy = Proxy::start(setting.front(&[&pair], upstream.address));
    let said = s_client(
        setting.web,
        &["-tls1_2", "-reconnect", "-servername", "shop.example"],
    );
    assert!(said.contains("Reused, "), "{said}");
}

#[test]
fn clients_show_certificates_when_asked() {
    if stepping_aside("curl") {
        return;
    }
    let setting = setting();
    let upstream = Upstream::echo("up");
    let pair = setting.authority.issue("server", &["shop.example"]);
    let client = setting.authority.issue("client", &["client.example"]);
    let stranger = Authority::new(setting.folder.path(), "other").issue("stranger", &["x.example"]);
    let mut config = setting.front(&[&pair], upstream.address);
    config["listeners"][0]["tls"]["clientCa"] = json!(setting.authority.file);
    let _proxy = Proxy::start(config);
    for (shown, accepted) in [
        (Some(&client), true),
        (Some(&stranger), false),
        (None, false),
    ] {
        let paths =
            shown.map(|pair| [&pair.certificate, &pair.key].map(|path| path.display().to_string()));
        let arguments = paths
            .as_ref()
            .map(|[certificate, key]| vec!["--cert", certificate, "--key", key]);
        let got = setting.curl("shop.example", &arguments.unwrap_or_default());
        assert_eq!(got.exit == 0, accepted, "{shown:?}: {}", got.log);
    }
    assert_eq!(upstream.count(), 1);
}

#[test]
fn a_new_certificate_is_taken_while_old_connections_go_on() {
    if stepping_aside("openssl") || stepping_aside("curl") {
        return;
    }
    let setting = setting();
    let upstream = Upstream::echo("up");
    let pair = setting.authority.issue("server", &["old.example"]);
    let proxy = Proxy::start(setting.front(&[&pair], upstream.address));
    assert!(subject(setting.web, "x").ends_with("old.example"));

    // A connection that lives through the change.
    let mut open = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &setting.web.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl can be run");
    let mut sink = open.stdin.take().expect("it is piped");
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    sink.write_all(request("/before").as_bytes())
        .expect("it is open");
    eventually("the request before", || {
        (upstream.count() == 1).then_some(())
    });

    setting.authority.issue("server", &["new.example"]);
    eventually("the new certificate", || {
        subject(setting.web, "x")
            .ends_with("new.example")
            .then_some(())
    });
    sink.write_all(request("/after").as_bytes())
        .expect("it is open");
    eventually("the request after", || {
        (upstream.count() == 2).then_some(())
    });
    // It stays until somebody ends it (`-quiet` ignores the end of its input).
    let _ = open.kill();
    let _ = open.wait();

    // Half a change (a key that fits no certificate) keeps what works, and says so.
    let failed = |proxy: &Proxy| {
        proxy
            .metrics()
            .sum("weft_certificate_reloads_total", &[("result", "failure")])
    };
    std::fs::write(&pair.key, "nonsense").expect("it can be written");
    eventually("the refused key being counted", || {
        (failed(&proxy) >= 1.0).then_some(())
    });
    assert!(subject(setting.web, "x").ends_with("new.example"));
    setting.authority.issue("server", &["third.example"]);
    eventually("the third certificate", || {
        subject(setting.web, "x")
            .ends_with("third.example")
            .then_some(())
    });
}

#[test]
fn services_are_verified() {
    if stepping_aside("nginx") {
        return;
    }
    let setting = setting();
    let pair = setting.authority.issue("server", &["inner.example"]);
    let other = Authority::new(setting.folder.path(), "other");
    let paths = |pair: &Pair| {
        format!(
            "ssl_certificate {}; ssl_certificate_key {};",
            pair.certificate.display(),
            pair.key.display()
        )
    };
    let nginx = Nginx::listening("ssl http2", &format!("{} {ECHO}", paths(&pair)));
    let mut config = front(setting.web, &[nginx.address]);
    let tls = json!({"serverName": "inner.example", "ca": setting.authority.file});
    config["services"][0]["tls"] = tls.clone();
    let mut proxy = Proxy::start(config);
    for protocol in ["http", "http1", "http2"] {
        proxy.reload(|config| config["services"][0]["protocol"] = json!(protocol));
        assert_eq!(raw::get(setting.web, "/h1").text(), "/h1", "{protocol}");
        assert_eq!(
            weft_tests::http2::get(setting.web, "/h2").text(),
            "/h2",
            "{protocol}"
        );
    }
    for (change, works) in [
        (
            json!({"serverName": "wrong.example", "ca": setting.authority.file}),
            false,
        ),
        (
            json!({"serverName": "inner.example", "ca": other.file}),
            false,
        ),
        (json!({"serverName": "inner.example"}), false),
        (json!({"insecureSkipVerify": true}), true),
        (tls, true),
    ] {
        let told = change.to_string();
        proxy.reload(|config| config["services"][0]["tls"] = change);
        let answer = raw::get(setting.web, "/");
        assert_eq!(answer.status == 200, works, "{told}: {answer:?}");
        if !works {
            assert_eq!(
                (answer.status, answer.reason()),
                (502, "upstream_tls"),
                "{told}"
            );
        }
    }
}

#[test]
fn services_ask_for_our_certificate() {
    if stepping_aside("nginx") {
        return;
    }
    let setting = setting();
    let pair = setting.authority.issue("server", &["inner.example"]);
    let client = setting.authority.issue("client", &["client.example"]);
    let nginx = Nginx::listening(
        "ssl",
        &format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {};
             ssl_verify_client on; location / {{ return 200 $ssl_client_s_dn; }}",
            pair.certificate.display(),
            pair.key.display(),
            setting.authority.file.display()
        ),
    );
    let mut config = front(setting.web, &[nginx.address]);
    config["services"][0]["tls"] =
        json!({"serverName": "inner.example", "ca": setting.authority.file});
    let mut proxy = Proxy::start(config);
    assert_eq!(raw::get(setting.web, "/").status, 400);
    proxy.reload(|config| {
        config["services"][0]["tls"]["clientCertificate"] = client.config();
    });
    assert_eq!(raw::get(setting.web, "/").text(), "CN=client.example");
}

/// Bytes pass undecrypted, to the service of the name that the client asks for.
#[test]
fn passthrough_goes_by_name() {
    if stepping_aside("curl") || stepping_aside("nginx") {
        return;
    }
    let setting = setting();
    let server = |name: &str| {
        let pair = setting.authority.issue(name, &[name]);
        let paths = format!(
            "ssl_certificate {}; ssl_certificate_key {};",
            pair.certificate.display(),
            pair.key.display()
        );
        Nginx::listening(
            "ssl",
            &format!("{paths} location / {{ return 200 {name}; }}"),
        )
    };
    let (one, two) = (server("one.example"), server("a.two.example"));
    let mut services = [
        service("one", &[one.address]),
        service("two", &[two.address]),
    ];
    for service in &mut services {
        service["protocol"] = json!("tcp");
    }
    let tls_route = |name: &str, host: &str| {
        let mut route = route(name, json!([{"backendRefs": [{"name": name}]}]));
        route["kind"] = json!("tls");
        route["hostnames"] = json!([host]);
        route
    };
    let proxy = Proxy::start(json!({
        "listeners": [{"name": "web", "address": setting.web.to_string(), "protocol": "tls"}],
        "services": services,
        "routes": [tls_route("one", "one.example"), tls_route("two", "*.two.example")],
    }));
    for name in ["one.example", "a.two.example"] {
        let got = setting.curl(name, &[]);
        assert_eq!((got.exit, got.text().as_str()), (0, name), "{}", got.log);
    }
    assert_ne!(setting.curl("three.example", &[]).exit, 0);
    // What is no TLS at all is closed.
    let mut plain = Raw::connect(setting.web);
    plain.send("GET / HTTP/1.1\r\nHost: one.example\r\n\r\n");
    assert!(plain.closed().is_empty());
    drop(proxy);
}

/// A ClientHello in many pieces, each in a packet of its own.
#[test]
fn a_slow_hello_is_waited_for() {
    let setting = setting();
    let upstream = Upstream::echo("up");
    let pair = setting.authority.issue("server", &["shop.example"]);
    let mut config = setting.front(&[&pair], upstream.address);
    config["listeners"][0]["http"] = json!({"headerTimeout": "500ms"});
    let auto = port::free_address();
    let tls = config["listeners"][0]["tls"].clone();
    let listener = json!({"name": "auto", "address": auto.to_string(), "protocol": "auto",
        "service": "up", "tls": tls});
    push(&mut config, "listeners", listener);
    let _proxy = Proxy::start(config);
    // One that never ends is closed, one that is complete is served.
    let mut stalled = Raw::connect(setting.web);
    stalled.send(b"\x16\x03\x01\x02\x00\x01");
    assert!(stalled.closed().len() < 64);
    if stepping_aside("openssl") {
        return;
    }
    // Where TLS is configured nothing passes without it, whatever the protocol turns out to be.
    assert!(subject(auto, "shop.example").ends_with("shop.example"));
    let mut plain = Raw::connect(auto);
    plain.send("GET /plain HTTP/1.1\r\nHost: test\r\n\r\n");
    let _ = plain.closed();
    assert!(upstream.seen().iter().all(|seen| seen.target() != "/plain"));
}

#[test]
fn missing_files_are_said_before_the_start() {
    let setting = setting();
    let pair = setting.authority.issue("server", &["shop.example"]);
    let missing = Path::new("/nowhere/to/be/found.pem");
    for (certificate, key) in [(missing, &*pair.key), (&*pair.certificate, missing)] {
        let mut config = front(setting.web, &[port::free_address()]);
        config["listeners"][0]["tls"] =
            json!({"certificates": [{"certificate": certificate, "privateKey": key}]});
        let output = proxy::run(&config, &[]);
        let said =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && output.status.code() != Some(124),
            "{said}"
        );
        assert!(said.contains("/nowhere/to/be/found.pem"), "{said}");
    }
}

/// A TLS listener in front of opaque bytes, and TLS to a service that has them.
#[test]
fn opaque_bytes_are_wrapped_and_unwrapped() {
    if stepping_aside("openssl") {
        return;
    }
    let setting = setting();
    let pair = setting.authority.issue("server", &["shop.example"]);
    let echo = upstream::opaque(|mut stream: TcpStream| {
        let mut copy = stream.try_clone().expect("a socket can be cloned");
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let outer = port::free_address();
    let mut inner_service = service("inner", &[setting.web]);
    inner_service["protocol"] = json!("tcp");
    inner_service["tls"] = json!({"serverName": "shop.example", "ca": setting.authority.file});
    let mut echo_service = service("echo", &[echo]);
    echo_service["protocol"] = json!("tcp");
    let _proxy = Proxy::start(json!({
        "listeners": [
            {"name": "outer", "address": outer.to_string(), "protocol": "tcp", "service": "inner"},
            {"name": "inner", "address": setting.web.to_string(), "protocol": "tcp",
             "service": "echo", "tls": {"certificates": [pair.config()]}},
        ],
        "services": [inner_service, echo_service],
    }));
    let mut raw = Raw::connect(outer);
    raw.send("through both");
    raw.expect("through both");
    raw.finish();
    assert!(raw.closed().is_empty());
}

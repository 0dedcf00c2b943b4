//! The whole process on loopback: start, reload, handover, drain, and what it
//! says when it cannot.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_weft-proxy");
const PATIENCE: Duration = Duration::from_secs(20);

fn kill(signal: &str, pid: &str) {
    let status = Command::new("kill").args([signal, pid]).status().unwrap();
    assert!(status.success());
}

/// Below the kernel's ephemeral range (32768 and up): no connection of a load takes it before it is
/// bound. Given out once.
fn free_address() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 211;
    let mut ports = (0..10_000).map(|_| start + NEXT.fetch_add(1, Ordering::Relaxed));
    let free = ports.find_map(|port| {
        let port = u16::try_from(15_000 + port % 17_000).unwrap();
        TcpListener::bind(("127.0.0.1", port)).ok()
    });
    free.unwrap().local_addr().unwrap()
}

fn until(what: &str, mut test: impl FnMut() -> bool) {
    let start = Instant::now();
    while !test() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Answers every request with `ok`, for as long as the test runs.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut tcp = tcp;
                let mut head = Vec::new();
                let mut byte = [0; 512];
                while let Ok(read @ 1..) = tcp.read(&mut byte) {
                    head.extend_from_slice(&byte[..read]);
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                    }
                }
            });
        }
    });
    address
}

/// One request on a connection of its own; its status and body.
fn request(address: SocketAddr, line: &str) -> std::io::Result<(u16, String)> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let head = format!("{line} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    tcp.write_all(head.as_bytes())?;
    let mut all = String::new();
    tcp.read_to_string(&mut all)?;
    let bad = || std::io::Error::other(format!("no answer: {all:?}"));
    let status = all.get(9..12).and_then(|status| status.parse().ok());
    let (_, body) = all.split_once("\r\n\r\n").ok_or_else(bad)?;
    Ok((status.ok_or_else(bad)?, body.to_owned()))
}

/// A running proxy with a directory of its own; killed at the end.
struct Proxy {
    dir: PathBuf,
    web: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
}

impl Proxy {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("weft-process-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let (web, admin) = (free_address(), free_address());
        let proxy = Self {
            dir,
            web,
            admin,
            child: None,
        };
        proxy.configure(&[("web", web)]);
        proxy
    }

    fn config(&self) -> PathBuf {
        self.dir.join("weft.yaml")
    }

    fn configure(&self, listeners: &[(&str, SocketAddr)]) {
        let listeners: String = listeners
            .iter()
            .map(|(name, address)| {
                format!("- {{name: {name}, address: '{address}', protocol: http, service: a}}\n")
            })
            .collect();
        let text = format!(
            "settings: {{admin: '{}', workers: 2, drain: {{quiet: 100ms, timeout: 5s}}}}\n\
             listeners:\n{listeners}\
             services:\n- {{name: a, endpoints: [{{address: '{}'}}]}}\n",
            self.admin,
            upstream()
        );
        self.write(&text);
    }

    fn write(&self, text: &str) {
        let fresh = self.dir.join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, self.config()).unwrap();
    }

    fn spawn(&self, more: &[&str]) -> Child {
        self.spawn_program(BINARY.as_ref(), more)
    }

    fn spawn_program(&self, program: &Path, more: &[&str]) -> Child {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        Command::new(program)
            .arg("--config")
            .arg(self.config())
            .args(more)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn start(&mut self, more: &[&str]) {
        self.child = Some(self.spawn(more));
        until("ready", || self.is_ready());
    }

    fn is_ready(&self) -> bool {
        matches!(request(self.admin, "GET /ready"), Ok((200, _)))
    }

    fn get(&self, page: &str) -> (u16, String) {
        request(self.admin, &format!("GET {page}")).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    fn signal(&self, name: &str) {
        kill(name, &self.child.as_ref().unwrap().id().to_string());
    }

    /// Starts the binary by a name of its own, so that the next one can be
    /// another program.
    fn start_replaceable(&mut self) {
        let program = self.dir.join("program");
        std::os::unix::fs::symlink(BINARY, &program).unwrap();
        self.child = Some(self.spawn_program(&program, &[]));
        until("ready", || self.is_ready());
    }

    /// SIGUSR2, and SIGTERM while the new process still starts, which is to do
    /// what `script` says once it is let go on.
    fn upgrade_and_terminate(&self, script: &str) {
        let fresh = self.dir.join("fresh-program");
        let held = format!(
            "until [ -e {} ]; do sleep 0.02; done",
            self.gate().display()
        );
        std::fs::write(&fresh, format!("#!/bin/sh\n{held}\n{script}\n")).unwrap();
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&fresh, self.dir.join("program")).unwrap();
        self.signal("-USR2");
        until("the new process", || {
            self.log().contains("started a new process")
        });
        self.signal("-TERM");
        until("the signal", || {
            self.log().contains("asked to leave during a handover")
        });
    }

    fn gate(&self) -> PathBuf {
        self.dir.join("gate")
    }

    /// Lets the new process go on.
    fn let_go_on(&self) {
        std::fs::write(self.gate(), "").unwrap();
    }

    /// Ends the process that took over after SIGUSR2.
    fn end_successor(&self) {
        let log = self.log();
        let line = log
            .lines()
            .find(|line| line.contains("started a new process"))
            .unwrap();
        let (_, pid) = line.split_once("pid=").unwrap();
        let pid = pid.split(' ').next().unwrap();
        kill("-TERM", pid);
        until("the new process ends", || {
            TcpStream::connect(self.web).is_err()
        });
    }

    /// Waits for the end of the process; its exit code.
    fn wait(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let mut code = None;
        until("the end", || match child.try_wait().unwrap() {
            Some(status) => {
                code = status.code();
                true
            }
            None => false,
        });
        code
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        } else if let Ok(log) = std::fs::read_to_string(self.dir.join("log")) {
            eprintln!("log:\n{log}");
        }
    }
}

/// Requests from several threads until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    fn on(address: SocketAddr) -> Self {
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let threads = (0..4)
            .map(|_| {
                let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
                std::thread::spawn(move || {
                    let mut failed = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        match request(address, "GET /") {
                            Ok((200, _)) => {}
                            other => failed.push(format!("{other:?}")),
                        }
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    failed
                })
            })
            .collect();
        Self {
            stop,
            sent,
            threads,
        }
    }

    fn wait_for(&self, count: usize) {
        let start = self.sent.load(Ordering::Relaxed);
        until("load", || {
            self.sent.load(Ordering::Relaxed) >= start + count
        });
    }

    /// Everything that failed.
    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    }
}

#[test]
fn it_serves_reloads_and_drains() {
    let mut proxy = Proxy::new("reload");
    proxy.start(&[]);
    let load = Load::on(proxy.web);
    load.wait_for(20);
    let other = free_address();
    proxy.configure(&[("renamed", proxy.web), ("other", other)]);
    until("the new listener", || {
        matches!(request(other, "GET /"), Ok((200, _)))
    });
    load.wait_for(20);
    let good = proxy.get("/config").1;
    proxy.write("listeners: [{name: web, addres: x}]\nservices: 7\n");
    until("the refusal", || {
        proxy.get("/config").1.contains("\"lastReloadRefused\": {")
    });
    let page = proxy.get("/config").1;
    assert!(
        page.contains("addres") && page.contains("renamed"),
        "{page}"
    );
    assert!(
        proxy
            .get("/metrics")
            .1
            .contains(r#"weft_reloads_total{result="failure"} 1"#)
    );
    proxy.signal("-HUP");
    until("the second refusal", || {
        proxy
            .get("/metrics")
            .1
            .contains(r#"weft_reloads_total{result="failure"} 2"#)
    });
    let (status, body) = request(proxy.admin, "POST /reload").unwrap();
    assert!(status == 422 && body.contains("services"), "{body}");
    load.wait_for(20);
    assert_eq!(load.end(), Vec::<String>::new());
    assert!(good.contains("renamed"));
    proxy.signal("-TERM");
    assert_eq!(proxy.wait(), Some(0));
    assert!(TcpStream::connect(proxy.web).is_err());
}

#[test]
fn a_reload_that_cannot_listen_changes_nothing() {
    let mut proxy = Proxy::new("in-use");
    proxy.start(&[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.configure(&[
        ("late", free_address()),
        ("taken", taken.local_addr().unwrap()),
    ]);
    until("the refusal", || {
        proxy.get("/config").1.contains("already in use")
    });
    assert!(!proxy.get("/listeners").1.contains("late"));
    assert!(matches!(request(proxy.web, "GET /"), Ok((200, _))));
}

#[test]
fn sigusr2_replaces_the_process_without_a_lost_request() {
    let mut proxy = Proxy::new("usr2");
    proxy.start(&[]);
    let load = Load::on(proxy.web);
    load.wait_for(20);
    proxy.signal("-USR2");
    until("the new process", || {
        proxy.log().matches(" ready ").count() == 2
    });
    until("the old one leaves", || proxy.log().contains("draining"));
    for _ in 0..20 {
        assert!(proxy.is_ready(), "probes reach only the new one");
    }
    assert_eq!(proxy.wait(), Some(0), "the old process ends by itself");
    load.wait_for(50);
    assert_eq!(load.end(), Vec::<String>::new());
    assert!(proxy.is_ready(), "the admin port was handed over too");
    proxy.end_successor();
}

#[test]
fn sigterm_during_a_handover_waits_for_it() {
    let mut proxy = Proxy::new("usr2-term");
    proxy.start_replaceable();
    let load = Load::on(proxy.web);
    load.wait_for(20);
    proxy.upgrade_and_terminate(&format!("exec {BINARY} \"$@\""));
    proxy.let_go_on();
    assert_eq!(proxy.wait(), Some(0), "the old process ends");
    load.wait_for(50);
    assert_eq!(load.end(), Vec::<String>::new());
    assert!(proxy.is_ready(), "the new one serves");
    proxy.end_successor();
}

#[test]
fn sigterm_during_a_handover_that_fails_drains() {
    let mut proxy = Proxy::new("usr2-fail");
    proxy.start_replaceable();
    proxy.upgrade_and_terminate("exit 1");
    assert!(matches!(request(proxy.web, "GET /"), Ok((200, _))));
    proxy.let_go_on();
    assert_eq!(proxy.wait(), Some(0));
    assert!(proxy.log().contains("the new process did not take over"));
}

#[test]
fn the_new_process_serves_when_the_old_one_is_killed_during_a_handover() {
    let mut proxy = Proxy::new("usr2-kill");
    proxy.start_replaceable();
    proxy.upgrade_and_terminate(&format!("exec {BINARY} \"$@\""));
    proxy.signal("-TERM");
    assert_eq!(proxy.wait(), Some(143), "a second signal ends it at once");
    proxy.let_go_on();
    until("the new one", || proxy.is_ready());
    assert!(matches!(request(proxy.web, "GET /"), Ok((200, _))));
    proxy.end_successor();
}

#[test]
fn a_drain_ends_under_steady_new_connections_and_loses_none() {
    let mut proxy = Proxy::new("steady");
    let text = std::fs::read_to_string(proxy.config()).unwrap();
    proxy.write(&text.replace("quiet: 100ms, timeout: 5s", "quiet: 500ms, timeout: 15s"));
    proxy.start(&[]);
    let load = Load::on(proxy.web);
    load.wait_for(50);
    let start = Instant::now();
    proxy.signal("-TERM");
    load.wait_for(50);
    assert_eq!(proxy.wait(), Some(0));
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(2500),
        "{took:?}: five times the quiet"
    );
    assert!(took < Duration::from_secs(7), "{took:?}: not half the time");
    let mut failed = load.end();
    failed.retain(|failure| !failure.contains("ConnectionRefused"));
    assert_eq!(
        failed,
        Vec::<String>::new(),
        "whoever was let in was served"
    );
    assert!(proxy.log().contains("new connections keep coming"));
}

#[test]
fn a_drain_ends_idle_connections_long_before_its_deadline() {
    let mut proxy = Proxy::new("idle");
    let text = std::fs::read_to_string(proxy.config()).unwrap();
    proxy.write(&text.replace("quiet: 100ms, timeout: 5s", "quiet: 100ms, timeout: 1m"));
    proxy.start(&[]);
    let mut idle = TcpStream::connect(proxy.web).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .unwrap();
    let mut answer = [0; 512];
    assert!(idle.read(&mut answer).unwrap() > 0);
    let start = Instant::now();
    proxy.signal("-TERM");
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest);
    let took = start.elapsed();
    assert!(took > Duration::from_secs(5), "{took:?}: no sooner");
    assert_eq!(proxy.wait(), Some(0));
    assert!(!proxy.log().contains("drain.timeout has passed"));
}

#[test]
fn an_upgrade_socket_that_cannot_be_is_said_before_the_old_process_leaves() {
    let mut proxy = Proxy::new("no-socket");
    let path = proxy.dir.join("upgrade");
    proxy.start(&["--upgrade-socket", path.to_str().unwrap()]);
    // The old one can be reached by this name, but a socket's may have 107
    // bytes, and the one that is made first has some more.
    let longest = 105 - proxy.dir.as_os_str().len() - 1;
    let link = proxy.dir.join("x".repeat(longest));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let load = Load::on(proxy.web);
    load.wait_for(20);
    let failed = run(&[
        "--config",
        proxy.config().to_str().unwrap(),
        "--upgrade-socket",
        link.to_str().unwrap(),
    ]);
    assert_eq!(failed.status.code(), Some(1));
    load.wait_for(20);
    assert_eq!(load.end(), Vec::<String>::new());
    assert!(!proxy.log().contains("draining"), "the old one stays");
}

#[test]
fn the_upgrade_socket_hands_over_and_survives_a_bad_successor() {
    let mut proxy = Proxy::new("socket");
    let path = proxy.dir.join("upgrade");
    let option = ["--upgrade-socket", path.to_str().unwrap()];
    proxy.start(&option);
    let load = Load::on(proxy.web);
    load.wait_for(20);
    let config = std::fs::read_to_string(proxy.config()).unwrap();
    let wrong = proxy.dir.join("wrong.yaml");
    std::fs::write(&wrong, "listeners: 1").unwrap();
    let failed = Command::new(BINARY)
        .arg("--config")
        .arg(&wrong)
        .args(option)
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(1));
    load.wait_for(20);
    // More workers than before, and again fewer.
    for workers in ["3", "1"] {
        let next = proxy.spawn(&[option[0], option[1], "--workers", workers]);
        assert_eq!(proxy.wait(), Some(0));
        proxy.child = Some(next);
        load.wait_for(50);
    }
    assert_eq!(load.end(), Vec::<String>::new());
    until("ready", || proxy.is_ready());
    assert!(proxy.get("/metrics").1.contains("weft_workers 1\n"));
    proxy.write(&config);
    proxy.signal("-TERM");
    assert_eq!(proxy.wait(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut proxy = Proxy::new("twice");
    let text = std::fs::read_to_string(proxy.config()).unwrap();
    proxy.write(&text.replace("quiet: 100ms, timeout: 5s", "quiet: 1h, timeout: 2h"));
    proxy.start(&[]);
    proxy.signal("-INT");
    until("draining", || {
        proxy.get("/ready") == (503, "not ready: draining\n".to_owned())
    });
    assert!(
        matches!(request(proxy.web, "GET /"), Ok((200, _))),
        "still accepting"
    );
    proxy.signal("-INT");
    assert_eq!(proxy.wait(), Some(130));
}

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

#[test]
fn check_and_explain() {
    let proxy = Proxy::new("check");
    let config = proxy.config();
    let config = config.to_str().unwrap();
    let good = run(&["--config", config, "--check"]);
    assert!(good.status.success() && String::from_utf8_lossy(&good.stdout).contains("good"));
    let url = format!("http://x:{}/y", proxy.web.port());
    let explained = run(&["--config", config, "--explain", &url, "-H", "a: b"]);
    assert!(explained.status.success(), "{explained:?}");
    let explained = run(&["--config", config, "--explain", &url, "-o", "json"]);
    let page: serde_json::Value = serde_json::from_slice(&explained.stdout).unwrap();
    assert_eq!(page["listener"], "web");
    proxy.write(
        "listeners:\n- {name: a, address: '127.0.0.1:1', service: s, tls: {certificates: [{certificate: /no/c, privateKey: /no/k}]}}\n\
         services:\n- {name: s, tls: {ca: /no/ca}, endpoints: [{address: '10.0.0.1:1'}]}\n",
    );
    let bad = run(&["--config", config, "--check"]);
    let errors = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert_eq!(bad.status.code(), Some(1));
    assert_eq!(errors.lines().count(), 2, "{errors}");
    assert!(
        errors
            .lines()
            .all(|line| line.starts_with(config) && line.contains("no such file")),
        "{errors}"
    );
    let missing = run(&["--config", "/no/weft.yaml"]);
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("--config"),
        "{missing:?}"
    );
}

#[test]
fn a_port_in_use_stops_the_start_with_advice() {
    let mut proxy = Proxy::new("second");
    proxy.start(&[]);
    let second = run(&["--config", proxy.config().to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        errors.contains("listener \"web\"") && errors.contains("already in use"),
        "{errors}"
    );
}

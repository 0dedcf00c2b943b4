//! The process replaces itself under load: no connection refused, no request lost. By SIGUSR2, which
//! starts the same binary, and by a second process that finds the first through a shared socket.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use weft_tests::config::front;
use weft_tests::h2load;
use weft_tests::load::{Load, Mode};
use weft_tests::nginx::{ECHO, Nginx};
use weft_tests::process::{Program, Signal, signal_pid};
use weft_tests::proxy::{Proxy, binary};
use weft_tests::raw::{self, Raw};
use weft_tests::successors::{Successors, running};
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, port, stepping_aside};

fn config(web: SocketAddr, endpoint: SocketAddr) -> Value {
    let mut config = front(web, &[endpoint]);
    config["settings"] = json!({"drain": {"timeout": "20s", "quiet": "100ms"}});
    config
}

/// Replaces the process `old` and gives the pid of the new one, which is then alone.
fn replace(file: &Path, old: u32) -> u32 {
    signal_pid(old, Signal::USR2);
    let new = eventually("a new process", || {
        running(file).into_iter().find(|&pid| pid != old)
    });
    eventually("the old process ending", || {
        let ended = fs::read_to_string(format!("/proc/{old}/stat"))
            .map_or(true, |stat| stat.contains(") Z "));
        ended.then_some(())
    });
    new
}

#[test]
fn replacements_under_load_lose_nothing() {
    let upstreams = ["0", "1"].map(Upstream::echo);
    let web = port::free_address();
    let mut config = config(web, upstreams[0].address);
    config["services"][0]["endpoints"] = upstreams
        .iter()
        .map(|up| json!({"address": up.address.to_string()}))
        .collect();
    let proxy = Proxy::start(config);
    let file = proxy.config_path();
    let _successors = Successors(file.clone());
    let modes = [Mode::KeepAlive, Mode::ConnectEach, Mode::Http2(8)];
    let loads = modes.map(|mode| Load::start(web, mode, 6));
    let mut pid = proxy.program.pid();
    for _ in 0..3 {
        for load in &loads {
            load.goes_on(200);
        }
        pid = replace(&file, pid);
    }
    for load in &loads {
        load.goes_on(200);
    }
    for load in loads {
        load.stop().none_lost();
    }
    assert_eq!(running(&file), [pid]);
    assert_eq!(raw::get(proxy.admin, "/ready").status, 200);
}

#[test]
fn h2load_notices_no_replacement() {
    if stepping_aside("nginx") || stepping_aside("h2load") {
        return;
    }
    let nginx = Nginx::start(ECHO);
    let web = port::free_address();
    let proxy = Proxy::start(config(web, nginx.address));
    let file = proxy.config_path();
    let _successors = Successors(file.clone());
    let url = format!("http://{web}/load");
    // A connection for each request, for as long as two replacements take.
    let load = std::thread::spawn(move || {
        let mut counted = Vec::new();
        for _ in 0..60 {
            counted.push(h2load::h2load(&["--h1", "-n", "50", "-c", "50", &url]));
        }
        counted
    });
    let first = replace(&file, proxy.program.pid());
    let second = replace(&file, first);
    for counted in load.join().expect("h2load runs") {
        counted.all_good();
    }
    assert_eq!(running(&file), [second]);
}

/// The admin port answers throughout, and from the moment the new process is there for it alone.
#[test]
fn readiness_does_not_flicker() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let proxy = Proxy::start(config(web, upstream.address));
    let file = proxy.config_path();
    let _successors = Successors(file.clone());
    // A request that keeps the old process busy for a while.
    let mut held = Raw::connect(web);
    held.send("POST /held HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbo");
    let old = proxy.program.pid();
    signal_pid(old, Signal::USR2);
    let mut unready = Vec::new();
    eventually("the old process leaving", || {
        let answer = Raw::try_connect(proxy.admin).and_then(|mut raw| raw.try_get("/ready"));
        if answer.as_ref().is_none_or(|answer| answer.status != 200) {
            unready.push(answer);
        }
        proxy.program.output().contains("draining").then_some(())
    });
    for _ in 0..50 {
        let answer = Raw::try_connect(proxy.admin).and_then(|mut raw| raw.try_get("/ready"));
        if answer.as_ref().is_none_or(|answer| answer.status != 200) {
            unready.push(answer);
        }
    }
    assert!(unready.is_empty(), "{unready:?}");
    held.send("dy");
    assert_eq!(held.answer().text(), "/heldbody");
}

/// A new version that cannot start changes nothing.
#[test]
fn a_failed_replacement_changes_nothing() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut proxy = Proxy::start(config(web, upstream.address));
    let file = proxy.config_path();
    let _successors = Successors(file.clone());
    let good = fs::read_to_string(&file).expect("it is there");
    let load = Load::start(web, Mode::ConnectEach, 4);
    fs::write(&file, "listeners: [").expect("it can be written");
    proxy.signal(Signal::USR2);
    eventually("the failure being said", || {
        proxy
            .program
            .output()
            .contains("did not take over")
            .then_some(())
    });
    load.goes_on(200);
    fs::write(&file, good).expect("it can be written");
    load.stop().none_lost();
    proxy.is_well();
    let pid = replace(&file, proxy.program.pid());
    assert_eq!(raw::get(web, "/").status, 200);
    assert_eq!(running(&file), [pid]);
}

#[test]
fn a_second_process_takes_over_by_the_socket() {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let mut proxy = Proxy::start_as(config(web, upstream.address), |folder| {
        let mut command = Command::new(binary());
        command.arg("--config").arg(folder.join("weft.yaml"));
        command.arg("--upgrade-socket").arg(folder.join("upgrade"));
        command
    });
    let modes = [Mode::KeepAlive, Mode::ConnectEach, Mode::Http2(8)];
    let loads = modes.map(|mode| Load::start(web, mode, 4));
    let mut successors: Vec<Program> = Vec::new();
    for round in 0..2 {
        for load in &loads {
            load.goes_on(200);
        }
        let mut command = Command::new(binary());
        command.arg("--config").arg(proxy.config_path());
        command
            .arg("--upgrade-socket")
            .arg(proxy.folder.path().join("upgrade"));
        let new = Program::start(
            &format!("successor-{round}"),
            &mut command,
            proxy.folder.path(),
        );
        let old = successors.last_mut().unwrap_or(&mut proxy.program);
        assert!(old.ended().success(), "{}", old.output());
        successors.push(new);
    }
    for load in &loads {
        load.goes_on(200);
    }
    for load in loads {
        load.stop().none_lost();
    }
    let last = successors.last_mut().expect("there are two");
    assert!(last.is_running());
    last.signal(Signal::TERM);
    assert!(last.ended().success());
}

/// The new process may have more listeners, and fewer: what stays is handed over, what is new is
/// opened, what is gone refuses.
#[test]
fn a_replacement_takes_a_new_configuration() {
    let upstream = Upstream::echo("up");
    let (web, gone, new) = (
        port::free_address(),
        port::free_address(),
        port::free_address(),
    );
    let mut config = config(web, upstream.address);
    let listener = |name: &str, address: SocketAddr| json!({"name": name, "address": address.to_string(), "protocol": "http", "service": "up"});
    weft_tests::config::push(&mut config, "listeners", listener("gone", gone));
    let proxy = Proxy::start(config);
    let file = proxy.config_path();
    let _successors = Successors(file.clone());
    assert_eq!(raw::get(gone, "/").status, 200);
    let load = Load::start(web, Mode::ConnectEach, 4);
    let text = fs::read_to_string(&file).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["listeners"][1] = listener("new", new);
    config["settings"]["workers"] = json!(3);
    weft_tests::proxy::write(&file, &config);
    replace(&file, proxy.program.pid());
    assert_eq!(raw::get(new, "/").status, 200);
    assert!(Raw::try_connect(gone).is_none());
    load.goes_on(200);
    load.stop().none_lost();
    assert!((proxy.metrics().sum("weft_workers", &[]) - 3.0).abs() < 0.1);
}

/// Replicas restart, the configuration changes and the process is replaced, all at once and again.
#[test]
fn everything_at_once_loses_nothing() {
    let mut upstreams = ["0", "1", "2"].map(Upstream::echo);
    let web = port::free_address();
    let mut config = config(web, upstreams[0].address);
    config["services"][0]["endpoints"] = upstreams
        .iter()
        .map(|up| json!({"address": up.address.to_string()}))
        .collect();
    config["services"][0]["retryBudget"] = json!({"percent": 50});
    let proxy = Proxy::start(config);
    let file = proxy.config_path();
    let _successors = Successors(file.clone());
    let text = fs::read_to_string(&file).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let modes = [Mode::KeepAlive, Mode::ConnectEach, Mode::Http2(8)];
    let loads = modes.map(|mode| Load::start(web, mode, 4));
    let mut pid = proxy.program.pid();
    for round in 0..6 {
        let address = upstreams[round % 3].address;
        upstreams[round % 3].stop();
        config["services"][0]["limits"] = json!({"requestsMax": 1000 + round});
        weft_tests::proxy::write(&file, &config);
        if round % 2 == 0 {
            signal_pid(pid, Signal::HUP);
        } else {
            pid = replace(&file, pid);
        }
        for load in &loads {
            load.goes_on(100);
        }
        upstreams[round % 3] = Upstream::echo_at(address, "back");
        for load in &loads {
            load.goes_on(100);
        }
    }
    for load in loads {
        load.stop().none_lost();
    }
}

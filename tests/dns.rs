//! Endpoints from DNS, asked of a real server through the system's own resolver configuration.
//!
//! That is /etc/resolv.conf, so the proxy runs in a mount namespace with one of its own, and the
//! server takes port 53 on a loopback address that nobody else uses. Both take root; without it these
//! tests step aside, aloud.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::{Value, json};
use weft_tests::config::front;
use weft_tests::dns::Dns;
use weft_tests::proxy::{self, Proxy, binary};
use weft_tests::raw::Raw;
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, port};

/// Runs with another /etc/resolv.conf than the machine's.
fn proxy_of(dns: &Dns, config: Value) -> Proxy {
    Proxy::start_as(config, |folder| {
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$1\" --config \"$2\"")
            .arg(&dns.resolv)
            .arg(binary())
            .arg(folder.join("weft.yaml"));
        command
    })
}

/// True, with a line that says so, where a mount namespace cannot be had.
fn not_root() -> bool {
    let allowed = Command::new("unshare").args(["-m", "true"]).output();
    let aside = !allowed.is_ok_and(|output| output.status.success());
    if aside {
        println!("stepped aside: a mount namespace takes root");
    }
    aside
}

fn service(name: &str, port: u16) -> Value {
    json!({"name": "up", "dns": {"name": name, "port": port, "refreshMin": "100ms"}})
}

/// Who answers, over many requests.
fn answering(web: SocketAddr) -> Vec<String> {
    let mut raw = Raw::connect(web);
    let mut names: Vec<String> = (0..40)
        .map(|_| raw.get("/").header("x-upstream").unwrap_or("").to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, last], port))
}

#[test]
fn addresses_follow_their_name() {
    if not_root() {
        return;
    }
    let port = port::free();
    let _upstreams =
        [(2, "2"), (3, "3"), (4, "4")].map(|(last, name)| Upstream::echo_at(at(last, port), name));
    let six = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    let _six = Upstream::echo_at(six, "six");
    let dns = Dns::start(1, "web.test A 1 127.0.0.2\nweb.test A 1 127.0.0.3\n");
    let web = port::free_address();
    let mut config = front(web, &[]);
    config["services"] = json!([service("web.test", port)]);
    config["services"][0]["balancer"] = json!({"algorithm": "round_robin"});
    let proxy = proxy_of(&dns, config);
    let become_ = |names: &[&str]| {
        let what = format!("answers from {names:?}");
        eventually(&what, || (answering(web) == names).then_some(()));
    };
    become_(&["2", "3"]);
    dns.set("web.test A 1 127.0.0.3\nweb.test A 1 127.0.0.4\n");
    become_(&["3", "4"]);
    dns.set("web.test AAAA 1 ::1\nweb.test A 1 127.0.0.4\n");
    become_(&["4", "six"]);
    // A server that fails takes nothing away.
    dns.set("FAIL\n");
    let failures = || {
        let failed = [("result", "failure")];
        proxy.metrics().sum("weft_dns_resolutions_total", &failed)
    };
    eventually("failed look-ups", || (failures() > 1.5).then_some(()));
    become_(&["4", "six"]);
    // A name that is gone for good does.
    dns.set("other.test A 1 127.0.0.2\n");
    become_(&[""]);
    dns.set("web.test A 1 127.0.0.2\n");
    become_(&["2"]);
}

#[test]
fn srv_records_name_ports() {
    if not_root() {
        return;
    }
    let (one, two) = (port::free(), port::free());
    let _upstreams = [
        Upstream::echo_at(at(1, one), "one"),
        Upstream::echo_at(at(1, two), "two"),
    ];
    let zone = format!(
        "_http._tcp.web.test SRV 1 10 3 {one} a.web.test.\n\
         _http._tcp.web.test SRV 1 10 1 {two} b.web.test.\n\
         a.web.test A 1 127.0.0.1\nb.web.test A 1 127.0.0.1\n"
    );
    let dns = Dns::start(2, &zone);
    let web = port::free_address();
    let mut config = front(web, &[]);
    config["services"] = json!([{"name": "up", "balancer": {"algorithm": "round_robin"},
        "dns": {"name": "_http._tcp.web.test", "record": "srv", "refreshMin": "100ms"}}]);
    let _proxy = proxy_of(&dns, config);
    eventually("both answering", || {
        (answering(web) == ["one", "two"]).then_some(())
    });
    let mut raw = Raw::connect(web);
    let ones = (0..80)
        .filter(|_| raw.get("/").header("x-upstream") == Some("one"))
        .count();
    assert!(
        ones.abs_diff(60) <= 4,
        "{ones} of 80 for three quarters of the weight"
    );
}

/// What a name's time to live allows is not asked again.
#[test]
fn the_time_to_live_is_obeyed() {
    if not_root() {
        return;
    }
    let port = port::free();
    let _upstream = Upstream::echo_at(at(2, port), "2");
    let dns = Dns::start(3, "web.test A 60 127.0.0.2\n");
    let web = port::free_address();
    let mut config = front(web, &[]);
    config["services"] = json!([service("web.test", port)]);
    let proxy = proxy_of(&dns, config);
    eventually("the answer", || (answering(web) == ["2"]).then_some(()));
    let asked = || proxy.metrics().sum("weft_dns_resolutions_total", &[]);
    let before = asked();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(
        (asked() - before).abs() < 0.5,
        "asked again within a minute"
    );
}

/// A name that cannot be resolved at the start says so, and is resolved once it can be.
#[test]
fn an_unknown_name_is_said_and_asked_again() {
    if not_root() {
        return;
    }
    let port = port::free();
    let _upstream = Upstream::echo_at(at(2, port), "2");
    let dns = Dns::start(4, "other.test A 1 127.0.0.2\n");
    let web = port::free_address();
    let mut config = front(web, &[]);
    config["services"] = json!([service("web.test", port)]);
    let proxy = proxy_of(&dns, config);
    let answer = Raw::connect(web).get("/");
    assert_eq!((answer.status, answer.reason()), (503, "no_endpoint"));
    eventually("the name in the log", || {
        proxy.program.output().contains("web.test").then_some(())
    });
    dns.set("web.test A 1 127.0.0.2\n");
    eventually("the answer", || (answering(web) == ["2"]).then_some(()));
    assert_eq!(
        proxy::run(&front(web, &[]), &["--check"]).status.code(),
        Some(0)
    );
}

//! Real captured traffic, in network namespaces: what an unmodified program dials goes through two
//! sidecars by mTLS, what is no part of the mesh passes as it is, nothing goes round in a loop, and
//! `--undo` leaves nothing behind.
//!
//! The sidecars run as root here and capture leaves root alone; the programs are nobody's.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use weft_tests::curl::{Curled, curl_by};
use weft_tests::eventually;
use weft_tests::mesh::{Mesh, Sidecar, service_manifest};
use weft_tests::metrics::figure;
use weft_tests::namespace::{Host, Pair};
use weft_tests::process::path_with_sbin;
use weft_tests::proxy::binary;
use weft_tests::upstream::Upstream;

/// Address of the service; nobody has it.
const SERVICE: &str = "http://10.96.0.10";
/// Reached without a sidecar: a controller, and a stranger to the mesh.
const CONTROLLER: &str = "10.88.0.2:14010";
const STRANGER: &str = "10.88.0.2:9999";

fn capture(host: &Host, arguments: &[&str]) -> Output {
    let (all, binary) = ([&["capture"], arguments].concat(), binary());
    host.within(|| Command::new(binary).args(all).output())
        .expect("it can be run")
}

fn captured(host: &Host) {
    // Twice: it replaces what is there.
    for _ in 0..2 {
        let arguments = ["--uid=0", "--skip-inbound-ports=14010,9999"];
        let output = capture(host, &arguments);
        assert!(output.status.success(), "{output:?}");
    }
}

fn rules(host: &Host) -> String {
    let output = host.within(|| {
        Command::new("/usr/sbin/nft")
            .args(["list", "ruleset"])
            .output()
    });
    let output = output.expect("nft can be run; `make test` installs it");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// As a program that knows nothing of any sidecar; `root` is not captured.
fn ask(host: &Host, user: &str, url: &str) -> Curled {
    host.within(|| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--clear-groups", "curl", "-m", "5"]);
        curl_by(command, &[url])
    })
}

fn program(host: &Host, url: &str) -> Curled {
    ask(host, "65534", url)
}

fn counted(host: &Host, sidecar: &Sidecar, metric: &str, labels: &[(&str, &str)]) -> f64 {
    host.within(|| sidecar.proxy.metrics().sum(metric, labels))
}

fn handshakes(host: &Host, sidecar: &Sidecar, direction: &str) -> f64 {
    let labels = [("direction", direction), ("result", "ok")];
    counted(host, sidecar, "weft_mesh_handshakes_total", &labels)
}

/// A client on one host; `shop/web`, a controller and a stranger on the other; both captured.
struct Shop {
    client: Sidecar,
    web: Sidecar,
    application: Upstream,
    stranger: Upstream,
    mesh: Mesh,
    pair: Pair,
}

impl Shop {
    fn open(name: &str) -> Option<Self> {
        let pair = Pair::new(name)?;
        let mesh = pair
            .two
            .within(|| Mesh::start_at(CONTROLLER.parse().expect("it is an address")));
        let web = pair.two.within(|| mesh.captured("10.88.0.2", "web"));
        mesh.service_at("web", "10.96.0.10", &[&web]);
        let (application, stranger) = pair.two.within(|| {
            (
                Upstream::echo_at(web.application(), "web"),
                Upstream::echo_at(STRANGER.parse().expect("it is an address"), "stranger"),
            )
        });
        let client = pair.one.within(|| mesh.captured("10.88.0.1", "client"));
        captured(&pair.one);
        captured(&pair.two);
        Some(Self {
            client,
            web,
            application,
            stranger,
            mesh,
            pair,
        })
    }

    fn strict(&self) {
        self.mesh.apply(
            "strict",
            "apiVersion: weft.dev/v1alpha1\nkind: WorkloadPolicy\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: strict}\n",
        );
        eventually("strict mode being in force", || {
            (ask(&self.pair.one, "0", "http://10.88.0.2:8080/").exit != 0).then_some(())
        });
    }
}

/// Stopping an upstream connects to it, which only works where it is.
impl Drop for Shop {
    fn drop(&mut self) {
        let (application, stranger) = (&mut self.application, &mut self.stranger);
        self.pair.two.within(|| {
            application.stop();
            stranger.stop();
        });
    }
}

#[test]
fn what_a_program_dials_goes_through_two_sidecars() {
    let Some(shop) = Shop::open("pair") else {
        return;
    };
    let Pair { one, two } = &shop.pair;
    let answer = program(one, &format!("{SERVICE}/a"));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(shop.application.last().target(), "/a");
    assert!(handshakes(one, &shop.client, "outbound") >= 1.0);
    assert!(handshakes(two, &shop.web, "inbound") >= 1.0);
    // Without a sidecar of one's own one gets in too, until mTLS is required.
    assert_eq!(ask(one, "0", "http://10.88.0.2:8080/plain").status, 200);
    shop.strict();
    assert_eq!(program(one, &format!("{SERVICE}/b")).status, 200);
    // A pod dialled by its own address is reached by mTLS as well.
    assert_eq!(program(one, "http://10.88.0.2:8080/c").status, 200);
    let labels = [("direction", "inbound"), ("result", "mtls_required")];
    assert!(counted(two, &shop.web, "weft_mesh_handshakes_total", &labels) >= 1.0);
}

#[test]
fn a_workload_reaches_itself_through_the_mesh() {
    let Some(shop) = Shop::open("self") else {
        return;
    };
    let two = &shop.pair.two;
    let answer = program(two, &format!("{SERVICE}/self"));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(shop.application.last().target(), "/self");
    assert!(handshakes(two, &shop.web, "outbound") >= 1.0);
    assert!(handshakes(two, &shop.web, "inbound") >= 1.0);
    shop.strict();
    assert_eq!(program(two, &format!("{SERVICE}/strict")).status, 200);
}

/// Address of one of many services; nobody has it.
fn clustered(number: usize) -> SocketAddr {
    let [high, low] = u16::try_from(number).expect("few enough").to_be_bytes();
    SocketAddr::from(([10, 97, high, low], 80))
}

/// Dials all of them before it reads any answer, as a program; how many were answered 200.
fn dial(host: &Host, numbers: std::ops::Range<usize>) -> usize {
    host.within(|| {
        // Of this thread alone.
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534))
            .expect("root may become anybody");
        let ask = |number| {
            let mut stream = TcpStream::connect(clustered(number)).expect("the sidecar accepts");
            let request = format!("GET /{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).expect("it is read");
            stream
        };
        let answered = |mut stream: TcpStream| {
            let mut answer = String::new();
            let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
            let _ = stream.read_to_string(&mut answer);
            answer.starts_with("HTTP/1.1 200")
        };
        let asked: Vec<TcpStream> = numbers.map(ask).collect();
        asked.into_iter().map(answered).filter(|is| *is).count()
    })
}

/// What has been sent to the controller from this host over the connection that is open, in bytes.
fn told(host: &Host) -> u64 {
    let output = host.within(|| {
        Command::new("ss")
            .args(["-tinH", "dst", CONTROLLER])
            .env("PATH", path_with_sbin())
            .output()
    });
    let output = output.expect("ss can be run; it comes with ip");
    let text = String::from_utf8_lossy(&output.stdout);
    let sent = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("bytes_sent:"));
    sent.map(|bytes| bytes.parse::<u64>().expect("it is a number"))
        .sum()
}

/// A crawler, or a monitor: everything at once, and then more.
#[test]
fn a_workload_that_dials_the_whole_mesh_is_told_of_all_of_it() {
    const SERVICES: usize = 2000;
    const BURST: usize = 500;
    const FURTHER: usize = 10;
    let Some(shop) = Shop::open("burst") else {
        return;
    };
    let Pair { one, two } = &shop.pair;
    let web = [(
        IpAddr::V4(Ipv4Addr::new(10, 88, 0, 2)),
        shop.web.uid.clone(),
    )];
    let manifest = |number: usize| {
        let address = format!("clusterIP: {}, ", clustered(number).ip());
        service_manifest(&format!("web-{number:04}"), &address, &web)
    };
    let manifests: Vec<String> = (0..SERVICES + FURTHER).map(manifest).collect();
    for (index, some) in manifests.chunks(200).enumerate() {
        shop.mesh
            .apply(&format!("many-{index}"), &some.join("---\n"));
    }
    eventually("the controller having read them", || {
        let slices = "weft_controller_objects{kind=\"EndpointSlice\"}";
        let read = two.within(|| figure(shop.mesh.admin, slices));
        (read? > SERVICES as f64).then_some(())
    });
    // Each burst is many times what a stream takes at once, and small beside what a debug build on a
    // busy machine answers within the time that a connection waits.
    for from in (0..SERVICES).step_by(BURST) {
        assert_eq!(dial(one, from..from + BURST), BURST, "from {from}");
    }
    let unknown = |result| {
        let labels = [("result", result)];
        counted(
            one,
            &shop.client,
            "weft_unknown_destinations_total",
            &labels,
        )
    };
    assert_eq!((unknown("passed"), unknown("refused")), (0.0, 0.0));
    assert!(handshakes(one, &shop.client, "outbound") >= SERVICES as f64);
    let log = shop.client.proxy.program.output();
    assert!(!log.contains("no connection to the controller"), "{log}");
    // What is held already is not told again with each that is new.
    two.within(|| shop.mesh.settled());
    let before = told(one);
    for number in SERVICES..SERVICES + FURTHER {
        assert_eq!(dial(one, number..number + 1), 1);
    }
    two.within(|| shop.mesh.settled());
    let each = (told(one) - before) / FURTHER as u64;
    println!("{each} bytes for each new destination, with {SERVICES} held");
    assert!((1..3000).contains(&each), "{each} bytes");
}

#[test]
fn strangers_pass_as_they_are() {
    let Some(shop) = Shop::open("pass") else {
        return;
    };
    let one = &shop.pair.one;
    let passed = || {
        let labels = [("result", "passed")];
        counted(
            one,
            &shop.client,
            "weft_unknown_destinations_total",
            &labels,
        )
    };
    assert_eq!(program(one, &format!("http://{STRANGER}/")).status, 200);
    assert_eq!(shop.stranger.count(), 1);
    assert!(passed() >= 1.0);
    // IPv6 has its original destination too, on both sides.
    let before = passed();
    let answer = program(one, "http://[fd88::2]:8080/six");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(shop.application.last().target(), "/six");
    assert!(passed() > before);
}

#[test]
fn a_listener_that_nothing_was_captured_for_refuses() {
    let Some(mut shop) = Shop::open("loop") else {
        return;
    };
    let Pair { one, two } = &shop.pair;
    for (host, user, url) in [
        (one, "0", "http://10.88.0.2:14001/"),
        (one, "0", "http://10.88.0.2:14006/"),
        (one, "65534", "http://10.88.0.2:14001/"),
        (two, "65534", "http://127.0.0.1:14001/"),
        (two, "65534", "http://10.88.0.2:14001/"),
        (two, "65534", "http://[::1]:14006/"),
    ] {
        let answer = ask(host, user, url);
        assert_ne!(answer.exit, 0, "{user} {url}: {answer:?}");
    }
    shop.pair.two.within(|| shop.web.proxy.is_well());
}

#[test]
fn undoing_leaves_nothing() {
    let Some(shop) = Shop::open("undo") else {
        return;
    };
    let Pair { one, two } = &shop.pair;
    shop.strict();
    assert!(rules(two).contains("redirect"), "{}", rules(two));
    for host in [one, two] {
        for _ in 0..2 {
            let output = capture(host, &["--undo"]);
            assert!(output.status.success(), "{output:?}");
        }
        assert_eq!(rules(host).trim(), "");
    }
    // No sidecar is asked any more.
    assert_eq!(program(one, "http://10.88.0.2:8080/").status, 200);
    assert_ne!(program(one, &format!("{SERVICE}/")).exit, 0);
}

/// `nft`, with a file or what is given to it.
fn nft(host: &Host, arguments: &[&str], input: &str) -> String {
    let output = host.within(|| {
        let mut child = Command::new("/usr/sbin/nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nft can be run; `make test` installs it");
        let mut stdin = child.stdin.take().expect("it is a pipe");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the kernel was told is what nft makes of the text.
#[test]
fn the_rules_are_those_of_the_text() {
    let Some(pair) = Pair::new("text") else {
        return;
    };
    for arguments in [
        [].as_slice(),
        &["--uid=7", "--outbound-port=1", "--inbound-port=65535"],
        &["--skip-outbound-ports=53"],
        &[
            "--skip-outbound-ports=53,25,53",
            "--skip-inbound-ports=22,14020",
        ],
        &["--skip-outbound-cidrs=10.0.0.0/8,10.1.0.0/16,169.254.169.254,192.0.2.128/25"],
        &["--skip-outbound-cidrs=fd00::1,fd00::/7,2001:db8::/33,::/1,10.7.7.7/12"],
    ] {
        let ours = capture(&pair.one, arguments);
        assert!(ours.status.success(), "{ours:?}");
        let printed = capture(&pair.one, &[arguments, &["--print"]].concat());
        let text = String::from_utf8_lossy(&printed.stdout).into_owned();
        nft(&pair.two, &["-f", "-"], &text);
        let list = |host: &Host| nft(host, &["-nn", "list", "table", "inet", "weft"], "");
        let (told, expected) = (list(&pair.one), list(&pair.two));
        assert!(expected.contains("redirect"), "{expected}");
        assert_eq!(told, expected, "{arguments:?}");
    }
}

/// Half of the rules would be worse than none.
#[test]
fn a_refused_transaction_changes_nothing() {
    let Some(pair) = Pair::new("whole") else {
        return;
    };
    assert!(capture(&pair.one, &["--uid=7"]).status.success());
    let before = rules(&pair.one);
    let binary = binary();
    let refused = pair.one.within(|| {
        Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups"])
            .arg(binary)
            .args(["capture", "--undo"])
            .output()
    });
    let refused = refused.expect("setpriv can be run");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(rules(&pair.one), before);
}

#[test]
fn what_is_missing_is_said() {
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(binary())
        .args(["capture", "--uid=0"])
        .output()
        .expect("setpriv can be run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("setpriv:") {
        println!("stepped aside: becoming another user takes root");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    let printed = Command::new(binary()).args(["capture", "--print"]).output();
    let printed = printed.expect("it can be run");
    assert!(String::from_utf8_lossy(&printed.stdout).contains("redirect to :14001"));
}

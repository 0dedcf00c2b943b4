//! An API server that goes away, answers with errors, or comes without a kind: what is known stays
//! in force, it is said what is wrong and since when, and all is taken up afterwards.
//!
//! The controller reaches the API server by way of `kubectl proxy`, which is ended and started.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;
use weft_tests::cluster::Cluster;
use weft_tests::load::{Load, Mode};
use weft_tests::process::Program;
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, eventually_within, port};

use crate::controller::{Controller, install, kubeconfig};
use crate::lag::{NODE, sidecar, web};

/// Longer than the longest pause between two attempts.
const BACK_OFF: Duration = Duration::from_secs(60);

/// The way to the API server.
struct Road {
    address: SocketAddr,
    folder: TempDir,
    proxy: Option<Program>,
}

impl Road {
    fn new() -> Self {
        Self {
            address: port::free_address(),
            folder: TempDir::new().expect("a folder"),
            proxy: None,
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        kubeconfig(self.folder.path(), self.address)
    }

    fn open(&mut self, cluster: &Cluster) {
        let address = format!("--address={}", self.address.ip());
        let port = format!("--port={}", self.address.port());
        let mut command = cluster.kubectl_command(&["proxy", &address, &port]);
        self.proxy = Some(Program::start("proxy", &mut command, self.folder.path()));
    }

    fn close(&mut self) {
        self.proxy = None;
    }
}

/// Answers every request with the same error, as the front of an API server in trouble does.
struct Trouble {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
}

impl Trouble {
    fn start(address: SocketAddr, status: &str) -> Self {
        let listener = eventually("the address is free again", || {
            TcpListener::bind(address).ok()
        });
        let ends = Arc::new(AtomicBool::new(false));
        let (ended, head) = (Arc::clone(&ends), format!("HTTP/1.1 {status}"));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let mut bytes = [0; 4096];
                let _asked = stream.read(&mut bytes);
                let answer = format!("{head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _gone = stream.write_all(answer.as_bytes());
            }
        });
        Self {
            ends,
            thread: Some(thread),
            address,
        }
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _wakes = std::net::TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn start(road: &Road, namespace: &str) -> Controller {
    Controller::start(Path::new(&road.kubeconfig()), namespace, "controller")
}

fn route(service: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {service}, namespace: NAMESPACE}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: {service}}}], rules: [{{}}]}}\n"
    )
}

/// Whether a Service of the namespace is there, as a route says of it that has it as a parent.
fn knows(controller: &Controller, namespace: &str, service: &str) -> Option<bool> {
    let status = controller.status();
    let parent = format!("Service {namespace}/{service}");
    let mut objects = status["objects"].as_array()?.iter();
    objects.find(|of| of["parent"] == *parent)?["conditions"][0]["status"].as_bool()
}

fn state(controller: &Controller, kind: &str) -> String {
    controller.watch(kind)["state"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

fn code(trouble: &str) -> &str {
    trouble.split(' ').next().unwrap_or("")
}

/// Waits until the controller says that the watch is broken, since when and why; proxies
/// are served all the same.
fn is_said(controller: &Controller, trouble: &str) {
    let watch = eventually_within(BACK_OFF * 2, trouble, || {
        let watch = controller.watch("Service");
        let why = watch["message"].as_str()?;
        let names_it = trouble == "gone" || why.contains(code(trouble));
        (watch["state"] == "broken" && names_it).then_some(watch)
    });
    let since = watch["since"].as_u64();
    assert!(since.is_some_and(|since| since > 0), "{watch}");
    let up = "weft_controller_watch_up{kind=\"Service\"}";
    assert_eq!(controller.metric(up), Some(0.0));
    assert_eq!(controller.page("/ready"), "ok\n");
}

#[test]
fn an_api_server_that_is_gone_or_in_trouble_costs_nothing_that_is_known() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _shared = super::shared();
    install(&cluster);
    let space = cluster.namespace("outage", &[]);
    let service = |name: &str| {
        space.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec: {{ports: [{{port: 80}}]}}\n"
        ));
    };
    service("stays");
    for service in ["stays", "sgone", "s429", "s500"] {
        space.apply(&route(service));
    }
    let mut road = Road::new();
    let controller = start(&road, &space.name);
    // No API server at our start: it waits, and says for what.
    eventually("it says that it waits", || {
        controller
            .page("/ready")
            .contains("waits for")
            .then_some(())
    });
    assert_eq!(controller.page("/live"), "ok\n");
    road.open(&cluster);
    // All kinds are listed first, and each lets ever more time pass before it tries again.
    controller.ready_within(BACK_OFF);
    assert_eq!(controller.page("/ready"), "ok\n");
    let is_there = |name: &str| knows(&controller, &space.name, name);
    eventually("what there is", || is_there("stays").filter(|there| *there));
    for trouble in ["gone", "429 Too Many Requests", "500 Internal Server Error"] {
        road.close();
        let front = (trouble != "gone").then(|| Trouble::start(road.address, trouble));
        is_said(&controller, trouble);
        assert_eq!(is_there("stays"), Some(true), "what is known stays");
        // What happens meanwhile is taken up afterwards, what went away too.
        space.kubectl(&["delete", "service", "stays"]);
        let fresh = format!("s{}", code(trouble));
        service(&fresh);
        drop(front);
        road.open(&cluster);
        eventually_within(BACK_OFF * 2, "watched again", || {
            (state(&controller, "Service") == "watching").then_some(())
        });
        eventually("the new one", || is_there(&fresh).filter(|there| *there));
        eventually("the end of the other", || {
            is_there("stays").filter(|there| !there)
        });
        service("stays");
        eventually("it is back", || is_there("stays").filter(|there| *there));
    }
    let log = controller.program.output();
    let warned = log.matches("kind=\"Service\" broken_seconds=").count();
    assert!(
        warned <= 12,
        "said now and then, not at each attempt: {warned}\n{log}"
    );
}

/// A controller says that it is stale after half a minute, and a sidecar looks around within another.
const MOVES: Duration = Duration::from_secs(180);

#[test]
fn who_alone_has_lost_the_api_server_is_left_for_a_controller_that_has_not() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _shared = super::shared();
    install(&cluster);
    let space = cluster.namespace("stale", &[]);
    let at = || SocketAddr::from((NODE, port::free_address().port()));
    let (old, new) = (at(), at());
    let (was, is) = (Upstream::echo_at(old, "old"), Upstream::echo_at(new, "new"));
    web(&space, old.port());
    let mut road = Road::new();
    road.open(&cluster);
    let ca = TempDir::new().expect("a folder");
    let begin = |name: &str, kubeconfig: &Path| {
        let controller = Controller::start_sharing(kubeconfig, &space.name, name, ca.path());
        let address = controller.ready();
        (controller, address)
    };
    let (first, first_s) = begin("first", &road.kubeconfig());
    let (second, second_s) = begin("second", &cluster.kubeconfig);
    let (_proxy, listener) = sidecar(&space, &[first_s, second_s], ca.path());
    let load = Load::start(listener, Mode::KeepAlive, 2);
    load.goes_on(20);
    let is_at = |controller: &Controller| {
        let status = controller.status();
        let proxies = status["proxies"].as_array().cloned().unwrap_or_default();
        (!proxies.is_empty()).then_some(())
    };
    eventually("the sidecar at the first", || is_at(&first));
    road.close();
    web(&space, new.port());
    eventually_within(MOVES, "the new endpoint in use", || {
        (is.count() > 20).then_some(())
    });
    eventually("the sidecar at the second", || is_at(&second));
    assert_eq!(first.page("/ready"), "ok\n", "it does not vanish");
    let before = was.count();
    load.goes_on(50);
    assert_eq!(was.count(), before, "it was taken back");
    // It is told that the first is well again, and goes back to what is its own.
    road.open(&cluster);
    eventually_within(MOVES, "the sidecar at the first again", || is_at(&first));
    load.goes_on(50);
    assert_eq!(was.count(), before);
    load.stop().none_lost();
}

/// Gateway API's definitions, which are there again when it is dropped.
struct Definitions<'a>(&'a Cluster);

impl Drop for Definitions<'_> {
    fn drop(&mut self) {
        let folder = self.0.gateway_definitions("experimental");
        let folder = folder.to_str().unwrap_or_default();
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", folder];
        let _back = self.0.try_kubectl(&apply);
    }
}

#[test]
fn a_kind_comes_on_when_it_is_installed_and_goes_with_its_definition() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _alone = super::alone();
    install(&cluster);
    // No other test needs this one meanwhile.
    let remove = [
        "delete",
        "crd",
        "tlsroutes.gateway.networking.k8s.io",
        "--ignore-not-found",
    ];
    let _back = Definitions(&cluster);
    cluster.kubectl(&remove);
    let space = cluster.namespace("installed", &[]);
    let controller = Controller::start(&cluster.kubeconfig, &space.name, "controller");
    controller.ready();
    eventually("it is seen to be absent", || {
        (state(&controller, "TLSRoute") == "absent").then_some(())
    });
    let installed = "weft_controller_watch_installed{kind=\"TLSRoute\"}";
    assert_eq!(controller.metric(installed), Some(0.0));
    cluster.install_gateway_api("experimental");
    eventually_within(BACK_OFF, "it is watched", || {
        (state(&controller, "TLSRoute") == "watching").then_some(())
    });
    assert_eq!(controller.metric(installed), Some(1.0));
    space.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {name: r, namespace: NAMESPACE}\nspec: {hostnames: [a.example.com], parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 443}]}]}\n",
    );
    let objects = "weft_controller_objects{kind=\"TLSRoute\"}";
    eventually("the route", || {
        (controller.metric(objects)? > 0.0).then_some(())
    });
    cluster.kubectl(&remove);
    eventually_within(BACK_OFF, "it is gone, with its routes", || {
        (state(&controller, "TLSRoute") == "absent" && controller.metric(objects).is_none())
            .then_some(())
    });
    let watch = controller.watch("Service");
    assert_eq!(watch["failures"], 0, "the others go on: {watch}");
    cluster.install_gateway_api("experimental");
}

//! A replica whose watches lag: a proxy that another one has told more keeps what it has, is told what
//! is new to it, and makes the replica look again.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use weft_controller::ca::token;
use weft_tests::cluster::{Cluster, Namespace};
use weft_tests::load::{Load, Mode};
use weft_tests::process::Program;
use weft_tests::proxy::Proxy;
use weft_tests::upstream::Upstream;
use weft_tests::{eventually, eventually_within, port};

use crate::controller::{Controller, install, kubeconfig};

/// The node's own address: endpoints may not be on loopback.
pub const NODE: [u8; 4] = [10, 200, 0, 1];

/// A way to the API server that can be held up: what is connected then hears nothing more, and who
/// comes is turned away until it is opened again.
struct Way {
    address: SocketAddr,
    /// Odd: held up.
    turns: Arc<AtomicU64>,
    folder: TempDir,
    _proxy: Program,
}

impl Way {
    fn new(cluster: &Cluster) -> Self {
        let folder = TempDir::new().expect("a folder");
        let behind = port::free_address();
        let (ip, number) = (behind.ip().to_string(), behind.port().to_string());
        let arguments = ["proxy", "--address", &ip, "--port", &number];
        let mut command = cluster.kubectl_command(&arguments);
        let mut proxy = Program::start("proxy", &mut command, folder.path());
        proxy.accepts(behind);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it has an address");
        let turns = Arc::new(AtomicU64::new(0));
        let of = Arc::clone(&turns);
        // Ends with the test's process.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let turn = of.load(Ordering::Relaxed);
                if turn % 2 == 1 {
                    continue;
                }
                let far = TcpStream::connect(behind).expect("kubectl proxy is there");
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let pair = from
                        .try_clone()
                        .and_then(|from| Ok((from, to.try_clone()?)));
                    let (from, to) = pair.expect("a socket can be shared");
                    let of = Arc::clone(&of);
                    thread::spawn(move || pass(from, to, || of.load(Ordering::Relaxed) == turn));
                }
            }
        });
        Self {
            address,
            turns,
            folder,
            _proxy: proxy,
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        kubeconfig(self.folder.path(), self.address)
    }

    /// Holds up what is connected, or lets others in again.
    fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }
}

/// Passes on what comes, for as long as it is to.
fn pass(mut from: TcpStream, mut to: TcpStream, goes_on: impl Fn() -> bool) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(count) = from.read(&mut bytes) {
        if !goes_on() {
            // Neither side hears of it.
            match count {
                0 => return,
                _ => continue,
            }
        }
        let passed = bytes.get(..count).filter(|bytes| !bytes.is_empty());
        if passed.is_none_or(|bytes| to.write_all(bytes).is_err()) {
            let _gone = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// `web`, whose one endpoint is on this port of the node.
pub fn web(space: &Namespace, port: u16) {
    let [a, b, c, d] = NODE;
    space.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: NAMESPACE}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web, namespace: NAMESPACE, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: {port}}}]\nendpoints: [{{addresses: [{a}.{b}.{c}.{d}]}}]\n"
    ));
}

/// How many resources a proxy has asked there for, what it has not answered, and whether it has all.
fn standing(controller: &Controller) -> Option<(u64, u64, bool)> {
    let status = controller.status();
    let proxy = status["proxies"].as_array()?.first()?.clone();
    let has_all = proxy["acknowledged"] == status["revision"];
    Some((
        proxy["resources"].as_u64()?,
        proxy["pending"].as_u64()?,
        has_all,
    ))
}

/// A sidecar of these controllers, and where it takes what is for `web`.
pub fn sidecar(
    space: &Namespace,
    controllers: &[String],
    ca: &std::path::Path,
) -> (Proxy, SocketAddr) {
    let listener = port::free_address();
    let token = token::mint(
        ca,
        (&space.name, "client", "client"),
        Duration::from_secs(60),
        1,
    );
    let file = ca.join("client.token");
    std::fs::write(&file, token.expect("a token")).expect("written");
    let proxy = Proxy::start(json!({
        "settings": {"mesh": {
            "controllers": controllers,
            "trustBundle": ca.join("trust.pem"),
            "token": file,
            "namespace": space.name,
            "serviceAccount": "client",
            "workload": "client",
            "addresses": ["127.0.0.1"],
        }},
        "listeners": [{
            "name": "web",
            "address": listener.to_string(),
            "role": "outbound",
            "destination": format!("web.{}:80", space.name),
        }],
    }));
    (proxy, listener)
}

#[test]
fn a_replica_that_lags_takes_nobody_back() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _shared = super::shared();
    install(&cluster);
    let space = cluster.namespace("lags", &[]);
    let at = || SocketAddr::from((NODE, port::free_address().port()));
    let (old, new) = (at(), at());
    let (was, is) = (Upstream::echo_at(old, "old"), Upstream::echo_at(new, "new"));
    web(&space, old.port());
    let way = Way::new(&cluster);
    let ca = TempDir::new().expect("a folder");
    let start = |name: &str, kubeconfig: &std::path::Path| {
        let controller = Controller::start_sharing(kubeconfig, &space.name, name, ca.path());
        let address = controller.ready();
        (controller, address)
    };
    let (mut first, first_s) = start("first", &cluster.kubeconfig);
    let (second, second_s) = start("second", &way.kubeconfig());
    let (_proxy, listener) = sidecar(&space, &[first_s, second_s], ca.path());
    let load = Load::start(listener, Mode::KeepAlive, 2);
    load.goes_on(20);
    assert!(was.count() > 0);
    // The second hears nothing more.
    way.turn();
    web(&space, new.port());
    eventually("the new endpoint in use", || {
        (is.count() > 20).then_some(())
    });
    let (resources, ..) = eventually("all of it", || {
        standing(&first).filter(|(_, pending, has_all)| *pending == 0 && *has_all)
    });
    let before = was.count();
    first.program.kill();
    eventually(
        "the proxy at the second, which has said what it would",
        || standing(&second).filter(|(wants, pending, _)| *wants == resources && *pending == 0),
    );
    load.goes_on(50);
    assert_eq!(was.count(), before, "it was taken back");
    let (.., has_all) = standing(&second).expect("it is there");
    assert!(!has_all, "the second cannot know all");
    // It can ask again, and does so by itself: its watches are as dead as before.
    way.turn();
    eventually_within(super::PATIENCE, "the second has caught up", || {
        standing(&second).filter(|(_, pending, has_all)| *pending == 0 && *has_all)
    });
    load.goes_on(50);
    assert_eq!(was.count(), before);
    load.stop().none_lost();
}

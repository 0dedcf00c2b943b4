//! A mesh on this machine: a real controller over a directory of manifests, and sidecars that get
//! their certificates from it. Each workload has a loopback address of its own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_config::status::Status;
use weft_controller::ca::token;

use crate::port;
use crate::process::Program;
use crate::proxy::{Proxy, binary, built};
use crate::raw::Raw;
use crate::upstream::Upstream;
use crate::{PATIENCE, eventually};

/// Where sidecars take mTLS.
const MESH_PORT: u16 = 14008;
/// Longer than any clock here is off.
const TOKEN_LIFE: Duration = Duration::from_secs(2 * 3600);
/// Where every application listens.
pub const APPLICATION_PORT: u16 = 8080;

pub struct Mesh {
    pub folder: TempDir,
    pub controller: Program,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// What sidecars that are started from now on are told, in this order.
    pub controllers: Vec<SocketAddr>,
    /// How far their clocks are off, as `faketime -f` takes it (`-1h`), or the path of a file that says
    /// so and may change; empty: they are right.
    pub clock: String,
}

/// A further controller of the same mesh.
pub struct Replica {
    pub program: Program,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
}

impl Replica {
    /// Starts it again, where it was.
    pub fn restart(&mut self, mesh: &Mesh) {
        self.program = start_controller(mesh.folder.path(), self.listen, self.admin, "");
    }
}

/// A workload with its sidecar.
pub struct Sidecar {
    pub proxy: Proxy,
    pub address: IpAddr,
    pub uid: String,
    /// Where its explicit listeners are.
    pub upstreams: Vec<SocketAddr>,
}

impl Sidecar {
    #[must_use]
    pub fn application(&self) -> SocketAddr {
        SocketAddr::new(self.address, APPLICATION_PORT)
    }

    #[must_use]
    pub fn inbound(&self) -> SocketAddr {
        SocketAddr::new(self.address, MESH_PORT)
    }

    /// Passes the drain barrier; what the sidecar said of it.
    #[must_use]
    pub fn drain(&self) -> Value {
        let mut raw = Raw::connect(self.proxy.admin);
        // Longer than the barrier may take.
        let set = raw.stream.set_read_timeout(Some(2 * PATIENCE));
        set.expect("it is longer than nothing");
        raw.send("POST /drain HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
        let answer = raw.answer();
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_slice(&answer.body).expect("it answers JSON")
    }
}

/// A loopback address that nobody else in these tests has.
#[must_use]
pub fn own_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let [_, _, page, number] = next.to_be_bytes();
    assert!(page < 3, "a test binary has few workloads");
    IpAddr::V4(Ipv4Addr::new(
        127,
        64 * (page + 1) + (high & 0x3f),
        low,
        number,
    ))
}

/// What a workload of these tests is called.
#[must_use]
pub fn uid(address: IpAddr, account: &str) -> String {
    format!("{account}-{}", address.to_string().replace('.', "-"))
}

/// A service `shop/NAME:80` of these workloads: their addresses and UIDs.
#[must_use]
pub fn service_manifest(name: &str, spec: &str, workloads: &[(IpAddr, String)]) -> String {
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{{spec}ports: [{{name: auto, port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: auto, port: {APPLICATION_PORT}}}]\nendpoints:\n"
    );
    for (address, uid) in workloads {
        yaml.push_str(&format!(
            "- {{addresses: ['{address}'], targetRef: {{kind: Pod, name: {uid}, uid: {uid}}}}}\n"
        ));
    }
    yaml
}

/// What the controller with this admin address says.
#[must_use]
pub fn status_at(admin: SocketAddr) -> Status {
    let answer = Raw::connect(admin).get("/status");
    serde_json::from_slice(&answer.body).expect("it answers its status")
}

/// A program whose clock is off: what faketime(1) would load before it, without that program, which
/// would stand between a signal and ours.
fn clocked(program: &Path, clock: &str) -> Command {
    let mut command = Command::new(program);
    if !clock.is_empty() {
        command
            .env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        match clock.starts_with('/') {
            true => command
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                .env("FAKETIME_NO_CACHE", "1"),
            false => command.env("FAKETIME", clock),
        };
    }
    command
}

fn start_controller(folder: &Path, listen: SocketAddr, admin: SocketAddr, clock: &str) -> Program {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let binary = BUILT.get_or_init(|| built("weft-controller", "weft-controller"));
    let mut command = clocked(binary, clock);
    command
        .arg("--manifests")
        .arg(folder.join("manifests"))
        .arg("--ca-dir")
        .arg(folder.join("ca"))
        .args(["--listen", &listen.to_string()])
        .args(["--admin", &admin.to_string()]);
    let mut program = Program::start("weft-controller", &mut command, folder);
    program.accepts(admin);
    eventually("the controller serving proxies", || {
        (Raw::connect(admin).get("/ready").status == 200).then_some(())
    });
    program
}

impl Mesh {
    #[must_use]
    pub fn start() -> Self {
        Self::start_at(port::free_address())
    }

    /// The same with the controller at an address that others reach.
    #[must_use]
    pub fn start_at(listen: SocketAddr) -> Self {
        Self::start_in(TempDir::new().expect("a folder can be made"), listen, "")
    }

    /// The same with a controller whose clock is off; see `clock`.
    #[must_use]
    pub fn start_clocked(clock: &str) -> Self {
        let folder = TempDir::new().expect("a folder can be made");
        Self::start_in(folder, port::free_address(), clock)
    }

    /// The same with an authority that is given: the folder has `ca/ca.crt` and `ca/ca.key`.
    #[must_use]
    pub fn start_given(folder: TempDir) -> Self {
        Self::start_in(folder, port::free_address(), "")
    }

    fn start_in(folder: TempDir, listen: SocketAddr, clock: &str) -> Self {
        fs::create_dir(folder.path().join("manifests")).expect("a folder can be made");
        let admin = port::free_address();
        Self {
            controller: start_controller(folder.path(), listen, admin, clock),
            folder,
            listen,
            admin,
            controllers: vec![listen],
            clock: String::new(),
        }
    }

    /// Starts a further controller over the same manifests and authority.
    #[must_use]
    pub fn join(&mut self) -> Replica {
        let (listen, admin) = (port::free_address(), port::free_address());
        self.controllers.push(listen);
        Replica {
            program: start_controller(self.folder.path(), listen, admin, ""),
            listen,
            admin,
        }
    }

    /// Starts the controller again, where it was.
    pub fn restart_controller(&mut self) {
        self.controller = start_controller(self.folder.path(), self.listen, self.admin, "");
    }

    /// Writes a manifest, whole.
    pub fn apply(&self, name: &str, yaml: &str) {
        let folder = self.folder.path().join("manifests");
        let fresh = folder.join(format!(".{name}"));
        fs::write(&fresh, yaml).expect("it can be written");
        fs::rename(fresh, folder.join(format!("{name}.yaml"))).expect("it can be renamed");
    }

    /// Takes a manifest away.
    pub fn remove(&self, name: &str) {
        let file = self
            .folder
            .path()
            .join("manifests")
            .join(format!("{name}.yaml"));
        fs::remove_file(file).expect("it is there");
    }

    fn told(&self) -> Vec<String> {
        self.controllers.iter().map(ToString::to_string).collect()
    }

    #[must_use]
    pub fn status(&self) -> Status {
        status_at(self.admin)
    }

    /// A headless-by-name service `shop/NAME:80` of these sidecars' applications.
    pub fn service(&self, name: &str, sidecars: &[&Sidecar]) {
        self.service_with(name, "", sidecars);
    }

    /// `shop/web` with as many replicas as names, each with an application that says its own.
    #[must_use]
    pub fn replicas(&self, names: &[&'static str]) -> Vec<(Sidecar, Upstream)> {
        let replica = |name: &&'static str| {
            let sidecar = self.sidecar("web", &[]);
            let application = Upstream::echo_at(sidecar.application(), name);
            (sidecar, application)
        };
        let replicas: Vec<_> = names.iter().map(replica).collect();
        let sidecars: Vec<&Sidecar> = replicas.iter().map(|(sidecar, _)| sidecar).collect();
        self.service("web", &sidecars);
        replicas
    }

    /// The same as `service`, with a clusterIP.
    pub fn service_at(&self, name: &str, address: &str, sidecars: &[&Sidecar]) {
        self.service_with(name, &format!("clusterIP: {address}, "), sidecars);
    }

    fn service_with(&self, name: &str, spec: &str, sidecars: &[&Sidecar]) {
        let workloads = sidecars.iter().map(|of| (of.address, of.uid.clone()));
        self.service_of(name, spec, &workloads.collect::<Vec<_>>());
    }

    /// The same of any workloads: their addresses and UIDs.
    pub fn service_of(&self, name: &str, spec: &str, workloads: &[(IpAddr, String)]) {
        self.apply(name, &service_manifest(name, spec, workloads));
    }

    /// Starts a workload's sidecar, with a listener for each of `upstreams` (`service.namespace:port`).
    #[must_use]
    pub fn sidecar(&self, account: &str, upstreams: &[&str]) -> Sidecar {
        self.sidecar_on(own_address(), account, upstreams)
    }

    /// The same at an address, which somebody else may have had.
    #[must_use]
    pub fn sidecar_on(&self, address: IpAddr, account: &str, upstreams: &[&str]) -> Sidecar {
        let uid = self.pod(address, account, &MESH_PORT.to_string());
        let mut listeners = vec![json!({
            "name": "inbound",
            "address": SocketAddr::new(address, MESH_PORT).to_string(),
            "role": "inbound",
        })];
        let mut dialled = Vec::new();
        for upstream in upstreams {
            let own = port::free_address();
            listeners.push(json!({
                "name": upstream,
                "address": own.to_string(),
                "role": "outbound",
                "destination": upstream,
            }));
            dialled.push(own);
        }
        Sidecar {
            upstreams: dialled,
            ..self.sidecar_at(address, (account, &uid), listeners)
        }
    }

    /// Starts the sidecar of a workload whose traffic is captured.
    #[must_use]
    pub fn captured(&self, address: &str, account: &str) -> Sidecar {
        let address = address.parse().expect("it is an address");
        let uid = self.pod(address, account, "captured");
        let listeners = vec![
            json!({"name": "outbound", "address": "[::]:14001", "role": "outbound"}),
            json!({"name": "inbound", "address": "[::]:14006", "role": "inbound"}),
        ];
        self.sidecar_at(address, (account, &uid), listeners)
    }

    /// `weft-proxy sidecar` with the variables that injection gives a pod's. `inbound`: the port of
    /// its mTLS, or `captured`.
    #[must_use]
    pub fn pod_command(&self, address: IpAddr, account: &str, inbound: &str) -> Command {
        let uid = self.pod(address, account, inbound);
        let ca = self.folder.path().join("ca");
        let roots = eventually("the controller's roots", || {
            fs::read_to_string(ca.join("trust.pem")).ok()
        });
        let state = self.folder.path().join(format!("{uid}.state"));
        let mut command = Command::new(binary());
        command
            .arg("sidecar")
            .env("WEFT_CONTROLLERS", self.told().join(","))
            .env("WEFT_TRUST_BUNDLE", roots)
            .env("WEFT_TOKEN", self.token(account, &uid))
            .env("WEFT_STATE", state)
            .env("WEFT_NAMESPACE", "shop")
            .env("WEFT_SERVICE_ACCOUNT", account)
            .env("WEFT_WORKLOAD", uid)
            .env("WEFT_ADDRESSES", address.to_string());
        command
    }

    /// A fresh token, in a file.
    fn token(&self, account: &str, uid: &str) -> PathBuf {
        let ca = self.folder.path().join("ca");
        let token =
            token::mint(&ca, ("shop", account, uid), TOKEN_LIFE, 1).expect("a token can be made");
        let file = self.folder.path().join(format!("{uid}.token"));
        fs::write(&file, token).expect("it can be written");
        file
    }

    /// Writes a pod's manifest; its UID.
    fn pod(&self, address: IpAddr, account: &str, inbound: &str) -> String {
        let uid = uid(address, account);
        self.apply(
            &uid,
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {uid}, namespace: shop, uid: {uid}, \
                 labels: {{app: {account}}}, annotations: {{weft.dev/inbound: '{inbound}'}}}}\n\
                 spec: {{serviceAccountName: {account}, containers: []}}\nstatus: {{podIP: {address}}}\n"
            ),
        );
        uid
    }

    fn sidecar_at(
        &self,
        address: IpAddr,
        (account, uid): (&str, &str),
        listeners: Vec<Value>,
    ) -> Sidecar {
        let ca = self.folder.path().join("ca");
        let file = self.token(account, uid);
        let config = json!({
            "settings": {"mesh": {
                "controllers": self.told(),
                "trustBundle": ca.join("trust.pem"),
                "token": file,
                "state": self.folder.path().join(format!("{uid}.state")),
                "namespace": "shop",
                "serviceAccount": account,
                "workload": uid,
                "addresses": [address.to_string()],
            }},
            "listeners": listeners,
        });
        Sidecar {
            proxy: Proxy::start_as(config, |folder| {
                let mut command = clocked(binary(), &self.clock);
                command.arg("--config").arg(folder.join("weft.yaml"));
                command
            }),
            address,
            uid: uid.to_owned(),
            upstreams: Vec::new(),
        }
    }

    /// Waits until every connected proxy has acknowledged the present revision.
    pub fn settled(&self) {
        eventually("everybody having everything", || {
            let status = self.status();
            let behind = |revision: u64| revision < status.revision;
            (!status
                .proxies
                .iter()
                .any(|proxy| behind(proxy.acknowledged)))
            .then_some(())
        });
    }
}

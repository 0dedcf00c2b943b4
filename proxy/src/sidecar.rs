//! `weft-proxy sidecar`: a pod's sidecar, told by flags or the environment, since
//! what it has to know differs from pod to pod and no file could be the same for
//! all. Owns the flags and the configuration that follows from them (pure); from
//! there on it is any configuration.
//!
//! **Invariant:** a wrong value is named by its flag and its variable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use weft_config::{Errors, compile, wire};

use crate::args::ProcessArgs;

const OUTBOUND_PORT: u16 = 14001;
const INBOUND_PORT: u16 = 14006;
const MESH_PORT: u16 = 14008;
const ADMIN_PORT: u16 = 14020;
/// A sidecar has a share of the node's CPUs, which no quota needs to say.
const WORKERS_MAX: u16 = 2;

const EXAMPLES: &str = "\
Examples:
  weft-proxy sidecar                            as injected into a pod: the environment says all
  weft-proxy sidecar --print                    the configuration that follows, for --config

Listeners: what the application dials is captured to 14001, what comes in to 14006 (`weft-proxy
capture`); 14008 takes mTLS as it is. The admin server is at 14020: /ready says 200 once there is
a certificate and a controller has told what the workload needs.

Signals are those of weft-proxy, but that SIGHUP only reopens the log: there is no file to read.";

/// Run as the sidecar of a pod.
#[derive(Clone, Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Sidecar {
    /// Write the configuration that follows to standard output, and exit.
    #[arg(long)]
    pub print: bool,

    /// The controllers, host:port between commas; a name stands for all its addresses.
    #[arg(long, env = "WEFT_CONTROLLERS", value_name = "LIST", required = true)]
    #[arg(value_delimiter = ',')]
    controllers: Vec<String>,

    /// The roots that a controller is verified by at first: a PEM file, or PEM text.
    #[arg(long, env = "WEFT_TRUST_BUNDLE", value_name = "PEM")]
    #[arg(hide_env_values = true)]
    trust_bundle: String,

    /// The mesh's trust domain.
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "NAME")]
    #[arg(default_value = "cluster.local")]
    trust_domain: String,

    /// The pod's namespace.
    #[arg(long, env = "WEFT_NAMESPACE", value_name = "NAME")]
    namespace: String,

    /// The pod's service account.
    #[arg(long, env = "WEFT_SERVICE_ACCOUNT", value_name = "NAME")]
    #[arg(default_value = "default")]
    service_account: String,

    /// The pod's UID.
    #[arg(long, env = "WEFT_WORKLOAD", value_name = "UID")]
    workload: String,

    /// The pod's IP addresses, between commas.
    #[arg(long, env = "WEFT_ADDRESSES", value_name = "LIST", required = true)]
    #[arg(value_delimiter = ',')]
    addresses: Vec<IpAddr>,

    /// The file with the token of its service account, for the audience weft.dev.
    #[arg(long, env = "WEFT_TOKEN", value_name = "FILE")]
    #[arg(default_value = "/var/run/secrets/weft.dev/token")]
    token: PathBuf,

    /// Directory in memory that keeps the certificate over a restart of the container.
    #[arg(long, env = "WEFT_STATE", value_name = "DIR")]
    state: Option<PathBuf>,

    /// A path of the admin server at which anybody may pass the drain barrier; not to be guessed.
    #[arg(long, env = "WEFT_DRAIN_PATH", value_name = "PATH")]
    #[arg(default_value = "", hide_env_values = true)]
    drain_path: String,

    /// The longest that the drain barrier takes, in seconds.
    #[arg(long, env = "WEFT_DRAIN_MAX", value_name = "SECONDS")]
    #[arg(default_value_t = 15)]
    drain_max: u16,

    /// How a kubelet probes the application, as a JSON list: [{"kind": "http", "port": 8080, "path": "/"}].
    #[arg(long, env = "WEFT_PROBES", value_name = "JSON")]
    #[arg(default_value = "[]")]
    probes: Probes,

    /// Worker threads; default: the CPU quota, but 2 at most.
    #[arg(long, env = "WEFT_WORKERS", value_name = "N")]
    workers: Option<NonZeroU16>,

    /// A line for each request and connection, to standard output.
    #[arg(long, env = "WEFT_ACCESS_LOG", value_enum, default_value_t)]
    access_log: AccessLog,

    /// Where what the application dials is captured to.
    #[arg(long, env = "WEFT_OUTBOUND", value_name = "ADDRESS")]
    outbound: Option<SocketAddr>,

    /// Where what comes in is captured to.
    #[arg(long, env = "WEFT_INBOUND", value_name = "ADDRESS")]
    inbound: Option<SocketAddr>,

    /// Where mTLS comes in that is not captured.
    #[arg(long, env = "WEFT_INBOUND_MESH", value_name = "ADDRESS")]
    inbound_mesh: Option<SocketAddr>,

    /// The admin server.
    #[arg(long, env = "WEFT_ADMIN", value_name = "ADDRESS")]
    admin: Option<SocketAddr>,

    #[command(flatten)]
    pub process: ProcessArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum AccessLog {
    #[default]
    Off,
    Json,
    Text,
}

/// A list of probes as they are written in a configuration.
#[derive(Clone, Debug)]
struct Probes(Vec<wire::Probe>);

impl FromStr for Probes {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, serde_json::Error> {
        match text.trim() {
            "" => Ok(Self(Vec::new())),
            text => serde_json::from_str(text).map(Self),
        }
    }
}

/// Which flags a field of the configuration is from.
const FIELDS: [(&str, &[&str]); 17] = [
    ("settings.mesh.controllers", &["controllers"]),
    ("settings.mesh.trustBundle", &["trust-bundle"]),
    ("settings.mesh.trustDomain", &["trust-domain"]),
    ("settings.mesh.namespace", &["namespace"]),
    ("settings.mesh.serviceAccount", &["service-account"]),
    ("settings.mesh.workload", &["workload"]),
    ("settings.mesh.addresses", &["addresses"]),
    ("settings.mesh.token", &["token"]),
    ("settings.mesh.probes", &["probes"]),
    ("settings.drain.path", &["drain-path"]),
    ("settings.drain.barrier", &["drain-max"]),
    ("settings.workers", &["workers"]),
    ("settings.admin", &["admin"]),
    ("listeners[0]", &["outbound"]),
    ("listeners[1]", &["inbound"]),
    ("listeners[2]", &["inbound-mesh"]),
    // An identity is made of three.
    (
        "settings.mesh",
        &["trust-domain", "namespace", "service-account"],
    ),
];

impl Sidecar {
    /// What follows from the flags, validated. `cpus`: what the process may use.
    /// `ipv6`: whether the kernel has it; a dual-stack socket takes IPv4 too.
    pub fn config(&self, cpus: usize, ipv6: bool) -> Result<wire::Config, Errors> {
        let any = match ipv6 {
            true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        let at = |address: Option<SocketAddr>, port: u16| {
            let address = address.unwrap_or_else(|| SocketAddr::new(any, port));
            address.to_string()
        };
        let listener = |name: &str, address, role: wire::listener_role::Value| wire::Listener {
            name: name.to_owned(),
            address,
            role: role.into(),
            ..Default::default()
        };
        use wire::listener_role::Value::{Inbound, Outbound};
        let config = wire::Config {
            settings: Some(self.settings(cpus, at(self.admin, ADMIN_PORT))),
            listeners: vec![
                listener("outbound", at(self.outbound, OUTBOUND_PORT), Outbound),
                listener("inbound", at(self.inbound, INBOUND_PORT), Inbound),
                listener("inbound-mesh", at(self.inbound_mesh, MESH_PORT), Inbound),
            ],
            ..Default::default()
        };
        compile::compile(&config).map_err(named)?;
        Ok(config)
    }

    fn settings(&self, cpus: usize, admin: String) -> wire::Settings {
        let most = usize::from(WORKERS_MAX);
        let workers = match self.workers {
            Some(workers) => workers.get(),
            None => u16::try_from(cpus.clamp(1, most)).unwrap_or(WORKERS_MAX),
        };
        let format = match self.access_log {
            AccessLog::Off => wire::access_log::Format::Off,
            AccessLog::Json => wire::access_log::Format::Json,
            AccessLog::Text => wire::access_log::Format::Text,
        };
        let path = |path: &PathBuf| path.display().to_string();
        wire::Settings {
            workers: workers.into(),
            admin,
            access_log: Some(wire::AccessLog {
                format: format.into(),
                ..Default::default()
            }),
            drain: Some(wire::Drain {
                barrier: format!("{}s", self.drain_max),
                path: self.drain_path.clone(),
                ..Default::default()
            }),
            mesh: Some(wire::Mesh {
                controllers: self.controllers.clone(),
                trust_domain: self.trust_domain.clone(),
                trust_bundle: self.trust_bundle.clone(),
                token: path(&self.token),
                namespace: self.namespace.clone(),
                service_account: self.service_account.clone(),
                workload: self.workload.clone(),
                addresses: self.addresses.iter().map(IpAddr::to_string).collect(),
                state: self.state.as_ref().map(path).unwrap_or_default(),
                await_controller: true,
                probes: self.probes.0.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// A flag and the variable that says the same.
fn shown(flag: &&str) -> String {
    format!("--{flag} (WEFT_{})", flag.replace('-', "_").to_uppercase())
}

/// Mistakes by flag and variable, in place of the fields that nobody wrote.
fn named(mut errors: Errors) -> Errors {
    for error in &mut errors.list {
        let found = FIELDS.iter().find(|(field, _)| {
            let rest = error.path.strip_prefix(field);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        if let Some((_, flags)) = found {
            let flags: Vec<String> = flags.iter().map(shown).collect();
            error.path = flags.join(", ");
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sidecar: Sidecar,
    }

    const GIVEN: [&str; 6] = [
        "--controllers=weft-controller.weft-system.svc:14010,10.0.0.1:14010",
        "--trust-bundle=-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "--namespace=shop",
        "--workload=0e5bd6a1-52ac-4d54-9d09-0d5f7e2a4b3c",
        "--addresses=10.244.0.7,fd00::7",
        "--drain-path=/drain/0123456789abcdef0123456789abcdef",
    ];

    fn sidecar(more: &[&str]) -> Sidecar {
        let all = ["sidecar"].iter().chain(&GIVEN).chain(more);
        match Line::try_parse_from(all) {
            Ok(line) => line.sidecar,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_configuration_can_be_printed_and_read() {
        let config = sidecar(&[]).config(8, true).unwrap();
        let text = weft_config::file::print(&config).unwrap();
        assert_eq!(weft_config::file::parse(&text).unwrap(), config, "{text}");
        let snapshot = weft_config::file::load("x", &text).unwrap();
        let addresses: Vec<String> = snapshot
            .listeners
            .iter()
            .map(|listener| listener.address.to_string())
            .collect();
        assert_eq!(addresses, ["[::]:14001", "[::]:14006", "[::]:14008"]);
        assert_eq!(snapshot.settings.admin.to_string(), "[::]:14020");
        assert_eq!(snapshot.settings.workers, 2);
        let mesh = snapshot.settings.mesh.unwrap();
        assert_eq!(
            mesh.identity.as_str(),
            "spiffe://cluster.local/ns/shop/sa/default"
        );
        assert_eq!(mesh.controllers.len(), 2);
        assert_eq!(mesh.application.to_string(), "10.244.0.7");
        assert!(mesh.await_controller);
    }

    #[test]
    fn what_the_machine_has_is_heeded() {
        let one = sidecar(&[]).config(1, false).unwrap();
        assert_eq!(one.listeners[0].address, "0.0.0.0:14001");
        assert_eq!(one.settings.unwrap().workers, 1);
        let four = sidecar(&["--workers=4"]).config(1, false).unwrap();
        assert_eq!(four.settings.unwrap().workers, 4);
    }

    #[test]
    fn a_wrong_value_is_named_by_flag_and_variable() {
        for (given, said) in [
            (
                "--controllers=nowhere",
                "--controllers (WEFT_CONTROLLERS): ",
            ),
            ("--workload=A_B", "--workload (WEFT_WORKLOAD): "),
            (
                "--namespace=a/b",
                "--trust-domain (WEFT_TRUST_DOMAIN), --namespace (WEFT_NAMESPACE), ",
            ),
            ("--drain-path=/short", "--drain-path (WEFT_DRAIN_PATH): "),
            ("--drain-max=301", "--drain-max (WEFT_DRAIN_MAX): "),
            ("--workers=2000", "--workers (WEFT_WORKERS): "),
            (
                r#"--probes=[{"kind": "tcp", "port": 70000}]"#,
                "--probes (WEFT_PROBES): ",
            ),
            ("--inbound=[::]:14001", "--inbound (WEFT_INBOUND): "),
        ] {
            let flag = given.split('=').next().unwrap();
            let kept = GIVEN.iter().filter(|of| !of.starts_with(flag));
            let all = ["sidecar"].iter().chain(kept).chain([&given]);
            let sidecar = Line::try_parse_from(all).ok().unwrap().sidecar;
            let errors = sidecar.config(2, true).unwrap_err().to_string();
            assert!(errors.starts_with(said), "{given}: {errors}");
        }
    }
}

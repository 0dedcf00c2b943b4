//! What is to be run, where and as whom: the arguments, checked as a whole
//! before anything is started.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use weft_config::spiffe::{SpiffeId, is_workload_uid};

use crate::program;

/// Of a workload's sidecar, where --admin does not say otherwise.
const ADMIN_PORT: u16 = 14_020;

const EXAMPLES: &str = "\
Examples:
  weft run --namespace shop --service-account catalogue --address 127.1.0.3 --ca-dir mesh/ca \\
      --manifests mesh/manifests --service catalogue --port 8080 \\
      -- python3 -m http.server 8080 --bind 127.1.0.3
                      a replica of the service catalogue: its Pod and EndpointSlice are written
                      into the controller's directory, ready while the port answers
  weft run --namespace shop --service-account frontend --address 127.1.0.1 --ca-dir mesh/ca \\
      --upstream 127.0.0.1:9001=catalogue.shop:80 -- ./frontend
                      a client, which reaches the catalogue at 127.0.0.1:9001

On SIGTERM (SIGINT, SIGHUP) the workload leaves through the drain barrier first: it is taken out of
rotation, and the application gets its SIGTERM once every caller knows and nothing is in flight. So it
may exit at once and loses nothing. A second signal skips the barrier, a third is SIGKILL.

Exit code: the application's; 128 and the signal's number if a signal ended it; 126 or 127 if it
cannot be started; 1 if the sidecar cannot; 2 for wrong arguments.
What the application writes is left as it is; lines of weft's own and of the sidecar go to standard
error, marked `weft:` and `sidecar:`.";

/// One application with its sidecar
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Namespace of the workload
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// Its service account
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub service_account: String,
    /// Its name [default: the service account and the address]; without --manifests also its UID
    #[arg(long, value_name = "NAME")]
    pub workload: Option<String>,
    /// IP address of the workload, at which the application listens too; e.g. of 127.1.0.0/16
    #[arg(long, value_name = "IP")]
    pub address: IpAddr,
    /// Where the sidecar takes mTLS
    #[arg(long, value_name = "PORT", default_value_t = 14_008)]
    pub inbound_port: u16,
    /// A service that the application dials at LISTEN; may be repeated
    #[arg(long = "upstream", value_name = "LISTEN=SERVICE.NAMESPACE:PORT")]
    pub upstreams: Vec<Upstream>,
    /// Where a controller is; may be repeated
    #[arg(
        long = "controller",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:14010"
    )]
    pub controllers: Vec<String>,
    /// The controller's certificate authority directory: tokens are made here
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["trust_bundle", "token"],
        required_unless_present = "token"
    )]
    pub ca_dir: Option<PathBuf>,
    /// The roots by which the controller is verified (PEM), in place of --ca-dir
    #[arg(long, value_name = "FILE", requires = "token")]
    pub trust_bundle: Option<PathBuf>,
    /// A join token's file (`weft token`), in place of --ca-dir
    #[arg(long, value_name = "FILE", requires = "trust_bundle")]
    pub token: Option<PathBuf>,
    /// The trust domain of all identities
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// The sidecar's admin address [default: port 14020 of --address]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Keeps the sidecar's certificate for the next run [default: for this run only]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The weft-proxy binary [default: beside this program, then in PATH]
    #[arg(long, value_name = "FILE")]
    pub proxy: Option<PathBuf>,
    /// What the sidecar logs: error, warn, info, debug
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: String,
    /// The controller's directory: a Pod and an EndpointSlice are kept there while this runs
    #[arg(long, value_name = "DIR", requires_all = ["service", "port"])]
    pub manifests: Option<PathBuf>,
    /// The Service that the application is an endpoint of
    #[arg(long, value_name = "NAME", requires = "manifests")]
    pub service: Option<String>,
    /// The port at which the application serves it
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The name of the Service's port
    #[arg(long, value_name = "NAME", default_value = "http")]
    pub port_name: String,
    /// A label of the Pod, beside `app`, which is the service's name; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label, requires = "manifests")]
    pub labels: Vec<(String, String)>,
    /// In rotation while this answers 2xx [default: while the port takes connections]
    #[arg(long, value_name = "PATH", requires = "manifests")]
    pub ready_path: Option<String>,
    /// How long the application may take to end after SIGTERM before SIGKILL
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub grace: Duration,
    /// The application
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn duration(text: &str) -> Result<Duration, String> {
    weft_config::duration::parse(text).map_err(|error| error.to_string())
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or("it has the form NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Where the application dials what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub listen: SocketAddr,
    /// Without a namespace: the workload's own.
    host: String,
    port: u16,
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form =
            "it has the form LISTEN=SERVICE.NAMESPACE:PORT, e.g. 127.0.0.1:9001=catalogue.shop:80";
        let (listen, destination) = text.split_once('=').ok_or(form)?;
        let listen = listen
            .parse()
            .map_err(|_| format!("{listen:?} is no address and port; {form}"))?;
        let (host, port) = destination
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .ok_or(form)?;
        let port = port.parse().ok().filter(|port| *port > 0);
        Ok(Self {
            listen,
            host: host.to_owned(),
            port: port.ok_or_else(|| format!("{destination:?} ends in no port; {form}"))?,
        })
    }
}

impl Upstream {
    pub fn destination(&self, namespace: &str) -> String {
        match self.host.contains(['.', ':']) {
            true => format!("{}:{}", self.host, self.port),
            false => format!("{}.{namespace}:{}", self.host, self.port),
        }
    }
}

/// How the sidecar proves who it is.
#[derive(Clone, Debug)]
pub enum Proof {
    /// We make tokens ourselves.
    Authority(PathBuf),
    Given {
        trust_bundle: PathBuf,
        token: PathBuf,
    },
}

/// What is known before anything is started.
#[derive(Debug)]
pub struct Plan {
    pub arguments: Arguments,
    pub identity: SpiffeId,
    /// The Pod's name.
    pub name: String,
    pub uid: String,
    pub admin: SocketAddr,
    pub proxy: PathBuf,
    pub proof: Proof,
    /// A folder of ours alone.
    pub private: PathBuf,
    pub state: PathBuf,
    /// The file that is kept in the controller's directory.
    pub manifest: Option<PathBuf>,
    pub grace: Duration,
}

impl Plan {
    pub fn new(arguments: Arguments, private: &Path) -> Result<Self> {
        let of = (&arguments.namespace, &arguments.service_account);
        let identity = format!(
            "spiffe://{}/ns/{}/sa/{}",
            arguments.trust_domain, of.0, of.1
        );
        let identity = SpiffeId::parse(&identity)
            .with_context(|| "--trust-domain, --namespace, --service-account".to_owned())?;
        let name = match &arguments.workload {
            Some(name) => name.clone(),
            None => own_name(of.1, arguments.address),
        };
        ensure!(
            is_workload_uid(&name) && name.len() <= NAME_MAX,
            "--workload {name}: a name has up to {NAME_MAX} lower-case letters, digits and hyphens"
        );
        let fresh = arguments.manifests.is_some() && arguments.ca_dir.is_some();
        let uid = match fresh {
            true => format!("{name}-{}", suffix()),
            false => name.clone(),
        };
        let admin = arguments.admin;
        let admin = admin.unwrap_or((arguments.address, ADMIN_PORT).into());
        let folder = arguments.manifests.as_deref().map(folder).transpose()?;
        let manifest =
            folder.map(|folder| folder.join(format!("run-{}-{name}.yaml", arguments.namespace)));
        let plan = Self {
            identity,
            admin,
            uid,
            proxy: program::find("weft-proxy", "--proxy", arguments.proxy.as_deref())?,
            proof: proof(&arguments)?,
            state: match &arguments.state {
                Some(state) => state.clone(),
                None => private.join("state"),
            },
            private: private.to_owned(),
            manifest,
            name,
            grace: arguments.grace,
            arguments,
        };
        plan.addresses_are_free()?;
        Ok(plan)
    }

    pub fn command(&self) -> (&OsStr, &[OsString]) {
        match self.arguments.command.split_first() {
            Some((program, arguments)) => (program, arguments),
            None => (OsStr::new(""), &[]),
        }
    }

    pub fn inbound(&self) -> SocketAddr {
        (self.arguments.address, self.arguments.inbound_port).into()
    }

    /// Where the application serves, as far as that was said.
    pub fn application(&self) -> Option<SocketAddr> {
        let port = self.arguments.port?;
        Some((self.arguments.address, port).into())
    }

    /// Sidecars share ports (SO_REUSEPORT), so a second one would take half of
    /// the first one's connections and no error would say so.
    fn addresses_are_free(&self) -> Result<()> {
        let address = ("--address and --inbound-port", self.inbound());
        let admin = ("--admin", self.admin);
        let upstreams = self.arguments.upstreams.iter();
        let upstreams = upstreams.map(|upstream| ("--upstream", upstream.listen));
        let mut seen: Vec<SocketAddr> = Vec::new();
        for (flag, address) in [address, admin].into_iter().chain(upstreams) {
            let problem = match TcpListener::bind(address) {
                Ok(_) if !seen.contains(&address) => {
                    seen.push(address);
                    continue;
                }
                Ok(_) => "is named twice".to_owned(),
                Err(error) => error.to_string(),
            };
            bail!(
                "{flag}: cannot listen at {address}: {problem}; each workload needs an address of its own, e.g. one of 127.1.0.0/16"
            );
        }
        Ok(())
    }
}

/// Leaves room for a UID's suffix in a DNS label.
const NAME_MAX: usize = 56;

fn own_name(account: &str, address: IpAddr) -> String {
    let address = address.to_string().replace(['.', ':'], "-");
    let name = format!("{account}-{}", address.trim_matches('-'));
    name.to_lowercase().replace(['.', '_'], "-")
}

/// Tells this run from the one before: who has left does not come back under the
/// same UID.
fn suffix() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_micros());
    let number = now
        .wrapping_mul(0x9e37_79b9)
        .wrapping_add(process::id().into());
    format!("{:05x}", number & 0xf_ffff)
}

fn folder(path: &Path) -> Result<PathBuf> {
    ensure!(
        path.is_dir(),
        "--manifests {}: is no directory; name the one that weft-controller reads",
        path.display()
    );
    Ok(path.to_owned())
}

fn proof(arguments: &Arguments) -> Result<Proof> {
    if let Some(directory) = &arguments.ca_dir {
        for file in ["token.key", "trust.pem"] {
            ensure!(
                directory.join(file).exists(),
                "--ca-dir {}: holds no {file}; start weft-controller with this --ca-dir first, it makes one",
                directory.display()
            );
        }
        return Ok(Proof::Authority(directory.canonicalize()?));
    }
    let (Some(trust_bundle), Some(token)) = (&arguments.trust_bundle, &arguments.token) else {
        bail!("--ca-dir, or --trust-bundle and --token, are needed");
    };
    let absolute = |flag: &str, path: &Path| {
        path.canonicalize()
            .with_context(|| format!("{flag} {}", path.display()))
    };
    Ok(Proof::Given {
        trust_bundle: absolute("--trust-bundle", trust_bundle)?,
        token: absolute("--token", token)?,
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.identity, self.uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams() {
        let parsed = |text: &str| text.parse::<Upstream>();
        let full = parsed("127.0.0.1:9001=catalogue.shop:80").unwrap();
        assert_eq!(full.listen.port(), 9001);
        assert_eq!(full.destination("other"), "catalogue.shop:80");
        let short = parsed("127.0.0.1:9001=catalogue:80").unwrap();
        assert_eq!(short.destination("shop"), "catalogue.shop:80");
        for (wrong, said) in [
            ("catalogue.shop:80", "LISTEN=SERVICE"),
            ("9001=catalogue.shop:80", "\"9001\" is no address"),
            ("127.0.0.1:9001=catalogue.shop", "LISTEN=SERVICE"),
            ("127.0.0.1:9001=catalogue.shop:http", "ends in no port"),
            ("127.0.0.1:9001=:80", "LISTEN=SERVICE"),
        ] {
            let error = parsed(wrong).unwrap_err();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn names_are_labels() {
        for (account, address, name) in [
            ("payment", "127.1.0.3", "payment-127-1-0-3"),
            ("Web_1.a", "::1", "web-1-a-1"),
        ] {
            let name_of = own_name(account, address.parse().unwrap());
            assert_eq!(name_of, name);
            assert!(is_workload_uid(&name_of));
        }
        assert_ne!(suffix(), String::new());
    }
}

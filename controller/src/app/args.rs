//! The command line.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::{ArgGroup, Parser};

const EXAMPLES: &str = "\
Examples:
  weft-controller --manifests mesh/manifests --ca-dir mesh/ca
                      a mesh of what the manifests say; makes a certificate
                      authority in mesh/ca if there is none
  weft-controller --kubernetes
                      a mesh of what the API server of the cluster says, in
                      whose pods this runs, or of $KUBECONFIG
  curl -s http://127.0.0.1:14021/status
                      who is connected, what is wrong, has everyone got everything";

const DISCOVERY_PORT: u16 = 14010;
const ADMIN_PORT: u16 = 14021;

/// The control plane of the Weft service mesh.
#[derive(Debug, Parser)]
#[command(name = "weft-controller", version, after_help = EXAMPLES)]
#[command(group = ArgGroup::new("source").required(true).args(["manifests", "kubernetes"]))]
pub struct Args {
    /// Directory of Kubernetes manifests, read again as it changes.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Watch the API server: the cluster's that this runs in, else $KUBECONFIG's or ~/.kube/config's.
    #[arg(long)]
    pub kubernetes: bool,
    /// The certificate authority's directory.
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    pub ca_dir: Option<PathBuf>,
    /// The trust domain of all identities.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Where proxies connect; default 0.0.0.0:14010, with --kubernetes [::]:14010.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where /status (for loopback alone), /metrics, /ready and /live are; default
    /// 127.0.0.1:14021, with --kubernetes [::]:14021.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Life of a workload's certificate, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    pub certificate_ttl: u64,
    /// Where the bound addresses are written once both ports are open (JSON).
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    #[command(flatten)]
    pub cluster: Cluster,
}

/// What only matters with `--kubernetes`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --kubernetes")]
pub struct Cluster {
    /// The controller's own namespace: where its Lease is.
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "weft-system"
    )]
    pub namespace: String,
    /// Its own name among its replicas; default: the host's.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
}

impl Args {
    pub fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(match self.kubernetes {
            // Of either family: pods may have only one of them.
            true => (Ipv6Addr::UNSPECIFIED, DISCOVERY_PORT).into(),
            false => (Ipv4Addr::UNSPECIFIED, DISCOVERY_PORT).into(),
        })
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin.unwrap_or(match self.kubernetes {
            // The kubelet and Prometheus come from elsewhere.
            true => (Ipv6Addr::UNSPECIFIED, ADMIN_PORT).into(),
            false => (Ipv4Addr::LOCALHOST, ADMIN_PORT).into(),
        })
    }
}

impl Cluster {
    pub fn identity(&self) -> String {
        let host = || {
            let name = rustix::system::uname();
            name.nodename().to_string_lossy().into_owned()
        };
        self.identity.clone().unwrap_or_else(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = std::iter::once("weft-controller").chain(line.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn one_source_and_no_more() {
        for (line, problem) in [
            ("--manifests m --ca-dir c", None),
            ("--kubernetes", None),
            ("--kubernetes --ca-dir c", None),
            ("", Some("--manifests <DIR>|--kubernetes")),
            ("--ca-dir c", Some("--manifests <DIR>|--kubernetes")),
            ("--manifests m", Some("--ca-dir")),
            (
                "--manifests m --ca-dir c --kubernetes",
                Some("cannot be used with"),
            ),
        ] {
            match (parse(line), problem) {
                (Ok(_), None) => {}
                (Err(said), Some(problem)) => assert!(said.contains(problem), "{line}: {said}"),
                (parsed, _) => panic!("{line}: {parsed:?}"),
            }
        }
    }

    #[test]
    fn addresses_follow_the_source() {
        let of = |line| {
            let args = parse(line).unwrap();
            (args.listen().to_string(), args.admin().to_string())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let directory = "--manifests m --ca-dir c";
        assert_eq!(of(directory), pair("0.0.0.0:14010", "127.0.0.1:14021"));
        assert_eq!(of("--kubernetes"), pair("[::]:14010", "[::]:14021"));
        let given = of("--kubernetes --listen 10.0.0.1:1 --admin 10.0.0.1:2");
        assert_eq!(given, pair("10.0.0.1:1", "10.0.0.1:2"));
    }
}

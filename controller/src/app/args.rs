//! The command line.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::{ArgGroup, Parser};

use crate::admission::inject::Options;
use crate::api::mesh;

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
    /// The certificate authority's directory, with the key of join tokens; with --kubernetes
    /// they are in the Secret --ca-secret and tokens are those of service accounts.
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
    #[command(flatten)]
    pub injection: Injection,
}

/// What is injected into pods, and who is told.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Injection, with --kubernetes")]
pub struct Injection {
    /// The image of weft-proxy that pods get. Without it nothing is injected.
    #[arg(long, value_name = "IMAGE", conflicts_with = "manifests")]
    pub proxy_image: Option<String>,
    /// When nodes pull it; default: Kubernetes'.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub proxy_image_pull_policy: Option<String>,
    /// Defaults of the annotations, YAML or JSON: '{memory-limit: 64Mi, log-level: warn}'.
    #[arg(long, value_name = "YAML", default_value = "{}", value_parser = Options::of_yaml)]
    pub sidecar_defaults: Options,
    /// Where the API server asks.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:14443")]
    pub webhook: SocketAddr,
    /// The Service by which it does so, in the controller's namespace.
    #[arg(long, value_name = "NAME", default_value = "weft-webhook")]
    pub webhook_service: String,
    /// The MutatingWebhookConfiguration, whose caBundle is kept equal to the trusted roots.
    #[arg(long, value_name = "NAME", default_value = "weft-injector")]
    pub webhook_configuration: String,
    /// Where sidecars find the controllers; default
    /// weft-controller.NAMESPACE.svc.CLUSTER-DOMAIN:14010, a headless Service.
    #[arg(long, value_name = "HOST:PORT")]
    pub controller_address: Option<String>,
    /// The DNS domain of the cluster.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub cluster_domain: String,
}

/// What only matters with `--kubernetes`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With --kubernetes")]
pub struct Cluster {
    /// The controller's own namespace: where its Lease and its certificate authority are.
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "weft-system"
    )]
    pub namespace: String,
    /// The Secret of the certificate authority, in that namespace; made if there is none.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "weft-ca",
        conflicts_with = "ca_dir"
    )]
    pub ca_secret: String,
    /// The XMesh (Gateway API's experimental channel) that stands for this mesh and says what
    /// it supports; made if there is none.
    #[arg(long, value_name = "NAME", default_value = mesh::NAME)]
    pub mesh_name: String,
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

impl Injection {
    pub fn controller_address(&self, namespace: &str) -> String {
        let domain = &self.cluster_domain;
        let usual = || format!("weft-controller.{namespace}.svc.{domain}:{DISCOVERY_PORT}");
        self.controller_address.clone().unwrap_or_else(usual)
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
    fn sidecars_are_told_the_headless_service() {
        let args = parse("--kubernetes --namespace mesh --cluster-domain c.example").unwrap();
        let address = args.injection.controller_address(&args.cluster.namespace);
        assert_eq!(address, "weft-controller.mesh.svc.c.example:14010");
        let said = parse("--kubernetes --sidecar-defaults {memory-limit:1}").unwrap_err();
        assert!(
            said.contains("4Mi to 1Ti") || said.contains("unknown"),
            "{said}"
        );
        let said = parse("--manifests m --ca-dir c --proxy-image i").unwrap_err();
        assert!(said.contains("cannot be used with"), "{said}");
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

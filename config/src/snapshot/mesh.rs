//! The parts of a snapshot that only a mesh has: whose sidecar the proxy is,
//! what a listener is to the mesh, and who an endpoint must prove to be.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use http::Method;

use crate::authorize::Authorization;
use crate::spiffe::SpiffeId;

/// Whose sidecar this is.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// `host:port` of each controller.
    pub controllers: Vec<Arc<str>>,
    /// The roots by which a controller is verified.
    pub trust_bundle: TrustBundle,
    /// File with the proof of identity.
    pub token: PathBuf,
    /// What the workload is to prove to be.
    pub identity: SpiffeId,
    /// The workload's UID.
    pub workload: Arc<str>,
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// Where the application is reached from here.
    pub application: IpAddr,
    /// Keeps the certificate over a restart.
    pub state: Option<PathBuf>,
    /// Not ready before a controller was heard.
    pub await_controller: bool,
    /// How the application is probed from outside the mesh.
    pub probes: Vec<Probe>,
}

/// How a kubelet probes the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub kind: ProbeKind,
    /// Of the application.
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// A plain GET or HEAD of this path and query, by the kubelet itself.
    Http(Arc<str>),
    /// `Check` of gRPC's health protocol, by the kubelet itself.
    Grpc,
    /// A connection that opens, by the sidecar.
    Tcp,
    /// A GET of this path and query, by the sidecar, which verifies no certificate.
    Https(Arc<str>),
}

/// What gRPC health checks are sent to.
const GRPC_CHECK: &str = "/grpc.health.v1.Health/Check";

impl Probe {
    /// Whether a plain-text request is this probe. Method, path and query must be
    /// exactly the probe's, or more of the application would be open than its owner meant.
    pub fn is(&self, port: u16, method: &Method, path_and_query: &str) -> bool {
        self.port == port
            && match &self.kind {
                ProbeKind::Http(path) => {
                    matches!(*method, Method::GET | Method::HEAD) && **path == *path_and_query
                }
                ProbeKind::Grpc => *method == Method::POST && path_and_query == GRPC_CHECK,
                ProbeKind::Tcp | ProbeKind::Https(_) => false,
            }
    }

    /// For metrics and the log.
    pub fn label(&self) -> &'static str {
        match self.kind {
            ProbeKind::Http(_) => "http",
            ProbeKind::Grpc => "grpc",
            ProbeKind::Tcp => "tcp",
            ProbeKind::Https(_) => "https",
        }
    }

    /// Whether the kubelet asks the application itself.
    pub fn comes_in(&self) -> bool {
        matches!(self.kind, ProbeKind::Http(_) | ProbeKind::Grpc)
    }
}

/// Where the first roots come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustBundle {
    /// A PEM file.
    File(PathBuf),
    /// PEM text.
    Text(Arc<str>),
}

/// What a listener is to the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListenerRole {
    /// An ordinary listener.
    #[default]
    Direct,
    /// Takes what the local workload dials. `None`: the original destination of
    /// a captured connection says what.
    Outbound { destination: Option<Destination> },
    /// Takes what is meant for the local workload.
    Inbound,
    /// Bound to no socket: connections are handed to it by the two above. It has
    /// a destination, or (a port of the local workload) [`Inbound`].
    Virtual { destination: Option<Destination> },
}

/// What a workload dials: an address, or a service by its name and port where
/// nothing captures traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    Address(SocketAddr),
    /// `service.namespace:port`.
    Service(Arc<str>),
}

impl Destination {
    /// `ip:port` or `service.namespace:port`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let (host, port) = text.rsplit_once(':')?;
        let (service, namespace) = host.split_once('.')?;
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let good = is_label(service)
            && is_label(namespace)
            && port.parse::<u16>().is_ok_and(|port| port > 0);
        good.then(|| Self::Service(text.into()))
    }
}

/// The name of its discovery resource.
impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Service(name) => f.write_str(name),
        }
    }
}

/// Who may use a port of the local workload.
#[derive(Debug, Default)]
pub struct Inbound {
    pub mtls: Mtls,
    pub authorization: Authorization,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtls {
    #[default]
    Permissive,
    Strict,
}

/// Who an endpoint of the mesh must prove to be, and where it takes mTLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    pub identity: SpiffeId,
    /// The workload's UID.
    pub workload: Arc<str>,
    pub address: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_exactly_its_request() {
        let http = Probe {
            kind: ProbeKind::Http("/healthz?full=1".into()),
            port: 8080,
        };
        let grpc = Probe {
            kind: ProbeKind::Grpc,
            port: 9000,
        };
        for (probe, port, method, path, expected) in [
            (&http, 8080, Method::GET, "/healthz?full=1", true),
            (&http, 8080, Method::HEAD, "/healthz?full=1", true),
            (&http, 8080, Method::POST, "/healthz?full=1", false),
            (&http, 8080, Method::GET, "/healthz", false),
            (&http, 8080, Method::GET, "/healthz/?full=1", false),
            (&http, 8080, Method::GET, "/healthz?full=1&x", false),
            (&http, 8080, Method::GET, "/x/../healthz?full=1", false),
            (&http, 8081, Method::GET, "/healthz?full=1", false),
            (&grpc, 9000, Method::POST, GRPC_CHECK, true),
            (&grpc, 9000, Method::GET, GRPC_CHECK, false),
            (
                &grpc,
                9000,
                Method::POST,
                "/grpc.health.v1.Health/Watch",
                false,
            ),
            (&grpc, 8080, Method::POST, GRPC_CHECK, false),
        ] {
            assert_eq!(
                probe.is(port, &method, path),
                expected,
                "{port} {method} {path}"
            );
        }
    }
}

//! Which mesh is asked, this host's or a cluster's, and asking its controllers and proxies. Owns how
//! they are reached and called; what their answers mean is each subcommand's.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weft_config::status::{ProxyStatus, Status};

use crate::admin::{self, Page};
use crate::cluster::{self, Cluster, PodName};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a proxy through the API server and its node's kubelet.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(8);
/// A connection to this host itself.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);
/// Where a controller's admin port is, here and in its pods.
const CONTROLLER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 14_021);
const PROXY_PORT: u16 = 14_020;

/// Part of the help of every subcommand that asks a mesh.
pub const WHICH: &str = "\
Which mesh: with -k, --kubeconfig, --context or -n that of a Kubernetes cluster, through its API
server; with --controller-admin that of a controller outside one. With none of them the one whose
controller runs on this host at 127.0.0.1:14021; where none does, that of the kubeconfig's cluster,
if there is a kubeconfig.";

#[derive(Clone, Debug, clap::Args)]
pub struct Choice {
    /// Admin address of a controller outside Kubernetes [default: 127.0.0.1:14021]
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["kubernetes", "kubeconfig", "context", "namespace"])]
    controller_admin: Option<SocketAddr>,
    /// The mesh of a Kubernetes cluster, also where a controller runs on this host
    #[arg(short, long, help_heading = "Of a Kubernetes cluster")]
    kubernetes: bool,
    #[command(flatten)]
    cluster: cluster::Options,
}

impl Choice {
    /// With `cluster` it is one.
    pub async fn mesh(&self, cluster: bool) -> Result<Mesh> {
        if let Some(admin) = self.controller_admin {
            return Ok(Mesh::Here(admin));
        }
        let said = cluster || self.kubernetes || self.cluster.is_given();
        if !said && (!self.cluster.is_there() || answers(CONTROLLER).await) {
            return Ok(Mesh::Here(CONTROLLER));
        }
        let cluster = Cluster::connect(&self.cluster).await?;
        Ok(Mesh::Cluster(Box::new(cluster)))
    }
}

async fn answers(address: SocketAddr) -> bool {
    let connected = timeout(LOOK_TIMEOUT, TcpStream::connect(address)).await;
    matches!(connected, Ok(Ok(_)))
}

pub enum Mesh {
    /// Of the controller with this admin address.
    Here(SocketAddr),
    Cluster(Box<Cluster>),
}

/// What all controllers know.
#[derive(Debug)]
pub struct Known {
    pub controllers: Vec<Controller>,
    /// Of a cluster's pods, by UID.
    pub names: HashMap<String, PodName>,
}

#[derive(Debug)]
pub struct Controller {
    /// Its pod, or its admin address.
    pub name: String,
    pub answer: Result<Status, String>,
}

/// A proxy as the controller knows it that it is connected to.
#[derive(Clone, Debug)]
pub struct Proxy<'a> {
    /// Its pod, or its workload.
    pub name: String,
    pub pod: Option<&'a PodName>,
    pub controller: &'a str,
    pub status: &'a Status,
    pub proxy: &'a ProxyStatus,
}

impl Mesh {
    /// Asks all controllers. One of a cluster's that does not answer is known as such; if none
    /// does, that is an error.
    pub async fn known(&self) -> Result<Known> {
        match self {
            Self::Here(admin) => Ok(Known {
                controllers: vec![Controller {
                    name: admin.to_string(),
                    answer: Ok(fetch(*admin).await?),
                }],
                names: HashMap::new(),
            }),
            Self::Cluster(cluster) => of_cluster(cluster).await,
        }
    }

    /// Which one it is; nothing, of this host's.
    pub fn title(&self) -> String {
        match self {
            Self::Here(_) => String::new(),
            Self::Cluster(of) => format!("Weft in namespace {} of {}", of.namespace, of.context),
        }
    }

    /// Where its controller is.
    pub fn place(&self) -> String {
        match self {
            Self::Here(admin) => admin.to_string(),
            Self::Cluster(of) => format!("namespace {} of {}", of.namespace, of.context),
        }
    }

    /// What brings the first workload in.
    pub fn first_step(&self) -> &'static str {
        match self {
            Self::Here(_) => "start one: weft run --help",
            Self::Cluster(_) => {
                "kubectl label namespace NAMESPACE weft.dev/inject=enabled, and restart its pods: kubectl -n NAMESPACE rollout restart deployment"
            }
        }
    }

    /// How long one answer of a proxy may take.
    pub fn patience(&self) -> Duration {
        match self {
            Self::Here(_) => Duration::from_secs(2),
            Self::Cluster(_) => FORWARD_TIMEOUT,
        }
    }

    /// How a proxy is reached, for a task of its own.
    pub fn door(&self, proxy: &Proxy<'_>) -> Door {
        match self {
            Self::Here(_) => Door::Address(proxy.proxy.admin.clone()),
            Self::Cluster(cluster) => Door::Pod(
                cluster.clone(),
                proxy.pod.cloned(),
                admin_port(&proxy.proxy.admin),
            ),
        }
    }
}

/// The admin port of a proxy.
#[derive(Clone)]
pub enum Door {
    Address(String),
    /// None: it is not listed any more.
    Pod(Box<Cluster>, Option<PodName>, u16),
}

impl Door {
    pub fn name(&self) -> String {
        match self {
            Self::Address(address) => format!("http://{address}"),
            Self::Pod(_, pod, port) => {
                let pod = pod.as_ref().map(PodName::to_string);
                format!("{}:{port}", pod.unwrap_or_default())
            }
        }
    }

    pub async fn get(&self, path: &str, limit: Duration) -> Result<Page> {
        match self {
            Self::Address(address) => {
                let address = address
                    .parse()
                    .with_context(|| format!("its admin address {address:?} is none"))?;
                admin::get(address, path, limit).await
            }
            Self::Pod(cluster, Some(pod), port) => cluster.get(pod, *port, path, limit).await,
            Self::Pod(_, None, _) => bail!("its pod is gone"),
        }
    }
}

fn admin_port(admin: &str) -> u16 {
    let address = admin.parse::<SocketAddr>();
    address.map_or(PROXY_PORT, |address| address.port())
}

/// Asks the controller of this host.
async fn fetch(admin: SocketAddr) -> Result<Status> {
    let page = admin::get(admin, "/status", ANSWER_TIMEOUT).await;
    let page = page.with_context(|| {
        format!("no controller at {admin}: start weft-controller, name its --admin address by --controller-admin, or a cluster's by --kubernetes")
    })?;
    serde_json::from_slice(&page.body)
        .with_context(|| format!("http://{admin}/status is not a weft-controller's"))
}

async fn of_cluster(cluster: &Cluster) -> Result<Known> {
    let mut asked = JoinSet::new();
    for pod in cluster.controllers().await? {
        let (cluster, pod) = (cluster.clone(), PodName::of(&pod));
        asked.spawn(async move {
            let page = cluster.get(&pod, CONTROLLER.port(), "/status", ANSWER_TIMEOUT);
            let answer = match page.await {
                Ok(page) => serde_json::from_slice(&page.body)
                    .map_err(|_| "its /status is not a weft-controller's".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            };
            Controller {
                name: pod.name,
                answer,
            }
        });
    }
    let mut controllers = asked.join_all().await;
    controllers.sort_by(|a, b| a.name.cmp(&b.name));
    if let [first, ..] = &*controllers
        && let Some(error) = controllers
            .iter()
            .all(|of| of.answer.is_err())
            .then_some(first)
    {
        let said = error.answer.as_ref().err().map_or("", String::as_str);
        bail!(
            "no controller answers in namespace {} of {}: {said}",
            cluster.namespace,
            cluster.context
        );
    }
    let names = cluster.names().await?.into_iter().collect();
    Ok(Known { controllers, names })
}

impl Known {
    pub fn statuses(&self) -> impl Iterator<Item = &Status> {
        self.controllers
            .iter()
            .filter_map(|controller| controller.answer.as_ref().ok())
    }

    /// Every proxy, by name. One that has changed its controller may be known to the old one a
    /// moment longer: where it connected last it is.
    pub fn proxies(&self) -> Vec<Proxy<'_>> {
        let all = || {
            self.controllers.iter().filter_map(|controller| {
                let status = controller.answer.as_ref().ok()?;
                Some((controller.name.as_str(), status))
            })
        };
        let mut last: HashMap<&str, (u64, &str)> = HashMap::new();
        for (controller, status) in all() {
            for proxy in &status.proxies {
                let seen = (proxy.connected_since, controller);
                let known = last.entry(&proxy.workload).or_insert(seen);
                *known = seen.max(*known);
            }
        }
        let mut proxies = Vec::new();
        for (controller, status) in all() {
            let here = status.proxies.iter().filter(|proxy| {
                let place = last.get(proxy.workload.as_str());
                place.is_some_and(|(_, place)| *place == controller)
            });
            proxies.extend(here.map(|proxy| {
                let pod = self.names.get(&proxy.workload);
                Proxy {
                    name: pod.map_or_else(|| proxy.workload.clone(), PodName::to_string),
                    pod,
                    controller,
                    status,
                    proxy,
                }
            }));
        }
        proxies.sort_by(|a, b| a.name.cmp(&b.name));
        proxies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_where_it_connected_last() {
        let status = |proxies: &[(&str, u64)]| Status {
            proxies: proxies
                .iter()
                .map(|(workload, since)| ProxyStatus {
                    workload: (*workload).to_owned(),
                    connected_since: *since,
                    ..ProxyStatus::default()
                })
                .collect(),
            ..Status::default()
        };
        let controller = |name: &str, answer| Controller {
            name: name.to_owned(),
            answer,
        };
        let name = PodName {
            namespace: "shop".to_owned(),
            name: "web-1".to_owned(),
        };
        let known = Known {
            controllers: vec![
                controller("a", Ok(status(&[("u1", 5), ("u2", 5), ("u2", 6)]))),
                controller("b", Ok(status(&[("u1", 7), ("u3", 1)]))),
                controller("c", Err("gone".to_owned())),
            ],
            names: HashMap::from([("u1".to_owned(), name)]),
        };
        let proxies = known.proxies();
        let shown: Vec<_> = proxies
            .iter()
            .map(|of| (&*of.name, of.controller))
            .collect();
        // Two of one workload at one controller are two: a sidecar that is being replaced.
        assert_eq!(
            shown,
            [("shop/web-1", "b"), ("u2", "a"), ("u2", "a"), ("u3", "b")]
        );
    }
}

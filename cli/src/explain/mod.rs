//! `weft explain`: what would happen to a request, and why. Asks a live proxy, or
//! reads files; either way the code that routes real requests answers.

mod live;
mod manifests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use serde::Serialize;
use weft_config::explain::{Decision, Effect, ExplainRequest, Explanation, explain};
use weft_config::file;
use weft_controller::admission::inject::INJECTED;

use crate::cluster::{Access, Cluster, NAMESPACE, PodName};
use crate::mesh::Door;
use crate::status::Output;
use crate::terminal::{BOLD, CYAN, Cell, DIM, GREEN, PLAIN, Paint, RED, print};

/// Where a weft-proxy's admin port is if nobody says otherwise.
const ADMIN: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 14_020);

const EXAMPLES: &str = "\
Examples:
  weft explain --proxy 127.1.0.1:14020 GET http://catalogue.shop:80/items
                                      what this sidecar would do now with what its application
                                      sends, and how the endpoints stand that it may pick
  weft explain --pod frontend-7d9f-x2x.shop GET http://catalogue/items
                                      the same of a pod in a cluster, through its API server
  weft explain --config weft.yaml -H 'x-user: 7' http://shop.example/cart
                                      what a weft-proxy with this file would do
  weft explain --manifests mesh/manifests --from shop/frontend POST http://catalogue.shop:80/items
                                      what a mesh of these manifests would do with a request of this
                                      service account, and which AuthorizationPolicy would decide

The URL says what is dialled: in a mesh a service by service.namespace:port, an address, or (live) where
the sidecar listens. Another host to route by: -H 'Host: …'.

Exit code: 0 the request is answered by somebody; 1 it is not (404, 403, 500, no endpoint), or there is
nothing to explain; 2 wrong arguments.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The request
    #[arg(required = true, num_args = 1..=2, value_names = ["METHOD", "URL"])]
    request: Vec<String>,
    /// A header of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// Admin address of the proxy that is asked [default: 127.0.0.1:14020]
    #[arg(long, value_name = "ADDRESS")]
    proxy: Option<SocketAddr>,
    /// The pod of a cluster whose sidecar is asked: NAME, NAME.NAMESPACE or NAMESPACE/NAME
    #[arg(long, value_name = "POD", conflicts_with_all = ["proxy", "config", "manifests"])]
    pod: Option<String>,
    /// The pod's namespace [default: the context's]
    #[arg(
        short,
        long,
        value_name = "NAME",
        requires = "pod",
        help_heading = "Of a Kubernetes cluster"
    )]
    namespace: Option<String>,
    #[command(flatten)]
    access: Access,
    /// A weft-proxy's configuration file, in place of a live proxy
    #[arg(short, long, value_name = "FILE", conflicts_with = "proxy")]
    config: Option<PathBuf>,
    /// A directory of manifests, in place of a live proxy
    #[arg(long, value_name = "DIR", conflicts_with_all = ["proxy", "config", "listener"], requires = "from")]
    manifests: Option<PathBuf>,
    /// Who asks: NAMESPACE/SERVICE-ACCOUNT
    #[arg(long, value_name = "NS/SA", requires = "manifests")]
    from: Option<String>,
    /// The trust domain of the manifests' identities
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cluster.local",
        requires = "manifests"
    )]
    trust_domain: String,
    /// The listener that the request comes to [default: the one that is dialled]
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// What is printed
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t)]
    output: Output,
}

/// A decision, and whom it may lead to.
#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    explanation: Explanation,
    endpoints: Vec<Endpoints>,
}

/// Those of one service.
#[derive(Debug, Serialize)]
struct Endpoints {
    service: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    address: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    workload: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    identity: String,
    /// It would be picked, or the request be let in.
    available: bool,
    /// Why it would, or would not.
    state: String,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let line = arguments.request.join(" ");
    let headers = arguments.headers.iter().map(String::as_str);
    let request = ExplainRequest::parse(&line, headers)?;
    let answer = match (&arguments.config, &arguments.manifests) {
        (Some(file), _) => from_file(file, arguments.listener.as_deref(), &request)?,
        (None, Some(folder)) => {
            let from = arguments.from.as_deref().unwrap_or_default();
            let asked = (&*dialled(&arguments.request), &request);
            manifests::answer(folder, (from, &arguments.trust_domain), asked)?
        }
        (None, None) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (proxy, addresses) = door(arguments).await?;
                let asked = live::Asked {
                    proxy,
                    addresses,
                    line: &arguments.request,
                    headers: &arguments.headers,
                    listener: arguments.listener.as_deref(),
                };
                live::answer(&asked).await
            })?
        }
    };
    let _read = match arguments.output {
        Output::Json => print(&[serde_json::to_string_pretty(&answer)?]),
        Output::Text => print(&render(&answer, Paint::of_stdout())),
    };
    Ok(match is_served(&answer) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Of the proxy that is asked; in a cluster with the addresses that are dialled.
async fn door(arguments: &Arguments) -> Result<(Door, Vec<String>)> {
    let Some(pod) = &arguments.pod else {
        let proxy = arguments.proxy.unwrap_or(ADMIN.into());
        return Ok((Door::Address(proxy.to_string()), Vec::new()));
    };
    let cluster = Cluster::reach(&arguments.access, NAMESPACE).await?;
    let own = arguments.namespace.as_deref();
    let name = PodName::parse(pod, own.unwrap_or(&cluster.default_namespace))?;
    let pod = cluster.pod(&name).await?;
    ensure!(
        pod.annotations().contains_key(INJECTED),
        "{name} has no sidecar: label its namespace weft.dev/inject=enabled and restart it"
    );
    let dialled = dialled(&arguments.request);
    let (host, port) = dialled.rsplit_once(':').unwrap_or((&dialled, "80"));
    // As the pod's resolver would have it.
    let (service, namespace) = host.split_once('.').unwrap_or((host, &name.namespace));
    let addresses = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => cluster.addresses(namespace, service).await?,
    };
    let addresses = addresses.into_iter().map(|address| match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    });
    let addresses = addresses.collect();
    Ok((Door::Pod(Box::new(cluster), Some(name), ADMIN.1), addresses))
}

/// `host:port` of the URL; not the Host header's, which is not dialled.
fn dialled(line: &[String]) -> String {
    let uri = line.last().and_then(|url| url.parse::<http::Uri>().ok());
    let Some(uri) = uri else {
        return String::new();
    };
    let port = match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    let host = uri.host().unwrap_or_default();
    format!("{}:{}", in_kubernetes(host), uri.port_u16().unwrap_or(port))
}

/// `catalogue.shop.svc.cluster.local` is `catalogue.shop`.
fn in_kubernetes(host: &str) -> &str {
    let host = host.trim_end_matches('.');
    let labels: Vec<&str> = host.splitn(4, '.').collect();
    match labels[..] {
        [service, namespace, "svc", ..] => host
            .get(..service.len() + 1 + namespace.len())
            .unwrap_or(host),
        _ => host,
    }
}

/// As `weft-proxy --explain`.
fn from_file(path: &Path, listener: Option<&str>, request: &ExplainRequest) -> Result<Answer> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let snapshot = file::load(&path.display().to_string(), &text)?;
    let explanation = explain(&snapshot, listener, request)?;
    let endpoints = services(&explanation).into_iter().map(|service| {
        let found = snapshot.services.iter().find(|of| *of.name == *service);
        let endpoints = found.map_or(&[][..], |of| &of.endpoints);
        let shown = endpoints.iter().map(|endpoint| Endpoint {
            address: endpoint.address.to_string(),
            available: endpoint.weight > 0,
            state: format!("weight {}", endpoint.weight),
            ..Endpoint::default()
        });
        Endpoints {
            endpoints: shown.collect(),
            service,
        }
    });
    Ok(Answer {
        endpoints: endpoints.collect(),
        explanation,
    })
}

/// Those that the request may go to.
fn services(explanation: &Explanation) -> Vec<String> {
    match &explanation.decision {
        Decision::NotFound => Vec::new(),
        Decision::Service { service } => vec![service.clone()],
        Decision::Rule(rule) => match &rule.effect {
            Effect::Forward { .. } | Effect::Tunnel => rule
                .backends
                .iter()
                .filter(|backend| backend.weight > 0)
                .filter_map(|backend| backend.service.clone())
                .collect(),
            Effect::Respond { .. } | Effect::Failed { .. } => Vec::new(),
        },
    }
}

/// Whether somebody answers as is meant; of several shares one is enough.
fn is_served(answer: &Answer) -> bool {
    let answered = match &answer.explanation.decision {
        Decision::Rule(rule) => matches!(rule.effect, Effect::Respond { .. }),
        Decision::Service { .. } | Decision::NotFound => false,
    };
    let mut endpoints = answer.endpoints.iter().flat_map(|of| &of.endpoints);
    answered || endpoints.any(|endpoint| endpoint.available)
}

/// Pure.
fn render(answer: &Answer, paint: Paint) -> Vec<String> {
    let explanation = answer.explanation.to_string();
    let mut lines: Vec<String> = explanation
        .trim_end()
        .lines()
        .enumerate()
        .map(|(number, line)| {
            let tone = match number {
                0 => BOLD,
                1 => DIM,
                _ if line.starts_with(' ') => PLAIN,
                _ => CYAN,
            };
            paint.line(&[(tone, line.to_owned())])
        })
        .collect();
    for of in &answer.endpoints {
        let title = match of.endpoints.is_empty() {
            true => (
                RED,
                format!("service {} has no endpoint: answered 503", of.service),
            ),
            false => (CYAN, format!("endpoints of service {}:", of.service)),
        };
        lines.push(paint.line(&[title]));
        for endpoint in &of.endpoints {
            let tone = if endpoint.available { GREEN } else { RED };
            let who = [&endpoint.workload, &endpoint.identity].map(String::as_str);
            let who = who.join("  ");
            let pieces: [Cell; 3] = [
                (PLAIN, format!("  {}  ", endpoint.address)),
                (
                    DIM,
                    if who.trim().is_empty() {
                        String::new()
                    } else {
                        who + "  "
                    },
                ),
                (tone, endpoint.state.clone()),
            ];
            lines.push(paint.line(&pieces));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dialled() {
        for (url, expected) in [
            ("http://catalogue.shop:80/x", "catalogue.shop:80"),
            ("http://catalogue.shop/x", "catalogue.shop:80"),
            ("https://catalogue.shop.svc/", "catalogue.shop:443"),
            (
                "http://catalogue.shop.svc.cluster.local:8080/",
                "catalogue.shop:8080",
            ),
            ("http://127.0.0.1:9001/", "127.0.0.1:9001"),
        ] {
            assert_eq!(dialled(&["GET".to_owned(), url.to_owned()]), expected);
        }
    }
}

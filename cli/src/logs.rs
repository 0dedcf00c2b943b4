//! `weft logs`: what sidecars, or the controller, log in a cluster; of several pods in one stream.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, ensure};
use futures_util::io::AsyncBufReadExt as _;
use futures_util::stream::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, LogParams};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weft_controller::admission::inject::INJECTED;

use crate::cluster::{self, Access, Cluster, NAMESPACE, PodName, bounded};
use crate::terminal::{CYAN, GREEN, PLAIN, Paint, RED, YELLOW, print};

/// Pods that are read at once: each is a connection of the API server's to a kubelet.
const PODS_MAX: usize = 100;
/// Of one pod, at once.
const BYTES_MAX: i64 = 32 << 20;
/// Lines that wait to be printed; who has more waits.
const WAITING_MAX: usize = 1024;
const SIDECAR: &str = "weft-proxy";
const CONTROLLER: &str = "controller";
const TONES: [&str; 6] = [CYAN, GREEN, YELLOW, "34", "35", RED];

const EXAMPLES: &str = "\
Examples:
  weft logs web-7d9f-x2x.shop         the sidecar of one pod
  weft logs -n shop -l app=web -f     the sidecars of several, as they log
  weft logs -A --since 5m             all sidecars of the mesh
  weft logs --controller -f           all replicas of the controller

Lines of several pods are in the order of their time; with -f as they come, and of the pods that
are there at the start.

Exit code: 0; 1 if a pod cannot be read, or there is none; 2 wrong arguments.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The pod: NAME, NAME.NAMESPACE or NAMESPACE/NAME; none: all with a sidecar
    #[arg(value_name = "POD", conflicts_with = "selector")]
    pod: Option<String>,
    /// Pods with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// The pods' namespace [default: the context's; of the controller weft-system]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// Pods of all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "pod"])]
    all_namespaces: bool,
    /// The controller's log, not the sidecars'
    #[arg(long, conflicts_with_all = ["pod", "selector", "all_namespaces"])]
    controller: bool,
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
    /// Of each pod the last lines
    #[arg(long, value_name = "LINES", default_value_t = 1000)]
    tail: u32,
    /// Only lines that are not older
    #[arg(long, value_name = "DURATION", value_parser = weft_config::duration::parse)]
    since: Option<Duration>,
    /// Of the container before the last restart
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    #[command(flatten)]
    access: Access,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(show(arguments))
}

async fn show(arguments: &Arguments) -> Result<ExitCode> {
    let namespace = arguments.namespace.as_deref();
    let cluster = Cluster::reach(&arguments.access, namespace.unwrap_or(NAMESPACE)).await?;
    let pods = chosen(&cluster, arguments).await?;
    ensure!(
        pods.len() <= PODS_MAX,
        "{} pods are more than can be read at once ({PODS_MAX}): choose some by -n and -l",
        pods.len()
    );
    let container = if arguments.controller {
        CONTROLLER
    } else {
        SIDECAR
    };
    let params = LogParams {
        container: Some(container.to_owned()),
        follow: arguments.follow,
        limit_bytes: (!arguments.follow).then_some(BYTES_MAX),
        previous: arguments.previous,
        since_seconds: arguments
            .since
            .and_then(|since| i64::try_from(since.as_secs().max(1)).ok()),
        tail_lines: Some(arguments.tail.into()),
        // By which they are put in order.
        timestamps: !arguments.follow && pods.len() > 1,
        ..LogParams::default()
    };
    let (tx, rx) = mpsc::channel(WAITING_MAX);
    let mut tasks = JoinSet::new();
    for (index, pod) in pods.iter().enumerate() {
        let (cluster, pod, params, tx) = (cluster.clone(), pod.clone(), params.clone(), tx.clone());
        tasks.spawn(async move {
            let read = read(&cluster, &pod, &params, (index, &tx)).await;
            read.with_context(|| format!("the log of {pod}"))
        });
    }
    drop(tx);
    let shown = Shown::new(&pods, Paint::of_stdout());
    if params.timestamps {
        in_order(rx, &shown).await;
    } else {
        as_they_come(rx, &shown).await;
    }
    let mut code = ExitCode::SUCCESS;
    while let Some(read) = tasks.join_next().await {
        if let Ok(Err(error)) = read {
            eprintln!("weft: {error:#}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// The pods to read, by name.
async fn chosen(cluster: &Cluster, arguments: &Arguments) -> Result<Vec<PodName>> {
    let own = arguments.namespace.as_deref();
    let own = own.unwrap_or(&cluster.default_namespace);
    if let Some(pod) = &arguments.pod {
        let name = PodName::parse(pod, own)?;
        let pod = cluster.pod(&name).await?;
        ensure!(
            has_sidecar(&pod),
            "{name} has no sidecar: label its namespace weft.dev/inject=enabled and restart it"
        );
        return Ok(vec![name]);
    }
    if arguments.controller {
        let found = cluster.controllers().await?;
        return Ok(found.iter().map(PodName::of).collect());
    }
    let pods: Api<Pod> = match arguments.all_namespaces {
        true => Api::all(cluster.client.clone()),
        false => Api::namespaced(cluster.client.clone(), own),
    };
    let labels = arguments.selector.as_deref().unwrap_or_default();
    let found = cluster::all(&pods, ListParams::default().labels(labels), "pods").await?;
    let found = found.iter().filter(|pod| has_sidecar(pod));
    let mut found: Vec<_> = found.map(PodName::of).collect();
    found.sort();
    ensure!(
        !found.is_empty(),
        "no pod with a sidecar is {}: -n and -A choose others",
        match arguments.all_namespaces {
            true => "in this cluster".to_owned(),
            false => format!("in namespace {own}"),
        }
    );
    Ok(found)
}

fn has_sidecar(pod: &Pod) -> bool {
    pod.annotations().contains_key(INJECTED)
}

/// A line, and the index of the pod that it is of.
type Line = (usize, String);

async fn read(
    cluster: &Cluster,
    pod: &PodName,
    params: &LogParams,
    (index, tx): (usize, &mpsc::Sender<Line>),
) -> Result<()> {
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), &pod.namespace);
    let log = bounded("asking for it", pods.log_stream(&pod.name, params)).await?;
    let mut lines = std::pin::pin!(log.lines());
    while let Some(line) = lines.next().await {
        let line = line.map_err(|error| Error::new(error).context("it broke off"))?;
        // Nobody reads any more.
        if tx.send((index, line)).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// How lines look.
struct Shown<'a> {
    pods: &'a [PodName],
    paint: Paint,
    width: usize,
}

impl<'a> Shown<'a> {
    fn new(pods: &'a [PodName], paint: Paint) -> Self {
        let width = pods.iter().map(|pod| pod.name.len()).max();
        Self {
            pods,
            paint,
            width: width.unwrap_or(0),
        }
    }

    /// With its pod's name in front, if there is another one.
    fn line(&self, index: usize, line: &str) -> String {
        let name = match self.pods {
            [_] => String::new(),
            pods => {
                let name = pods.get(index).map_or("", |pod| &pod.name);
                format!("{name:width$}  ", width = self.width)
            }
        };
        let tone = TONES.get(index % TONES.len()).copied().unwrap_or(PLAIN);
        self.paint.line(&[(tone, name), (PLAIN, line.to_owned())])
    }
}

async fn as_they_come(mut rx: mpsc::Receiver<Line>, shown: &Shown<'_>) {
    while let Some((index, line)) = rx.recv().await {
        if !print(&[shown.line(index, &line)]) {
            break;
        }
    }
}

async fn in_order(mut rx: mpsc::Receiver<Line>, shown: &Shown<'_>) {
    let mut lines = Vec::new();
    while let Some(line) = rx.recv().await {
        lines.push(line);
    }
    // Times of RFC 3339 with all nine digits, in UTC: their order is that of their text.
    lines.sort_by(|(_, a), (_, b)| time(a).0.cmp(time(b).0));
    let lines: Vec<_> = lines
        .iter()
        .map(|(index, line)| shown.line(*index, time(line).1))
        .collect();
    print(&lines);
}

/// The kubelet's time, and the line itself.
fn time(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pods_are_told_apart() {
        let pods = ["web-1", "catalogue-1"].map(|name| PodName {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        });
        let paint = |color| Paint {
            color,
            width: usize::MAX,
        };
        let plain = Shown::new(&pods, paint(false));
        assert_eq!(plain.line(0, "ready \x1b[31m"), "web-1        ready  [31m");
        let painted = Shown::new(&pods, paint(true));
        assert_ne!(
            painted.line(0, "").get(..5),
            painted.line(1, "").get(..5),
            "by colour"
        );
        assert_eq!(
            Shown::new(&pods[..1], paint(false)).line(0, "ready"),
            "ready"
        );
        let timed = "2026-11-26T00:00:00.000000001Z {\"a\": 1}";
        assert_eq!(time(timed).1, "{\"a\": 1}");
    }
}

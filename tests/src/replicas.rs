//! What a mesh on a real node does when its controllers, or the API server, are killed under load:
//! requests lost, and how long each part took to heal.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Namespace};
use crate::install::{self, NAMESPACE};
use crate::metrics::Metrics;
use crate::raw::Raw;
use crate::storm::{self, Lane, OnTerm};
use crate::{eventually_within, root};

/// The customer is ended when a fault has healed; this only bounds it.
const SECONDS_MAX: u32 = 1800;
/// How long anything may take to heal: pods start, and a ReplicaSet whose pods were refused tries again
/// ever more rarely.
const PATIENCE: Duration = Duration::from_secs(180);
const ADMIN_PORT: u16 = 14_021;
const HEAD: [&str; 2] = [
    "| fault | lost | sent | p99 ms | healed |",
    "| --- | ---: | ---: | ---: | --- |",
];

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// How long no controller runs.
    pub away: Duration,
    /// How long no API server runs.
    pub down: Duration,
}

/// What healed, after how long.
pub type Healed = Vec<(String, Duration)>;

/// What became of one fault.
#[derive(Clone, Debug)]
pub struct Row {
    pub fault: &'static str,
    pub lanes: Vec<Lane>,
    pub healed: Healed,
}

/// The table that is printed.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut text = HEAD.join("\n") + "\n";
    for Row {
        fault,
        lanes,
        healed,
    } in rows
    {
        let (lost, sent) = (
            lanes.iter().map(|lane| lane.lost).sum::<u64>(),
            lanes.iter().map(|lane| lane.sent).sum::<u64>(),
        );
        let p99 = lanes.iter().map(|lane| lane.p99).fold(0.0, f64::max);
        let healed: Vec<String> = healed
            .iter()
            .map(|(what, after)| format!("{what} {:.1} s", after.as_secs_f64()))
            .collect();
        let healed = healed.join(", ");
        let _ = writeln!(text, "| {fault} | {lost} | {sent} | {p99:.1} | {healed} |");
    }
    text
}

/// The losses of all faults, in words.
#[must_use]
pub fn losses(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let of = storm::losses(&row.lanes);
        if !of.is_empty() {
            let _ = writeln!(text, "{}: {of}", row.fault);
        }
    }
    text
}

/// A controller's pod.
#[derive(Clone, Debug)]
struct Replica {
    name: String,
    admin: SocketAddr,
    container: String,
}

/// What the replicas that answer say together.
#[derive(Clone, Debug, Default)]
struct Standing {
    answering: usize,
    /// Of each replica that answers.
    proxies: Vec<u64>,
    behind: u64,
    leaders: Vec<String>,
    /// Kinds that are watched no more.
    broken: u64,
    /// Of each replica that answers.
    routes: Vec<u64>,
}

impl Standing {
    fn total(&self) -> u64 {
        self.proxies.iter().sum()
    }

    /// So many proxies are connected, and have all there is.
    fn is_settled(&self, proxies: u64) -> bool {
        self.total() >= proxies && self.behind == 0
    }
}

struct Store<'a> {
    cluster: &'a Cluster,
    space: Namespace,
    replicas: Vec<Replica>,
    count: u32,
}

/// Does the faults (those that begin with one of `only`, or all), one after the other, each under the
/// load of a customer of its own.
///
/// # Panics
/// If something never heals.
#[must_use]
pub fn run(cluster: &Cluster, extent: Extent, only: &[String]) -> Vec<Row> {
    cluster.install_gateway_api("experimental");
    let space = cluster.namespace("replicas", &[("weft.dev/inject", "enabled")]);
    space.apply(&storm::manifests(OnTerm::Exits));
    space.rolled_out("web");
    space.rolled_out("chat");
    let mut store = Store {
        cluster,
        replicas: replicas(cluster),
        space,
        count: 0,
    };
    let mut rows = Vec::new();
    let mut row = |fault: &'static str, does: &mut dyn FnMut(&mut Store<'_>) -> Healed| {
        if only.is_empty() || only.iter().any(|of| fault.starts_with(of.as_str())) {
            rows.push(store.under_load(fault, does));
        }
    };
    row("leader, kill -9", &mut |store| store.leader());
    row("each in turn, kill -9", &mut |store| store.each());
    row("API server, kill -9", &mut |store| {
        store.api_server(extent.down)
    });
    row("all, kill -9 and away", &mut |store| store.all(extent.away));
    rows
}

/// The controllers' pods that are ready.
fn replicas(cluster: &Cluster) -> Vec<Replica> {
    let pods = cluster.get(&["-n", NAMESPACE, "pods", "-l", install::SELECTOR]);
    let replica = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        let is_ready = status["ready"].as_bool()? && pod["metadata"]["deletionTimestamp"].is_null();
        let ip: std::net::IpAddr = pod["status"]["podIP"].as_str()?.parse().ok()?;
        is_ready.then_some(Replica {
            name: pod["metadata"]["name"].as_str()?.to_owned(),
            admin: SocketAddr::new(ip, ADMIN_PORT),
            container: container_of(status)?,
        })
    };
    let pods = pods["items"].as_array().into_iter().flatten();
    pods.filter_map(replica).collect()
}

/// The pods of the cluster that run with a sidecar.
fn sidecars(cluster: &Cluster) -> u64 {
    let pods = cluster.get(&["pods", "-A"]);
    let runs = |pod: &&Value| {
        let mut containers = pod["spec"]["initContainers"]
            .as_array()
            .into_iter()
            .flatten();
        pod["status"]["phase"] == "Running" && containers.any(|of| of["name"] == "weft-proxy")
    };
    let pods = pods["items"].as_array().into_iter().flatten();
    pods.filter(runs).count() as u64
}

fn container_of(status: &Value) -> Option<String> {
    let id = status["containerID"].as_str()?;
    id.strip_prefix("containerd://").map(str::to_owned)
}

fn metrics(of: &Replica) -> Option<Metrics> {
    let answer = Raw::try_connect(of.admin)?.try_get("/metrics")?;
    (answer.status == 200).then(|| Metrics::parse(&answer.text()))
}

fn standing(replicas: &[Replica]) -> Standing {
    let mut all = Standing::default();
    for replica in replicas {
        let Some(metrics) = metrics(replica) else {
            continue;
        };
        let number = |name: &str, labels: &[(&str, &str)]| metrics.sum(name, labels) as u64;
        all.answering += 1;
        all.proxies.push(number("weft_controller_proxies", &[]));
        all.behind += number("weft_controller_proxies_behind", &[]);
        if number("weft_controller_leader", &[]) == 1 {
            all.leaders.push(replica.name.clone());
        }
        all.broken += number("weft_controller_watch_installed", &[])
            - number("weft_controller_watch_up", &[]);
        let routes = [("kind", "HTTPRoute")];
        all.routes.push(number("weft_controller_objects", &routes));
    }
    all
}

impl Store<'_> {
    /// Does a fault while a customer sends; what was lost of it.
    fn under_load(
        &mut self,
        fault: &'static str,
        does: &mut dyn FnMut(&mut Self) -> Healed,
    ) -> Row {
        self.space.apply(&storm::customer(SECONDS_MAX));
        self.space.pod_ready("app=customer");
        self.until("the customer sends", |store| {
            let log = store
                .space
                .kubectl(&["logs", "job/customer", "-c", "customer"]);
            log.contains("lost/sent").then_some(())
        });
        self.until("everybody connected", |store| {
            let standing = standing(&store.replicas);
            (standing.is_settled(1) && standing.leaders.len() == 1).then_some(())
        });
        let healed = does(self);
        let customer = self.customer();
        assert!(self.cluster.signal(&customer, "SIGTERM"), "no {customer}");
        let lanes = storm::lanes(&self.space);
        // With its pod, which the next one's would be taken for.
        self.space
            .kubectl(&["delete", "job", "customer", "--cascade=foreground"]);
        let row = Row {
            fault,
            lanes,
            healed,
        };
        print!("{}", table(std::slice::from_ref(&row)));
        row
    }

    /// The container of the customer.
    fn customer(&self) -> String {
        let pods = self
            .cluster
            .get(&["-n", &self.space.name, "pods", "-l", "app=customer"]);
        let statuses = &pods["items"][0]["status"]["containerStatuses"];
        let mut statuses = statuses.as_array().into_iter().flatten();
        let status = statuses.find(|of| of["name"] == "customer");
        status.and_then(container_of).expect("the customer runs")
    }

    #[track_caller]
    fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        eventually_within(PATIENCE, what, || look(self))
    }

    /// Kills a controller; when.
    fn kill(&self, replica: &Replica) -> Instant {
        let replica = replicas(self.cluster)
            .into_iter()
            .find(|of| of.name == replica.name)
            .expect("the replica is ready");
        let died = Instant::now();
        assert!(self.cluster.kill(&replica.container));
        // It is started again within a second: what it answers then is another's word.
        self.until("it is dead", |store| {
            let is_silent = metrics(&replica).is_none();
            (is_silent || store.is_another(&replica)).then_some(())
        });
        died
    }

    /// Whether the replica's pod has another container by now.
    fn is_another(&self, replica: &Replica) -> bool {
        let pod = self.cluster.get(&["-n", NAMESPACE, "pod", &replica.name]);
        let now = container_of(&pod["status"]["containerStatuses"][0]);
        now.is_some_and(|now| now != replica.container)
    }

    /// How many proxies there are, which are connected all: once each. One that goes back to its first
    /// choice is at two for a moment, and who leaves is there until it has left.
    fn connected(&self) -> u64 {
        self.until("every sidecar connected once", |store| {
            let count = sidecars(store.cluster);
            let standing = standing(&store.replicas);
            (standing.answering == store.replicas.len() && standing.total() == count)
                .then_some(count)
        })
    }

    /// A route that nobody has written a status of yet.
    fn route(&mut self) -> String {
        self.count += 1;
        let name = format!("route-{}", self.count);
        let path = format!("/{name}");
        self.space.apply(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: chat}}]\n  rules: [{{matches: [{{path: {{type: PathPrefix, value: {path}}}}}], backendRefs: [{{name: chat, port: 80}}]}}, {{backendRefs: [{{name: chat, port: 80}}]}}]\n"
        ));
        name
    }

    fn is_told(&self, route: &str) -> Option<()> {
        let found = self
            .cluster
            .get(&["-n", &self.space.name, "httproute", route]);
        let parents = found["status"]["parents"].as_array()?;
        let mut conditions = parents.iter().flat_map(|of| of["conditions"].as_array());
        conditions.next().map(|_| ())
    }

    fn leader(&mut self) -> Healed {
        let count = self.connected();
        let before = standing(&self.replicas);
        let leader = self
            .replicas
            .iter()
            .find(|of| before.leaders.contains(&of.name));
        let leader = leader.expect("one leads").clone();
        let begun = self.kill(&leader);
        let proxies = self.settled(count, begun);
        let route = self.route();
        self.until("a status", |store| store.is_told(&route));
        vec![proxies, ("statuses".to_owned(), begun.elapsed())]
    }

    /// When as many proxies are connected again, and have all there is.
    fn settled(&self, count: u64, begun: Instant) -> (String, Duration) {
        self.until("all proxies connected, with all there is", |store| {
            standing(&store.replicas).is_settled(count).then_some(())
        });
        ("proxies".to_owned(), begun.elapsed())
    }

    fn each(&mut self) -> Healed {
        let mut healed = Vec::new();
        for replica in self.replicas.clone() {
            let count = self.connected();
            let begun = self.kill(&replica);
            let (what, after) = self.settled(count, begun);
            healed.push((what, after));
            self.until("it is ready again", |store| {
                let all = replicas(store.cluster);
                (all.len() == store.replicas.len()).then_some(())
            });
        }
        healed
    }

    fn api_server(&mut self, down: Duration) -> Healed {
        let count = self.connected();
        let before = standing(&self.replicas);
        cluster_does(self.cluster, "crash");
        self.until("every replica says that it cannot watch", |store| {
            let standing = standing(&store.replicas);
            (standing.broken >= store.replicas.len() as u64).then_some(())
        });
        sleep(down);
        self.until("proxies stay connected", |store| {
            (standing(&store.replicas).total() == count).then_some(())
        });
        let begun = Instant::now();
        cluster_does(self.cluster, "revive");
        let mut healed = vec![("API server".to_owned(), begun.elapsed())];
        let ready = Instant::now();
        self.until("all watches", |store| {
            let standing = standing(&store.replicas);
            (standing.broken == 0 && standing.answering == store.replicas.len()).then_some(())
        });
        healed.push(("then watches".to_owned(), ready.elapsed()));
        let begun = Instant::now();
        let route = self.route();
        self.until("a change at all proxies", |store| {
            let standing = standing(&store.replicas);
            let has_it = standing
                .routes
                .iter()
                .zip(&before.routes)
                .all(|(now, then)| now > then);
            (has_it && standing.is_settled(count)).then_some(())
        });
        healed.push(("a change".to_owned(), begun.elapsed()));
        self.until("a status", |store| store.is_told(&route));
        healed.push(("statuses".to_owned(), ready.elapsed()));
        healed
    }

    fn all(&mut self, away: Duration) -> Healed {
        let proxies = self.connected();
        let killed = Instant::now();
        for replica in self.replicas.clone() {
            let _died = self.kill(&replica);
        }
        install::scale(self.cluster, 0);
        self.until("no controller", |store| {
            (standing(&store.replicas).answering == 0).then_some(())
        });
        // The store goes on living: one leaves for good, one is replaced by a pod that has to wait.
        let scale = |replicas| {
            let replicas = format!("--replicas={replicas}");
            self.space.kubectl(&["scale", "deployment/web", &replicas]);
        };
        scale(2);
        self.space.rolled_out("web");
        scale(3);
        sleep(away.saturating_sub(killed.elapsed()));
        install::scale(self.cluster, self.replicas.len() as u32);
        let begun = Instant::now();
        let count = self.replicas.len();
        self.replicas = self.until("the controllers are ready", |store| {
            Some(replicas(store.cluster)).filter(|of| of.len() == count)
        });
        let mut healed = vec![("controllers".to_owned(), begun.elapsed())];
        healed.push(self.settled(proxies - 1, begun));
        let route = self.route();
        self.until("a status", |store| store.is_told(&route));
        healed.push(("statuses".to_owned(), begun.elapsed()));
        // The ReplicaSet tries again by itself, ever more rarely.
        eventually_within(away + PATIENCE, "the pod that had to wait", || {
            let web = self
                .cluster
                .get(&["-n", &self.space.name, "deployment", "web"]);
            (web["status"]["readyReplicas"] == 3).then_some(())
        });
        healed.push(("the pod that waited".to_owned(), begun.elapsed()));
        healed
    }
}

/// `tests/cluster/cluster VERB` for the one that runs.
#[track_caller]
fn cluster_does(cluster: &Cluster, verb: &str) {
    let script = root().join("tests/cluster/cluster");
    let mut command = Command::new(script);
    command.arg(verb).env("WEFT_CLUSTER", cluster.state());
    let status = command.status().expect("it runs");
    assert!(status.success(), "cluster {verb}");
}

//! `make demo-cluster`: the online store of examples/kubernetes in a real cluster, in the mesh and
//! under load, while it is rolled out, scaled, and parts of it are killed. It prints each act with
//! what was sent and lost by then, a table at the end, and fails if anything was lost.

use std::env;
use std::fs;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_tests::cluster::Cluster;
use weft_tests::install::{self, NAMESPACE as SYSTEM};
use weft_tests::storm::Lane;
use weft_tests::{eventually_within, root};

const STORE: &str = "store";
const LANES: [&str; 3] = ["h1-post", "h1-get", "h2-post"];
const RATE: u32 = 30;
/// Between two acts.
const REST: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let Some(cluster) = install::connect() else {
        return ExitCode::from(2);
    };
    let demo = Demo {
        cluster,
        begun: Instant::now(),
        colour: std::io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none(),
    };
    let lanes = demo.play();
    let lost: u64 = lanes.iter().map(|lane| lane.lost).sum();
    demo.cluster
        .kubectl(&["delete", "namespace", STORE, "--wait=false"]);
    match lost {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

struct Demo {
    cluster: Cluster,
    begun: Instant,
    colour: bool,
}

impl Demo {
    fn play(&self) -> Vec<Lane> {
        self.act(
            "the store starts: 9 pods of 4 services, each with its sidecar",
            || {
                let store = root().join("examples/kubernetes/store.yaml");
                let store = fs::read_to_string(store).expect("the example is there");
                self.cluster.apply(&store);
                for of in ["frontend", "authentication", "catalogue", "payment"] {
                    self.rolled_out(STORE, of);
                }
            },
        );
        self.cluster.apply(&customer());
        self.cluster.pod_ready(STORE, "app=customer");
        self.begin();
        for time in ["first", "second"] {
            self.act(&format!("the {time} rollout of all four services"), || {
                self.roll_out()
            });
        }
        for (before, after) in [("3", "6"), ("6", "2"), ("2", "3")] {
            self.act(
                &format!("the catalogue is scaled {before} → {after}"),
                || {
                    self.store(&["scale", "deployment/catalogue", "--replicas", after]);
                    self.rolled_out(STORE, "catalogue");
                },
            );
        }
        self.act("a catalogue is killed on its node (SIGKILL)", || {
            self.kill()
        });
        self.act("the controllers are restarted", || {
            self.cluster.kubectl(&[
                "-n",
                SYSTEM,
                "rollout",
                "restart",
                "deployment/weft-controller",
            ]);
            self.rolled_out(SYSTEM, "weft-controller");
        });
        let memory = install::sidecar_memory();
        self.store(&["delete", "pod", "-l", "app=customer", "--wait=false"]);
        let lanes = self.lanes();
        println!("\n{}", table(&lanes));
        println!("a sidecar's memory: {memory}");
        lanes
    }

    fn act(&self, what: &str, doing: impl FnOnce()) {
        let begun = Instant::now();
        doing();
        sleep(REST);
        let (took, at) = (begun.elapsed() - REST, self.begun.elapsed());
        let (dim, off) = if self.colour {
            ("\x1b[2m", "\x1b[0m")
        } else {
            ("", "")
        };
        let so_far = self.so_far();
        println!(
            "{dim}{:6.1} s{off}  {what} {dim}({:.1} s){off} {so_far}",
            at.as_secs_f64(),
            took.as_secs_f64()
        );
    }

    fn begin(&self) {
        eventually_within(PATIENCE, "the customer sends", || {
            self.so_far().contains("lost").then_some(())
        });
    }

    fn store(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(&[&["-n", STORE], arguments].concat())
    }

    fn rolled_out(&self, namespace: &str, deployment: &str) {
        let of = format!("deployment/{deployment}");
        let status = ["-n", namespace, "rollout", "status", &of, "--timeout=180s"];
        self.cluster.kubectl(&status);
    }

    fn roll_out(&self) {
        self.store(&["rollout", "restart", "deployment"]);
        for of in ["frontend", "authentication", "catalogue", "payment"] {
            self.rolled_out(STORE, of);
        }
    }

    /// Kills the application of one pod, as a node that runs out of memory does.
    fn kill(&self) {
        let pods: Value = serde_json::from_str(&self.store(&[
            "get",
            "pods",
            "-l",
            "app=catalogue",
            "-o",
            "json",
        ]))
        .expect("kubectl prints JSON");
        let id = pods["items"][0]["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .expect("it runs")
            .trim_start_matches("containerd://")
            .to_owned();
        let killed = self.cluster.kill(&id);
        assert!(killed, "nothing was killed");
        self.rolled_out(STORE, "catalogue");
    }

    /// The last lines that the customer has said.
    fn said(&self, lines: &str) -> String {
        let tail = format!("--tail={lines}");
        let log = [
            "-n",
            STORE,
            "logs",
            "-l",
            "app=customer",
            "-c",
            "customer",
            &tail,
        ];
        let said = self.cluster.try_kubectl(&log);
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// What the customer has counted, in words.
    fn so_far(&self) -> String {
        let said = self.said("1");
        let (mut lost, mut sent) = (0_u64, 0_u64);
        for pair in said
            .split_whitespace()
            .filter_map(|word| word.split_once('/'))
        {
            let (Ok(some), Ok(all)) = (pair.0.parse::<u64>(), pair.1.parse::<u64>()) else {
                continue;
            };
            (lost, sent) = (lost + some, sent + all);
        }
        match sent {
            0 => String::new(),
            _ => format!("{sent} sent, {lost} lost"),
        }
    }

    /// The customer, told to stop, counts to the end.
    fn lanes(&self) -> Vec<Lane> {
        let counted = eventually_within(PATIENCE, "the customer has counted", || {
            let said = self.said("5");
            let line = said.lines().find(|line| line.starts_with('['))?;
            serde_json::from_str::<Value>(line).ok()
        });
        counted
            .as_array()
            .into_iter()
            .flatten()
            .map(Lane::read)
            .collect()
    }
}

fn customer() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: customer, namespace: {STORE}, labels: {{app: customer}}}}
spec:
  restartPolicy: Never
  # It counts to the end when it is told to stop.
  terminationGracePeriodSeconds: 60
  containers:
  - name: customer
    image: localhost/store:1
    args: [load, --rate={RATE}, '--lanes={}', '--url=http://frontend/']
",
        LANES.join(",")
    )
}

fn table(lanes: &[Lane]) -> String {
    let mut text = String::from("protocol      sent   lost   p50 ms   p99 ms   max ms\n");
    for Lane {
        name,
        sent,
        lost,
        p50,
        p99,
        max,
        said,
    } in lanes
    {
        text += &format!("{name:<10} {sent:>7} {lost:>6} {p50:>8.1} {p99:>8.1} {max:>8.1}\n");
        for word in said {
            text += &format!("    {word}\n");
        }
    }
    text
}

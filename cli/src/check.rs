//! `weft check`: whether a mesh can be started, and whether one that runs is
//! well. Owns what is looked at; each failure says what to do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use weft_config::status::{ProxyStatus, Status};
use weft_controller::ca;

use crate::offline::Offline;
use crate::status::{self, Output, fetch};
use crate::terminal::{BOLD, GREEN, PLAIN, Paint, RED, YELLOW, print, span};
use crate::{admin, program};

/// A certificate is backdated by a minute: what differs by less cannot refuse it.
const CLOCK_SKEW_MAX: u64 = 30;
/// Proxies asked at once, and how long one may take.
const ASKED_MAX: usize = 32;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  weft check                          the mesh that runs here
  weft check --ca-dir mesh/ca         and whether this is its certificate authority
  weft check --manifests mesh/manifests
                                      these files alone, with no controller: before they are put to use

Exit code: 0 all is well (a warning is no failure); 1 something is wrong; 2 wrong arguments.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The controller's admin address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:14021")]
    controller_admin: SocketAddr,
    /// A certificate authority's directory: is it the controller's?
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// A file of roots (PEM): are they the controller's?
    #[arg(long, value_name = "FILE")]
    trust_bundle: Option<PathBuf>,
    /// Only these manifests are looked at, with no controller
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ca_dir", "trust_bundle", "controller_admin"])]
    manifests: Option<PathBuf>,
    /// The trust domain of the manifests' identities
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cluster.local",
        requires = "manifests"
    )]
    trust_domain: String,
    /// What is printed
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Mark {
    Ok,
    Warning,
    Wrong,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    mark: Mark,
    about: &'static str,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'static str,
}

/// What is found about one subject.
struct Findings<'a> {
    about: &'static str,
    all: &'a mut Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, mark: Mark, found: impl Into<String>, remedy: &'static str) {
        self.all.push(Finding {
            mark,
            about: self.about,
            found: found.into(),
            remedy,
        });
    }

    fn ok(&mut self, found: impl Into<String>) {
        self.add(Mark::Ok, found, "");
    }

    fn wrong(&mut self, found: impl Into<String>, remedy: &'static str) {
        self.add(Mark::Wrong, found, remedy);
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut findings = Vec::new();
    match &arguments.manifests {
        Some(folder) => manifests(&mut findings, folder, &arguments.trust_domain)?,
        None => {
            programs(&mut findings);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(mesh(&mut findings, arguments));
        }
    }
    let wrong = findings.iter().any(|finding| finding.mark == Mark::Wrong);
    let _read = match arguments.output {
        Output::Json => {
            let page = serde_json::json!({"healthy": !wrong, "findings": findings});
            print(&[serde_json::to_string_pretty(&page)?])
        }
        Output::Text => print(&render(&findings, Paint::of_stdout())),
    };
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn about<'a>(all: &'a mut Vec<Finding>, about: &'static str) -> Findings<'a> {
    Findings { about, all }
}

fn programs(all: &mut Vec<Finding>) {
    let mut findings = about(all, "programs");
    let own = env!("CARGO_PKG_VERSION");
    for (name, needed) in [
        (
            "weft-proxy",
            "weft run needs it: put it beside weft or in PATH",
        ),
        (
            "weft-controller",
            "needed where the controller runs: put it beside weft or in PATH",
        ),
    ] {
        let Ok(path) = program::find(name, "PATH", None) else {
            findings.add(
                Mark::Warning,
                format!("{name} is neither beside weft nor in PATH"),
                needed,
            );
            continue;
        };
        match program::version(&path) {
            Ok(version) if version == own => {
                findings.ok(format!("{name} {own}: {}", path.display()))
            }
            Ok(version) => findings.add(
                Mark::Warning,
                format!(
                    "{} is of version {version}, and weft of {own}",
                    path.display()
                ),
                "fine while a mesh is being upgraded; else install one version",
            ),
            Err(error) => findings.wrong(format!("{error:#}"), "install it anew"),
        }
    }
}

async fn mesh(all: &mut Vec<Finding>, arguments: &Arguments) {
    let status = match fetch(arguments.controller_admin).await {
        Ok(status) => status,
        Err(error) => {
            let remedy = "start weft-controller, or name its --admin address by --controller-admin";
            // The first line of the chain is that remedy already.
            let cause = error.root_cause();
            let found = format!(
                "no controller answers at {}: {cause}",
                arguments.controller_admin
            );
            about(all, "controller").wrong(found, remedy);
            return;
        }
    };
    controller(all, &status, arguments);
    trust(all, &status, arguments);
    let asked = ask_all(&status.proxies).await;
    proxies(all, &status, &asked);
    let mut findings = about(all, "manifests");
    for error in &status.errors {
        let found = format!("{}: {}", status::place(error), error.message);
        findings.wrong(
            found,
            "mend the file; what it said before is in force meanwhile",
        );
    }
    objects(&mut findings, &status.objects);
    if status.errors.is_empty() && status::objects(&status.objects).is_empty() {
        findings.ok("all are read and accepted");
    }
}

fn objects(findings: &mut Findings<'_>, objects: &[weft_config::status::ObjectStatus]) {
    for problem in status::objects(objects) {
        findings.wrong(
            problem,
            "mend the object or what it refers to; the rest of it is in force",
        );
    }
}

fn controller(all: &mut Vec<Finding>, status: &Status, arguments: &Arguments) {
    let mut findings = about(all, "controller");
    findings.ok(format!(
        "weft-controller {} answers at {}, trust domain {}, revision {}",
        status.version, arguments.controller_admin, status.trust_domain, status.revision
    ));
    let own = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let own = own.map_or(0, |now| now.as_secs());
    match own.abs_diff(status.now) {
        skew if skew > CLOCK_SKEW_MAX => findings.wrong(
            format!("its clock differs from this machine's by {}", span(skew)),
            "set both clocks (NTP): certificates are refused before and after their time",
        ),
        skew => findings.ok(format!(
            "its clock differs from this machine's by {skew}s at most"
        )),
    }
}

fn trust(all: &mut Vec<Finding>, status: &Status, arguments: &Arguments) {
    let mut findings = about(all, "trust");
    for root in &status.roots {
        let left = root.not_after.saturating_sub(status.now);
        let name = root.fingerprint.get(..12).unwrap_or_default();
        let change = "change the root in three steps and no restart: docs/mesh.md, Identity";
        match left {
            0 => findings.wrong(format!("root {name} has expired"), change),
            left if left < status::ROOT_LEFT_MIN => {
                findings.wrong(format!("root {name} expires in {}", span(left)), change);
            }
            left => findings.ok(format!("root {name} is good for {}", span(left))),
        }
    }
    let of_directory = arguments
        .ca_dir
        .as_ref()
        .map(|folder| folder.join("trust.pem"));
    let files = [
        ("--ca-dir", of_directory),
        ("--trust-bundle", arguments.trust_bundle.clone()),
    ];
    for (flag, path) in files {
        if let Some(path) = path {
            bundle(&mut findings, status, flag, &path);
        }
    }
}

/// Whether the file's roots and the controller's are the same.
fn bundle(findings: &mut Findings<'_>, status: &Status, flag: &str, path: &Path) {
    let own = match ca::fingerprints(path) {
        Ok(own) => own,
        Err(error) => {
            let remedy = "name the directory or file that the controller was started with";
            return findings.wrong(format!("{flag}: {error}"), remedy);
        }
    };
    let signing = status.roots.iter().find(|root| root.signing);
    let missing = |root: &&weft_config::status::RootStatus| !own.contains(&root.fingerprint);
    let path = path.display();
    if signing.is_some_and(|root| missing(&root)) {
        findings.wrong(
            format!("{flag}: {path} does not hold the root that the controller signs with"),
            "a sidecar that is started with it refuses the controller: copy the controller's trust.pem",
        );
    } else if status.roots.iter().any(|root| missing(&root)) {
        findings.add(
            Mark::Warning,
            format!("{flag}: {path} lacks a root that the controller trusts"),
            "copy the controller's trust.pem once the root has been changed",
        );
    } else {
        findings.ok(format!("{flag}: {path} holds the controller's roots"));
    }
}

fn proxies(all: &mut Vec<Finding>, status: &Status, asked: &[(String, String)]) {
    let mut findings = about(all, "proxies");
    let mut well = 0;
    for proxy in &status.proxies {
        let problems = status::of_proxy(status, proxy);
        let own = asked
            .iter()
            .filter(|(workload, _)| *workload == proxy.workload);
        let own: Vec<_> = own
            .map(|(workload, said)| format!("{workload}: {said}"))
            .collect();
        well += usize::from(problems.is_empty() && own.is_empty());
        for problem in problems {
            let remedy = "its log and its own page /mesh say why; one that is only behind may be so for a moment";
            findings.wrong(problem, remedy);
        }
        for problem in own {
            findings.wrong(
                problem,
                "look at the sidecar's log, and whether its admin address can be reached from here",
            );
        }
    }
    if status.proxies.is_empty() {
        findings.add(
            Mark::Warning,
            "none is connected",
            "start one: weft run --help",
        );
    } else {
        let (all, revision) = (status.proxies.len(), status.revision);
        findings.ok(format!(
            "{well} of {all} are well and have revision {revision}"
        ));
    }
}

/// Asks the proxies themselves; what is wrong with whom.
async fn ask_all(proxies: &[ProxyStatus]) -> Vec<(String, String)> {
    let places = Arc::new(Semaphore::new(ASKED_MAX));
    let mut tasks = JoinSet::new();
    for proxy in proxies {
        let (proxy, places) = (proxy.clone(), Arc::clone(&places));
        tasks.spawn(async move {
            let _place = places.acquire().await;
            let problem = ask(&proxy).await;
            problem.map(|problem| (proxy.workload, problem))
        });
    }
    let mut problems = Vec::new();
    while let Some(asked) = tasks.join_next().await {
        problems.extend(asked.ok().flatten());
    }
    problems
}

/// What a proxy says is wrong with itself.
async fn ask(proxy: &ProxyStatus) -> Option<String> {
    let Ok(address) = proxy.admin.parse::<SocketAddr>() else {
        return Some(format!("its admin address {:?} is none", proxy.admin));
    };
    // One that leaves is not ready, and rightly.
    if !proxy.leaving
        && let Err(error) = admin::get(address, "/ready", ANSWER_TIMEOUT).await
    {
        return Some(format!("{error:#}"));
    }
    // Private: only a proxy of this host tells.
    let page = admin::get(address, "/mesh", ANSWER_TIMEOUT).await.ok()?;
    let page: Value = serde_json::from_slice(&page.body).ok()?;
    let problem = page.get("problem").and_then(Value::as_str)?;
    Some(format!("says of itself: {problem}"))
}

/// The files alone.
fn manifests(all: &mut Vec<Finding>, folder: &Path, trust_domain: &str) -> Result<()> {
    let offline = Offline::read(folder, trust_domain)?;
    let mut findings = about(all, "manifests");
    for error in &offline.errors {
        let found = format!("{}: {}", status::place(error), error.message);
        findings.wrong(found, "mend the file");
    }
    objects(&mut findings, &offline.statuses());
    for (object, problem) in offline.refused() {
        let remedy = "mend the routes and policies that it is made of: sidecars would refuse it";
        findings.wrong(format!("{object}: {problem}"), remedy);
    }
    if findings.all.is_empty() {
        let (objects, folder) = (offline.objects(), folder.display());
        findings.ok(format!("{folder}: {objects} objects, all accepted"));
    }
    Ok(())
}

/// Pure.
fn render(findings: &[Finding], paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    let mut about = "";
    for finding in findings {
        if finding.about != about {
            about = finding.about;
            lines.push(paint.line(&[(BOLD, about.to_owned())]));
        }
        let mark = match finding.mark {
            Mark::Ok => (GREEN, "  ok       ".to_owned()),
            Mark::Warning => (YELLOW, "  warning  ".to_owned()),
            Mark::Wrong => (RED, "  wrong    ".to_owned()),
        };
        lines.push(paint.line(&[mark, (PLAIN, finding.found.clone())]));
        if !finding.remedy.is_empty() {
            lines.push(paint.line(&[(PLAIN, format!("           → {}", finding.remedy))]));
        }
    }
    let count = |mark| {
        findings
            .iter()
            .filter(|finding| finding.mark == mark)
            .count()
    };
    let (wrong, warnings) = (count(Mark::Wrong), count(Mark::Warning));
    let tone = if wrong == 0 { GREEN } else { RED };
    lines.push(paint.line(&[(tone, format!("{wrong} wrong, {warnings} warnings"))]));
    lines
}

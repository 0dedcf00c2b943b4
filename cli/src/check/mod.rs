//! `weft check`: whether a mesh can be started, and whether one that runs is
//! well. Owns findings and how they are shown; what is looked at is in `here`, `mesh`, `before` and `installed`.
//! Each failure says what to do.

mod before;
mod here;
mod installed;
mod mesh;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::install::manifests::{self, Choices};
use crate::mesh::{Choice, Mesh, WHICH};
use crate::status::Output;
use crate::terminal::{BOLD, GREEN, PLAIN, Paint, RED, YELLOW, print};

const EXAMPLES: &str = "\
Examples:
  weft check                          the mesh that runs here
  weft check --pre                    can Weft be installed into this cluster?
  weft check -k                       is all well in it?
  weft check --ca-dir mesh/ca         and whether this is its certificate authority
  weft check --manifests mesh/manifests
                                      these files alone, with no controller: before they are put to use

Exit code: 0 all is well (a warning is no failure); 1 something is wrong; 2 wrong arguments.";

#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{WHICH}"))]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Only what an install into a cluster needs: before it
    #[arg(long, conflicts_with_all = ["ca_dir", "trust_bundle", "manifests", "controller_admin"])]
    pre: bool,
    /// A certificate authority's directory: is it the controller's?
    #[arg(long, value_name = "DIR", conflicts_with = "kubernetes")]
    ca_dir: Option<PathBuf>,
    /// A file of roots (PEM): are they the controller's?
    #[arg(long, value_name = "FILE")]
    trust_bundle: Option<PathBuf>,
    /// Only these manifests are looked at, with no controller
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ca_dir", "trust_bundle", "controller_admin", "kubernetes"])]
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
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

/// What is found about one subject.
struct Findings<'a> {
    about: &'static str,
    all: &'a mut Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, mark: Mark, found: impl Into<String>, remedy: impl Into<String>) {
        self.all.push(Finding {
            mark,
            about: self.about,
            found: found.into(),
            remedy: remedy.into(),
        });
    }

    fn ok(&mut self, found: impl Into<String>) {
        self.add(Mark::Ok, found, "");
    }

    fn warn(&mut self, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(Mark::Warning, found, remedy);
    }

    fn wrong(&mut self, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(Mark::Wrong, found, remedy);
    }
}

fn about<'a>(all: &'a mut Vec<Finding>, about: &'static str) -> Findings<'a> {
    Findings { about, all }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut findings = Vec::new();
    match &arguments.manifests {
        Some(folder) => here::manifests(&mut findings, folder, &arguments.trust_domain)?,
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(look(&mut findings, arguments))?;
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

async fn look(all: &mut Vec<Finding>, arguments: &Arguments) -> Result<()> {
    let mesh = arguments.choice.mesh(arguments.pre).await?;
    let Mesh::Cluster(cluster) = &mesh else {
        here::look(all, &mesh, arguments).await;
        return Ok(());
    };
    if !before::api_server(all, cluster).await {
        return Ok(());
    }
    before::nodes(all, cluster).await;
    before::gateway(all, cluster).await;
    let objects = manifests::objects(&Choices::default(), &cluster.namespace)?;
    if arguments.pre {
        before::permissions(all, cluster, &objects).await;
        return Ok(());
    }
    installed::definitions(all, cluster, &objects).await;
    installed::controller(all, cluster).await;
    let known = match mesh.known().await {
        Ok(known) => known,
        Err(error) => {
            let remedy = "weft install --apply installs it; -n names another namespace";
            about(all, "controller").wrong(format!("{error:#}"), remedy);
            installed::webhook(all, cluster, None).await;
            return Ok(());
        }
    };
    installed::replicas(all, &known);
    mesh::roots(&mut about(all, "trust"), &known);
    if let Some(path) = &arguments.trust_bundle {
        here::bundle_of(all, &known, path);
    }
    installed::webhook(all, cluster, Some(&known)).await;
    installed::pods(all, cluster, &known).await;
    mesh::look(all, &mesh, &known).await;
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

//! `weft ca`: what the certificate authority is (`show`), and replacing its root while
//! everything runs (`rotate`). `place` is where its files are, `plan` (pure) what is to be
//! done with them, `wait` (pure) who has yet to follow.

mod place;
mod plan;
mod rotate;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use serde_json::json;
use weft_controller::ca::{fingerprint, subject_and_end};

use crate::mesh::{self, Choice, Mesh};
use crate::terminal::{BOLD, PLAIN, Paint, Table, print, span};
use place::{Kept, Place};
use plan::Step;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Which root signs, which are trusted, and how far a rotation has come
    Show(Show),
    /// Replaces the root in three steps, each awaited at every proxy; nothing is restarted
    Rotate(rotate::Arguments),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Lines; on a terminal the present one is drawn over
    #[default]
    Text,
    /// An object a line
    Json,
}

/// Whose authority.
#[derive(Debug, clap::Args)]
struct Where {
    #[command(flatten)]
    choice: Choice,
    /// The authority's directory, of a controller that was started with it
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// The authority's Secret, in the namespace of a cluster's controllers
    #[arg(long, value_name = "NAME", default_value = "weft-ca")]
    ca_secret: String,
}

impl Where {
    async fn open(&self) -> Result<(Mesh, Place)> {
        let mesh = self.choice.mesh(false).await?;
        let place = match (&self.ca_dir, &mesh) {
            (Some(directory), _) => Place::Directory(directory.clone()),
            (None, Mesh::Cluster(cluster)) => Place::secret(cluster, &self.ca_secret),
            (None, Mesh::Here(_)) => bail!(
                "where are the authority's files? name the directory by --ca-dir, or a cluster by --kubernetes"
            ),
        };
        Ok((mesh, place))
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = mesh::WHICH)]
struct Show {
    #[command(flatten)]
    of: Where,
    /// What is printed
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t)]
    output: Output,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match &arguments.command {
            Command::Show(show) => {
                let (_, place) = show.of.open().await?;
                let kept = place.read().await?;
                print(&shown(&place, &kept, show.output)?);
            }
            Command::Rotate(arguments) => rotate::run(arguments).await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(place: &Place, kept: &Kept, output: Output) -> Result<Vec<String>> {
    let authority = kept.files.authority()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let rotation = match plan::step(kept)? {
        Step::Begin => None,
        step => Some(step.title()),
    };
    if output == Output::Json {
        let roots = authority.roots.iter().enumerate().map(|(index, root)| {
            let (subject, end) = subject_and_end(root);
            json!({"fingerprint": hex(&fingerprint(root)), "subject": subject, "notAfter": end, "signing": index == 0})
        });
        let roots: Vec<_> = roots.collect();
        let all = json!({"place": place.to_string(), "intermediates": authority.chain.len(), "roots": roots, "rotation": rotation});
        return Ok(vec![all.to_string()]);
    }
    let paint = Paint::of_stdout();
    let plain = |text: String| (PLAIN, text);
    let mut lines = vec![paint.line(&[(BOLD, place.to_string())])];
    let mut roots = Table::new(&["ROOT", "SUBJECT", "EXPIRES", "SIGNS"]);
    for (index, root) in authority.roots.iter().enumerate() {
        let (subject, end) = subject_and_end(root);
        let print = hex(&fingerprint(root)).chars().take(12).collect();
        let signs = match (index, authority.chain.len()) {
            (0, 0) => "yes",
            (0, _) => "by an intermediate",
            _ => "no",
        };
        roots.row(vec![
            plain(print),
            plain(subject),
            plain(format!("in {}", span(end.saturating_sub(now)))),
            plain(signs.to_owned()),
        ]);
    }
    lines.extend(roots.lines(paint));
    if let Some(next) = rotation {
        lines.push(format!(
            "a rotation is under way; next: {next}: weft ca rotate goes on"
        ));
    }
    Ok(lines)
}

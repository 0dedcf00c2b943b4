//! `weft ca rotate`: the steps, one after the other, each awaited.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tokio::time::sleep;
use weft_controller::ca::files::Root;

use super::place::{Kept, Place};
use super::plan::{self, Next, Roots, Step};
use super::wait::{Marks, Progress, progress};
use super::{Output, Where};
use crate::mesh::{self, Mesh};
use crate::terminal::{Drawing, print};

const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Who is waited for that is named.
const NAMED_MAX: usize = 5;

const EXAMPLES: &str = "\
Examples:
  weft ca rotate --ca-dir mesh/ca     of the mesh on this host
  weft ca rotate -k                   of a cluster's, in its Secret
  weft ca rotate -k --dry-run         what would be done, and who would be waited for

The steps: both roots are trusted; the new one signs; the old one is dropped. Each is taken when every
connected proxy at every controller has followed the one before. It may be ended at any time: the next
run goes on where it was. Who is not connected meanwhile gets a new certificate with its token.";

#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", mesh::WHICH))]
pub struct Arguments {
    #[command(flatten)]
    of: Where,
    /// Changes nothing
    #[arg(long)]
    dry_run: bool,
    /// How long a step may be waited for, e.g. 10m
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    timeout: String,
    /// What is to sign next, with the chain to its root (PEM); default: a new root
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// What is printed
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t)]
    output: Output,
}

pub async fn run(arguments: &Arguments) -> Result<()> {
    let timeout = weft_config::duration::parse(&arguments.timeout)
        .map_err(|error| anyhow::anyhow!("--timeout {}: {error}", arguments.timeout))?;
    let (mesh, place) = arguments.of.open().await?;
    let mut kept = place.read().await?;
    plan::obstacle(&kept, arguments.certificate.is_some()).with_context(|| place.to_string())?;
    let fresh = fresh(arguments, &mesh, &kept).await?;
    let first = plan::step(&kept)?;
    if arguments.dry_run {
        return dry_run(&mesh, &kept, (first, fresh.as_ref()), arguments.output).await;
    }
    let mut said = Said::new(arguments.output, timeout);
    // What was written before must have been followed before more is.
    if let Some(before) = before(first) {
        said.wait(&mesh, before, &plan::roots(&kept)?).await?;
    }
    let mut step = first;
    loop {
        // The last step takes away what says whose roots these are.
        let rotated = (step == Step::Drop)
            .then(|| plan::roots(&kept))
            .transpose()?;
        let change = plan::change(&kept, step, fresh.as_ref())?;
        place.write(kept, &change).await?;
        kept = place.read().await?;
        let roots = match rotated {
            Some(roots) => roots,
            None => plan::roots(&kept)?,
        };
        said.wait(&mesh, step, &roots).await?;
        step = match step {
            Step::Begin => Step::Sign,
            Step::Sign => Step::Drop,
            Step::Drop => break,
        };
    }
    said.end(&place);
    Ok(())
}

fn before(step: Step) -> Option<Step> {
    match step {
        Step::Begin => None,
        Step::Sign => Some(Step::Begin),
        Step::Drop => Some(Step::Sign),
    }
}

/// What is to sign next, unless that is known already.
async fn fresh(arguments: &Arguments, mesh: &Mesh, kept: &Kept) -> Result<Option<Next>> {
    if kept.next.bytes.is_some() {
        return Ok(None);
    }
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    if let (Some(certificate), Some(key)) = (&arguments.certificate, &arguments.key) {
        return Ok(Some(Next {
            certificate: read(certificate)?,
            key: read(key)?,
        }));
    }
    let known = mesh.known().await?;
    let status = known.statuses().next().context("no controller answers")?;
    let root = Root::make(&status.trust_domain)?;
    Ok(Some(Next {
        certificate: root.certificate,
        key: root.key,
    }))
}

/// Says what would be done, and who would be waited for.
async fn dry_run(
    mesh: &Mesh,
    kept: &Kept,
    (first, fresh): (Step, Option<&Next>),
    output: Output,
) -> Result<()> {
    plan::change(kept, first, fresh)?;
    let known = mesh.known().await?;
    let answer = known
        .controllers
        .iter()
        .filter(|of| of.answer.is_ok())
        .count();
    let (controllers, proxies) = (known.controllers.len(), known.proxies().len());
    let steps = [Step::Begin, Step::Sign, Step::Drop];
    let steps = steps.into_iter().skip_while(|step| *step != first);
    let titles: Vec<&str> = steps.map(Step::title).collect();
    print(&match output {
        Output::Json => vec![
            json!({"dryRun": true, "steps": titles, "controllers": controllers, "answering": answer, "proxies": proxies})
                .to_string(),
        ],
        Output::Text => {
            let mut lines: Vec<String> = titles.iter().map(|title| format!("would {title}")).collect();
            lines.push(format!(
                "each awaited at {proxies} proxies of {controllers} controllers, of which {answer} answer; nothing is changed"
            ));
            lines
        }
    });
    match answer == controllers {
        true => Ok(()),
        false => bail!("not every controller answers: the first step would wait for it"),
    }
}

/// What is told while it goes on.
struct Said {
    output: Output,
    timeout: Duration,
    drawing: Option<Drawing>,
    last: String,
}

impl Said {
    fn new(output: Output, timeout: Duration) -> Self {
        let is_drawn = output == Output::Text && std::io::stdout().is_terminal();
        Self {
            output,
            timeout,
            drawing: is_drawn.then(Drawing::default),
            last: String::new(),
        }
    }

    /// Waits until everybody has followed a step.
    async fn wait(&mut self, mesh: &Mesh, step: Step, roots: &Roots) -> Result<()> {
        let (began, mut marks) = (Instant::now(), Marks::new());
        loop {
            let standing = match mesh.known().await {
                Ok(known) => progress(&known, step, roots, &mut marks),
                Err(error) => Progress {
                    waiting: vec![format!("{error:#}")],
                    ..Progress::default()
                },
            };
            self.tell(step, &standing)?;
            if standing.is_complete() {
                self.drawing = self.drawing.take().map(|_| Drawing::default());
                return Ok(());
            }
            if began.elapsed() > self.timeout {
                let named: Vec<_> = standing.waiting.iter().take(NAMED_MAX).cloned().collect();
                bail!(
                    "step {} is not followed by {} within {:?}: {}; nothing is lost, and the same command goes on from here",
                    step.title(),
                    standing.waiting.len(),
                    self.timeout,
                    named.join("; ")
                );
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    fn tell(&mut self, step: Step, standing: &Progress) -> Result<()> {
        let Progress { done, of, waiting } = standing;
        let named = waiting.iter().take(NAMED_MAX);
        let line = match self.output {
            Output::Json => {
                let named: Vec<_> = named.collect();
                json!({"step": step.title(), "done": done, "of": of, "waitingFor": named})
                    .to_string()
            }
            Output::Text if standing.is_complete() => {
                format!("{}: done, all {of} have followed", step.title())
            }
            Output::Text => format!("{}: {done} of {of} have followed", step.title()),
        };
        if let Some(drawing) = &mut self.drawing {
            let mut lines = vec![line];
            lines.extend(waiting.iter().take(NAMED_MAX).map(|of| format!("  {of}")));
            return Ok(drawing.draw(lines, NAMED_MAX + 2)?);
        }
        if line != self.last {
            print(std::slice::from_ref(&line));
            self.last = line;
        }
        Ok(())
    }

    fn end(&self, place: &Place) {
        print(&[match self.output {
            Output::Json => json!({"done": true, "place": place.to_string()}).to_string(),
            Output::Text => format!("{place}: the root is replaced"),
        }]);
    }
}

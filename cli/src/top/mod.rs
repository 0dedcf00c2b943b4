//! `weft top`: live golden metrics of every service and of every edge between an
//! identity and a service, from the proxies' own `/metrics`. Owns asking; what
//! the numbers mean is `golden`, how they look `show`.

mod golden;
mod show;

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::mesh::{Choice, Door, Known, Mesh, Proxy, WHICH};
use crate::status::{self, Output};
use crate::terminal::{Drawing, Paint, print, show_cursor};
use golden::{Reading, Summary, Sums, Unread};

/// Proxies asked at once.
const SCRAPES_MAX: usize = 32;
/// How long one may take: most of an interval, so that one that hangs does not
/// slow the others' numbers, but at least this.
const SCRAPE_TIMEOUT_MIN: Duration = Duration::from_millis(500);
/// Shorter ones would measure the asking.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  weft top                            a table that is redrawn every second
  weft top -k --interval 5s           of a cluster, through its API server
  weft top --interval 5s | grep '^edge ns/shop/sa/frontend'
                                      plain lines: who the frontend calls
  weft top --once -o json | jq '.services[] | select(.success < 1)'
                                      one interval, for a script

A service's numbers are added up from those who call it; an edge is one identity's calls of one service.
INBOUND is what the workloads of an identity were asked, by callers outside the mesh too. A request has
failed when it was answered 5xx or not at all; of opaque connections those count that ended.

Exit code: 0; 1 if the controller does not answer, or with --once if no proxy does; 2 wrong arguments.";

#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{WHICH}"))]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// Between two readings
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = at_least)]
    interval: Duration,
    /// One interval, and the end
    #[arg(long)]
    once: bool,
    /// What is printed; json: an object a line
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t)]
    output: Output,
}

fn at_least(text: &str) -> Result<Duration, String> {
    let interval = weft_config::duration::parse(text).map_err(|error| error.to_string())?;
    match interval >= INTERVAL_MIN {
        true => Ok(interval),
        false => Err(format!("is shorter than {INTERVAL_MIN:?}")),
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(watch(arguments))
}

async fn watch(arguments: &Arguments) -> Result<ExitCode> {
    let live = io::stdout().is_terminal() && arguments.output == Output::Text && !arguments.once;
    let mut drawing = Drawing::default();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    if live {
        show_cursor(false);
    }
    let ended = tokio::select! {
        ended = follow(arguments, |summary| present(arguments, summary, live.then_some(&mut drawing))) => ended,
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
    };
    if live {
        show_cursor(true);
    }
    ended
}

/// Shows an interval; false: nobody reads any more.
fn present(
    arguments: &Arguments,
    summary: &Summary,
    drawing: Option<&mut Drawing>,
) -> Result<bool> {
    if let Some(drawing) = drawing {
        let (width, height) = terminal_size::terminal_size().map_or((80, 24), |(width, height)| {
            (width.0.into(), height.0.into())
        });
        let paint = Paint {
            width: usize::saturating_sub(width, 1),
            ..Paint::of_stdout()
        };
        let lines = show::screen(summary, arguments.interval, paint, height);
        return Ok(drawing.draw(lines, height).is_ok());
    }
    Ok(print(&match arguments.output {
        Output::Json => vec![serde_json::to_string(summary)?],
        Output::Text => show::lines(summary),
    }))
}

/// The last reading of each proxy, by workload and admin address.
type Readings = HashMap<(String, String), Reading>;

async fn follow(
    arguments: &Arguments,
    mut show: impl FnMut(&Summary) -> Result<bool>,
) -> Result<ExitCode> {
    let mesh = arguments.choice.mesh(false).await?;
    let mut ticks = interval(arguments.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let limit = arguments.interval * 4 / 5;
    let limit = limit.clamp(SCRAPE_TIMEOUT_MIN, mesh.patience());
    let mut last: Option<Known> = None;
    let mut earlier: Option<(Instant, Readings)> = None;
    loop {
        ticks.tick().await;
        let (known, gone) = match (mesh.known().await, last.take()) {
            (Ok(known), _) => (known, None),
            // Its proxies go on without it, and so do we.
            (Err(error), Some(known)) => (known, Some(format!("{error:#}"))),
            (Err(error), None) => return Err(error),
        };
        let at = Instant::now();
        let proxies = known.proxies();
        let (readings, mut unread) = scrape(&mesh, &proxies, limit).await;
        unread.extend(gone.map(|why| Unread {
            workload: "the controller".to_owned(),
            admin: mesh.place(),
            why,
        }));
        if let Some((since, before)) = earlier.replace((at, readings))
            && let Some((_, readings)) = &earlier
        {
            let mut sums = Sums::default();
            for of in &proxies {
                let key = key(of);
                // Who is new has nothing to be compared with yet.
                if let (Some(before), Some(now)) = (before.get(&key), readings.get(&key)) {
                    let identity = status::identity(&of.proxy.identity, &of.status.trust_domain);
                    sums.add(identity, before, now);
                }
            }
            let summary = Summary {
                unread,
                proxies: proxies.len(),
                ..sums.finish(at - since)
            };
            if !show(&summary)? || arguments.once {
                let none = !summary.unread.is_empty() && readings.is_empty();
                return Ok(if none {
                    ExitCode::FAILURE
                } else {
                    ExitCode::SUCCESS
                });
            }
        }
        drop(proxies);
        last = Some(known);
    }
}

fn key(of: &Proxy<'_>) -> (String, String) {
    (of.proxy.workload.clone(), of.proxy.admin.clone())
}

/// Reads all proxies, a few at a time.
async fn scrape(mesh: &Mesh, proxies: &[Proxy<'_>], limit: Duration) -> (Readings, Vec<Unread>) {
    let places = Arc::new(Semaphore::new(SCRAPES_MAX));
    let mut tasks = JoinSet::new();
    for proxy in proxies {
        let (key, name, door) = (key(proxy), proxy.name.clone(), mesh.door(proxy));
        let places = Arc::clone(&places);
        tasks.spawn(async move {
            let _place = places.acquire().await;
            (key, name, read(&door, limit).await)
        });
    }
    let (mut readings, mut unread) = (Readings::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok((key, _, Ok(reading))) => {
                readings.insert(key, reading);
            }
            Ok(((_, admin), workload, Err(error))) => unread.push(Unread {
                workload,
                admin,
                why: format!("{error:#}"),
            }),
            // Only at the end of everything.
            Err(_) => {}
        }
    }
    unread.sort_by(|a, b| a.workload.cmp(&b.workload));
    (readings, unread)
}

async fn read(door: &Door, limit: Duration) -> Result<Reading> {
    let page = door.get("/metrics", limit).await?;
    Ok(Reading::parse(&page.text()))
}

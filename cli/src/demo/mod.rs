//! `weft demo`: an online store in a mesh, on this machine, under load, while
//! it is rolled out, scaled, and parts of it are killed.
//!
//! | part | does |
//! | --- | --- |
//! | `programs`, `processes`, `addresses` | which programs there are; starting them so that none outlives the demo; where they listen |
//! | `manifests`, `controller`, `gateway`, `replica` | the mesh: what is written, and who is started |
//! | `stage`, `acts` | all of them together, and what is done to them |
//! | `timeline` | what is done when |
//! | `load` | requests from outside, each answer checked |
//! | `metrics` | what sidecars say of the services that they call |
//! | `board` → `screen`, `report` | what is known, live and at the end |

mod acts;
mod addresses;
mod board;
mod controller;
mod gateway;
mod load;
mod manifests;
mod metrics;
mod processes;
mod programs;
mod replica;
mod report;
mod screen;
mod stage;
mod timeline;
mod window;

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use board::{Board, Tone};
use load::Lane;
use programs::Programs;
use report::End;
use screen::{Frame, Screen};
use stage::{Callers, Stage};

use crate::terminal::Drawing;

/// How often the screen is redrawn and the proxy's numbers are read.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
What happens: a store of four services (frontend, authentication, catalogue, payment; 9 replicas, each
with a sidecar) runs in a mesh with a weft-controller, all on loopback and without root. Requests come
in at a fixed rate whether or not earlier ones were answered. Meanwhile every replica is replaced by a
new version, the catalogue is scaled out and in and gets a canary, one of its applications and the
controller are killed by SIGKILL, the gateway replaces itself, and a broken manifest is written. The
applications end at once on SIGTERM. Each answer is checked to the byte; the end says how many were lost.

Examples:
  weft demo                           60 seconds, 100 requests a second
  weft demo --seconds 90 --rate 300   longer, and three times the load
  weft demo | cat                     plain lines instead of the table
  weft demo -o json | tail -1         what was sent and lost, for a script

Exit code: 0 nothing was lost; 1 something was, or the demo failed; 2 wrong arguments; 130 interrupted.
Files (manifests, configurations, logs) are left in --dir to be looked at.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A live table on a terminal, plain lines elsewhere.
    Text,
    /// A JSON object as the last line of standard output; progress on standard error.
    Json,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// How long the load runs; the acts are spread over it, and all are performed however long they take
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,

    /// Requests a second, of all kinds together
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,

    /// What is printed
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = Output::Text)]
    output: Output,

    /// Folder for manifests, configurations and logs
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    dir: PathBuf,

    /// The weft-proxy binary [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,

    /// The weft-controller binary [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    controller: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let programs = Programs::find(arguments.proxy.as_deref(), arguments.controller.as_deref())?;
    let (folder, _lock) = open_folder(&arguments.dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(perform(arguments, &folder, programs))
}

/// The folder as an absolute path (nginx and the proxy have another working directory), and the
/// lock that keeps a second demo out of it.
fn open_folder(path: &Path) -> Result<(PathBuf, File)> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    let path = path
        .canonicalize()
        .with_context(|| format!("finding {}", path.display()))?;
    let lock = File::create(path.join("lock"))
        .with_context(|| format!("writing in {}", path.display()))?;
    if lock.try_lock().is_err() {
        bail!(
            "another demo runs in {}: wait for its end, or give this one a folder of its own (--dir)",
            path.display()
        );
    }
    Ok((path, lock))
}

async fn perform(arguments: &Arguments, folder: &Path, programs: Programs) -> Result<ExitCode> {
    let board = Arc::new(Board::default());
    if let Some(missing) = programs.missing() {
        board.tell(Tone::Plain, missing);
    }
    let mut stage = Stage::new(folder, programs, Arc::clone(&board))?;
    let mut screen = screen_for(arguments, &stage);
    screen.show_cursor(false);
    let end = tokio::select! {
        result = show(arguments, &mut stage, &board) => match result {
            Ok(()) => End::Complete,
            Err(error) => End::Failed(format!("{error:#}")),
        },
        () = draw_on(&mut screen, &board) => End::Complete,
        result = interrupted() => result.map(|()| End::Interrupted)?,
    };
    screen.draw(&board);
    screen.show_cursor(true);
    let closed = stage.close().await;
    tell(arguments, &board, &end);
    closed?;
    Ok(ExitCode::from(end.code(board.state().lost())))
}

/// Opens the stage, then lets timeline, load and readings run beside each other.
async fn show(arguments: &Arguments, stage: &mut Stage, board: &Arc<Board>) -> Result<()> {
    stage.open().await?;
    let lanes = Lane::all(stage.listen());
    board.add_lanes(&lanes);
    let (stop, stopped) = watch::channel(false);
    let reading = read_on(Arc::clone(&stage.callers), Arc::clone(board));
    let driving = load::drive(lanes, f64::from(arguments.rate), Arc::clone(board), stopped);
    let timing = async {
        let result = timeline::perform(stage, board, Duration::from_secs(arguments.seconds)).await;
        stop.send_replace(true);
        result
    };
    tokio::select! {
        (result, ()) = async { tokio::join!(timing, driving) } => result,
        () = reading => Ok(()),
    }
}

/// Reads the callers' numbers, for ever.
async fn read_on(callers: Callers, board: Arc<Board>) {
    let mut ticks = interval(DRAW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let now = callers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for caller in now {
            // One reading that fails, the next makes up for; who is gone, the load tells.
            if let Ok(sample) = metrics::fetch(caller).await {
                board.read(caller, sample);
            }
        }
    }
}

/// Redraws the screen, for ever.
async fn draw_on(screen: &mut Screen, board: &Board) {
    let mut ticks = interval(DRAW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        screen.draw(board);
    }
}

fn screen_for(arguments: &Arguments, stage: &Stage) -> Screen {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if arguments.output == Output::Json || !io::stdout().is_terminal() || dumb {
        return Screen::Lines {
            told: 0,
            second: 0,
            stderr: arguments.output == Output::Json,
        };
    }
    let frame = Frame {
        url: format!("http://{}", stage.listen()),
        color: has_color(),
        width: 80,
        height: 24,
    };
    Screen::Terminal {
        frame,
        drawing: Drawing::default(),
    }
}

/// https://no-color.org: set and not empty.
fn has_color() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn tell(arguments: &Arguments, board: &Board, end: &End) {
    let state = board.state();
    // A closed pipe leaves nobody to tell; the exit code says it too.
    let _closed = match arguments.output {
        Output::Text => writeln!(
            io::stdout(),
            "\n{}",
            report::text(&state, end, has_color()).trim_end()
        ),
        Output::Json => {
            let line = report::line(&state, end, board.now());
            let line = serde_json::to_string(&line).unwrap_or_default();
            writeln!(
                io::stderr(),
                "{}",
                report::text(&state, end, false).trim_end()
            )
            .and_then(|()| writeln!(io::stdout(), "{line}"))
        }
    };
}

async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

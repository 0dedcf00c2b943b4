//! `weft demo`: real programs behind one weft-proxy, under load, while one of
//! them is killed and all are replaced, the proxy too.
//!
//! | part | does |
//! | --- | --- |
//! | `programs`, `processes` | which programs there are; starting them so that none outlives the demo |
//! | `configuration`, `stage`, `proxy` | weft.yaml, the backends, the proxy, and what can be done to them |
//! | `timeline` | what is done when |
//! | `load` | requests, each answer checked |
//! | `metrics`, `access_log` | what the proxy says of its backends |
//! | `board` → `screen`, `report` | what is known, live and at the end |

mod access_log;
mod board;
mod configuration;
mod load;
mod metrics;
mod processes;
mod programs;
mod proxy;
mod report;
mod screen;
mod stage;
mod timeline;
mod window;

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use access_log::Tail;
use board::{Board, Tone};
use load::Lane;
use programs::{Programs, Service};
use report::End;
use screen::{Frame, Screen};
use stage::Stage;

/// How often the screen is redrawn and the proxy's numbers are read.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

const EXAMPLES: &str = "\
What happens: nginx, Python and gRPC servers are started behind a weft-proxy, and requests are sent
at a fixed rate whether or not earlier ones were answered. Meanwhile one nginx is killed by SIGKILL
and started again, every backend is replaced by a new process, the proxy replaces itself, and a
broken configuration is written. Each answer is checked to the byte; the end says how many were lost.

Examples:
  weft demo                           40 seconds, 300 requests a second
  weft demo --seconds 90 --rate 600   longer, and twice the load
  weft demo | cat                     plain lines instead of the table
  weft demo -o json | tail -1         what was sent and lost, for a script

Exit code: 0 nothing was lost; 1 something was, or the demo failed; 2 wrong arguments; 130 interrupted.
Files (configuration, logs) are left in --dir to be looked at.";

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
    /// How long the load runs; the events are spread over it
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,

    /// Requests a second, of all kinds together
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    rate: u32,

    /// What is printed
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = Output::Text)]
    output: Output,

    /// Folder for the configuration and the logs
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    dir: PathBuf,

    /// The weft-proxy binary [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let binary = proxy::find(arguments.proxy.as_deref())?;
    let (folder, _lock) = open_folder(&arguments.dir)?;
    let programs = Programs::find()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(perform(arguments, &binary, &folder, programs))
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

async fn perform(
    arguments: &Arguments,
    binary: &Path,
    folder: &Path,
    programs: Programs,
) -> Result<ExitCode> {
    let board = Arc::new(Board::default());
    for missing in &programs.missing {
        board.tell(Tone::Plain, missing.clone());
    }
    let target = (
        programs.has(Service::Payment),
        programs.has(Service::Authentication),
    );
    let mut stage = Stage::new(folder, programs, Arc::clone(&board))?;
    let mut screen = screen_for(arguments, &stage);
    screen.show_cursor(false);
    let end = tokio::select! {
        result = show(arguments, binary, &mut stage, target, &board) => match result {
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
async fn show(
    arguments: &Arguments,
    binary: &Path,
    stage: &mut Stage,
    (payment, authentication): (bool, bool),
    board: &Arc<Board>,
) -> Result<()> {
    stage.open(binary).await?;
    let lanes = Lane::all(stage.listen, payment, authentication);
    board.add_lanes(&lanes);
    let (stop, stopped) = watch::channel(false);
    let reading = read_on(
        stage.admin,
        Tail::new(&stage.access_log()),
        Arc::clone(board),
    );
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

/// Reads the proxy's numbers, for ever.
async fn read_on(admin: std::net::SocketAddr, mut log: Tail, board: Arc<Board>) {
    let mut ticks = interval(DRAW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        for (backend, latency) in log.read() {
            board.took(backend, latency);
        }
        // One reading that fails, the next makes up for; a proxy that is gone, the load tells.
        if let Ok(sample) = metrics::fetch(admin).await {
            board.read(sample);
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
        url: format!("http://{}", stage.listen),
        length: Duration::from_secs(arguments.seconds),
        color: has_color(),
        width: 80,
        height: 24,
    };
    Screen::Terminal { frame, drawn: 0 }
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

//! Puts the process together: configuration, sockets, workers, control thread.
//! What it does once it runs is in `process`; how it ends, in `leave`.

mod certificates;
mod first_answers;
mod footprint;
mod last_call;
mod leave;
mod notify;
mod process;
mod sidecar;
mod successor;
mod upgrades;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use weft_config::explain::{ExplainRequest, explain};
use weft_config::file;

use crate::args::{Args, Command, CommandLine, Output, ProcessArgs};
use crate::capture;
use crate::control::{Applied, Control, REQUESTS_MAX};
use crate::handover::{self, Taken};
use crate::health::with_sources;
use crate::mesh;
use crate::reload::{ConfigSource, Loaded, Overrides};
use crate::sidecar::Sidecar;
use crate::sockets::{self, Sockets, open_admin};
use crate::state::mesh::MeshState;
use crate::state::{Clock, Runtime, Shared};
use crate::telemetry::log::{self, LogControl};
use crate::upkeep::Upkeep;
use crate::worker;
use process::Process;

/// Tells a new process that the old one's end of the handover is its standard
/// input.
const HANDOVER_VARIABLE: &str = "WEFT_HANDOVER";
const HANDOVER_STDIN: &str = "stdin";

/// A mistake that keeps the process from starting, one line each.
#[derive(Debug)]
struct Fatal(String);

impl Fatal {
    fn new(what: &str, error: &dyn std::error::Error) -> Self {
        Self(format!("{what}: {}", with_sources(error)))
    }
}

/// Does what the command line asks.
pub fn run(line: &CommandLine) -> ExitCode {
    let done = match (&line.command, &line.run) {
        (Some(Command::Capture(asked)), _) => capture::run(asked)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| Fatal::new("capture", &error)),
        (Some(Command::Sidecar(asked)), _) => start_sidecar(asked),
        (None, Some(args)) => run_with(args, &line.process),
        (None, None) => Err(Fatal("--config FILE is missing; see --help".to_owned())),
    };
    done.unwrap_or_else(|Fatal(errors)| {
        eprintln!("{errors}");
        ExitCode::FAILURE
    })
}

fn run_with(args: &Args, process: &ProcessArgs) -> Result<ExitCode, Fatal> {
    if args.check {
        check(args)
    } else if let Some(request) = &args.explain {
        explain_request(args, request)
    } else {
        start(config_source(args), process)
    }
}

fn start_sidecar(asked: &Sidecar) -> Result<ExitCode, Fatal> {
    let config = asked
        .config(cpus(), sockets::has_ipv6())
        .map_err(|errors| Fatal(errors.to_string()))?;
    if asked.print {
        let text = file::print(&config).map_err(|error| Fatal::new("--print", &error))?;
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    start(ConfigSource::flags(config), &asked.process)
}

fn config_source(args: &Args) -> ConfigSource {
    let overrides = Overrides {
        admin: args.admin,
        workers: args.workers,
    };
    ConfigSource::file(&args.config, overrides)
}

fn load(source: &mut ConfigSource) -> Result<Loaded, Fatal> {
    source.load().map_err(|errors| Fatal(errors.to_string()))
}

fn build(source: &ConfigSource, loaded: &Loaded, clock: Clock) -> Result<Runtime, Fatal> {
    let name = source.name();
    Runtime::build(Arc::clone(&loaded.snapshot), None, clock.now())
        .map_err(|errors| Fatal(errors.named(&name).to_string()))
}

fn check(args: &Args) -> Result<ExitCode, Fatal> {
    let mut source = config_source(args);
    let loaded = load(&mut source)?;
    let runtime = build(&source, &loaded, Clock::start())?;
    println!(
        "{}: good: revision {}, {} listeners, {} services",
        args.config.display(),
        loaded.snapshot.revision,
        runtime.listeners.len(),
        runtime.services.len(),
    );
    Ok(ExitCode::SUCCESS)
}

fn explain_request(args: &Args, request: &str) -> Result<ExitCode, Fatal> {
    let loaded = load(&mut config_source(args))?;
    let headers = args.headers.iter().map(String::as_str);
    let request =
        ExplainRequest::parse(request, headers).map_err(|error| Fatal::new("--explain", &error))?;
    let explanation = explain(&loaded.snapshot, args.listener.as_deref(), &request)
        .map_err(|error| Fatal::new("--explain", &error))?;
    match args.output {
        Output::Text => println!("{}", explanation.to_string().trim_end()),
        Output::Json => {
            let text = serde_json::to_string_pretty(&explanation);
            println!("{}", text.map_err(|error| Fatal::new("--explain", &error))?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the binary is, to be asked at the start: an upgrade puts a new file (or
/// a new link) in its place, and /proc/self/exe goes on naming the old one.
fn program() -> PathBuf {
    let argument = std::env::args_os().next().unwrap_or_default();
    if argument.as_encoded_bytes().contains(&b'/') {
        return PathBuf::from(argument);
    }
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from(argument))
}

/// Everything before the first connection; then the control thread's loop.
fn start(mut source: ConfigSource, asked: &ProcessArgs) -> Result<ExitCode, Fatal> {
    let log = log::start(&asked.log_level, asked.log_format)
        .map_err(|error| Fatal::new("--log-level", &error))?;
    raise_descriptor_limit();
    let loaded = load(&mut source)?;
    let clock = Clock::start();
    let runtime = build(&source, &loaded, clock)?;
    let mut taken = take_over(asked)?;
    let worker_count = worker_count(&loaded);
    let sockets = open_sockets(&source, &loaded, worker_count, taken.as_mut())?;
    let admin = match taken.as_mut().and_then(|taken| taken.admin.take()) {
        Some(admin) if admin.local_addr().ok() == Some(loaded.snapshot.settings.admin) => admin,
        _ => open_admin(loaded.snapshot.settings.admin)
            .map_err(|error| Fatal::new("settings.admin", &error))?,
    };
    let mut shared = Shared::new(runtime, clock);
    let mesh = loaded.snapshot.settings.mesh.clone().map(MeshState::new);
    let (mesh, questions) = mesh.unzip();
    shared.mesh = mesh;
    let shared = Arc::new(shared);
    shared
        .access_log
        .configure(&loaded.snapshot.settings.access_log)
        .map_err(|error| Fatal::new("settings.accessLog.path", &error))?;
    let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
    let pinned = sidecar::pinned(&loaded.snapshot);
    let mesh = questions.map(|questions| mesh::Setting {
        shared: Arc::clone(&shared),
        requests: requests.clone(),
        questions,
        pinned,
        admin: admin.local_addr().unwrap_or(loaded.snapshot.settings.admin),
    });
    let control = control(&source, loaded, (&shared, log), requests, worker_count);
    let workers = (0..worker_count)
        .map(|index| worker::spawn(index, Arc::clone(&shared)))
        .collect::<io::Result<Vec<_>>>()
        .map_err(|error| Fatal::new("cannot start a worker thread", &error))?;
    let process = Process {
        shared,
        control,
        source,
        overlay: Default::default(),
        mesh: None,
        leaving: None,
        sockets,
        workers,
        upkeep: Upkeep::default(),
        admin,
        admin_stop: Arc::default(),
        upgrade_socket: asked.upgrade_socket.clone(),
        program: program(),
        successor: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fatal::new("cannot start the control thread", &error))?;
    let code = runtime.block_on(process.run(receiver, taken, mesh));
    // A blocking look-up must not hold up the end.
    runtime.shutdown_background();
    Ok(code)
}

fn control(
    source: &ConfigSource,
    loaded: Loaded,
    (shared, log): (&Arc<Shared>, LogControl),
    requests: mpsc::Sender<crate::control::Request>,
    worker_count: usize,
) -> Arc<Control> {
    Arc::new(Control {
        shared: Arc::clone(shared),
        log,
        requests,
        applied: Mutex::new(Applied {
            source: Arc::new(loaded.source),
            from: source.name(),
            since: SystemTime::now(),
            refused: None,
            bound: Vec::new(),
        }),
        worker_count,
    })
}

/// The CPU quota (cgroups and affinity) unless the configuration says more.
fn worker_count(loaded: &Loaded) -> usize {
    match loaded.snapshot.settings.workers {
        0 => cpus(),
        count => count,
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn take_over(asked: &ProcessArgs) -> Result<Option<Taken>, Fatal> {
    let from_parent =
        std::env::var_os(HANDOVER_VARIABLE).is_some_and(|from| from == HANDOVER_STDIN);
    let taken = if from_parent {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        let stdin = stdin.map_err(|error| Fatal::new("cannot take over", &error))?;
        handover::take(UnixStream::from(stdin)).map(Some)
    } else {
        match &asked.upgrade_socket {
            Some(path) => handover::take_from(path),
            None => Ok(None),
        }
    };
    taken.map_err(|error| Fatal::new("cannot take over from the running process", &error))
}

fn open_sockets(
    source: &ConfigSource,
    loaded: &Loaded,
    worker_count: usize,
    taken: Option<&mut Taken>,
) -> Result<Sockets, Fatal> {
    let mut inherited =
        taken.map_or_else(HashMap::new, |taken| std::mem::take(&mut taken.listeners));
    let mut sockets = Sockets::default();
    match sockets.prepare(&loaded.snapshot, worker_count, &mut inherited) {
        Ok(prepared) => {
            sockets.commit(prepared, &loaded.snapshot);
            Ok(sockets)
        }
        Err(errors) => {
            let name = source.name();
            let lines = process::socket_errors(&errors);
            let lines: Vec<String> = lines.iter().map(|line| format!("{name}: {line}")).collect();
            Err(Fatal(lines.join("\n")))
        }
    }
}

/// Every connection needs a descriptor; the soft limit is a default for
/// programs that use select(2), not a decision about us.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "cannot raise the file-descriptor limit to its hard limit");
    }
}

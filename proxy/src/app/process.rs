//! The control thread's loop: signals, reloads, handovers and upkeep, one
//! thing at a time. Traffic runs on the workers meanwhile.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use weft_config::wire;

use super::footprint::Footprint;
use super::upgrades::{Upgrades, next};
use super::{certificates, first_answers, leave, notify};
use crate::admin;
use crate::control::{Control, Left, Request};
use crate::handover::{HandoverError, Taken};
use crate::health::with_sources;
use crate::mesh::{self, MeshClient};
use crate::reload::{self, ConfigSource};
use crate::sockets::{Key, SocketError, Sockets};
use crate::state::{Runtime, Shared};
use crate::telemetry::access_log::AccessLog;
use crate::upkeep::Upkeep;
use crate::worker::{Command, WorkerHandle};

const TLS_POLL_INTERVAL: Duration = Duration::from_secs(1);
const EXPIRY_WARN_INTERVAL: Duration = Duration::from_secs(12 * 3600);
const PRUNE_INTERVAL: Duration = Duration::from_secs(300);
/// How long workers may take to act on a command before we go on without.
const SETTLE_MAX: Duration = Duration::from_secs(5);
const SETTLE_STEP: Duration = Duration::from_millis(1);
/// What a reload of a configuration without a file is told.
const FIXED: &str = "nothing to read again: the configuration is the command line's, and what a controller tells is in force at once";
/// A worker thread died: not something to go on with (sysexits' EX_SOFTWARE).
const EXIT_WORKER_DIED: u8 = 70;

pub type GiveTask = JoinHandle<Result<(), HandoverError>>;

/// The running process, seen from its control thread.
pub struct Process {
    pub shared: Arc<Shared>,
    pub control: Arc<Control>,
    pub source: ConfigSource,
    /// What a controller told.
    pub overlay: wire::Config,
    /// Of a sidecar.
    pub mesh: Option<MeshClient>,
    /// How the drain barrier was passed, once it is; `None`: nobody has asked for it.
    pub leaving: Option<watch::Receiver<Option<Left>>>,
    pub sockets: Sockets,
    pub workers: Vec<WorkerHandle>,
    pub upkeep: Upkeep,
    pub admin: TcpListener,
    /// Ends the admin server's accepting.
    pub admin_stop: Arc<tokio::sync::Notify>,
    pub upgrade_socket: Option<PathBuf>,
    /// Our binary, as it was named at our start.
    pub program: PathBuf,
    /// A process that we started to take our place.
    pub successor: Option<Child>,
}

pub struct Signals {
    pub terminate: Signal,
    pub interrupt: Signal,
    hangup: Signal,
    upgrade: Signal,
}

/// What a start needs besides the process itself.
struct Ground {
    signals: Signals,
    upgrades: Option<Upgrades>,
    admin_address: SocketAddr,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }
}

impl Process {
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        taken: Option<Taken>,
        mesh: Option<mesh::Setting>,
    ) -> ExitCode {
        self.mesh = mesh.and_then(MeshClient::start);
        let (ground, admin) = match self.prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                tracing::error!(%error, "cannot start");
                return ExitCode::FAILURE;
            }
        };
        match self.begin(&ground, (admin, &mut requests), taken).await {
            Ok(()) => self.work(requests, ground).await,
            Err(error) => {
                tracing::error!(%error, "cannot take over");
                // What we have accepted meanwhile is ours to finish.
                leave::after_handover(self, (ground.signals, requests)).await;
                ExitCode::FAILURE
            }
        }
    }

    /// Everything that may fail, before anything is accepted: a connection that
    /// a new process accepts is lost if it then cannot start.
    fn prepare(&self) -> std::io::Result<(Ground, tokio::net::TcpListener)> {
        let admin = self.admin.try_clone()?;
        admin.set_nonblocking(true)?;
        let upgrades = self.upgrade_socket.as_deref().map(Upgrades::open);
        let ground = Ground {
            signals: Signals::new()?,
            upgrades: upgrades.transpose()?,
            admin_address: admin.local_addr()?,
        };
        Ok((ground, tokio::net::TcpListener::from_std(admin)?))
    }

    /// Starts accepting; then, and only then, lets the old process go.
    async fn begin(
        &mut self,
        ground: &Ground,
        (admin, requests): (tokio::net::TcpListener, &mut mpsc::Receiver<Request>),
        taken: Option<Taken>,
    ) -> Result<(), HandoverError> {
        let runtime = self.shared.runtime.load_full();
        self.upkeep.apply(&self.shared);
        let mut admin = Some(admin);
        if taken.is_none() {
            // Whoever waits for us can be told what for.
            self.serve_admin(admin.take());
        }
        first_answers::wait(&runtime).await;
        let certified = self.first_contact(requests).await;
        if taken.is_some() && !certified {
            let problem = "no certificate: the token is used up or no controller answers; settings.mesh.state keeps the certificate for the next process";
            return Err(HandoverError::Io(std::io::Error::other(problem)));
        }
        let runtime = self.shared.runtime.load_full();
        self.listen(&runtime, &HashSet::new()).await;
        settle(&self.workers).await;
        self.shared.ready.store(true, Ordering::Relaxed);
        // After a handover not earlier: the old one's probes may reach us.
        self.serve_admin(admin.take());
        self.note_bound(&runtime);
        certificates::warn_of_expiry(&runtime);
        let takes_over = taken.is_some();
        if let Some(taken) = taken {
            taken.ready()?;
        }
        if let Some(upgrades) = &ground.upgrades {
            upgrades.publish();
        }
        self.shared.metrics.reloaded(true);
        notify::notify(&format!("READY=1\nMAINPID={}", std::process::id()));
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            revision = %runtime.snapshot.revision,
            workers = self.workers.len(),
            admin = %ground.admin_address,
            takes_over,
            "ready"
        );
        Ok(())
    }

    fn serve_admin(&self, listener: Option<tokio::net::TcpListener>) {
        if let Some(listener) = listener {
            let (control, stop) = (Arc::clone(&self.control), Arc::clone(&self.admin_stop));
            tokio::spawn(admin::serve(listener, control, stop));
        }
    }

    async fn work(mut self, mut requests: mpsc::Receiver<Request>, ground: Ground) -> ExitCode {
        let Ground {
            mut signals,
            upgrades,
            ..
        } = ground;
        let mut poll = ticks(reload::POLL_INTERVAL);
        let mut tls = ticks(TLS_POLL_INTERVAL);
        let mut expiry = ticks(EXPIRY_WARN_INTERVAL);
        let mut prune = ticks(PRUNE_INTERVAL);
        let mut footprint = Footprint::new();
        let mut giving: Option<GiveTask> = None;
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return leave::asked(self, (signals, requests), giving).await,
                _ = signals.interrupt.recv() => return leave::asked(self, (signals, requests), giving).await,
                _ = signals.hangup.recv() => {
                    self.shared.access_log.reopen();
                    let _ = self.reload().await;
                }
                _ = signals.upgrade.recv() => match self.start_successor(giving.is_some()) {
                    Ok(task) => giving = Some(task),
                    Err(problem) => tracing::error!(%problem, "cannot start a new process; this one goes on"),
                },
                stream = next(upgrades.as_ref()) => match self.give(stream, giving.is_some()) {
                    Ok(task) => giving = Some(task),
                    Err(problem) => tracing::error!(%problem, "cannot hand over; this process goes on"),
                },
                done = finished(giving.as_mut()) => {
                    giving = None;
                    match done {
                        Ok(()) => return leave::after_handover(self, (signals, requests)).await,
                        Err(error) => {
                            let error = with_sources(&error);
                            tracing::error!(%error, "the new process did not take over; this one goes on");
                        }
                    }
                }
                Some(request) = requests.recv() => match request {
                    Request::Drain => return leave::asked(self, (signals, requests), giving).await,
                    Request::Leave(answer) => self.leave(answer),
                    Request::Overlay(overlay, done) => {
                        footprint.disturb();
                        let _ = done.send(self.apply_overlay(*overlay));
                    }
                    Request::Reload(answer) => {
                        footprint.disturb();
                        let result = self.reload().await;
                        let _ = answer.send(result);
                    }
                },
                _ = poll.tick() => {
                    if self.source.has_changed() {
                        footprint.disturb();
                        let _ = self.reload().await;
                    }
                    self.reap_successor();
                    if let Some(code) = self.look_after_workers() {
                        return code;
                    }
                }
                () = footprint.rest() => {}
                _ = tls.tick() => certificates::refresh(&self.shared),
                _ = expiry.tick() => certificates::warn_of_expiry(&self.shared.runtime.load()),
                _ = prune.tick() => self.shared.metrics.prune(),
            }
        }
    }

    /// Reads the configuration again: all of it in force, or none.
    async fn reload(&mut self) -> Result<String, String> {
        if self.source.is_fixed() {
            tracing::info!("{FIXED}");
            return Err(FIXED.to_owned());
        }
        let result = self.try_reload().await;
        self.shared.metrics.reloaded(result.is_ok());
        let mut applied = self.control.applied.lock();
        match &result {
            Ok(done) => {
                applied.refused = None;
                tracing::info!("{done}");
            }
            Err(errors) => {
                applied.refused = Some((SystemTime::now(), errors.clone()));
                for error in errors.lines() {
                    tracing::error!(%error, "the new configuration is refused; the old one stays in force");
                }
            }
        }
        result
    }

    async fn try_reload(&mut self) -> Result<String, String> {
        let name = self.source.name();
        let mut loaded = self.source.load().map_err(|errors| errors.to_string())?;
        if self.mesh.is_some() {
            let merged = self.source.merged(&loaded.source, &self.overlay);
            loaded = merged.map_err(|errors| errors.named(&name).to_string())?;
        }
        let old = self.shared.runtime.load_full();
        let snapshot = &loaded.snapshot;
        let runtime = Runtime::build(Arc::clone(snapshot), Some(&old), self.shared.now())
            .map_err(|errors| errors.named(&name).to_string())?;
        let prepared = self
            .sockets
            .prepare(
                snapshot,
                self.workers.len(),
                &mut std::collections::HashMap::new(),
            )
            .map_err(|errors| {
                let lines = socket_errors(&errors);
                let lines: Vec<String> =
                    lines.iter().map(|line| format!("{name}: {line}")).collect();
                lines.join("\n")
            })?;
        let log = &snapshot.settings.access_log;
        AccessLog::check(log)
            .and_then(|()| self.shared.access_log.configure(log))
            .map_err(|error| format!("{name}: settings.accessLog.path: {error}"))?;
        // From here on nothing fails.
        for field in reload::needs_restart(&old.snapshot.settings, &snapshot.settings) {
            tracing::warn!(
                field,
                "the change takes effect with the next start (kill -USR2 loses nothing)"
            );
        }
        self.sockets.commit(prepared, snapshot);
        let kept = self.unlisten(&old, &runtime).await;
        let runtime = Arc::new(runtime);
        runtime.commit();
        self.shared.runtime.store(Arc::clone(&runtime));
        self.listen(&runtime, &kept).await;
        self.after_reload(&runtime);
        let mut applied = self.control.applied.lock();
        applied.source = Arc::new(loaded.source);
        applied.since = SystemTime::now();
        Ok(format!(
            "configuration revision {} is in force",
            runtime.snapshot.revision
        ))
    }

    fn after_reload(&mut self, runtime: &Arc<Runtime>) {
        let max = runtime.snapshot.settings.metric_label_values_max;
        self.shared.metrics.set_label_values_max(max);
        self.after_publish(runtime);
        self.note_bound(runtime);
        certificates::warn_of_expiry(runtime);
    }

    /// What follows from another set of listeners and services.
    pub(super) fn after_publish(&mut self, runtime: &Arc<Runtime>) {
        let snapshot = &runtime.snapshot;
        let listeners = snapshot.listeners.iter().map(|of| of.name.as_ref());
        let services = snapshot.services.iter().map(|of| of.name.as_ref());
        let policies = snapshot
            .listeners
            .iter()
            .filter_map(|listener| listener.inbound.as_ref())
            .flat_map(|inbound| &inbound.authorization.policies)
            .map(|policy| policy.name.as_ref())
            // Denied by no policy, but for want of one.
            .chain([""]);
        let metrics = &self.shared.metrics;
        metrics.retain(
            &listeners.collect(),
            &services.collect(),
            &policies.collect(),
        );
        self.upkeep.apply(&self.shared);
    }

    /// Ends the accept loops that `new` does not have as they are; the names
    /// of those that stay.
    async fn unlisten(&self, old: &Runtime, new: &Runtime) -> HashSet<Arc<str>> {
        let mut kept = HashSet::new();
        let mut ended = false;
        for listener in &old.listeners {
            let (name, address) = (&listener.config.name, listener.config.address);
            let same = new
                .listener(name)
                .is_some_and(|new| new.config.address == address);
            if same {
                kept.insert(Arc::clone(name));
                continue;
            }
            ended = true;
            for worker in &self.workers {
                let listener = name.to_string();
                let _ = worker.commands.send(Command::Unlisten { listener }).await;
            }
        }
        if ended {
            // What a worker still accepts must find its listener.
            settle(&self.workers).await;
        }
        kept
    }

    /// Gives the workers the sockets of all listeners but those in `kept`.
    async fn listen(&self, runtime: &Runtime, kept: &HashSet<Arc<str>>) {
        for listener in &runtime.listeners {
            let name = &listener.config.name;
            if kept.contains(name) {
                continue;
            }
            let group = self.sockets.group(&Key::of(name, listener.config.address));
            // There may be more sockets than workers after a handover.
            for (socket, worker) in group.iter().zip(self.workers.iter().cycle()) {
                match socket.try_clone() {
                    Ok(socket) => {
                        let listener = name.to_string();
                        let _ = worker
                            .commands
                            .send(Command::Listen { listener, socket })
                            .await;
                    }
                    Err(error) => {
                        tracing::error!(listener = %name, %error, "cannot duplicate a listening socket")
                    }
                }
            }
        }
    }

    fn note_bound(&self, runtime: &Runtime) {
        let bound = runtime.listeners.iter().filter_map(|listener| {
            let name = &listener.config.name;
            let group = self.sockets.group(&Key::of(name, listener.config.address));
            Some((Arc::clone(name), group.first()?.local_addr().ok()?))
        });
        let bound: Vec<_> = bound.collect();
        for (listener, address) in &bound {
            tracing::debug!(%listener, %address, "listening");
        }
        self.control.applied.lock().bound = bound;
    }

    /// A worker ends only when told to; if one has, its connections are lost
    /// and its listening sockets would collect connections that nobody accepts.
    fn look_after_workers(&self) -> Option<ExitCode> {
        let dead = self
            .workers
            .iter()
            .any(|worker| worker.thread.is_finished());
        dead.then(|| {
            tracing::error!("a worker thread has died (this is a bug); ending, to be restarted");
            ExitCode::from(EXIT_WORKER_DIED)
        })
    }
}

/// Waits until every worker has acted on all commands sent so far.
pub async fn settle(workers: &[WorkerHandle]) {
    let all = async {
        for worker in workers {
            // A worker takes a command only when it is done with the one
            // before: when this one, which means nothing, has been taken, all
            // others are done.
            let listener = String::new();
            if worker
                .commands
                .send(Command::Unlisten { listener })
                .await
                .is_err()
            {
                continue;
            }
            while worker.commands.capacity() < worker.commands.max_capacity() {
                tokio::time::sleep(SETTLE_STEP).await;
            }
        }
    };
    if tokio::time::timeout(SETTLE_MAX, all).await.is_err() {
        tracing::error!("a worker does not answer");
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

pub async fn finished(giving: Option<&mut GiveTask>) -> Result<(), HandoverError> {
    match giving {
        Some(task) => task
            .await
            .unwrap_or_else(|error| Err(HandoverError::Io(std::io::Error::other(error)))),
        None => std::future::pending().await,
    }
}

/// Socket errors in the form of all other mistakes of a configuration.
pub fn socket_errors(errors: &[(Arc<str>, SocketError)]) -> Vec<String> {
    errors
        .iter()
        .map(|(name, error)| format!("listener \"{name}\": {}", with_sources(error)))
        .collect()
}

//! One worker: a thread with its own runtime, its own listening sockets
//! (SO_REUSEPORT) and its own upstream connections. A connection never leaves
//! the worker that accepted it.
//!
//! What happens at the limits: over the connection limit, or out of file
//! descriptors, the idlest connections are closed first; if that makes no room,
//! the new connection is closed (limit) or accepting pauses (descriptors).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::drain::Phase;
use crate::net::pool::Key;
use crate::outbound::{self, Worker};
use crate::state::{Runtime, Shared};

/// How long accepting pauses when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Idle connections closed to make room, at a time.
const SHED_STEP: usize = 16;
/// Connections still accepted, at most, once an accept loop was told to end.
const LAST_ACCEPTS_MAX: usize = 8192;
/// Once nothing is accepted any more, a connection idle for this long (twice
/// at most) is closed: a request on the wire would have come by now.
const IDLE_LEAVES: Duration = Duration::from_secs(5);
/// How often idle upstream connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Commands under way to one worker; the sender waits beyond that.
const COMMANDS_MAX: usize = 64;

#[derive(Debug)]
pub enum Command {
    Listen {
        /// The listener's name.
        listener: String,
        socket: std::net::TcpListener,
    },
    Unlisten {
        listener: String,
    },
    StopAccepting {
        /// The drain barrier is passed: nothing more comes for the local
        /// workload, so what its callers keep open need not be waited for.
        left: bool,
    },
}

#[derive(Debug)]
pub struct WorkerHandle {
    pub commands: mpsc::Sender<Command>,
    pub thread: std::thread::JoinHandle<()>,
}

/// Starts a worker; it ends when its command channel closes and its last
/// connection has ended, or at the end of the process.
pub fn spawn(index: usize, shared: Arc<Shared>) -> io::Result<WorkerHandle> {
    let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let thread = std::thread::Builder::new()
        .name(format!("weft-worker-{index}"))
        .spawn(move || {
            let worker = Arc::new(Worker::new(index, shared));
            runtime.block_on(run(worker, receiver));
        })?;
    Ok(WorkerHandle { commands, thread })
}

async fn run(worker: Arc<Worker>, mut commands: mpsc::Receiver<Command>) {
    let mut accepting: HashMap<String, Vec<Accepting>> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    let mut phase = worker.shared.drain.subscribe();
    let mut closing = false;
    let mut leaving: Option<(Instant, u64)> = None;
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Listen { listener, socket }) => match accept_on(&worker, &listener, socket) {
                    Ok(task) => accepting.entry(listener).or_default().push(task),
                    Err(error) => tracing::error!(%listener, %error, "cannot accept on a listening socket"),
                },
                Some(Command::Unlisten { listener }) => {
                    stop(accepting.remove(&listener).unwrap_or_default()).await;
                }
                Some(Command::StopAccepting { left }) => {
                    stop(accepting.drain().flat_map(|(_, tasks)| tasks).collect()).await;
                    if left {
                        worker.leases.shed_inbound();
                    }
                    leaving = Some((Instant::now(), worker.leases.now()));
                }
                None => break,
            },
            _ = phase.wait_for(|phase| *phase == Phase::Closing), if !closing => {
                closing = true;
                worker.leases.shed(usize::MAX);
            }
            _ = sweep.tick() => {
                if let Some((since, moment)) = &mut leaving
                    && since.elapsed() >= IDLE_LEAVES
                {
                    worker.leases.shed_since(*moment);
                    (*since, *moment) = (Instant::now(), worker.leases.now());
                }
                let runtime = worker.shared.runtime.load();
                worker.pool.sweep(|key| idle_timeout(&runtime, key));
                worker.series.renew(runtime.generation);
                worker.shared.metrics.set_pool(worker.index, worker.pool.count());
            }
        }
    }
    stop(accepting.drain().flat_map(|(_, tasks)| tasks).collect()).await;
    worker.shared.drain.idle().await;
}

/// `None`: nobody will use the connection again. The service is gone, or the
/// endpoint, or that is leaving: it must not wait for us to close.
fn idle_timeout(runtime: &Runtime, key: &Key) -> Option<Duration> {
    let mut services = runtime.services.iter();
    let service = services.find(|service| service.pool_id == key.pool_id)?;
    let endpoints = service.endpoints.load();
    let endpoint = endpoints.find(key.address)?;
    (!endpoint.is_draining()).then_some(service.config.idle_timeout)
}

/// One accept loop.
#[derive(Debug)]
struct Accepting {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

/// Ends accept loops; what already waits in a backlog is accepted first.
async fn stop(loops: Vec<Accepting>) {
    for accepting in &loops {
        accepting.stop.send_replace(true);
    }
    for accepting in loops {
        let _ = accepting.task.await;
    }
}

fn accept_on(
    worker: &Arc<Worker>,
    listener: &str,
    socket: std::net::TcpListener,
) -> io::Result<Accepting> {
    socket.set_nonblocking(true)?;
    let socket = TcpListener::from_std(socket)?;
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(accept_loop(
        Arc::clone(worker),
        Arc::from(listener),
        socket,
        stopped,
    ));
    Ok(Accepting { task, stop })
}

async fn accept_loop(
    worker: Arc<Worker>,
    listener: Arc<str>,
    socket: TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    let mut last = LAST_ACCEPTS_MAX;
    loop {
        // What already waits is accepted before the loop ends, but not for ever.
        if *stopped.borrow() {
            last = last.saturating_sub(1);
            if last == 0 {
                return;
            }
        }
        let accepted = tokio::select! {
            biased;
            accepted = socket.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted {
            Ok((tcp, peer)) => start(&worker, &listener, tcp, peer),
            Err(error) if is_out_of_descriptors(&error) => {
                worker.shared.metrics.accept_paused();
                let closed = worker.leases.shed(SHED_STEP) + worker.pool.shed(SHED_STEP);
                tracing::warn!(
                    closed,
                    "out of file descriptors: closing the idlest connections (raise the limit with `ulimit -n`)"
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The peer gave up between its SYN and our accept.
            Err(error) => tracing::debug!(%error, "accept failed"),
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    const ENOBUFS: i32 = 105;
    const ENOMEM: i32 = 12;
    matches!(
        error.raw_os_error(),
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM)
    )
}

fn start(worker: &Arc<Worker>, listener: &Arc<str>, tcp: TcpStream, peer: SocketAddr) {
    let shared = &worker.shared;
    shared.accepted.fetch_add(1, Ordering::Relaxed);
    let open = shared.connections.fetch_add(1, Ordering::Relaxed);
    let counted = Counted(Arc::clone(shared));
    if open >= shared.connections_max() && worker.leases.shed(1) == 0 {
        shared
            .metrics
            .connection_refused(listener, "connections_max");
        return;
    }
    let _ = tcp.set_nodelay(true);
    let guard = shared.drain.track();
    let worker = Arc::clone(worker);
    let listener = Arc::clone(listener);
    tokio::spawn(async move {
        outbound::serve(worker, listener, tcp, peer).await;
        drop((guard, counted));
    });
}

/// An open downstream connection, counted.
#[derive(Debug)]
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

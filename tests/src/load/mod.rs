//! Load that counts exactly: how many requests were sent, how many were answered rightly, and what
//! became of each of the others.
//!
//! Every request has a name of its own, and its answer must give that name back, so that a lost,
//! doubled or exchanged answer is seen; an application may add who it is (`NAME from WORKLOAD`).
//! **Nothing is sent twice:** a request on a connection that dies is a failed one, whatever a
//! forgiving client would do. A connection that the server has announced to close
//! (`Connection: close`, GOAWAY) is replaced without loss.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::{PATIENCE, eventually_within};

mod http1;
pub mod http2;
pub mod opaque;
pub mod websocket;

/// Failures that are told in words; the rest is only counted.
const TOLD_MAX: usize = 20;
/// A request is given up after [`PATIENCE`]: with nothing ended for longer than that, load stands still.
const STALL_MAX: Duration = PATIENCE.saturating_mul(2);
/// Which rest is a long one, and by how much.
const LONG_REST_EACH: u64 = 16;
const LONG_REST: u32 = 20;
/// How the failure of a connection that cannot be made begins.
const REFUSED: &str = "refused: ";
/// What stands between a request's name and the workload that answered.
const FROM: &str = " from ";

/// How the load connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// HTTP/1.1, one connection a client for as long as the server keeps it.
    KeepAlive,
    /// The same with POST and a body.
    Post,
    /// HTTP/1.1, a connection for every request.
    ConnectEach,
    /// HTTP/2 by prior knowledge, so many streams at once on each connection.
    Http2(usize),
    /// Unary gRPC, so many calls at once on each connection.
    Grpc(usize),
    /// One gRPC stream a client; every message is counted.
    GrpcStream,
    /// One WebSocket a client; every frame is counted.
    WebSocket,
    /// Opaque bytes, a connection for every line.
    Opaque,
    /// Opaque bytes, one connection a client; every line is counted.
    OpaqueLong,
}

/// Load to be started.
#[derive(Debug, Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub mode: Mode,
    pub clients: usize,
    /// What a client lets pass between an answer and its next request.
    pub pause: Duration,
    /// What the name of everyone who answers must begin with.
    pub owner: Option<&'static str>,
}

#[derive(Debug, Default)]
struct Count {
    sent: AtomicU64,
    good: AtomicU64,
    stopping: AtomicBool,
    failures: AtomicU64,
    refused: AtomicU64,
    misdelivered: AtomicU64,
    told: Mutex<Vec<String>>,
    /// Microseconds of each request that was answered rightly.
    latencies: Mutex<Vec<u64>>,
    /// Who answered how many.
    served: Mutex<BTreeMap<String, u64>>,
    pause: Duration,
    owner: Option<&'static str>,
}

/// One request under way.
struct Sent {
    name: String,
    at: Instant,
}

/// What became of a load's requests.
#[derive(Debug)]
pub struct Tally {
    pub sent: u64,
    pub good: u64,
    pub failed: u64,
    /// Of the failed: nobody accepted the connection, and nothing was sent.
    pub refused: u64,
    /// Of the failed: answered by somebody else's application.
    pub misdelivered: u64,
    /// 99 of 100 right answers took this long at most.
    pub p99: Duration,
    /// The first failures in words.
    pub told: Vec<String>,
}

impl Tally {
    /// Requests were sent, and every one was answered.
    #[track_caller]
    pub fn none_lost(&self) {
        assert!(
            self.sent > 0 && self.failed == 0 && self.sent == self.good,
            "{self:#?}"
        );
    }
}

/// Load that runs until it is stopped.
pub struct Load {
    count: Arc<Count>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts `clients` of them against `address`, each as fast as it can.
    #[must_use]
    pub fn start(address: SocketAddr, mode: Mode, clients: usize) -> Self {
        Self::planned(&Plan {
            address,
            mode,
            clients,
            pause: Duration::ZERO,
            owner: None,
        })
    }

    #[must_use]
    pub fn planned(plan: &Plan) -> Self {
        let count = Arc::new(Count {
            pause: plan.pause,
            owner: plan.owner,
            ..Count::default()
        });
        let (address, mode, clients) = (plan.address, plan.mode, plan.clients);
        let thread = thread::spawn({
            let count = Arc::clone(&count);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime can be made");
                runtime.block_on(run(address, mode, clients, &count));
            }
        });
        Self {
            count,
            thread: Some(thread),
        }
    }

    /// Requests answered rightly so far.
    #[must_use]
    pub fn good(&self) -> u64 {
        self.count.good.load(Ordering::SeqCst)
    }

    /// Requests that have ended so far, one way or the other.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.good() + self.count.failures.load(Ordering::SeqCst)
    }

    /// How many this workload has answered.
    #[must_use]
    pub fn served_by(&self, name: &str) -> u64 {
        locked(&self.count.served)
            .get(name)
            .copied()
            .unwrap_or_default()
    }

    /// Waits until `more` requests beyond the present have been answered or have failed; a busy
    /// machine may take its time, as long as something ends now and then.
    #[track_caller]
    pub fn goes_on(&self, more: u64) {
        let aim = self.ended() + more;
        while self.ended() < aim {
            let before = self.ended();
            eventually_within(STALL_MAX, "the load going on", || {
                (self.ended() > before).then_some(())
            });
        }
    }

    /// Lets what is under way end, and gives the count.
    #[must_use]
    pub fn stop(mut self) -> Tally {
        self.count.stopping.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load does not panic");
        }
        let mut latencies = std::mem::take(&mut *locked(&self.count.latencies));
        latencies.sort_unstable();
        let p99 =
            latencies.get((latencies.len() * 99 / 100).min(latencies.len().saturating_sub(1)));
        Tally {
            sent: self.count.sent.load(Ordering::SeqCst),
            good: self.good(),
            failed: self.count.failures.load(Ordering::SeqCst),
            refused: self.count.refused.load(Ordering::SeqCst),
            misdelivered: self.count.misdelivered.load(Ordering::SeqCst),
            p99: Duration::from_micros(p99.copied().unwrap_or_default()),
            told: locked(&self.count.told).clone(),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.count.stopping.store(true, Ordering::SeqCst);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(address: SocketAddr, mode: Mode, clients: usize, count: &Arc<Count>) {
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let count = Arc::clone(count);
        tasks.spawn(async move {
            while !count.stopping() {
                connection(address, mode, &count).await;
            }
        });
    }
    tasks.join_all().await;
}

/// One connection's life.
async fn connection(address: SocketAddr, mode: Mode, count: &Arc<Count>) {
    match mode {
        Mode::KeepAlive => http1::connection(address, http1::Use::Gets, count).await,
        Mode::Post => http1::connection(address, http1::Use::Posts, count).await,
        Mode::ConnectEach => http1::connection(address, http1::Use::OneGet, count).await,
        Mode::Http2(at_once) => {
            http2::connection(address, http2::Use::Gets(at_once), count).await;
        }
        Mode::Grpc(at_once) => {
            http2::connection(address, http2::Use::Calls(at_once), count).await;
        }
        Mode::GrpcStream => http2::connection(address, http2::Use::Stream, count).await,
        Mode::WebSocket => websocket::connection(address, count).await,
        Mode::Opaque => opaque::connection(address, 1, count).await,
        Mode::OpaqueLong => opaque::connection(address, usize::MAX, count).await,
    }
}

impl Count {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// A request begins.
    fn begin(&self) -> Sent {
        Sent {
            name: format!("/load/{}", self.sent.fetch_add(1, Ordering::SeqCst)),
            at: Instant::now(),
        }
    }

    fn end(&self, sent: &Sent, outcome: Result<(), String>) {
        let Err(why) = outcome else {
            let micros = u64::try_from(sent.at.elapsed().as_micros()).unwrap_or(u64::MAX);
            locked(&self.latencies).push(micros);
            self.good.fetch_add(1, Ordering::SeqCst);
            return;
        };
        self.failures.fetch_add(1, Ordering::SeqCst);
        if why.starts_with(REFUSED) {
            self.refused.fetch_add(1, Ordering::SeqCst);
        }
        let mut told = locked(&self.told);
        if told.len() < TOLD_MAX {
            told.push(format!("{}: {why}", sent.name));
        }
    }

    /// Whether an answer is the right one; counts who gave it.
    fn check(&self, expected: &str, text: &str) -> Result<(), String> {
        let (said, who) = text.rsplit_once(FROM).unwrap_or((text, ""));
        if !self.owner.is_none_or(|owner| who.starts_with(owner)) {
            self.misdelivered.fetch_add(1, Ordering::SeqCst);
            return Err(format!("answered by {who:?}"));
        }
        if said != expected {
            return Err(format!("{text:?} rather than {expected:?}"));
        }
        *locked(&self.served).entry(who.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Between two requests; now and then for long, so that connections idle too.
    async fn rest(&self) {
        let long = self
            .sent
            .load(Ordering::SeqCst)
            .is_multiple_of(LONG_REST_EACH);
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause * if long { LONG_REST } else { 1 }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Then, Upstream, answer};

    /// Whatever goes wrong once in a hundred requests is seen, or a test that counts 0 proves nothing.
    #[test]
    fn losses_are_counted() {
        type Fault = fn(&mut std::net::TcpStream) -> Then;
        let faults: [(&str, Fault); 4] = [
            ("closed before", |_| Then::Close),
            ("exchanged", |stream| {
                answer(stream, 200, &[], b"/load/of another");
                Then::Keep
            }),
            ("failed", |stream| {
                answer(stream, 503, &[], b"no");
                Then::Keep
            }),
            ("reset", |_| Then::Reset),
        ];
        for (name, fault) in faults {
            let upstream = Upstream::start(move |seen, stream| {
                if seen.target().ends_with("50") {
                    return fault(stream);
                }
                answer(stream, 200, &[], seen.target().as_bytes());
                Then::Keep
            });
            let load = Load::start(upstream.address, Mode::KeepAlive, 2);
            load.goes_on(400);
            let tally = load.stop();
            assert!(
                tally.failed >= 3 && tally.sent == tally.good + tally.failed,
                "{name}: {tally:?}"
            );
        }
    }

    #[test]
    fn answers_of_somebody_else_are_counted() {
        let upstream = Upstream::start(|seen, stream| {
            let who = if seen.target().ends_with("50") {
                "other-1"
            } else {
                "web-1"
            };
            let text = format!("{}{FROM}{who}", seen.target());
            answer(stream, 200, &[], text.as_bytes());
            Then::Keep
        });
        let load = Load::planned(&Plan {
            address: upstream.address,
            mode: Mode::KeepAlive,
            clients: 2,
            pause: Duration::ZERO,
            owner: Some("web-"),
        });
        load.goes_on(400);
        assert!(load.served_by("web-1") > 300);
        let tally = load.stop();
        assert!(
            tally.misdelivered >= 3 && tally.failed == tally.misdelivered,
            "{tally:?}"
        );
    }

    #[test]
    fn refusals_are_counted() {
        for mode in [Mode::KeepAlive, Mode::ConnectEach, Mode::Http2(2)] {
            let load = Load::start(crate::port::free_address(), mode, 1);
            load.goes_on(3);
            let tally = load.stop();
            assert!(tally.good == 0 && tally.failed >= 3, "{mode:?}: {tally:?}");
            assert_eq!(tally.refused, tally.failed, "{mode:?}: {tally:?}");
        }
    }
}

//! The load that the demo drives: requests at fixed moments whether or not the
//! earlier ones were answered (open loop), each answer checked to the byte.
//! Owns what is sent and what counts as lost; how it goes over the wire is
//! `http1` and `http2`.
//!
//! **Invariant:** every request that was sent ends as answered or as lost.

mod http1;
mod http2;
mod lane;

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::board::Board;
use super::programs::Service;
pub use http1::Http1;
pub use lane::Lane;

/// No answer of the demo's programs, nor a page of metrics, is longer; a longer one is cut and so lost.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// A request without its answer after this is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The timer is this coarse: what it adds to a latency is not the proxy's.
const TIMER_SLACK: Duration = Duration::from_millis(2);
/// Requests of one lane under way; the next is lost at once (at 300 a second it takes a stall of seconds).
const IN_FLIGHT_MAX: usize = 2048;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// With the trailers among them.
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Who answered: a service and its version.
pub type Version = (Service, u32);

/// Why a request counts as lost.
#[derive(Debug, PartialEq, Eq)]
pub struct Loss(pub String);

impl Loss {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// An error with its causes, on one line.
    fn broken(what: &str, error: &(dyn Error + 'static)) -> Self {
        let mut text = format!("{what}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Self(text)
    }
}

/// No code panics while it holds one of our locks, and what it guards is whole at any moment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tasks that drive a client's connections; they end with it.
#[derive(Debug, Default)]
struct Connections(Mutex<JoinSet<()>>);

impl Connections {
    /// Drives one more. What goes wrong, the request that it goes wrong for is told.
    fn drive<E>(&self, connection: impl Future<Output = Result<(), E>> + Send + 'static) {
        let mut tasks = locked(&self.0);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let _told = connection.await;
        });
    }
}

/// Drives the lanes, `rate` requests a second in all, until `stop` says true, and waits for the last answers.
pub async fn drive(lanes: Vec<Lane>, rate: f64, board: Arc<Board>, stop: watch::Receiver<bool>) {
    let shares: f64 = lanes.iter().map(|lane| lane.share()).sum();
    let numbers = Arc::new(AtomicU64::new(1));
    let mut tasks = JoinSet::new();
    for (index, lane) in lanes.into_iter().enumerate() {
        let ticker = Ticker {
            index,
            period: Duration::from_secs_f64(shares / (lane.share() * rate)),
            lane: Arc::new(lane),
            numbers: Arc::clone(&numbers),
            board: Arc::clone(&board),
        };
        tasks.spawn(ticker.run(stop.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

/// Sends one lane's requests at their moments.
struct Ticker {
    index: usize,
    period: Duration,
    lane: Arc<Lane>,
    /// Of all lanes, so that each request has a number of its own, which its answer must repeat.
    numbers: Arc<AtomicU64>,
    board: Arc<Board>,
}

impl Ticker {
    async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut ticks = interval(self.period);
        // A late tick is made up for: the load does not wait for the one who is measured.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut under_way: JoinSet<()> = JoinSet::new();
        loop {
            tokio::select! {
                due = ticks.tick() => self.send(due, &mut under_way),
                Some(_) = under_way.join_next() => {}
                // An error: whoever would say stop is gone.
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        while under_way.join_next().await.is_some() {}
    }

    fn send(&self, due: Instant, under_way: &mut JoinSet<()>) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (index, board, lane) = (self.index, Arc::clone(&self.board), Arc::clone(&self.lane));
        board.sent(index);
        if under_way.len() >= IN_FLIGHT_MAX {
            let why = format!("{IN_FLIGHT_MAX} requests already wait for their answers");
            board.lost(index, number, &Loss::new(why));
            return;
        }
        // From the moment it was due, not from when this program came to it.
        let begun = if due.elapsed() > TIMER_SLACK {
            due
        } else {
            Instant::now()
        };
        under_way.spawn(async move {
            let outcome = timeout(ANSWER_TIMEOUT, lane.request(number)).await;
            match outcome {
                Ok(Ok(by)) => board.answered(index, begun.elapsed(), &by),
                Ok(Err(loss)) => board.lost(index, number, &loss),
                Err(_) => board.lost(index, number, &Loss::new("no answer within 30 s")),
            }
        });
    }
}

//! Load that counts exactly: how many requests were sent, how many were answered rightly, and what
//! became of each of the others.
//!
//! Every request asks for a path of its own, and its answer must be 200 with that path as the body,
//! so that a lost, doubled or exchanged answer is seen. **Nothing is sent twice:** a request on a
//! connection that dies is a failed one, whatever a forgiving client would do. A connection that
//! the server has announced to close (`Connection: close`, GOAWAY) is replaced without loss.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{PATIENCE, eventually};

/// Failures that are told in words; the rest is only counted.
const TOLD_MAX: usize = 20;

/// How the load connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// HTTP/1.1, one connection a client for as long as the server keeps it.
    KeepAlive,
    /// HTTP/1.1, a connection for every request.
    ConnectEach,
    /// HTTP/2 by prior knowledge, so many streams at once on each connection.
    Http2(usize),
}

#[derive(Debug, Default)]
struct Count {
    sent: AtomicU64,
    good: AtomicU64,
    stopping: AtomicBool,
    failures: AtomicU64,
    told: Mutex<Vec<String>>,
}

/// What became of a load's requests.
#[derive(Debug)]
pub struct Tally {
    pub sent: u64,
    pub good: u64,
    pub failed: u64,
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
    /// Starts `clients` of them against `address`.
    #[must_use]
    pub fn start(address: SocketAddr, mode: Mode, clients: usize) -> Self {
        let count = Arc::new(Count::default());
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

    /// Waits until `more` requests beyond the present have been answered or have failed.
    #[track_caller]
    pub fn goes_on(&self, more: u64) {
        let ended = || self.good() + self.count.failures.load(Ordering::SeqCst);
        let aim = ended() + more;
        eventually("the load going on", || (ended() >= aim).then_some(()));
    }

    /// Lets what is under way end, and gives the count.
    #[must_use]
    pub fn stop(mut self) -> Tally {
        self.count.stopping.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the load does not panic");
        }
        Tally {
            sent: self.count.sent.load(Ordering::SeqCst),
            good: self.good(),
            failed: self.count.failures.load(Ordering::SeqCst),
            told: self
                .count
                .told
                .lock()
                .map(|told| told.clone())
                .unwrap_or_default(),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.count.stopping.store(true, Ordering::SeqCst);
    }
}

async fn run(address: SocketAddr, mode: Mode, clients: usize, count: &Arc<Count>) {
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let count = Arc::clone(count);
        tasks.spawn(async move {
            while !count.stopping.load(Ordering::SeqCst) {
                match mode {
                    Mode::KeepAlive => http1(address, usize::MAX, &count).await,
                    Mode::ConnectEach => http1(address, 1, &count).await,
                    Mode::Http2(streams) => http2(address, streams, &count).await,
                }
            }
        });
    }
    tasks.join_all().await;
}

impl Count {
    /// A request begins: its path.
    fn begin(&self) -> String {
        format!("/load/{}", self.sent.fetch_add(1, Ordering::SeqCst))
    }

    fn end(&self, path: &str, outcome: Result<(), String>) {
        let Err(why) = outcome else {
            self.good.fetch_add(1, Ordering::SeqCst);
            return;
        };
        self.failures.fetch_add(1, Ordering::SeqCst);
        if let Ok(mut told) = self.told.lock()
            && told.len() < TOLD_MAX
        {
            told.push(format!("{path}: {why}"));
        }
    }
}

/// One HTTP/1.1 connection's life.
async fn http1(address: SocketAddr, requests: usize, count: &Count) {
    let mut stream = None;
    for _ in 0..requests {
        if count.stopping.load(Ordering::SeqCst) {
            return;
        }
        let path = count.begin();
        let outcome = timeout(
            PATIENCE,
            http1_request(address, &mut stream, &path, requests == 1),
        );
        let outcome = outcome
            .await
            .unwrap_or_else(|_| Err("timed out".to_owned()));
        let keep = outcome.clone().unwrap_or(false);
        count.end(&path, outcome.map(drop));
        if !keep {
            return;
        }
    }
}

/// Gives whether the server keeps the connection.
async fn http1_request(
    address: SocketAddr,
    kept: &mut Option<TcpStream>,
    path: &str,
    last: bool,
) -> Result<bool, String> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let new = TcpStream::connect(address).await;
            let new = new.map_err(|error| format!("refused: {error}"))?;
            let _ = new.set_nodelay(true);
            kept.insert(new)
        }
    };
    let close = if last { "Connection: close\r\n" } else { "" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: load\r\n{close}\r\n");
    let sent = stream.write_all(request.as_bytes()).await;
    sent.map_err(|error| format!("sending: {error}"))?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let count = stream.read_buf(&mut buffer).await;
        let count = count.map_err(|error| format!("reading: {error}"))?;
        if let Some((head, body)) = whole(&buffer) {
            if !head.starts_with("HTTP/1.1 200") || body != path {
                return Err(format!("{head:?} {body:?}"));
            }
            return Ok(!head.to_lowercase().contains("connection: close"));
        }
        if count == 0 {
            let seen = String::from_utf8_lossy(&buffer);
            return Err(format!("closed before the answer was whole: {seen:?}"));
        }
    }
}

/// Head and body of an answer with a Content-Length, once all of it is there.
fn whole(buffer: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(buffer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length: usize = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    })?;
    (body.len() >= length).then(|| (head.to_owned(), body.to_owned()))
}

/// One HTTP/2 connection's life.
async fn http2(address: SocketAddr, streams: usize, count: &Arc<Count>) {
    let connected = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| format!("refused: {error}"))?;
        let _ = stream.set_nodelay(true);
        let handshake = h2::client::handshake(stream).await;
        handshake.map_err(|error| format!("handshake: {error}"))
    };
    let connected = timeout(PATIENCE, connected).await;
    let (sender, connection) = match connected.unwrap_or_else(|_| Err("timed out".to_owned())) {
        Ok(connected) => connected,
        Err(why) => {
            let path = count.begin();
            return count.end(&path, Err(why));
        }
    };
    let driver = tokio::spawn(connection);
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let (sender, count) = (sender.clone(), Arc::clone(count));
        tasks.spawn(async move {
            // An error here is the server's GOAWAY: nothing was sent.
            let mut next = sender;
            while !count.stopping.load(Ordering::SeqCst) {
                let Ok(mut ready) = next.ready().await else {
                    return;
                };
                let path = count.begin();
                let outcome = timeout(PATIENCE, http2_request(&mut ready, &path)).await;
                let outcome = outcome.unwrap_or_else(|_| Err("timed out".to_owned()));
                let failed = outcome.is_err();
                count.end(&path, outcome);
                if failed {
                    return;
                }
                next = ready;
            }
        });
    }
    drop(sender);
    tasks.join_all().await;
    driver.abort();
}

async fn http2_request(
    sender: &mut h2::client::SendRequest<Bytes>,
    path: &str,
) -> Result<(), String> {
    let request = http::Request::get(format!("http://load{path}"))
        .body(())
        .map_err(|error| error.to_string())?;
    let sent = sender.send_request(request, true);
    let (response, _) = sent.map_err(|error| format!("sending: {error}"))?;
    let response = response.await.map_err(|error| format!("head: {error}"))?;
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| format!("body: {error}"))?;
        let _ = body.flow_control().release_capacity(data.len());
        text.extend_from_slice(&data);
    }
    if status == 200 && text == path.as_bytes() {
        return Ok(());
    }
    Err(format!("{status} {:?}", String::from_utf8_lossy(&text)))
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
    fn refusals_are_counted() {
        for mode in [Mode::KeepAlive, Mode::ConnectEach, Mode::Http2(2)] {
            let load = Load::start(crate::port::free_address(), mode, 1);
            load.goes_on(3);
            let tally = load.stop();
            assert!(tally.good == 0 && tally.failed >= 3, "{mode:?}: {tally:?}");
        }
    }
}

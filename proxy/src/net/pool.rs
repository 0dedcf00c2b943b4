//! The upstream connections that one worker holds: idle HTTP/1.1 connections,
//! most recently used first, and HTTP/2 connections shared by their streams.
//!
//! Nothing watches an idle connection: it is looked at when it is taken and by
//! a sweep once a second. **Invariant:** a connection serves only requests for
//! the service (`pool_id`) and the address that it was opened for.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::http::http1::Http1;
use crate::logic::limit::{Circuit, Permit};
use crate::telemetry::metrics::PoolGauge;

/// How long after its last use a connection is trusted with a request that
/// cannot be retried. Shorter than the keep-alive timeout of any common server
/// (gunicorn: 2 s; Node.js, uvicorn: 5 s).
pub const FRESH: Duration = Duration::from_secs(1);

/// What a connection may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub pool_id: u64,
    pub address: SocketAddr,
    /// Connections that say something of one client (a PROXY protocol header,
    /// a server name taken from the request) serve only the like: a hash of it.
    pub discriminant: u64,
}

/// An HTTP/1.1 connection with its place in the service's limit.
#[derive(Debug)]
pub struct PooledHttp1 {
    pub connection: Box<Http1>,
    pub key: Key,
    pub reused: bool,
    pub permit: Permit<Arc<Circuit>>,
}

/// A shared HTTP/2 connection. Its task owns the socket and the permit.
#[derive(Clone, Debug)]
pub struct SharedHttp2 {
    pub send: SendRequest<Bytes>,
    pub streams: Arc<AtomicUsize>,
    /// GOAWAY came or the connection failed: no new streams.
    pub leaving: Arc<AtomicBool>,
}

impl SharedHttp2 {
    /// h2 itself knows of a GOAWAY before the connection has ended.
    fn is_open(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.leaving.load(Ordering::Relaxed)
            && !matches!(self.send.poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Room for another stream, by our limit and by the server's.
    fn has_room(&self, streams_max: usize) -> bool {
        let allowed = self.send.current_max_send_streams().min(streams_max).max(1);
        self.streams.load(Ordering::Relaxed) < allowed
    }
}

/// A stream's place on a shared connection.
#[derive(Debug)]
pub struct StreamSlot(Arc<AtomicUsize>);

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Idle {
    pooled: PooledHttp1,
    since: Instant,
    until: Instant,
}

#[derive(Debug, Default)]
struct Http2Entry {
    connections: Vec<(SharedHttp2, Instant)>,
    dialling: Option<Arc<Notify>>,
}

impl Http2Entry {
    fn stream(&mut self, streams_max: usize) -> Option<(SharedHttp2, StreamSlot)> {
        self.connections.retain_mut(|(shared, _)| shared.is_open());
        let (shared, used) = self
            .connections
            .iter_mut()
            .find(|(shared, _)| shared.has_room(streams_max))?;
        shared.streams.fetch_add(1, Ordering::Relaxed);
        *used = Instant::now();
        Some((shared.clone(), StreamSlot(Arc::clone(&shared.streams))))
    }
}

/// What to do for an HTTP/2 stream.
#[derive(Debug)]
pub enum Http2Turn {
    Use(SharedHttp2, StreamSlot),
    /// Somebody is connecting: wait, then ask again.
    Wait(Arc<Notify>),
    /// Nobody is: connect, and tell the others by dropping the turn.
    Dial(Dialling),
}

/// The right to open an HTTP/2 connection for a key.
#[derive(Debug)]
pub struct Dialling {
    pool: Arc<Pool>,
    key: Key,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if let Some(entry) = self.pool.http2.lock().get_mut(&self.key)
            && let Some(notify) = entry.dialling.take()
        {
            notify.notify_waiters();
        }
    }
}

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<Map<Key, Vec<Idle>>>,
    http2: Mutex<Map<Key, Http2Entry>>,
    /// Requests of a service at its connection limit, first come first served.
    waiting: Mutex<Map<u64, VecDeque<oneshot::Sender<PooledHttp1>>>>,
}

impl Pool {
    /// The idle connection used last that is still alive. `fresh`: only one
    /// used a moment ago. Servers close idle connections whenever they like,
    /// and a request that must not be sent twice cannot be retried when it
    /// meets that close on the wire.
    pub fn take(&self, key: &Key, fresh: bool) -> Option<PooledHttp1> {
        let mut idle = self.idle.lock();
        let connections = idle.get_mut(key)?;
        if fresh && connections.last()?.since.elapsed() > FRESH {
            return None;
        }
        while let Some(Idle { mut pooled, .. }) = connections.pop() {
            if pooled.connection.is_quiet() {
                pooled.reused = true;
                return Some(pooled);
            }
        }
        None
    }

    /// Keeps a connection for the next request, or hands it to one that waits.
    pub fn put(&self, mut pooled: PooledHttp1, now: Instant, idle_for: Duration) {
        if let Some(waiting) = self.waiting.lock().get_mut(&pooled.key.pool_id) {
            while let Some(waiter) = waiting.pop_front() {
                pooled.reused = true;
                match waiter.send(pooled) {
                    Ok(()) => return,
                    Err(back) => pooled = back,
                }
            }
        }
        if pooled.permit.is_wanted() {
            // A request in another worker waits for this place.
            return;
        }
        let idle = Idle {
            since: now,
            until: now + idle_for,
            pooled,
        };
        self.idle
            .lock()
            .entry(idle.pooled.key)
            .or_default()
            .push(idle);
    }

    /// Joins the queue for the next connection of a service that comes free.
    pub fn wait(&self, pool_id: u64) -> oneshot::Receiver<PooledHttp1> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        let queue = waiting.entry(pool_id).or_default();
        queue.retain(|waiter| !waiter.is_closed());
        queue.push_back(sender);
        receiver
    }

    /// Closes one idle connection of the service, so that another endpoint can
    /// have its place.
    pub fn evict(&self, pool_id: u64) -> bool {
        let mut idle = self.idle.lock();
        idle.iter_mut()
            .filter(|(key, connections)| key.pool_id == pool_id && !connections.is_empty())
            .any(|(_, connections)| {
                connections.remove(0);
                true
            })
    }

    /// A stream on a shared connection with fewer than `streams_max`.
    pub fn stream(&self, key: &Key, streams_max: usize) -> Option<(SharedHttp2, StreamSlot)> {
        self.http2.lock().get_mut(key)?.stream(streams_max)
    }

    /// The same, or what to do as there is none.
    pub fn http2(self: &Arc<Self>, key: &Key, streams_max: usize) -> Http2Turn {
        let mut http2 = self.http2.lock();
        let entry = http2.entry(*key).or_default();
        if let Some((shared, slot)) = entry.stream(streams_max) {
            return Http2Turn::Use(shared, slot);
        }
        match &entry.dialling {
            Some(notify) => Http2Turn::Wait(Arc::clone(notify)),
            None => {
                entry.dialling = Some(Arc::new(Notify::new()));
                Http2Turn::Dial(Dialling {
                    pool: Arc::clone(self),
                    key: *key,
                })
            }
        }
    }

    /// Shares a new connection; the caller has its first stream.
    pub fn share(&self, key: Key, shared: SharedHttp2) -> StreamSlot {
        shared.streams.fetch_add(1, Ordering::Relaxed);
        let slot = StreamSlot(Arc::clone(&shared.streams));
        self.http2
            .lock()
            .entry(key)
            .or_default()
            .connections
            .push((shared, Instant::now()));
        slot
    }

    /// Closes what has been idle too long or was closed by the peer, and what
    /// nobody will use again (`idle_timeout` says `None`).
    pub fn sweep(&self, idle_timeout: impl Fn(&Key) -> Option<Duration>) {
        let now = Instant::now();
        self.idle.lock().retain(|key, connections| {
            let known = idle_timeout(key).is_some();
            connections.retain_mut(|idle| {
                idle.pooled.connection.release_buffers();
                known
                    && idle.until > now
                    && !idle.pooled.permit.is_wanted()
                    && idle.pooled.connection.is_quiet()
            });
            !connections.is_empty()
        });
        self.http2.lock().retain(|key, entry| {
            let timeout = idle_timeout(key);
            entry.connections.retain(|(shared, used)| {
                let busy = shared.streams.load(Ordering::Relaxed) > 0;
                let fresh = timeout.is_some_and(|timeout| *used + timeout > now);
                !shared.leaving.load(Ordering::Relaxed) && (busy || fresh)
            });
            !entry.connections.is_empty() || entry.dialling.is_some()
        });
        self.waiting.lock().retain(|_, queue| {
            queue.retain(|waiter| !waiter.is_closed());
            !queue.is_empty()
        });
    }

    /// Closes idle connections, the longest idle first; for when descriptors run out.
    pub fn shed(&self, count: usize) -> usize {
        let mut idle = self.idle.lock();
        let mut closed = 0;
        while closed < count {
            let oldest = idle
                .iter_mut()
                .filter_map(|(_, connections)| Some((connections.first()?.until, connections)))
                .min_by_key(|(until, _)| *until);
            let Some((_, connections)) = oldest else {
                break;
            };
            connections.remove(0);
            closed += 1;
        }
        closed
    }

    pub fn count(&self) -> PoolGauge {
        PoolGauge {
            idle: self.idle.lock().values().map(Vec::len).sum(),
            http2: self
                .http2
                .lock()
                .values()
                .map(|entry| entry.connections.len())
                .sum(),
        }
    }
}

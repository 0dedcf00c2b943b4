//! An HTTP/1.1 upstream whose every byte a test decides, and which keeps what it was sent.
//!
//! It runs on blocking threads: one a connection. A handler gets each request as it came and the
//! stream to answer on. Stopping it closes the port and every connection, as a crash would.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A request as it arrived.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Start line and fields, byte for byte, without the blank line.
    pub head: String,
    pub body: Vec<u8>,
    /// Trailer lines of a chunked body.
    pub trailers: String,
    /// Which connection of this upstream it came on, counted from 0.
    pub connection: usize,
}

impl Seen {
    #[must_use]
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    #[must_use]
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// All values of a field, by its lower-case name.
    #[must_use]
    pub fn headers(&self, name: &str) -> Vec<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }

    /// The only value of a field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.headers(name).as_slice() {
            [value] => Some(value),
            _ => None,
        }
    }
}

/// What becomes of the connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Keep,
    Close,
    /// Closed by a reset rather than a FIN.
    Reset,
}

type Handler = dyn Fn(&Seen, &mut TcpStream) -> Then + Send + Sync;

struct State {
    seen: Mutex<Vec<Seen>>,
    accepted: AtomicUsize,
    stopping: AtomicBool,
    open: Mutex<HashMap<usize, TcpStream>>,
}

pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Answers by `handler` on a port of its own.
    #[must_use]
    pub fn start(handler: impl Fn(&Seen, &mut TcpStream) -> Then + Send + Sync + 'static) -> Self {
        Self::accepting(crate::port::listener(), handler)
    }

    #[must_use]
    pub fn start_at(
        address: SocketAddr,
        handler: impl Fn(&Seen, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address)
            .unwrap_or_else(|error| panic!("{address} cannot be bound: {error}"));
        Self::accepting(listener, handler)
    }

    fn accepting(
        listener: TcpListener,
        handler: impl Fn(&Seen, &mut TcpStream) -> Then + Send + Sync + 'static,
    ) -> Self {
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let state = Arc::new(State {
            seen: Mutex::default(),
            accepted: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let handler: Arc<Handler> = Arc::new(handler);
        let accepting = thread::spawn({
            let state = Arc::clone(&state);
            move || accept(&listener, &state, &handler)
        });
        Self {
            address,
            state,
            accepting: Some(accepting),
        }
    }

    /// Answers 200 with its name and the request's target and body.
    #[must_use]
    pub fn echo(name: &'static str) -> Self {
        Self::start(move |seen, stream| echo(name, seen, stream))
    }

    #[must_use]
    pub fn echo_at(address: SocketAddr, name: &'static str) -> Self {
        Self::start_at(address, move |seen, stream| echo(name, seen, stream))
    }

    /// Answers every request with these bytes.
    #[must_use]
    pub fn fixed(answer: &'static str, then: Then) -> Self {
        Self::start(move |_, stream| {
            let _ = stream.write_all(answer.as_bytes());
            then
        })
    }

    /// Every request so far, in order of arrival.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.state.seen).clone()
    }

    #[must_use]
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("a request arrived")
    }

    #[must_use]
    pub fn count(&self) -> usize {
        locked(&self.state.seen).len()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn open(&self) -> usize {
        locked(&self.state.open).len()
    }

    /// Closes every connection, keeping the port.
    pub fn drop_connections(&self) {
        for (_, stream) in locked(&self.state.open).drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends it: the port refuses from here on, every connection is closed.
    pub fn stop(&mut self) {
        self.state.stopping.store(true, Ordering::SeqCst);
        let Some(accepting) = self.accepting.take() else {
            return;
        };
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        let _ = accepting.join();
        self.drop_connections();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn echo(name: &str, seen: &Seen, stream: &mut TcpStream) -> Then {
    let mut body = seen.target().as_bytes().to_vec();
    body.extend_from_slice(&seen.body);
    answer(stream, 200, &[&format!("x-upstream: {name}")], &body);
    Then::Keep
}

/// Writes a whole answer.
pub fn answer(stream: &mut TcpStream, status: u16, headers: &[&str], body: &[u8]) {
    let mut head = format!(
        "HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n",
        body.len()
    );
    for line in headers {
        head += &format!("{line}\r\n");
    }
    head += "\r\n";
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    let _ = stream.write_all(&bytes);
}

fn accept(listener: &TcpListener, state: &Arc<State>, handler: &Arc<Handler>) {
    for stream in listener.incoming() {
        if state.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let connection = state.accepted.fetch_add(1, Ordering::SeqCst);
        if let Ok(clone) = stream.try_clone() {
            locked(&state.open).insert(connection, clone);
        }
        let (state, handler) = (Arc::clone(state), Arc::clone(handler));
        thread::spawn(move || {
            let _ = stream.set_nodelay(true);
            let mut reader = Reader {
                stream,
                buffer: Vec::new(),
            };
            let then = converse(&mut reader, connection, &state, &*handler);
            let kept = locked(&state.open).remove(&connection);
            if then == Then::Reset {
                reset(&reader.stream);
            } else if let Some(kept) = kept {
                let _ = kept.shutdown(Shutdown::Both);
            }
        });
    }
}

fn converse(reader: &mut Reader, connection: usize, state: &State, handler: &Handler) -> Then {
    loop {
        let Ok(mut seen) = reader.request() else {
            return Then::Close;
        };
        seen.connection = connection;
        locked(&state.seen).push(seen.clone());
        let then = handler(&seen, &mut reader.stream);
        if then != Then::Keep {
            return then;
        }
    }
}

/// Makes the close that follows a reset: what was received and never read does that.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Reader {
    fn request(&mut self) -> io::Result<Seen> {
        let head = String::from_utf8_lossy(&self.until(b"\r\n\r\n")?).into_owned();
        let mut seen = Seen {
            head,
            ..Seen::default()
        };
        if seen.header("expect").is_some() {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if seen.header("transfer-encoding").is_some() {
            self.chunks(&mut seen)?;
        } else if let Some(length) = seen.header("content-length") {
            let length = length.parse().map_err(|_| io::ErrorKind::InvalidData)?;
            seen.body = self.take(length)?;
        }
        Ok(seen)
    }

    fn chunks(&mut self, seen: &mut Seen) -> io::Result<()> {
        loop {
            let line = String::from_utf8_lossy(&self.until(b"\r\n")?).into_owned();
            let size = usize::from_str_radix(&line, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            if size == 0 {
                break;
            }
            seen.body.extend(self.take(size)?);
            self.take(2)?;
        }
        loop {
            let line = self.until(b"\r\n")?;
            if line.is_empty() {
                return Ok(());
            }
            seen.trailers += &String::from_utf8_lossy(&line);
            seen.trailers.push('\n');
        }
    }

    fn until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|some| some == end) {
                let taken = self.take(at)?;
                self.take(end.len())?;
                return Ok(taken);
            }
            self.more()?;
        }
    }

    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.more()?;
        }
        let rest = self.buffer.split_off(count);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn more(&mut self) -> io::Result<()> {
        let mut room = [0; 64 * 1024];
        match self.stream.read(&mut room)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.buffer.extend_from_slice(&room[..count]);
                Ok(())
            }
        }
    }
}

/// A server of opaque bytes: `handler` gets each connection on a thread of its own. It lives as
/// long as the test process.
#[must_use]
pub fn opaque(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = crate::port::listener();
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    let handler = Arc::new(handler);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handler = Arc::clone(&handler);
            thread::spawn(move || handler(stream));
        }
    });
    address
}

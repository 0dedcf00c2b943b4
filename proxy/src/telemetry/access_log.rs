//! One line a request, JSON or text, written by a thread of its own.
//!
//! A worker formats its line into a scratch buffer of its own and appends it
//! to a bounded queue of bytes; it never waits for the disk. At the limit the
//! line is dropped and counted. **Invariant:** nothing a client sends can end
//! a line or forge a field: control characters and quotes are escaped.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use weft_config::snapshot::{self, AccessLogFormat};

use super::timestamp::write_rfc3339;
use crate::logic::cause::Cause;

/// Bytes waiting for the disk; a line beyond is dropped and counted.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The writer wakes for this much at once, or after [`BATCH_DELAY`].
const BATCH_BYTES: usize = 64 * 1024;
const BATCH_DELAY: Duration = Duration::from_millis(20);
/// A buffer that grew beyond this in a burst is given back.
const KEEP_BYTES: usize = 256 * 1024;
/// How often a failing disk is mentioned in the log.
const ERROR_REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// What is told about one request or opaque connection. Empty text and `None`
/// are left out.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// When the request began.
    pub time: SystemTime,
    pub listener: &'a str,
    pub client: SocketAddr,
    pub method: &'a str,
    pub authority: &'a str,
    /// With its query.
    pub path: &'a str,
    /// HTTP/1.0, HTTP/1.1, HTTP/2, TCP or TLS.
    pub protocol: &'static str,
    /// 0: none.
    pub status: u16,
    pub cause: Cause,
    /// Detail of a rejection or failure.
    pub reason: &'a str,
    pub route: &'a str,
    pub rule: &'a str,
    pub service: &'a str,
    pub backend: Option<SocketAddr>,
    pub tries: u32,
    pub duration: Duration,
    /// From the last try's start to its answer's head.
    pub upstream: Option<Duration>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub request_id: &'a str,
    /// Downstream's TLS version.
    pub tls: &'static str,
    /// Who the client has proved to be, by mTLS between sidecars: a SPIFFE ID.
    pub peer: &'a str,
    /// The kind of probe that it was let in as, in plain text.
    pub probe: &'static str,
}

/// The access log of the process.
#[derive(Debug)]
pub struct AccessLog {
    /// [`AccessLogFormat`], for a check without a lock.
    format: AtomicU8,
    queue: Arc<Queue>,
    config: Mutex<Option<snapshot::AccessLog>>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    /// The writer waits here for lines.
    lines: Condvar,
    /// `flush` waits here for the writer.
    written: Condvar,
    dropped: AtomicU64,
    write_errors: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    line_count: u64,
    /// Taken by the writer at its next turn.
    target: Option<Target>,
    reopen: bool,
    /// The writer is at work on what it took.
    writing: bool,
    writer_runs: bool,
}

#[derive(Debug)]
enum Target {
    Stdout,
    File(PathBuf, File),
}

const OFF: u8 = 0;
const JSON: u8 = 1;
const TEXT: u8 = 2;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Default for AccessLog {
    fn default() -> Self {
        Self {
            format: AtomicU8::new(OFF),
            queue: Arc::default(),
            config: Mutex::new(None),
        }
    }
}

impl AccessLog {
    /// Checks that the target can be opened, without changing anything.
    pub fn check(config: &snapshot::AccessLog) -> Result<(), io::Error> {
        open(config).map(drop)
    }

    /// Applies a new configuration; on an error the old one stays.
    pub fn configure(&self, config: &snapshot::AccessLog) -> Result<(), io::Error> {
        let mut current = self.config.lock();
        if current.as_ref() == Some(config) {
            return Ok(());
        }
        let format = match config.format {
            AccessLogFormat::Off => OFF,
            AccessLogFormat::Json => JSON,
            AccessLogFormat::Text => TEXT,
        };
        if format != OFF {
            let target = open(config)?;
            let mut state = self.queue.state.lock();
            state.target = Some(target);
            if !state.writer_runs {
                let queue = Arc::clone(&self.queue);
                std::thread::Builder::new()
                    .name("access-log".to_owned())
                    .spawn(move || write_lines(&queue))?;
                state.writer_runs = true;
            }
        }
        self.format.store(format, Ordering::Relaxed);
        *current = Some(config.clone());
        Ok(())
    }

    /// Opens the file anew (after logrotate has moved it).
    pub fn reopen(&self) {
        self.queue.state.lock().reopen = true;
        self.queue.lines.notify_one();
    }

    pub fn is_on(&self) -> bool {
        self.format.load(Ordering::Relaxed) != OFF
    }

    /// Queues one line; never waits for the disk.
    pub fn record(&self, entry: &Entry<'_>) {
        let format = self.format.load(Ordering::Relaxed);
        if format == OFF {
            return;
        }
        SCRATCH.with_borrow_mut(|line| {
            line.clear();
            match format {
                JSON => write_json(line, entry),
                _ => write_text(line, entry),
            }
            self.queue.push(line);
        });
    }

    /// Lines lost because the queue was full or the disk failed.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }

    pub fn write_errors(&self) -> u64 {
        self.queue.write_errors.load(Ordering::Relaxed)
    }

    /// Waits until everything queued has been written, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.queue.state.lock();
        while state.writer_runs && (state.writing || !state.bytes.is_empty()) {
            self.queue.lines.notify_one();
            if self
                .queue
                .written
                .wait_until(&mut state, deadline)
                .timed_out()
            {
                return;
            }
        }
    }
}

impl Queue {
    fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        if state.bytes.len() + line.len() > QUEUE_BYTES_MAX {
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let before = state.bytes.len();
        state.bytes.extend_from_slice(line);
        state.line_count += 1;
        let after = state.bytes.len();
        drop(state);
        if before == 0 || (before < BATCH_BYTES && after >= BATCH_BYTES) {
            self.lines.notify_one();
        }
    }
}

fn open(config: &snapshot::AccessLog) -> io::Result<Target> {
    match (&config.path, config.format) {
        (None, _) | (_, AccessLogFormat::Off) => Ok(Target::Stdout),
        (Some(path), _) => Ok(Target::File(path.clone(), open_file(path)?)),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// The writer's loop; ends with the process.
fn write_lines(queue: &Queue) {
    let mut target = Target::Stdout;
    let mut batch = Vec::new();
    let mut failures = Failures::default();
    loop {
        let mut state = queue.state.lock();
        state.writing = false;
        queue.written.notify_all();
        while state.bytes.is_empty() && state.target.is_none() && !state.reopen {
            queue.lines.wait(&mut state);
        }
        if state.bytes.len() < BATCH_BYTES && state.target.is_none() && !state.reopen {
            queue.lines.wait_for(&mut state, BATCH_DELAY);
        }
        std::mem::swap(&mut state.bytes, &mut batch);
        let lines = std::mem::take(&mut state.line_count);
        let new_target = state.target.take();
        let reopen = std::mem::take(&mut state.reopen);
        state.writing = true;
        drop(state);
        if let Some(new_target) = new_target {
            target = new_target;
        }
        if let Err(error) = target.write(&batch) {
            queue.write_errors.fetch_add(1, Ordering::Relaxed);
            queue.dropped.fetch_add(lines, Ordering::Relaxed);
            failures.report("written", &error);
        }
        batch.clear();
        batch.shrink_to(KEEP_BYTES);
        if let (true, Target::File(path, file)) = (reopen, &mut target) {
            match open_file(path) {
                Ok(new) => *file = new,
                Err(error) => failures.report("reopened", &error),
            }
        }
    }
}

impl Target {
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(batch)?;
                out.flush()
            }
            Self::File(_, file) => file.write_all(batch),
        }
    }
}

/// Says at most once a minute that the access log is failing.
#[derive(Default)]
struct Failures {
    last: Option<Instant>,
}

impl Failures {
    fn report(&mut self, what: &str, error: &io::Error) {
        let now = Instant::now();
        if self
            .last
            .is_none_or(|last| now.duration_since(last) >= ERROR_REPORT_INTERVAL)
        {
            self.last = Some(now);
            tracing::error!(
                %error,
                "the access log cannot be {what}; its lines are lost, traffic goes on \
                 (weft_access_log_lines_dropped_total counts them)"
            );
        }
    }
}

/// Calls `field(name, value)` for every field that is there, in order.
fn for_each_field<'a>(entry: &'a Entry<'a>, mut field: impl FnMut(&'static str, Value<'a>)) {
    use Value::{Address, Number, Text};
    field("listener", Text(entry.listener));
    field("client", Address(entry.client));
    let optional = |text: &'a str| (!text.is_empty()).then_some(Text(text));
    let status = (entry.status != 0).then_some(Number(u64::from(entry.status)));
    for (name, value) in [
        ("method", optional(entry.method)),
        ("authority", optional(entry.authority)),
        ("path", optional(entry.path)),
        ("protocol", optional(entry.protocol)),
        ("status", status),
        ("flag", Some(Text(entry.cause.label()))),
        ("reason", optional(entry.reason)),
        ("route", optional(entry.route)),
        ("rule", optional(entry.rule)),
        ("service", optional(entry.service)),
        ("backend", entry.backend.map(Address)),
        ("tries", Some(Number(u64::from(entry.tries)))),
        ("duration_us", Some(Number(micros(entry.duration)))),
        (
            "upstream_us",
            entry.upstream.map(|time| Number(micros(time))),
        ),
        ("bytes_in", Some(Number(entry.bytes_in))),
        ("bytes_out", Some(Number(entry.bytes_out))),
        ("request_id", optional(entry.request_id)),
        ("tls", optional(entry.tls)),
        ("peer", optional(entry.peer)),
        ("probe", optional(entry.probe)),
    ] {
        if let Some(value) = value {
            field(name, value);
        }
    }
}

enum Value<'a> {
    Text(&'a str),
    Number(u64),
    Address(SocketAddr),
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

// Writing to a Vec cannot fail, so the results below are dropped.

fn write_json(line: &mut Vec<u8>, entry: &Entry<'_>) {
    line.extend_from_slice(b"{\"time\":\"");
    write_rfc3339(line, entry.time);
    line.push(b'"');
    for_each_field(entry, |name, value| {
        let _ = write!(line, ",\"{name}\":");
        let _ = match value {
            Value::Text(text) => serde_json::to_writer(&mut *line, text).map_err(io::Error::from),
            Value::Number(number) => write!(line, "{number}"),
            Value::Address(address) => write!(line, "\"{address}\""),
        };
    });
    line.extend_from_slice(b"}\n");
}

fn write_text(line: &mut Vec<u8>, entry: &Entry<'_>) {
    write_rfc3339(line, entry.time);
    for_each_field(entry, |name, value| {
        let _ = write!(line, " {name}=");
        let _ = match value {
            Value::Text(text) => {
                write_escaped(line, text);
                Ok(())
            }
            Value::Number(number) => write!(line, "{number}"),
            Value::Address(address) => write!(line, "{address}"),
        };
    });
    line.push(b'\n');
}

/// Bare when it is one plain word; else quoted, with `"`, `\` and control
/// characters (line ends above all) escaped.
fn write_escaped(line: &mut Vec<u8>, text: &str) {
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '\\';
    if text.chars().all(plain) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    line.push(b'"');
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(line, "\\{c}"),
            // U+2028 and U+2029 end a line for some readers.
            c if c.is_control() || c == '\u{2028}' || c == '\u{2029}' => {
                write!(line, "{}", c.escape_default())
            }
            c => write!(line, "{c}"),
        };
    }
    line.push(b'"');
}

#[cfg(test)]
mod tests;

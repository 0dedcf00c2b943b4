//! HTTP/1.1 on one epoll thread: closed loop (each connection has one request
//! under way), a new connection for each request, or open loop: arrivals by the
//! clock, whether or not earlier answers came, and latency from when a request
//! should have been sent, so that a stall is not hidden (no coordinated omission).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::tls::{HOST, Stream};
use super::{Clock, Edge, OnEdge, Outcome, Plan, STALL_TIMEOUT};
use crate::answer::Answer;
use crate::case::{Case, LARGE_BYTES, Mode, SMALL_BYTES};

const TIMER: Token = Token(usize::MAX);
const EVENTS_MAX: usize = 256;
const BUFFER_BYTES: usize = 64 * 1024;
/// An open loop further behind than this has failed.
const BACKLOG_MAX: Duration = Duration::from_secs(2);

/// The request of a case and the length of its answer.
pub fn request(case: Case) -> (Vec<u8>, usize) {
    let fields = format!("Host: {HOST}\r\nUser-Agent: hop\r\nAccept: */*\r\n");
    match case {
        Case::H1Large => (
            format!("GET /10k HTTP/1.1\r\n{fields}\r\n").into_bytes(),
            LARGE_BYTES,
        ),
        Case::H1Connect => (
            format!("GET /64 HTTP/1.1\r\n{fields}Connection: close\r\n\r\n").into_bytes(),
            SMALL_BYTES,
        ),
        Case::H1Post => {
            let head = format!(
                "POST /64 HTTP/1.1\r\n{fields}Content-Type: text/plain\r\nContent-Length: {LARGE_BYTES}\r\n\r\n"
            );
            let mut bytes = head.into_bytes();
            bytes.resize(bytes.len() + LARGE_BYTES, b'x');
            (bytes, SMALL_BYTES)
        }
        _ => (
            format!("GET /64 HTTP/1.1\r\n{fields}\r\n").into_bytes(),
            SMALL_BYTES,
        ),
    }
}

/// One connection and the request under way on it.
pub struct Slot {
    stream: Stream,
    /// Bytes of the request not sent yet.
    unsent: usize,
    answer: Answer,
    /// When the request was (to be) sent; `None`: nothing under way.
    started: Option<Instant>,
}

/// What an event did to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Waiting,
    /// The answer is complete.
    Done,
    /// The peer closed, with no request under way.
    Closed,
}

impl Slot {
    /// Connects and registers as `token`.
    pub fn connect(plan: &Plan, poll: &Poll, token: usize) -> Result<Self> {
        let mut tcp = TcpStream::connect(plan.addr)?;
        tcp.set_nodelay(true)?;
        poll.registry().register(
            &mut tcp,
            Token(token),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        let tls = (plan.case.mode() == Mode::Tls).then_some(&plan.tls);
        Ok(Self {
            stream: Stream::new(tcp, tls)?,
            unsent: 0,
            answer: Answer::default(),
            started: None,
        })
    }

    pub fn start(&mut self, request: &[u8], at: Instant) -> Result<()> {
        self.started = Some(at);
        self.unsent = request.len();
        self.flush(request)
    }

    pub fn started(&self) -> Option<Instant> {
        self.started
    }

    fn flush(&mut self, request: &[u8]) -> Result<()> {
        while self.unsent > 0 {
            match self.stream.write(&request[request.len() - self.unsent..]) {
                Ok(sent) => self.unsent -= sent,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error).context("sending a request"),
            }
        }
        // rustls may hold records that the socket did not take.
        if matches!(self.stream, Stream::Tls(_)) {
            match self.stream.flush() {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Err(error).context("sending a request");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends and reads what can be, up to the end of the answer.
    pub fn turn(
        &mut self,
        (request, body_bytes): (&[u8], usize),
        buffer: &mut [u8],
    ) -> Result<Progress> {
        self.flush(request)?;
        loop {
            match self.stream.read(buffer) {
                Ok(0) if self.started.is_none() => return Ok(Progress::Closed),
                Ok(0) => bail!("the connection ended before the answer did"),
                Ok(length) => {
                    ensure!(self.started.is_some(), "bytes without a request");
                    if self.answer.feed(&buffer[..length], body_bytes)? {
                        return Ok(Progress::Done);
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::NotConnected
                    ) =>
                {
                    return Ok(Progress::Waiting);
                }
                Err(error) => return Err(error).context("reading an answer"),
            }
        }
    }

    /// The request under way has ended; when it was started.
    pub fn finish(&mut self) -> Option<Instant> {
        self.started.take()
    }
}

/// Arrivals by the clock.
struct Arrivals {
    timer: OwnedFd,
    begin: Instant,
    interval: Duration,
    count: u32,
    /// Arrived, and every connection was busy.
    waiting: VecDeque<Instant>,
    free: Vec<usize>,
}

impl Arrivals {
    fn new(rate: u32, poll: &Poll) -> Result<Self> {
        let interval = Duration::from_secs(1) / rate;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        let every = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(interval.subsec_nanos().max(1)),
        };
        let times = Itimerspec {
            it_interval: every,
            it_value: every,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
        poll.registry()
            .register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let (waiting, free) = (VecDeque::new(), Vec::new());
        Ok(Self {
            timer,
            begin: Instant::now(),
            interval,
            count: 0,
            waiting,
            free,
        })
    }

    /// Everything that should have been sent by now joins the queue.
    fn advance(&mut self, now: Instant) -> Result<()> {
        let mut expirations = [0; 8];
        // Only to arm the edge again: the clock says how many there were.
        let _would_block = rustix::io::read(&self.timer, &mut expirations);
        while self.begin + self.interval * self.count <= now {
            self.waiting
                .push_back(self.begin + self.interval * self.count);
            self.count += 1;
        }
        if let Some(&oldest) = self.waiting.front() {
            ensure!(
                now - oldest < BACKLOG_MAX,
                "the subject does not sustain this rate ({} requests wait): lower --rate",
                self.waiting.len()
            );
        }
        Ok(())
    }
}

struct Engine<'a> {
    plan: &'a Plan,
    poll: Poll,
    slots: Vec<Slot>,
    request: Vec<u8>,
    body_bytes: usize,
    clock: Clock,
    outcome: Outcome,
    arrivals: Option<Arrivals>,
    last_answer: Instant,
}

pub fn run(plan: &Plan, on_edge: OnEdge<'_>) -> Result<Outcome> {
    let mut engine = Engine::new(plan, plan.connections)?;
    if plan.case == Case::H1OpenLoop {
        let mut arrivals = Arrivals::new(plan.rate, &engine.poll)?;
        arrivals.free = (0..plan.connections).collect();
        engine.arrivals = Some(arrivals);
    } else {
        engine.start_all()?;
    }
    engine.measure(on_edge)?;
    Ok(engine.outcome)
}

/// One request on one connection.
pub fn probe(plan: &Plan) -> Result<()> {
    let mut engine = Engine::new(plan, 1)?;
    engine.start_all()?;
    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut buffer = vec![0; BUFFER_BYTES];
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        engine
            .poll
            .poll(&mut events, Some(Duration::from_millis(50)))?;
        if engine.slots[0].turn((&engine.request, engine.body_bytes), &mut buffer)?
            == Progress::Done
        {
            return Ok(());
        }
    }
    bail!("no answer within a second");
}

impl<'a> Engine<'a> {
    fn new(plan: &'a Plan, connections: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let slots = (0..connections)
            .map(|token| Slot::connect(plan, &poll, token))
            .collect::<Result<_>>()?;
        let (request, body_bytes) = request(plan.case);
        let (clock, outcome, last_answer) = (Clock::new(plan), Outcome::new()?, Instant::now());
        Ok(Self {
            plan,
            poll,
            slots,
            request,
            body_bytes,
            clock,
            outcome,
            arrivals: None,
            last_answer,
        })
    }

    fn start_all(&mut self) -> Result<()> {
        let now = Instant::now();
        self.slots
            .iter_mut()
            .try_for_each(|slot| slot.start(&self.request, now))
    }

    fn measure(&mut self, on_edge: OnEdge<'_>) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            self.poll
                .poll(&mut events, Some(Duration::from_millis(50)))?;
            for event in &events {
                if event.token() == TIMER {
                    self.arrive()?;
                } else {
                    self.turn(event.token().0, &mut buffer)?;
                }
            }
            let now = Instant::now();
            ensure!(
                now - self.last_answer < STALL_TIMEOUT,
                "no answer for {STALL_TIMEOUT:?}"
            );
            if let Some(edge) = self.clock.tick(now) {
                on_edge(edge)?;
                if edge == Edge::End {
                    self.outcome.elapsed = self.clock.elapsed(now);
                    return Ok(());
                }
            }
        }
    }

    /// Sends what is due on the connections that are free.
    fn arrive(&mut self) -> Result<()> {
        let Some(arrivals) = &mut self.arrivals else {
            return Ok(());
        };
        arrivals.advance(Instant::now())?;
        while !arrivals.free.is_empty() {
            let Some(due) = arrivals.waiting.pop_front() else {
                return Ok(());
            };
            if let Some(index) = arrivals.free.pop() {
                self.slots[index].start(&self.request, due)?;
            }
        }
        Ok(())
    }

    fn turn(&mut self, index: usize, buffer: &mut [u8]) -> Result<()> {
        let slot = &mut self.slots[index];
        loop {
            match slot.turn((&self.request, self.body_bytes), buffer)? {
                Progress::Waiting => return Ok(()),
                Progress::Closed if self.plan.case == Case::H1Connect => {
                    *slot = Slot::connect(self.plan, &self.poll, index)?;
                    return slot.start(&self.request, Instant::now());
                }
                Progress::Closed => bail!("the subject closed a keep-alive connection"),
                Progress::Done => {}
            }
            let now = Instant::now();
            self.last_answer = now;
            if let Some(started) = slot.finish()
                && self.clock.measuring()
            {
                self.outcome.record(now - started);
            }
            if let Some(arrivals) = &mut self.arrivals {
                match arrivals.waiting.pop_front() {
                    Some(due) => slot.start(&self.request, due)?,
                    None => arrivals.free.push(index),
                }
                return Ok(());
            }
            if self.plan.case != Case::H1Connect {
                return slot.start(&self.request, now);
            }
            // Round again, to the end of the stream that `Connection: close` asked for.
        }
    }
}

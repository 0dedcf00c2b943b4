//! Moves bodies between two sides, with back-pressure: a piece is taken from
//! the source only when the sink has room, so that at most one waits.
//!
//! ```text
//! Open ──source ended──▶ Flushing ──sink flushed──▶ Done
//! ```

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::message::{Frame, Side, StreamError};

/// Which side a transfer failed on.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("reading failed")]
    Source(#[source] StreamError),
    #[error("writing failed")]
    Sink(#[source] StreamError),
    #[error("the body exceeds its limit")]
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Flushing,
    Done,
}

/// What a kept piece counts at least.
const PIECE_COST_MIN: usize = 512;

/// A request body kept for another try: refcounted pieces up to a limit. Past
/// the limit nothing is kept, and the request cannot be sent again.
#[derive(Debug)]
pub struct Replay {
    frames: Vec<Bytes>,
    trailers: Option<http::HeaderMap>,
    kept: usize,
    bytes_max: usize,
    overflowed: bool,
    /// The source has ended; everything there is has been seen.
    complete: bool,
    /// Pieces of `frames` that this try has sent.
    sent: usize,
    trailers_sent: bool,
}

impl Replay {
    pub fn new(bytes_max: usize, complete: bool) -> Self {
        Self {
            frames: Vec::new(),
            trailers: None,
            kept: 0,
            bytes_max,
            overflowed: false,
            complete,
            sent: 0,
            trailers_sent: false,
        }
    }

    /// Whether the body can be sent from its beginning.
    pub fn is_replayable(&self) -> bool {
        !self.overflowed
    }

    /// The whole body was received.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The same body from its beginning, if all of it was kept.
    pub fn copy(&self) -> Option<Self> {
        (self.complete && !self.overflowed).then(|| Self {
            frames: self.frames.clone(),
            trailers: self.trailers.clone(),
            kept: self.kept,
            bytes_max: self.bytes_max,
            overflowed: false,
            complete: true,
            sent: 0,
            trailers_sent: false,
        })
    }

    /// Begins another try.
    pub fn rewind(&mut self) {
        self.sent = 0;
        self.trailers_sent = false;
    }

    /// No longer needed: the request will not be sent again.
    pub fn discard(&mut self) {
        if self.sent == self.frames.len() {
            self.overflowed = true;
            self.frames = Vec::new();
            self.sent = 0;
        }
    }

    fn keep(&mut self, data: &Bytes) {
        if self.overflowed || data.is_empty() {
            return;
        }
        // A small piece holds on to the buffer that it is a slice of.
        let cost = data.len().max(PIECE_COST_MIN);
        if self.kept + cost > self.bytes_max {
            self.overflowed = true;
            self.frames = Vec::new();
            self.sent = 0;
            return;
        }
        self.kept += cost;
        self.frames.push(data.clone());
        self.sent = self.frames.len();
    }

    fn take_kept(&mut self) -> Option<Bytes> {
        let frame = self.frames.get(self.sent)?.clone();
        self.sent += 1;
        Some(frame)
    }

    /// Nothing is left to send of what was kept, and nothing more will come.
    fn is_spent(&self) -> bool {
        self.complete
            && self.sent == self.frames.len()
            && (self.trailers.is_none() || self.trailers_sent)
    }
}

/// One direction of an exchange.
#[derive(Debug)]
pub struct Transfer {
    state: State,
    /// Body bytes moved.
    pub bytes: u64,
    /// 0: no limit.
    pub bytes_max: u64,
    grpc_status: Option<u8>,
    awaits_source: bool,
}

impl Transfer {
    pub fn new(bytes_max: u64) -> Self {
        Self {
            state: State::Open,
            bytes: 0,
            bytes_max,
            grpc_status: None,
            awaits_source: false,
        }
    }

    /// A direction in which nothing flows; the head may still wait to be written.
    pub fn flushing() -> Self {
        Self {
            state: State::Flushing,
            bytes: 0,
            bytes_max: 0,
            grpc_status: None,
            awaits_source: false,
        }
    }

    /// The gRPC status in the trailers that passed.
    pub fn grpc_status(&self) -> Option<u8> {
        self.grpc_status
    }

    /// The last poll found room to send, and nothing to send yet.
    pub fn awaits_source(&self) -> bool {
        self.awaits_source
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Moves what can be moved. `Pending` has everything written that the sink
    /// takes.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Side,
        sink: &mut Side,
    ) -> Poll<Result<(), TransferError>> {
        self.poll_with(cx, sink, |cx| {
            let frame = ready!(source.poll_frame(cx))?;
            Poll::Ready(Ok((frame, source.is_ended())))
        })
    }

    /// The same for a request body, which is kept for another try as it goes.
    pub fn poll_replayable(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Side,
        sink: &mut Side,
        replay: &mut Replay,
    ) -> Poll<Result<(), TransferError>> {
        self.poll_with(cx, sink, |cx| {
            if let Some(data) = replay.take_kept() {
                let last = replay.is_spent();
                return Poll::Ready(Ok((Some(Frame::Data(data)), last)));
            }
            if replay.complete {
                let trailers = replay.trailers.clone().filter(|_| !replay.trailers_sent);
                replay.trailers_sent = true;
                return Poll::Ready(Ok((trailers.map(Frame::Trailers), true)));
            }
            let frame = ready!(source.poll_frame(cx))?;
            replay.complete = source.is_ended();
            match &frame {
                Some(Frame::Data(data)) => replay.keep(data),
                Some(Frame::Trailers(trailers)) => {
                    replay.trailers = Some(trailers.clone());
                    replay.trailers_sent = true;
                    replay.complete = true;
                }
                None => replay.complete = true,
            }
            Poll::Ready(Ok((frame, replay.complete)))
        })
    }

    fn poll_with(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Side,
        mut next: impl FnMut(&mut Context<'_>) -> Poll<Result<(Option<Frame>, bool), StreamError>>,
    ) -> Poll<Result<(), TransferError>> {
        self.awaits_source = false;
        while self.state == State::Open {
            ready!(sink.poll_ready(cx)).map_err(TransferError::Sink)?;
            let Poll::Ready(next) = next(cx) else {
                let flushed = sink.poll_flush(cx).map_err(TransferError::Sink)?;
                self.awaits_source = flushed.is_ready();
                return Poll::Pending;
            };
            let (frame, last) = next.map_err(TransferError::Source)?;
            match frame {
                // Means nothing, and costs the receiver of a shared connection.
                Some(Frame::Data(data)) if data.is_empty() && !last => {}
                Some(Frame::Data(data)) => {
                    self.bytes += data.len() as u64;
                    if self.bytes_max > 0 && self.bytes > self.bytes_max {
                        return Poll::Ready(Err(TransferError::TooLarge));
                    }
                    sink.send_data(data, last).map_err(TransferError::Sink)?;
                    if last {
                        self.state = State::Flushing;
                    }
                }
                Some(Frame::Trailers(trailers)) => {
                    let status = trailers.get("grpc-status");
                    self.grpc_status = status.and_then(|status| status.to_str().ok()?.parse().ok());
                    sink.finish(Some(trailers)).map_err(TransferError::Sink)?;
                    self.state = State::Flushing;
                }
                None => {
                    sink.finish(None).map_err(TransferError::Sink)?;
                    self.state = State::Flushing;
                }
            }
        }
        if self.state == State::Flushing {
            ready!(sink.poll_flush(cx)).map_err(TransferError::Sink)?;
            self.state = State::Done;
        }
        Poll::Ready(Ok(()))
    }
}

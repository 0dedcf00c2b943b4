//! What flows between two HTTP connections: heads, body frames, and the ways
//! in which reading or writing them fails.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::http1::Http1;
use super::http2::Http2Stream;
use crate::logic::http1::{Reject, UpstreamFault};

/// A piece of a body.
#[derive(Debug)]
pub enum Frame {
    Data(Bytes),
    /// Ends the body.
    Trailers(HeaderMap),
}

/// What is known of a body's length from its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body at all.
    None,
    Known(u64),
    /// Chunked, streamed, or until the connection closes.
    Unknown,
    /// No message framing: bytes both ways until both ends close (a protocol
    /// switched to, a CONNECT tunnel).
    Tunnel,
}

#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub length: BodyLength,
}

/// Why a message could not be read or written to its end. Who is to blame
/// depends on whose connection it is: the caller knows.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the connection failed")]
    Io(#[source] io::Error),
    #[error("the connection ended within a message")]
    Truncated,
    #[error("the message is malformed")]
    Malformed(#[source] Reject),
    #[error("the answer is malformed")]
    MalformedAnswer(#[source] UpstreamFault),
    #[error("HTTP/2 failure")]
    Http2(#[source] h2::Error),
    /// More or fewer bytes than the head announced.
    #[error("the body is not as long as announced")]
    LengthMismatch,
}

impl StreamError {
    /// The peer said that it has not processed the request: REFUSED_STREAM, or
    /// a stream above the last id of its GOAWAY (RFC 9113 §8.7).
    pub fn is_unprocessed(&self) -> bool {
        let Self::Http2(error) = self else {
            return false;
        };
        (error.is_go_away() && error.is_remote())
            || (error.is_reset()
                && error.is_remote()
                && error.reason() == Some(h2::Reason::REFUSED_STREAM))
    }

    /// What came makes no sense, as against a connection that died.
    pub fn is_protocol(&self) -> bool {
        match self {
            Self::Malformed(_) | Self::MalformedAnswer(_) | Self::LengthMismatch => true,
            Self::Http2(error) => {
                !error.is_io() && !(error.is_remote() && (error.is_reset() || error.is_go_away()))
            }
            Self::Io(_) | Self::Truncated => false,
        }
    }
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        Self::Http2(error)
    }
}

/// One request's side of a connection: the whole HTTP/1.1 connection, or a
/// stream of an HTTP/2 one.
#[derive(Debug)]
pub enum Side {
    Http1(Box<Http1>),
    Http2(Box<Http2Stream>),
}

macro_rules! both {
    ($self:ident, $side:ident => $body:expr) => {
        match $self {
            Side::Http1($side) => $body,
            Side::Http2($side) => $body,
        }
    };
}

impl Side {
    /// The next piece of the body being received; `None` at its end.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamError>> {
        both!(self, side => side.poll_frame(cx))
    }

    /// The body being received is known to be over.
    pub fn is_ended(&self) -> bool {
        both!(self, side => side.is_ended())
    }

    /// Room for another piece of the body being sent.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        both!(self, side => side.poll_ready(cx))
    }

    /// Sends a piece of the body; `last` ends it. Only after `poll_ready`.
    pub fn send_data(&mut self, data: Bytes, last: bool) -> Result<(), StreamError> {
        both!(self, side => side.send_data(data, last))
    }

    /// Ends the body.
    pub fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), StreamError> {
        both!(self, side => side.finish(trailers))
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        both!(self, side => side.poll_flush(cx))
    }

    /// Upstream: the next head, interim ones (1xx) included.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, StreamError>> {
        both!(self, side => side.poll_response(cx))
    }

    /// Downstream: passes an interim answer (1xx) on.
    pub fn send_interim(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
    ) -> Result<(), StreamError> {
        both!(self, side => side.send_interim(status, headers))
    }

    /// Downstream: ready when the client has gone away or reset the stream,
    /// while nothing is read from it.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        both!(self, side => side.poll_gone(cx))
    }

    /// What is being sent waits for the peer to take it.
    pub fn is_stalled(&self) -> bool {
        both!(self, side => side.is_stalled())
    }

    /// Resets the connection when it is dropped, instead of ending it cleanly.
    pub fn abort(&mut self) {
        match self {
            Self::Http1(http1) => http1.stream().abort(),
            Self::Http2(stream) => stream.reset(h2::Reason::CANCEL),
        }
    }
}

//! An HTTP/1.1 connection, as server or as client: heads and bodies in and out
//! of one stream with one read and one write buffer.
//!
//! Small writes are gathered: a head and its first piece of body leave in one
//! system call. **Invariant:** at most one piece of body waits to be written;
//! whoever sends asks `poll_ready` first.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use tokio::io::AsyncWrite;

use super::message::{BodyLength, Frame, ResponseHead, StreamError};
use crate::logic::http1::{
    BodyDecoder, BodyLimits, Chunk, Connection, Framing, HeadLimits, HeadReader, NotKept,
    RequestHead, RequestLine, Version, encode_chunk_header, encode_last_chunk, encode_request,
    encode_response,
};
use crate::net::stream::Stream;

/// First size of a read buffer; most heads fit.
const READ_FIRST: usize = 8 * 1024;
/// First size of the read for an answer: a usual page comes whole.
const READ_ANSWER: usize = 16 * 1024;
/// What one read of a large body may take.
const READ_MAX: usize = 128 * 1024;
/// Bodies up to this size are copied behind their head, larger ones are written
/// from where they are.
const COPY_MAX: usize = 4 * 1024;
/// Bytes that may wait in the write buffer before it is flushed.
const WRITE_HIGH: usize = 16 * 1024;
/// Bytes of a next request taken in while one is served; the rest waits in the socket.
const AHEAD_MAX: usize = 16 * 1024;

/// How the body being sent is delimited.
#[derive(Debug, PartialEq)]
enum Encoder {
    None,
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
    /// The end of the stream ends it.
    UntilClose,
}

#[derive(Debug)]
pub struct Http1 {
    stream: Stream,
    reader: HeadReader,
    read: BytesMut,
    read_size: usize,
    /// `None`: the body being received is over.
    decoder: Option<BodyDecoder>,
    /// A head came without the beginning of its body: the peer may be waiting
    /// for our acknowledgement.
    head_alone: bool,
    /// The peer has ended its side.
    read_closed: bool,
    write: BytesMut,
    /// Written after `write`, and then `tail`.
    payload: Bytes,
    tail: BytesMut,
    encoder: Encoder,
    /// Half-close once flushed.
    shutdown: bool,
    aborted: bool,
    /// The peer takes no more for now.
    stalled: bool,
    /// Of the last request received: what its sender understands.
    peer_version: Version,
    /// Of the last request sent: what its answer's length means.
    method: Method,
    /// Some bytes of the last request have left.
    sent: bool,
    /// The connection cannot be used again after this message, and why.
    pub not_kept: Option<NotKept>,
}

impl Http1 {
    /// `prefix`: bytes already read from the stream.
    pub fn new(stream: Stream, limits: HeadLimits, prefix: BytesMut) -> Self {
        Self {
            stream,
            reader: HeadReader::new(limits),
            read: prefix,
            read_size: READ_FIRST,
            decoder: None,
            head_alone: false,
            read_closed: false,
            write: BytesMut::new(),
            payload: Bytes::new(),
            tail: BytesMut::new(),
            encoder: Encoder::None,
            shutdown: false,
            aborted: false,
            stalled: false,
            peer_version: Version::Http11,
            method: Method::GET,
            sent: false,
            not_kept: None,
        }
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Whether bytes of a next message have already been read.
    pub fn has_read_ahead(&self) -> bool {
        !self.read.is_empty()
    }

    /// Whether any byte of the last request has left: if not, the peer cannot
    /// have processed it.
    pub fn has_sent(&self) -> bool {
        self.sent
    }

    /// An idle upstream connection that can take a request.
    pub fn is_quiet(&mut self) -> bool {
        self.read.is_empty() && !self.read_closed && self.stream.is_quiet()
    }

    /// Gives buffer memory back while the connection idles.
    pub fn release_buffers(&mut self) {
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        if self.write.is_empty() {
            self.write = BytesMut::new();
        }
        self.read_size = READ_FIRST;
        self.reader.recycle(HeaderMap::new());
    }

    /// Gives a header map back for the next head.
    pub fn recycle(&mut self, headers: HeaderMap) {
        self.reader.recycle(headers);
    }

    /// Waits for the first byte of a message, holding no buffer for it.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.read.is_empty() {
            return Poll::Ready(());
        }
        self.stream.poll_read_ready(cx).map(drop)
    }

    /// Server: the next request; `None` when the client has ended the connection.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<RequestHead>, StreamError>> {
        loop {
            let parsed = self.reader.parse_request(&mut self.read);
            if let Some(head) = parsed.map_err(StreamError::Malformed)? {
                self.peer_version = head.version;
                self.decoder = (!head.body.is_empty())
                    .then(|| BodyDecoder::new(head.body, BodyLimits::default()));
                self.head_alone = self.decoder.is_some() && self.read.is_empty();
                return Poll::Ready(Ok(Some(head)));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(if self.read.is_empty() {
                    Ok(None)
                } else {
                    Err(StreamError::Truncated)
                });
            }
        }
    }

    /// Client: puts a request's head into the write buffer.
    pub fn send_request(
        &mut self,
        line: RequestLine<'_>,
        headers: &HeaderMap,
        length: BodyLength,
        connection: Connection<'_>,
    ) {
        let framing = match length {
            BodyLength::None | BodyLength::Tunnel => Framing::None,
            BodyLength::Known(length) => Framing::Length(length),
            BodyLength::Unknown => Framing::Chunked,
        };
        self.method = line.method.clone();
        self.read_size = self.read_size.max(READ_ANSWER);
        self.not_kept = None;
        self.sent = false;
        self.set_encoder(framing);
        encode_request(&mut self.write, line, headers, framing, connection);
    }

    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, StreamError>> {
        let head = loop {
            let parsed = self.reader.parse_response(&mut self.read, &self.method);
            if let Some(head) = parsed.map_err(StreamError::MalformedAnswer)? {
                break head;
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(StreamError::Truncated));
            }
        };
        let length = match (head.not_kept, head.body) {
            (Some(NotKept::Tunnel), _) => BodyLength::Tunnel,
            (_, Framing::None) => BodyLength::None,
            (_, Framing::Length(length)) => BodyLength::Known(length),
            (_, Framing::Chunked | Framing::UntilClose) => BodyLength::Unknown,
        };
        if !head.status.is_informational() || length == BodyLength::Tunnel {
            self.not_kept = head.not_kept;
            self.decoder = match length {
                BodyLength::Tunnel => Some(BodyDecoder::UntilClose),
                BodyLength::None | BodyLength::Known(0) => None,
                _ => Some(BodyDecoder::new(head.body, BodyLimits::default())),
            };
            self.head_alone = self.decoder.is_some() && self.read.is_empty();
        }
        let mut headers = head.headers;
        if length == BodyLength::Tunnel
            && let Some(upgrade) = head.upgrade
        {
            headers.insert(http::header::UPGRADE, upgrade);
        }
        Poll::Ready(Ok(ResponseHead {
            status: head.status,
            headers,
            length,
        }))
    }

    /// Server: puts the final head of an answer into the write buffer. Returns
    /// whether the connection is kept after it.
    pub fn send_response(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        length: BodyLength,
        keep: bool,
    ) -> bool {
        let framing = match length {
            BodyLength::None | BodyLength::Tunnel => Framing::None,
            BodyLength::Known(length) => Framing::Length(length),
            BodyLength::Unknown => Framing::Chunked.for_version(self.peer_version),
        };
        let tunnel = length == BodyLength::Tunnel;
        let keep = keep && framing != Framing::UntilClose && !tunnel;
        let upgrade = headers.get(http::header::UPGRADE).filter(|_| tunnel);
        let connection = match upgrade {
            Some(upgrade) => Connection::Upgrade(upgrade),
            None if tunnel => Connection::Unstated,
            None => Connection::for_peer(self.peer_version, keep),
        };
        self.set_encoder(framing);
        encode_response(&mut self.write, status, headers, framing, connection);
        keep
    }

    pub fn send_interim(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
    ) -> Result<(), StreamError> {
        // RFC 9110 §15.2: never to an HTTP/1.0 client.
        if self.peer_version == Version::Http11 {
            encode_response(
                &mut self.write,
                status,
                &headers,
                Framing::None,
                Connection::Unstated,
            );
        }
        Ok(())
    }

    /// From here on bytes pass both ways without framing.
    pub fn become_tunnel(&mut self) {
        self.decoder = Some(BodyDecoder::UntilClose);
        self.encoder = Encoder::UntilClose;
        self.not_kept = Some(NotKept::Tunnel);
    }

    fn set_encoder(&mut self, framing: Framing) {
        self.encoder = match framing {
            Framing::None => Encoder::None,
            Framing::Length(length) => Encoder::Length(length),
            Framing::Chunked => Encoder::Chunked,
            Framing::UntilClose => Encoder::UntilClose,
        };
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        if self.read_closed {
            return Poll::Ready(Ok(0));
        }
        if self.read.capacity() == 0 {
            ready!(self.stream.poll_read_ready(cx))?;
        }
        self.read.reserve(self.read_size);
        let room = self.read.capacity() - self.read.len();
        let polled = self.stream.poll_read_buf(cx, &mut self.read);
        if polled.is_pending() && self.not_kept == Some(NotKept::Tunnel) && self.read.is_empty() {
            // A tunnel may rest for hours.
            self.release_buffers();
        }
        let count = ready!(polled)?;
        self.read_closed = count == 0;
        if count == room && self.decoder.is_some() {
            self.read_size = (self.read_size * 2).min(READ_MAX);
        }
        Poll::Ready(Ok(count))
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, StreamError>> {
        loop {
            let Some(decoder) = &mut self.decoder else {
                return Poll::Ready(Ok(None));
            };
            match decoder
                .decode(&mut self.read)
                .map_err(StreamError::Malformed)?
            {
                Chunk::Data(data) => {
                    if matches!(decoder, BodyDecoder::Length(length) if length.remaining() == 0) {
                        self.decoder = None;
                    }
                    return Poll::Ready(Ok(Some(Frame::Data(data))));
                }
                Chunk::End(trailers) => {
                    self.decoder = None;
                    return Poll::Ready(Ok(trailers.map(Frame::Trailers)));
                }
                Chunk::NeedMore => {}
            }
            let filled = self.poll_fill(cx);
            if std::mem::take(&mut self.head_alone) && filled.is_pending() {
                self.stream.acknowledge();
            }
            if ready!(filled)? == 0 {
                let Some(decoder) = self.decoder.take() else {
                    return Poll::Ready(Ok(None));
                };
                return Poll::Ready(match decoder.end_of_stream() {
                    Ok(()) => Ok(None),
                    Err(_) => Err(StreamError::Truncated),
                });
            }
        }
    }

    pub fn is_ended(&self) -> bool {
        self.decoder.is_none()
    }

    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if self.payload.is_empty() && self.write.len() < WRITE_HIGH {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    pub fn send_data(&mut self, data: Bytes, last: bool) -> Result<(), StreamError> {
        match &mut self.encoder {
            Encoder::None => {}
            Encoder::Length(remaining) => {
                *remaining = remaining
                    .checked_sub(data.len() as u64)
                    .ok_or(StreamError::LengthMismatch)?;
                self.put(data, b"");
            }
            Encoder::Chunked if !data.is_empty() => {
                encode_chunk_header(&mut self.write, data.len() as u64);
                self.put(data, b"\r\n");
            }
            Encoder::Chunked => {}
            Encoder::UntilClose => self.put(data, b""),
        }
        if last { self.finish(None) } else { Ok(()) }
    }

    fn put(&mut self, data: Bytes, after: &'static [u8]) {
        if data.len() <= COPY_MAX {
            self.write.extend_from_slice(&data);
            self.write.extend_from_slice(after);
        } else {
            self.payload = data;
            self.tail.extend_from_slice(after);
        }
    }

    pub fn finish(&mut self, trailers: Option<HeaderMap>) -> Result<(), StreamError> {
        match self.encoder {
            Encoder::None | Encoder::Length(0) => {}
            Encoder::Length(_) => return Err(StreamError::LengthMismatch),
            Encoder::Chunked => {
                let out = if self.payload.is_empty() {
                    &mut self.write
                } else {
                    &mut self.tail
                };
                encode_last_chunk(out, trailers.as_ref());
            }
            Encoder::UntilClose => self.shutdown = true,
        }
        self.encoder = Encoder::None;
        Ok(())
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let polled = self.poll_flush_all(cx);
        self.stalled = polled.is_pending();
        polled
    }

    fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        loop {
            let waiting = self.write.len() + self.payload.len();
            let written = self
                .stream
                .poll_write_two(cx, &mut self.write, &mut self.payload);
            self.sent |= self.write.len() + self.payload.len() < waiting;
            ready!(written)?;
            if self.tail.is_empty() {
                break;
            }
            std::mem::swap(&mut self.write, &mut self.tail);
        }
        if self.shutdown {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shutdown = false;
        }
        Poll::Ready(Ok(()))
    }

    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Ends our side of the stream once everything is written.
    pub fn close(&mut self) {
        self.shutdown = true;
    }

    /// The message being sent cannot be finished. Where only the end of the
    /// stream would end it, a clean end must not pretend that it is whole.
    pub fn fail(&mut self) {
        if self.encoder == Encoder::UntilClose {
            self.stream.abort();
            self.aborted = true;
        }
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted
    }

    /// The client has gone: it ended its side, or the connection failed, while
    /// an answer was awaited. What it sends ahead is kept, up to a limit.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.read_closed {
            if self.read.len() >= AHEAD_MAX {
                return Poll::Pending;
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Ready(())
    }

    /// Takes in and drops what the peer still sends, so that closing does not
    /// reset the connection under the answer (RFC 9112 §9.6). Ready at the end
    /// of the stream or after `limit` bytes.
    pub fn poll_linger(&mut self, cx: &mut Context<'_>, limit: &mut usize) -> Poll<()> {
        while *limit > 0 {
            self.read.clear();
            match ready!(self.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(count) => *limit = limit.saturating_sub(count),
            }
        }
        Poll::Ready(())
    }
}

//! Body decoders: a framed body comes out of the receive buffer as slices of it.
//!
//! ```text
//! chunked:  Size ──n>0──▶ Data ──n bytes──▶ DataEnd ──CRLF──▶ Size
//!             └───0─────▶ Trailers ──blank line──▶ Done
//! ```

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::message::{Framing, HEADERS_MAX};
use super::reject::Reject;

/// Limits on what a chunked body carries beside its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// One size line, its extension and CRLF included.
    pub chunk_line_bytes_max: usize,
    /// All extensions of one body together: a byte of data may otherwise cost a line.
    pub extension_bytes_max: usize,
    pub trailer_bytes_max: usize,
    /// Up to [`HEADERS_MAX`].
    pub trailers_max: usize,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            chunk_line_bytes_max: 256,
            extension_bytes_max: 16 * 1024,
            trailer_bytes_max: 8 * 1024,
            trailers_max: 64,
        }
    }
}

/// What the next bytes of a body are.
#[derive(Debug, PartialEq)]
pub enum Chunk {
    /// The buffer holds no further data yet.
    NeedMore,
    Data(Bytes),
    /// The body is over; what the buffer still holds belongs to the next message.
    End(Option<HeaderMap>),
}

/// A body decoder for any framing.
#[derive(Debug)]
pub enum BodyDecoder {
    Length(LengthDecoder),
    Chunked(ChunkedDecoder),
    UntilClose,
}

impl BodyDecoder {
    pub fn new(framing: Framing, limits: BodyLimits) -> Self {
        match framing {
            Framing::None => Self::Length(LengthDecoder::new(0)),
            Framing::Length(length) => Self::Length(LengthDecoder::new(length)),
            Framing::Chunked => Self::Chunked(ChunkedDecoder::new(limits)),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Takes what it can off the front of `buffer`. After `End`, and after an error, it
    /// must not be called again.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Chunk, Reject> {
        match self {
            Self::Length(decoder) => Ok(decoder.decode(buffer)),
            Self::Chunked(decoder) => decoder.decode(buffer),
            Self::UntilClose if buffer.is_empty() => Ok(Chunk::NeedMore),
            Self::UntilClose => Ok(Chunk::Data(buffer.split().freeze())),
        }
    }

    /// Whether the peer may end the connection here, after [`Chunk::NeedMore`].
    pub fn end_of_stream(&self) -> Result<(), Reject> {
        match self {
            Self::UntilClose => Ok(()),
            Self::Length(decoder) if decoder.remaining == 0 => Ok(()),
            _ => Err(Reject::Truncated),
        }
    }
}

/// A body of known length.
#[derive(Debug)]
pub struct LengthDecoder {
    remaining: u64,
}

impl LengthDecoder {
    pub const fn new(length: u64) -> Self {
        Self { remaining: length }
    }

    pub const fn remaining(&self) -> u64 {
        self.remaining
    }

    pub fn decode(&mut self, buffer: &mut BytesMut) -> Chunk {
        if self.remaining == 0 {
            return Chunk::End(None);
        }
        take_data(&mut self.remaining, buffer)
    }
}

fn take_data(remaining: &mut u64, buffer: &mut BytesMut) -> Chunk {
    if buffer.is_empty() {
        return Chunk::NeedMore;
    }
    let take = usize::try_from(*remaining).map_or(buffer.len(), |n| n.min(buffer.len()));
    *remaining -= take as u64;
    Chunk::Data(buffer.split_to(take).freeze())
}

/// A chunked body (RFC 9112 §7.1).
///
/// Stricter than the grammar asks: no whitespace before CRLF in a size line, no more
/// than 16 size digits, no control byte in an extension. Extensions are dropped, as a
/// recipient that does not know them must.
#[derive(Debug)]
pub struct ChunkedDecoder {
    limits: BodyLimits,
    state: State,
    extension_bytes: usize,
}

#[derive(Debug)]
enum State {
    Size,
    Data {
        remaining: u64,
    },
    DataEnd,
    /// So many bytes of the trailer section hold no end of it.
    Trailers {
        scanned: usize,
    },
    Done,
}

impl ChunkedDecoder {
    pub const fn new(limits: BodyLimits) -> Self {
        Self {
            limits,
            state: State::Size,
            extension_bytes: 0,
        }
    }

    /// Takes the next data, or the end, off the front of `buffer`.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Chunk, Reject> {
        loop {
            match &mut self.state {
                State::Size => {
                    let Some(size) = self.take_size(buffer)? else {
                        return Ok(Chunk::NeedMore);
                    };
                    self.state = match size {
                        0 => State::Trailers { scanned: 0 },
                        remaining => State::Data { remaining },
                    };
                }
                State::Data { remaining: 0 } => self.state = State::DataEnd,
                State::Data { remaining } => return Ok(take_data(remaining, buffer)),
                State::DataEnd => match buffer[..] {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(Chunk::NeedMore),
                    _ => return Err(Reject::ChunkEnd),
                },
                State::Trailers { scanned } => {
                    let Some(length) = trailers_length(buffer, scanned, &self.limits)? else {
                        return Ok(Chunk::NeedMore);
                    };
                    let section = buffer.split_to(length).freeze();
                    self.state = State::Done;
                    return parse_trailers(&section, &self.limits).map(Chunk::End);
                }
                State::Done => return Ok(Chunk::End(None)),
            }
        }
    }

    fn take_size(&mut self, buffer: &mut BytesMut) -> Result<Option<u64>, Reject> {
        let mut size = 0u64;
        let mut digits = 0;
        for byte in buffer.iter() {
            let Some(digit) = (*byte as char).to_digit(16) else {
                break;
            };
            if digits == SIZE_DIGITS_MAX {
                return Err(Reject::ChunkSize);
            }
            size = size << 4 | u64::from(digit);
            digits += 1;
        }
        let after = buffer.get(digits..).unwrap_or_default();
        let line_bytes = match after {
            [] => return Ok(None),
            _ if digits == 0 => return Err(Reject::ChunkSize),
            [b'\r', b'\n', ..] => digits + 2,
            [b'\r'] => return Ok(None),
            [b'\r', ..] => return Err(Reject::BareCr),
            [b'\n', ..] => return Err(Reject::BareLf),
            [b';' | b' ' | b'\t', ..] => {
                let room = self.limits.chunk_line_bytes_max.saturating_sub(digits);
                match extension_length(after, room)? {
                    Some(length) => {
                        self.extension_bytes += length - 2;
                        digits + length
                    }
                    None => return Ok(None),
                }
            }
            _ => return Err(Reject::ChunkSize),
        };
        if self.extension_bytes > self.limits.extension_bytes_max {
            return Err(Reject::ChunkExtension);
        }
        buffer.advance(line_bytes);
        Ok(Some(size))
    }
}

/// 64 bits; more would overflow, or pad with zeros to no end.
const SIZE_DIGITS_MAX: usize = 16;

/// The length of a chunk extension and its CRLF, at the front of `bytes`. Of the grammar
/// only what keeps lines apart is checked: it starts with `;` (whitespace may precede,
/// RFC 9112 §7.1.1), and has no control byte (a bare LF here ends the line for some
/// servers and not for others).
fn extension_length(bytes: &[u8], room: usize) -> Result<Option<usize>, Reject> {
    let bytes_in_room = bytes.get(..room).unwrap_or(bytes);
    let start = bytes_in_room
        .iter()
        .position(|b| !matches!(b, b' ' | b'\t'));
    if start.is_some_and(|at| bytes_in_room.get(at) != Some(&b';')) {
        return Err(Reject::ChunkExtension);
    }
    let control = bytes_in_room
        .iter()
        .position(|b| b.is_ascii_control() && *b != b'\t');
    match control.map(|at| (at, bytes_in_room.get(at..).unwrap_or_default())) {
        Some((at, [b'\r', b'\n', ..])) => Ok(Some(at + 2)),
        Some((_, [b'\r'])) | None if bytes.len() < room => Ok(None),
        Some((_, [b'\n', ..])) => Err(Reject::BareLf),
        _ => Err(Reject::ChunkExtension),
    }
}

/// The length of the trailer section with its blank line, once it is all there.
fn trailers_length(
    buffer: &[u8],
    scanned: &mut usize,
    limits: &BodyLimits,
) -> Result<Option<usize>, Reject> {
    match buffer {
        [b'\r', b'\n', ..] => return Ok(Some(2)),
        [b'\n', ..] => return Err(Reject::BareLf),
        [] | [b'\r'] => return Ok(None),
        _ => {}
    }
    let fresh = buffer.get(*scanned..).unwrap_or_default();
    let end = memchr::memmem::find(fresh, b"\r\n\r\n").map(|at| *scanned + at + 4);
    if end.unwrap_or(buffer.len()) > limits.trailer_bytes_max {
        return Err(Reject::TrailersTooLarge);
    }
    if end.is_none() {
        // The blank line's first bytes may be there already.
        *scanned = buffer.len().saturating_sub(3);
    }
    Ok(end)
}

fn parse_trailers(section: &Bytes, limits: &BodyLimits) -> Result<Option<HeaderMap>, Reject> {
    if section.len() == 2 {
        return Ok(None);
    }
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let slots = slots.split_at_mut(limits.trailers_max.min(HEADERS_MAX)).0;
    let fields = match httparse::parse_headers(section, slots) {
        Ok(httparse::Status::Complete((length, fields))) if length == section.len() => fields,
        Ok(_) => return Err(Reject::BareLf),
        Err(httparse::Error::TooManyHeaders) => return Err(Reject::TrailersTooLarge),
        Err(httparse::Error::HeaderValue) => return Err(Reject::HeaderValue),
        Err(_) => return Err(Reject::HeaderName),
    };
    if memchr::memchr_iter(b'\r', section).count() != fields.len() + 1 {
        return Err(Reject::BareLf);
    }
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Reject::HeaderName)?;
        if MISFRAMING.contains(&name) {
            return Err(Reject::TrailerForbidden);
        }
        if DROPPED.contains(&name) || name == "keep-alive" || name == "proxy-connection" {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(section.slice_ref(field.value))
            .map_err(|_| Reject::HeaderValue)?;
        trailers
            .try_append(name, value)
            .map_err(|_| Reject::TrailersTooLarge)?;
    }
    Ok((!trailers.is_empty()).then_some(trailers))
}

/// In a trailer section these are an attack: a recipient that merged them into the head
/// would frame or route the message otherwise than we did.
static MISFRAMING: [HeaderName; 3] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::HOST,
];

/// Dropped: they too would change how the head is understood (RFC 9110 §6.5.1), or
/// concern one connection only, but senders exist that put them here in good faith.
static DROPPED: [HeaderName; 21] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::MAX_FORWARDS,
    header::RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
    header::FORWARDED,
];

//! Writing heads, chunk headers and trailers: plain copies into one buffer, no
//! formatting machinery.
//!
//! **Invariant:** nothing written here can be read in two ways. Framing fields come from
//! [`Framing`] alone, never from the header map; names, values and targets are typed, so
//! that none holds a line end.

use bytes::{BufMut, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, StatusCode};

use super::message::{Framing, Version};

/// What the Connection field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection<'a> {
    /// Nothing: the default of HTTP/1.1, to keep the connection.
    Unstated,
    Close,
    /// Said aloud, for HTTP/1.0 peers.
    KeepAlive,
    /// `Connection: upgrade` with this Upgrade field.
    Upgrade(&'a HeaderValue),
}

impl Connection<'_> {
    /// What to tell a peer of `version` about whether its connection is kept.
    pub const fn for_peer(version: Version, keep_alive: bool) -> Self {
        match (version, keep_alive) {
            (_, false) => Self::Close,
            (Version::Http11, true) => Self::Unstated,
            (Version::Http10, true) => Self::KeepAlive,
        }
    }
}

/// A request line and the Host that goes with it.
#[derive(Clone, Copy, Debug)]
pub struct RequestLine<'a> {
    pub method: &'a Method,
    /// Written as it is. For CONNECT the authority takes its place.
    pub path_and_query: &'a PathAndQuery,
    /// Absent: an empty Host field (RFC 9110 §7.2).
    pub authority: Option<&'a Authority>,
}

/// Writes a request head in origin-form (authority-form for CONNECT), as HTTP/1.1.
///
/// `UntilClose` is not a request's framing and announces no body, like `None`.
pub fn encode_request(
    out: &mut BytesMut,
    line: RequestLine<'_>,
    headers: &HeaderMap,
    framing: Framing,
    connection: Connection<'_>,
) {
    let host = line.authority.map_or("", Authority::as_str);
    let target = match *line.method {
        Method::CONNECT => host,
        _ => line.path_and_query.as_str(),
    };
    out.reserve(HEAD_BYTES_USUAL + target.len());
    out.put_slice(line.method.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\nhost: ");
    out.put_slice(host.as_bytes());
    out.put_slice(b"\r\n");
    encode_fields(out, headers, false);
    encode_framing(out, framing);
    encode_connection(out, connection);
    out.put_slice(b"\r\n");
}

/// Writes a response head, as HTTP/1.1 (RFC 9110 §2.5: the version is ours, whatever
/// the request's was) with the canonical reason phrase.
///
/// For an HTTP/1.0 recipient pass [`Framing::for_version`] and [`Connection::for_peer`].
/// A Content-Length in `headers` is written only with `Framing::None`, where it frames
/// nothing (the answer to HEAD, a 304) and only if the status may have one.
pub fn encode_response(
    out: &mut BytesMut,
    status: StatusCode,
    headers: &HeaderMap,
    framing: Framing,
    connection: Connection<'_>,
) {
    out.reserve(HEAD_BYTES_USUAL);
    match status {
        StatusCode::OK => out.put_slice(b"HTTP/1.1 200 OK\r\n"),
        _ => {
            out.put_slice(b"HTTP/1.1 ");
            out.put_slice(status.as_str().as_bytes());
            out.put_slice(b" ");
            out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
            out.put_slice(b"\r\n");
        }
    }
    let may_have_length = !status.is_informational() && status != StatusCode::NO_CONTENT;
    encode_fields(out, headers, framing == Framing::None && may_have_length);
    encode_framing(out, framing);
    encode_connection(out, connection);
    out.put_slice(b"\r\n");
}

/// Reserved ahead, so that a usual head grows the buffer at most once.
const HEAD_BYTES_USUAL: usize = 512;

fn encode_fields(out: &mut BytesMut, headers: &HeaderMap, keep_length: bool) {
    for (name, value) in headers {
        if is_written_elsewhere(name) && !(keep_length && name == header::CONTENT_LENGTH) {
            continue;
        }
        encode_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// Fields that this file writes itself, or that must never leave: a filter or an HTTP/2
/// peer may have put them into the map.
fn is_written_elsewhere(name: &HeaderName) -> bool {
    match name.as_str().len() {
        4 => name == header::HOST,
        7 => name == header::UPGRADE,
        10 => name == header::CONNECTION || name == "keep-alive",
        14 => name == header::CONTENT_LENGTH,
        16 => name == "proxy-connection",
        17 => name == header::TRANSFER_ENCODING,
        _ => false,
    }
}

fn encode_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn encode_framing(out: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => {
            out.put_slice(b"content-length: ");
            put_decimal(out, length);
            out.put_slice(b"\r\n");
        }
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
    }
}

fn encode_connection(out: &mut BytesMut, connection: Connection<'_>) {
    match connection {
        Connection::Unstated => {}
        Connection::Close => out.put_slice(b"connection: close\r\n"),
        Connection::KeepAlive => out.put_slice(b"connection: keep-alive\r\n"),
        Connection::Upgrade(protocol) => {
            out.put_slice(b"connection: upgrade\r\n");
            encode_field(out, b"upgrade", protocol.as_bytes());
        }
    }
}

/// Writes `number` in decimal digits.
fn put_decimal(out: &mut BytesMut, mut number: u64) {
    // u64::MAX has 20 digits.
    let mut digits = [0; 20];
    let mut used = 0;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    out.put_slice(digits.split_at(digits.len() - used).1);
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes the size line of a chunk of `length` bytes. Its data must follow, then CRLF.
///
/// A length of zero writes nothing: it would end the body.
pub fn encode_chunk_header(out: &mut BytesMut, length: u64) {
    if length == 0 {
        return;
    }
    let digits = 16 - length.leading_zeros() / 4;
    for digit in (0..digits).rev() {
        let nibble = (length >> (digit * 4)) as usize & 0xf;
        out.put_u8(HEX.get(nibble).copied().unwrap_or_default());
    }
    out.put_slice(b"\r\n");
}

/// Writes the end of a chunked body: the last chunk, the trailers and the blank line.
pub fn encode_last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.put_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        encode_fields(out, trailers, false);
    }
    out.put_slice(b"\r\n");
}

//! The ClientHello at the start of a TLS connection, read without terminating it: the
//! server name to route passthrough by, and the ALPN that tells mesh transport from the
//! application's own TLS.
//!
//! Own parser, of the few fields needed, rather than `rustls::server::Acceptor`: that
//! wants to own the bytes, parses anew from a copy, refuses hellos that rustls could not
//! answer (no signature algorithms, TLS 1.0) although passthrough never answers them,
//! and consumes what the terminating acceptor must see again. The tests hold this
//! parser against it.
//!
//! Handles a hello split over records and records split over segments. Stateless: called
//! with all bytes so far; what it does is bounded by [`HELLO_BYTES_MAX`].

use std::borrow::Cow;

use smallvec::SmallVec;

/// The largest handshake message taken. Browsers send 0.5–2 KiB, post-quantum key shares
/// included; OpenSSL's own limit is larger only for session tickets nobody uses.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

/// The most bytes that are ever needed to decide: a caller's buffer of this size is
/// enough. Records may be short (five bytes of header each), so more than the message.
pub const PREFIX_BYTES_MAX: usize = 2 * HELLO_BYTES_MAX;

/// What the hello asks for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Hello {
    /// Lower-case, without a trailing dot.
    pub server_name: Option<String>,
    /// In the client's order of preference.
    pub alpn: SmallVec<[Box<[u8]>; 2]>,
    pub supports_tls13: bool,
}

/// Why there is no hello (yet).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HelloError {
    #[error("the ClientHello is not complete yet")]
    NeedMore,
    #[error("the bytes are not a TLS handshake")]
    NotTls,
    #[error("the ClientHello is malformed (RFC 8446 §4.1.2)")]
    Invalid,
    #[error("the ClientHello is larger than {HELLO_BYTES_MAX} bytes")]
    TooLarge,
}

impl HelloError {
    /// A stable `snake_case` label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NeedMore => "need_more",
            Self::NotTls => "not_tls",
            Self::Invalid => "invalid_client_hello",
            Self::TooLarge => "client_hello_too_large",
        }
    }
}

/// Parses the ClientHello at the front of `prefix`, all that the client has sent so far.
pub fn parse(prefix: &[u8]) -> Result<Hello, HelloError> {
    let prefix = prefix.get(..PREFIX_BYTES_MAX).unwrap_or(prefix);
    match handshake_message(prefix) {
        Ok(message) => parse_body(&message).ok_or(HelloError::Invalid),
        Err(HelloError::NeedMore) if prefix.len() == PREFIX_BYTES_MAX => Err(HelloError::TooLarge),
        Err(error) => Err(error),
    }
}

const HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 1;
/// RFC 8446 §5.1.
const RECORD_BYTES_MAX: usize = 1 << 14;

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
const TLS13: u16 = 0x0304;

/// The body of the first handshake message, put together from its records.
fn handshake_message(prefix: &[u8]) -> Result<Cow<'_, [u8]>, HelloError> {
    let mut rest = prefix;
    let mut fragments: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        let (fragment, after, complete) = next_fragment(rest)?;
        if fragments.is_empty() {
            fragments = Cow::Borrowed(fragment);
        } else {
            fragments.to_mut().extend_from_slice(fragment);
        }
        if let Some(body_end) = message_end(&fragments)? {
            return match fragments {
                Cow::Borrowed(bytes) => bytes.get(4..body_end).map(Cow::Borrowed),
                Cow::Owned(bytes) => bytes.get(4..body_end).map(|body| Cow::Owned(body.to_vec())),
            }
            .ok_or(HelloError::Invalid);
        }
        if !complete {
            return Err(HelloError::NeedMore);
        }
        rest = after;
    }
}

/// One record's payload, as far as it is there, what follows it, and whether it is whole.
fn next_fragment(bytes: &[u8]) -> Result<(&[u8], &[u8], bool), HelloError> {
    if bytes.first().is_some_and(|kind| *kind != HANDSHAKE)
        || bytes.get(1).is_some_and(|major| *major != 3)
        || bytes.get(2).is_some_and(|minor| *minor > 4)
    {
        return Err(HelloError::NotTls);
    }
    let (Some(&[high, low]), Some(payload)) = (bytes.get(3..5), bytes.get(5..)) else {
        return Err(HelloError::NeedMore);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if !(1..=RECORD_BYTES_MAX).contains(&length) {
        return Err(HelloError::NotTls);
    }
    Ok(match payload.split_at_checked(length) {
        Some((fragment, after)) => (fragment, after, true),
        None => (payload, &[], false),
    })
}

/// Where the handshake message at the front of `bytes` ends, once it is all there.
fn message_end(bytes: &[u8]) -> Result<Option<usize>, HelloError> {
    if bytes.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(HelloError::NotTls);
    }
    let Some(&[a, b, c]) = bytes.get(1..4) else {
        return Ok(None);
    };
    let end = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
    if end > HELLO_BYTES_MAX {
        return Err(HelloError::TooLarge);
    }
    Ok((bytes.len() >= end).then_some(end))
}

/// A cursor whose reads fail rather than panic.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn vector_u8(&mut self) -> Option<Self> {
        let length = self.u8()?;
        self.take(length.into()).map(Self)
    }

    fn vector_u16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(length.into()).map(Self)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// RFC 8446 §4.1.2; the same layout since SSL 3.0.
fn parse_body(body: &[u8]) -> Option<Hello> {
    let mut body = Reader(body);
    body.take(2 + 32)?;
    let session_id = body.vector_u8()?;
    let cipher_suites = body.vector_u16()?;
    let compression = body.vector_u8()?;
    if session_id.0.len() > 32
        || cipher_suites.0.len() < 2
        || cipher_suites.0.len() % 2 != 0
        || compression.is_empty()
    {
        return None;
    }
    let mut hello = Hello::default();
    if body.is_empty() {
        return Some(hello);
    }
    let mut extensions = body.vector_u16()?;
    if !body.is_empty() {
        return None;
    }
    let (mut named, mut alpn, mut versions) = (false, false, false);
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector_u16()?;
        let seen = match kind {
            EXTENSION_SERVER_NAME => {
                hello.server_name = parse_server_name(data)?;
                &mut named
            }
            EXTENSION_ALPN => {
                hello.alpn = parse_alpn(data)?;
                &mut alpn
            }
            EXTENSION_SUPPORTED_VERSIONS => {
                hello.supports_tls13 = parse_versions(data)?;
                &mut versions
            }
            _ => continue,
        };
        // RFC 8446 §4.2: one of each. Two names would let two readers route apart.
        if std::mem::replace(seen, true) {
            return None;
        }
    }
    Some(hello)
}

/// RFC 6066 §3: one host_name; other name types were never defined.
fn parse_server_name(mut data: Reader<'_>) -> Option<Option<String>> {
    let mut list = data.vector_u16()?;
    if !data.is_empty() || list.is_empty() {
        return None;
    }
    let mut found = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        let name = list.vector_u16()?.0;
        if kind != 0 {
            continue;
        }
        if found.is_some() {
            return None;
        }
        found = Some(parse_host_name(name)?);
    }
    Some(found)
}

/// Letters, digits, `-`, `_` and dots. An address is none (RFC 6066 §3), but IPv4 ones
/// are sent, look like names, and match no route.
fn parse_host_name(name: &[u8]) -> Option<String> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let valid = name.split(|b| *b == b'.').all(|label| {
        (1..=63).contains(&label.len())
            && label
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    });
    if !valid || name.len() > 253 {
        return None;
    }
    String::from_utf8(name.to_ascii_lowercase()).ok()
}

/// RFC 7301 §3.1.
fn parse_alpn(mut data: Reader<'_>) -> Option<SmallVec<[Box<[u8]>; 2]>> {
    let mut list = data.vector_u16()?;
    if !data.is_empty() || list.is_empty() {
        return None;
    }
    let mut protocols = SmallVec::new();
    while !list.is_empty() {
        let protocol = list.vector_u8()?;
        if protocol.is_empty() {
            return None;
        }
        protocols.push(Box::from(protocol.0));
    }
    Some(protocols)
}

fn parse_versions(mut data: Reader<'_>) -> Option<bool> {
    let mut list = data.vector_u8()?;
    if !data.is_empty() || list.is_empty() {
        return None;
    }
    let mut tls13 = false;
    while !list.is_empty() {
        tls13 |= list.u16()? == TLS13;
    }
    Some(tls13)
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;

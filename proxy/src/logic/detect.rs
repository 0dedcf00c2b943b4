//! Which protocol a client's first bytes speak: TLS, HTTP/2, HTTP/1 or something else.
//!
//! Pure and stateless: called with all bytes so far, as often as more arrive. Every
//! answer but `NeedMore` is final: more bytes would not change it.
//!
//! What is never misread, however the bytes were cut into segments:
//! - bytes that no HTTP request line and no ClientHello starts with are `Opaque` at the
//!   first byte that proves it, so a binary protocol (Postgres, MySQL, Kafka, MongoDB)
//!   or a lower-case one (memcached) is never held up waiting for a line end;
//! - command protocols with capital words (Redis inline, SMTP, NATS, IRC, FTP) are
//!   `Opaque`: after the method must stand what starts a request target (`/`, `http://`,
//!   `https://`; `*` or host:port then ` HTTP/`);
//! - RTSP, SIP and ICAP with absolute URIs are `Opaque` by their scheme;
//! - the HTTP/2 preface is only that when all its 24 bytes are there; `PRI /` is HTTP/1
//!   with an odd method, which the HTTP/1 parser may judge.
//!
//! The other way round: an extension method of other than capital letters, `-` and `_` is forwarded as opaque bytes, and so is a request line behind
//! blank lines. Declaring the port's protocol skips detection.

/// What the bytes are, or could still be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Detection {
    NeedMore,
    /// A TLS handshake record that starts with a ClientHello.
    Tls,
    /// HTTP/2 with prior knowledge.
    Http2,
    Http1,
    Opaque,
}

/// The client connection preface (RFC 9113 §3.4).
pub const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longer than any registered method (UPDATEREDIRECTREF, 17).
const METHOD_BYTES_MAX: usize = 24;

/// A host name (253), a colon and a port.
const AUTHORITY_BYTES_MAX: usize = 260;

/// The most bytes that are looked at before the answer is certain.
pub const PREFIX_BYTES_MAX: usize = METHOD_BYTES_MAX + AUTHORITY_BYTES_MAX + 8;

/// Tells what `prefix`, all that the client has sent so far, is.
pub fn detect(prefix: &[u8]) -> Detection {
    match prefix.first() {
        None => Detection::NeedMore,
        Some(0x16) => detect_tls(prefix),
        Some(_) => match could_be(prefix, HTTP2_PREFACE) {
            Match::Whole => Detection::Http2,
            Match::Partial => Detection::NeedMore,
            Match::No => detect_http1(prefix),
        },
    }
}

enum Match {
    Whole,
    Partial,
    No,
}

fn could_be(bytes: &[u8], expected: &[u8]) -> Match {
    if bytes.starts_with(expected) {
        Match::Whole
    } else if expected.starts_with(bytes) {
        Match::Partial
    } else {
        Match::No
    }
}

/// A record header (RFC 8446 §5.1: handshake, 3.0–3.4, 1 to 2^14 bytes) and the
/// handshake type ClientHello.
fn detect_tls(prefix: &[u8]) -> Detection {
    let plausible = |at: usize, holds: fn(u8) -> bool| prefix.get(at).is_none_or(|b| holds(*b));
    let length_plausible = match prefix.get(3..5) {
        Some(&[high, low]) => matches!(u16::from_be_bytes([high, low]), 1..=0x4000),
        _ => plausible(3, |high| high <= 0x40),
    };
    if !(plausible(1, |major| major == 3) && plausible(2, |minor| minor <= 4) && length_plausible) {
        return Detection::Opaque;
    }
    match prefix.get(5) {
        None => Detection::NeedMore,
        Some(1) => Detection::Tls,
        Some(_) => Detection::Opaque,
    }
}

fn detect_http1(prefix: &[u8]) -> Detection {
    if !prefix.first().is_some_and(u8::is_ascii_uppercase) {
        return Detection::Opaque;
    }
    let window = prefix.get(..=METHOD_BYTES_MAX).unwrap_or(prefix);
    let method_end = window
        .iter()
        .position(|b| !matches!(b, b'A'..=b'Z' | b'-' | b'_'));
    let Some(method_end) = method_end else {
        return match prefix.len() {
            ..=METHOD_BYTES_MAX => Detection::NeedMore,
            _ => Detection::Opaque,
        };
    };
    let (method, rest) = prefix.split_at(method_end);
    let [b' ', target @ ..] = rest else {
        return Detection::Opaque;
    };
    if method == b"CONNECT" {
        return detect_authority(target);
    }
    match target.first() {
        None => Detection::NeedMore,
        Some(b'/') => Detection::Http1,
        Some(b'*') => ended_by(target, b"* HTTP/1."),
        Some(_) => detect_absolute(target),
    }
}

fn ended_by(bytes: &[u8], expected: &[u8]) -> Detection {
    match could_be(bytes, expected) {
        Match::Whole => Detection::Http1,
        Match::Partial => Detection::NeedMore,
        Match::No => Detection::Opaque,
    }
}

/// `http://` or `https://`, in any case (RFC 3986 §3.1).
fn detect_absolute(target: &[u8]) -> Detection {
    let mut partial = false;
    for scheme in [b"http://".as_slice(), b"https://"] {
        let common = target.len().min(scheme.len());
        let (sent, expected) = (target.get(..common), scheme.get(..common));
        if sent
            .zip(expected)
            .is_some_and(|(sent, expected)| sent.eq_ignore_ascii_case(expected))
        {
            if common == scheme.len() {
                return Detection::Http1;
            }
            partial = true;
        }
    }
    if partial {
        Detection::NeedMore
    } else {
        Detection::Opaque
    }
}

/// `host:port HTTP/1.`, as CONNECT has it (NATS and STOMP have a CONNECT too).
fn detect_authority(target: &[u8]) -> Detection {
    let window = target.get(..=AUTHORITY_BYTES_MAX).unwrap_or(target);
    let end = window.iter().position(
        |b| !matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']'),
    );
    match end {
        None if target.len() <= AUTHORITY_BYTES_MAX => Detection::NeedMore,
        None | Some(0) => Detection::Opaque,
        Some(end) => {
            let (authority, rest) = target.split_at(end);
            match memchr::memchr(b':', authority) {
                Some(_) => ended_by(rest, b" HTTP/1."),
                None => Detection::Opaque,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Detection::*;

    /// What each input is, and at which byte that must be known.
    const TABLE: &[(&[u8], Detection, usize)] = &[
        (b"GET / HTTP/1.1\r\n", Http1, 5),
        (b"M-SEARCH /x HTTP/1.1\r\n", Http1, 10),
        (b"OPTIONS * HTTP/1.1\r\n", Http1, 17),
        (b"GET http://a/ HTTP/1.1\r\n", Http1, 11),
        (b"GET HTTPS://a/ HTTP/1.1\r\n", Http1, 12),
        (b"CONNECT a.b:443 HTTP/1.1\r\n", Http1, 23),
        (b"CONNECT [::1]:443 HTTP/1.1\r\n", Http1, 25),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2, 24),
        (b"PRI /x HTTP/1.1\r\n", Http1, 5),
        (b"PRI * HTTP/1.1\r\n", Http1, 13),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Opaque, 19),
        (b"\x16\x03\x01\x02\x00\x01\x00", Tls, 6),
        (b"\x16\x03\x01\x02\x00\x02", Opaque, 6),
        (b"\x16\x03\x01\x00\x00\x01", Opaque, 5),
        (b"\x16\x03\x01\x40\x01\x01", Opaque, 5),
        (b"\x16\x03\x01\x41\x00\x01", Opaque, 4),
        (b"\x16\x02\x01", Opaque, 2),
        (b"\x16\x03\x05", Opaque, 3),
        // Postgres' SSLRequest, MySQL, Kafka, MongoDB.
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Opaque, 1),
        (b"\x3a\x00\x00\x00\x01\x00", Opaque, 1),
        // Redis, arrays and inline; memcached; SSH; SMTP; NATS; STOMP; IRC; RTSP; SIP.
        (b"*1\r\n$4\r\nPING\r\n", Opaque, 1),
        (b"PING\r\n", Opaque, 5),
        (b"get key\r\n", Opaque, 1),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Opaque, 5),
        (b"EHLO example.org\r\n", Opaque, 6),
        (b"EHLO host\r\n", Opaque, 7),
        (b"CONNECT {\"verbose\":false}\r\n", Opaque, 9),
        (b"CONNECT\naccept-version:1.2\n", Opaque, 8),
        (b"NICK https\r\n", Opaque, 11),
        (b"OPTIONS rtsp://a/ RTSP/1.0\r\n", Opaque, 9),
        (b"INVITE sip:a@b SIP/2.0\r\n", Opaque, 8),
        (b"CONNECT host\r\n", Opaque, 13),
        (b"CONNECT a:1 SIP/2.0\r\n", Opaque, 13),
        (b" GET / HTTP/1.1\r\n", Opaque, 1),
        (b"-GET / HTTP/1.1\r\n", Opaque, 1),
        (b"\r\nGET / HTTP/1.1\r\n", Opaque, 1),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Opaque, 25),
        (b"", NeedMore, 0),
    ];

    #[test]
    fn decides_at_the_first_byte_that_proves_it() {
        for (bytes, expected, at) in TABLE {
            let text = bytes.escape_ascii();
            for cut in 0..=bytes.len() {
                let wanted = if cut < *at { NeedMore } else { *expected };
                assert_eq!(detect(&bytes[..cut]), wanted, "{text} cut at {cut}");
            }
        }
    }

    #[test]
    fn is_certain_within_the_limit() {
        let mut longest = b"CONNECT ".to_vec();
        longest.resize(PREFIX_BYTES_MAX, b'a');
        assert_eq!(detect(&longest), Opaque);
    }
}

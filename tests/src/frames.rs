//! HTTP/2 written frame by frame, for what no library would send, and read far enough to see what
//! the peer did about it.
//!
//! Fields are encoded as literals that no table keeps (RFC 7541 §6.2.2). Of an answer's head only
//! the status is decoded, so a test asks one thing on one connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::PATIENCE;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The status that a HEADERS frame begins with.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        (self.kind == HEADERS).then(|| status(&self.payload))?
    }

    /// The code of a RST_STREAM, or of a GOAWAY.
    #[must_use]
    pub fn error_code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }
}

pub struct Frames {
    pub stream: TcpStream,
}

impl Frames {
    /// A connection that has sent its preface and empty settings.
    #[track_caller]
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the peer accepts");
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let _ = stream.set_write_timeout(Some(PATIENCE));
        let mut frames = Self { stream };
        frames.stream.write_all(PREFACE).expect("the peer reads");
        frames.send(SETTINGS, 0, 0, b"").expect("the peer reads");
        frames
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&frame(kind, flags, stream, payload))
    }

    /// A request in one HEADERS frame.
    pub fn request(&mut self, stream: u32, flags: u8, fields: &[(&str, &str)]) -> io::Result<()> {
        self.send(HEADERS, flags | END_HEADERS, stream, &block(fields))
    }

    /// The next frame; settings and pings are acknowledged on the way.
    pub fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload)?;
        let frame = Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        };
        if frame.kind == SETTINGS && frame.flags & ACK == 0 {
            let _ = self.send(SETTINGS, ACK, 0, b"");
        }
        if frame.kind == PING && frame.flags & ACK == 0 {
            let _ = self.send(PING, ACK, 0, &frame.payload);
        }
        Ok(frame)
    }

    /// Reads until a frame that `wanted` takes; `None` when the connection ends first. Fails the
    /// test when the peer stays silent.
    #[track_caller]
    pub fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            match self.read() {
                Ok(frame) if wanted(&frame) => return Some(frame),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("the peer neither answers nor closes")
                }
                Err(_) => return None,
            }
        }
    }

    /// The status of a stream's answer; `None` when it was reset, or the connection closed.
    #[track_caller]
    pub fn status_of(&mut self, stream: u32) -> Option<u16> {
        let ends = |frame: &Frame| {
            frame.kind == GOAWAY
                || (frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM))
        };
        self.find(ends).and_then(|frame| frame.status())
    }
}

/// A frame's bytes.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a test's frame is small");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The fields of a plain GET.
#[must_use]
pub fn get(path: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "test"),
        (":path", path),
    ]
}

/// A header block.
#[must_use]
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        text(&mut bytes, name);
        text(&mut bytes, value);
    }
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    // RFC 7541 §5.1 with a prefix of seven bits.
    let mut length = text.len();
    if length < 127 {
        bytes.push(u8::try_from(length).unwrap_or(0));
    } else {
        bytes.push(127);
        length -= 127;
        while length >= 128 {
            bytes.push(u8::try_from(length % 128 + 128).unwrap_or(0));
            length /= 128;
        }
        bytes.push(u8::try_from(length).unwrap_or(0));
    }
    bytes.extend_from_slice(text.as_bytes());
}

/// `:status` at the start of a block: indexed, or a literal with an indexed name.
fn status(block: &[u8]) -> Option<u16> {
    let mut at = 0;
    // Dynamic table size updates come first (RFC 7541 §4.2).
    while block.get(at)? & 0xe0 == 0x20 {
        let long = block[at] & 0x1f == 0x1f;
        at += 1;
        while long && block.get(at)? & 0x80 != 0 {
            at += 1;
        }
        at += usize::from(long);
    }
    match block.get(at)? {
        0x88 => Some(200),
        0x89 => Some(204),
        0x8a => Some(206),
        0x8b => Some(304),
        0x8c => Some(400),
        0x8d => Some(404),
        0x8e => Some(500),
        0x08 | 0x18 | 0x48..=0x4e => {
            let length = block.get(at + 1)?;
            let bytes = block.get(at + 2..at + 2 + usize::from(length & 0x7f))?;
            match length & 0x80 {
                0 => std::str::from_utf8(bytes).ok()?.parse().ok(),
                _ => digits(bytes),
            }
        }
        _ => None,
    }
}

/// Three digits in HPACK's Huffman code: 0 to 2 have five bits, 3 to 9 six.
fn digits(bytes: &[u8]) -> Option<u16> {
    let bits: Vec<u16> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |shift| u16::from(byte >> shift & 1)))
        .collect();
    let mut at = 0;
    let mut number = 0;
    for _ in 0..3 {
        let code = |bits: &[u16]| bits.iter().fold(0, |code, bit| code * 2 + bit);
        let short = code(bits.get(at..at + 5)?);
        let (digit, length) = match short {
            0..=2 => (short, 5),
            _ => (code(bits.get(at..at + 6)?).checked_sub(0x19)? + 3, 6),
        };
        number = number * 10 + digit;
        at += length;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_decoded() {
        // RFC 7541 C.6.1 and C.6.2 encode 302 and 307.
        for (block, expected) in [
            (&[0x88][..], Some(200)),
            (&[0x48, 0x82, 0x64, 0x02], Some(302)),
            (&[0x48, 0x83, 0x64, 0x0e, 0xff], Some(307)),
            (&[0x3f, 0xe1, 0x1f, 0x8d], Some(404)),
            (&[0x20, 0x48, 0x03, b'4', b'3', b'1'], Some(431)),
            (&[0x00], None),
        ] {
            assert_eq!(status(block), expected, "{block:x?}");
        }
    }

    #[test]
    fn long_text_has_a_long_length() {
        let mut bytes = Vec::new();
        text(&mut bytes, &"a".repeat(1337 + 127));
        assert_eq!(&bytes[..3], [127, 0xb9, 0x0a]);
    }
}

//! Follows one HTTP/1.1 message (a head and a body of Content-Length bytes) over
//! any split into reads. Shared by the load generator, the upstream and the
//! floor, so that none of them pays more than one httparse pass a message.

use anyhow::{Result, bail};

/// Header fields parsed of one head; the subjects add a handful.
const HEADERS_MAX: usize = 32;
/// A head longer than this is refused.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What a finished head says that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head, blank line included.
    pub bytes: usize,
    /// Status of an answer; 0 for a request.
    pub status: u16,
    pub content_length: usize,
    /// Where a `Connection` field line is, if there is one.
    pub connection: Option<(usize, usize)>,
    pub close: bool,
}

/// Parses a request's head; `None` while it is incomplete.
pub fn parse_request(bytes: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes)? {
        httparse::Status::Partial => partial(bytes),
        httparse::Status::Complete(length) => {
            Ok(Some(read_head(bytes, length, 0, request.headers)?))
        }
    }
}

/// Parses an answer's head; `None` while it is incomplete.
pub fn parse_answer(bytes: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    match answer.parse(bytes)? {
        httparse::Status::Partial => partial(bytes),
        httparse::Status::Complete(length) => {
            let status = answer.code.unwrap_or(0);
            Ok(Some(read_head(bytes, length, status, answer.headers)?))
        }
    }
}

fn partial(bytes: &[u8]) -> Result<Option<Head>> {
    if bytes.len() > HEAD_BYTES_MAX {
        bail!("a head of more than {HEAD_BYTES_MAX} bytes");
    }
    Ok(None)
}

fn read_head(
    bytes: &[u8],
    length: usize,
    status: u16,
    headers: &[httparse::Header<'_>],
) -> Result<Head> {
    let mut head = Head {
        bytes: length,
        status,
        content_length: 0,
        connection: None,
        close: false,
    };
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            head.content_length = std::str::from_utf8(header.value)?.parse()?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("a chunked message, where every message of these cases has a Content-Length");
        } else if header.name.eq_ignore_ascii_case("connection") {
            head.close = header.value.eq_ignore_ascii_case(b"close");
            let start = header.name.as_ptr() as usize - bytes.as_ptr() as usize;
            let line = bytes[start..].iter().position(|&byte| byte == b'\n');
            head.connection = line.map(|end| (start, start + end + 1));
        }
    }
    Ok(head)
}

/// Follows the answers of one connection.
#[derive(Debug, Default)]
pub struct Answer {
    /// A head that came in parts.
    head: Vec<u8>,
    body_left: Option<usize>,
}

impl Answer {
    /// Takes the next bytes. True: the answer is complete. An error: it is not
    /// a 200 with `body_bytes`, or bytes came that nobody asked for.
    pub fn feed(&mut self, bytes: &[u8], body_bytes: usize) -> Result<bool> {
        let arrived = match self.body_left {
            Some(left) => return self.take_body(left, bytes.len()),
            None if self.head.is_empty() => parse_answer(bytes)?.map(|head| (head, bytes.len())),
            None => {
                self.head.extend_from_slice(bytes);
                parse_answer(&self.head)?.map(|head| (head, self.head.len()))
            }
        };
        let Some((head, available)) = arrived else {
            if self.head.is_empty() {
                self.head.extend_from_slice(bytes);
            }
            return Ok(false);
        };
        if head.status != 200 || head.content_length != body_bytes {
            bail!(
                "answered {} with {} bytes instead of 200 with {body_bytes}",
                head.status,
                head.content_length
            );
        }
        self.head.clear();
        self.take_body(body_bytes, available - head.bytes)
    }

    fn take_body(&mut self, left: usize, arrived: usize) -> Result<bool> {
        if arrived > left {
            bail!("{} bytes after the end of an answer", arrived - left);
        }
        let left = left - arrived;
        self.body_left = (left > 0).then_some(left);
        Ok(left == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";

    #[test]
    fn an_answer_is_complete_wherever_it_is_split() {
        for split in 1..ANSWER.len() {
            let mut answer = Answer::default();
            assert!(
                !answer.feed(&ANSWER[..split], 4).unwrap(),
                "split at {split}"
            );
            assert!(
                answer.feed(&ANSWER[split..], 4).unwrap(),
                "split at {split}"
            );
            assert!(
                answer.feed(ANSWER, 4).unwrap(),
                "the next one after a split at {split}"
            );
        }
    }

    #[test]
    fn wrong_answers_are_errors() {
        for (bytes, why) in [
            (
                &b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbody"[..],
                "status",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbodyx",
                "length",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodyx",
                "excess",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "chunked",
            ),
            (b"nonsense\r\n\r\n", "syntax"),
        ] {
            assert!(Answer::default().feed(bytes, 4).is_err(), "{why}");
        }
    }

    #[test]
    fn the_connection_line_is_found() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAccept: b\r\n\r\n";
        let head = parse_request(bytes).unwrap().unwrap();
        let (start, end) = head.connection.unwrap();
        assert_eq!(&bytes[start..end], b"Connection: close\r\n");
        assert!(head.close);
    }
}

//! A raw client: bytes out as a test wrote them, answers parsed by a reader of our own that knows
//! only what HTTP/1.1 framing needs, so that nothing in between mends what the proxy sent.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::PATIENCE;

/// An answer, or one of its interim heads.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Answer {
    /// The first value of a field, by its lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        field(&self.headers, name)
    }

    #[must_use]
    pub fn trailer(&self, name: &str) -> Option<&str> {
        field(&self.trailers, name)
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What the proxy says about an answer of its own.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.header("weft-reason").unwrap_or("")
    }
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    fields
        .iter()
        .find(|(field, _)| field == name)
        .map(|(_, value)| value.as_str())
}

pub struct Raw {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    #[track_caller]
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|| panic!("{address} refuses connections"))
    }

    #[must_use]
    pub fn try_connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .expect("the peer takes what is sent");
    }

    /// The same when the peer may have closed already, as it should on bad input.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Half-closes.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.try_get(path)
            .unwrap_or_else(|| panic!("no whole answer to GET {path}"))
    }

    pub fn try_get(&mut self, path: &str) -> Option<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.try_send(request).ok()?;
        self.try_answer("GET").ok()
    }

    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|line| line.starts_with("Host:")) {
            request += "Host: test\r\n";
        }
        for line in headers {
            request += &format!("{line}\r\n");
        }
        if !body.is_empty() {
            request += &format!("Content-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.send(bytes);
        self.answer_to(method)
    }

    /// The final answer to a request that was not HEAD or CONNECT.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    #[track_caller]
    pub fn answer_to(&mut self, method: &str) -> Answer {
        self.try_answer(method)
            .unwrap_or_else(|error| panic!("no whole answer ({error}): {:?}", self.seen()))
    }

    /// The final answer; interim ones are passed over.
    pub fn try_answer(&mut self, method: &str) -> io::Result<Answer> {
        loop {
            let answer = self.try_head()?;
            if answer.status >= 200 || answer.status == 101 {
                return self.with_body(answer, method);
            }
        }
    }

    fn with_body(&mut self, mut answer: Answer, method: &str) -> io::Result<Answer> {
        let empty = method == "HEAD"
            || (method == "CONNECT" && answer.status < 300)
            || matches!(answer.status, 101 | 204 | 304);
        if empty {
            return Ok(answer);
        }
        let chunked = answer.header("transfer-encoding").is_some();
        if chunked {
            self.chunks(&mut answer)?;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(|_| bad("content-length"))?;
            answer.body = self.take(length)?;
        } else {
            while self.fill()? > 0 {}
            answer.body = std::mem::take(&mut self.buffer);
        }
        Ok(answer)
    }

    fn chunks(&mut self, answer: &mut Answer) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(|_| bad("chunk size"))?;
            if size == 0 {
                break;
            }
            answer.body.extend(self.take(size)?);
            if self.take(2)? != b"\r\n" {
                return Err(bad("chunk end"));
            }
        }
        answer.trailers = self.fields()?;
        Ok(())
    }

    /// One head, interim or final, without its body.
    #[track_caller]
    pub fn head(&mut self) -> Answer {
        self.try_head()
            .unwrap_or_else(|error| panic!("no whole head ({error}): {:?}", self.seen()))
    }

    pub fn try_head(&mut self) -> io::Result<Answer> {
        let line = self.line()?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| bad(&line))?;
        Ok(Answer {
            status,
            headers: self.fields()?,
            ..Answer::default()
        })
    }

    fn fields(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad(&line))?;
            fields.push((name.to_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = self.take(end)?;
                self.take(2)?;
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.more()?;
        }
    }

    /// Exactly so many bytes.
    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.more()?;
        }
        let rest = self.buffer.split_off(count);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Waits for exactly these bytes.
    #[track_caller]
    pub fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let found = self.take(bytes.len());
        let found = found.unwrap_or_else(|error| panic!("{error}: {:?}", self.seen()));
        assert_eq!(
            String::from_utf8_lossy(&found),
            String::from_utf8_lossy(bytes)
        );
    }

    fn more(&mut self) -> io::Result<()> {
        match self.fill()? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut room = [0; 16 * 1024];
        let count = self.stream.read(&mut room)?;
        self.buffer.extend_from_slice(&room[..count]);
        Ok(count)
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Reads to the end of the connection, by FIN or reset, and gives what came; fails the test
    /// when the peer leaves it open.
    #[track_caller]
    pub fn closed(&mut self) -> Vec<u8> {
        self.try_closed()
            .unwrap_or_else(|| panic!("left open; got {:?}", self.seen()))
    }

    /// The same; `None` when the peer leaves it open.
    pub fn try_closed(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.fill() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if is_timeout(&error) => return None,
                Err(_) => break,
            }
        }
        Some(std::mem::take(&mut self.buffer))
    }

    /// True when nothing comes and nothing ends for a moment. For what must *not* happen.
    #[must_use]
    pub fn is_silent(&mut self, moment: Duration) -> bool {
        let _ = self.stream.set_read_timeout(Some(moment));
        let silent = matches!(self.fill(), Err(error) if is_timeout(&error));
        let _ = self.stream.set_read_timeout(Some(PATIENCE));
        silent && self.buffer.is_empty()
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// One GET on a connection of its own.
#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Answer {
    Raw::connect(address).get(path)
}

/// Sends bytes on a connection of their own and reads the answer.
#[track_caller]
pub fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Answer {
    let mut raw = Raw::connect(address);
    raw.send(bytes);
    raw.answer()
}

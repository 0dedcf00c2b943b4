//! HTTP/1.1: `GET /64` and `GET /10k` answer that many bytes, `POST` takes its
//! body and answers 64. One epoll thread, one read and one write a request.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::answer::parse_request;
use crate::case::{LARGE_BYTES, SMALL_BYTES};

const LISTENER: Token = Token(usize::MAX);
const EVENTS_MAX: usize = 256;
const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// A head that came in parts.
    head: Vec<u8>,
    /// Of a request whose head has been read: its answer and what is left of its body.
    pending: Option<(bool, usize)>,
    unsent: Vec<u8>,
}

struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
}

pub fn serve(listen: SocketAddr) -> Result<()> {
    let mut listener =
        TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let answers = Answers {
        small: answer(SMALL_BYTES),
        large: answer(LARGE_BYTES),
    };
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut connections, &mut free)?;
                continue;
            }
            let index = event.token().0;
            let Some(Some(connection)) = connections.get_mut(index) else {
                continue;
            };
            if connection
                .turn(event.is_read_closed(), &answers, &mut buffer)
                .is_err()
            {
                connections[index] = None;
                free.push(index);
            }
        }
    }
}

/// With a Date, so that no subject has to add one.
fn answer(body_bytes: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
         Content-Type: text/plain\r\nContent-Length: {body_bytes}\r\n\r\n"
    );
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + body_bytes, b'x');
    answer
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut Vec<Option<Connection>>,
    free: &mut Vec<usize>,
) -> Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _peer)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        stream.set_nodelay(true)?;
        let index = free.pop().unwrap_or(connections.len());
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut stream, Token(index), interest)?;
        if index == connections.len() {
            connections.push(None);
        }
        connections[index] = Some(Connection {
            stream,
            head: Vec::new(),
            pending: None,
            unsent: Vec::new(),
        });
    }
}

impl Connection {
    fn turn(&mut self, closed: bool, answers: &Answers, buffer: &mut [u8]) -> Result<()> {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            self.send(&unsent)?;
        }
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => bail!("end of stream"),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            self.take(&buffer[..length], answers)?;
            if length < buffer.len() && !closed {
                return Ok(());
            }
        }
    }

    /// Answers every request that these bytes complete.
    fn take(&mut self, mut bytes: &[u8], answers: &Answers) -> Result<()> {
        while !bytes.is_empty() {
            if self.pending.is_none() {
                bytes = self.take_head(bytes)?;
            }
            let Some((large, left)) = self.pending else {
                return Ok(());
            };
            let taken = left.min(bytes.len());
            bytes = &bytes[taken..];
            self.pending = Some((large, left - taken));
            if left == taken {
                self.pending = None;
                self.send(if large {
                    &answers.large
                } else {
                    &answers.small
                })?;
            }
        }
        Ok(())
    }

    /// What follows the head, which is kept while it is incomplete.
    fn take_head<'bytes>(&mut self, bytes: &'bytes [u8]) -> Result<&'bytes [u8]> {
        let before = self.head.len();
        let joined = if before == 0 {
            bytes
        } else {
            self.head.extend_from_slice(bytes);
            &self.head
        };
        let Some(head) = parse_request(joined)? else {
            if before == 0 {
                self.head.extend_from_slice(bytes);
            }
            return Ok(&[]);
        };
        self.pending = Some((joined.starts_with(b"GET /10k "), head.content_length));
        self.head.clear();
        Ok(&bytes[head.bytes - before..])
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let sent = match self.stream.write(bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error.into()),
        };
        self.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }
}

//! The floor of HTTP/1.1: read, httparse, write. Upstream connections are kept
//! and taken by whichever request comes next. Edge-triggered, and a read shorter
//! than the buffer counts as drained, so that a request costs two reads, two
//! writes and its share of two epoll_waits.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::Options;
use crate::answer::{Head, parse_answer, parse_request};

const LISTENER: Token = Token(usize::MAX);
const EVENTS_MAX: usize = 256;
const BUFFER_BYTES: usize = 64 * 1024;
/// Kept upstream connections; the next one is closed.
const IDLE_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Downstream,
    Upstream,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    side: Side,
    peer: Option<usize>,
    /// A head that came in parts.
    head: Vec<u8>,
    body_left: usize,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    /// Close once everything is sent (the client asked for it).
    closing: bool,
}

struct Floor {
    poll: Poll,
    upstream: SocketAddr,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    idle: Vec<usize>,
}

pub fn serve(options: &Options) -> Result<()> {
    let mut listener = TcpListener::bind(options.listen)
        .with_context(|| format!("listening on {}", options.listen))?;
    let poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut floor = Floor {
        poll,
        upstream: options.upstream,
        connections: Vec::new(),
        free: Vec::new(),
        idle: Vec::new(),
    };
    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        floor.poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                floor.accept(&listener)?;
            } else {
                floor.turn(event, &mut buffer);
            }
        }
    }
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            match listener.accept() {
                Ok((stream, _peer)) => self.add(stream, Side::Downstream).map(drop)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn add(&mut self, mut stream: TcpStream, side: Side) -> Result<usize> {
        stream.set_nodelay(true)?;
        let index = self.free.pop().unwrap_or(self.connections.len());
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(index), interest)?;
        let connection = Connection {
            stream,
            side,
            peer: None,
            head: Vec::new(),
            body_left: 0,
            unsent: Vec::new(),
            closing: false,
        };
        if index == self.connections.len() {
            self.connections.push(None);
        }
        self.connections[index] = Some(connection);
        Ok(index)
    }

    /// One connection's event. Whatever goes wrong with it ends it and its peer.
    fn turn(&mut self, event: &Event, buffer: &mut [u8]) {
        let index = event.token().0;
        let result = self.flush(index).and_then(|()| {
            if event.is_readable() {
                self.read(index, event.is_read_closed(), buffer)
            } else {
                Ok(())
            }
        });
        if result.is_err() {
            self.close(index);
        }
    }

    fn read(&mut self, index: usize, closed: bool, buffer: &mut [u8]) -> Result<()> {
        loop {
            let Some(Some(connection)) = self.connections.get_mut(index) else {
                return Ok(());
            };
            let length = match connection.stream.read(buffer) {
                Ok(0) => bail!("end of stream"),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let drained = length < buffer.len() && !closed;
            self.forward(index, &buffer[..length])?;
            if drained {
                return Ok(());
            }
        }
    }

    /// Bytes of a message go to the peer as they come, the head in one piece.
    fn forward(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let connection = self.connection(index)?;
        let side = connection.side;
        if connection.body_left > 0 {
            connection.body_left = connection
                .body_left
                .checked_sub(bytes.len())
                .context("pipelined")?;
            let done = connection.body_left == 0;
            let peer = connection.peer.context("no peer")?;
            self.send(peer, bytes)?;
            return if done && side == Side::Upstream {
                self.finish(index, peer)
            } else {
                Ok(())
            };
        }
        let mut whole = std::mem::take(&mut connection.head);
        let joined = if whole.is_empty() {
            bytes
        } else {
            whole.extend_from_slice(bytes);
            &whole
        };
        let head = match side {
            Side::Downstream => parse_request(joined)?,
            Side::Upstream => parse_answer(joined)?,
        };
        let Some(head) = head else {
            self.connection(index)?.head = joined.to_vec();
            return Ok(());
        };
        let left = (head.bytes + head.content_length)
            .checked_sub(joined.len())
            .context("pipelined")?;
        self.connection(index)?.body_left = left;
        let peer = self.peer(index)?;
        self.send_message(index, peer, (&head, joined))?;
        if left == 0 && side == Side::Upstream {
            self.finish(index, peer)
        } else {
            Ok(())
        }
    }

    /// Without the Connection line, which is for this hop alone.
    fn send_message(
        &mut self,
        from: usize,
        to: usize,
        (head, bytes): (&Head, &[u8]),
    ) -> Result<()> {
        let Some((start, end)) = head.connection else {
            return self.send(to, bytes);
        };
        self.connection(from)?.closing = head.close;
        self.send(to, &[&bytes[..start], &bytes[end..]].concat())
    }

    /// The connection that the message goes to: for a request a kept or a new one.
    fn peer(&mut self, index: usize) -> Result<usize> {
        if let Some(peer) = self.connection(index)?.peer {
            return Ok(peer);
        }
        let peer = match self.idle.pop() {
            Some(peer) => peer,
            None => self.add(TcpStream::connect(self.upstream)?, Side::Upstream)?,
        };
        self.connection(peer)?.peer = Some(index);
        self.connection(index)?.peer = Some(peer);
        Ok(peer)
    }

    /// The answer has been forwarded: the two connections part.
    fn finish(&mut self, upstream: usize, downstream: usize) -> Result<()> {
        let connection = self.connection(downstream)?;
        connection.peer = None;
        let close = connection.closing && connection.unsent.is_empty();
        self.connection(upstream)?.peer = None;
        if self.idle.len() < IDLE_MAX {
            self.idle.push(upstream);
        } else {
            self.close(upstream);
        }
        if close {
            self.close(downstream);
        }
        Ok(())
    }

    fn send(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let connection = self.connection(index)?;
        if !connection.unsent.is_empty() {
            connection.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let sent = write(&mut connection.stream, bytes)?;
        connection.unsent.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    fn flush(&mut self, index: usize) -> Result<()> {
        let Some(Some(connection)) = self.connections.get_mut(index) else {
            return Ok(());
        };
        if connection.unsent.is_empty() {
            return Ok(());
        }
        let sent = write(&mut connection.stream, &connection.unsent)?;
        connection.unsent.drain(..sent);
        if connection.closing && connection.unsent.is_empty() && connection.peer.is_none() {
            bail!("answered, and asked to close");
        }
        Ok(())
    }

    fn connection(&mut self, index: usize) -> Result<&mut Connection> {
        self.connections
            .get_mut(index)
            .and_then(Option::as_mut)
            .context("no such connection")
    }

    fn close(&mut self, index: usize) {
        let mut next = Some(index);
        while let Some(index) = next {
            next = None;
            if let Some(connection) = self.connections.get_mut(index).and_then(Option::take) {
                self.free.push(index);
                self.idle.retain(|&idle| idle != index);
                next = connection.peer;
            }
        }
    }
}

/// How much the socket took, which is nothing while it is still connecting.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize> {
    match stream.write(bytes) {
        Ok(sent) => Ok(sent),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::NotConnected
            ) =>
        {
            Ok(0)
        }
        Err(error) => Err(error.into()),
    }
}

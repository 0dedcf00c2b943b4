//! The floor of opaque TCP: read, write, both ways, with back-pressure (a side
//! is read only while the other one took everything) and half-close.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::Options;

const LISTENER: Token = Token(usize::MAX);
const EVENTS_MAX: usize = 64;
const BUFFER_BYTES: usize = 16 * 1024;

/// One direction of a pair.
#[derive(Debug)]
struct Way {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    finished: bool,
}

#[derive(Debug)]
struct Pair {
    streams: [TcpStream; 2],
    /// Indexed by the side that is read.
    ways: [Way; 2],
}

pub fn serve(options: &Options) -> Result<()> {
    let mut listener = TcpListener::bind(options.listen)
        .with_context(|| format!("listening on {}", options.listen))?;
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, options.upstream, &mut pairs)?;
                continue;
            }
            let index = event.token().0 / 2;
            let Some(Some(pair)) = pairs.get_mut(index) else {
                continue;
            };
            // Either side's event may unblock either way.
            let ended = pair
                .copy(0)
                .and_then(|first| Ok(first & pair.copy(1)?))
                .unwrap_or(true);
            if ended {
                pairs[index] = None;
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    upstream: SocketAddr,
    pairs: &mut Vec<Option<Pair>>,
) -> Result<()> {
    loop {
        let downstream = match listener.accept() {
            Ok((stream, _peer)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let index = pairs
            .iter()
            .position(Option::is_none)
            .unwrap_or(pairs.len());
        let mut streams = [downstream, TcpStream::connect(upstream)?];
        for (side, stream) in streams.iter_mut().enumerate() {
            stream.set_nodelay(true)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry()
                .register(stream, Token(index * 2 + side), interest)?;
        }
        let pair = Pair {
            streams,
            ways: [Way::new(), Way::new()],
        };
        if index == pairs.len() {
            pairs.push(None);
        }
        pairs[index] = Some(pair);
    }
}

impl Way {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES].into(),
            start: 0,
            end: 0,
            finished: false,
        }
    }
}

impl Pair {
    /// Moves what can be moved from one side to the other; true once that
    /// direction has ended.
    fn copy(&mut self, from: usize) -> std::io::Result<bool> {
        let (first, second) = self.streams.split_at_mut(1);
        let (source, sink) = if from == 0 {
            (&mut first[0], &mut second[0])
        } else {
            (&mut second[0], &mut first[0])
        };
        let way = &mut self.ways[from];
        while !way.finished {
            if way.start == way.end {
                match source.read(&mut way.buffer) {
                    Ok(0) => {
                        way.finished = true;
                        sink.shutdown(Shutdown::Write)?;
                        break;
                    }
                    Ok(length) => (way.start, way.end) = (0, length),
                    Err(error) if would_block(&error) => break,
                    Err(error) => return Err(error),
                }
            }
            match sink.write(&way.buffer[way.start..way.end]) {
                Ok(length) => way.start += length,
                Err(error) if would_block(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(way.finished)
    }
}

fn would_block(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::NotConnected
    )
}

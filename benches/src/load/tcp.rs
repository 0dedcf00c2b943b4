//! 1 GiB through one opaque connection, half up and then half down, again and
//! again until the window is over. A request is 1 MiB: its latency is the time
//! from the one before, seen where this side writes or reads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Edge, OnEdge, Outcome, Plan, STALL_TIMEOUT};
use crate::case::{TRANSFER_BYTES, TRANSFER_UNIT_BYTES};
use crate::upstream::tcp::{BLOCK_BYTES, opening};

pub fn run(plan: &Plan, on_edge: OnEdge<'_>) -> Result<Outcome> {
    let mut outcome = Outcome::new()?;
    // A small transfer warms up what there is to warm up.
    transfer(plan, TRANSFER_BYTES / 16, &mut Outcome::new()?)?;
    on_edge(Edge::Start)?;
    let start = Instant::now();
    while start.elapsed() < plan.window || outcome.requests == 0 {
        transfer(plan, TRANSFER_BYTES, &mut outcome)?;
    }
    outcome.elapsed = start.elapsed();
    on_edge(Edge::End)?;
    Ok(outcome)
}

pub fn probe(plan: &Plan) -> Result<()> {
    transfer(plan, 2, &mut Outcome::new()?)
}

fn transfer(plan: &Plan, bytes: u64, outcome: &mut Outcome) -> Result<()> {
    let half = bytes / 2;
    let mut stream = TcpStream::connect(plan.addr)?;
    stream.set_read_timeout(Some(STALL_TIMEOUT))?;
    stream.set_write_timeout(Some(STALL_TIMEOUT))?;
    stream.write_all(&opening(half, half))?;
    let mut block = vec![b'x'; BLOCK_BYTES];
    let mut units = Units {
        left: TRANSFER_UNIT_BYTES,
        last: Instant::now(),
    };
    let mut left = half;
    while left > 0 {
        let most = block.len().min(usize::try_from(left)?);
        stream.write_all(&block[..most]).context("sending")?;
        units.count(most, outcome);
        left -= most as u64;
    }
    let mut received = 0;
    loop {
        let length = stream.read(&mut block).context("receiving")?;
        if length == 0 {
            break;
        }
        received += length as u64;
        units.count(length, outcome);
    }
    ensure!(
        received == half,
        "{received} bytes came back instead of {half}"
    );
    Ok(())
}

struct Units {
    left: u64,
    last: Instant,
}

impl Units {
    fn count(&mut self, bytes: usize, outcome: &mut Outcome) {
        let mut bytes = bytes as u64;
        while bytes >= self.left {
            bytes -= self.left;
            self.left = TRANSFER_UNIT_BYTES;
            let now = Instant::now();
            outcome.record(now - self.last);
            self.last = now;
        }
        self.left -= bytes;
    }
}

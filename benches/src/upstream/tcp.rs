//! Opaque TCP: a connection opens with two big-endian u64, how many bytes will
//! come up and how many shall go down; both then follow, in that order.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, bail};

/// Bytes of one read or write, here and in the load generator.
pub const BLOCK_BYTES: usize = 256 * 1024;
/// Bytes of the two numbers at the start.
pub const OPENING_BYTES: usize = 16;

pub fn opening(up: u64, down: u64) -> [u8; OPENING_BYTES] {
    let mut bytes = [0; OPENING_BYTES];
    bytes[..8].copy_from_slice(&up.to_be_bytes());
    bytes[8..].copy_from_slice(&down.to_be_bytes());
    bytes
}

pub fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A transfer that fails is the load generator's to report.
        thread::spawn(move || transfer(stream));
    }
    Ok(())
}

fn transfer(mut stream: TcpStream) -> Result<()> {
    let mut opening = [0; OPENING_BYTES];
    stream.read_exact(&mut opening)?;
    let (up, down) = opening.split_at(8);
    let mut up = u64::from_be_bytes(up.try_into()?);
    let mut down = u64::from_be_bytes(down.try_into()?);
    let mut block = vec![b'x'; BLOCK_BYTES];
    while up > 0 {
        let most = block.len().min(usize::try_from(up)?);
        let length = stream.read(&mut block[..most])?;
        if length == 0 {
            bail!("ended early");
        }
        up -= length as u64;
    }
    while down > 0 {
        let most = block.len().min(usize::try_from(down)?);
        stream.write_all(&block[..most])?;
        down -= most as u64;
    }
    Ok(())
}

//! The floor: the least that a proxy on sockets can do. One thread, epoll,
//! httparse, and one write for each read; no features, no errors answered, no
//! metrics. What Weft costs beyond this is Weft's. `http1` forwards requests,
//! `copy` forwards bytes.

mod copy;
mod http1;

use std::net::SocketAddr;

use anyhow::Result;

/// What the floor forwards to where.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[arg(long)]
    pub listen: SocketAddr,
    #[arg(long)]
    pub upstream: SocketAddr,
    /// Copy bytes instead of forwarding HTTP/1.1 requests.
    #[arg(long)]
    pub tcp: bool,
}

/// Runs until it is killed.
pub fn serve(options: &Options) -> Result<()> {
    if options.tcp {
        copy::serve(options)
    } else {
        http1::serve(options)
    }
}

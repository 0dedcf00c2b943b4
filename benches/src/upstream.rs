//! The upstream of every case, a process of its own: fast enough that it costs
//! little beside the subject. A thread each for HTTP/1.1 (`http1`), HTTP/2 and
//! gRPC (`http2`), and opaque TCP (`tcp`), all on the load generator's core.

mod http1;
mod http2;
pub mod tcp;

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;

use anyhow::{Result, anyhow};

/// Where it listens.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Ports {
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST)]
    pub host: Ipv4Addr,
    #[arg(long)]
    pub http1: u16,
    #[arg(long)]
    pub http2: u16,
    #[arg(long)]
    pub tcp: u16,
}

/// Runs until it is killed.
pub fn serve(ports: &Ports) -> Result<()> {
    let ports = *ports;
    let at = move |port| SocketAddr::from((ports.host, port));
    let threads = [
        thread::spawn(move || http1::serve(at(ports.http1))),
        thread::spawn(move || http2::serve(at(ports.http2))),
        thread::spawn(move || tcp::serve(at(ports.tcp))),
    ];
    for thread in threads {
        thread
            .join()
            .map_err(|_panic| anyhow!("an upstream thread panicked"))??;
    }
    Ok(())
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

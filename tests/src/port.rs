//! Free ports on loopback.
//!
//! They lie below the kernel's ephemeral range (32768 and up), so that no outgoing connection of a
//! program under test can take one between our look and the program's bind.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 15_000;
const COUNT: u16 = 17_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port on 127.0.0.1 that nobody listens on, given out once in this process.
#[must_use]
pub fn free() -> u16 {
    let listener = listener();
    listener.local_addr().map_or(0, |address| address.port())
}

/// The same, already listening, so that nobody can come between.
#[must_use]
pub fn listener() -> TcpListener {
    // Test processes of one run, or of two at once, begin in different places.
    let start = u16::try_from(std::process::id().wrapping_mul(211) % u32::from(COUNT)).unwrap_or(0);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start + step % COUNT) % COUNT;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener;
        }
    }
    panic!("no port between {FIRST} and {} is free", FIRST + COUNT);
}

/// The same as an address.
#[must_use]
pub fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free()))
}

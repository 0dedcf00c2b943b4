//! The last connections before listening ends.
//!
//! Closing a listening socket resets what the kernel has finished connecting
//! and nobody has accepted yet, and under steady new connections there always
//! is some. So first the kernel is told to ignore those who begin to connect
//! (they try again a second later, and then are refused); those who had begun
//! are still accepted.

use socket2::{SockFilter, SockRef};

use crate::sockets::Sockets;

/// Classic BPF on a TCP header: drops a segment with SYN.
const NO_SYN: [SockFilter; 4] = [
    // Load the flags (byte 13).
    SockFilter::new(0x30, 0, 0, 13),
    // If SYN (0x02) is set, go on to the next, else skip it.
    SockFilter::new(0x45, 0, 1, 0x02),
    // Keep 0 bytes.
    SockFilter::new(0x06, 0, 0, 0),
    // Keep all.
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Lets nobody begin to connect any more. Only for sockets that no other
/// process accepts on: it is one kernel socket for all that hold it.
pub fn begin(sockets: &Sockets) {
    let done = sockets.duplicates().and_then(|sockets| {
        sockets
            .iter()
            .try_for_each(|(_, socket)| SockRef::from(socket).attach_filter(&NO_SYN))
    });
    if let Err(error) = done {
        // Without it a connection may be reset, which is no reason to stay.
        tracing::debug!(%error, "cannot tell the kernel to ignore new connections");
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_had_connected_is_accepted_and_nobody_after_it() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue; // No IPv6 here.
            };
            let address = listener.local_addr().unwrap();
            let before = TcpStream::connect(address).unwrap();
            SockRef::from(&listener).attach_filter(&NO_SYN).unwrap();
            let late = TcpStream::connect_timeout(&address, Duration::from_millis(100));
            assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer, before.local_addr().unwrap());
        }
    }
}

//! The demo's own part of the loopback network, 127.x.y.0/24: an address for each replica, and ports as
//! in a real mesh. Two demos at once have two such parts.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};

/// Parts tried before giving up, by a process' own order.
const TRIES_MAX: u32 = 64;
/// Second octets in use: 127.32.0.0 to 127.63.255.255.
const SECOND_FIRST: u8 = 32;
const SECOND_COUNT: u32 = 32;
const THIRD_COUNT: u32 = 250;
/// Where a demo listens, so that no other takes its part.
const CLAIM: (u8, u16) = (254, 14_009);
const GATEWAY: u8 = 1;
const CONTROLLER: u8 = 2;
const REPLICA_FIRST: u8 = 11;
const REPLICA_LAST: u8 = 250;

/// Where every application listens.
pub const APPLICATION_PORT: u16 = 8080;
/// Where a proxy says what it does.
pub const ADMIN_PORT: u16 = 14_020;
/// Where the gateway takes requests from outside.
const STORE_PORT: u16 = 8000;

/// One part of the loopback network, for as long as this lives.
#[derive(Debug)]
pub struct Subnet {
    front: [u8; 3],
    next: u8,
    _claim: TcpListener,
}

impl Subnet {
    pub fn claim() -> Result<Self> {
        let first = std::process::id();
        for number in (first..).take(usize::try_from(TRIES_MAX)?) {
            let front = front(number);
            let claim = TcpListener::bind(SocketAddr::from((host(front, CLAIM.0), CLAIM.1)));
            let Ok(claim) = claim else { continue };
            let subnet = Self {
                front,
                next: REPLICA_FIRST,
                _claim: claim,
            };
            // Somebody who listens on all addresses is in the way everywhere.
            if TcpListener::bind(subnet.store()).is_ok() {
                return Ok(subnet);
            }
        }
        bail!(
            "no free part of 127.{SECOND_FIRST}.0.0 was found for the demo: does something listen on all addresses at port {STORE_PORT} or {}?",
            CLAIM.1
        )
    }

    pub fn gateway(&self) -> Ipv4Addr {
        host(self.front, GATEWAY)
    }

    /// The store's door.
    pub fn store(&self) -> SocketAddr {
        (self.gateway(), STORE_PORT).into()
    }

    pub fn controller(&self) -> Ipv4Addr {
        host(self.front, CONTROLLER)
    }

    /// An address that no replica had before.
    pub fn replica(&mut self) -> Result<Ipv4Addr> {
        let next = Some(self.next).filter(|next| *next <= REPLICA_LAST);
        let next = next.context("the demo has used all of its addresses")?;
        self.next += 1;
        Ok(host(self.front, next))
    }
}

fn front(number: u32) -> [u8; 3] {
    let octet = |value: u32| u8::try_from(value).unwrap_or_default();
    let second = octet(number % SECOND_COUNT).saturating_add(SECOND_FIRST);
    [127, second, octet(1 + number / SECOND_COUNT % THIRD_COUNT)]
}

fn host([first, second, third]: [u8; 3], fourth: u8) -> Ipv4Addr {
    Ipv4Addr::new(first, second, third, fourth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_demos_have_two_parts() {
        let (mut one, two) = (Subnet::claim().unwrap(), Subnet::claim().unwrap());
        assert_ne!(one.gateway(), two.gateway());
        assert_ne!(one.replica().unwrap(), one.replica().unwrap());
        for number in [0, 31, 32, 8000, u32::MAX] {
            let [first, second, third] = front(number);
            assert!(first == 127 && (32..64).contains(&second) && (1..=250).contains(&third));
        }
    }
}

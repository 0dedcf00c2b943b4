//! The ring of consistent hashing (`pingora-ketama`: nginx's points, 160 for
//! each unit of weight), and the rule where the ring is too sparse. Owns sizes
//! and weights; `pick` decides who will do.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use pingora_ketama::{Bucket, Continuum};

use super::endpoint::EndpointState;
use super::hash::{fnv, mix};

/// A point names its endpoint in 16 bits. Those beyond are only reached when
/// the walk finds nothing.
const ENDPOINTS_MAX: usize = 65_535;

/// Units of weight on a ring (160 points of 8 bytes each: 5 MiB), unless there
/// are more endpoints than that. Larger weights are scaled down to it.
const UNITS_MAX: u64 = 4_096;

/// Points looked at from the key on. With half of the endpoints out a walk is
/// longer once in 2^128 picks, with 98 % out once in 13.
const WALK_MAX: usize = 128;

pub(super) struct Ring(Continuum);

impl Ring {
    /// `weights` are those of `endpoints`, all at least 1.
    pub(super) fn new(endpoints: &[Arc<EndpointState>], weights: &[u32]) -> Ring {
        let buckets: Vec<Bucket> = endpoints
            .iter()
            .zip(units(weights))
            .take(ENDPOINTS_MAX)
            .map(|(endpoint, units)| Bucket::new(endpoint.address(), units))
            .collect();
        Ring(Continuum::new(&buckets))
    }

    /// Endpoints in the key's order, with repetitions.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = &SocketAddr> {
        self.0.node_iter(&key.to_le_bytes()).take(WALK_MAX)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ring")
    }
}

/// Weights by their greatest common divisor; scaled if that is still too many.
fn units(weights: &[u32]) -> Vec<u32> {
    let divisor = weights
        .iter()
        .fold(0, |divisor, weight| greatest_common(*weight, divisor));
    let total: u64 = weights
        .iter()
        .map(|weight| u64::from(weight / divisor.max(1)))
        .sum();
    let scaled = |weight: u32| {
        let units = u64::from(weight / divisor.max(1));
        let fitted = if total <= UNITS_MAX {
            units
        } else {
            units * UNITS_MAX / total
        };
        fitted.max(1) as u32
    };
    weights.iter().map(|weight| scaled(*weight)).collect()
}

fn greatest_common(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// How much a key likes an endpoint (weighted rendezvous hashing): the
/// endpoint liked best is as consistent a choice as the ring's, and moves only
/// its own keys when it goes. Positive.
pub(super) fn liking(key: u64, address: SocketAddr, weight: f64) -> f64 {
    weight / -unit(key, address).ln()
}

/// A number above 0 and below 1 that is random but fixed for key and endpoint.
pub(super) fn unit(key: u64, address: SocketAddr) -> f64 {
    let hash = match address.ip() {
        IpAddr::V4(ip) => fnv(key, &ip.octets()),
        IpAddr::V6(ip) => fnv(key, &ip.octets()),
    };
    let hash = mix(fnv(hash, &address.port().to_le_bytes()));
    ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_keep_the_ratio_and_the_bound() {
        assert_eq!(units(&[]), [0u32; 0]);
        assert_eq!(units(&[100, 100]), [1, 1]);
        assert_eq!(units(&[10, 30, 20]), [1, 3, 2]);
        let scaled = units(&[1_000_003, 1, 2_000_006]);
        assert_eq!(scaled, [1365, 1, 2730]);
        assert_eq!(units(&[u32::MAX, u32::MAX - 1]), [2048, 2047]);
        assert_eq!(units(&[1; 10_000]).iter().sum::<u32>(), 10_000);
    }

    #[test]
    fn units_of_a_pair_are_between_zero_and_one() {
        for key in [0, 1, u64::MAX] {
            for port in [0, 80, u16::MAX] {
                let unit = unit(key, SocketAddr::from(([10, 0, 0, 1], port)));
                assert!(unit > 0.0 && unit < 1.0);
            }
        }
    }
}

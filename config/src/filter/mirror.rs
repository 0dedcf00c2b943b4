//! RequestMirror: which of a rule's mirrors get a copy of a request. Sending it is
//! the proxy's.

use crate::snapshot::{Filter, Mirror};

/// The mirrors that fire. Each filter draws for itself, so that two mirrors of a
/// half do not always fire together; `random` is uniform over all of `u64`.
pub fn mirrors(filters: &[Filter], random: u64) -> impl Iterator<Item = &Mirror> {
    filters
        .iter()
        .filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(mirror),
            _ => None,
        })
        .enumerate()
        .filter(move |(index, mirror)| fires(mirror, mix(random, *index as u64)))
        .map(|(_, mirror)| mirror)
}

fn fires(mirror: &Mirror, random: u64) -> bool {
    let drawn = (u128::from(random) * u128::from(mirror.denominator)) >> 64;
    drawn < u128::from(mirror.numerator)
}

/// SplitMix64's finaliser: independent draws out of one.
fn mix(random: u64, index: u64) -> u64 {
    let mut z = random.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

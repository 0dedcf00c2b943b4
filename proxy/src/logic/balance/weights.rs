//! Draws an endpoint in proportion to its weight. Owns the running sums;
//! leaves availability to `pick`.
//!
//! Endpoints lie in one line, each as wide as its weight; a point on the line
//! names one. Where all weights are alike the line needs no table.

use std::ops::Range;

/// 2^64 divided by the golden ratio: the multiples of it, modulo 2^64, fall
/// evenly over the line however many are taken (Weyl's sequence), which makes a
/// weighted round robin out of a counter, without a lock.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

#[derive(Debug)]
pub(super) struct Weights {
    /// Sum of the weights up to and with each endpoint; `None`: all alike.
    sums: Option<Box<[u64]>>,
    mean: f64,
}

impl Weights {
    /// `weights` are all at least 1.
    pub(super) fn new(weights: &[u32]) -> Weights {
        let even = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let sums = || {
            let mut sum = 0;
            weights
                .iter()
                .map(|weight| {
                    sum += u64::from(*weight);
                    sum
                })
                .collect()
        };
        Weights {
            sums: (!even).then(sums),
            mean: if even {
                1.0
            } else {
                total as f64 / weights.len() as f64
            },
        }
    }

    pub(super) fn are_even(&self) -> bool {
        self.sums.is_none()
    }

    /// Weight in units of the mean weight.
    pub(super) fn relative(&self, index: usize) -> f64 {
        match &self.sums {
            None => 1.0,
            Some(sums) => (sum(sums, index + 1) - sum(sums, index)) as f64 / self.mean,
        }
    }

    /// The endpoint at a random point of a range that is not empty.
    pub(super) fn at_random(&self, range: &Range<usize>, point: u64) -> usize {
        match &self.sums {
            None => range.start + scale(point, range.len() as u64) as usize,
            Some(sums) => at_point(sums, range, point),
        }
    }

    /// The endpoint whose turn it is: every endpoint once in each `len` turns
    /// if the weights are alike, else as evenly spread as its weight allows.
    pub(super) fn at_turn(&self, range: &Range<usize>, turn: u64) -> usize {
        match &self.sums {
            None => range.start + (turn % range.len() as u64) as usize,
            Some(sums) => at_point(sums, range, turn.wrapping_mul(GOLDEN)),
        }
    }
}

fn at_point(sums: &[u64], range: &Range<usize>, point: u64) -> usize {
    let before = sum(sums, range.start);
    let target = before + scale(point, sum(sums, range.end) - before);
    let found = sums.partition_point(|sum| *sum <= target);
    // Holds already; a bound here keeps a wrong table from leaving the range.
    found.clamp(range.start, range.end - 1)
}

/// Sum of the first `count` weights.
fn sum(sums: &[u64], count: usize) -> u64 {
    count
        .checked_sub(1)
        .and_then(|last| sums.get(last))
        .copied()
        .unwrap_or(0)
}

/// `point` out of 2^64, as a number below `total`.
fn scale(point: u64, total: u64) -> u64 {
    ((u128::from(point) * u128::from(total)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u32], range: Range<usize>, count: u64) -> Vec<u64> {
        let table = Weights::new(weights);
        let mut hits = vec![0; weights.len()];
        for turn in 0..count {
            hits[table.at_turn(&range, turn)] += 1;
        }
        hits
    }

    #[test]
    fn even_turns_are_exact() {
        assert_eq!(turns(&[7, 7, 7], 0..3, 300), [100, 100, 100]);
        assert_eq!(turns(&[1, 1, 1, 1], 1..3, 10), [0, 5, 5, 0]);
    }

    #[test]
    fn weighted_turns_follow_the_weights_closely() {
        let weights = [5, 1, 1, 3];
        for count in [10, 100, 1_000, 10_000] {
            for (hits, weight) in turns(&weights, 0..4, count).iter().zip(weights) {
                let due = count as f64 * f64::from(weight) / 10.0;
                let off = (*hits as f64 - due).abs();
                assert!(off <= 4.0, "{hits} of {count} for weight {weight}");
            }
        }
        // The heaviest never waits longer than its weight explains.
        let table = Weights::new(&weights);
        let sequence: Vec<_> = (0..1000).map(|turn| table.at_turn(&(0..4), turn)).collect();
        assert!(
            sequence.windows(3).all(|window| window.contains(&0)),
            "{:?}",
            &sequence[..20]
        );
    }

    #[test]
    fn points_meet_their_endpoint() {
        let table = Weights::new(&[1, 3, 4]);
        let eighth = 1u64 << 61;
        for (range, eighths, found) in [
            (0..3, 0, 0),
            (0..3, 1, 1),
            (0..3, 3, 1),
            (0..3, 4, 2),
            (0..3, 7, 2),
            (2..3, 7, 2),
        ] {
            assert_eq!(
                table.at_random(&range, eighths * eighth),
                found,
                "{range:?} {eighths}/8"
            );
        }
        assert_eq!(table.at_random(&(0..2), u64::MAX), 1);
        assert_eq!(table.at_random(&(0..3), u64::MAX), 2);
        assert_eq!(table.relative(2), 1.5);
    }
}

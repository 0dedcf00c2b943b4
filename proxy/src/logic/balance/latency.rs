//! One endpoint's latency: a peak-sensitive exponentially weighted average
//! (Finagle's and tower's peak EWMA) in one atomic word, so that any worker may
//! read or update it without a lock.
//!
//! - A sample above the average replaces it at once; a lower one pulls it down
//!   with the time constant `decay`.
//! - Reading decays the average towards zero for as long as no sample came, so
//!   that an endpoint which was slow once is tried again. (tower writes the
//!   decayed value back at each look; here reading stays a read, because every
//!   worker looks at every endpoint and the cache line would never rest.)
//! - A failure never lowers the average: a replica that answers 503 within
//!   100 µs would otherwise attract everything. One that cannot be reached
//!   doubles it, within bounds, so that P2C turns away from a dead endpoint even
//!   without outlier detection and comes back as the average decays.
//! - An average that nothing has refreshed for [`STALE_DECAYS`] time constants
//!   says nothing any more: the endpoint counts as new.
//!
//! The word: the upper half is the time of the last sample in ticks of 2^18 ns
//! (262 µs, wrapping after 13 days), the lower half the average as an `f32` of
//! nanoseconds. Zero: no sample. Of the lower samples within one tick the first
//! counts, with the weight of the whole tick.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::logic::time::Nanos;

const TICK_BITS: u32 = 18;
const TICK_NANOS: f64 = (1u64 << TICK_BITS) as f64;

/// e^-8 = 0.0003 of a latency is no estimate of it.
const STALE_DECAYS: f64 = 8.0;

/// What an unreachable endpoint's average is at least, and where its doubling
/// ends. The upper bound is what lets it come back: from 1 s to 1 ms takes
/// 7 time constants without a single pick.
const UNREACHABLE_MIN: f32 = 10e6;
const UNREACHABLE_MAX: f32 = 1e9;

#[derive(Debug, Default)]
pub(super) struct PeakEwma(AtomicU64);

/// What a sample says of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sample {
    /// The time an answer took.
    Answer,
    /// The real latency is at least this: a failure, or nobody waited longer.
    AtLeast,
    /// No answer at all.
    Unreachable,
}

impl PeakEwma {
    /// Average in nanoseconds as of `now`; `None`: nothing is known.
    pub(super) fn estimate(&self, now: Nanos, decay_nanos: f64) -> Option<f64> {
        let word = self.0.load(Relaxed);
        if word == 0 {
            return None;
        }
        let decays = elapsed_nanos(word, now) / decay_nanos;
        (decays < STALE_DECAYS).then(|| f64::from(average(word)) * remaining(decays))
    }

    pub(super) fn update(&self, sample: Sample, latency: Duration, now: Nanos, decay_nanos: f64) {
        // An f32 of nanoseconds is exact to a tenth of a millionth.
        let nanos = (latency.as_nanos() as f32).max(1.0);
        let step = |word| Some(next(word, sample, nanos, now, decay_nanos));
        let _ = self.0.fetch_update(Relaxed, Relaxed, step);
    }

    pub(super) fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

fn next(word: u64, sample: Sample, nanos: f32, now: Nanos, decay_nanos: f64) -> u64 {
    let decays = elapsed_nanos(word, now) / decay_nanos;
    let known = word != 0 && decays < STALE_DECAYS;
    let old = if known { average(word) } else { 0.0 };
    let new = match sample {
        Sample::Answer if nanos >= old => nanos,
        Sample::Answer => {
            let keep = remaining(decays) as f32;
            old * keep + nanos * (1.0 - keep)
        }
        Sample::AtLeast => nanos.max(old),
        Sample::Unreachable => {
            let doubled = (old * 2.0).clamp(UNREACHABLE_MIN, UNREACHABLE_MAX);
            nanos.max(old).max(doubled)
        }
    };
    // Workers' clocks are read at slightly different times: never step back.
    let tick = if word == 0 || elapsed_ticks(word, now) > 0 {
        tick_of(now)
    } else {
        tick(word)
    };
    (u64::from(tick) << 32) | u64::from(new.max(1.0).to_bits())
}

fn average(word: u64) -> f32 {
    f32::from_bits(word as u32)
}

fn tick(word: u64) -> u32 {
    (word >> 32) as u32
}

fn tick_of(now: Nanos) -> u32 {
    (now.0 >> TICK_BITS) as u32
}

/// Zero if the difference is more than half the range: our clock was read
/// before the sample's.
fn elapsed_ticks(word: u64, now: Nanos) -> u32 {
    let ticks = tick_of(now).wrapping_sub(tick(word));
    if ticks > u32::MAX / 2 { 0 } else { ticks }
}

fn elapsed_nanos(word: u64, now: Nanos) -> f64 {
    f64::from(elapsed_ticks(word, now)) * TICK_NANOS
}

/// e^-x; the straight line where it cannot be told from the curve, since most
/// samples of a busy endpoint lie microseconds apart.
fn remaining(decays: f64) -> f64 {
    if decays < 1e-3 {
        1.0 - decays
    } else {
        (-decays).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: f64 = 10e9;

    fn at(seconds: f64) -> Nanos {
        Nanos((seconds * 1e9) as u64)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn close(estimate: Option<f64>, millis: f64) {
        let found = estimate.expect("an estimate") / 1e6;
        assert!(
            (found - millis).abs() <= millis * 0.01,
            "{found} ms, wanted {millis} ms"
        );
    }

    #[test]
    fn a_peak_replaces_and_lower_samples_pull() {
        let ewma = PeakEwma::default();
        assert_eq!(ewma.estimate(at(0.0), DECAY), None);
        ewma.update(Sample::Answer, ms(10), at(1.0), DECAY);
        close(ewma.estimate(at(1.0), DECAY), 10.0);
        ewma.update(Sample::Answer, ms(100), at(1.0), DECAY);
        close(ewma.estimate(at(1.0), DECAY), 100.0);
        ewma.update(Sample::Answer, ms(10), at(11.0), DECAY);
        close(
            ewma.estimate(at(11.0), DECAY),
            100.0 / 1f64.exp() + 10.0 * (1.0 - 1.0 / 1f64.exp()),
        );
    }

    #[test]
    fn many_small_steps_equal_one_large() {
        let ewma = PeakEwma::default();
        ewma.update(Sample::Answer, ms(100), at(1.0), DECAY);
        for step in 1..=100_000u32 {
            ewma.update(
                Sample::Answer,
                ms(10),
                at(1.0 + f64::from(step) * 1e-4),
                DECAY,
            );
        }
        close(
            ewma.estimate(at(11.0), DECAY),
            100.0 / 1f64.exp() + 10.0 * (1.0 - 1.0 / 1f64.exp()),
        );
    }

    #[test]
    fn reading_decays_and_stale_is_unknown() {
        let ewma = PeakEwma::default();
        ewma.update(Sample::Answer, ms(100), at(1.0), DECAY);
        close(ewma.estimate(at(11.0), DECAY), 100.0 / 1f64.exp());
        close(ewma.estimate(at(1.0), DECAY), 100.0);
        assert_eq!(ewma.estimate(at(82.0), DECAY), None);
        // A clock read before the sample's never looks like a long time.
        close(ewma.estimate(at(0.5), DECAY), 100.0);
        ewma.update(Sample::AtLeast, ms(1), at(0.5), DECAY);
        close(ewma.estimate(at(1.0), DECAY), 100.0);
    }

    #[test]
    fn failures_never_lower() {
        let ewma = PeakEwma::default();
        ewma.update(Sample::Answer, ms(20), at(1.0), DECAY);
        ewma.update(Sample::AtLeast, ms(1), at(6.0), DECAY);
        close(ewma.estimate(at(6.0), DECAY), 20.0);
        ewma.update(Sample::Unreachable, ms(0), at(6.0), DECAY);
        close(ewma.estimate(at(6.0), DECAY), 40.0);
        for _ in 0..50 {
            ewma.update(Sample::Unreachable, ms(0), at(6.0), DECAY);
        }
        close(ewma.estimate(at(6.0), DECAY), 1000.0);
        let new = PeakEwma::default();
        new.update(Sample::Unreachable, Duration::ZERO, at(1.0), DECAY);
        close(new.estimate(at(1.0), DECAY), 10.0);
        // A timeout of 5 s stays 5 s.
        new.update(Sample::Unreachable, ms(5000), at(1.0), DECAY);
        close(new.estimate(at(1.0), DECAY), 5000.0);
        new.reset();
        assert_eq!(new.estimate(at(1.0), DECAY), None);
    }
}

//! Time as the pure logic sees it: a number that somebody else read from a
//! clock. Owns the arithmetic, and no clock.
//!
//! **Invariant:** nothing in here wraps or panics. A worker that read the clock
//! a little earlier than another sees an elapsed time of zero, never a huge one.

use std::ops::Add;
use std::time::Duration;

/// Nanoseconds since the process started (enough for 584 years).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    pub const ZERO: Nanos = Nanos(0);

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl From<Duration> for Nanos {
    fn from(duration: Duration) -> Self {
        Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Add<Duration> for Nanos {
    type Output = Nanos;

    fn add(self, duration: Duration) -> Nanos {
        Nanos(self.0.saturating_add(Nanos::from(duration).0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let second = Nanos::from(Duration::from_secs(1));
        assert_eq!(second, Nanos(1_000_000_000));
        assert_eq!(Nanos::ZERO.since(second), Duration::ZERO);
        assert_eq!(
            (second + Duration::from_secs(1)).since(second),
            Duration::from_secs(1)
        );
        assert_eq!(second + Duration::MAX, Nanos(u64::MAX));
    }
}

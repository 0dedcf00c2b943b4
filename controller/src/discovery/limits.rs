//! How many certificates one caller may ask for, so that it cannot starve the others. The
//! rates are pure: `now` is an argument.
//!
//! **Invariant:** memory is bounded by `CALLERS_MAX`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Certificates for one workload: so many at once, and one more after each `REFILL`.
pub const SIGNS_BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(3);
/// Callers that are remembered until they have their burst again.
const CALLERS_MAX: usize = 20_000;
/// Certificates signed in a second, for all.
pub const SIGNS_PER_SECOND_MAX: u32 = 200;

/// How many certificates are asked for, by whom.
#[derive(Debug, Default)]
pub struct Rates {
    /// When each has its whole burst again.
    callers: HashMap<String, Instant>,
    second: Option<(Instant, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Granted,
    /// This caller asks too often.
    CallerLimited,
    /// All together do.
    Limited,
}

impl Rates {
    pub fn admit(&mut self, caller: &str, now: Instant) -> Admission {
        if self.callers.len() >= CALLERS_MAX && !self.callers.contains_key(caller) {
            self.callers.retain(|_, whole| *whole > now);
            if self.callers.len() >= CALLERS_MAX {
                return Admission::Limited;
            }
        }
        let whole = self
            .callers
            .get(caller)
            .map_or(now, |whole| (*whole).max(now));
        if whole + REFILL > now + REFILL * SIGNS_BURST {
            return Admission::CallerLimited;
        }
        let (since, count) = match self.second {
            Some((since, count)) if now - since < Duration::from_secs(1) => (since, count),
            _ => (now, 0),
        };
        if count >= SIGNS_PER_SECOND_MAX {
            return Admission::Limited;
        }
        self.second = Some((since, count + 1));
        self.callers.insert(caller.to_owned(), whole + REFILL);
        Admission::Granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_s_flood_costs_only_itself() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        for _ in 0..SIGNS_BURST {
            assert_eq!(rates.admit("hostile", now), Admission::Granted);
        }
        for _ in 0..10_000 {
            assert_eq!(rates.admit("hostile", now), Admission::CallerLimited);
        }
        assert_eq!(rates.admit("other", now), Admission::Granted);
        assert_eq!(rates.admit("hostile", now + REFILL), Admission::Granted);
        assert_eq!(
            rates.admit("hostile", now + REFILL),
            Admission::CallerLimited
        );
    }

    #[test]
    fn all_together_are_limited_and_memory_is() {
        let (mut rates, mut now) = (Rates::default(), Instant::now());
        let mut count = 0;
        while rates.admit(&count.to_string(), now) == Admission::Granted {
            count += 1;
        }
        assert_eq!(count, SIGNS_PER_SECOND_MAX);
        for number in 0..3 * CALLERS_MAX {
            now += Duration::from_millis(5);
            rates.admit(&format!("n{number}"), now);
            assert!(rates.callers.len() <= CALLERS_MAX);
        }
        assert_eq!(rates.admit("late", now + REFILL), Admission::Granted);
    }
}

//! How much one caller may ask for, and how often, so that it cannot starve the others. The
//! rates are pure: `now` is an argument.
//!
//! **Invariant:** memory is bounded by `CALLERS_MAX`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::hub::Hub;
use super::sign::SignError;

/// Certificates for one workload: so many at once, and one more after each `REFILL`.
pub const SIGNS_BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(3);
/// Callers that are remembered until they have their burst again.
const CALLERS_MAX: usize = 20_000;
/// Certificates signed in a second, for all.
pub const SIGNS_PER_SECOND_MAX: u32 = 200;

/// What one stream may ask for: names at once, and those that come to it in a second. A proxy
/// that comes back with all it may want asks for a quarter of that.
pub const ASKED_BURST: usize = 200_000;
pub const ASKED_PER_SECOND: usize = 20_000;
/// Connections from one address: at once, and those that come to it in a second. Proxies of
/// one machine may share theirs.
pub const ARRIVALS_BURST: u32 = 10_000;
pub const ARRIVALS_PER_SECOND: u32 = 500;
/// Between two looks for addresses that are to be forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// How much a stream has asked for.
#[derive(Debug, Default)]
pub struct Pace {
    /// When it has its whole burst again.
    whole: Option<Instant>,
}

impl Pace {
    pub fn spend(&mut self, cost: usize, now: Instant) {
        let whole = self.whole.map_or(now, |whole| whole.max(now));
        let seconds = cost as f64 / ASKED_PER_SECOND as f64;
        self.whole = Some(whole + Duration::from_secs_f64(seconds));
    }

    /// How long it has to wait before it is heard again.
    pub fn pause(&self, now: Instant) -> Duration {
        let burst = Duration::from_secs((ASKED_BURST / ASKED_PER_SECOND) as u64);
        let whole = self.whole.map(|whole| whole.saturating_duration_since(now));
        whole.map_or(Duration::ZERO, |whole| whole.saturating_sub(burst))
    }
}

/// How often each address connects.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// When each has its whole burst again.
    whole: HashMap<IpAddr, Instant>,
    swept: Option<Instant>,
}

impl Arrivals {
    /// Whether one more is taken.
    pub fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        let each = Duration::from_secs(1) / ARRIVALS_PER_SECOND;
        let is_due = |swept: Instant| now.duration_since(swept) >= SWEEP;
        if self.whole.len() >= CALLERS_MAX && self.swept.is_none_or(is_due) {
            self.swept = Some(now);
            self.whole.retain(|_, whole| *whole > now);
        }
        // So many at once that they cannot be told apart are not held to it.
        if self.whole.len() >= CALLERS_MAX && !self.whole.contains_key(&from) {
            return true;
        }
        let whole = self.whole.entry(from).or_insert(now);
        let next = (*whole).max(now) + each;
        let is_admitted = next <= now + each * ARRIVALS_BURST;
        if is_admitted {
            *whole = next;
        }
        is_admitted
    }
}

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

impl Hub {
    /// Whether a line about this may go to the log; how many were left out before it.
    pub fn may_log(&self, subject: &[&str]) -> Option<u64> {
        self.lines.admit(&subject.join(" "), Instant::now())
    }

    /// Whether one more certificate may be signed now.
    pub fn admit_sign(&self, caller: &str) -> Result<(), SignError> {
        match self.rates.lock().admit(caller, Instant::now()) {
            Admission::Granted => Ok(()),
            Admission::CallerLimited => Err(SignError::CallerLimited),
            Admission::Limited => Err(SignError::RateLimited),
        }
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
    fn who_asks_without_end_is_heard_at_a_pace() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.spend(ASKED_BURST, now);
        assert_eq!(pace.pause(now), Duration::ZERO);
        pace.spend(2 * ASKED_PER_SECOND, now);
        let pause = pace.pause(now);
        assert_eq!(pause.as_millis(), 2_000);
        assert_eq!(pace.pause(now + pause), Duration::ZERO);
    }

    #[test]
    fn one_address_that_connects_without_end_is_held_to_a_rate() {
        let (mut arrivals, mut now) = (Arrivals::default(), Instant::now());
        let hostile = IpAddr::from([10, 0, 0, 1]);
        let taken = (0..100_000)
            .filter(|_| arrivals.admit(hostile, now))
            .count();
        assert_eq!(taken, ARRIVALS_BURST as usize);
        assert!(arrivals.admit(IpAddr::from([10, 0, 0, 2]), now));
        now += Duration::from_secs(1);
        let taken = (0..100_000)
            .filter(|_| arrivals.admit(hostile, now))
            .count();
        assert_eq!(taken, ARRIVALS_PER_SECOND as usize);
        for number in 0..2 * CALLERS_MAX as u32 {
            arrivals.admit(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(arrivals.whole.len() <= CALLERS_MAX);
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

//! What one caller may take, so that it cannot starve the others. The rates are pure:
//! `now` is an argument.
//!
//! **Invariant:** memory is bounded by what is held and by `CALLERS_MAX`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

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

/// Counts what each of many holds, and gives none more than `max`.
#[derive(Clone, Debug)]
pub struct Tally {
    max: usize,
    held: Arc<Mutex<HashMap<String, usize>>>,
}

/// One of those; given back when dropped.
#[derive(Debug)]
pub struct Held {
    tally: Tally,
    who: String,
}

impl Tally {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            held: Arc::default(),
        }
    }

    pub fn take(&self, who: &str) -> Option<Held> {
        let mut held = self.held.lock();
        let count = held.entry(who.to_owned()).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Held {
            tally: self.clone(),
            who: who.to_owned(),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.tally.held.lock();
        if let Some(count) = held.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.who);
            }
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

    #[test]
    fn what_is_held_is_given_back() {
        let tally = Tally::new(2);
        let first = tally.take("a");
        let second = tally.take("a");
        assert!(first.is_some() && second.is_some());
        assert!(tally.take("a").is_none());
        assert!(tally.take("b").is_some());
        drop(first);
        assert!(tally.take("a").is_some());
        drop(second);
        assert!(tally.held.lock().is_empty());
    }
}

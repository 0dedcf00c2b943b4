//! How much one caller may ask for, and how often, so that it cannot starve the others. The
//! rates are pure: `now` is an argument.
//!
//! **Invariant:** memory is bounded by `CALLERS_MAX`.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
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

/// What the streams of one workload may ask for together: names at once, and those that come to it
/// in a second. A proxy that comes back with all it may want asks for a quarter of that.
pub const ASKED_BURST: u32 = 200_000;
pub const ASKED_PER_SECOND: u32 = 20_000;
/// Connections from one address: at once, and those that come to it in a second. Proxies of
/// one machine may share theirs.
pub const ARRIVALS_BURST: u32 = 10_000;
pub const ARRIVALS_PER_SECOND: u32 = 500;
/// Between two looks for callers that are to be forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// When each of many callers has its whole burst again.
#[derive(Debug)]
struct Bursts<K> {
    whole: HashMap<K, Instant>,
    swept: Option<Instant>,
}

impl<K> Default for Bursts<K> {
    fn default() -> Self {
        Self {
            whole: HashMap::new(),
            swept: None,
        }
    }
}

impl<K: Eq + Hash> Bursts<K> {
    /// `now` at the earliest.
    fn whole<Q: Eq + Hash + ?Sized>(&self, caller: &Q, now: Instant) -> Instant
    where
        K: Borrow<Q>,
    {
        self.whole
            .get(caller)
            .map_or(now, |whole| (*whole).max(now))
    }

    /// Whether it is remembered; else there are too many.
    fn remember(&mut self, caller: K, whole: Instant, now: Instant) -> bool {
        let is_due = |swept: Instant| now.duration_since(swept) >= SWEEP;
        if self.whole.len() >= CALLERS_MAX && self.swept.is_none_or(is_due) {
            self.swept = Some(now);
            self.whole.retain(|_, whole| *whole > now);
        }
        let has_room = self.whole.len() < CALLERS_MAX || self.whole.contains_key(&caller);
        if has_room {
            self.whole.insert(caller, whole);
        }
        has_room
    }
}

/// How much each workload has asked for. So many at once that they cannot be told apart are
/// not held to it.
#[derive(Debug, Default)]
pub struct Paces(Bursts<String>);

impl Paces {
    pub fn spend(&mut self, workload: &str, cost: usize, now: Instant) {
        let seconds = cost as f64 / f64::from(ASKED_PER_SECOND);
        let whole = self.0.whole(workload, now) + Duration::from_secs_f64(seconds);
        self.0.remember(workload.to_owned(), whole, now);
    }

    /// How long it has to wait before it is heard again.
    pub fn pause(&self, workload: &str, now: Instant) -> Duration {
        let burst = Duration::from_secs(1) / ASKED_PER_SECOND * ASKED_BURST;
        let whole = self.0.whole(workload, now);
        whole.saturating_duration_since(now + burst)
    }
}

/// How often each address connects. So many at once that they cannot be told apart are not
/// held to it.
#[derive(Debug, Default)]
pub struct Arrivals(Bursts<IpAddr>);

impl Arrivals {
    /// Whether one more is taken.
    pub fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        let each = Duration::from_secs(1) / ARRIVALS_PER_SECOND;
        let next = self.0.whole(&from, now) + each;
        let is_admitted = next <= now + each * ARRIVALS_BURST;
        if is_admitted {
            self.0.remember(from, next, now);
        }
        is_admitted
    }
}

/// How many certificates are asked for, by whom.
#[derive(Debug, Default)]
pub struct Rates {
    callers: Bursts<String>,
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
        let whole = self.callers.whole(caller, now) + REFILL;
        if whole > now + REFILL * SIGNS_BURST {
            return Admission::CallerLimited;
        }
        let (since, count) = match self.second {
            Some((since, count)) if now - since < Duration::from_secs(1) => (since, count),
            _ => (now, 0),
        };
        if count >= SIGNS_PER_SECOND_MAX || !self.callers.remember(caller.to_owned(), whole, now) {
            return Admission::Limited;
        }
        self.second = Some((since, count + 1));
        Admission::Granted
    }
}

impl Hub {
    /// Whether a line about this may go to the log; how many were left out before it.
    pub fn may_log(&self, subject: &[&str]) -> Option<u64> {
        self.lines.admit(&subject.join(" "), Instant::now())
    }

    /// Notes what a workload asks for.
    pub fn spend(&self, workload: &str, cost: usize) {
        self.paces.lock().spend(workload, cost, Instant::now());
    }

    /// How long a workload has to wait before it is heard again.
    pub fn pause(&self, workload: &str) -> Duration {
        self.paces.lock().pause(workload, Instant::now())
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
    use std::sync::Arc;

    use weft_config::xds::DeltaDiscoveryRequest;

    use super::*;
    use crate::discovery::leave::tests::{caller, hub};
    use crate::discovery::stream::Session;
    use crate::index::Type;

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
        let (mut paces, now) = (Paces::default(), Instant::now());
        let (burst, second) = (ASKED_BURST as usize, ASKED_PER_SECOND as usize);
        paces.spend("hostile", burst, now);
        assert_eq!(paces.pause("hostile", now), Duration::ZERO);
        paces.spend("hostile", 2 * second, now);
        let pause = paces.pause("hostile", now);
        assert_eq!(pause.as_millis(), 2_000);
        assert_eq!(paces.pause("hostile", now + pause), Duration::ZERO);
        paces.spend("other", burst, now);
        assert_eq!(paces.pause("other", now), Duration::ZERO);
        for number in 0..2 * CALLERS_MAX {
            paces.spend(&number.to_string(), 1, now);
        }
        assert!(paces.0.whole.len() <= CALLERS_MAX);
    }

    #[test]
    fn another_stream_is_no_other_burst() {
        let hub = hub();
        let names: Vec<String> = (0..50_000).map(|number| number.to_string()).collect();
        for _ in 0..3 {
            let caller = caller("client", "hostile");
            let (mut session, _) = Session::open(Arc::clone(&hub), caller).unwrap();
            for (add, drop) in [(&names, &Vec::new()), (&Vec::new(), &names)] {
                let request = DeltaDiscoveryRequest {
                    type_url: Type::Endpoints.url(),
                    resource_names_subscribe: add.clone(),
                    resource_names_unsubscribe: drop.clone(),
                    ..Default::default()
                };
                session.receive(request).map_err(|(why, _)| why).unwrap();
            }
        }
        assert!(hub.pause("hostile") > Duration::ZERO);
        assert_eq!(hub.pause("other"), Duration::ZERO);
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
        assert!(arrivals.0.whole.len() <= CALLERS_MAX);
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
            assert!(rates.callers.whole.len() <= CALLERS_MAX);
        }
        assert_eq!(rates.admit("late", now + REFILL), Admission::Granted);
    }
}

//! The retry budget of one service: what keeps retries from making an outage
//! worse. Over a sliding interval they may be a share of the requests, or so
//! many a second, whichever is more (Gateway API's XBackendTrafficPolicy).
//!
//! The interval is a ring of [`SLOTS`] slots, each one atomic word: 16 bits
//! of the slot's number (so that an old slot is known as old), 28 bits of
//! requests, 20 bits of retries. Counts stop at their maximum. Every retry of
//! a moment goes through the word of the current slot, by compare-and-swap, so
//! that workers cannot spend the same allowance twice.
//!
//! The floor is given out slot by slot, not as one sum: after a quiet time a
//! burst of failures may retry a slot's part of it, and not the interval's.
//!
//! A slot number comes again after 65,536 slots (18 hours at the default): a
//! service idle for exactly so long would find its old count once. Harmless.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use weft_config::snapshot::RetryBudget;

use crate::logic::time::Nanos;

const SLOTS: u64 = 10;
const RETRIES_MAX: u64 = (1 << 20) - 1;
const REQUESTS_MAX: u64 = (1 << 28) - 1;

#[derive(Debug)]
pub struct Budget {
    percent: u64,
    slot_nanos: u64,
    /// Retries that need no requests: in one slot, and in the whole interval.
    slot_floor: u64,
    floor: u64,
    slots: [AtomicU64; SLOTS as usize],
}

/// A slot's word, taken apart.
#[derive(Clone, Copy, Default)]
struct Slot {
    requests: u64,
    retries: u64,
}

impl Budget {
    /// An interval of zero counts as one of 10 ms.
    pub fn new(policy: &RetryBudget) -> Budget {
        let interval = policy.interval.max(Duration::from_millis(10));
        let slot_nanos = (Nanos::from(interval).0 / SLOTS).max(1);
        let per_second = f64::from(policy.retries_min_per_second);
        let floor = (per_second * interval.as_secs_f64()).ceil() as u64;
        Budget {
            percent: u64::from(policy.percent),
            slot_nanos,
            slot_floor: floor.div_ceil(SLOTS),
            floor,
            slots: Default::default(),
        }
    }

    /// Counts a request: once, not again for its retries.
    pub fn deposit(&self, now: Nanos) {
        let number = now.0 / self.slot_nanos;
        let add = |word| {
            let slot = unpack(word, number);
            Some(pack(
                number,
                Slot {
                    requests: (slot.requests + 1).min(REQUESTS_MAX),
                    ..slot
                },
            ))
        };
        let _ = self.slot(number).fetch_update(Relaxed, Relaxed, add);
    }

    /// Takes one retry, if there is one.
    pub fn withdraw(&self, now: Nanos) -> bool {
        let number = now.0 / self.slot_nanos;
        let earlier = self.sum_before(number);
        let take = |word| {
            let slot = unpack(word, number);
            let requests = earlier.requests + slot.requests;
            let retries = earlier.retries + slot.retries;
            let by_share = retries < requests * self.percent / 100;
            let by_floor = retries < self.floor && slot.retries < self.slot_floor;
            ((by_share || by_floor) && slot.retries < RETRIES_MAX).then(|| {
                pack(
                    number,
                    Slot {
                        retries: slot.retries + 1,
                        ..slot
                    },
                )
            })
        };
        self.slot(number)
            .fetch_update(Relaxed, Relaxed, take)
            .is_ok()
    }

    /// Requests and retries of the interval up to now, for metrics.
    pub fn used(&self, now: Nanos) -> (u64, u64) {
        let number = now.0 / self.slot_nanos;
        let earlier = self.sum_before(number);
        let current = unpack(self.slot(number).load(Relaxed), number);
        (
            earlier.requests + current.requests,
            earlier.retries + current.retries,
        )
    }

    fn sum_before(&self, number: u64) -> Slot {
        let mut sum = Slot::default();
        for earlier in number.saturating_sub(SLOTS - 1)..number {
            let slot = unpack(self.slot(earlier).load(Relaxed), earlier);
            sum.requests += slot.requests;
            sum.retries += slot.retries;
        }
        sum
    }

    fn slot(&self, number: u64) -> &AtomicU64 {
        // In range by the modulo.
        &self.slots[(number % SLOTS) as usize]
    }
}

/// Empty if the word is of another slot than `number`.
fn unpack(word: u64, number: u64) -> Slot {
    if word >> 48 != number & 0xFFFF {
        return Slot::default();
    }
    Slot {
        requests: (word >> 20) & REQUESTS_MAX,
        retries: word & RETRIES_MAX,
    }
}

fn pack(number: u64, slot: Slot) -> u64 {
    (number & 0xFFFF) << 48 | slot.requests << 20 | slot.retries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(percent: u32, interval: u64, retries_min_per_second: u32) -> Budget {
        let interval = Duration::from_secs(interval);
        Budget::new(&RetryBudget {
            percent,
            interval,
            retries_min_per_second,
        })
    }

    fn at(millis: u64) -> Nanos {
        Nanos::from(Duration::from_millis(millis))
    }

    fn deposit(budget: &Budget, count: u32, now: Nanos) {
        (0..count).for_each(|_| budget.deposit(now));
    }

    /// How many retries are given at this moment.
    fn drain(budget: &Budget, now: Nanos) -> usize {
        (0..100_000).take_while(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn a_share_of_the_requests() {
        let budget = budget(20, 10, 0);
        assert_eq!(drain(&budget, at(0)), 0);
        deposit(&budget, 100, at(0));
        assert_eq!(drain(&budget, at(0)), 20);
        deposit(&budget, 9, at(500));
        assert_eq!(drain(&budget, at(600)), 1);
        // Within the interval nothing comes back.
        assert_eq!(drain(&budget, at(9_900)), 0);
        // With its requests gone their share is gone, and so is what was spent of it.
        deposit(&budget, 10, at(20_000));
        assert_eq!(budget.used(at(20_000)), (10, 0));
        assert_eq!(drain(&budget, at(20_000)), 2);
    }

    #[test]
    fn the_interval_slides() {
        let budget = budget(10, 10, 0);
        for second in 0..10 {
            deposit(&budget, 100, at(second * 1000));
        }
        assert_eq!(budget.used(at(9_999)), (1000, 0));
        assert_eq!(drain(&budget, at(9_999)), 100);
        deposit(&budget, 200, at(10_000));
        assert_eq!(budget.used(at(10_000)), (1100, 100));
        assert_eq!(drain(&budget, at(10_000)), 10);
        // The spent ones stay until their own slot goes.
        assert_eq!(budget.used(at(18_999)), (300, 110));
        assert_eq!(budget.used(at(19_000)), (200, 10));
    }

    #[test]
    fn the_floor_is_for_each_second() {
        let budget = budget(0, 10, 10);
        assert_eq!(drain(&budget, at(0)), 10);
        assert_eq!(drain(&budget, at(999)), 0);
        assert_eq!(drain(&budget, at(1_000)), 10);
        for (interval, per_second, first) in [(1, 1, 1), (1, 100, 10), (100, 1, 10), (10, 0, 0)] {
            let budget = self::budget(0, interval, per_second);
            assert_eq!(
                drain(&budget, at(0)),
                first,
                "{per_second}/s over {interval} s"
            );
            let millis = 0..interval * 1000;
            let given: usize = first + millis.map(|ms| drain(&budget, at(ms))).sum::<usize>();
            assert_eq!(given as u64, interval * u64::from(per_second));
        }
    }

    #[test]
    fn whichever_is_more_not_both() {
        let budget = budget(20, 10, 10);
        deposit(&budget, 1000, at(0));
        assert_eq!(drain(&budget, at(0)), 200);
        // 200 spent is more than the floor's 100.
        assert_eq!(drain(&budget, at(5_000)), 0);
    }

    #[test]
    fn odd_policies() {
        assert_eq!(drain(&budget(0, 0, 1_000), at(0)), 1);
        let all = budget(200, 10, 0);
        deposit(&all, 5, at(0));
        assert_eq!(drain(&all, at(0)), 10);
        // Time that steps back a slot takes nothing it should not.
        let budget = budget(100, 10, 0);
        deposit(&budget, 5, at(1_000));
        assert_eq!(drain(&budget, at(0)), 0);
    }

    #[test]
    fn threads_cannot_spend_twice() {
        let budget = budget(20, 10, 0);
        deposit(&budget, 10_000, at(0));
        let taken = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| drain(&budget, at(1))))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .sum::<usize>()
        });
        assert_eq!(taken, 2000);
    }
}

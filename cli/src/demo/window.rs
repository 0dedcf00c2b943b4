//! The last seconds of something that happens often: its rate, its share of
//! successes and its latencies. Pure: the time comes as an argument, counted
//! from the start of the demo.

use std::collections::VecDeque;
use std::time::Duration;

/// What is counted together.
const SLOT: Duration = Duration::from_millis(500);
/// Slots that are kept besides the one that is still being filled.
const SLOTS: usize = 6;
/// How far back a window reaches.
pub const SPAN: Duration = Duration::from_millis(3000);
/// Latencies kept of one slot; a faster load is sampled by its first ones.
const LATENCIES_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Slot {
    index: u128,
    good: u64,
    bad: u64,
    micros: Vec<u32>,
}

/// Three seconds of counts.
#[derive(Debug, Default)]
pub struct Window {
    slots: VecDeque<Slot>,
    /// The slot of the first count.
    first: Option<u128>,
}

impl Window {
    pub fn count(&mut self, now: Duration, good: u64, bad: u64) {
        let slot = self.slot(now);
        slot.good += good;
        slot.bad += bad;
    }

    pub fn took(&mut self, now: Duration, latency: Duration) {
        let slot = self.slot(now);
        if slot.micros.len() < LATENCIES_MAX {
            slot.micros
                .push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
    }

    /// Per second.
    pub fn rate(&self, now: Duration) -> f64 {
        let (good, bad) = self.counts(now);
        // In the beginning fewer slots have passed.
        let age = self
            .first
            .map_or(0, |first| index(now).saturating_sub(first));
        let passed = age.clamp(1, SLOTS as u128) as f64;
        (good + bad) as f64 / (passed * SLOT.as_secs_f64())
    }

    /// Of 1; none where nothing happened.
    pub fn success(&self, now: Duration) -> Option<f64> {
        let (good, bad) = self.counts(now);
        (good + bad > 0).then(|| good as f64 / (good + bad) as f64)
    }

    /// The latency that this share of 1 is not above; none where nothing happened.
    pub fn quantile(&self, now: Duration, share: f64) -> Option<Duration> {
        let full = self.full(now);
        let mut micros: Vec<u32> = full.flat_map(|slot| slot.micros.iter().copied()).collect();
        micros.sort_unstable();
        let rank = (micros.len() as f64 * share).ceil() as usize;
        let micros = micros.get(rank.saturating_sub(1))?;
        Some(Duration::from_micros(u64::from(*micros)))
    }

    fn counts(&self, now: Duration) -> (u64, u64) {
        let add = |(good, bad), slot: &Slot| (good + slot.good, bad + slot.bad);
        self.full(now).fold((0, 0), add)
    }

    /// The slots that are full and not too old.
    fn full(&self, now: Duration) -> impl Iterator<Item = &Slot> {
        let now = index(now);
        let within = move |slot: &&Slot| slot.index < now && slot.index + SLOTS as u128 >= now;
        self.slots.iter().filter(within)
    }

    fn slot(&mut self, now: Duration) -> &mut Slot {
        let index = index(now);
        self.first.get_or_insert(index);
        if self.slots.back().is_none_or(|slot| slot.index < index) {
            if self.slots.len() > SLOTS {
                self.slots.pop_front();
            }
            self.slots.push_back(Slot {
                index,
                ..Slot::default()
            });
        }
        self.slots
            .back_mut()
            .expect("a slot was pushed where there was none")
    }
}

fn index(now: Duration) -> u128 {
    now.as_millis() / SLOT.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn only_full_slots_of_the_last_seconds_count() {
        let mut window = Window::default();
        assert_eq!((window.rate(at(0)), window.success(at(0))), (0.0, None));
        window.count(at(100), 50, 0);
        assert_eq!(window.rate(at(100)), 0.0, "the slot is not full");
        assert_eq!(window.rate(at(600)), 100.0);
        for slot in 1..10 {
            window.count(at(500 * slot), 40, 10);
        }
        assert_eq!(window.rate(at(5000)), 100.0);
        assert_eq!(window.success(at(5000)), Some(0.8));
        assert_eq!(window.rate(at(9000)), 0.0, "all is too old");
    }

    #[test]
    fn quantiles() {
        let mut window = Window::default();
        for millis in 1..=100 {
            window.took(at(0), at(millis));
        }
        assert_eq!(window.quantile(at(500), 0.5), Some(at(50)));
        assert_eq!(window.quantile(at(500), 0.99), Some(at(99)));
        assert_eq!(window.quantile(at(500), 0.0), Some(at(1)));
        assert_eq!(window.quantile(at(9000), 0.5), None);
    }
}

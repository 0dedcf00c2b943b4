//! Which object's status is to be written next. Pure: `now` counts from any moment.
//!
//! **Invariant:** an object is in it once, with the newest that is to be said of it.
//! **Invariant:** one whose writing fails every time, or that somebody changes back every
//! time, takes its turns and nobody else's.

use std::collections::BTreeMap;
use std::time::Duration;

use super::patch::Desired;
use crate::api::Key;

/// Objects that wait. Beyond it they are left out until all are looked at again.
pub const QUEUE_MAX: usize = 20_000;
/// Between two writes of one object.
const PACE: Duration = Duration::from_secs(1);
/// After a failure, doubled with each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// Read and written anew at once: somebody came in between.
const CONFLICTS_AT_ONCE: u32 = 3;

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    /// It is as it should be, or there is no such object.
    Right,
    Conflict,
    Failed,
}

impl Outcome {
    /// Labels of the metric.
    pub const RESULTS: &'static [&'static str] =
        &["written", "right", "conflict", "failed", "dropped"];

    pub fn result(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Right => "right",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug)]
struct Waiting {
    desired: Desired,
    due: Duration,
    tries: u32,
}

/// One that is being written.
#[derive(Debug)]
pub struct Turn {
    pub key: Key,
    pub desired: Desired,
    tries: u32,
}

#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<Key, Waiting>,
    /// When those that were written may be again.
    resting: BTreeMap<Key, Duration>,
}

impl Queue {
    /// `false`: there is no room for it.
    pub fn put(&mut self, key: Key, desired: Desired, now: Duration) -> bool {
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.desired = desired;
            return true;
        }
        if self.waiting.len() >= QUEUE_MAX {
            return false;
        }
        self.resting.retain(|_, until| *until > now);
        let due = self.resting.get(&key).copied().unwrap_or(now);
        let tries = 0;
        let waiting = Waiting {
            desired,
            due,
            tries,
        };
        self.waiting.insert(key, waiting);
        true
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
        self.resting.clear();
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The first that is due; else when one will be.
    pub fn take(&mut self, now: Duration) -> Result<Turn, Option<Duration>> {
        let first = self.waiting.iter().min_by_key(|(_, of)| of.due);
        let Some((key, due)) = first.map(|(key, of)| (key.clone(), of.due)) else {
            return Err(None);
        };
        if due > now {
            return Err(Some(due));
        }
        let Some((key, of)) = self.waiting.remove_entry(&key) else {
            return Err(None);
        };
        Ok(Turn {
            key,
            desired: of.desired,
            tries: of.tries,
        })
    }

    /// What became of a turn.
    pub fn done(&mut self, turn: Turn, outcome: Outcome, now: Duration) {
        let pause = match outcome {
            Outcome::Right => return,
            Outcome::Written => {
                let again = now + PACE;
                self.resting.insert(turn.key.clone(), again);
                if let Some(waiting) = self.waiting.get_mut(&turn.key) {
                    waiting.due = again;
                }
                return;
            }
            Outcome::Conflict if turn.tries < CONFLICTS_AT_ONCE => Duration::ZERO,
            Outcome::Conflict | Outcome::Failed => back_off(turn.tries),
        };
        let waiting = self.waiting.entry(turn.key).or_insert(Waiting {
            // What was put meanwhile is newer.
            desired: turn.desired,
            due: now,
            tries: 0,
        });
        waiting.due = now + pause;
        waiting.tries = turn.tries.saturating_add(1);
    }
}

fn back_off(tries: u32) -> Duration {
    let doubled = BACK_OFF_MIN.saturating_mul(2_u32.saturating_pow(tries));
    doubled.min(BACK_OFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key {
            kind: "HTTPRoute",
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn an_object_is_in_it_once_and_rests_after_it_was_written() {
        let mut queue = Queue::default();
        assert!(queue.put(key("a"), Desired::default(), at(0)));
        assert!(queue.put(key("a"), Desired::default(), at(1)));
        assert_eq!(queue.len(), 1);
        let turn = queue.take(at(1)).unwrap();
        assert_eq!(queue.take(at(1)).unwrap_err(), None);
        queue.done(turn, Outcome::Written, at(2));
        // Our own write is told of like anybody's.
        assert!(queue.put(key("a"), Desired::default(), at(3)));
        assert_eq!(queue.take(at(3)).unwrap_err(), Some(at(1002)));
        assert!(queue.take(at(1002)).is_ok());
    }

    #[test]
    fn one_that_conflicts_every_time_does_not_hold_up_the_others() {
        let mut queue = Queue::default();
        assert!(queue.put(key("a"), Desired::default(), at(0)));
        for tries in 0..=CONFLICTS_AT_ONCE {
            let turn = queue.take(at(0)).unwrap();
            assert_eq!(turn.tries, tries);
            queue.done(turn, Outcome::Conflict, at(0));
        }
        // What is new of it does not make it come sooner.
        assert!(queue.put(key("a"), Desired::default(), at(0)));
        assert!(queue.put(key("b"), Desired::default(), at(0)));
        let other = queue.take(at(0)).unwrap();
        assert_eq!(other.key, key("b"));
        queue.done(other, Outcome::Right, at(0));
        let due = queue.take(at(0)).unwrap_err().unwrap();
        assert_eq!(due, back_off(CONFLICTS_AT_ONCE));
        let turn = queue.take(due).unwrap();
        queue.done(turn, Outcome::Failed, due);
        let later = queue.take(due).unwrap_err().unwrap();
        assert_eq!(later - due, back_off(CONFLICTS_AT_ONCE + 1));
        assert_eq!(back_off(40), BACK_OFF_MAX);
    }

    #[test]
    fn it_is_bounded() {
        let mut queue = Queue::default();
        for number in 0..QUEUE_MAX {
            assert!(queue.put(key(&number.to_string()), Desired::default(), at(0)));
        }
        assert!(!queue.put(key("more"), Desired::default(), at(0)));
        assert!(queue.put(key("0"), Desired::default(), at(0)), "is there");
        assert_eq!(queue.len(), QUEUE_MAX);
        queue.clear();
        assert_eq!(queue.len(), 0);
    }
}

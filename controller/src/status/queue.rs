//! Which object's status is to be looked at next. Pure: `now` counts from any moment.
//!
//! ```text
//!   put ─▶ ready ── take ─▶ under way ── right, written ─▶ rests for a while
//!            ▲                   │
//!            └───── later ◀──────┴── conflict, failed, put again meanwhile
//! ```
//!
//! Namespaces take turns, and in each the newest and the oldest do: so that a flood of
//! thousands holds up neither another namespace nor what somebody changes there now, and
//! comes to its end all the same.
//!
//! **Invariant:** an object is in it once.
//! **Invariant:** one whose writing fails every time, that somebody changes back every time,
//! or whose writing takes long, takes its turns and nobody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use crate::api::Key;

/// Objects that wait. Beyond it they are left out until the queue is empty, when all are
/// looked at again.
pub const QUEUE_MAX: usize = 100_000;
/// Writes that are under way at once: all, and of one namespace, whose webhook may be slow.
pub const WRITES_MAX: usize = 8;
pub const WRITES_OF_NAMESPACE_MAX: usize = 2;
/// Between two writes of one object, doubled each time that somebody has changed back what
/// we wrote.
const PACE_MIN: Duration = Duration::from_secs(1);
const PACE_MAX: Duration = Duration::from_secs(60);
/// After a failure, doubled with each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// Somebody came in between: so often it is written anew once the watch has had the time to
/// bring what they wrote.
const CONFLICTS_AT_ONCE: u32 = 3;
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);
/// Changed back so often, it is no accident.
pub const FIGHTS_MIN: u32 = 3;

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the hash of what was written.
    Written(u64),
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
            Self::Written(_) => "written",
            Self::Right => "right",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

/// One that is not under way.
#[derive(Debug)]
struct Waiting {
    /// Its place among those of its namespace.
    place: u64,
    /// Not before this; `None`: it is ready.
    due: Option<Duration>,
    tries: u32,
}

/// Those of one namespace that are ready, in order of their places.
#[derive(Debug, Default)]
struct Ready {
    all: BTreeSet<(u64, Key)>,
    /// The last turn was the newest's.
    was_newest: bool,
}

/// One that was written.
#[derive(Debug)]
struct Resting {
    until: Duration,
    /// What was written, and how often in a row it was the same.
    hash: u64,
    fights: u32,
}

/// One that is looked at and written.
#[derive(Debug)]
pub struct Turn {
    pub key: Key,
    /// Failures and conflicts in a row.
    pub tries: u32,
}

#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<Key, Waiting>,
    /// Those that are ready, by namespace.
    ready: BTreeMap<String, Ready>,
    later: BTreeSet<(Duration, Key)>,
    /// Whether it was put again meanwhile.
    under_way: BTreeMap<Key, bool>,
    resting: BTreeMap<Key, Resting>,
    /// Which namespace had the last turn.
    last: String,
    places: u64,
}

impl Queue {
    /// Something is to be looked at. `false`: there is no room for it.
    pub fn put(&mut self, key: Key, now: Duration) -> bool {
        if let Some(again) = self.under_way.get_mut(&key) {
            *again = true;
            return true;
        }
        // What is new of one that fails does not make it come sooner.
        if self.waiting.get(&key).is_some_and(|of| of.due.is_some()) {
            return true;
        }
        if self.waiting.len() >= QUEUE_MAX && !self.waiting.contains_key(&key) {
            return false;
        }
        self.withdraw(&key);
        let rests = self.resting.get(&key).map(|of| of.until);
        self.wait(key, rests.filter(|until| *until > now), 0);
        true
    }

    /// Takes it out, wherever it waits.
    fn withdraw(&mut self, key: &Key) -> Option<Waiting> {
        let of = self.waiting.remove(key)?;
        match of.due {
            Some(due) => drop(self.later.remove(&(due, key.clone()))),
            None => {
                if let Some(ready) = self.ready.get_mut(&key.namespace) {
                    ready.all.remove(&(of.place, key.clone()));
                    if ready.all.is_empty() {
                        self.ready.remove(&key.namespace);
                    }
                }
            }
        }
        Some(of)
    }

    fn wait(&mut self, key: Key, due: Option<Duration>, tries: u32) {
        self.places += 1;
        let place = self.places;
        match due {
            Some(due) => drop(self.later.insert((due, key.clone()))),
            None => {
                let ready = self.ready.entry(key.namespace.clone()).or_default();
                ready.all.insert((place, key.clone()));
            }
        }
        self.waiting.insert(key, Waiting { place, due, tries });
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn len(&self) -> usize {
        self.waiting.len() + self.under_way.len()
    }

    /// Those whose time has come are ready, as the oldest of their namespace.
    fn ripen(&mut self, now: Duration) {
        while let Some((due, key)) = self.later.pop_first() {
            if due > now {
                self.later.insert((due, key));
                return;
            }
            if let Some(of) = self.waiting.get_mut(&key) {
                of.due = None;
                let ready = self.ready.entry(key.namespace.clone()).or_default();
                ready.all.insert((of.place, key));
            }
        }
    }

    /// The next turn; else when there will be one.
    pub fn take(&mut self, now: Duration) -> Result<Turn, Option<Duration>> {
        self.ripen(now);
        let next = self.next_namespace().and_then(|namespace| {
            let ready = self.ready.get_mut(&namespace)?;
            ready.was_newest = !ready.was_newest;
            let (_, key) = match ready.was_newest {
                true => ready.all.last()?,
                false => ready.all.first()?,
            };
            Some((namespace, key.clone()))
        });
        let due = self.later.first().map(|(due, _)| *due);
        let (namespace, key) = next.ok_or(due)?;
        let of = self.withdraw(&key).ok_or(due)?;
        self.last = namespace;
        self.under_way.insert(key.clone(), false);
        let tries = of.tries;
        Ok(Turn { key, tries })
    }

    /// The next in order after the last, and so around, that may have one more under way.
    fn next_namespace(&self) -> Option<String> {
        if self.under_way.len() >= WRITES_MAX {
            return None;
        }
        let after = (Bound::Excluded(self.last.as_str()), Bound::Unbounded);
        let around = (Bound::Unbounded, Bound::Included(self.last.as_str()));
        let after = self.ready.range::<str, _>(after);
        let mut all = after.chain(self.ready.range::<str, _>(around));
        let has_room = |namespace: &str| {
            let of_it = self
                .under_way
                .keys()
                .filter(|key| key.namespace == namespace);
            of_it.count() < WRITES_OF_NAMESPACE_MAX
        };
        let found = all.find(|(namespace, _)| has_room(namespace));
        found.map(|(namespace, _)| namespace.clone())
    }

    /// What became of a turn; how often somebody has changed back what was written.
    pub fn done(&mut self, turn: Turn, outcome: Outcome, now: Duration) -> u32 {
        // A queue that was cleared meanwhile knows nothing of it.
        let Some(again) = self.under_way.remove(&turn.key) else {
            return 0;
        };
        let pause = match outcome {
            Outcome::Right => {
                if again {
                    self.put(turn.key, now);
                }
                return 0;
            }
            Outcome::Written(hash) => return self.written(turn.key, hash, again, now),
            Outcome::Conflict if turn.tries < CONFLICTS_AT_ONCE => CONFLICT_PAUSE,
            Outcome::Conflict | Outcome::Failed => back_off(turn.tries),
        };
        let tries = turn.tries.saturating_add(1);
        self.wait(turn.key, Some(now + pause), tries);
        0
    }

    fn written(&mut self, key: Key, hash: u64, again: bool, now: Duration) -> u32 {
        self.resting.retain(|_, of| of.until + PACE_MAX > now);
        let before = self.resting.get(&key).filter(|of| of.hash == hash);
        let fights = before.map_or(0, |of| of.fights.saturating_add(1));
        let until = now + pace(fights);
        let resting = Resting {
            until,
            hash,
            fights,
        };
        self.resting.insert(key.clone(), resting);
        if again {
            self.wait(key, Some(until), 0);
        }
        fights
    }
}

fn back_off(tries: u32) -> Duration {
    let doubled = BACK_OFF_MIN.saturating_mul(2_u32.saturating_pow(tries));
    doubled.min(BACK_OFF_MAX)
}

fn pace(fights: u32) -> Duration {
    let doubled = PACE_MIN.saturating_mul(2_u32.saturating_pow(fights));
    doubled.min(PACE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        in_namespace("shop", name)
    }

    fn in_namespace(namespace: &str, name: &str) -> Key {
        Key {
            kind: "HTTPRoute",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn an_object_is_in_it_once_and_rests_after_it_was_written() {
        let mut queue = Queue::default();
        assert!(queue.put(key("a"), at(0)));
        assert!(queue.put(key("a"), at(1)));
        assert_eq!(queue.len(), 1);
        let turn = queue.take(at(1)).unwrap();
        assert_eq!(queue.take(at(1)).unwrap_err(), None);
        // It is put while it is under way, and not taken twice.
        assert!(queue.put(key("a"), at(1)));
        assert_eq!(queue.take(at(1)).unwrap_err(), None);
        assert_eq!(queue.done(turn, Outcome::Written(1), at(2)), 0);
        assert_eq!(queue.take(at(3)).unwrap_err(), Some(at(1002)));
        let turn = queue.take(at(1002)).unwrap();
        queue.done(turn, Outcome::Right, at(1002));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn one_that_conflicts_every_time_does_not_hold_up_the_others() {
        let mut queue = Queue::default();
        assert!(queue.put(key("a"), at(0)));
        let mut now = at(0);
        for tries in 0..=CONFLICTS_AT_ONCE {
            let turn = queue.take(now).unwrap();
            assert_eq!(turn.tries, tries);
            queue.done(turn, Outcome::Conflict, now);
            now += CONFLICT_PAUSE;
        }
        now -= CONFLICT_PAUSE;
        // What is new of it does not make it come sooner.
        assert!(queue.put(key("a"), now));
        assert!(queue.put(key("b"), now));
        let other = queue.take(now).unwrap();
        assert_eq!(other.key, key("b"));
        queue.done(other, Outcome::Right, now);
        let due = queue.take(now).unwrap_err().unwrap();
        assert_eq!(due - now, back_off(CONFLICTS_AT_ONCE));
        let turn = queue.take(due).unwrap();
        queue.done(turn, Outcome::Failed, due);
        let later = queue.take(due).unwrap_err().unwrap();
        assert_eq!(later - due, back_off(CONFLICTS_AT_ONCE + 1));
        assert_eq!(back_off(40), BACK_OFF_MAX);
    }

    #[test]
    fn what_is_changed_back_every_time_is_written_ever_more_rarely() {
        let mut queue = Queue::default();
        let (mut now, mut writes, mut fights) = (at(0), 0, 0);
        for _ in 0..1_000 {
            if now > Duration::from_secs(600) {
                break;
            }
            // Somebody undoes it at once.
            queue.put(key("a"), now);
            now = match queue.take(now) {
                Ok(turn) => {
                    writes += 1;
                    fights = queue.done(turn, Outcome::Written(7), now);
                    now
                }
                Err(due) => due.unwrap(),
            };
        }
        assert!((10..20).contains(&writes), "{writes}");
        assert_eq!(fights + 1, writes, "and it is known how often");
        // Something else to say of it is said soon.
        let turn = queue.take(now).unwrap();
        assert_eq!(queue.done(turn, Outcome::Written(8), now), 0);
        queue.put(key("a"), now);
        assert_eq!(queue.take(now).unwrap_err(), Some(now + PACE_MIN));
    }

    /// How many turns it takes until this one has its own, of those that come at once.
    fn turns_until(queue: &mut Queue, wanted: &Key) -> usize {
        let mut turns = 0;
        loop {
            turns += 1;
            let turn = queue.take(at(0)).unwrap();
            let is_it = turn.key == *wanted;
            queue.done(turn, Outcome::Right, at(0));
            if is_it {
                return turns;
            }
        }
    }

    #[test]
    fn a_flood_holds_up_neither_others_nor_what_is_new() {
        let mut queue = Queue::default();
        for number in 0..10_000 {
            queue.put(key(&format!("flood-{number}")), at(0));
        }
        queue.put(in_namespace("other", "late"), at(0));
        assert!(turns_until(&mut queue, &in_namespace("other", "late")) <= 2);
        queue.put(key("new"), at(0));
        assert!(turns_until(&mut queue, &key("new")) <= 2);
        // One that waits already is the newest when it is changed.
        queue.put(key("flood-5000"), at(0));
        assert!(turns_until(&mut queue, &key("flood-5000")) <= 2);
        // And new ones without end do not hold up the oldest.
        let (_, oldest) = queue.ready["shop"].all.first().unwrap().clone();
        let taken = (0..3).map(|number| {
            queue.put(key(&format!("more-{number}")), at(0));
            let turn = queue.take(at(0)).unwrap();
            let key = turn.key.clone();
            queue.done(turn, Outcome::Right, at(0));
            key
        });
        assert!(taken.collect::<Vec<_>>().contains(&oldest));
    }

    #[test]
    fn a_slow_namespace_takes_some_of_the_places_and_not_all() {
        let mut queue = Queue::default();
        for number in 0..100 {
            queue.put(key(&number.to_string()), at(0));
        }
        let slow = [queue.take(at(0)).unwrap(), queue.take(at(0)).unwrap()];
        assert_eq!(queue.take(at(0)).unwrap_err(), None);
        queue.put(in_namespace("other", "a"), at(0));
        assert_eq!(queue.take(at(0)).unwrap().key.namespace, "other");
        for turn in slow {
            queue.done(turn, Outcome::Failed, at(0));
        }
        assert!(queue.take(at(0)).is_ok());
    }

    #[test]
    fn it_is_bounded() {
        let mut queue = Queue::default();
        for number in 0..QUEUE_MAX {
            assert!(queue.put(key(&number.to_string()), at(0)));
        }
        assert!(!queue.put(key("more"), at(0)));
        assert!(queue.put(key("0"), at(0)), "is there");
        assert_eq!(queue.len(), QUEUE_MAX);
        queue.clear();
        assert_eq!(queue.len(), 0);
    }
}

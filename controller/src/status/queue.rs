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
//! What there was no room for is made up for by a round through all objects, in their order and
//! a part at a time: the next part when this one has had its turns, from the last that was
//! looked at. So the round comes to its end whatever else waits, fails or is put.
//!
//! **Invariant:** an object is in it once.
//! **Invariant:** one that was left out is looked at by a round that is yet to come to it.
//! **Invariant:** one whose writing fails every time, that somebody changes back every time,
//! or whose writing takes long, takes its turns and nobody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use crate::api::Key;

/// Objects that wait. Beyond it they are left out, and a round through all begins.
pub const QUEUE_MAX: usize = 100_000;
/// A part of a round: it leaves room for what is new.
const ROUND_PART_MAX: usize = 1_000;
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

/// What there is to do.
#[derive(Debug)]
pub enum Next {
    Turn(Turn),
    /// The next part of a round: [`Queue::look`] takes the objects after this one.
    Look(Option<Key>),
    /// Nothing before this moment, or before something is put or done.
    Wait(Option<Duration>),
}

/// A round through all objects.
#[derive(Debug, Default)]
struct Round {
    /// The last that was looked at.
    after: Option<Key>,
    /// Those of this part that are ready.
    part: BTreeSet<Key>,
    /// It has passed one that was left out since: another one follows.
    again: bool,
}

#[derive(Debug)]
pub struct Queue {
    max: usize,
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
    round: Option<Round>,
}

impl Queue {
    /// `max`: how many may wait.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            waiting: BTreeMap::new(),
            ready: BTreeMap::new(),
            later: BTreeSet::new(),
            under_way: BTreeMap::new(),
            resting: BTreeMap::new(),
            last: String::new(),
            places: 0,
            round: None,
        }
    }

    /// Everything is to be looked at.
    pub fn begin_round(&mut self) {
        self.round = Some(Round::default());
    }

    /// Something is to be looked at. `false`: there is no room for it now.
    pub fn put(&mut self, key: Key, now: Duration) -> bool {
        if let Some(again) = self.under_way.get_mut(&key) {
            *again = true;
            return true;
        }
        // What is new of one that fails does not make it come sooner.
        if self.waiting.get(&key).is_some_and(|of| of.due.is_some()) {
            return true;
        }
        self.withdraw(&key);
        let rests = self.resting.get(&key).map(|of| of.until);
        self.wait(key, rests.filter(|until| *until > now), 0)
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

    fn has_room(&self) -> bool {
        self.waiting.len() < self.max
    }

    /// A round that comes to it makes up for it.
    fn leave_out(&mut self, key: &Key) {
        let round = self.round.get_or_insert_default();
        round.again |= round.after.as_ref() >= Some(key);
    }

    /// One that was under way waits anew; not so that those that fail leave no room to a round,
    /// which brings them again.
    fn wait_again(&mut self, key: Key, due: Duration, tries: u32) {
        match self.round.is_some() && self.waiting.len() >= self.max / 2 {
            true => self.leave_out(&key),
            false => drop(self.wait(key, Some(due), tries)),
        }
    }

    /// `false`: there is no room.
    fn wait(&mut self, key: Key, due: Option<Duration>, tries: u32) -> bool {
        if !self.has_room() {
            self.leave_out(&key);
            return false;
        }
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
        true
    }

    pub fn clear(&mut self) {
        *self = Self::new(self.max);
    }

    /// Never 0 before a round has come to its end.
    pub fn len(&self) -> usize {
        let of_round = usize::from(self.round.is_some());
        self.waiting.len() + self.under_way.len() + of_round
    }

    /// The next part of a round. `all`: those after the last that was looked at, in order.
    pub fn look<'a>(&mut self, all: impl Iterator<Item = &'a Key>, now: Duration) {
        let Some(mut round) = self.round.take() else {
            return;
        };
        for (number, key) in all.enumerate() {
            if number >= ROUND_PART_MAX || !self.has_room() {
                self.round = Some(round);
                return;
            }
            self.put(key.clone(), now);
            if self.waiting.get(key).is_some_and(|of| of.due.is_none()) {
                round.part.insert(key.clone());
            }
            round.after = Some(key.clone());
        }
        self.round = round.again.then(|| Round {
            part: round.part,
            ..Round::default()
        });
    }

    /// Whether the next part of a round has its turn.
    fn next_part(&self) -> Option<&Round> {
        let round = self.round.as_ref().filter(|_| self.has_room());
        round.filter(|round| round.part.is_empty())
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

    pub fn next(&mut self, now: Duration) -> Next {
        self.ripen(now);
        if let Some(round) = self.next_part() {
            return Next::Look(round.after.clone());
        }
        match self.take() {
            Some(turn) => Next::Turn(turn),
            // Those that are ready have to wait for one that is under way, which ends.
            None => Next::Wait(self.later.first().map(|(due, _)| *due)),
        }
    }

    fn take(&mut self) -> Option<Turn> {
        let namespace = self.next_namespace()?;
        let ready = self.ready.get_mut(&namespace)?;
        ready.was_newest = !ready.was_newest;
        let (_, key) = match ready.was_newest {
            true => ready.all.last()?,
            false => ready.all.first()?,
        };
        let key = key.clone();
        let of = self.withdraw(&key)?;
        if let Some(round) = &mut self.round {
            round.part.remove(&key);
        }
        self.last = namespace;
        self.under_way.insert(key.clone(), false);
        let tries = of.tries;
        Some(Turn { key, tries })
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
        self.wait_again(turn.key, now + pause, tries);
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
            self.wait_again(key, until, 0);
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

    fn taken(queue: &mut Queue, now: Duration) -> Turn {
        match queue.next(now) {
            Next::Turn(turn) => turn,
            other => panic!("{other:?}"),
        }
    }

    fn due(next: Next) -> Option<Duration> {
        match next {
            Next::Wait(due) => due,
            other => panic!("{other:?}"),
        }
    }

    /// Until when nothing is to be done.
    fn wait(queue: &mut Queue, now: Duration) -> Option<Duration> {
        due(queue.next(now))
    }

    #[test]
    fn an_object_is_in_it_once_and_rests_after_it_was_written() {
        let mut queue = Queue::new(QUEUE_MAX);
        assert!(queue.put(key("a"), at(0)));
        assert!(queue.put(key("a"), at(1)));
        assert_eq!(queue.len(), 1);
        let turn = taken(&mut queue, at(1));
        assert_eq!(wait(&mut queue, at(1)), None);
        // It is put while it is under way, and not taken twice.
        assert!(queue.put(key("a"), at(1)));
        assert_eq!(wait(&mut queue, at(1)), None);
        assert_eq!(queue.done(turn, Outcome::Written(1), at(2)), 0);
        assert_eq!(wait(&mut queue, at(3)), Some(at(1002)));
        let turn = taken(&mut queue, at(1002));
        queue.done(turn, Outcome::Right, at(1002));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn one_that_conflicts_every_time_does_not_hold_up_the_others() {
        let mut queue = Queue::new(QUEUE_MAX);
        assert!(queue.put(key("a"), at(0)));
        let mut now = at(0);
        for tries in 0..=CONFLICTS_AT_ONCE {
            let turn = taken(&mut queue, now);
            assert_eq!(turn.tries, tries);
            queue.done(turn, Outcome::Conflict, now);
            now += CONFLICT_PAUSE;
        }
        now -= CONFLICT_PAUSE;
        // What is new of it does not make it come sooner.
        assert!(queue.put(key("a"), now));
        assert!(queue.put(key("b"), now));
        let other = taken(&mut queue, now);
        assert_eq!(other.key, key("b"));
        queue.done(other, Outcome::Right, now);
        let due = wait(&mut queue, now).unwrap();
        assert_eq!(due - now, back_off(CONFLICTS_AT_ONCE));
        let turn = taken(&mut queue, due);
        queue.done(turn, Outcome::Failed, due);
        let later = wait(&mut queue, due).unwrap();
        assert_eq!(later - due, back_off(CONFLICTS_AT_ONCE + 1));
        assert_eq!(back_off(40), BACK_OFF_MAX);
    }

    #[test]
    fn what_is_changed_back_every_time_is_written_ever_more_rarely() {
        let mut queue = Queue::new(QUEUE_MAX);
        let (mut now, mut writes, mut fights) = (at(0), 0, 0);
        for _ in 0..1_000 {
            if now > Duration::from_secs(600) {
                break;
            }
            // Somebody undoes it at once.
            queue.put(key("a"), now);
            match queue.next(now) {
                Next::Turn(turn) => {
                    writes += 1;
                    fights = queue.done(turn, Outcome::Written(7), now);
                }
                other => now = due(other).unwrap(),
            }
        }
        assert!((10..20).contains(&writes), "{writes}");
        assert_eq!(fights + 1, writes, "and it is known how often");
        // Something else to say of it is said soon.
        let turn = taken(&mut queue, now);
        assert_eq!(queue.done(turn, Outcome::Written(8), now), 0);
        queue.put(key("a"), now);
        assert_eq!(wait(&mut queue, now), Some(now + PACE_MIN));
    }

    /// How many turns it takes until this one has its own, of those that come at once.
    fn turns_until(queue: &mut Queue, wanted: &Key) -> usize {
        let mut turns = 0;
        loop {
            turns += 1;
            let turn = taken(queue, at(0));
            let is_it = turn.key == *wanted;
            queue.done(turn, Outcome::Right, at(0));
            if is_it {
                return turns;
            }
        }
    }

    #[test]
    fn a_flood_holds_up_neither_others_nor_what_is_new() {
        let mut queue = Queue::new(QUEUE_MAX);
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
        let three = (0..3).map(|number| {
            queue.put(key(&format!("more-{number}")), at(0));
            let turn = taken(&mut queue, at(0));
            let key = turn.key.clone();
            queue.done(turn, Outcome::Right, at(0));
            key
        });
        assert!(three.collect::<Vec<_>>().contains(&oldest));
    }

    #[test]
    fn a_slow_namespace_takes_some_of_the_places_and_not_all() {
        let mut queue = Queue::new(QUEUE_MAX);
        for number in 0..100 {
            queue.put(key(&number.to_string()), at(0));
        }
        let slow = [taken(&mut queue, at(0)), taken(&mut queue, at(0))];
        assert_eq!(wait(&mut queue, at(0)), None);
        queue.put(in_namespace("other", "a"), at(0));
        assert_eq!(taken(&mut queue, at(0)).key.namespace, "other");
        for turn in slow {
            queue.done(turn, Outcome::Failed, at(0));
        }
        taken(&mut queue, at(0));
    }

    #[test]
    fn it_is_bounded() {
        let mut queue = Queue::new(3);
        for number in 0..3 {
            assert!(queue.put(key(&number.to_string()), at(0)));
        }
        assert_eq!(queue.len(), 3);
        assert!(!queue.put(key("more"), at(0)));
        assert!(queue.put(key("0"), at(0)), "is there");
        assert_eq!(queue.waiting.len(), 3);
        assert_eq!(queue.len(), 4, "and a round");
        queue.clear();
        assert_eq!(queue.len(), 0);
    }

    /// Does what the writer does: takes turns, each of which takes as long as a write, until
    /// each of `all` has had one or nothing is to be done. What becomes of a turn is for `outcome` to say; `meanwhile` may put
    /// something at each. Panics where it never comes to an end.
    fn run(
        queue: &mut Queue,
        all: &BTreeSet<Key>,
        outcome: impl Fn(&Key) -> Outcome,
        mut meanwhile: impl FnMut(&mut Queue, usize),
    ) -> BTreeMap<Key, u32> {
        let (mut now, mut turns) = (at(0), BTreeMap::new());
        let mut under_way = std::collections::VecDeque::new();
        for step in 0..100_000 {
            meanwhile(queue, step);
            match queue.next(now) {
                Next::Turn(turn) => {
                    *turns.entry(turn.key.clone()).or_default() += 1;
                    under_way.push_back(turn);
                    now += at(20);
                }
                Next::Look(after) => {
                    let after = after.map_or(Bound::Unbounded, Bound::Excluded);
                    queue.look(all.range((after, Bound::Unbounded)), now);
                }
                Next::Wait(due) => match (under_way.pop_front(), due) {
                    (Some(turn), _) => {
                        let outcome = outcome(&turn.key);
                        queue.done(turn, outcome, now);
                    }
                    (None, Some(due)) => now = due,
                    (None, None) => return turns,
                },
            }
            if turns.len() == all.len() {
                return turns;
            }
        }
        panic!("after {} of {}: {queue:?}", turns.len(), all.len());
    }

    #[test]
    fn of_more_than_may_wait_each_has_its_turn() {
        // Of one namespace, of which few may be under way at once.
        let all: BTreeSet<Key> = (0..2_500).map(|of| key(&format!("{of:04}"))).collect();
        let mut queue = Queue::new(100);
        for key in &all {
            queue.put(key.clone(), at(0));
        }
        let turns = run(&mut queue, &all, |_| Outcome::Written(1), |_, _| {});
        assert_eq!(turns.len(), all.len());
        // And by a round from the start, which leaves room for what is new.
        let mut queue = Queue::new(QUEUE_MAX);
        queue.begin_round();
        let mut waiting = 0;
        let turns = run(
            &mut queue,
            &all,
            |_| Outcome::Written(1),
            |queue, _| waiting = waiting.max(queue.waiting.len()),
        );
        assert!(turns.values().all(|turns| *turns == 1), "{turns:?}");
        assert_eq!(waiting, ROUND_PART_MAX);
    }

    #[test]
    fn a_round_comes_to_its_end_whatever_fails_and_whatever_is_put() {
        let all: BTreeSet<Key> = (0..500).map(|of| key(&format!("{of:03}"))).collect();
        // The first by name take all the room there is, for ever, and are changed all the time.
        let is_first = |of: &Key| of.name.as_str() < "150";
        let mut queue = Queue::new(100);
        let outcome = |of: &Key| match is_first(of) {
            true => Outcome::Failed,
            false => Outcome::Written(1),
        };
        let turns = run(&mut queue, &all, outcome, |queue, step| {
            queue.put(key(&format!("{:03}", step % 200)), at(0));
        });
        assert!(turns.contains_key(&key("499")), "{turns:?}");
    }

    #[test]
    fn one_that_is_left_out_behind_the_round_is_looked_at_by_another() {
        let all: BTreeSet<Key> = ["a", "b", "c", "d"].map(key).into();
        let mut queue = Queue::new(2);
        queue.begin_round();
        let after = |queue: &mut Queue| match queue.next(at(0)) {
            Next::Look(after) => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(after(&mut queue), None);
        queue.look(all.iter(), at(0));
        // Both places are taken; the round is at b.
        assert!(!queue.put(key("a0"), at(0)));
        let mut turns = Vec::new();
        for _ in 0..2 {
            let turn = taken(&mut queue, at(0));
            turns.push(turn.key.name.clone());
            queue.done(turn, Outcome::Right, at(0));
        }
        turns.sort();
        assert_eq!(turns, ["a", "b"]);
        assert_eq!(after(&mut queue), Some(key("b")));
        queue.look(all.iter().skip(2), at(0));
        for _ in 0..2 {
            let turn = taken(&mut queue, at(0));
            queue.done(turn, Outcome::Right, at(0));
        }
        assert_eq!(after(&mut queue), None, "another one");
        queue.look(std::iter::empty(), at(0));
        assert_eq!(queue.len(), 0);
    }
}

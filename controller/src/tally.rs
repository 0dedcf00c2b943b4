//! What each of many callers holds, so that none can starve the others.
//!
//! **Invariant:** memory is bounded by what is held.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts what each of many holds, and gives none more than `max`.
#[derive(Clone, Debug)]
pub struct Tally {
    max: usize,
    held: Arc<Mutex<HashMap<String, usize>>>,
}

/// Some of those; given back when dropped.
#[derive(Debug)]
pub struct Held {
    tally: Tally,
    who: String,
    count: usize,
}

impl Tally {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            held: Arc::default(),
        }
    }

    /// One.
    pub fn take(&self, who: &str) -> Option<Held> {
        let mut held = self.none(who);
        held.resize(1).then_some(held)
    }

    /// Nothing yet.
    pub fn none(&self, who: &str) -> Held {
        Held {
            tally: self.clone(),
            who: who.to_owned(),
            count: 0,
        }
    }
}

impl Held {
    /// Holds so many from now on, unless that is too much beside what else its owner holds.
    pub fn resize(&mut self, count: usize) -> bool {
        let mut held = self.tally.held.lock();
        let all = held.get(&self.who).copied().unwrap_or_default();
        let all = all - self.count + count;
        if count > self.count && all > self.tally.max {
            return false;
        }
        self.count = count;
        match all {
            0 => held.remove(&self.who),
            _ => held.insert(self.who.clone(), all),
        };
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn several_are_held_by_one() {
        let tally = Tally::new(10);
        let (mut first, mut second) = (tally.none("a"), tally.none("a"));
        assert!(first.resize(7));
        assert!(!second.resize(4));
        assert!(second.resize(3));
        assert!(tally.none("b").resize(10));
        assert!(first.resize(6) && second.resize(4));
        drop(first);
        assert!(second.resize(10));
        drop(second);
        assert!(tally.held.lock().is_empty());
    }
}

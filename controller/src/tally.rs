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

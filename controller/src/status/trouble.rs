//! The statuses that cannot be written, or do not stay: which, why, since when.
//!
//! **Invariant:** memory is bounded by `TROUBLES_MAX`, and so are lines of the log.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use weft_config::status::Unwritten;

use super::queue::{FIGHTS_MIN, Outcome};
use crate::api::Key;
use crate::sparing::Sparing;

/// Objects in trouble that are known by name; of more there is nothing new to learn.
pub const TROUBLES_MAX: usize = 100;

#[derive(Debug, Default)]
pub struct Troubles {
    all: Mutex<BTreeMap<Key, Unwritten>>,
    lines: Sparing,
}

impl Troubles {
    /// Takes up what became of a turn. `fights`: how often in a row somebody has changed back
    /// what was written.
    pub(super) fn take(&self, key: &Key, outcome: Outcome, tries: u32, fights: u32, why: String) {
        let (problem, tries) = match outcome {
            Outcome::Failed => (why, tries + 1),
            // One is no trouble: somebody came in between.
            Outcome::Conflict if tries == 0 => return,
            Outcome::Conflict => (
                format!(
                    "somebody changes the object each time before its status is written: {why}"
                ),
                tries + 1,
            ),
            Outcome::Written(_) if fights >= FIGHTS_MIN => (
                "somebody changes the status back each time it is written".to_owned(),
                fights,
            ),
            Outcome::Written(_) if fights > 0 => return,
            Outcome::Written(_) | Outcome::Right => return self.forget(key),
        };
        let object = key.to_string();
        if let Some(left_out) = self.lines.admit(&object, Instant::now()) {
            tracing::warn!(
                object,
                problem,
                tries,
                left_out,
                "a status cannot be written; trying again"
            );
        }
        let mut all = self.all.lock();
        if all.len() >= TROUBLES_MAX && !all.contains_key(key) {
            return;
        }
        let since = all.get(key).map_or_else(seconds_now, |of| of.since);
        let unwritten = Unwritten {
            object,
            problem,
            tries,
            since,
        };
        all.insert(key.clone(), unwritten);
    }

    pub(super) fn forget(&self, key: &Key) {
        self.all.lock().remove(key);
    }

    pub(super) fn clear(&self) {
        self.all.lock().clear();
    }

    pub fn all(&self) -> Vec<Unwritten> {
        self.all.lock().values().cloned().collect()
    }
}

fn seconds_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

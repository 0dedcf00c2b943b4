//! What anybody can cause in any number is logged in a few lines, with the number of those
//! that were left out: a log must not fill a disk. Pure: `now` is an argument.
//!
//! **Invariant:** memory is bounded by `SUBJECTS_MAX`, and so are lines.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines about one subject in an interval.
pub const LINES_MAX: u32 = 5;
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Subjects that are told apart; what is about more of them is about one.
pub const SUBJECTS_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Subject {
    since: Instant,
    lines: u32,
    left_out: u64,
}

/// Between two looks for subjects that are to be forgotten: a flood of them must not make
/// each line cost a look at all.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Subjects {
    all: HashMap<String, Subject>,
    swept: Option<Instant>,
}

/// How many lines each subject has had.
#[derive(Debug, Default)]
pub struct Sparing(Mutex<Subjects>);

impl Sparing {
    /// Whether a line about a subject is written: then how many were left out before it.
    pub fn admit(&self, subject: &str, now: Instant) -> Option<u64> {
        let mut subjects = self.0.lock();
        let is_known = subjects.all.contains_key(subject);
        let is_due = |swept: Instant| now.duration_since(swept) >= SWEEP;
        if !is_known && subjects.all.len() >= SUBJECTS_MAX && subjects.swept.is_none_or(is_due) {
            subjects.swept = Some(now);
            subjects
                .all
                .retain(|_, of| now.duration_since(of.since) < INTERVAL);
        }
        let subject = match is_known || subjects.all.len() < SUBJECTS_MAX {
            true => subject,
            false => "",
        };
        let of = subjects.all.entry(subject.to_owned()).or_insert(Subject {
            since: now,
            lines: 0,
            left_out: 0,
        });
        if now.duration_since(of.since) >= INTERVAL {
            (of.since, of.lines) = (now, 0);
        }
        if of.lines >= LINES_MAX {
            of.left_out += 1;
            return None;
        }
        of.lines += 1;
        Some(std::mem::take(&mut of.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_some_lines_and_says_how_many_it_was() {
        let (sparing, now) = (Sparing::default(), Instant::now());
        let lines = (0..10_000).filter(|_| sparing.admit("a", now).is_some());
        assert_eq!(lines.count(), 5);
        assert_eq!(sparing.admit("b", now), Some(0), "another's is told");
        assert_eq!(sparing.admit("a", now + INTERVAL), Some(9_995));
        assert_eq!(sparing.admit("a", now + INTERVAL), Some(0));
    }

    #[test]
    fn subjects_without_end_cost_no_memory_and_no_disk() {
        let (sparing, now) = (Sparing::default(), Instant::now());
        let lines = (0..100_000).filter(|n: &u32| sparing.admit(&n.to_string(), now).is_some());
        assert!(lines.count() <= SUBJECTS_MAX + LINES_MAX as usize);
        assert!(sparing.0.lock().all.len() <= SUBJECTS_MAX + 1);
        assert_eq!(sparing.admit("late", now + INTERVAL), Some(0));
    }
}

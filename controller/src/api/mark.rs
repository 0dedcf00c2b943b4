//! How far an API server's changes have been read, of each kind; and how far a proxy knows that
//! somebody has read them. Pure.
//!
//! A kind's changes are numbered in their order (`resourceVersion`; Kubernetes 1.35 promises it, and
//! etcd has always done it), so of two replicas it can be said which is behind. A proxy is told such a
//! mark with what it is sent, and claims it from the next replica.
//!
//! Only what may have changed something is claimed. Bookmarks carry numbers of the whole API server, and
//! each replica has its own of them, a minute apart: of a kind that rests, one replica would always be
//! "behind" the other with nothing missing.

use std::collections::BTreeMap;

use super::kinds::WATCHED;

/// How far one kind has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// No change up to this one is missing.
    pub complete: u64,
    /// Changes up to this one may be in force, and none after it: the last change or list. It is ahead
    /// of `complete` during a list, which comes in no order, and behind it where nothing changes.
    pub seen: u64,
    /// The claims that had been made when it was last begun to list all of it, or to look whether it is
    /// there.
    pub claims: u64,
}

/// Of each kind that is watched, by its name.
pub type Marks = BTreeMap<&'static str, Mark>;

impl Mark {
    /// Takes up a change.
    pub fn changed(&mut self, version: u64, is_listing: bool) {
        self.seen = self.seen.max(version);
        if !is_listing {
            self.complete = self.complete.max(version);
        }
    }

    /// Takes up that there was no change until then that has not come.
    pub fn rested(&mut self, version: u64) {
        self.complete = self.complete.max(version);
    }

    /// Takes up that a list is complete. It shows what is gone as of its own version alone: a proxy may
    /// have had from another replica what this one never knew. Its version may be lower than what was:
    /// an API server that was set back to a backup counts from there.
    pub fn listed(&mut self, version: u64, claims: u64) {
        self.complete = version;
        self.seen = version;
        self.claims = claims;
    }
}

/// What is waited for: of a kind a version, or a list begun after it was claimed. A list that does not
/// have it then is of an API server that has forgotten it; one that was under way already proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    pub kind: &'static str,
    pub version: u64,
    /// The number of the claim.
    pub claim: u64,
}

/// What of all claims is yet to come, as the source is told it.
#[derive(Debug, Default)]
pub struct Claims {
    /// How many there have been: who begins a list notes it.
    pub made: u64,
    pub awaited: Vec<Awaited>,
}

impl Awaited {
    pub fn is_there(&self, marks: &Marks) -> bool {
        let mark = marks.get(self.kind).copied().unwrap_or_default();
        mark.complete >= self.version || mark.claims >= self.claim
    }
}

/// What of a claim (`Pod=12,Service=7`) with this number is not there yet. Whatever it says otherwise is
/// ignored.
pub fn awaited(claim: &str, claim_number: u64, marks: &Marks) -> Vec<Awaited> {
    let mut awaited: Vec<Awaited> = Vec::new();
    if marks.is_empty() {
        // Of a source whose changes have no numbers.
        return awaited;
    }
    for (kind, version) in claim.split(',').filter_map(|part| part.split_once('=')) {
        let known = WATCHED.iter().find(|of| of.kind == kind);
        let (Some(known), Ok(version)) = (known, version.parse()) else {
            continue;
        };
        let of = Awaited {
            kind: known.kind,
            version,
            claim: claim_number,
        };
        if !of.is_there(marks) && !awaited.iter().any(|other| other.kind == of.kind) {
            awaited.push(of);
        }
    }
    awaited
}

/// What a proxy has to be told since it was told `told`, which becomes what it knows.
pub fn news(marks: &Marks, told: &mut BTreeMap<&'static str, u64>) -> String {
    let mut text = String::new();
    for (kind, mark) in marks {
        if told.insert(kind, mark.seen) != Some(mark.seen) {
            let comma = if text.is_empty() { "" } else { "," };
            text.push_str(&format!("{comma}{kind}={}", mark.seen));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(pods: Mark) -> Marks {
        Marks::from([("Pod", pods)])
    }

    #[test]
    fn a_change_counts_at_once_and_a_list_when_it_is_complete() {
        let mut mark = Mark::default();
        mark.changed(7, true);
        assert_eq!((mark.complete, mark.seen), (0, 7));
        mark.listed(9, 3);
        mark.changed(12, false);
        assert_eq!((mark.complete, mark.seen, mark.claims), (12, 12, 3));
        mark.rested(20);
        assert_eq!(
            (mark.complete, mark.seen),
            (20, 12),
            "nobody claims a bookmark"
        );
        mark.changed(21, false);
        assert_eq!((mark.complete, mark.seen), (21, 21));
        mark.listed(5, 3);
        assert_eq!((mark.complete, mark.seen), (5, 5), "a backup");
    }

    #[test]
    fn what_is_waited_for_comes_or_is_found_not_to_be_there() {
        let mut mark = Mark {
            complete: 10,
            seen: 14,
            claims: 1,
        };
        assert_eq!(awaited("Pod=10", 2, &marks(mark)), []);
        assert_eq!(awaited("Pod=99", 2, &Marks::new()), [], "a directory");
        for nonsense in ["", "Pod", "Pod=", "Pod=-1", "Stranger=99", "=,=", "pod=99"] {
            assert_eq!(awaited(nonsense, 2, &marks(mark)), [], "{nonsense}");
        }
        let waits = awaited("Service=0,Pod=12,Pod=99", 2, &marks(mark));
        assert_eq!(waits.len(), 1, "{waits:?}");
        let is_there = |mark: Mark| waits[0].is_there(&marks(mark));
        assert!(!is_there(mark));
        mark.changed(11, false);
        assert!(!is_there(mark));
        let mut listed = mark;
        listed.listed(11, 1);
        assert!(!is_there(listed), "it was begun before the claim");
        listed.listed(11, 2);
        assert!(is_there(listed), "there is no such change any more");
        mark.changed(12, false);
        assert!(is_there(mark));
    }

    #[test]
    fn only_what_has_moved_is_told() {
        let mut told = BTreeMap::new();
        let mut all = Marks::from([("Pod", Mark::default()), ("Service", Mark::default())]);
        assert_eq!(news(&all, &mut told), "Pod=0,Service=0");
        assert_eq!(news(&all, &mut told), "");
        all.entry("Service").or_default().changed(3, false);
        assert_eq!(news(&all, &mut told), "Service=3");
    }
}

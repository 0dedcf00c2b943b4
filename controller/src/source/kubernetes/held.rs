//! What the watches have brought, and what each piece of news changes. Pure.
//!
//! **Invariant:** an object that cannot be read keeps its last good version, and costs
//! nothing else.
//! **Invariant:** what a complete list does not hold is gone.
//! **Invariant:** nothing is handed over before all kinds that there are have been
//! listed once: half a mesh would answer 404 for the other half.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_config::status::{SourceError, WatchState, WatchStatus};

use crate::api::errors::{Errors, ForStatus, bounded};
use crate::api::kinds::{WATCHED, Watched};
use crate::api::mark::{Mark, Marks};
use crate::api::{Key, Object};
use crate::index::Change;

/// What there is to know of an object.
#[derive(Debug)]
pub struct Read {
    /// `None`: it is not ours to care for.
    pub object: Result<Option<Object>, SourceError>,
    /// Where it has a status: what that is made from, as JSON.
    pub for_status: Option<Arc<str>>,
}

/// What a watch has to say.
#[derive(Debug)]
pub enum News {
    /// The API server has no such kind, as a look has shown that began after so many claims.
    Absent { claims: u64 },
    /// A list begins, of this version.
    Begun(&'static str),
    /// An object is there, of this version.
    Object(Key, u64, Box<Read>),
    /// It is gone, by a change of this version.
    Gone(Key, u64),
    /// The list is complete, as of this version; it was begun after so many claims. What follows are
    /// changes.
    Listed { version: u64, claims: u64 },
    /// No change up to this version is to come.
    Progress(u64),
    /// It cannot be listed or watched, for this reason.
    Broken(String),
}

#[derive(Debug, Default)]
struct Kind {
    /// Those that the index has.
    keys: BTreeSet<Key>,
    errors: BTreeMap<Key, Arc<SourceError>>,
    /// They are not what [`Held::errors`] was made from.
    errors_changed: bool,
    /// What the list that is under way has held.
    listing: Option<BTreeSet<Key>>,
    /// Was listed once, or is not there.
    is_known: bool,
    /// Looks in a row that did not find it.
    absences: u32,
    mark: Mark,
}

/// A kind must be missing at this many looks in a row before it is believed, at the start too: one look
/// may meet an API server that has yet to find its own CRDs, and a mesh without its AuthorizationPolicies
/// lets everybody in.
pub(super) const ABSENCES_MIN: u32 = 2;

#[derive(Debug)]
pub struct Held {
    kinds: Vec<Kind>,
    watches: Vec<WatchStatus>,
    changes: Vec<Change>,
    /// Objects with a status that came since it was asked.
    seen: BTreeMap<Key, Option<ForStatus>>,
    errors: Arc<Errors>,
}

impl Held {
    pub fn new(now: u64) -> Self {
        let status = |of: &Watched| WatchStatus {
            kind: of.kind.to_owned(),
            since: now,
            ..WatchStatus::default()
        };
        Self {
            kinds: WATCHED.iter().map(|_| Kind::default()).collect(),
            watches: WATCHED.iter().map(status).collect(),
            changes: Vec::new(),
            seen: BTreeMap::new(),
            errors: Arc::default(),
        }
    }

    /// Takes up news of the kind with this number in [`WATCHED`]. `now`: seconds since
    /// the Unix epoch.
    pub fn take(&mut self, number: usize, news: News, now: u64) {
        let pair = (self.kinds.get_mut(number), self.watches.get_mut(number));
        let (Some(kind), Some(watch)) = pair else {
            return;
        };
        let has_status = WATCHED.get(number).is_some_and(|of| of.has_status);
        let changes = &mut self.changes;
        match news {
            News::Absent { claims } => {
                kind.absences += 1;
                if kind.absences >= ABSENCES_MIN {
                    set_state(watch, WatchState::Absent, "", now);
                    watch.version.clear();
                    kind.is_known = true;
                    kind.mark.listed(0, claims);
                    let gone = kind.retain(&BTreeSet::new(), changes).into_iter();
                    let gone = gone.filter(|_| has_status);
                    self.seen.extend(gone.map(|key| (key, None)));
                }
            }
            News::Begun(version) => {
                version.clone_into(&mut watch.version);
                watch.lists += 1;
                kind.listing = Some(BTreeSet::new());
                // It stays broken until a list has come through.
                if watch.state != WatchState::Broken {
                    set_state(watch, WatchState::Listing, "", now);
                }
            }
            News::Object(key, version, read) => {
                kind.mark.changed(version, kind.listing.is_some());
                kind.object(key.clone(), read.object, changes);
                if let Some(object) = read.for_status {
                    let error = kind.errors.get(&key).cloned();
                    self.seen.insert(key, Some(ForStatus { object, error }));
                }
            }
            News::Gone(key, version) => {
                kind.mark.changed(version, kind.listing.is_some());
                kind.gone(&key, changes);
                if has_status {
                    self.seen.insert(key, None);
                }
            }
            News::Progress(version) => kind.mark.rested(version),
            News::Listed { version, claims } => {
                kind.mark.listed(version, claims);
                set_state(watch, WatchState::Watching, "", now);
                kind.is_known = true;
                kind.absences = 0;
                if let Some(listed) = kind.listing.take() {
                    let gone = kind.retain(&listed, changes).into_iter();
                    let gone = gone.filter(|_| has_status);
                    self.seen.extend(gone.map(|key| (key, None)));
                }
            }
            News::Broken(why) => {
                watch.failures += 1;
                kind.absences = 0;
                kind.listing = None;
                set_state(watch, WatchState::Broken, &why, now);
            }
        }
        watch.objects = kind.keys.len() as u64;
    }

    /// Whether every kind was listed once, or is not there.
    pub fn is_complete(&self) -> bool {
        self.kinds.iter().all(|kind| kind.is_known)
    }

    /// What has changed since, once all is known.
    pub fn changes(&mut self) -> Vec<Change> {
        match self.is_complete() {
            true => std::mem::take(&mut self.changes),
            false => Vec::new(),
        }
    }

    pub fn seen(&mut self) -> BTreeMap<Key, Option<ForStatus>> {
        std::mem::take(&mut self.seen)
    }

    /// All that is wrong: the same as before, unless something of it has changed.
    pub fn errors(&mut self) -> Arc<Errors> {
        let changed = self.kinds.iter_mut();
        let changed = changed.map(|kind| std::mem::take(&mut kind.errors_changed));
        if changed.fold(false, |any, one| any | one) {
            let count = self.kinds.iter().map(|kind| kind.errors.len()).sum();
            let all = self.kinds.iter().flat_map(|kind| kind.errors.values());
            self.errors = Arc::new(Errors::of(all, count));
        }
        Arc::clone(&self.errors)
    }

    /// How far each kind has been read.
    pub fn marks(&self) -> Marks {
        let kinds = WATCHED.iter().zip(&self.kinds);
        kinds.map(|(of, kind)| (of.kind, kind.mark)).collect()
    }

    pub fn watches(&self) -> &[WatchStatus] {
        &self.watches
    }
}

fn set_state(watch: &mut WatchStatus, state: WatchState, message: &str, now: u64) {
    if watch.state != state {
        watch.state = state;
        watch.since = now;
    }
    message.clone_into(&mut watch.message);
}

impl Kind {
    fn object(
        &mut self,
        key: Key,
        said: Result<Option<Object>, SourceError>,
        changes: &mut Vec<Change>,
    ) {
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        }
        match said {
            Ok(Some(object)) => {
                self.mended(&key);
                self.keys.insert(key.clone());
                let object = Some(Arc::new(object));
                changes.push(Change { key, object });
            }
            Ok(None) => self.gone(&key, changes),
            Err(error) => {
                let error = bounded(error);
                if self.errors.get(&key).is_none_or(|known| **known != error) {
                    self.errors.insert(key, Arc::new(error));
                    self.errors_changed = true;
                }
            }
        }
    }

    fn mended(&mut self, key: &Key) {
        self.errors_changed |= self.errors.remove(key).is_some();
    }

    fn gone(&mut self, key: &Key, changes: &mut Vec<Change>) {
        self.mended(key);
        if let Some(key) = self.keys.take(key) {
            changes.push(Change { key, object: None });
        }
    }

    /// Those that are not among these are gone.
    fn retain(&mut self, listed: &BTreeSet<Key>, changes: &mut Vec<Change>) -> BTreeSet<Key> {
        let known = self.keys.iter().chain(self.errors.keys());
        let gone: BTreeSet<Key> = known
            .filter(|key| !listed.contains(*key))
            .cloned()
            .collect();
        gone.iter().for_each(|key| self.gone(key, changes));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::mark::{awaited, news};

    const NUMBER: usize = 0;

    fn key(name: &str) -> Key {
        Key {
            kind: WATCHED[NUMBER].kind,
            namespace: String::new(),
            name: name.to_owned(),
        }
    }

    fn object(name: &str, version: u64) -> News {
        let read = Read {
            object: Ok(None),
            for_status: None,
        };
        News::Object(key(name), version, Box::new(read))
    }

    fn listed(version: u64) -> News {
        News::Listed { version, claims: 0 }
    }

    /// A replica of which one kind has come this far.
    fn replica(all: impl IntoIterator<Item = News>) -> Held {
        let mut held = Held::new(0);
        for news in all {
            held.take(NUMBER, news, 0);
        }
        held
    }

    /// Whether a proxy that one has told all would be told by the other that it knows more.
    fn is_ahead(one: &Held, other: &Held) -> bool {
        let claim = news(&one.marks(), &mut BTreeMap::new());
        !awaited(&claim, 1, &other.marks()).is_empty()
    }

    #[test]
    fn a_kind_that_one_look_does_not_find_is_not_missing_yet() {
        let mut held = Held::new(0);
        for number in 1..WATCHED.len() {
            held.take(number, News::Begun("v1"), 0);
            held.take(number, listed(7), 0);
        }
        let absent = || News::Absent { claims: 0 };
        for news in [absent(), News::Broken("503".to_owned()), absent()] {
            held.take(NUMBER, news, 0);
            assert!(!held.is_complete(), "half a mesh");
        }
        // It is said to be there, and is not.
        held.take(NUMBER, News::Begun("v1"), 0);
        held.take(NUMBER, absent(), 0);
        assert!(held.is_complete());
        assert_eq!(held.watches()[NUMBER].state, WatchState::Absent);
        for news in [News::Begun("v1"), object("web", 8), listed(9), absent()] {
            held.take(NUMBER, news, 0);
        }
        assert_eq!(held.watches()[NUMBER].state, WatchState::Watching);
        assert_eq!(
            held.marks()[WATCHED[NUMBER].kind].seen,
            9,
            "all is in force"
        );
        held.take(NUMBER, absent(), 0);
        assert_eq!(held.watches()[NUMBER].state, WatchState::Absent);
        assert_eq!(held.marks()[WATCHED[NUMBER].kind].seen, 0);
    }

    #[test]
    fn who_is_ahead_by_bookmarks_alone_knows_no_more() {
        let begun = || [News::Begun("v1"), object("web", 7), listed(9000)];
        let (mut a, mut b) = (replica(begun()), replica(begun()));
        a.take(NUMBER, News::Progress(10_500), 0);
        b.take(NUMBER, News::Progress(9_800), 0);
        assert!(!is_ahead(&a, &b) && !is_ahead(&b, &a));
        for (number, change) in [object("web", 10_600), News::Gone(key("web"), 10_700)]
            .into_iter()
            .enumerate()
        {
            a.take(NUMBER, change, 0);
            assert!(is_ahead(&a, &b), "{number}");
            assert!(!is_ahead(&b, &a));
            // It hears the same, or that there is nothing more to hear.
            match number {
                0 => b.take(NUMBER, object("web", 10_600), 0),
                _ => b.take(NUMBER, News::Progress(10_800), 0),
            }
            assert!(!is_ahead(&a, &b), "{number}");
        }
    }

    /// What is gone was changed by somebody, but no list says when; nor what came and went unseen.
    #[test]
    fn what_a_list_shows_is_claimed_as_of_the_list() {
        let begun = || [News::Begun("v1"), object("web", 7), listed(9000)];
        let (mut a, mut b) = (replica(begun()), replica(begun()));
        for news in [News::Begun("v1"), listed(10_000)] {
            a.take(NUMBER, news, 0);
        }
        b.take(NUMBER, object("brief", 9_300), 0);
        assert!(is_ahead(&a, &b), "it may still have what is gone");
        b.take(NUMBER, News::Gone(key("web"), 9_500), 0);
        assert!(is_ahead(&a, &b));
        b.take(NUMBER, News::Progress(10_000), 0);
        assert!(!is_ahead(&a, &b));
    }
}

//! What is said of objects, by the units that say it, and of which objects that changed.

use std::collections::{BTreeMap, BTreeSet};

use weft_config::status::{Condition, ObjectStatus};

use super::Index;
use super::unit::Unit;
use crate::api::Key;
use crate::api::kinds::kind_with_status;

#[derive(Debug, Default)]
pub struct Said {
    /// In order of what they are about.
    by_unit: BTreeMap<Unit, Vec<ObjectStatus>>,
    /// Who speaks of an object that has a status to be written.
    speakers: BTreeMap<Key, BTreeSet<Unit>>,
    changed: BTreeSet<Key>,
}

impl Said {
    pub(super) fn put(&mut self, unit: Unit, mut fresh: Vec<ObjectStatus>) {
        fresh.sort_by(|a, b| subject(a).cmp(&subject(b)));
        let old = self.by_unit.get(&unit).map_or(&[][..], Vec::as_slice);
        if old == fresh {
            return;
        }
        // A unit may speak of thousands of objects, and say something new of one.
        let (before, after) = (by_object(old), by_object(&fresh));
        let gone = before.keys().filter(|of| !after.contains_key(*of));
        let gone: Vec<Key> = gone.filter_map(key).collect();
        let differs = |of: &&Subject<'_>| before.get(*of) != after.get(*of);
        let new: Vec<Key> = after.keys().filter(differs).filter_map(key).collect();
        for key in gone {
            if let Some(of) = self.speakers.get_mut(&key) {
                of.remove(&unit);
                if of.is_empty() {
                    self.speakers.remove(&key);
                }
            }
            self.changed.insert(key);
        }
        for key in new {
            let speakers = self.speakers.entry(key.clone()).or_default();
            speakers.insert(unit.clone());
            self.changed.insert(key);
        }
        match fresh.is_empty() {
            true => self.by_unit.remove(&unit),
            false => self.by_unit.insert(unit, fresh),
        };
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &ObjectStatus> {
        self.by_unit.values().flatten()
    }

    fn of(&self, object: &Key) -> Vec<ObjectStatus> {
        let units = self.speakers.get(object).into_iter().flatten();
        let wanted = (object.kind, object.namespace.as_str(), object.name.as_str());
        let said = units.filter_map(|unit| self.by_unit.get(unit));
        let said = said.flat_map(|all| {
            let first = all.partition_point(|of| subject(of) < wanted);
            let rest = all.get(first..).unwrap_or_default().iter();
            rest.take_while(move |of| subject(of) == wanted)
        });
        said.cloned().collect()
    }
}

/// Kind, namespace and name.
type Subject<'a> = (&'a str, &'a str, &'a str);

fn subject(of: &ObjectStatus) -> Subject<'_> {
    (&of.kind, &of.namespace, &of.name)
}

/// What is in order is cut into what is said of each object.
fn by_object(all: &[ObjectStatus]) -> BTreeMap<Subject<'_>, &[ObjectStatus]> {
    let of_one = all.chunk_by(|a, b| subject(a) == subject(b));
    let pairs = of_one.filter_map(|of| Some((subject(of.first()?), of)));
    pairs.collect()
}

/// `None`: nothing is written of its kind.
fn key((kind, namespace, name): &Subject<'_>) -> Option<Key> {
    Some(Key {
        kind: kind_with_status(kind)?,
        namespace: (*namespace).to_owned(),
        name: (*name).to_owned(),
    })
}

impl Index {
    /// How many objects something is wrong with.
    pub fn faulty(&self) -> usize {
        let is_wrong = |of: &&ObjectStatus| of.conditions.iter().any(Condition::is_bad);
        self.said.all().filter(is_wrong).count()
    }

    /// Objects of which something else is said than when this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.said.changed)
    }

    /// All that there is to say of one object.
    pub fn said_of(&self, key: &Key) -> Vec<ObjectStatus> {
        self.said.of(key)
    }
}

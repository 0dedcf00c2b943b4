//! What is said of objects, by the units that say it, and of which objects that changed.

use std::collections::{BTreeMap, BTreeSet};

use weft_config::status::ObjectStatus;

use super::unit::Unit;
use super::{Index, Name};
use crate::api::kinds::kind_with_status;
use crate::api::{Key, Spec};

#[derive(Debug, Default)]
pub struct Said {
    by_unit: BTreeMap<Unit, Vec<ObjectStatus>>,
    /// Who speaks of an object that has a status to be written.
    speakers: BTreeMap<Key, BTreeSet<Unit>>,
    changed: BTreeSet<Key>,
}

/// All that there is to say of one object.
#[derive(Debug, Default)]
pub struct Verdict {
    pub statuses: Vec<ObjectStatus>,
    /// Services that it names as targets and that are not there.
    pub missing: BTreeSet<String>,
}

impl Said {
    pub(super) fn put(&mut self, unit: Unit, fresh: Vec<ObjectStatus>) {
        let old = match fresh.is_empty() {
            true => self.by_unit.remove(&unit),
            false => self.by_unit.insert(unit.clone(), fresh.clone()),
        };
        let old = old.unwrap_or_default();
        if old == fresh {
            return;
        }
        for key in old.iter().filter_map(key) {
            if let Some(of) = self.speakers.get_mut(&key) {
                of.remove(&unit);
                if of.is_empty() {
                    self.speakers.remove(&key);
                }
            }
            self.changed.insert(key);
        }
        for key in fresh.iter().filter_map(key) {
            let speakers = self.speakers.entry(key.clone()).or_default();
            speakers.insert(unit.clone());
            self.changed.insert(key);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &ObjectStatus> {
        self.by_unit.values().flatten()
    }

    fn of(&self, object: &Key) -> Vec<ObjectStatus> {
        let units = self.speakers.get(object).into_iter().flatten();
        let said = units
            .filter_map(|unit| self.by_unit.get(unit))
            .flatten()
            .filter(|said| key(said).as_ref() == Some(object));
        said.cloned().collect()
    }
}

/// `None`: nothing is written of its kind.
fn key(of: &ObjectStatus) -> Option<Key> {
    Some(Key {
        kind: kind_with_status(&of.kind)?,
        namespace: of.namespace.clone(),
        name: of.name.clone(),
    })
}

impl Index {
    /// Objects of which something else is said than when this was asked last.
    pub fn take_changed(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.said.changed)
    }

    pub fn verdict(&self, key: &Key) -> Verdict {
        let targets = match self.objects.get(key).map(|object| &object.spec) {
            Some(Spec::Authorization(policy)) => policy.targets.as_slice(),
            _ => &[],
        };
        let missing = targets.iter().filter(|target| {
            let name = Name::new(&key.namespace, &target.name);
            target.kind != "Service" || self.service_object(&name).is_none()
        });
        Verdict {
            statuses: self.said.of(key),
            missing: missing.map(|target| target.name.clone()).collect(),
        }
    }
}

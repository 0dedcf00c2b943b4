//! Follows a directory for as long as the process lives: at once what the kernel tells
//! of, and at intervals everything.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::directory::{Directory, Found};
use super::watch::{self, Watch};
use super::{Told, Update};
use crate::api::errors::Errors;

/// Between two looks at everything: at least this, and so much that looking takes at
/// most a part of the time.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
const INTERVAL_MAX: Duration = Duration::from_secs(1);
const LOOKING_PART: u32 = 25;
/// A file that was written rests when it has not changed for this long.
const REST: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Follower {
    directory: Directory,
    watch: Option<Watch>,
    next_look: Instant,
    /// Files that may be written still, and since when they have not changed.
    unsettled: BTreeMap<PathBuf, Instant>,
    has_begun: bool,
    told: Told,
}

impl Follower {
    pub fn open(path: &Path) -> Self {
        let watch = Watch::new(path)
            .inspect_err(|error| {
                tracing::warn!(%error, "the directory cannot be watched; it is looked at instead");
            })
            .ok();
        Self {
            directory: Directory::new(path),
            watch,
            next_look: Instant::now(),
            unsettled: BTreeMap::new(),
            has_begun: false,
            told: Told::default(),
        }
    }

    /// Reads what is there; from then on waits for changes.
    pub async fn next(&mut self) -> Update {
        if !std::mem::replace(&mut self.has_begun, true) {
            // Watched before: what happens in between is told of.
            let found = self.look(true);
            return self.update(found);
        }
        loop {
            let found = self.step().await;
            if found.errors || !found.changes.is_empty() {
                return self.update(found);
            }
        }
    }

    async fn step(&mut self) -> Found {
        let rested = self.unsettled.values().min().map(|since| *since + REST);
        let look = rested.map_or(self.next_look, |rested| rested.min(self.next_look));
        let told = async {
            match &mut self.watch {
                Some(watch) => watch.told().await,
                None => pending().await,
            }
        };
        let told = tokio::select! {
            told = told => told,
            () = sleep_until(look) => Ok(watch::Told::default()),
        };
        let told = told.unwrap_or_else(|error| {
            tracing::warn!(%error, "the directory is watched no longer; it is looked at instead");
            self.watch = None;
            watch::Told::default()
        });
        if told.everything || Instant::now() >= self.next_look {
            return self.look(told.everything);
        }
        let mut found = self.directory.look_at(&told.whole, true);
        let now = Instant::now();
        for path in told.changed {
            self.directory.note(&path);
            self.unsettled.insert(path, now);
        }
        let rested = self
            .unsettled
            .extract_if(.., |_, since| *since + REST <= now);
        let rested: BTreeSet<PathBuf> = rested.map(|(path, _)| path).collect();
        let further = self.directory.look_at(&rested, false);
        found.changes.extend(further.changes);
        found.errors |= further.errors;
        self.settle_later(further.unsettled);
        found
    }

    /// Looks at everything. `anew`: there may be other directories than before.
    fn look(&mut self, anew: bool) -> Found {
        let begun = Instant::now();
        if let Some(watch) = &mut self.watch
            && (anew || watch.is_idle())
        {
            watch.follow();
        }
        let mut found = self.directory.look();
        let unsettled = std::mem::take(&mut found.unsettled);
        self.settle_later(unsettled);
        let pause = begun.elapsed() * LOOKING_PART;
        self.next_look = Instant::now() + pause.clamp(INTERVAL_MIN, INTERVAL_MAX);
        found
    }

    fn settle_later(&mut self, paths: BTreeSet<PathBuf>) {
        let now = Instant::now();
        self.unsettled
            .extend(paths.into_iter().map(|path| (path, now)));
    }

    fn update(&mut self, found: Found) -> Update {
        let errors = match found.errors {
            true => Arc::new(Errors::from(self.directory.errors())),
            false => Arc::clone(&self.told.errors),
        };
        self.told.tell(&errors);
        Update {
            changes: found.changes,
            errors,
            is_complete: true,
            ..Update::default()
        }
    }
}

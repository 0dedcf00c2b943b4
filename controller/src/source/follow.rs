//! Follows a directory for as long as the process lives: at once what the kernel tells
//! of, and at intervals everything.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use weft_config::status::SourceError;

use super::directory::{Directory, Found};
use super::watch::{Told, Watch};
use crate::index::Change;

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
    told_of: Vec<SourceError>,
}

impl Follower {
    /// Reads what is there.
    pub fn open(path: &Path) -> (Self, Vec<Change>, Vec<SourceError>) {
        let mut follower = Self {
            directory: Directory::new(path),
            watch: None,
            next_look: Instant::now(),
            unsettled: BTreeMap::new(),
            told_of: Vec::new(),
        };
        // Watched first: what happens in between is told of.
        follower.watch = Watch::new(path)
            .inspect_err(|error| {
                tracing::warn!(%error, "the directory cannot be watched; it is looked at instead");
            })
            .ok();
        let found = follower.look(true);
        let errors = follower.errors();
        (follower, found.changes, errors)
    }

    /// Waits for changes.
    pub async fn next(&mut self) -> (Vec<Change>, Vec<SourceError>) {
        loop {
            let found = self.step().await;
            if found.errors || !found.changes.is_empty() {
                return (found.changes, self.errors());
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
            () = sleep_until(look) => Ok(Told::default()),
        };
        let told = told.unwrap_or_else(|error| {
            tracing::warn!(%error, "the directory is watched no longer; it is looked at instead");
            self.watch = None;
            Told::default()
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

    /// What is wrong; what is new of it goes to the log.
    fn errors(&mut self) -> Vec<SourceError> {
        let errors = self.directory.errors();
        for error in errors.iter().filter(|error| !self.told_of.contains(*error)) {
            tracing::error!(file = %error.file, document = error.document, object = %error.object, field = %error.field, "{}", error.message);
        }
        self.told_of.clone_from(&errors);
        errors
    }
}

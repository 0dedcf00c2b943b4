//! Where objects come from: a directory of manifests, or the API server of a cluster.
//! Both give the same changes.

pub mod directory;
pub mod follow;
pub mod kubernetes;
pub mod manifest;
mod route;
mod watch;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use weft_config::status::{SourceError, WatchStatus};

use crate::api::Key;
use crate::api::errors::{Errors, ForStatus};
use crate::api::mark::{Claims, Marks};
use crate::index::Change;
use crate::sparing::Sparing;

/// What proxies know of and we have yet to read.
pub type Behind = tokio::sync::watch::Receiver<Claims>;

/// The closed set of sources.
#[derive(Debug)]
pub enum Source {
    Directory(Box<follow::Follower>),
    Kubernetes(Box<kubernetes::Source>),
}

/// What a source has found since it was asked last.
#[derive(Debug, Default)]
pub struct Update {
    pub changes: Vec<Change>,
    /// All that is wrong now.
    pub errors: Arc<Errors>,
    /// How the watches are, where there are any.
    pub watches: Vec<WatchStatus>,
    /// How far each kind has been read, where changes are numbered.
    pub marks: Marks,
    /// Objects with a status that somebody has changed, us too. `None`: it has gone.
    pub seen: BTreeMap<Key, Option<ForStatus>>,
    /// All that there is has been read once.
    pub is_complete: bool,
}

impl Source {
    pub fn directory(path: &Path) -> Self {
        Self::Directory(Box::new(follow::Follower::open(path)))
    }

    /// `behind`: what it should have read by now.
    pub fn kubernetes(client: &kube::Client, behind: &Behind) -> Self {
        Self::Kubernetes(Box::new(kubernetes::Source::open(client, behind)))
    }

    /// Waits until something is different.
    pub async fn next(&mut self) -> Update {
        match self {
            Self::Directory(follower) => follower.next().await,
            Self::Kubernetes(source) => source.next().await,
        }
    }
}

/// The errors that were told of: only what is new goes to the log.
#[derive(Debug, Default)]
struct Told {
    errors: Arc<Errors>,
    lines: Sparing,
}

impl Told {
    fn tell(&mut self, errors: &Arc<Errors>) {
        if Arc::ptr_eq(&self.errors, errors) {
            return;
        }
        let known: HashSet<&SourceError> = self.errors.named.iter().map(Arc::as_ref).collect();
        let named = errors.named.iter().map(Arc::as_ref);
        for error in named.filter(|error| !known.contains(error)) {
            // An object that is changed in a loop, and bad each time.
            let subject = format!("{} {}", error.file, error.object);
            if let Some(left_out) = self.lines.admit(&subject, Instant::now()) {
                tracing::error!(file = %error.file, document = error.document, object = %error.object, field = %error.field, left_out, "{}", error.message);
            }
        }
        if errors.beyond > 0 && self.errors.beyond == 0 {
            let (named, beyond) = (errors.named.len(), errors.beyond);
            tracing::error!(named, beyond, "too much is wrong to name all of it");
        }
        self.errors = Arc::clone(errors);
    }
}

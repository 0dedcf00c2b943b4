//! What the kernel tells of changes in a directory (inotify): where to look, sooner than
//! the next look at everything. It may tell too little, never what is not so.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use inotify::{Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio_stream::StreamExt as _;

/// Directories that are watched; what is in further ones is found at the next look.
const DIRECTORIES_MAX: usize = 4096;
const BUFFER_BYTES: usize = 16 * 1024;

/// What has happened since the last time.
#[derive(Debug, Default, PartialEq)]
pub struct Told {
    /// Renamed into their places: whole.
    pub whole: BTreeSet<PathBuf>,
    /// Written, perhaps not for the last time, or gone.
    pub changed: BTreeSet<PathBuf>,
    /// More than that: everything has to be looked at.
    pub everything: bool,
}

pub struct Watch {
    root: PathBuf,
    events: EventStream<Vec<u8>>,
    directories: HashMap<WatchDescriptor, PathBuf>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("directories", &self.directories)
            .finish_non_exhaustive()
    }
}

impl Watch {
    pub fn new(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            events: Inotify::init()?.into_event_stream(vec![0; BUFFER_BYTES])?,
            directories: HashMap::new(),
        })
    }

    /// Whether there is nothing to watch, as when the directory has gone.
    pub fn is_idle(&self) -> bool {
        self.directories.is_empty()
    }

    /// Watches every directory that there is now.
    pub fn follow(&mut self) {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MODIFY
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ONLYDIR;
        let mut waiting = vec![self.root.clone()];
        while let Some(directory) = waiting.pop() {
            if self.directories.len() >= DIRECTORIES_MAX {
                return;
            }
            // One that is gone already is none.
            let Ok(watched) = self.events.watches().add(&directory, mask) else {
                continue;
            };
            self.directories.insert(watched, directory.clone());
            let entries = std::fs::read_dir(&directory).into_iter().flatten();
            let folders = entries
                .filter_map(Result::ok)
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            waiting.extend(folders.map(|entry| entry.path()));
        }
    }

    /// Waits until something happens, and says what.
    pub async fn told(&mut self) -> io::Result<Told> {
        let mut told = Told::default();
        let mut next = self.events.next().await;
        loop {
            let Some(event) = next else {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            };
            self.take(event?, &mut told);
            next = tokio::select! {
                biased;
                next = self.events.next() => next,
                () = std::future::ready(()) => return Ok(told),
            };
        }
    }

    fn take(&mut self, event: Event<OsString>, told: &mut Told) {
        if event.mask.contains(EventMask::IGNORED) {
            self.directories.remove(&event.wd);
        }
        let name = event.name.map(|name| name.to_string_lossy().into_owned());
        let directory = self.directories.get(&event.wd);
        let (Some(name), Some(directory)) = (name, directory) else {
            // A directory has gone, or too much has happened to be told.
            told.everything = true;
            return;
        };
        let path = directory.join(&name);
        if event.mask.contains(EventMask::ISDIR) || name.starts_with("..") {
            // A directory, or a ConfigMap that has been swapped.
            told.everything = true;
        } else if name.starts_with('.') {
            // Nothing that is read.
        } else if event.mask.contains(EventMask::MOVED_TO) {
            told.changed.remove(&path);
            told.whole.insert(path);
        } else {
            told.whole.remove(&path);
            told.changed.insert(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_says_where_to_look() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut watch = Watch::new(folder.path()).unwrap();
        assert!(watch.is_idle());
        watch.follow();
        std::fs::write(at("a.yaml"), "x").unwrap();
        std::fs::write(at(".hidden"), "x").unwrap();
        let told = watch.told().await.unwrap();
        assert_eq!(told.changed, BTreeSet::from([at("a.yaml")]));
        assert!(told.whole.is_empty() && !told.everything);
        std::fs::rename(at(".hidden"), at("b.yaml")).unwrap();
        let told = watch.told().await.unwrap();
        assert_eq!(told.whole, BTreeSet::from([at("b.yaml")]));
        std::fs::remove_file(at("a.yaml")).unwrap();
        let told = watch.told().await.unwrap();
        assert_eq!(told.changed, BTreeSet::from([at("a.yaml")]));
        std::fs::create_dir(at("more")).unwrap();
        assert!(watch.told().await.unwrap().everything);
        watch.follow();
        std::fs::write(at("more/c.yaml"), "x").unwrap();
        let told = watch.told().await.unwrap();
        assert_eq!(told.changed, BTreeSet::from([at("more/c.yaml")]));
    }
}

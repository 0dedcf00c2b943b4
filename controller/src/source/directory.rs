//! A directory of manifests, read again as it changes.
//!
//! Looked at, not watched by inotify: a ConfigMap is swapped by renaming a
//! symlink two levels up, and a bind mount tells nothing at all.
//!
//! A file is read once it rests: the same at two looks in a row.
//!
//! **Invariant:** a file that cannot be read keeps its last good objects; a bad
//! document costs only itself.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use weft_config::status::SourceError;

use super::manifest;
use crate::api::{Key, Object};

/// How often the directory is looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Larger files are refused.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// More files than this are refused.
const FILES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 8;

/// Time, size and number of a file.
type Stamp = (SystemTime, u64, u64);

#[derive(Debug, Default)]
struct Known {
    /// As it was at the last look.
    seen: Option<Stamp>,
    /// As it was when it was read.
    stamp: Option<Stamp>,
    objects: Vec<Object>,
    errors: Vec<SourceError>,
}

/// The directory as it was last read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, Known>,
    /// The first look takes what is there.
    begun: bool,
    /// The directory itself cannot be read.
    broken: Option<String>,
}

impl Directory {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
            begun: false,
            broken: None,
        }
    }

    /// Reads what changed; true if anything did.
    pub fn refresh(&mut self) -> bool {
        let mut found = BTreeMap::new();
        let listed = list(&self.path, 0, &mut found);
        let broken = listed.err().map(|error| error.to_string());
        if broken.is_some() {
            // What there was stays: a directory that is gone for a moment must not end a mesh.
            let changed = self.broken != broken;
            self.broken = broken;
            return changed;
        }
        let mut changed = self.broken.take().is_some();
        let before = self.files.len();
        self.files.retain(|path, _| found.contains_key(path));
        changed |= self.files.len() != before;
        for (path, stamp) in found {
            let known = self.files.entry(path.clone()).or_default();
            let rests = known.seen.replace(stamp) == Some(stamp) || !self.begun;
            // One that changes still may be half written, or empty for a moment.
            if known.stamp == Some(stamp) || !rests {
                continue;
            }
            changed = true;
            known.stamp = Some(stamp);
            let name = path.strip_prefix(&self.path).unwrap_or(&path);
            match read(&path, stamp.1) {
                Ok(text) => {
                    let parsed = manifest::parse(&name.display().to_string(), &text);
                    known.take(parsed);
                }
                Err(problem) => {
                    known.errors = vec![SourceError {
                        file: name.display().to_string(),
                        message: problem,
                        ..SourceError::default()
                    }];
                }
            }
        }
        self.begun = true;
        changed
    }

    /// All objects, and what is wrong. The same object in two files: the first counts.
    pub fn objects(&self) -> (BTreeMap<Key, Object>, Vec<SourceError>) {
        let mut objects = BTreeMap::new();
        let mut errors: Vec<SourceError> = self
            .broken
            .iter()
            .map(|problem| SourceError {
                file: self.path.display().to_string(),
                message: problem.clone(),
                ..SourceError::default()
            })
            .collect();
        let mut owners: BTreeMap<Key, &Path> = BTreeMap::new();
        for (path, known) in &self.files {
            errors.extend(known.errors.iter().cloned());
            for object in &known.objects {
                let key = object.key();
                if let Some(owner) = owners.get(&key) {
                    errors.push(SourceError {
                        file: path.display().to_string(),
                        object: key.to_string(),
                        message: format!("is already in {}; that one counts", owner.display()),
                        ..SourceError::default()
                    });
                    continue;
                }
                owners.insert(key.clone(), path);
                objects.insert(key, object.clone());
            }
        }
        (objects, errors)
    }
}

impl Known {
    /// Takes what was read; of a document that is bad, what it was before.
    fn take(&mut self, parsed: manifest::Parsed) {
        let mut objects = parsed.objects;
        for error in &parsed.errors {
            let was = |object: &&Object| {
                error.object.is_empty() || object.key().to_string() == error.object
            };
            let missing: Vec<Object> = self
                .objects
                .iter()
                .filter(was)
                .filter(|old| objects.iter().all(|new| new.key() != old.key()))
                .cloned()
                .collect();
            objects.extend(missing);
        }
        self.objects = objects;
        self.errors = parsed.errors;
    }
}

fn list(
    directory: &Path,
    depth: usize,
    found: &mut BTreeMap<PathBuf, Stamp>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // ConfigMap volumes keep their versions in `..data`.
        if name.starts_with('.') {
            continue;
        }
        // Follows symlinks; one that leads nowhere is gone.
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            if depth < DEPTH_MAX {
                list(&path, depth + 1, found)?;
            }
            continue;
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        if matches!(&*extension, "yaml" | "yml" | "json") && found.len() < FILES_MAX {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            found.insert(path, (modified, metadata.len(), metadata.ino()));
        }
    }
    Ok(())
}

fn read(path: &Path, size: u64) -> Result<String, String> {
    if size > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes; split it"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: s}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n";

    /// Looks until what was written rests and is read.
    fn settle(directory: &mut Directory) -> bool {
        let first = directory.refresh();
        directory.refresh() || first
    }

    #[test]
    fn a_file_that_is_being_written_keeps_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = Directory::new(folder.path());
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, SERVICE).unwrap();
        assert!(directory.refresh());
        std::fs::write(&file, "").unwrap();
        assert!(!directory.refresh(), "it changes still");
        std::fs::write(&file, SERVICE).unwrap();
        assert!(!directory.refresh());
        assert_eq!(directory.objects().0.len(), 1);
        std::fs::write(&file, "").unwrap();
        assert!(settle(&mut directory));
        assert_eq!(directory.objects().0.len(), 0, "it is empty for good");
    }

    #[test]
    fn a_bad_document_costs_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let mut directory = Directory::new(folder.path());
        let file = folder.path().join("a.yaml");
        let other = SERVICE.replace("name: a", "name: b");
        std::fs::write(&file, format!("{SERVICE}---\n{other}")).unwrap();
        assert!(settle(&mut directory));
        assert!(!directory.refresh());
        assert_eq!(directory.objects().0.len(), 2);
        let bad = other.replace("port: 80", "port: many");
        std::fs::write(&file, format!("{SERVICE}---\n{bad} ")).unwrap();
        assert!(settle(&mut directory));
        let (objects, errors) = directory.objects();
        assert_eq!(objects.len(), 2, "the last good one stays");
        assert_eq!((errors.len(), errors[0].document), (1, 2), "{errors:?}");
        assert!(errors[0].field.contains("port"), "{errors:?}");
        std::fs::write(&file, ": : nonsense [").unwrap();
        assert!(settle(&mut directory));
        assert_eq!(directory.objects().0.len(), 2);
        std::fs::remove_file(&file).unwrap();
        assert!(settle(&mut directory));
        assert_eq!(directory.objects().0.len(), 0);
    }

    #[test]
    fn the_same_object_twice() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), SERVICE).unwrap();
        std::fs::write(folder.path().join("b.yml"), SERVICE).unwrap();
        let mut directory = Directory::new(folder.path());
        directory.refresh();
        let (objects, errors) = directory.objects();
        assert_eq!((objects.len(), errors.len()), (1, 1));
        assert!(errors[0].message.contains("a.yaml"));
    }
}

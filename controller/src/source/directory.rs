//! A directory of manifests, read again as it changes.
//!
//! The whole is looked at every so often, for a bind mount tells nothing and a
//! ConfigMap is swapped by a symlink two levels up; `watch` says sooner where to look.
//! Only files with another time, size or number are read.
//!
//! A file is read once it rests: the same at two looks in a row. One that was renamed
//! into its place is whole already.
//!
//! **Invariant:** a file that cannot be read keeps its last good objects; a bad
//! document costs only itself.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use weft_config::status::SourceError;

use super::manifest;
use crate::api::{Key, Object};
use crate::index::Change;

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
    objects: BTreeMap<Key, Arc<Object>>,
    errors: Vec<SourceError>,
}

/// What a look has found.
#[derive(Debug, Default)]
pub struct Found {
    pub changes: Vec<Change>,
    /// Something else is wrong, or right, than before.
    pub errors: bool,
    /// Some file changes still: another look, soon, will find out.
    pub unsettled: BTreeSet<PathBuf>,
}

/// The directory as it was last read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, Known>,
    /// Who has an object; of several files the first by name counts.
    owners: BTreeMap<Key, BTreeSet<PathBuf>>,
    /// The first look takes what is there.
    begun: bool,
    /// The directory itself cannot be read, or holds too much.
    broken: Option<String>,
}

impl Directory {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
            owners: BTreeMap::new(),
            begun: false,
            broken: None,
        }
    }

    /// Looks at everything, and reads what changed.
    pub fn look(&mut self) -> Found {
        let mut found = Found::default();
        let mut present = BTreeMap::new();
        let listed = list(&self.path, 0, &mut present);
        let mut broken = listed.err().map(|error| error.to_string());
        if broken.is_some() {
            // What there was stays: a directory that is gone for a moment must not end a mesh.
            found.errors = self.broken != broken;
            self.broken = broken;
            return found;
        }
        if present.len() >= FILES_MAX {
            broken = Some(format!(
                "has more than {FILES_MAX} files; the others are not read"
            ));
        }
        found.errors = self.broken != broken;
        self.broken = broken;
        let gone = self
            .files
            .keys()
            .filter(|path| !present.contains_key(*path));
        let gone: Vec<PathBuf> = gone.cloned().collect();
        for path in gone {
            self.forget(&path, &mut found);
        }
        for (path, stamp) in present {
            self.consider(path, stamp, false, &mut found);
        }
        self.begun = true;
        found
    }

    /// Looks at single files. `whole`: they were renamed into their places.
    pub fn look_at(&mut self, paths: &BTreeSet<PathBuf>, whole: bool) -> Found {
        let mut found = Found::default();
        for path in paths.iter().filter(|path| is_manifest(path)) {
            match stamp(path) {
                Some(stamp) if self.files.len() < FILES_MAX || self.files.contains_key(path) => {
                    self.consider(path.clone(), stamp, whole, &mut found);
                }
                Some(_) => {}
                None => self.forget(path, &mut found),
            }
        }
        found
    }

    /// Remembers how a file is that may be written still.
    pub fn note(&mut self, path: &Path) {
        if let Some(known) = self.files.get_mut(path) {
            known.seen = stamp(path);
        }
    }

    /// Reads a file, if it is another than it was and rests.
    fn consider(&mut self, path: PathBuf, stamp: Stamp, whole: bool, found: &mut Found) {
        let known = self.files.entry(path.clone()).or_default();
        let rests = known.seen.replace(stamp) == Some(stamp) || whole || !self.begun;
        if known.stamp == Some(stamp) {
            return;
        }
        // One that changes still may be half written, or empty for a moment.
        if !rests {
            found.unsettled.insert(path);
            return;
        }
        known.stamp = Some(stamp);
        let name = path.strip_prefix(&self.path).unwrap_or(&path);
        let name = name.display().to_string();
        let before = std::mem::take(&mut known.objects);
        let errors = match read(&path, stamp.1) {
            Ok(text) => {
                let parsed = manifest::parse(&name, &text);
                known.objects = kept(parsed.objects, &parsed.errors, &before);
                parsed.errors
            }
            Err(problem) => {
                known.objects.clone_from(&before);
                vec![SourceError {
                    file: name,
                    message: problem,
                    ..SourceError::default()
                }]
            }
        };
        found.errors |= known.errors != errors;
        known.errors = errors;
        let after = known.objects.clone();
        self.exchange(&path, &before, &after, found);
    }

    fn forget(&mut self, path: &Path, found: &mut Found) {
        if let Some(known) = self.files.remove(path) {
            found.errors |= !known.errors.is_empty();
            self.exchange(path, &known.objects, &BTreeMap::new(), found);
        }
    }

    /// Finds what a file's other objects mean for the whole.
    fn exchange(
        &mut self,
        path: &Path,
        before: &BTreeMap<Key, Arc<Object>>,
        after: &BTreeMap<Key, Arc<Object>>,
        found: &mut Found,
    ) {
        let keys: BTreeSet<&Key> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let (old, new) = (before.get(key), after.get(key));
            if old == new {
                continue;
            }
            let owners = self.owners.entry(key.clone()).or_default();
            let contested = owners.len();
            match new {
                Some(_) => owners.insert(path.to_owned()),
                None => owners.remove(path),
            };
            found.errors |= contested > 1 || owners.len() > 1;
            let owner = owners.first();
            let object = owner.and_then(|owner| self.files.get(owner)?.objects.get(key));
            found.changes.push(Change {
                key: key.clone(),
                object: object.cloned(),
            });
            if owners.is_empty() {
                self.owners.remove(key);
            }
        }
    }

    /// What is wrong.
    pub fn errors(&self) -> Vec<SourceError> {
        let mut errors: Vec<SourceError> = self
            .broken
            .iter()
            .map(|problem| SourceError {
                file: self.path.display().to_string(),
                message: problem.clone(),
                ..SourceError::default()
            })
            .collect();
        errors.extend(self.files.values().flat_map(|known| known.errors.clone()));
        for (key, owners) in self.owners.iter().filter(|(_, owners)| owners.len() > 1) {
            let mut owners = owners.iter().map(|owner| self.relative(owner));
            let first = owners.next().unwrap_or_default();
            errors.extend(owners.map(|file| SourceError {
                file,
                object: key.to_string(),
                message: format!("is already in {first}; that one counts"),
                ..SourceError::default()
            }));
        }
        errors
    }

    fn relative(&self, path: &Path) -> String {
        let path = path.strip_prefix(&self.path).unwrap_or(path);
        path.display().to_string()
    }
}

/// The objects of a file: of a document that is bad, what it was before.
fn kept(
    parsed: Vec<Object>,
    errors: &[SourceError],
    before: &BTreeMap<Key, Arc<Object>>,
) -> BTreeMap<Key, Arc<Object>> {
    let mut objects = BTreeMap::new();
    for object in parsed {
        // The first of two in one file counts, as of two files.
        objects
            .entry(object.key())
            .or_insert_with(|| Arc::new(object));
    }
    for error in errors {
        let was = |key: &Key| error.object.is_empty() || key.to_string() == error.object;
        for (key, old) in before.iter().filter(|(key, _)| was(key)) {
            objects
                .entry(key.clone())
                .or_insert_with(|| Arc::clone(old));
        }
    }
    objects
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    !hidden && matches!(&*extension, "yaml" | "yml" | "json")
}

/// Follows symlinks; `None`: gone, or no file.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok().filter(|of| of.is_file())?;
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Some((modified, metadata.len(), metadata.ino()))
}

fn list(
    directory: &Path,
    depth: usize,
    found: &mut BTreeMap<PathBuf, Stamp>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // ConfigMap volumes keep their versions in `..data`.
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() || (kind.is_symlink() && path.is_dir()) {
            if depth < DEPTH_MAX {
                list(&path, depth + 1, found)?;
            }
        } else if is_manifest(&path)
            && found.len() < FILES_MAX
            && let Some(stamp) = stamp(&path)
        {
            found.insert(path, stamp);
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

    /// A directory with what its changes come to.
    struct Followed {
        folder: tempfile::TempDir,
        directory: Directory,
        objects: BTreeMap<Key, Arc<Object>>,
    }

    impl Followed {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self {
                directory: Directory::new(folder.path()),
                folder,
                objects: BTreeMap::new(),
            }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        /// One look; whether anything changed.
        fn look(&mut self) -> bool {
            let found = self.directory.look();
            self.take(found)
        }

        fn take(&mut self, found: Found) -> bool {
            let changed = !found.changes.is_empty() || found.errors;
            for Change { key, object } in found.changes {
                match object {
                    Some(object) => self.objects.insert(key, object),
                    None => self.objects.remove(&key),
                };
            }
            changed
        }

        /// Looks until what was written rests and is read.
        fn settle(&mut self) -> bool {
            let first = self.look();
            self.look() || first
        }
    }

    #[test]
    fn a_file_that_is_being_written_keeps_what_it_was() {
        let mut of = Followed::new();
        of.write("a.yaml", SERVICE);
        assert!(of.look());
        of.write("a.yaml", "");
        assert!(!of.look(), "it changes still");
        of.write("a.yaml", SERVICE);
        assert!(!of.look());
        assert_eq!(of.objects.len(), 1);
        of.write("a.yaml", "");
        assert!(of.settle());
        assert_eq!(of.objects.len(), 0, "it is empty for good");
    }

    #[test]
    fn a_single_file_is_looked_at_alone() {
        let mut of = Followed::new();
        of.look();
        let path = of.write("a.yaml", SERVICE);
        let paths = BTreeSet::from([path.clone()]);
        let found = of.directory.look_at(&paths, false);
        assert_eq!((found.changes.len(), found.unsettled), (0, paths.clone()));
        let found = of.directory.look_at(&paths, false);
        assert!(of.take(found), "it rests");
        assert_eq!(of.objects.len(), 1);
        let fresh = of.write("fresh", &SERVICE.replace("name: a", "name: b"));
        std::fs::rename(fresh, &path).unwrap();
        let found = of.directory.look_at(&paths, true);
        assert!(of.take(found), "one that was renamed is whole");
        assert_eq!(of.objects.keys().next().unwrap().name, "b");
        std::fs::remove_file(&path).unwrap();
        let found = of.directory.look_at(&paths, false);
        assert!(of.take(found));
        assert!(of.objects.is_empty());
        let other = of.write("notes.txt", SERVICE);
        let found = of.directory.look_at(&BTreeSet::from([other]), true);
        assert!(!of.take(found), "no manifest");
        assert!(!of.settle());
    }

    #[test]
    fn a_bad_document_costs_only_itself() {
        let mut of = Followed::new();
        let other = SERVICE.replace("name: a", "name: b");
        let file = of.write("a.yaml", &format!("{SERVICE}---\n{other}"));
        assert!(of.settle());
        assert!(!of.look());
        assert_eq!(of.objects.len(), 2);
        let bad = other.replace("port: 80", "port: many");
        of.write("a.yaml", &format!("{SERVICE}---\n{bad} "));
        assert!(of.settle());
        let errors = of.directory.errors();
        assert_eq!(of.objects.len(), 2, "the last good one stays");
        assert_eq!((errors.len(), errors[0].document), (1, 2), "{errors:?}");
        assert!(errors[0].field.contains("port"), "{errors:?}");
        of.write("a.yaml", ": : nonsense [");
        assert!(of.settle());
        assert_eq!(of.objects.len(), 2);
        std::fs::remove_file(&file).unwrap();
        assert!(of.settle());
        assert_eq!(of.objects.len(), 0);
        assert!(of.directory.errors().is_empty());
    }

    #[test]
    fn the_same_object_twice() {
        let mut of = Followed::new();
        let first = of.write("a.yaml", SERVICE);
        of.write("b.yml", &SERVICE.replace("10.0.0.1", "10.0.0.2"));
        of.look();
        let address = |of: &Followed| match &of.objects.values().next().unwrap().spec {
            crate::api::Spec::Service(service) => service.addresses[0].to_string(),
            other => panic!("{other:?}"),
        };
        let errors = of.directory.errors();
        assert_eq!((of.objects.len(), errors.len()), (1, 1));
        assert!(errors[0].message.contains("a.yaml"), "{errors:?}");
        assert_eq!(address(&of), "10.0.0.1");
        std::fs::remove_file(first).unwrap();
        assert!(of.settle());
        assert_eq!(address(&of), "10.0.0.2", "the other has it now");
        assert!(of.directory.errors().is_empty());
    }
}

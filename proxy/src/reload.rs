//! Where the configuration comes from: a file that is read and watched, or flags.
//!
//! Polling, not inotify: a ConfigMap is swapped by renaming a symlink two
//! levels up, an editor writes a new file, a bind mount tells nothing at all;
//! what the path leads to can always be looked at.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use weft_config::snapshot::{Settings, Snapshot};
use weft_config::{Errors, compile, file, wire};

use crate::net::tls::files::Stamp;

/// How often the file is looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// What the command line sets over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub admin: Option<std::net::SocketAddr>,
    pub workers: Option<usize>,
}

/// A configuration as it was read.
#[derive(Debug)]
pub struct Loaded {
    pub snapshot: Arc<Snapshot>,
    /// For the admin's dump.
    pub source: wire::Config,
}

/// What the configuration is read from.
#[derive(Debug)]
pub struct ConfigSource {
    origin: Origin,
    overrides: Overrides,
}

#[derive(Debug)]
enum Origin {
    /// A file, as it was when it was last read.
    File { path: PathBuf, stamp: Stamp },
    /// The command line, which says the same as long as the process lives.
    Flags(Box<wire::Config>),
}

impl ConfigSource {
    pub fn file(path: &Path, overrides: Overrides) -> Self {
        let origin = Origin::File {
            path: path.to_owned(),
            stamp: Stamp::of(path),
        };
        Self { origin, overrides }
    }

    pub fn flags(config: wire::Config) -> Self {
        Self {
            origin: Origin::Flags(Box::new(config)),
            overrides: Overrides::default(),
        }
    }

    /// What errors call it.
    pub fn name(&self) -> String {
        match &self.origin {
            Origin::File { path, .. } => path.display().to_string(),
            Origin::Flags(_) => "weft-proxy sidecar".to_owned(),
        }
    }

    /// Whether reading it again may give anything new.
    pub fn is_fixed(&self) -> bool {
        matches!(self.origin, Origin::Flags(_))
    }

    /// Whether the file is not the one that was last read.
    pub fn has_changed(&self) -> bool {
        match &self.origin {
            Origin::File { path, stamp } => Stamp::of(path) != *stamp,
            Origin::Flags(_) => false,
        }
    }

    /// Reads and compiles it.
    pub fn load(&mut self) -> Result<Loaded, Errors> {
        let name = self.name();
        let (snapshot, source) = match &mut self.origin {
            Origin::File { path, stamp } => {
                // Before reading: a write that races with us is seen at the next look.
                *stamp = Stamp::of(path);
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Errors::one("", advice(&error)).named(&name))?;
                let snapshot = file::load(&name, &text)?;
                let source = file::parse(&text).map_err(|errors| errors.named(&name))?;
                (snapshot, source)
            }
            Origin::Flags(config) => {
                let compiled = compile::compile(config);
                let snapshot = compiled.map_err(|errors| errors.named(&name))?;
                (snapshot, config.as_ref().clone())
            }
        };
        Ok(self.loaded(snapshot, source))
    }

    /// `source` with what a controller told beside it. The zone is the controller's to
    /// tell only where `source` says none.
    pub fn merged(&self, source: &wire::Config, overlay: &wire::Config) -> Result<Loaded, Errors> {
        let mut config = source.clone();
        config.listeners.extend(overlay.listeners.iter().cloned());
        config.services.extend(overlay.services.iter().cloned());
        config.routes.extend(overlay.routes.iter().cloned());
        if let Some(told) = overlay.settings.as_ref().filter(|of| !of.zone.is_empty()) {
            let settings = config.settings.get_or_insert_default();
            if settings.zone.is_empty() {
                settings.zone.clone_from(&told.zone);
            }
        }
        let snapshot = compile::compile(&config)?;
        Ok(self.loaded(snapshot, source.clone()))
    }

    fn loaded(&self, mut snapshot: Snapshot, source: wire::Config) -> Loaded {
        if let Some(admin) = self.overrides.admin {
            snapshot.settings.admin = admin;
        }
        if let Some(workers) = self.overrides.workers {
            snapshot.settings.workers = workers;
        }
        Loaded {
            snapshot: Arc::new(snapshot),
            source,
        }
    }
}

fn advice(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            "no such file; give the configuration's path with --config".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => {
            "permission denied; make it readable for the user that runs weft-proxy".to_owned()
        }
        std::io::ErrorKind::InvalidData => "is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}

/// What a reload cannot change, said in words.
pub fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let mut fields = Vec::new();
    if old.workers != new.workers {
        fields.push("settings.workers");
    }
    if old.admin != new.admin {
        fields.push("settings.admin");
    }
    if old.mesh != new.mesh {
        fields.push("settings.mesh");
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "listeners: [{name: web, address: '127.0.0.1:0', service: a}]\n\
                        services: [{name: a, endpoints: [{address: '10.0.0.1:80'}]}]\n";

    #[test]
    fn changes_are_seen_through_a_symlink() {
        let dir = std::env::temp_dir().join(format!("weft-reload-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("weft.yaml");
        for version in ["one", "two"] {
            std::fs::create_dir(dir.join(version)).unwrap();
            std::fs::write(dir.join(version).join("weft.yaml"), GOOD).unwrap();
        }
        std::os::unix::fs::symlink("one", dir.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/weft.yaml", &path).unwrap();
        let admin: std::net::SocketAddr = "127.0.0.1:9".parse().unwrap();
        let overrides = Overrides {
            admin: Some(admin),
            workers: Some(3),
        };
        let mut file = ConfigSource::file(&path, overrides);
        let loaded = file.load().unwrap();
        assert_eq!(loaded.snapshot.settings.admin, admin);
        assert_eq!(loaded.snapshot.settings.workers, 3);
        assert!(!file.has_changed());
        std::os::unix::fs::symlink("two", dir.join("..next")).unwrap();
        std::fs::rename(dir.join("..next"), dir.join("..data")).unwrap();
        assert!(file.has_changed());
        file.load().unwrap();
        assert!(!file.has_changed());
        std::fs::remove_file(dir.join("two/weft.yaml")).unwrap();
        assert!(file.has_changed());
        let error = file.load().unwrap_err().to_string();
        assert!(error.contains("no such file"), "{error}");
        assert!(!file.has_changed(), "a missing file is reported once");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_needs_a_restart() {
        let settings = file::load("x", GOOD).unwrap().settings;
        let mut other = settings.clone();
        other.workers += 1;
        assert_eq!(needs_restart(&settings, &settings), Vec::<&str>::new());
        assert_eq!(needs_restart(&settings, &other), ["settings.workers"]);
    }
}

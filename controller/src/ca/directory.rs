//! The authority's files in a directory, looked at again and again.
//!
//! | file | |
//! | --- | --- |
//! | `ca.crt`, `ca.key` | signs; made at the first start |
//! | `bundle.pem` | further roots that are trusted, where it exists |
//! | `crl.pem` | revocation lists, where it exists |
//! | `token.key` | signs join tokens; made at the first start |
//! | `lock` | held while what is missing is made |
//! | `trust.pem` | written here: all trusted roots, for who has yet to be told |

use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use super::files::{File, Files, Root};
use super::{CaError, file_error, token, write};

/// How often the files are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const FILE_BYTES_MAX: u64 = 8 << 20;
const NAMES: [&str; 4] = ["ca.crt", "ca.key", "bundle.pem", "crl.pem"];

#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// When each was changed, as far as we have looked.
    seen: [Option<SystemTime>; 4],
    /// When to look next.
    due: Instant,
}

impl Directory {
    /// Makes what is missing.
    pub fn open(path: &Path, trust_domain: &str) -> Result<Self, CaError> {
        std::fs::create_dir_all(path).map_err(|error| file_error(path, error))?;
        // Of controllers that start at once one makes what is missing.
        let lock = path.join("lock");
        let held = std::fs::File::create(&lock).and_then(|file| file.lock().map(|()| file));
        let _held = held.map_err(|error| file_error(&lock, error))?;
        let (certificate, key) = (path.join("ca.crt"), path.join("ca.key"));
        if !certificate.exists() && !key.exists() {
            let root = Root::make(trust_domain)?;
            write(&key, root.key.as_bytes(), 0o600)?;
            write(&certificate, root.certificate.as_bytes(), 0o644)?;
        }
        token::key(path)?;
        Ok(Self {
            path: path.to_owned(),
            seen: stamps(path),
            due: Instant::now(),
        })
    }

    pub fn files(&self) -> Result<Files, CaError> {
        files(&self.path)
    }

    /// Waits until some file is not what it was. May be dropped and begun again.
    pub async fn changed(&mut self) -> Result<Files, CaError> {
        loop {
            sleep_until(self.due).await;
            self.due = Instant::now() + POLL_INTERVAL;
            let now = stamps(&self.path);
            if now != self.seen {
                self.seen = now;
                return self.files();
            }
        }
    }

    /// Writes the roots for who has yet to be told them.
    pub fn publish(&self, roots: &str) -> Result<(), CaError> {
        write(&self.path.join("trust.pem"), roots.as_bytes(), 0o644)
    }
}

/// What a directory has now.
pub fn files(path: &Path) -> Result<Files, CaError> {
    let [certificate, key, bundle, revocations] = NAMES.map(|name| read(path, name));
    Ok(Files {
        certificate: certificate?,
        key: key?,
        // The last of ca.crt.
        root: File {
            place: path.join("ca.crt").display().to_string(),
            bytes: None,
        },
        bundle: bundle?,
        revocations: revocations?,
    })
}

fn stamps(path: &Path) -> [Option<SystemTime>; 4] {
    NAMES.map(|name| {
        let metadata = std::fs::metadata(path.join(name));
        metadata.and_then(|metadata| metadata.modified()).ok()
    })
}

pub fn read(directory: &Path, name: &str) -> Result<File, CaError> {
    let path = directory.join(name);
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(&path);
    let taken = opened.and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let bytes = match taken {
        Ok(length) if length as u64 > FILE_BYTES_MAX => {
            let problem = format!("is larger than {FILE_BYTES_MAX} bytes");
            return Err(file_error(&path, problem));
        }
        Ok(_) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(file_error(&path, error)),
    };
    Ok(File {
        place: path.display().to_string(),
        bytes,
    })
}

//! The authority's files where they are, a directory or a Secret, beside them what a
//! rotation keeps between its steps: `next.crt`, `next.key` and `previous.crt`, which no
//! controller looks at.
//!
//! **Invariant:** a Secret is written only as the version that was read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use weft_controller::ca;
use weft_controller::ca::files::{File, Files};

use crate::cluster::{Cluster, bounded};

/// By whom a Secret of cert-manager's is kept.
const CERT_MANAGER: &str = "cert-manager.io/certificate-name";

pub enum Place {
    Directory(PathBuf),
    Secret {
        api: Box<Api<Secret>>,
        name: String,
        title: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Secret { title, .. } => f.write_str(title),
        }
    }
}

/// One of the files that a rotation writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Before the certificate: in between controllers go on with what they have.
    Key,
    Certificate,
    /// Where it is kept apart from the certificate.
    Root,
    Bundle,
    NextKey,
    Next,
    Previous,
}

impl Slot {
    fn name(self, place: &Place) -> Option<&'static str> {
        let is_directory = matches!(place, Place::Directory(_));
        Some(match (self, is_directory) {
            (Self::Key, true) => "ca.key",
            (Self::Key, false) => "tls.key",
            (Self::Certificate, true) => "ca.crt",
            (Self::Certificate, false) => "tls.crt",
            (Self::Root, true) => return None,
            (Self::Root, false) => "ca.crt",
            (Self::Bundle, _) => "bundle.pem",
            (Self::NextKey, _) => "next.key",
            (Self::Next, _) => "next.crt",
            (Self::Previous, _) => "previous.crt",
        })
    }

    fn is_secret(self) -> bool {
        matches!(self, Self::Key | Self::NextKey)
    }
}

/// What is written; `None` takes away.
pub type Change = BTreeMap<Slot, Option<String>>;

/// What is there.
pub struct Kept {
    pub files: Files,
    pub next: File,
    pub next_key: File,
    pub previous: File,
    /// Who else writes there.
    pub owner: Option<String>,
    secret: Option<Secret>,
}

impl Place {
    pub fn secret(cluster: &Cluster, name: &str) -> Self {
        Self::Secret {
            api: Box::new(Api::namespaced(cluster.client.clone(), &cluster.namespace)),
            name: name.to_owned(),
            title: format!("Secret {}/{name}", cluster.namespace),
        }
    }

    pub async fn read(&self) -> Result<Kept> {
        match self {
            Self::Directory(path) => {
                let file = |name: &str| ca::directory::read(path, name);
                Ok(Kept {
                    files: ca::directory::files(path)?,
                    next: file("next.crt")?,
                    next_key: file("next.key")?,
                    previous: file("previous.crt")?,
                    owner: None,
                    secret: None,
                })
            }
            Self::Secret { api, name, title } => {
                let secret = bounded(title, api.get(name)).await?;
                let data = secret.data.as_ref();
                let file = |key: &str| File {
                    place: format!("{title}, {key}"),
                    bytes: data.and_then(|data| data.get(key)).map(|of| of.0.clone()),
                };
                let annotations = secret.metadata.annotations.as_ref();
                let owner = annotations.and_then(|of| of.get(CERT_MANAGER));
                Ok(Kept {
                    files: ca::secret::files(title, Some(&secret))?,
                    next: file("next.crt"),
                    next_key: file("next.key"),
                    previous: file("previous.crt"),
                    owner: owner.map(|name| format!("cert-manager (Certificate {name})")),
                    secret: Some(secret),
                })
            }
        }
    }

    pub async fn write(&self, kept: Kept, change: &Change) -> Result<()> {
        let named = change
            .iter()
            .filter_map(|(slot, text)| Some((*slot, slot.name(self)?, text)));
        match self {
            Self::Directory(path) => {
                for (slot, name, text) in named {
                    write_file(&path.join(name), slot, text.as_deref())?;
                }
                Ok(())
            }
            Self::Secret { api, name, title } => {
                let mut secret = kept.secret.unwrap_or_default();
                let data = secret.data.get_or_insert_default();
                for (_, key, text) in named {
                    match text {
                        Some(text) => {
                            data.insert(key.to_owned(), ByteString(text.clone().into_bytes()));
                        }
                        None => drop(data.remove(key)),
                    }
                }
                let params = PostParams::default();
                bounded(title, api.replace(name, &params, &secret)).await?;
                Ok(())
            }
        }
    }
}

fn write_file(path: &Path, slot: Slot, text: Option<&str>) -> Result<()> {
    match text {
        Some(text) => {
            let mode = if slot.is_secret() { 0o600 } else { 0o644 };
            Ok(ca::write(path, text.as_bytes(), mode)?)
        }
        None if path.exists() => {
            std::fs::remove_file(path).with_context(|| path.display().to_string())
        }
        None => Ok(()),
    }
}

//! Where the authority's files are: a closed set of places, with the same rules.

use std::path::Path;
use std::time::Duration;

use super::directory::Directory;
use super::files::Files;
use super::secret::SecretFiles;
use super::{Ca, CaError};

#[derive(Debug)]
pub enum Place {
    Directory(Directory),
    Secret(SecretFiles),
}

impl Place {
    pub fn directory(
        path: &Path,
        trust_domain: &str,
        life: Duration,
    ) -> Result<(Ca, Self), CaError> {
        let directory = Directory::open(path, trust_domain)?;
        let ca = Ca::new(&directory.files()?, trust_domain, life)?;
        let place = Self::Directory(directory);
        place.publish(&ca)?;
        Ok((ca, place))
    }

    /// `secret`: its namespace and name.
    pub async fn secret(
        client: kube::Client,
        secret: (&str, &str),
        trust_domain: &str,
        life: Duration,
    ) -> Result<(Ca, Self), CaError> {
        let (place, files) = SecretFiles::open(client, secret, trust_domain).await?;
        Ok((Ca::new(&files, trust_domain, life)?, Self::Secret(place)))
    }

    /// Takes up the next change; `false`: it cannot be used, what there was stays, and
    /// the log and `/status` say why. Loses nothing where it is dropped.
    pub async fn follow(&mut self, ca: &Ca) -> bool {
        let changed = self.changed().await;
        let taken = ca.take(changed).and_then(|()| self.publish(ca));
        match taken {
            Ok(()) => {
                tracing::info!("the authority's files changed");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the authority's new files cannot be used; the old ones stay");
                false
            }
        }
    }

    async fn changed(&mut self) -> Result<Files, CaError> {
        match self {
            Self::Directory(directory) => directory.changed().await,
            Self::Secret(secret) => secret.changed().await,
        }
    }

    /// Puts the roots where who has yet to be told finds them.
    fn publish(&self, ca: &Ca) -> Result<(), CaError> {
        match self {
            Self::Directory(directory) => directory.publish(&ca.trust_pem()),
            // They are written into each pod.
            Self::Secret(_) => Ok(()),
        }
    }
}

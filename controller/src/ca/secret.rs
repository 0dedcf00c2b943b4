//! The authority's files in a Secret of Kubernetes, watched. Its shape is cert-manager's
//! (`kubernetes.io/tls`), with what Weft needs further beside it:
//!
//! | key | |
//! | --- | --- |
//! | `tls.crt` | the certificate that signs, then those that lead to its root |
//! | `tls.key` | its key |
//! | `ca.crt` | the root, where `tls.crt` does not end with it |
//! | `bundle.pem` | further roots that are trusted, where it is there |
//! | `crl.pem` | revocation lists, where it is there |
//!
//! Of several replicas that start at once the first to create it has made the root; the
//! others take that.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio_stream::{Stream, StreamExt as _};

use super::files::{File, Files, Root};
use super::{CaError, error_at};

const TYPE: &str = "kubernetes.io/tls";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOT: &str = "ca.crt";
const BUNDLE: &str = "bundle.pem";
const REVOCATIONS: &str = "crl.pem";
/// Between attempts, while the API server does not answer at our start.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

type Watch = Pin<Box<dyn Stream<Item = Result<Option<Secret>, watcher::Error>> + Send>>;

pub struct SecretFiles {
    place: String,
    watch: Watch,
    seen: Files,
}

impl fmt::Debug for SecretFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

impl SecretFiles {
    /// Reads the Secret, or makes it. Waits for an API server that does not answer.
    pub async fn open(
        client: kube::Client,
        (namespace, name): (&str, &str),
        trust_domain: &str,
    ) -> Result<(Self, Files), CaError> {
        let api = Api::<Secret>::namespaced(client, namespace);
        let place = format!("Secret {namespace}/{name}");
        let secret = loop {
            match read_or_make(&api, name, trust_domain).await? {
                Ok(secret) => break secret,
                Err(error) => {
                    tracing::warn!(%error, "{place} cannot be read yet; trying again");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        };
        let seen = files(&place, Some(&secret))?;
        let watch = watcher::watch_object(api, name).default_backoff();
        let all = Self {
            place,
            watch: Box::pin(watch),
            seen: seen.clone(),
        };
        Ok((all, seen))
    }

    /// Waits until it is not what it was.
    pub async fn changed(&mut self) -> Result<Files, CaError> {
        loop {
            match self.watch.next().await {
                Some(Ok(secret)) => {
                    let files = files(&self.place, secret.as_ref())?;
                    if files != self.seen {
                        self.seen = files.clone();
                        return Ok(files);
                    }
                }
                // What there was stays; the watch begins again by itself.
                Some(Err(error)) => {
                    tracing::warn!(%error, "{} cannot be watched now; trying again", self.place);
                }
                None => std::future::pending().await,
            }
        }
    }
}

/// The inner error may pass.
async fn read_or_make(
    api: &Api<Secret>,
    name: &str,
    trust_domain: &str,
) -> Result<Result<Secret, kube::Error>, CaError> {
    match api.get_opt(name).await {
        Ok(Some(secret)) => return Ok(Ok(secret)),
        Ok(None) => {}
        Err(error) => return Ok(Err(error)),
    }
    let root = Root::make(trust_domain)?;
    let data = [
        (CERTIFICATE, &root.certificate),
        (KEY, &root.key),
        (ROOT, &root.certificate),
    ];
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes())));
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.to_owned()),
        data: Some(BTreeMap::from(data)),
        ..Secret::default()
    };
    let made = api.create(&PostParams::default(), &secret).await;
    if made.is_ok() {
        tracing::info!(secret = name, "made a certificate authority");
    }
    // Another replica's, if that was first: the next look finds it.
    Ok(made)
}

/// The Secret's data as files.
pub fn files(place: &str, secret: Option<&Secret>) -> Result<Files, CaError> {
    let Some(secret) = secret else {
        let problem = "is gone; put it back: a controller that starts without it makes a new root, which nobody trusts yet";
        return Err(error_at(place, problem));
    };
    let data = secret.data.as_ref();
    let file = |key: &str| File {
        place: format!("{place}, {key}"),
        bytes: data
            .and_then(|data| data.get(key))
            .map(|bytes| bytes.0.clone()),
    };
    Ok(Files {
        certificate: file(CERTIFICATE),
        key: file(KEY),
        root: file(ROOT),
        bundle: file(BUNDLE),
        revocations: file(REVOCATIONS),
    })
}

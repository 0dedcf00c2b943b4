//! Whom the API server believes when it calls our webhook: `caBundle` in the
//! MutatingWebhookConfiguration, kept equal to the roots that are trusted, whoever else
//! writes there.
//!
//! **Invariant:** nothing but `caBundle` is changed, and never over somebody's newer change.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_stream::StreamExt as _;

use crate::ca::Ca;

/// Between two writes: replicas that disagree, for as long as one has yet to hear of a new
/// root, take turns no faster.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);
/// Until a write that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps it so for as long as the process lives.
pub async fn keep(client: kube::Client, name: &str, ca: &Ca) {
    let api = Api::<MutatingWebhookConfiguration>::all(client);
    let watch = watcher::watch_object(api.clone(), name).default_backoff();
    let mut watch = std::pin::pin!(watch);
    let mut roots = ca.changes();
    let mut present = None;
    let mut retry = false;
    loop {
        tokio::select! {
            event = watch.next() => match event {
                Some(Ok(configuration)) => {
                    if configuration.is_none() {
                        tracing::warn!(name, "there is no such MutatingWebhookConfiguration: nobody is injected");
                    }
                    present = configuration;
                }
                Some(Err(error)) => {
                    tracing::warn!(name, %error, "the MutatingWebhookConfiguration cannot be watched now; trying again");
                    continue;
                }
                None => return std::future::pending().await,
            },
            Ok(()) = roots.changed() => {}
            () = sleep(RETRY_INTERVAL), if retry => {}
        }
        retry = false;
        let wanted = present.as_ref().and_then(|of| change(of, &ca.trust_pem()));
        let Some(wanted) = wanted else { continue };
        let wanted = Patch::Strategic(wanted);
        match api.patch(name, &PatchParams::default(), &wanted).await {
            Ok(_) => tracing::info!(
                name,
                "told the API server by which roots it knows the webhook"
            ),
            // Somebody has changed it meanwhile, which the watch is about to tell.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => {
                tracing::warn!(name, %error, "the MutatingWebhookConfiguration's caBundle cannot be written; trying again");
                retry = true;
            }
        }
        sleep(WRITE_INTERVAL).await;
    }
}

/// What has to be changed of it, if anything; a strategic merge, by each webhook's name. Pure.
fn change(configuration: &MutatingWebhookConfiguration, roots: &str) -> Option<Value> {
    let bundle = ByteString(roots.as_bytes().to_vec());
    let webhooks = configuration.webhooks.iter().flatten();
    let stale: Vec<Value> = webhooks
        .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
        .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    let version = &configuration.metadata.resource_version;
    (!stale.is_empty())
        .then(|| json!({"metadata": {"resourceVersion": version}, "webhooks": stale}))
}

//! The webhook with what it needs: its port, its certificate, what pods are told.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpListener;

use super::args::Args;
use crate::admission::inject::Settings;
use crate::admission::serve::{self, Webhook};
use crate::ca::Ca;
use crate::discovery::hub::Hub;

#[derive(Debug)]
pub struct Injection {
    listener: TcpListener,
    webhook: Webhook,
    settings: Arc<ArcSwap<Settings>>,
    tls: Arc<ArcSwap<ServerConfig>>,
    /// What the certificate says.
    name: String,
}

impl Injection {
    /// None where there is nothing to inject.
    pub async fn open(args: &Args, hub: &Hub) -> anyhow::Result<Option<Self>> {
        let of = &args.injection;
        let Some(image) = &of.proxy_image else {
            if args.kubernetes {
                tracing::info!("no --proxy-image: nothing is injected");
            }
            return Ok(None);
        };
        let namespace = &args.cluster.namespace;
        let settings = Arc::new(ArcSwap::from_pointee(Settings {
            image: image.clone(),
            pull_policy: of.proxy_image_pull_policy.clone(),
            controllers: vec![of.controller_address(namespace)],
            trust_bundle: hub.ca.trust_pem(),
            trust_domain: hub.ca.trust_domain.clone(),
            defaults: of.sidecar_defaults.clone(),
        }));
        let name = format!("{}.{namespace}.svc", of.webhook_service);
        let tls = Arc::new(ArcSwap::new(serve::tls(&hub.ca, &name)?));
        let metrics = hub.metrics.admissions.clone();
        let listener = TcpListener::bind(of.webhook)
            .await
            .with_context(|| format!("--webhook {}", of.webhook))?;
        Ok(Some(Self {
            listener,
            webhook: Webhook::new(Arc::clone(&settings), Arc::clone(&tls), metrics),
            settings,
            tls,
            name,
        }))
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A fresh certificate, and for pods to come the roots of now.
    pub fn renew(&self, ca: &Ca) {
        match serve::tls(ca, &self.name) {
            Ok(config) => self.tls.store(config),
            Err(error) => tracing::error!(%error, "no new certificate of the webhook"),
        }
        let mut settings = Settings::clone(&self.settings.load());
        settings.trust_bundle = ca.trust_pem();
        self.settings.store(Arc::new(settings));
    }

    /// Answers for as long as the process lives.
    pub async fn run(&self) {
        self.webhook.clone().run(&self.listener).await;
    }
}

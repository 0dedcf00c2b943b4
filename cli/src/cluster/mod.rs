//! A cluster, through its API server and with the user's kubeconfig. Owns connecting, the pods of
//! Weft and their names; what a pod's port answers is `forward`.
//!
//! **Invariant:** everything that is asked is bounded in time, and what fails says what to do.

mod forward;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ApiResource, ListParams, ObjectList};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::core::{GroupVersionKind, PartialObjectMeta};
use kube::{Client, Config, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use weft_controller::admission::inject::INJECTED;

/// The API server may be far, and busy.
const API_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Objects that are asked for at once, and in all.
const PAGE_MAX: u32 = 500;
const LISTED_MAX: usize = 100_000;

/// Where Weft is if nobody says otherwise.
pub const NAMESPACE: &str = "weft-system";
pub const CONTROLLERS: &str = "app.kubernetes.io/name=weft,app.kubernetes.io/component=controller";

/// Which cluster.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Of a Kubernetes cluster")]
pub struct Access {
    /// The kubeconfig [default: $KUBECONFIG, else ~/.kube/config, else that of the pod this runs in]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// Which cluster, and where Weft is in it.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Of a Kubernetes cluster")]
pub struct Options {
    #[command(flatten)]
    pub access: Access,
    /// The namespace that Weft is installed in [default: weft-system]
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
}

impl Options {
    /// Whether anything is said that only makes sense of a cluster.
    pub fn is_given(&self) -> bool {
        let Access {
            kubeconfig,
            context,
        } = &self.access;
        kubeconfig.is_some() || context.is_some() || self.namespace.is_some()
    }

    /// Whether there is something to connect by. Only looked for: nothing is read.
    pub fn is_there(&self) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let home = std::env::home_dir().map(|home| home.join(".kube/config"));
        self.access.kubeconfig.is_some()
            || set("KUBECONFIG")
            || home.is_some_and(|path| path.is_file())
            || set("KUBERNETES_SERVICE_HOST")
    }

    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(NAMESPACE)
    }
}

/// What CustomResourceDefinitions are, as they come: their schemas have more than types know.
pub fn definition() -> ApiResource {
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    ApiResource::from_gvk(&kind)
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

impl PodName {
    pub fn of(pod: &impl kube::ResourceExt) -> Self {
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
        }
    }

    /// `NAMESPACE/NAME`, `NAME.NAMESPACE`, or `NAME` in the default namespace.
    pub fn parse(text: &str, default_namespace: &str) -> Result<Self> {
        let (namespace, name) = match (text.split_once('/'), text.rsplit_once('.')) {
            (Some((namespace, name)), _) | (None, Some((name, namespace))) => (namespace, name),
            (None, None) => (default_namespace, text),
        };
        ensure!(
            !namespace.is_empty() && !name.is_empty() && !name.contains('/'),
            "{text:?} names no pod: write NAME, NAME.NAMESPACE or NAMESPACE/NAME"
        );
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// As the kubeconfig calls it.
    pub context: String,
    /// Where Weft is.
    pub namespace: String,
    /// The context's own, for pods that are named without.
    pub default_namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig; the API server is not asked yet. Within a tokio runtime.
    pub async fn connect(options: &Options) -> Result<Self> {
        Self::reach(&options.access, options.namespace()).await
    }

    /// As `connect`, with Weft in this namespace.
    pub async fn reach(access: &Access, namespace: &str) -> Result<Self> {
        let (mut config, context) = config(access).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let default_namespace = config.default_namespace.clone();
        Ok(Self {
            client: Client::try_from(config)
                .with_context(|| format!("the kubeconfig's context {context}"))?,
            context,
            namespace: namespace.to_owned(),
            default_namespace,
        })
    }

    /// The controller's pods, by name. Those that have ended are left out.
    pub async fn controllers(&self) -> Result<Vec<Pod>> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let of_weft = ListParams::default().labels(CONTROLLERS);
        let mut found = all(&pods, of_weft, "the controller's pods").await?;
        found.retain(|pod| !has_ended(pod));
        ensure!(
            !found.is_empty(),
            "no pod of weft-controller is in namespace {} of {}: -n names another, `weft install` installs it",
            self.namespace,
            self.context
        );
        found.sort_by_key(Pod::name_any);
        Ok(found)
    }

    /// Pods of all namespaces that have a sidecar.
    pub async fn injected(&self) -> Result<Vec<Pod>> {
        let pods = Api::<Pod>::all(self.client.clone());
        let mut found = all(&pods, ListParams::default(), "pods").await?;
        found.retain(|pod| pod.annotations().contains_key(INJECTED) && !has_ended(pod));
        Ok(found)
    }

    /// UID and name of all pods of all namespaces.
    pub async fn names(&self) -> Result<Vec<(String, PodName)>> {
        let pods = Api::<Pod>::all(self.client.clone());
        let mut names = Vec::new();
        let mut page = ListParams::default().limit(PAGE_MAX);
        while names.len() < LISTED_MAX {
            let list = bounded("listing pods", pods.list_metadata(&page)).await?;
            let named = |pod: &PartialObjectMeta<Pod>| Some((pod.uid()?, PodName::of(pod)));
            names.extend(list.items.iter().filter_map(named));
            match next(&list) {
                Some(token) => page.continue_token = Some(token),
                None => break,
            }
        }
        Ok(names)
    }

    /// Of a Service; none: there is no such Service, or it is headless.
    pub async fn addresses(&self, namespace: &str, service: &str) -> Result<Vec<IpAddr>> {
        let services = Api::<Service>::namespaced(self.client.clone(), namespace);
        let what = format!("asking for Service {namespace}/{service}");
        let found = bounded(&what, services.get_opt(service)).await?;
        let addresses = found.and_then(|found| found.spec?.cluster_ips);
        let addresses = addresses.into_iter().flatten();
        Ok(addresses
            .filter_map(|address| address.parse().ok())
            .collect())
    }

    pub async fn pod(&self, name: &PodName) -> Result<Pod> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &name.namespace);
        bounded(&format!("asking for pod {name}"), pods.get(&name.name)).await
    }
}

/// By `--kubeconfig` and `--context`; the context's name.
async fn config(options: &Access) -> Result<(Config, String)> {
    const NONE: &str =
        "no kubeconfig: name one by --kubeconfig or $KUBECONFIG, or put it into ~/.kube/config";
    let read = match &options.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let absent = |error: &KubeconfigError| match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(cause, _) => cause.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    };
    let read = match read {
        Ok(read) => read,
        Err(error) if options.kubeconfig.is_none() && absent(&error) => {
            let config = Config::incluster().ok().context(NONE)?;
            return Ok((config, "this cluster".to_owned()));
        }
        // Its causes are in its text already.
        Err(error) => return Err(Error::msg(error.to_string())),
    };
    let context = match (&options.context, &read.current_context) {
        (Some(name), _) | (None, Some(name)) => name.clone(),
        (None, None) => {
            bail!("the kubeconfig has no current context: name one by --context")
        }
    };
    let known: Vec<String> = read.contexts.iter().map(|of| of.name.clone()).collect();
    ensure!(
        known.contains(&context),
        "--context {context}: the kubeconfig has none of this name, but {}",
        known.join(", ")
    );
    let chosen = KubeConfigOptions {
        context: Some(context.clone()),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(read, &chosen).await;
    let config = config.with_context(|| format!("the kubeconfig's context {context}"))?;
    Ok((config, context))
}

/// All objects of a kind, page by page.
pub async fn all<K>(api: &Api<K>, chosen: ListParams, what: &str) -> Result<Vec<K>>
where
    K: Clone + DeserializeOwned + fmt::Debug,
{
    let mut found = Vec::new();
    let mut page = chosen.limit(PAGE_MAX);
    while found.len() < LISTED_MAX {
        let mut list = bounded(&format!("listing {what}"), api.list(&page)).await?;
        found.append(&mut list.items);
        match next(&list) {
            Some(token) => page.continue_token = Some(token),
            None => break,
        }
    }
    Ok(found)
}

fn next<K: Clone>(list: &ObjectList<K>) -> Option<String> {
    let token = list.metadata.continue_.clone();
    token.filter(|token| !token.is_empty())
}

/// A question to the API server, with what it was in its error.
pub async fn bounded<T>(what: &str, asked: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match timeout(API_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(|error| said(error).context(what.to_owned())),
        Err(_) => bail!("{what}: the API server does not answer within {API_TIMEOUT:?}"),
    }
}

/// Without what kube says twice.
pub fn said(error: kube::Error) -> Error {
    match error {
        // It names verb, resource and namespace already.
        kube::Error::Api(status) if status.code == 403 => Error::msg(format!(
            "{}: ask for this permission, or use another --context",
            status.message
        )),
        kube::Error::Api(status) if status.code == 401 => Error::msg(
            "the API server does not know this user: log in again, or use another --context",
        ),
        kube::Error::Api(status) => Error::msg(status.message),
        kube::Error::Service(cause) => Error::msg(format!(
            "the API server cannot be reached: {}",
            root(&*cause)
        )),
        error => Error::new(error),
    }
}

/// The innermost cause.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(cause) = inner.source() {
        inner = cause;
    }
    inner.to_string()
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_in_three_ways() {
        for (text, expected) in [
            ("web-1", Ok("default/web-1")),
            ("web-1.shop", Ok("shop/web-1")),
            (
                "kube-proxy.node.kube-system",
                Ok("kube-system/kube-proxy.node"),
            ),
            ("shop/web-1", Ok("shop/web-1")),
            ("shop/", Err(())),
            (".shop", Err(())),
            ("", Err(())),
            ("a/b/c", Err(())),
        ] {
            let parsed = PodName::parse(text, "default").map(|name| name.to_string());
            match expected {
                Ok(name) => assert_eq!(parsed.unwrap(), name),
                Err(()) => assert!(parsed.is_err(), "{text}: {parsed:?}"),
            }
        }
    }
}

//! The objects of a run, in a real API server: namespaces, Nodes, Pods with their statuses,
//! Services and EndpointSlices, and the changes of these.
//!
//! Pods are for no scheduler and for no kubelet: they are there, and nothing runs.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::size::{POD_PORT, PORT, Size};

/// Requests at once.
const CONCURRENT_MAX: usize = 48;
/// A control plane that is overloaded for a moment is asked again, this often.
const TRIES_MAX: u32 = 20;
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
const ACCOUNT: &str = "app";
const ZONES: [&str; 3] = ["a", "b", "c"];

/// A problem in words.
pub type Problem = String;

#[derive(Clone)]
pub struct Objects {
    client: Client,
    prefix: Arc<str>,
    size: Size,
    pods: Arc<Vec<String>>,
    dialled: Arc<Vec<SocketAddr>>,
}

/// What a proxy proves itself with, and what for.
#[derive(Clone, Debug)]
pub struct Workload {
    pub uid: String,
    pub namespace: String,
    pub account: &'static str,
    pub token: String,
}

impl Objects {
    /// Makes all of them. `tell`: how many of how many there are.
    pub async fn make(
        client: Client,
        prefix: &str,
        size: Size,
        tell: impl Fn(&str, usize, usize),
    ) -> Result<Self, Problem> {
        let mut made = Self {
            client,
            prefix: prefix.into(),
            size,
            pods: Arc::default(),
            dialled: Arc::default(),
        };
        let system = made.system();
        made.namespace(&system).await?;
        for number in 0..size.namespaces {
            made.namespace(&made.namespace_of(number)).await?;
        }
        let of = made.clone();
        each("nodes", size.nodes(), &tell, move |number| {
            of.clone().node(number)
        })
        .await?;
        let of = made.clone();
        let services = each("services", size.services, &tell, move |number| {
            of.clone().service(number)
        });
        made.dialled = Arc::new(services.await?);
        let of = made.clone();
        let pods = each("pods", size.pods(), &tell, move |number| {
            of.clone().pod(number)
        });
        made.pods = Arc::new(pods.await?);
        let of = made.clone();
        each("endpoint slices", size.services, &tell, move |number| {
            of.clone().slice(number)
        })
        .await?;
        Ok(made)
    }

    /// Where the controller has its own things.
    pub fn system(&self) -> String {
        format!("{}-system", self.prefix)
    }

    pub fn namespace_of(&self, service: usize) -> String {
        format!("{}-{}", self.prefix, service % self.size.namespaces)
    }

    /// A service's port, as resources are called after it.
    pub fn port_of(&self, service: usize) -> String {
        format!("{}/s{service}:{PORT}", self.namespace_of(service))
    }

    /// Where a service is dialled.
    pub fn dialled(&self, service: usize) -> SocketAddr {
        self.dialled[service]
    }

    fn api<K>(&self, service: usize) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace_of(service))
    }

    async fn namespace(&self, name: &str) -> Result<(), Problem> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let labels = json!({"weft-test": "true"});
        create(
            &namespaces,
            json!({"metadata": {"name": name, "labels": labels}}),
        )
        .await?;
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), name);
        create(&accounts, json!({"metadata": {"name": ACCOUNT}}))
            .await
            .map(drop)
    }

    fn node_name(&self, pod: usize) -> Option<String> {
        let node = pod.checked_rem(self.size.nodes())?;
        Some(format!("{}-{node}", self.prefix))
    }

    async fn node(self, number: usize) -> Result<(), Problem> {
        let nodes = Api::<Node>::all(self.client.clone());
        let zone = json!({"topology.kubernetes.io/zone": ZONES[number % ZONES.len()]});
        let name = format!("{}-{number}", self.prefix);
        create(&nodes, json!({"metadata": {"name": name, "labels": zone}}))
            .await
            .map(drop)
    }

    async fn service(self, number: usize) -> Result<SocketAddr, Problem> {
        let service = json!({
            "metadata": {"name": format!("s{number}")},
            "spec": {"ports": [{"name": "http", "port": PORT}]},
        });
        let made: Service = create(&self.api(number), service).await?;
        let address = made.spec.and_then(|spec| spec.cluster_ip);
        let address = address.and_then(|address| address.parse().ok());
        let address = address.ok_or("a Service has got no address")?;
        Ok(SocketAddr::new(address, PORT))
    }

    /// Makes a pod; its UID.
    async fn pod(self, number: usize) -> Result<String, Problem> {
        let (service, endpoint) = (number / self.size.endpoints, number % self.size.endpoints);
        let name = format!("s{service}-{endpoint}");
        let pods: Api<Pod> = self.api(service);
        let pod = json!({
            "metadata": {
                "name": name,
                "labels": {"app": format!("s{service}")},
                "annotations": {"weft.dev/inbound": "captured"},
            },
            "spec": {
                // Nobody's; and no fault of its node, which has no kubelet, evicts it.
                "schedulerName": "nobody",
                "nodeName": self.node_name(number),
                "tolerations": [{"operator": "Exists"}],
                "serviceAccountName": ACCOUNT,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "app", "image": "localhost/store:1", "ports": [{"containerPort": POD_PORT}]}],
            },
        });
        let made = create(&pods, pod).await?;
        let address = self.size.address(service, endpoint, 0);
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        }});
        let patched = retried(|| async {
            let (how, what) = (PatchParams::default(), Patch::Merge(&status));
            pods.patch_status(&name, &how, &what).await
        });
        patched.await?;
        made.metadata
            .uid
            .ok_or_else(|| format!("Pod {name} has no UID"))
    }

    fn endpoint(&self, service: usize, endpoint: usize) -> Value {
        let number = service * self.size.endpoints + endpoint;
        json!({
            "addresses": [self.size.address(service, endpoint, 0)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": self.node_name(number),
            "targetRef": {
                "kind": "Pod",
                "namespace": self.namespace_of(service),
                "name": format!("s{service}-{endpoint}"),
                "uid": self.pods.get(number),
            },
        })
    }

    async fn slice(self, service: usize) -> Result<(), Problem> {
        let endpoints = (0..self.size.endpoints).map(|endpoint| self.endpoint(service, endpoint));
        let name = format!("s{service}");
        let slice = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": POD_PORT}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        });
        create(&self.api::<EndpointSlice>(service), slice)
            .await
            .map(drop)
    }

    /// Makes an endpoint ready, or not: listed, or not.
    pub async fn set_ready(
        &self,
        service: usize,
        endpoint: usize,
        ready: bool,
    ) -> Result<(), Problem> {
        let slices: Api<EndpointSlice> = self.api(service);
        let path = format!("/endpoints/{endpoint}/conditions/ready");
        let patch = json!([{"op": "replace", "path": path, "value": ready}]);
        let patch: Patch<()> = Patch::Json(serde_json::from_value(patch).map_err(in_words)?);
        let name = format!("s{service}");
        let patched = slices.patch(&name, &PatchParams::default(), &patch).await;
        patched.map(drop).map_err(in_words)
    }

    /// What the proxies of these pods are started with.
    pub async fn workloads(
        &self,
        tell: impl Fn(&str, usize, usize),
    ) -> Result<Vec<Workload>, Problem> {
        let of = self.clone();
        each("tokens", self.size.proxies, &tell, move |proxy| {
            of.clone().workload(proxy)
        })
        .await
    }

    async fn workload(self, proxy: usize) -> Result<Workload, Problem> {
        let (service, endpoint) = self.size.pod_of(proxy);
        let uid = self.pods[service * self.size.endpoints + endpoint].clone();
        let accounts: Api<ServiceAccount> = self.api(service);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec!["weft.dev".to_owned()],
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(format!("s{service}-{endpoint}")),
                    uid: Some(uid.clone()),
                }),
                expiration_seconds: Some(3600),
            },
            ..TokenRequest::default()
        };
        let how = PostParams::default();
        let made = retried(|| accounts.create_token_request(ACCOUNT, &how, &request));
        let token = made.await?.status.map(|status| status.token);
        Ok(Workload {
            uid,
            namespace: self.namespace_of(service),
            account: ACCOUNT,
            token: token.ok_or("a TokenRequest has got no token")?,
        })
    }

    /// The root that a controller has made in its namespace (PEM).
    pub async fn root(&self) -> Result<Vec<u8>, Problem> {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.system());
        let secret = retried(|| secrets.get("weft-ca")).await?;
        let root = secret.data.and_then(|mut data| data.remove("ca.crt"));
        root.map(|root| root.0)
            .ok_or_else(|| "weft-ca holds no ca.crt".to_owned())
    }

    /// Takes all of them away, as far as that goes: what is in a namespace follows it.
    pub async fn remove(&self) {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let own = (0..self.size.namespaces).map(|number| self.namespace_of(number));
        for name in own.chain([self.system()]) {
            let _gone = namespaces.delete(&name, &DeleteParams::default()).await;
        }
        let nodes = Api::<Node>::all(self.client.clone());
        for number in 0..self.size.nodes() {
            let name = format!("{}-{number}", self.prefix);
            let _gone = nodes.delete(&name, &DeleteParams::default()).await;
        }
    }
}

fn in_words(error: impl std::fmt::Display) -> Problem {
    error.to_string()
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<K, Problem>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).map_err(in_words)?;
    let how = PostParams::default();
    retried(|| api.create(&how, &object)).await
}

/// Asks again where the API server could not take it.
async fn retried<T, F>(mut ask: impl FnMut() -> F) -> Result<T, Problem>
where
    F: Future<Output = kube::Result<T>>,
{
    let mut tries = 0;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(kube::Error::Api(status)) if status.code < 429 => {
                return Err(status.message.clone());
            }
            Err(error) if tries == TRIES_MAX => return Err(in_words(error)),
            Err(_) => {
                tries += 1;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

/// Does so many things, some at once; what came of each, in order.
async fn each<T, F>(
    what: &str,
    count: usize,
    tell: &impl Fn(&str, usize, usize),
    mut make: impl FnMut(usize) -> F,
) -> Result<Vec<T>, Problem>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Problem>> + Send + 'static,
{
    let mut made = BTreeMap::new();
    let mut tasks = JoinSet::new();
    for number in 0..count + CONCURRENT_MAX {
        if number < count {
            let making = make(number);
            tasks.spawn(async move { (number, making.await) });
        }
        if number >= CONCURRENT_MAX.min(count)
            && let Some(done) = tasks.join_next().await
        {
            let (number, done) = done.map_err(in_words)?;
            made.insert(number, done.map_err(|error| format!("{what}: {error}"))?);
            tell(what, made.len(), count);
        }
    }
    Ok(made.into_values().collect())
}

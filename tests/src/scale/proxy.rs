//! A simulated proxy: everything of the product's mesh client but its workers. Its link (mTLS,
//! HTTP/2), its certificate, its store and its back-off are the product's; the loop over them is
//! one of our own, since the run has to see each response: whether it was told what it does not
//! use, or what it holds. A response is acknowledged once the store has it in force.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use weft_config::snapshot::Destination;
use weft_config::spiffe::SpiffeId;
use weft_config::wire;
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};
use weft_proxy::mesh::credentials::Credentials;
use weft_proxy::mesh::link::{self, Link};
use weft_proxy::mesh::store::{Effect, Store, Type};
use weft_proxy::mesh::{Backoff, COALESCE, RECONNECT_MAX};
use weft_proxy::net::tls::mesh::{Svid, Trust};
use weft_proxy::services::workloads_client::WorkloadsClient;
use weft_proxy::services::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

use super::ledger::Ledger;
use super::objects::Workload;

/// As the product has them.
const REQUESTS_MAX: usize = 64;
const CONNECT_MAX: Duration = Duration::from_secs(5);
const LASTED: Duration = Duration::from_secs(10);
const DOMAIN: &str = "cluster.local";

/// What a proxy is started with.
#[derive(Debug)]
pub struct Setting {
    pub number: usize,
    pub workload: Workload,
    /// The root that it believes at first (PEM).
    pub root: Arc<Vec<u8>>,
    pub controller: SocketAddr,
    /// From where it connects.
    pub source: Ipv4Addr,
    /// What it dials, and the ports that are behind that.
    pub dials: Vec<(SocketAddr, String)>,
}

pub struct Proxy {
    setting: Setting,
    identity: SpiffeId,
    ledger: Arc<Ledger>,
    store: Store,
    /// All that it may be told.
    own: BTreeSet<(Type, String)>,
    versions: HashMap<(Type, String), String>,
    changed: BTreeSet<String>,
    unacknowledged: Vec<(Type, String, Refused)>,
    rebuild_at: Option<Instant>,
}

/// Resources and what is wrong with them.
type Refused = Vec<(String, String)>;
type Requests = mpsc::Sender<DeltaDiscoveryRequest>;

impl Proxy {
    pub fn new(setting: Setting, ledger: Arc<Ledger>) -> Result<Self, String> {
        let workload = &setting.workload;
        let identity = SpiffeId::new(DOMAIN, &workload.namespace, workload.account);
        let identity = identity.map_err(|error| error.to_string())?;
        let mut store = Store::new(&workload.uid, DOMAIN, "127.0.0.1");
        let mut own = BTreeSet::from([
            (Type::TrustBundle, DOMAIN.to_owned()),
            (Type::Workload, workload.uid.clone()),
        ]);
        for (address, port) in &setting.dials {
            store.want(&Destination::Address(*address), true);
            own.extend([
                (Type::Destination, address.to_string()),
                (Type::Service, port.clone()),
                (Type::Endpoints, port.clone()),
            ]);
        }
        Ok(Self {
            setting,
            identity,
            ledger,
            store,
            own,
            versions: HashMap::new(),
            changed: BTreeSet::new(),
            unacknowledged: Vec::new(),
            rebuild_at: None,
        })
    }

    /// For as long as the run lasts.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(RECONNECT_MAX);
        let credentials = loop {
            match self.sign().await {
                Ok(credentials) => break credentials,
                Err(why) => self.ledger.disconnected(self.setting.number, &why),
            }
            backoff.pause().await;
        };
        backoff.reset();
        loop {
            let began = Instant::now();
            let Err(why) = self.serve(&credentials).await;
            if began.elapsed() > LASTED {
                backoff.reset();
            }
            self.ledger.disconnected(self.setting.number, &why);
            self.unacknowledged.clear();
            backoff.pause().await;
        }
    }

    async fn link(&self, trust: &Trust, svid: Option<Svid>) -> Result<Link, String> {
        let connecting = async {
            let socket = TcpSocket::new_v4().map_err(|error| error.to_string())?;
            let source = SocketAddr::from((self.setting.source, 0));
            socket.bind(source).map_err(|error| error.to_string())?;
            let connecting = socket.connect(self.setting.controller);
            let tcp = connecting.await.map_err(|error| error.to_string())?;
            let link = link::over(tcp, trust, svid).await;
            link.map_err(|error| error.to_string())
        };
        let connected = tokio::time::timeout(CONNECT_MAX, connecting).await;
        connected.map_err(|_| "connecting took too long".to_owned())?
    }

    async fn sign(&self) -> Result<Credentials, String> {
        let workload = &self.setting.workload;
        let roots = CertificateDer::pem_slice_iter(&self.setting.root);
        let roots = roots.collect::<Result<Vec<_>, _>>();
        let trust = Trust {
            domain: DOMAIN.to_owned(),
            roots: roots.map_err(|error| error.to_string())?,
            revocations: Vec::new(),
        };
        let (key, csr) = request(&self.identity).map_err(|error| error.to_string())?;
        let link = self.link(&trust, None).await?;
        let mut workloads = WorkloadsClient::with_origin(link, link::origin());
        let request = wire::SignRequest {
            csr,
            token: workload.token.clone(),
            workload: workload.uid.clone(),
        };
        let signed = workloads.sign(request).await;
        let signed = signed.map_err(|status| status.to_string())?.into_inner();
        Credentials::new(&self.identity, &signed, key)
    }

    /// Follows one stream to its end.
    async fn serve(
        &mut self,
        credentials: &Credentials,
    ) -> Result<std::convert::Infallible, String> {
        let link = self.link(&credentials.trust, Some(credentials.svid.clone()));
        let link = link.await?;
        let mut service = AggregatedDiscoveryServiceClient::with_origin(link, link::origin());
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let responses = service.delta_aggregated_resources(ReceiverStream::new(outgoing));
        let responses = responses.await.map_err(|status| status.to_string())?;
        let mut responses = responses.into_inner();
        self.store.reconnected();
        self.subscribe(&requests, true)?;
        self.ledger.connected(self.setting.number);
        loop {
            let publish = self.rebuild_at;
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => self.receive(response),
                    Ok(None) => return Err("the controller ended the stream".to_owned()),
                    Err(status) => return Err(status.to_string()),
                },
                () = until(publish) => {}
            }
            self.subscribe(&requests, false)?;
            if self.rebuild_at.is_none_or(|at| at <= Instant::now()) {
                self.publish();
                self.acknowledge(&requests)?;
            }
        }
    }

    fn subscribe(&mut self, requests: &Requests, first: bool) -> Result<(), String> {
        for interest in self.store.subscriptions() {
            let request = DeltaDiscoveryRequest {
                node: first.then(|| Node {
                    id: self.setting.workload.uid.clone(),
                    user_agent_name: "weft-scale".to_owned(),
                    ..Node::default()
                }),
                ..interest.request()
            };
            send(requests, request)?;
        }
        Ok(())
    }

    fn receive(&mut self, response: DeltaDiscoveryResponse) {
        self.ledger.received(&response);
        let Some(kind) = Type::of_url(&response.type_url) else {
            return self.mistake(format!("told of a type {}", response.type_url));
        };
        let mut effect = Effect::default();
        for resource in &response.resources {
            self.check(kind, &resource.name, Some(&resource.version));
            let bytes = resource.resource.as_ref().map_or(&[][..], |any| &any.value);
            self.store
                .set(kind, &resource.name, &resource.version, bytes, &mut effect);
        }
        for name in &response.removed_resources {
            self.check(kind, name, None);
            self.store.remove(kind, name, &mut effect);
        }
        for (name, problem) in &effect.refused {
            self.mistake(format!("{name} is refused: {problem}"));
        }
        if effect.rebuild {
            self.rebuild_at
                .get_or_insert_with(|| Instant::now() + COALESCE);
        }
        self.changed.extend(effect.endpoints);
        if kind == Type::Endpoints {
            let names = response.resources.into_iter().map(|of| of.name);
            self.changed.extend(names);
        }
        self.unacknowledged
            .push((kind, response.nonce, effect.refused));
    }

    /// Whether it uses what it is told of, and did not hold it already.
    fn check(&mut self, kind: Type, name: &str, version: Option<&str>) {
        let key = (kind, name.to_owned());
        if !self.own.contains(&key) {
            self.mistake(format!("told of {kind:?} {name}, which it does not use"));
        }
        let before = match version {
            Some(version) => self.versions.insert(key, version.to_owned()),
            None => self.versions.remove(&key),
        };
        if before.as_deref() == version {
            self.mistake(format!("told of {kind:?} {name} as it has it"));
        }
    }

    fn mistake(&self, what: String) {
        let number = self.setting.number;
        self.ledger.mistake(format!("proxy {number} was {what}"));
    }

    /// Puts in force what has changed.
    fn publish(&mut self) {
        if self.rebuild_at.take().is_some() {
            let overlay = self.store.overlay();
            let dialled = overlay.listeners.iter().filter(|of| of.inbound.is_none());
            if self.store.is_synced() && dialled.count() == self.setting.dials.len() {
                self.ledger.synced(self.setting.number);
            }
        }
        for port in std::mem::take(&mut self.changed) {
            if let Some(endpoints) = self.store.endpoints(&port) {
                let addresses = endpoints.iter().map(|of| of.address).collect();
                self.ledger.in_force(self.setting.number, &port, &addresses);
            }
        }
    }

    fn acknowledge(&mut self, requests: &Requests) -> Result<(), String> {
        for (kind, nonce, refused) in std::mem::take(&mut self.unacknowledged) {
            let problems = refused.iter().map(|(name, why)| format!("{name}: {why}"));
            let message = problems.collect::<Vec<_>>().join("\n");
            let request = DeltaDiscoveryRequest {
                type_url: kind.url(),
                response_nonce: nonce,
                error_detail: (!message.is_empty()).then_some(Status { code: 3, message }),
                ..DeltaDiscoveryRequest::default()
            };
            send(requests, request)?;
        }
        Ok(())
    }
}

fn send(requests: &Requests, request: DeltaDiscoveryRequest) -> Result<(), String> {
    let sent = requests.try_send(request);
    sent.map_err(|_| "the controller does not read what we send".to_owned())
}

/// A fresh key (PKCS#8) and a request to sign it.
fn request(identity: &SpiffeId) -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "");
    let name = SanType::URI(identity.as_str().try_into()?);
    params.subject_alt_names.push(name);
    let csr = params.serialize_request(&key)?;
    Ok((key.serialize_der(), csr.der().to_vec()))
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

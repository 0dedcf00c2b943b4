//! A real controller process, and clients that speak to its ports as proxies (and others) do.

#![allow(dead_code, reason = "no test uses all of it")]

pub mod bystander;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore, version};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use weft_config::status::{ProxyStatus, Status as Report};
use weft_config::wire::{LeaveRequest, LeaveResponse, SignRequest, SignResponse};
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_controller::ca::token;

const PATIENCE: Duration = Duration::from_secs(20);
pub const PREFIX: &str = "type.googleapis.com/weft.v1.";

pub struct Controller {
    pub folder: TempDir,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Controller {
    pub async fn start(arguments: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        Self::start_in(folder, "127.0.0.1:0", arguments).await
    }

    /// The same over what is in `folder`.
    pub async fn start_in(folder: TempDir, listen: &str, arguments: &[&str]) -> Self {
        let ready = folder.path().join("ready.json");
        let _ = fs::remove_file(&ready);
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_weft-controller"))
            .arg("--manifests")
            .arg(folder.path().join("manifests"))
            .arg("--ca-dir")
            .arg(folder.path().join("ca"))
            .arg("--ready-file")
            .arg(&ready)
            .args(["--listen", listen, "--admin", "127.0.0.1:0"])
            .args(["--trust-domain", "td"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let ports: serde_json::Value = eventually("a controller", async || {
            serde_json::from_slice(&fs::read(&ready).ok()?).ok()
        })
        .await;
        let address = |name: &str| ports[name].as_str().unwrap().parse().unwrap();
        Self {
            listen: address("listen"),
            admin: address("admin"),
            folder,
            child,
        }
    }

    /// Kills it, and starts another at the same port over the same files.
    pub async fn restart(mut self, arguments: &[&str]) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, TempDir::new().unwrap());
        let listen = self.listen.to_string();
        drop(self);
        Self::start_in(folder, &listen, arguments).await
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub fn token(&self, account: &str, workload: &str) -> String {
        self.token_in("shop", account, workload)
    }

    pub fn token_in(&self, namespace: &str, account: &str, workload: &str) -> String {
        let who = (namespace, account, workload);
        token::mint(&self.ca(), who, Duration::from_secs(60), 1).unwrap()
    }

    pub fn manifest(&self, name: &str, yaml: &str) {
        let path = self.folder.path().join("manifests").join(name);
        let fresh = path.with_extension("new");
        fs::write(&fresh, yaml).unwrap();
        fs::rename(fresh, path).unwrap();
    }

    pub async fn page(&self, path: &str) -> String {
        let mut tcp = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// A sample of /metrics, named as it is there, with its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let page = self.page("/metrics").await;
        page.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    pub async fn report(&self) -> Report {
        serde_json::from_str(&self.page("/status").await).unwrap()
    }

    pub async fn proxy(&self, workload: &str) -> Option<ProxyStatus> {
        let report = self.report().await;
        let mut proxies = report.proxies.into_iter();
        proxies.find(|proxy| proxy.workload == workload)
    }

    /// A certificate for a workload of `shop`, as a proxy gets it.
    pub async fn svid(&self, account: &str, workload: &str) -> Svid {
        self.svid_in("shop", account, workload).await
    }

    pub async fn svid_in(&self, namespace: &str, account: &str, workload: &str) -> Svid {
        let token = self.token_in(namespace, account, workload);
        let (key, csr) = request(None);
        let request = SignRequest {
            csr,
            token,
            workload: workload.to_owned(),
        };
        let link = connect(self, None).await.unwrap();
        let chain = sign(link, request).await.unwrap().chain;
        Svid { chain, key }
    }
}

impl Controller {
    /// A stream of a workload of `shop`.
    pub async fn stream(&self, workload: &str) -> Deltas {
        let svid = self.svid("web", workload).await;
        self.stream_as(&svid).await
    }

    pub async fn stream_as(&self, svid: &Svid) -> Deltas {
        let link = connect(self, Some(svid)).await.unwrap();
        Deltas::open(link).await.unwrap()
    }

    /// Waits until the index has taken up what was written.
    pub async fn has(&self, kind: &str, count: usize) {
        let sample = format!("weft_controller_objects{{kind=\"{kind}\"}} {count}\n");
        eventually(&sample, async || {
            self.page("/metrics").await.contains(&sample).then_some(())
        })
        .await;
    }
}

/// Looks until there is what is looked for.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A key and a request to sign it, which may ask for an identity.
pub fn request(identity: Option<&str>) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = identity
        .map(|identity| SanType::URI(identity.try_into().unwrap()))
        .into_iter()
        .collect();
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    (key, csr)
}

#[derive(Debug)]
pub struct Svid {
    pub chain: Vec<Vec<u8>>,
    pub key: KeyPair,
}

/// An HTTP/2 connection to the controller.
#[derive(Clone)]
pub struct Link(SendRequest<Body>);

impl tonic::codegen::Service<Request<Body>> for Link {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

fn roots(ca: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca.join("trust.pem")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    roots
}

pub fn tls(ca: &Path, svid: Option<&Svid>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots(ca)),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName(verifier)));
    let mut config = match svid {
        None => builder.with_no_client_auth(),
        Some(svid) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.serialize_der()));
            let chain = svid.chain.iter().cloned().map(CertificateDer::from);
            builder.with_client_auth_cert(chain.collect(), key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connects; what goes wrong may come with the first request only.
pub async fn connect(controller: &Controller, svid: Option<&Svid>) -> Result<Link, String> {
    let config = tls(&controller.ca(), svid);
    let tcp = TcpStream::connect(controller.listen).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let name = ServerName::try_from("controller.weft").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| error.to_string())?;
    let (send, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(driver);
    Ok(Link(send))
}

fn grpc(link: Link) -> Grpc<Link> {
    Grpc::with_origin(link, Uri::from_static("https://controller.weft"))
}

pub async fn sign(link: Link, request: SignRequest) -> Result<SignResponse, Status> {
    let mut grpc = grpc(link);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/weft.v1.Workloads/Sign");
    let codec = ProstCodec::<SignRequest, SignResponse>::default();
    let answer = grpc
        .unary(tonic::Request::new(request), path, codec)
        .await?;
    Ok(answer.into_inner())
}

pub async fn leave(link: Link, limit: Duration) -> Result<LeaveResponse, Status> {
    let mut grpc = grpc(link);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/weft.v1.Workloads/Leave");
    let codec = ProstCodec::<LeaveRequest, LeaveResponse>::default();
    let mut request = tonic::Request::new(LeaveRequest {});
    request.set_timeout(limit);
    Ok(grpc.unary(request, path, codec).await?.into_inner())
}

/// A delta stream, answered by hand.
pub struct Deltas {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Deltas {
    pub async fn open(link: Link) -> Result<Self, Status> {
        let mut grpc = grpc(link);
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        );
        let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
        let (requests, outgoing) = mpsc::channel(64);
        let request = tonic::Request::new(ReceiverStream::new(outgoing));
        let responses = grpc.streaming(request, path, codec).await?.into_inner();
        Ok(Self {
            requests,
            responses,
        })
    }

    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        // A stream that the controller ended says so when it is read.
        let _ = self.requests.send(request).await;
    }

    pub async fn want(&self, kind: &str, names: &[&str]) {
        self.resume(kind, names, &[]).await;
    }

    /// Subscribes with versions that are held.
    pub async fn resume(&self, kind: &str, names: &[&str], held: &[(&str, &str)]) {
        self.send(DeltaDiscoveryRequest {
            type_url: format!("{PREFIX}{kind}"),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            initial_resource_versions: held
                .iter()
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect(),
            ..Default::default()
        })
        .await;
    }

    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = tokio::time::timeout(PATIENCE, self.responses.message());
        let message = next.await.expect("a response comes")?;
        message.ok_or_else(|| Status::cancelled("the stream ended"))
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    pub async fn answer(&self, response: &DeltaDiscoveryResponse, problem: Option<&str>) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: problem.map(|problem| weft_config::xds::Status {
                code: 3,
                message: problem.to_owned(),
            }),
            ..Default::default()
        })
        .await;
    }

    /// The next response, acknowledged.
    pub async fn take(&mut self) -> DeltaDiscoveryResponse {
        let response = self.next().await.unwrap();
        self.ack(&response).await;
        response
    }
}

/// Believes the chain, and leaves the name to whoever asks.
#[derive(Debug)]
struct AnyName(Arc<rustls::client::WebPkiServerVerifier>);

impl rustls::client::danger::ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        use rustls::client::danger::ServerCertVerified;
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForName
                | rustls::CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A pod with a sidecar, by its own name as its UID.
pub fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {name}, annotations: {{weft.dev/inbound: captured}}}}\nspec: {{serviceAccountName: web, containers: []}}\nstatus: {{podIP: {ip}}}\n---\n"
    )
}

/// A service `shop/NAME:80` at `address`, with endpoints of its own.
pub fn service(name: &str, address: &str, endpoints: &[&str]) -> String {
    let list: String = endpoints
        .iter()
        .map(|endpoint| format!("- {{addresses: ['{endpoint}']}}\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: {address}, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n{list}---\n"
    )
}

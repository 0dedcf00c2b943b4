//! A connection to a controller: TLS 1.3, HTTP/2, gRPC over it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response, Uri};

use crate::net::tls::mesh::{self, MeshTlsError, Refusal, Svid, Trust};

/// TCP, TLS and HTTP/2 together.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A controller that vanishes without a word, or hangs, is noticed after these. One that is only
/// busy answers within the second: its connections take turns.
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// What a controller may send before it is read.
const WINDOW: u32 = 1 << 20;
/// What controllers are called in TLS; who they are is read from the certificate.
const SERVER_NAME: &str = "controller.weft";

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot connect; is the controller running there, and does nothing block the port?")]
    Connect(#[source] io::Error),
    #[error("{0}")]
    Refused(Refusal),
    #[error("TLS cannot be set up")]
    Tls(#[source] MeshTlsError),
    #[error("{SERVER_NAME} is no server name")]
    Name(#[source] InvalidDnsNameError),
    #[error("the HTTP/2 handshake failed")]
    Http2(#[source] hyper::Error),
    #[error("connecting took longer than {CONNECT_MAX:?}")]
    Timeout,
}

/// A connection that gRPC calls go over; it ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Link {
    send: SendRequest<Body>,
    _driver: Arc<Driver>,
}

#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects to one controller.
pub async fn connect(
    address: SocketAddr,
    trust: &Trust,
    svid: Option<Svid>,
) -> Result<Link, LinkError> {
    let connecting = async {
        let tcp = TcpStream::connect(address).await;
        over(tcp.map_err(LinkError::Connect)?, trust, svid).await
    };
    tokio::time::timeout(CONNECT_MAX, connecting)
        .await
        .unwrap_or(Err(LinkError::Timeout))
}

/// A link over a connection that is there.
pub async fn over(tcp: TcpStream, trust: &Trust, svid: Option<Svid>) -> Result<Link, LinkError> {
    let config = mesh::controller_client(trust, svid).map_err(LinkError::Tls)?;
    let _ = tcp.set_nodelay(true);
    let name = ServerName::try_from(SERVER_NAME).map_err(LinkError::Name)?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| match Refusal::of(&error) {
            Refusal::Handshake => LinkError::Connect(error),
            refusal => LinkError::Refused(refusal),
        })?;
    mesh::expect_controller(stream.get_ref().1.peer_certificates()).map_err(LinkError::Refused)?;
    let (send, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(LinkError::Http2)?;
    let driver = tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "the connection to the controller ended");
        }
    });
    Ok(Link {
        send,
        _driver: Arc::new(Driver(driver)),
    })
}

/// The origin of gRPC requests.
pub fn origin() -> Uri {
    Uri::from_static("https://controller.weft")
}

impl Service<Request<Body>> for Link {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.send.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Keeps the connection's driver alive for as long as the call lasts.
        let held = self.clone();
        let sending = self.send.send_request(request);
        Box::pin(async move {
            let response = sending.await;
            drop(held);
            response
        })
    }
}

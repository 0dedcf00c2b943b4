//! The port that the API server asks at: HTTPS, `POST /inject`. Owns limits and times;
//! what is answered is `review`'s.
//!
//! HTTP/2 as well as HTTP/1.1: only there can an idle connection be closed without the
//! chance of losing a question that is on its way.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rcgen::KeyPair;
use rustls::{ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;

use super::inject::Settings;
use super::review::{self, Verdict};
use crate::ca::Ca;
use crate::metrics::Admissions;
use crate::tally::Tally;

/// Open connections: the next one waits to be accepted. And from one address, beyond
/// which they are closed.
const CONNECTIONS_MAX: usize = 512;
const CONNECTIONS_OF_ADDRESS_MAX: usize = 64;
const STREAMS_MAX: u32 = 32;
/// Bodies that are read at once; the next one waits.
const BODIES_MAX: usize = 64;
/// The API server takes no object that is larger than 3 MiB.
const BODY_BYTES_MAX: usize = 4 << 20;
const HEAD_BYTES_MAX: u32 = 16 * 1024;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// HTTP/1.1: until the next head is there.
const HEAD_MAX: Duration = Duration::from_secs(30);
const BODY_MAX: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The first byte of TLS: a record with a handshake message.
const TLS_HANDSHAKE: u8 = 0x16;
/// What is read of a request in plain text, so that the answer to it is not lost by a reset.
const PLAIN_BYTES_MAX: usize = 16 * 1024;
const PLAIN_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 23\r\n\r\nthis port speaks HTTPS\n";

/// TLS with a fresh certificate of a Service's name, and of `localhost`, so that what is
/// reached by `kubectl port-forward` can be verified.
pub fn tls(ca: &Ca, name: &str) -> anyhow::Result<Arc<ServerConfig>> {
    let key = KeyPair::generate()?;
    let chain = ca.sign_server(&key, &[name, "localhost"])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain.into_iter().map(CertificateDer::from).collect(), key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What the port works with.
#[derive(Clone, Debug)]
pub struct Webhook {
    pub settings: Arc<ArcSwap<Settings>>,
    pub tls: Arc<ArcSwap<ServerConfig>>,
    pub metrics: Admissions,
    bodies: Arc<Semaphore>,
}

impl Webhook {
    pub fn new(
        settings: Arc<ArcSwap<Settings>>,
        tls: Arc<ArcSwap<ServerConfig>>,
        metrics: Admissions,
    ) -> Self {
        let bodies = Arc::new(Semaphore::new(BODIES_MAX));
        Self {
            settings,
            tls,
            metrics,
            bodies,
        }
    }

    /// Accepts for as long as the process lives.
    pub async fn run(self, listener: &TcpListener) {
        let all = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let of_address = Tally::new(CONNECTIONS_OF_ADDRESS_MAX);
        loop {
            let Ok(place) = Arc::clone(&all).acquire_owned().await else {
                return;
            };
            let (tcp, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the webhook's port cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(held) = of_address.take(&peer.ip().to_string()) else {
                self.metrics.results.count("connections_max");
                continue;
            };
            let webhook = self.clone();
            tokio::spawn(async move {
                webhook.connection(tcp, peer).await;
                drop((place, held));
            });
        }
    }

    async fn connection(self, tcp: TcpStream, peer: SocketAddr) {
        let _ = tcp.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_MAX, self.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err((reason, problem))) => {
                // Anybody can make these in any number.
                tracing::debug!(%peer, reason, problem, "connection to the webhook refused");
                return self.metrics.results.count(reason);
            }
            Err(_) => return self.metrics.results.count("timed_out"),
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let serve = hyper::service::service_fn(move |request| {
            let webhook = self.clone();
            async move { Ok::<_, Infallible>(webhook.answer(request).await) }
        });
        let stream = TokioIo::new(stream);
        let served = match is_http2 {
            true => {
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .keep_alive_interval(PING_INTERVAL)
                    .keep_alive_timeout(PING_TIMEOUT)
                    .max_concurrent_streams(STREAMS_MAX)
                    .max_header_list_size(HEAD_BYTES_MAX)
                    .serve_connection(stream, serve)
                    .await
            }
            false => {
                hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_MAX)
                    .serve_connection(stream, serve)
                    .await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%peer, %error, "connection to the webhook ended");
        }
    }

    /// TLS; or why not, after an answer to whoever speaks plain HTTP.
    async fn accept(
        &self,
        mut tcp: TcpStream,
    ) -> Result<TlsStream<TcpStream>, (&'static str, String)> {
        let mut first = [0];
        let read = tcp.peek(&mut first).await;
        let handshake = |error: std::io::Error| ("handshake", error.to_string());
        if read.map_err(handshake)? == 1 && first != [TLS_HANDSHAKE] {
            if first[0].is_ascii_uppercase() {
                let _ = tcp.read(&mut vec![0; PLAIN_BYTES_MAX]).await;
                let _ = tcp.write_all(PLAIN_ANSWER.as_bytes()).await;
                let _ = tcp.shutdown().await;
            }
            return Err(("not_tls", "it does not speak TLS".to_owned()));
        }
        tokio_rustls::TlsAcceptor::from(self.tls.load_full())
            .accept(tcp)
            .await
            .map_err(handshake)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let begun = Instant::now();
        let (result, response) = self.review(request).await;
        self.metrics.results.count(result);
        self.metrics.seconds.observe(begun.elapsed().as_secs_f64());
        response
    }

    /// What became of a request, as the metric has it, and its answer.
    async fn review(&self, request: Request<Incoming>) -> (&'static str, Response<Full<Bytes>>) {
        let (is_inject, method) = (request.uri().path() == "/inject", request.method().clone());
        // Before anything is answered: of a connection that is closed with a body unread in it,
        // the answer may be lost.
        let body = match tokio::time::timeout(BODY_MAX, self.body(request)).await {
            Ok(Ok(body)) => body,
            Ok(Err(refused)) => return refused,
            Err(_) => {
                let problem = format!("the body was not there after {BODY_MAX:?}\n");
                return ("timed_out", text(StatusCode::REQUEST_TIMEOUT, problem));
            }
        };
        if !is_inject {
            let problem = "there is /inject\n".to_owned();
            return ("unknown", text(StatusCode::NOT_FOUND, problem));
        }
        if method != Method::POST {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "POST it\n".to_owned());
            let headers = response.headers_mut();
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
            return ("unknown", response);
        }
        let token = super::drain_token();
        let answer = match review::answer(&body, &self.settings.load(), token) {
            Ok(answer) => answer,
            Err(error) => {
                return (
                    "malformed",
                    text(StatusCode::BAD_REQUEST, format!("{error}\n")),
                );
            }
        };
        let pod = &answer.pod;
        let result = match &answer.verdict {
            Verdict::Injected => {
                tracing::debug!(pod, "injected");
                "injected"
            }
            Verdict::Skipped(reason) => {
                tracing::debug!(pod, %reason, "not injected");
                "skipped"
            }
            Verdict::Refused(problem) => {
                tracing::warn!(pod, problem, "a pod is refused");
                "refused"
            }
            Verdict::NotAPod => "skipped",
        };
        match serde_json::to_vec(&answer.review) {
            Ok(body) => {
                let mut response = Response::new(Full::new(Bytes::from(body)));
                let kind = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                (result, response)
            }
            Err(error) => (
                "malformed",
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            ),
        }
    }

    async fn body(
        &self,
        request: Request<Incoming>,
    ) -> Result<Bytes, (&'static str, Response<Full<Bytes>>)> {
        // Held until the body is in memory, and there is nothing to wait for after that.
        let _place = self.bodies.acquire().await;
        let read = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
        read.await.map(|body| body.to_bytes()).map_err(|error| {
            let is_large = error.downcast_ref::<LengthLimitError>().is_some();
            match is_large {
                true => {
                    let problem = format!("the body is larger than {BODY_BYTES_MAX} bytes\n");
                    ("too_large", text(StatusCode::PAYLOAD_TOO_LARGE, problem))
                }
                false => (
                    "malformed",
                    text(StatusCode::BAD_REQUEST, format!("{error}\n")),
                ),
            }
        })
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

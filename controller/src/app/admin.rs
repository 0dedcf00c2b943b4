//! The port for whoever runs the controller: `/status`, `/metrics` and probes. It
//! answers from the start, so that who waits can see for what.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use weft_config::status::WatchState;

use crate::discovery::hub::Hub;
use crate::metrics;
use crate::status::Writer;

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections, and how long one may last.
const CONNECTIONS_MAX: usize = 64;
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// What the pages are made of, as far as it is there.
#[derive(Debug, Default)]
pub struct Pages {
    hub: OnceLock<Arc<Hub>>,
    writer: OnceLock<Arc<Writer>>,
    is_ready: AtomicBool,
}

impl Pages {
    /// There is something to tell.
    pub fn begun(&self, hub: &Arc<Hub>) {
        self.hub.get_or_init(|| Arc::clone(hub));
    }

    /// This replica may come to write statuses.
    pub fn writes(&self, writer: &Arc<Writer>) {
        self.writer.get_or_init(|| Arc::clone(writer));
    }

    /// Proxies are served.
    pub fn ready(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
    }
}

/// Accepts for as long as the process lives.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((tcp, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let serve =
                hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let answer = page(&pages, request.uri().path(), from.ip());
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(tcp), serve);
            let _ = tokio::time::timeout(CONNECTION_MAX, served).await;
            drop(place);
        });
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

type Page = (StatusCode, &'static str, String);

fn page(pages: &Pages, path: &str, from: IpAddr) -> Response<Full<Bytes>> {
    let text = |status, text: &str| (status, TEXT, text.to_owned());
    let (status, kind, body) = match (path, pages.hub.get()) {
        ("/live", _) => text(StatusCode::OK, "ok\n"),
        ("/ready", Some(_)) if pages.is_ready.load(Ordering::Relaxed) => {
            text(StatusCode::OK, "ok\n")
        }
        ("/ready", Some(hub)) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, waits_for(hub)),
        ("/ready" | "/status" | "/metrics", None) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "waits for the certificate authority\n",
        ),
        // Workloads and their addresses are nobody else's business.
        ("/status", _) if !from.to_canonical().is_loopback() => text(
            StatusCode::FORBIDDEN,
            "/status is for loopback only: kubectl port-forward comes from there\n",
        ),
        ("/status", Some(hub)) => status(hub, pages.writer.get()),
        ("/metrics", Some(hub)) => {
            let mut figures = hub.figures();
            if let Some(writer) = pages.writer.get() {
                figures.statuses_waiting = writer.waiting() as u64;
                figures.statuses_unwritten = writer.troubles.all().len() as u64;
            }
            let page = hub.metrics.page(&figures);
            (StatusCode::OK, metrics::CONTENT_TYPE, page)
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /status, /metrics, /ready and /live\n",
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn status(hub: &Hub, writer: Option<&Arc<Writer>>) -> Page {
    let mut status = hub.status();
    status.unwritten = writer.map_or_else(Vec::new, |writer| writer.troubles.all());
    match serde_json::to_string_pretty(&status) {
        Ok(text) => (StatusCode::OK, "application/json", text + "\n"),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
    }
}

/// What has yet to be listed.
fn waits_for(hub: &Hub) -> String {
    let mut text = String::from("waits for the first list of:\n");
    for watch in hub.status().watches {
        if matches!(watch.state, WatchState::Listing | WatchState::Broken) {
            text.push_str(&format!("{} {}\n", watch.kind, watch.message));
        }
    }
    text
}

//! The port for whoever runs the controller: `/status`, `/metrics` and probes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::discovery::hub::Hub;
use crate::metrics;

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections, and how long one may last.
const CONNECTIONS_MAX: usize = 64;
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// Accepts for as long as the process lives.
pub async fn serve(listener: TcpListener, hub: Arc<Hub>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((tcp, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let hub = Arc::clone(&hub);
        tokio::spawn(async move {
            let serve =
                hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let answer = page(&hub, request.uri().path());
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

fn page(hub: &Hub, path: &str) -> Response<Full<Bytes>> {
    let text = "text/plain; charset=utf-8";
    let (status, kind, body) = match path {
        "/status" => match serde_json::to_string_pretty(&hub.status()) {
            Ok(text) => (StatusCode::OK, "application/json", text + "\n"),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, text, error.to_string()),
        },
        "/metrics" => (
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            hub.metrics.page(&hub.figures()),
        ),
        "/live" | "/ready" => (StatusCode::OK, text, "ok\n".to_owned()),
        _ => (
            StatusCode::NOT_FOUND,
            text,
            "there are /status, /metrics, /ready and /live\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

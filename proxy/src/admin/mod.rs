//! The admin server: metrics and probes for everybody, the rest for loopback.
//!
//! It runs on the control thread, so a scrape never delays a request.
//! Bounded: [`CONNECTIONS_MAX`] connections (the next one is closed), heads of
//! [`HEAD_BYTES_MAX`], bodies of [`BODY_BYTES_MAX`], and time for everything.

pub mod gauges;
mod pages;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use crate::control::Control;

const CONNECTIONS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const BODY_BYTES_MAX: usize = 64 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A request, its work included; a reload of a huge file is the longest, but for a drain
/// barrier, which gets this beyond its own bound.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection, however busy.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// After a failed accept (descriptors), so that nothing spins.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Every page: method, path, whether it is for loopback only, what it is.
const PAGES: [(&str, &str, bool, &str); 14] = [
    ("GET", "/metrics", false, "Prometheus metrics"),
    (
        "GET",
        "/ready",
        false,
        "200 when traffic is welcome, else 503 and why",
    ),
    ("GET", "/live", false, "200 while the process works"),
    (
        "GET",
        "/probe/N",
        false,
        "tries the application as the Nth of settings.mesh.probes says",
    ),
    (
        "GET",
        "/config",
        true,
        "the configuration in force, and the last reload's errors",
    ),
    (
        "GET",
        "/listeners",
        true,
        "listeners, their addresses and open connections",
    ),
    (
        "GET",
        "/mesh",
        true,
        "a sidecar's certificate, controller, and what it refuses",
    ),
    (
        "GET",
        "/endpoints",
        true,
        "every service's endpoints: health, ejection, load",
    ),
    (
        "GET",
        "/explain",
        true,
        "?url=…&method=…&header=name: value&listener=…: what would happen to a request",
    ),
    ("GET", "/log-level", true, "the level of the log"),
    (
        "PUT",
        "/log-level",
        true,
        "change it: the body is a level or directives",
    ),
    ("POST", "/reload", true, "read the configuration file again"),
    ("POST", "/drain", true, "begin to leave, as on SIGTERM"),
    ("GET", "/", true, "this list"),
];

/// What whoever asks from elsewhere is told.
const FAR: &str = "only /metrics, /ready, /live and /probe/N are there beyond loopback; ask from the same \
                   host or network namespace (kubectl port-forward, docker exec)\n";

type Answer = Response<Full<Bytes>>;

/// Serves until `stop` is told (then what is under way is finished) or it is
/// dropped.
pub async fn serve(listener: TcpListener, control: Arc<Control>, stop: Arc<Notify>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Ends every connection with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.notified() => break,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::debug!(%peer, "too many admin connections");
            continue;
        };
        let control = Arc::clone(&control);
        connections.spawn(async move {
            let served = tokio::time::timeout(CONNECTION_TIMEOUT, connection(tcp, peer, control));
            let _ = served.await;
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(tcp: TcpStream, peer: SocketAddr, control: Arc<Control>) {
    let service = service_fn(move |request| {
        let control = Arc::clone(&control);
        async move {
            let barrier = control
                .shared
                .runtime
                .load()
                .snapshot
                .settings
                .drain_barrier;
            let limit = REQUEST_TIMEOUT + barrier;
            let answer = tokio::time::timeout(limit, answer(&control, peer, request));
            Ok::<_, Infallible>(
                answer
                    .await
                    .unwrap_or_else(|_| text(StatusCode::GATEWAY_TIMEOUT, "took too long\n")),
            )
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(tcp), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "admin connection ended");
    }
}

async fn answer<B>(control: &Control, peer: SocketAddr, request: Request<B>) -> Answer
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path().to_owned();
    if is_drain_path(control, &path) {
        return match *request.method() {
            Method::GET | Method::HEAD | Method::POST => drain(control).await,
            _ => takes(&path, "GET, POST"),
        };
    }
    if let Some(index) = path.strip_prefix("/probe/") {
        return match *request.method() {
            Method::GET | Method::HEAD => {
                pages::probe(control, index, request.headers().clone()).await
            }
            _ => takes(&path, "GET"),
        };
    }
    let known = |method: &Method| {
        PAGES
            .iter()
            .find(|(of, page, ..)| *page == path && *of == method.as_str())
    };
    // HEAD is answered as GET is; hyper leaves the body out.
    let method = match *request.method() {
        Method::HEAD => Method::GET,
        ref method => method.clone(),
    };
    let Some((.., private, _)) = known(&method) else {
        return unknown(peer, &path);
    };
    if *private && let Some(refusal) = refuse(peer, &request) {
        return refusal;
    }
    let query = request.uri().query().unwrap_or("").to_owned();
    match (method.as_str(), path.as_str()) {
        (_, "/metrics") => gauges::metrics(control),
        (_, "/ready") => pages::ready(control),
        (_, "/live") => text(StatusCode::OK, "live\n"),
        (_, "/config") => pages::config(control),
        (_, "/listeners") => pages::listeners(control),
        (_, "/endpoints") => pages::endpoints(control),
        (_, "/mesh") => pages::mesh(control),
        (_, "/explain") => pages::explain(control, &query),
        ("GET", "/log-level") => text(StatusCode::OK, format!("{}\n", control.log.level())),
        ("PUT", "/log-level") => set_log_level(control, request).await,
        (_, "/reload") => pages::reload(control).await,
        (_, "/drain") => drain(control).await,
        _ => text(StatusCode::OK, index()),
    }
}

/// Whether it is the path of the configuration at which anybody may ask for a drain.
/// In constant time: the path is the caller's only proof.
fn is_drain_path(control: &Control, path: &str) -> bool {
    let runtime = control.shared.runtime.load();
    let secret = runtime.snapshot.settings.drain_path.as_deref();
    secret.is_some_and(|secret| secret.as_bytes().ct_eq(path.as_bytes()).into())
}

async fn drain(control: &Control) -> Answer {
    match control.shared.mesh {
        Some(_) => pages::leave(control).await,
        None => pages::drain(control),
    }
}

/// Private pages are for loopback, and not for a browser that a foreign page
/// sent there.
fn refuse<B>(peer: SocketAddr, request: &Request<B>) -> Option<Answer> {
    if !is_loopback(peer.ip()) {
        return Some(text(StatusCode::NOT_FOUND, FAR));
    }
    request.headers().contains_key(header::ORIGIN).then(|| {
        text(
            StatusCode::FORBIDDEN,
            "requests made by web pages (with an Origin header) are refused\n",
        )
    })
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn unknown(peer: SocketAddr, path: &str) -> Answer {
    let near = is_loopback(peer.ip());
    let allowed: Vec<&str> = PAGES
        .iter()
        .filter(|(_, page, private, _)| *page == path && (near || !private))
        .map(|(method, ..)| *method)
        .collect();
    if allowed.is_empty() {
        return match near {
            true => text(
                StatusCode::NOT_FOUND,
                format!("no such page; there are:\n{}", index()),
            ),
            false => text(StatusCode::NOT_FOUND, FAR),
        };
    }
    takes(path, &allowed.join(", "))
}

fn takes(path: &str, methods: &str) -> Answer {
    let mut answer = text(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{path} takes {methods}\n"),
    );
    if let Ok(value) = HeaderValue::from_str(methods) {
        answer.headers_mut().insert(header::ALLOW, value);
    }
    answer
}

fn index() -> String {
    PAGES
        .iter()
        .map(|(method, path, private, what)| {
            let note = if *private { " (loopback only)" } else { "" };
            format!("{method:4} {path:11} {what}{note}\n")
        })
        .collect()
}

async fn set_log_level<B>(control: &Control, request: Request<B>) -> Answer
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
    let Ok(body) = body.collect().await else {
        return text(StatusCode::BAD_REQUEST, "the body is too long or broken\n");
    };
    let bytes = body.to_bytes();
    let level = String::from_utf8_lossy(&bytes).trim().to_owned();
    match control.log.set_level(&level) {
        Ok(()) => {
            tracing::info!(%level, "log level changed");
            text(StatusCode::OK, format!("{level}\n"))
        }
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

fn json(status: StatusCode, body: &serde_json::Value) -> Answer {
    typed(status, "application/json", format!("{body:#}\n"))
}

#[cfg(test)]
mod tests;

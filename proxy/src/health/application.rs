//! A kubelet's probe of the application, tried by the sidecar for it: to the kubelet a
//! sidecar's open port would look like the application's, and its own TLS like a request
//! without mTLS. Judged as a kubelet judges.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use weft_config::snapshot::{Probe, ProbeKind};

use crate::net::tls;

/// The longest that a try takes; a kubelet gives up by its own time-out, long before.
const TRY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum TryError {
    #[error("cannot connect to the application at {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the TLS handshake with the application failed")]
    Tls(#[source] io::Error),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    #[error("the application gave no valid answer")]
    Http(#[source] hyper::Error),
    #[error("the request cannot be made")]
    Request(#[source] http::Error),
    #[error("the application answered {0}")]
    Status(StatusCode),
    #[error("the application did not answer within {TRY_MAX:?}")]
    Timeout,
    #[error("a kubelet asks the application itself")]
    NotOurs,
}

/// Tries it once. `headers`: of the kubelet's request, for the application.
pub async fn attempt(
    probe: &Probe,
    application: IpAddr,
    headers: HeaderMap,
) -> Result<(), TryError> {
    let address = SocketAddr::new(application, probe.port);
    let trying = async {
        match &probe.kind {
            ProbeKind::Tcp => connect(address).await.map(drop),
            ProbeKind::Https(path) => https(address, path, headers).await,
            ProbeKind::Http(_) | ProbeKind::Grpc => Err(TryError::NotOurs),
        }
    };
    let tried = tokio::time::timeout(TRY_MAX, trying).await;
    tried.unwrap_or(Err(TryError::Timeout))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, TryError> {
    let connected = TcpStream::connect(address).await;
    connected.map_err(|source| TryError::Connect { address, source })
}

async fn https(address: SocketAddr, path: &str, headers: HeaderMap) -> Result<(), TryError> {
    let config = tls::client::unverified().map_err(TryError::Setup)?;
    let tcp = connect(address).await?;
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(ServerName::IpAddress(address.ip().into()), tcp)
        .await
        .map_err(TryError::Tls)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(TryError::Http)?;
    let mut request = Request::get(path)
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(TryError::Request)?;
    *request.headers_mut() = forwarded(headers, address);
    let answer = sender.send_request(request);
    let mut connection = std::pin::pin!(connection);
    let answer = tokio::select! {
        answer = answer => answer,
        // Its end is told through the answer; this arm only drives it.
        Err(error) = &mut connection => Err(error),
    };
    let status = answer.map_err(TryError::Http)?.status();
    let good = status.is_success() || status.is_redirection();
    good.then_some(()).ok_or(TryError::Status(status))
}

/// The probe's own headers; those of the way to us stay here.
fn forwarded(mut headers: HeaderMap, address: SocketAddr) -> HeaderMap {
    const OURS: [HeaderName; 6] = [
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::EXPECT,
    ];
    for name in OURS {
        headers.remove(name);
    }
    // A probe's Host is a name; without one a kubelet writes where it connects to, which is us.
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let named = host.is_some_and(|host| host.parse::<SocketAddr>().is_err() && !host.is_empty());
    if !named && let Ok(host) = address.to_string().parse() {
        headers.insert(header::HOST, host);
    }
    headers.insert(header::CONNECTION, http::HeaderValue::from_static("close"));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_keeps_its_own_headers() {
        let address = "10.0.0.7:8443".parse().unwrap();
        for (host, want) in [
            ("10.0.0.7:14020", "10.0.0.7:8443"),
            ("[fd00::7]:14020", "10.0.0.7:8443"),
            ("shop.example", "shop.example"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            headers.insert(header::EXPECT, "100-continue".parse().unwrap());
            headers.insert("x-probe", "1".parse().unwrap());
            let headers = forwarded(headers, address);
            assert_eq!(headers[header::HOST], want);
            assert_eq!(headers["x-probe"], "1");
            assert!(!headers.contains_key(header::EXPECT));
        }
    }
}

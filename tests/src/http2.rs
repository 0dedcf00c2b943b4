//! An HTTP/2 client for one exchange at a time, with trailers both ways and interim answers.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::PATIENCE;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What the proxy says about an answer of its own.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.header("weft-reason").unwrap_or("")
    }
}

/// Sends one request by prior knowledge and reads its answer; the error is the stream's or the
/// connection's.
pub fn exchange(
    address: SocketAddr,
    request: Request<Vec<u8>>,
    trailers: Option<HeaderMap>,
) -> Result<Answer, h2::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let exchange = exchange_on(address, request, trailers);
        timeout(PATIENCE, exchange).await.expect("an answer comes")
    })
}

/// GET of a path.
#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Answer {
    let request = Request::get(format!("http://test{path}")).body(Vec::new());
    exchange(address, request.expect("the request is valid"), None).expect("an answer comes")
}

async fn exchange_on(
    address: SocketAddr,
    request: Request<Vec<u8>>,
    trailers: Option<HeaderMap>,
) -> Result<Answer, h2::Error> {
    let stream = TcpStream::connect(address).await.expect("the peer accepts");
    let (sender, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let mut sender = sender.ready().await?;
    let (parts, body) = request.into_parts();
    let ended = body.is_empty() && trailers.is_none();
    let (response, mut sink) = sender.send_request(Request::from_parts(parts, ()), ended)?;
    if !body.is_empty() {
        sink.send_data(Bytes::from(body), trailers.is_none())?;
    }
    if let Some(trailers) = trailers {
        sink.send_trailers(trailers)?;
    }
    let (parts, mut stream) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        let _ = stream.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await?;
    driver.abort();
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body,
        trailers,
    })
}

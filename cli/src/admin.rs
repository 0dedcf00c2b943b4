//! One request to an admin port of ours, bounded in time and size.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// The metrics of a busy proxy are some hundred KiB.
const PAGE_BYTES_MAX: usize = 16 << 20;
/// Connecting alone: a host that is not there must not use up all of the time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Page {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Page {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks for `path` and returns its page if the status is a good one.
pub async fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Page> {
    let page = ask(&Method::GET, address, path, limit).await?;
    good(page, || format!("http://{address}{path}"))
}

/// The page, if its status is a good one.
pub fn good(page: Page, of: impl FnOnce() -> String) -> Result<Page> {
    if !page.status.is_success() {
        let said = page.text();
        let first = said.lines().next().unwrap_or_default();
        bail!("{} answers {}: {first}", of(), page.status);
    }
    Ok(page)
}

/// Asks, and returns whatever is answered.
pub async fn ask(
    method: &Method,
    address: SocketAddr,
    path: &str,
    limit: Duration,
) -> Result<Page> {
    let asked = async {
        let Ok(connected) = timeout(CONNECT_TIMEOUT, connect(address)).await else {
            bail!("no connection within {CONNECT_TIMEOUT:?}");
        };
        exchange(connected?, method, &address.to_string(), path).await
    };
    let asked = timeout(limit, asked).await;
    let context = || format!("asking http://{address}{path}");
    match asked {
        Ok(answer) => answer.with_context(context),
        Err(_) => bail!("http://{address}{path} does not answer within {limit:?}"),
    }
}

/// One request over an open stream. The caller bounds its time.
pub async fn exchange<S>(stream: S, method: &Method, host: &str, path: &str) -> Result<Page>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, PAGE_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?;
        Ok(Page {
            status: head.status,
            body: body.to_bytes(),
        })
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // Its end may come before its last bytes are looked at.
        ended = connection => { ended?; answer.await }
    }
}

/// Private pages are for loopback alone. A port of this host's that is not on
/// loopback is reached from there by a source address of loopback.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    if !address.ip().is_loopback()
        && let Ok(stream) = connect_from_loopback(address).await
    {
        return Ok(stream);
    }
    TcpStream::connect(address).await
}

async fn connect_from_loopback(address: SocketAddr) -> io::Result<TcpStream> {
    let (socket, source): (_, IpAddr) = match address {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::LOCALHOST.into()),
    };
    socket.bind((source, 0).into())?;
    socket.connect(address).await
}

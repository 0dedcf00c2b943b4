//! One check of one endpoint, over a connection of its own, made as the
//! service's connections are made (TLS, PROXY protocol).

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use weft_config::snapshot::{HealthCheck, HealthCheckKind, ProxyProtocol, ServiceProtocol};

use super::grpc;
use crate::logic::proxy_protocol;
use crate::net::stream::{Plain, Stream};
use crate::net::tls::Alpn;
use crate::state::ServiceState;

/// An answer to a gRPC check is a few bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// Why an endpoint failed its check.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("no connection")]
    Connect(#[source] io::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("no valid answer")]
    Http(#[source] hyper::Error),
    #[error("no valid answer")]
    Http2(#[source] h2::Error),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("gRPC status {0}")]
    GrpcStatus(String),
    #[error("not serving (health status {0})")]
    NotServing(i32),
    #[error("the check's request cannot be made; look at healthCheck.path and .host")]
    Request(#[source] http::Error),
    #[error("no answer within healthCheck.timeout")]
    Timeout,
}

pub async fn probe(
    service: &ServiceState,
    endpoint: SocketAddr,
    check: &HealthCheck,
) -> Result<(), ProbeError> {
    let mut address = endpoint;
    if let Some(port) = check.port {
        address.set_port(port);
    }
    let http2 = service.config.protocol == ServiceProtocol::Http2;
    match &check.kind {
        HealthCheckKind::Tcp => {
            connect(service, address, Alpn::of(service.config.protocol)).await?;
            Ok(())
        }
        HealthCheckKind::Http {
            path,
            host,
            statuses,
        } => {
            let authority = host
                .as_ref()
                .map_or_else(|| endpoint.to_string(), |host| host.to_string());
            let alpn = if http2 { Alpn::Http2 } else { Alpn::Http1 };
            let stream = connect(service, address, alpn).await?;
            let status = if http2 {
                let request = http2_request(service, Method::GET, &authority, path)?;
                let (head, _) = http2_call(stream, request, None).await?;
                head.status()
            } else {
                http1_status(stream, &authority, path).await?
            };
            let good = if statuses.is_empty() {
                status.is_success()
            } else {
                statuses.contains(&status)
            };
            if good {
                Ok(())
            } else {
                Err(ProbeError::Status(status))
            }
        }
        HealthCheckKind::Grpc { service: asked } => {
            let stream = connect(service, address, Alpn::Http2).await?;
            grpc_check(service, stream, endpoint, asked).await
        }
    }
}

async fn connect(
    service: &ServiceState,
    address: SocketAddr,
    alpn: Alpn,
) -> Result<Stream, ProbeError> {
    let mut tcp = TcpStream::connect(address)
        .await
        .map_err(ProbeError::Connect)?;
    if let Some(version) = service.config.send_proxy_protocol {
        let header = proxy_header(&tcp, version).map_err(ProbeError::Connect)?;
        tcp.write_all(&header).await.map_err(ProbeError::Connect)?;
    }
    let plain = Plain::new(tcp);
    let Some(tls) = &service.tls else {
        return Ok(Stream::Plain(plain));
    };
    let name = tls
        .server_name(&address.to_string())
        .map_err(|error| ProbeError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let stream = tokio_rustls::TlsConnector::from(tls.config(alpn))
        .connect(name, plain)
        .await
        .map_err(ProbeError::Tls)?;
    Ok(Stream::ClientTls(Box::new(stream)))
}

/// The check speaks for itself: our own address is the source.
fn proxy_header(tcp: &TcpStream, version: ProxyProtocol) -> io::Result<BytesMut> {
    let (source, destination) = (tcp.local_addr()?, tcp.peer_addr()?);
    let mut header = BytesMut::new();
    match version {
        ProxyProtocol::V1 => proxy_protocol::encode_v1(source, destination, &mut header),
        ProxyProtocol::V2 | ProxyProtocol::Any => {
            proxy_protocol::encode_v2(source, destination, &mut header);
        }
    }
    Ok(header)
}

const USER_AGENT: &str = concat!("weft-health/", env!("CARGO_PKG_VERSION"));

async fn http1_status(stream: Stream, host: &str, path: &str) -> Result<StatusCode, ProbeError> {
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(ProbeError::Http)?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(ProbeError::Request)?;
    let answer = sender.send_request(request);
    let mut connection = std::pin::pin!(connection);
    let answer = tokio::select! {
        answer = answer => answer,
        // The connection's own end is told through the answer; this arm only
        // drives it.
        Err(error) = &mut connection => Err(error),
    };
    Ok(answer.map_err(ProbeError::Http)?.status())
}

fn http2_request(
    service: &ServiceState,
    method: Method,
    authority: &str,
    path: &str,
) -> Result<Request<()>, ProbeError> {
    let scheme = if service.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(ProbeError::Request)?;
    Request::builder()
        .method(method)
        .uri(uri)
        .version(http::Version::HTTP_2)
        .header(header::USER_AGENT, USER_AGENT)
        .body(())
        .map_err(ProbeError::Request)
}

/// Sends one request; its answer's head, body (bounded) and trailers.
async fn http2_call(
    stream: Stream,
    request: Request<()>,
    body: Option<Bytes>,
) -> Result<(http::Response<()>, (Bytes, HeaderMap)), ProbeError> {
    let (sender, connection) = h2::client::handshake(stream)
        .await
        .map_err(ProbeError::Http2)?;
    let call = async move {
        let mut sender = sender.ready().await?;
        let (answer, mut send) = sender.send_request(request, body.is_none())?;
        if let Some(body) = body {
            send.send_data(body, true)?;
        }
        let (head, mut receive) = answer.await?.into_parts();
        let mut all = BytesMut::new();
        while let Some(chunk) = receive.data().await {
            let chunk = chunk?;
            receive.flow_control().release_capacity(chunk.len())?;
            if all.len() + chunk.len() > ANSWER_BYTES_MAX {
                // The head is what matters: a long page is not read on.
                break;
            }
            all.extend_from_slice(&chunk);
        }
        let trailers = if receive.is_end_stream() {
            HeaderMap::new()
        } else {
            receive.trailers().await?.unwrap_or_default()
        };
        let head = http::Response::from_parts(head, ());
        Ok::<_, h2::Error>((head, (all.freeze(), trailers)))
    };
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        done = call => done,
        Err(error) = &mut connection => Err(error),
    }
    .map_err(ProbeError::Http2)
}

async fn grpc_check(
    service: &ServiceState,
    stream: Stream,
    endpoint: SocketAddr,
    asked: &str,
) -> Result<(), ProbeError> {
    let path = "/grpc.health.v1.Health/Check";
    let mut request = http2_request(service, Method::POST, &endpoint.to_string(), path)?;
    let headers = request.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/grpc"),
    );
    headers.insert(header::TE, http::HeaderValue::from_static("trailers"));
    let body = grpc::frame(&grpc::CheckRequest {
        service: asked.to_owned(),
    });
    let (head, (body, trailers)) = http2_call(stream, request, Some(body)).await?;
    if head.status() != StatusCode::OK {
        return Err(ProbeError::Status(head.status()));
    }
    // An error without a message comes in the head ("trailers only").
    let status = trailers
        .get("grpc-status")
        .or(head.headers().get("grpc-status"));
    let status = status
        .and_then(|status| status.to_str().ok())
        .unwrap_or("missing");
    if status != "0" {
        return Err(ProbeError::GrpcStatus(status.to_owned()));
    }
    match grpc::unframe::<grpc::CheckResponse>(&body) {
        Some(answer) if answer.status == grpc::SERVING => Ok(()),
        answer => Err(ProbeError::NotServing(
            answer.map_or(0, |answer| answer.status),
        )),
    }
}

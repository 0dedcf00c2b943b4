//! HTTP/2 by prior knowledge: a GET is answered with 64 bytes, a POST is taken
//! as a gRPC unary call and its message comes back, with trailers.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use crate::case::SMALL_BYTES;

/// More than any case opens on one connection.
const STREAMS_MAX: u32 = 1000;
const WINDOW_BYTES: u32 = 1 << 20;

pub fn serve(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("listening on {listen}"))?;
        loop {
            let (stream, _peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A connection that fails is the load generator's to report.
            spawn_local(connection(stream));
        }
    })
}

async fn connection(stream: TcpStream) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        if request.method() == Method::POST {
            spawn_local(echo(request, respond));
        } else {
            answer(respond)?;
        }
    }
    Ok(())
}

fn answer(mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    static BODY: [u8; SMALL_BYTES] = [b'x'; SMALL_BYTES];
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert("server", HeaderValue::from_static("upstream"));
    headers.insert(
        "date",
        HeaderValue::from_static("Thu, 01 Jan 2026 00:00:00 GMT"),
    );
    headers.insert("content-type", HeaderValue::from_static("text/plain"));
    headers.insert("content-length", HeaderValue::from(SMALL_BYTES));
    respond
        .send_response(response, false)?
        .send_data(Bytes::from_static(&BODY), true)
}

async fn echo(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        message.extend_from_slice(&data);
    }
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert(
        "date",
        HeaderValue::from_static("Thu, 01 Jan 2026 00:00:00 GMT"),
    );
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(message.freeze(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}

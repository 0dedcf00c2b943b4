//! HTTP/2 by prior knowledge: many requests at once on a connection, as GET or as unary gRPC, and
//! one long gRPC stream. GOAWAY is heeded: nothing new is sent after it, what runs goes on.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{Count, REFUSED};
use crate::PATIENCE;

/// A gRPC message's flag and length.
const PREFIX_BYTES: usize = 5;

/// What a connection is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// GET, so many at once.
    Gets(usize),
    /// Unary gRPC, so many calls at once.
    Calls(usize),
    /// One gRPC stream of messages both ways, each awaited before the next.
    Stream,
}

type Sender = SendRequest<Bytes>;

/// One connection's life.
pub(super) async fn connection(address: SocketAddr, used: Use, count: &Arc<Count>) {
    let connected = timeout(PATIENCE, connect(address)).await;
    let (sender, driver) = match connected.unwrap_or_else(|_| Err("timed out".to_owned())) {
        Ok(connected) => connected,
        Err(why) => {
            let sent = count.begin();
            count.end(&sent, Err(why));
            return count.rest().await;
        }
    };
    match used {
        Use::Stream => stream(sender, count).await,
        Use::Gets(streams) | Use::Calls(streams) => {
            let mut tasks = JoinSet::new();
            for _ in 0..streams {
                let (sender, count) = (sender.clone(), Arc::clone(count));
                tasks.spawn(async move { requests(sender, used, &count).await });
            }
            drop(sender);
            tasks.join_all().await;
        }
    }
    driver.abort();
}

async fn connect(address: SocketAddr) -> Result<(Sender, JoinHandle<()>), String> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| format!("{REFUSED}{error}"))?;
    let _ = stream.set_nodelay(true);
    let handshake = h2::client::handshake(stream).await;
    let (sender, connection) = handshake.map_err(|error| format!("handshake: {error}"))?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok((sender, driver))
}

/// One request after another, until the connection ends.
async fn requests(mut next: Sender, used: Use, count: &Count) {
    while !count.stopping() {
        // An error here is the server's GOAWAY: nothing was sent.
        let Ok(mut ready) = next.ready().await else {
            return;
        };
        let sent = count.begin();
        let answer = async {
            match used {
                Use::Calls(_) => call(&mut ready, &sent.name).await,
                Use::Gets(_) | Use::Stream => get(&mut ready, &sent.name).await,
            }
        };
        let outcome = timeout(PATIENCE, answer).await;
        let outcome = outcome.unwrap_or_else(|_| Err("timed out".to_owned()));
        let failed = outcome.is_err();
        count.end(
            &sent,
            outcome.and_then(|text| count.check(&sent.name, &text)),
        );
        count.rest().await;
        if failed {
            return;
        }
        next = ready;
    }
}

async fn get(sender: &mut Sender, path: &str) -> Result<String, String> {
    let request = Request::get(format!("http://load{path}")).body(());
    let request = request.map_err(|error| error.to_string())?;
    let sent = sender.send_request(request, true);
    let (response, _) = sent.map_err(|error| format!("sending: {error}"))?;
    let response = response.await.map_err(|error| format!("head: {error}"))?;
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| format!("body: {error}"))?;
        let _ = body.flow_control().release_capacity(data.len());
        text.extend_from_slice(&data);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    if status == 200 {
        return Ok(text);
    }
    Err(format!("{status} {text:?}"))
}

fn grpc_request(method: &str) -> Result<Request<()>, String> {
    Request::post(format!("http://load/chaos.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| error.to_string())
}

/// A message with its prefix.
#[must_use]
pub fn framed(text: &str) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + text.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    framed.put_slice(text.as_bytes());
    framed.freeze()
}

/// The first whole message of a stream, taken from what has come of it.
pub fn message(came: &mut BytesMut) -> Option<String> {
    let mut prefix = came.get(..PREFIX_BYTES)?;
    prefix.advance(1);
    let length = usize::try_from(prefix.get_u32()).ok()?;
    if came.len() < PREFIX_BYTES + length {
        return None;
    }
    let mut whole = came.split_to(PREFIX_BYTES + length);
    whole.advance(PREFIX_BYTES);
    Some(String::from_utf8_lossy(&whole).into_owned())
}

/// A unary call: the message of its answer, if its trailers say that all is well.
async fn call(sender: &mut Sender, text: &str) -> Result<String, String> {
    let sent = sender.send_request(grpc_request("Unary")?, false);
    let (response, mut sink) = sent.map_err(|error| format!("sending: {error}"))?;
    // The stream may have been answered before all of it is sent: the answer says why.
    let _ = sink.send_data(framed(text), true);
    let response = response.await.map_err(|error| format!("head: {error}"))?;
    let head = format!("{:?}", response.headers());
    let mut body = response.into_body();
    let mut came = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| format!("body: {error}"))?;
        let _ = body.flow_control().release_capacity(data.len());
        came.extend_from_slice(&data);
    }
    let trailers = body.trailers().await;
    let trailers = trailers.map_err(|error| format!("trailers: {error}"))?;
    let status = trailers.as_ref().and_then(|t| t.get("grpc-status"));
    if status.is_none_or(|status| status != "0") {
        return Err(format!("{head} {trailers:?}"));
    }
    message(&mut came).ok_or_else(|| "no message".to_owned())
}

/// One stream's life; each message is a request of the count.
async fn stream(mut sender: Sender, count: &Count) {
    let opened = async {
        let request = grpc_request("Stream")?;
        let sent = sender.send_request(request, false);
        sent.map_err(|error| format!("opening: {error}"))
    };
    let (mut response, mut sink) = match opened.await {
        Ok(opened) => (Some(opened.0), opened.1),
        Err(why) => {
            let sent = count.begin();
            return count.end(&sent, Err(why));
        }
    };
    let mut body = None;
    let mut came = BytesMut::new();
    while !count.stopping() {
        let sent = count.begin();
        let answer = async {
            let given = sink.send_data(framed(&sent.name), false);
            given.map_err(|error| format!("sending: {error}"))?;
            if let Some(response) = response.take() {
                let response = response.await.map_err(|error| format!("head: {error}"))?;
                if response.status() != 200 || response.headers().contains_key("grpc-status") {
                    return Err(format!("{:?} {:?}", response.status(), response.headers()));
                }
                body = Some(response.into_body());
            }
            let body = body.as_mut().ok_or("no answer")?;
            loop {
                if let Some(text) = message(&mut came) {
                    return Ok(text);
                }
                let data = body.data().await.ok_or("the stream has ended")?;
                let data = data.map_err(|error| format!("reading: {error}"))?;
                let _ = body.flow_control().release_capacity(data.len());
                came.extend_from_slice(&data);
            }
        };
        let outcome = timeout(PATIENCE, answer).await;
        let outcome = outcome.unwrap_or_else(|_| Err("timed out".to_owned()));
        let failed = outcome.is_err();
        count.end(
            &sent,
            outcome.and_then(|text| count.check(&sent.name, &text)),
        );
        count.rest().await;
        if failed {
            return;
        }
    }
    // A clean end: the server answers with its trailers.
    let _ = sink.send_data(Bytes::new(), true);
}

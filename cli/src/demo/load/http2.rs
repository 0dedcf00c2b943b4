//! The HTTP/2 client of the load: one connection by prior knowledge, as many
//! streams as there are requests. What the peer says it did not process
//! (RFC 9113 §8.7) is sent again on a new connection, as every client does.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use h2::client::{self, ResponseFuture, SendRequest};
use http::Request;
use tokio::net::TcpStream;

use super::{ANSWER_BYTES_MAX, Answer, Connections, Loss};

/// Connections tried for one request before it is lost.
const TRIES_MAX: usize = 3;

/// A client of one address.
#[derive(Debug)]
pub struct Http2 {
    target: SocketAddr,
    open: tokio::sync::Mutex<Option<SendRequest<Bytes>>>,
    connections: Connections,
}

/// Why a try brought no answer.
enum Failure {
    /// The peer did not process the request: it may be sent again.
    Unprocessed(h2::Error),
    Final(Loss),
}

impl Http2 {
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            open: tokio::sync::Mutex::default(),
            connections: Connections::default(),
        }
    }

    pub async fn call(&self, request: &Request<()>, body: &Bytes) -> Result<Answer, Loss> {
        let mut tries = 1;
        loop {
            match self.attempt(request, body).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Unprocessed(_)) if tries < TRIES_MAX => tries += 1,
                Err(Failure::Unprocessed(error)) => return Err(Loss::broken("stream", &error)),
                Err(Failure::Final(loss)) => return Err(loss),
            }
        }
    }

    async fn attempt(&self, request: &Request<()>, body: &Bytes) -> Result<Answer, Failure> {
        let mut sender = self.sender().await.map_err(Failure::Final)?;
        let (response, mut stream) = sender
            .send_request(request.clone(), body.is_empty())
            .map_err(failure)?;
        if !body.is_empty() {
            stream.send_data(body.clone(), true).map_err(failure)?;
        }
        answer(response).await
    }

    /// The open connection once it takes a stream, or a new one.
    async fn sender(&self) -> Result<SendRequest<Bytes>, Loss> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.take() {
            // An error: the peer is leaving (GOAWAY) or gone.
            if let Ok(sender) = sender.ready().await {
                *open = Some(sender.clone());
                return Ok(sender);
            }
        }
        let sender = self.connect().await?;
        *open = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, Loss> {
        let stream = TcpStream::connect(self.target).await;
        let stream = stream.map_err(|error| Loss::broken("connecting", &error))?;
        // Without this a small message waits for the acknowledgement of its head.
        let _unsupported = stream.set_nodelay(true);
        let connected = client::handshake(stream).await;
        let (sender, connection) = connected.map_err(|error| Loss::broken("connecting", &error))?;
        self.connections.drive(connection);
        let sender = sender.ready().await;
        sender.map_err(|error| Loss::broken("connecting", &error))
    }
}

fn failure(error: h2::Error) -> Failure {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    // h2 fails streams above the last id of a GOAWAY with that GOAWAY.
    let leaving = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    if error.is_remote() && (refused || leaving) {
        Failure::Unprocessed(error)
    } else {
        Failure::Final(Loss::broken("stream", &error))
    }
}

async fn answer(response: ResponseFuture) -> Result<Answer, Failure> {
    let (head, mut stream) = response.await.map_err(failure)?.into_parts();
    let (mut headers, mut body) = (head.headers, BytesMut::new());
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.map_err(failure)?;
        let released = stream.flow_control().release_capacity(chunk.len());
        released.map_err(failure)?;
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(Failure::Final(Loss::new("the answer is too long")));
        }
        body.extend_from_slice(&chunk);
    }
    // gRPC puts its status in the trailers, or in the headers where there is no body.
    headers.extend(
        stream
            .trailers()
            .await
            .map_err(failure)?
            .unwrap_or_default(),
    );
    Ok(Answer {
        status: head.status,
        headers,
        body: body.freeze(),
    })
}

//! The HTTP/1.1 client of the load: keep-alive with a pool, or a connection for
//! each request. It never repeats a request of which a byte may have left.

use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{ANSWER_BYTES_MAX, Answer, Connections, Loss, locked};

/// Idle connections kept; one more is closed.
const IDLE_MAX: usize = 64;

type Sender = SendRequest<Full<Bytes>>;

/// A client of one address.
#[derive(Debug)]
pub struct Http1 {
    target: SocketAddr,
    keep_alive: bool,
    idle: Mutex<Vec<Sender>>,
    connections: Connections,
}

impl Http1 {
    pub fn new(target: SocketAddr, keep_alive: bool) -> Self {
        Self {
            target,
            keep_alive,
            idle: Mutex::default(),
            connections: Connections::default(),
        }
    }

    pub async fn call(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, Loss> {
        let host = header::HeaderValue::from_str(&self.target.to_string());
        request.headers_mut().insert(
            header::HOST,
            host.expect("an address is a valid header value"),
        );
        if !self.keep_alive {
            request.headers_mut().insert(
                header::CONNECTION,
                header::HeaderValue::from_static("close"),
            );
        }
        loop {
            let mut sender = match self.pooled() {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            let response = match sender.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    // The connection was closed before the request was written: it is still here, whole.
                    Some(unsent) => {
                        request = unsent;
                        continue;
                    }
                    None => return Err(Loss::broken("request", &error.into_error())),
                },
            };
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Loss::broken("answer", error.as_ref()))?;
            self.give_back(sender);
            return Ok(Answer {
                status: head.status,
                headers: head.headers,
                body: body.to_bytes(),
            });
        }
    }

    fn pooled(&self) -> Option<Sender> {
        let mut idle = locked(&self.idle);
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn give_back(&self, sender: Sender) {
        let mut idle = locked(&self.idle);
        if self.keep_alive && !sender.is_closed() && idle.len() < IDLE_MAX {
            idle.push(sender);
        }
    }

    async fn connect(&self) -> Result<Sender, Loss> {
        let stream = TcpStream::connect(self.target).await;
        let stream = stream.map_err(|error| Loss::broken("connecting", &error))?;
        // Without this a small POST waits for the acknowledgement of its head.
        let _unsupported = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Loss::broken("connecting", &error))?;
        self.connections.drive(connection);
        Ok(sender)
    }
}

//! HTTP/2 by prior knowledge and gRPC unary calls, closed loop: so many streams
//! on each connection, each starting the next request as the last one ends.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::tls::HOST;
use super::{Edge, OnEdge, Outcome, Plan, STALL_TIMEOUT};
use crate::case::{Case, SMALL_BYTES};

const WINDOW_BYTES: u32 = 1 << 20;
/// A gRPC message and the five bytes before it.
const MESSAGE_BYTES: usize = 5 + SMALL_BYTES;

/// What the streams share.
struct Shared {
    grpc: bool,
    /// Copied for each exchange.
    request: Request<()>,
    measuring: Cell<bool>,
    outcome: RefCell<Outcome>,
    answers: Cell<u64>,
    error: RefCell<Option<anyhow::Error>>,
}

pub fn run(plan: &Plan, streams: usize, on_edge: OnEdge<'_>) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shared = Rc::new(Shared::new(plan.case)?);
    LocalSet::new().block_on(&runtime, async {
        for _connection in 0..plan.h2_connections {
            let sender = connect(plan).await?;
            for _stream in 0..streams {
                spawn_local(Rc::clone(&shared).repeat(sender.clone()));
            }
        }
        watch(&shared, plan.warm_up).await?;
        on_edge(Edge::Start)?;
        shared.measuring.set(true);
        let start = Instant::now();
        watch(&shared, plan.window).await?;
        shared.measuring.set(false);
        shared.outcome.borrow_mut().elapsed = start.elapsed();
        on_edge(Edge::End)
    })?;
    Ok(shared.outcome.replace(Outcome::new()?))
}

pub fn probe(plan: &Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shared = Rc::new(Shared::new(plan.case)?);
    LocalSet::new().block_on(&runtime, async {
        let mut sender = timeout(Duration::from_secs(1), connect(plan)).await??;
        timeout(Duration::from_secs(1), shared.exchange(&mut sender)).await?
    })
}

/// Waits, looking every so often whether a stream failed or all of them hang.
async fn watch(shared: &Shared, length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    let mut seen = (shared.answers.get(), Instant::now());
    loop {
        let left = end.saturating_duration_since(Instant::now());
        sleep(left.min(Duration::from_millis(50))).await;
        if let Some(error) = shared.error.take() {
            return Err(error);
        }
        if shared.answers.get() != seen.0 {
            seen = (shared.answers.get(), Instant::now());
        }
        ensure!(
            seen.1.elapsed() < STALL_TIMEOUT,
            "no answer for {STALL_TIMEOUT:?}"
        );
        if Instant::now() >= end {
            return Ok(());
        }
    }
}

async fn connect(plan: &Plan) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(plan.addr).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(stream)
        .await?;
    // Its streams see and report how it ends.
    spawn_local(connection);
    Ok(sender)
}

impl Shared {
    fn new(case: Case) -> Result<Self> {
        let grpc = case == Case::GrpcUnary;
        Ok(Self {
            grpc,
            request: if grpc { call()? } else { get()? },
            measuring: Cell::new(false),
            outcome: RefCell::new(Outcome::new()?),
            answers: Cell::new(0),
            error: RefCell::new(None),
        })
    }

    async fn repeat(self: Rc<Self>, mut sender: SendRequest<Bytes>) {
        loop {
            let started = Instant::now();
            if let Err(error) = self.exchange(&mut sender).await {
                self.error.borrow_mut().get_or_insert(error);
                return;
            }
            self.answers.set(self.answers.get() + 1);
            if self.measuring.get() {
                self.outcome.borrow_mut().record(started.elapsed());
            }
        }
    }

    async fn exchange(&self, sender: &mut SendRequest<Bytes>) -> Result<()> {
        std::future::poll_fn(|context| sender.poll_ready(context)).await?;
        let (response, body_bytes) = if self.grpc {
            static MESSAGE: [u8; MESSAGE_BYTES] = message();
            let (response, mut stream) = sender.send_request(self.request.clone(), false)?;
            stream.send_data(Bytes::from_static(&MESSAGE), true)?;
            (response, MESSAGE_BYTES)
        } else {
            (
                sender.send_request(self.request.clone(), true)?.0,
                SMALL_BYTES,
            )
        };
        check(response.await?, body_bytes, self.grpc).await
    }
}

fn get() -> Result<Request<()>> {
    Ok(Request::get(format!("http://{HOST}/64"))
        .header("user-agent", "hop")
        .body(())?)
}

fn call() -> Result<Request<()>> {
    Ok(Request::post(format!("http://{HOST}/bench.Echo/Unary"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "grpc-hop/1.0")
        .body(())?)
}

/// Not compressed, 64 bytes, all the same.
const fn message() -> [u8; MESSAGE_BYTES] {
    let mut bytes = [b'x'; MESSAGE_BYTES];
    bytes[0] = 0;
    bytes[1] = 0;
    bytes[2] = 0;
    bytes[3] = 0;
    bytes[4] = SMALL_BYTES as u8;
    bytes
}

async fn check(response: Response<h2::RecvStream>, body_bytes: usize, grpc: bool) -> Result<()> {
    let status = response.status();
    let mut body = response.into_body();
    let mut received = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        received += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    if status != 200 || received != body_bytes {
        bail!("answered {status} with {received} bytes instead of 200 with {body_bytes}");
    }
    let trailers: Option<HeaderMap> = body.trailers().await?;
    if grpc {
        let trailers = trailers.context("a gRPC answer without trailers")?;
        let status = trailers
            .get("grpc-status")
            .context("no grpc-status in the trailers")?;
        ensure!(status == "0", "grpc-status {status:?}");
    }
    Ok(())
}

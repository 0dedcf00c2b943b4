//! The application of the fault matrix: a process of its own that speaks every protocol on one port,
//! and that ends at once on SIGTERM, as most programs do that were never taught better.
//!
//! Whatever it is asked it gives back with its own name behind it, often after some thought: what
//! happens to it finds requests inside.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::load::http2::{framed, message};
use crate::load::opaque::FIRST_BYTE;
use crate::load::websocket;
use crate::process::Program;

/// What a question takes, once or twice.
const THOUGHT: Duration = Duration::from_millis(15);

/// Starts one: `binary` is the program whose argument `application` comes to [`serve`].
pub fn start(binary: &Path, address: SocketAddr, name: &str, folder: &Path) -> Program {
    let mut command = Command::new(binary);
    command.args(["application", &address.to_string(), name]);
    let mut program = Program::start(name, &mut command, folder);
    program.accepts(address);
    program
}

/// Serves until the process is killed.
pub fn serve(address: SocketAddr, name: &str) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let name: &'static str = name.to_owned().leak();
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                // A connection's end is its peer's affair.
                let _ = connection(stream, name).await;
            });
        }
    })
}

async fn connection(stream: TcpStream, name: &str) -> io::Result<()> {
    let mut first = [0; 2];
    // Two bytes tell "PRI" from "POST" and "GET".
    while stream.peek(&mut first).await? == 1 && first[0] != FIRST_BYTE {
        tokio::task::yield_now().await;
    }
    match first {
        [FIRST_BYTE, _] => lines(stream, name).await,
        [b'P', b'R'] => http2(stream, name).await.map_err(io::Error::other),
        _ => http1(stream, name).await,
    }
}

/// Some questions are answered at once, some take a while.
async fn think(question: &str) {
    let digits = question.bytes().map(u64::from).sum::<u64>();
    tokio::time::sleep(THOUGHT * u32::try_from(digits % 3).unwrap_or_default()).await;
}

async fn lines(stream: TcpStream, name: &str) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        think(&line).await;
        let answer = format!("{} from {name}\n", line.trim_end());
        stream.write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

async fn http1(stream: TcpStream, name: &str) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let start = head.len();
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
            if let Some((field, value)) = head[start..].split_once(':')
                && field.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        if head.contains(websocket::KEY) {
            return frames(stream, name).await;
        }
        let target = head.split(' ').nth(1).unwrap_or_default();
        think(target).await;
        let text = format!("{target}{} from {name}", String::from_utf8_lossy(&body));
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes()).await?;
    }
}

async fn frames(mut stream: BufReader<TcpStream>, name: &str) -> io::Result<()> {
    let accept = websocket::ACCEPT;
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    loop {
        let text = websocket::read_text(&mut stream).await?;
        think(&text).await;
        let answer = websocket::frame(&format!("{text} from {name}"), None);
        stream.write_all(&answer).await?;
    }
}

async fn http2(stream: TcpStream, name: &str) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    let name = name.to_owned();
    while let Some(accepted) = connection.accept().await {
        let (request, answer) = accepted?;
        let name = name.clone();
        tokio::spawn(async move {
            let _ = exchange(request, answer, &name).await;
        });
    }
    Ok(())
}

async fn exchange(
    request: Request<RecvStream>,
    mut answer: SendResponse<Bytes>,
    name: &str,
) -> Result<(), h2::Error> {
    if request.method() == http::Method::GET {
        think(request.uri().path()).await;
        let text = format!("{} from {name}", request.uri().path());
        let mut sink = answer.send_response(Response::new(()), false)?;
        return sink.send_data(Bytes::from(text), true);
    }
    let mut head = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    head.headers_mut().insert("content-type", grpc);
    let mut sink = answer.send_response(head, false)?;
    let mut body = request.into_body();
    let mut came = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        came.extend_from_slice(&data);
        while let Some(text) = message(&mut came) {
            think(&text).await;
            sink.send_data(framed(&format!("{text} from {name}")), false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    sink.send_trailers(trailers)
}

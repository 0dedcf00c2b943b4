//! HTTP/1.1 as a strict client speaks it: a connection is given up once the server says so, and a
//! request is never sent again.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Count, REFUSED};
use crate::PATIENCE;

/// A body of several segments, so that one may be under way when its connection ends.
const BODY_BYTES: usize = 4000;

/// What a connection is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Gets,
    Posts,
    OneGet,
}

/// One connection's life.
pub(super) async fn connection(address: SocketAddr, used: Use, count: &Count) {
    let mut stream = None;
    while !count.stopping() {
        let sent = count.begin();
        let outcome = timeout(
            PATIENCE,
            request(address, &mut stream, (used, &sent.name), count),
        )
        .await;
        let outcome = outcome.unwrap_or_else(|_| Err("timed out".to_owned()));
        let keep = matches!(&outcome, Ok((_, true)));
        count.end(
            &sent,
            outcome.and_then(|(text, _)| count.check(&expected(used, &sent.name), &text)),
        );
        count.rest().await;
        if !keep || used == Use::OneGet {
            return;
        }
    }
}

fn expected(used: Use, path: &str) -> String {
    match used {
        Use::Posts => path.to_owned() + &body(path),
        Use::Gets | Use::OneGet => path.to_owned(),
    }
}

fn body(path: &str) -> String {
    let mut body = path.repeat(BODY_BYTES / path.len());
    body.truncate(BODY_BYTES);
    body
}

/// The answer's body, and whether the server keeps the connection.
async fn request(
    address: SocketAddr,
    kept: &mut Option<TcpStream>,
    (used, path): (Use, &str),
    count: &Count,
) -> Result<(String, bool), String> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let new = TcpStream::connect(address).await;
            let new = new.map_err(|error| format!("{REFUSED}{error}"))?;
            let _ = new.set_nodelay(true);
            kept.insert(new)
        }
    };
    let (request, rest) = match used {
        Use::Gets => (
            format!("GET {path} HTTP/1.1\r\nHost: load\r\n\r\n"),
            String::new(),
        ),
        Use::OneGet => {
            let head = format!("GET {path} HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n");
            (head, String::new())
        }
        Use::Posts => {
            let mut body = body(path);
            let length = body.len();
            let rest = body.split_off(length / 2);
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: load\r\nContent-Length: {length}\r\n\r\n");
            (head + &body, rest)
        }
    };
    let sent = stream.write_all(request.as_bytes()).await;
    sent.map_err(|error| format!("sending: {error}"))?;
    if !rest.is_empty() {
        // What happens may happen within a body.
        tokio::time::sleep(count.pause).await;
        let sent = stream.write_all(rest.as_bytes()).await;
        sent.map_err(|error| format!("sending the rest: {error}"))?;
    }
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let read = stream.read_buf(&mut buffer).await;
        let read = read.map_err(|error| format!("reading: {error}"))?;
        if let Some((head, body)) = whole(&buffer) {
            if !head.starts_with("HTTP/1.1 200") {
                return Err(format!("{head:?} {body:?}"));
            }
            let keep = !head.to_lowercase().contains("connection: close");
            return Ok((body, keep));
        }
        if read == 0 {
            let seen = String::from_utf8_lossy(&buffer);
            return Err(format!("closed before the answer was whole: {seen:?}"));
        }
    }
}

/// Head and body of an answer with a Content-Length, once all of it is there.
fn whole(buffer: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(buffer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length: usize = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    })?;
    (body.len() >= length).then(|| (head.to_owned(), body.to_owned()))
}

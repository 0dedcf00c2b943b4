//! A WebSocket (RFC 6455) that stays: a text frame is sent, and must come back.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Count;
use crate::PATIENCE;

/// The key and its answer of RFC 6455 §1.3: one pair is enough for who checks no other.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Longer ones have their length elsewhere.
const TEXT_BYTES_MAX: usize = 125;
const FINAL_TEXT: u8 = 0x81;
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// Of the handshake's answer.
const HEAD_BYTES_MAX: usize = 4096;

/// One socket's life.
pub(super) async fn connection(address: SocketAddr, count: &Count) {
    let mut socket = None;
    while !count.stopping() {
        let sent = count.begin();
        let outcome = timeout(PATIENCE, exchange(address, &mut socket, &sent.name)).await;
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
}

async fn exchange(
    address: SocketAddr,
    kept: &mut Option<BufReader<TcpStream>>,
    text: &str,
) -> Result<String, String> {
    let socket = match kept {
        Some(socket) => socket,
        None => kept.insert(open(address).await?),
    };
    let sent = socket.write_all(&frame(text, Some(MASK))).await;
    sent.map_err(|error| format!("sending: {error}"))?;
    let read = read_text(socket).await;
    read.map_err(|error| format!("reading: {error}"))
}

async fn open(address: SocketAddr) -> Result<BufReader<TcpStream>, String> {
    let stream = TcpStream::connect(address).await;
    let mut stream = stream.map_err(|error| format!("refused: {error}"))?;
    let _ = stream.set_nodelay(true);
    let request = format!(
        "GET /chat HTTP/1.1\r\nHost: load\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    let sent = stream.write_all(request.as_bytes()).await;
    sent.map_err(|error| format!("opening: {error}"))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        let byte = stream.read_u8().await;
        head.push(byte.map_err(|error| format!("opening: {error}"))?);
    }
    let head = String::from_utf8_lossy(&head);
    if !head.starts_with("HTTP/1.1 101") || !head.contains(ACCEPT) {
        return Err(format!("opening: {head:?}"));
    }
    Ok(BufReader::new(stream))
}

/// A text frame; clients mask theirs.
#[must_use]
pub fn frame(text: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let length = u8::try_from(text.len().min(TEXT_BYTES_MAX)).unwrap_or_default();
    let mut frame = vec![FINAL_TEXT, length | mask.map_or(0, |_| MASKED)];
    frame.extend(mask.iter().flatten());
    let key = mask.unwrap_or_default();
    let masked = text.bytes().zip(key.iter().cycle());
    frame.extend(masked.take(TEXT_BYTES_MAX).map(|(byte, key)| byte ^ key));
    frame
}

/// The next frame, which must be a short text.
pub async fn read_text(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let (kind, length) = (stream.read_u8().await?, stream.read_u8().await?);
    if kind != FINAL_TEXT {
        return Err(io::Error::other(format!("a frame of kind {kind:#x}")));
    }
    let mut key = [0; 4];
    if length & MASKED != 0 {
        stream.read_exact(&mut key).await?;
    }
    let mut text = vec![0; usize::from(length & !MASKED)];
    stream.read_exact(&mut text).await?;
    for (byte, key) in text.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
    String::from_utf8(text).map_err(io::Error::other)
}

//! Bytes that are no protocol a proxy knows: a line is sent, and must come back.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Count, REFUSED};
use crate::PATIENCE;

/// What makes it no request.
pub const FIRST_BYTE: u8 = 1;

/// One connection's life of so many lines at most.
pub(super) async fn connection(address: SocketAddr, lines_max: usize, count: &Count) {
    let mut stream = None;
    for _ in 0..lines_max {
        if count.stopping() {
            return;
        }
        let sent = count.begin();
        let outcome = timeout(PATIENCE, exchange(address, &mut stream, &sent.name)).await;
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
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let new = TcpStream::connect(address).await;
            let new = new.map_err(|error| format!("{REFUSED}{error}"))?;
            let _ = new.set_nodelay(true);
            kept.insert(BufReader::new(new))
        }
    };
    let mut line = vec![FIRST_BYTE];
    line.extend_from_slice(text.as_bytes());
    line.push(b'\n');
    let sent = stream.write_all(&line).await;
    sent.map_err(|error| format!("sending: {error}"))?;
    let mut back = String::new();
    let read = stream.read_line(&mut back).await;
    read.map_err(|error| format!("reading: {error}"))?;
    match back.strip_suffix('\n') {
        Some(line) => Ok(line.trim_start_matches('\u{1}').to_owned()),
        None => Err(format!("closed before the answer was whole: {back:?}")),
    }
}

//! The proxy's access log, read as it grows: it has each request's backend and
//! how long it took, which the metrics do not keep for every backend.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// Read at once; the rest at the next turn.
const CHUNK_BYTES: usize = 256 * 1024;

/// A place in the log up to which it was read.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line whose end is not written yet.
    partial: Vec<u8>,
}

impl Tail {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            partial: Vec::new(),
        }
    }

    /// The requests that were logged since the last call.
    pub fn read(&mut self) -> Vec<(SocketAddr, Duration)> {
        if self.file.is_none() {
            // Not there yet: the proxy has not opened it.
            self.file = File::open(&self.path).ok();
        }
        if let Some(file) = &mut self.file {
            // What an error keeps from us now, the next turn reads.
            let _read = file.take(CHUNK_BYTES as u64).read_to_end(&mut self.partial);
        }
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.partial.split_off(end + 1);
        let lines = std::mem::replace(&mut self.partial, rest);
        lines
            .split(|byte| *byte == b'\n')
            .filter_map(entry)
            .collect()
    }
}

fn entry(line: &[u8]) -> Option<(SocketAddr, Duration)> {
    let line: Value = serde_json::from_slice(line).ok()?;
    let backend = line.get("backend")?.as_str()?.parse().ok()?;
    let micros = line.get("duration_us")?.as_u64()?;
    Some((backend, Duration::from_micros(micros)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_are_read_once_and_whole() {
        let path = std::env::temp_dir().join(format!("weft-demo-tail-{}", std::process::id()));
        let mut tail = Tail::new(&path);
        assert_eq!(tail.read(), []);
        let mut log = File::create(&path).unwrap();
        log.write_all(
            b"{\"backend\":\"127.0.0.1:1\",\"duration_us\":1500}\nnonsense\n{\"backend\":\"127.0",
        )
        .unwrap();
        let first = ("127.0.0.1:1".parse().unwrap(), Duration::from_micros(1500));
        assert_eq!(tail.read(), [first]);
        assert_eq!(tail.read(), []);
        log.write_all(b".0.1:2\",\"duration_us\":2}\n").unwrap();
        let second = ("127.0.0.1:2".parse().unwrap(), Duration::from_micros(2));
        assert_eq!(tail.read(), [second]);
        std::fs::remove_file(&path).unwrap();
    }
}

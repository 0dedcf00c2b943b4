//! The socket where a process that wants to take over asks for ours.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;

use crate::handover::{self, Unpublished};

/// The pause after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Open; to be found only once published.
pub struct Upgrades {
    socket: UnixListener,
    name: Unpublished,
}

impl Upgrades {
    /// Everything that may fail.
    pub fn open(path: &Path) -> io::Result<Self> {
        let opened = handover::listen(path)
            .and_then(|(socket, name)| Ok((UnixListener::from_std(socket)?, name)));
        let (socket, name) = opened.map_err(|error| {
            let what = format!("--upgrade-socket {}: {error}", path.display());
            io::Error::new(error.kind(), what)
        })?;
        Ok(Self { socket, name })
    }

    /// Takes the place of an earlier process's socket. Does not fail: by then
    /// that process has left.
    pub fn publish(&self) {
        if let Err(error) = self.name.publish() {
            tracing::error!(%error, "nobody will find the upgrade socket; replace this process with `kill -USR2`");
        }
    }
}

/// The next process that wants to take over; never without a socket.
pub async fn next(upgrades: Option<&Upgrades>) -> UnixStream {
    let Some(upgrades) = upgrades else {
        return std::future::pending().await;
    };
    loop {
        match upgrades
            .socket
            .accept()
            .await
            .and_then(|(stream, _)| stream.into_std())
        {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::warn!(%error, "the upgrade socket cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

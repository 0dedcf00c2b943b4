//! Listening sockets from one process to the next, so that a replacement
//! refuses no connection.
//!
//! ```text
//!  new                                   old
//!   │ reads its configuration, opens its certificates
//!   ├──────────── connect ───────────────▶│ checks the peer's user
//!   │◀── list of addresses (JSON) ────────┤
//!   │◀── sockets, up to 64 a message ─────┤ goes on accepting
//!   │ starts its workers, accepts         │
//!   ├──────────── READY ─────────────────▶│ stops accepting, drains
//! ```
//!
//! Until READY the old process changes nothing: if the new one dies, or does
//! not like its configuration, nothing has happened. If it waits in vain it
//! says so (GAVE_UP) and stays, and the new one ends. If it ends without a word
//! (a signal, a crash), the new one serves: never are both gone.
//!
//! A kernel socket lives as long as any process holds it, so what waits in a
//! backlog is accepted by whichever accepts first.
//!
//! In a container the first process must stay: when PID 1 ends, the container
//! ends. There, replace the container (a rolling update), or run the new one
//! beside it with a shared `--upgrade-socket`.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::sockets::Group;

/// Sockets a message; the kernel's own limit is 253 (SCM_MAX_FD).
const SOCKETS_PER_MESSAGE: usize = 64;
/// Sockets in all; a list that promises more is not one of ours.
const SOCKETS_MAX: usize = 16_384;
const LIST_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// One step of the exchange.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the new process may take to become ready.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY: u8 = b'R';
const GAVE_UP: u8 = b'G';
const VERSION: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("the exchange with the other process failed")]
    Io(#[from] io::Error),
    #[error(
        "the other process runs as user {theirs}, not {ours}; only the same user may take over"
    )]
    User { ours: u32, theirs: u32 },
    #[error("the other process is not a weft-proxy that we understand: {0}")]
    Protocol(&'static str),
    #[error("the other process did not wait any longer and goes on; start this one again")]
    TooLate,
}

/// What one process gives to the next.
#[derive(Debug)]
pub struct Given {
    pub listeners: Vec<(SocketAddr, TcpListener)>,
    pub admin: Option<TcpListener>,
}

/// What was taken over, and the way to say that it is in use.
#[derive(Debug)]
pub struct Taken {
    pub listeners: HashMap<SocketAddr, Group>,
    pub admin: Option<TcpListener>,
    old: UnixStream,
}

/// Gives `given` to the process behind `stream` and waits until it is ready.
/// Blocks: to be called off the control thread.
pub fn give(mut stream: UnixStream, given: &Given) -> Result<(), HandoverError> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    check_user(&stream)?;
    let names: Vec<String> = given
        .listeners
        .iter()
        .map(|(address, _)| address.to_string())
        .chain(given.admin.iter().map(|_| "admin".to_owned()))
        .collect();
    let list = serde_json::json!({ "version": VERSION, "sockets": names }).to_string();
    let length = u32::try_from(list.len())
        .ok()
        .filter(|length| *length <= LIST_BYTES_MAX && names.len() <= SOCKETS_MAX)
        .ok_or(HandoverError::Protocol("too many sockets"))?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(list.as_bytes())?;
    let sockets: Vec<BorrowedFd<'_>> = given
        .listeners
        .iter()
        .map(|(_, socket)| socket.as_fd())
        .chain(given.admin.iter().map(AsFd::as_fd))
        .collect();
    for batch in sockets.chunks(SOCKETS_PER_MESSAGE) {
        send_batch(&stream, batch)?;
    }
    stream.set_read_timeout(Some(READY_TIMEOUT))?;
    let mut answer = [0];
    let read = stream.read_exact(&mut answer);
    if read.is_ok() && answer == [READY] {
        return Ok(());
    }
    // It must not serve beside us. If it is gone there is nobody to tell.
    let _ = stream.write_all(&[GAVE_UP]);
    read?;
    Err(HandoverError::Protocol("no READY"))
}

fn check_user(stream: &UnixStream) -> Result<(), HandoverError> {
    let theirs = rustix::net::sockopt::socket_peercred(stream).map_err(io::Error::from)?;
    let (ours, theirs) = (rustix::process::geteuid().as_raw(), theirs.uid.as_raw());
    if ours == theirs {
        Ok(())
    } else {
        Err(HandoverError::User { ours, theirs })
    }
}

fn send_batch(stream: &UnixStream, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("the control buffer is too small"));
    }
    // Sockets travel with at least one byte.
    let count = [u8::try_from(sockets.len()).unwrap_or(u8::MAX)];
    sendmsg(
        stream,
        &[IoSlice::new(&count)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Takes the sockets of the process that listens at `path`; `None` if there is
/// none.
pub fn take_from(path: &Path) -> Result<Option<Taken>, HandoverError> {
    match UnixStream::connect(path) {
        Ok(stream) => take(stream).map(Some),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Takes the sockets of the process behind `stream`.
pub fn take(mut stream: UnixStream) -> Result<Taken, HandoverError> {
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    check_user(&stream)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > LIST_BYTES_MAX {
        return Err(HandoverError::Protocol("the list is too long"));
    }
    let mut list = vec![0; length as usize];
    stream.read_exact(&mut list)?;
    let names = parse_list(&list)?;
    let mut sockets = Vec::with_capacity(names.len());
    while sockets.len() < names.len() {
        if receive_batch(&stream, &mut sockets)? == 0 {
            return Err(HandoverError::Protocol("fewer sockets than listed"));
        }
    }
    let mut listeners: HashMap<SocketAddr, Group> = HashMap::new();
    let mut admin = None;
    for (name, socket) in names.into_iter().zip(sockets) {
        let socket = TcpListener::from(socket);
        match name {
            Some(address) => listeners.entry(address).or_default().push(socket),
            None => admin = Some(socket),
        }
    }
    Ok(Taken {
        listeners,
        admin,
        old: stream,
    })
}

/// The addresses listed; `None` is the admin socket.
fn parse_list(list: &[u8]) -> Result<Vec<Option<SocketAddr>>, HandoverError> {
    let list: serde_json::Value =
        serde_json::from_slice(list).map_err(|_| HandoverError::Protocol("not JSON"))?;
    if list.get("version").and_then(serde_json::Value::as_u64) != Some(VERSION) {
        return Err(HandoverError::Protocol("another version of the exchange"));
    }
    let names = list.get("sockets").and_then(serde_json::Value::as_array);
    let names = names.filter(|names| names.len() <= SOCKETS_MAX);
    names
        .ok_or(HandoverError::Protocol("no list of sockets"))?
        .iter()
        .map(|name| match name.as_str() {
            Some("admin") => Ok(None),
            Some(address) => address
                .parse()
                .map(Some)
                .map_err(|_| HandoverError::Protocol("a bad address")),
            None => Err(HandoverError::Protocol("a bad address")),
        })
        .collect()
}

/// Adds the sockets of one message; how many came.
fn receive_batch(stream: &UnixStream, sockets: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    let before = sockets.len();
    recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    Ok(sockets.len() - before)
}

impl Taken {
    /// Tells the old process that everything is in use, so it can leave. Fails
    /// only if it has said that it stays; if it is gone, we serve all the more.
    pub fn ready(mut self) -> Result<(), HandoverError> {
        let Err(error) = self.old.write_all(&[READY]) else {
            return Ok(());
        };
        let mut last = [0];
        match self.old.read_exact(&mut last) {
            Ok(()) if last == [GAVE_UP] => Err(HandoverError::TooLate),
            _ => {
                tracing::warn!(%error, "the old process ended before the handover was complete");
                Ok(())
            }
        }
    }
}

/// The name that a socket will have for the process that takes over.
#[derive(Debug)]
pub struct Unpublished {
    fresh: PathBuf,
    path: PathBuf,
}

impl Unpublished {
    /// From here on others find the socket: it takes the place of an earlier
    /// process's without a gap.
    pub fn publish(&self) -> io::Result<()> {
        std::fs::rename(&self.fresh, &self.path)
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        // Published, it is no longer there.
        let _ = std::fs::remove_file(&self.fresh);
    }
}

/// Listens for the process that will take over, for this user only. Nobody
/// finds it at `path` before it is published.
pub fn listen(path: &Path) -> io::Result<(UnixListener, Unpublished)> {
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    let name = Unpublished {
        fresh,
        path: path.to_owned(),
    };
    std::fs::set_permissions(&name.fresh, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok((listener, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn given(count: usize) -> Given {
        let first = listener();
        let address = first.local_addr().unwrap();
        let mut listeners = vec![(address, first)];
        for _ in 1..count {
            let another = listeners[0].1.try_clone().unwrap();
            listeners.push((address, another));
        }
        Given {
            listeners,
            admin: Some(listener()),
        }
    }

    #[test]
    fn connections_cross_the_handover() {
        // More than one message, and not a multiple of its size.
        let given = given(SOCKETS_PER_MESSAGE * 2 + 3);
        let address = given.listeners[0].0;
        let waiting = TcpStream::connect(address).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let old = std::thread::spawn(move || give(near, &given).map(|()| drop(given)));
        let taken = take(far).unwrap();
        assert_eq!(taken.listeners[&address].len(), SOCKETS_PER_MESSAGE * 2 + 3);
        assert!(taken.admin.is_some());
        let socket = taken.listeners[&address][0].try_clone().unwrap();
        taken.ready().unwrap();
        old.join().unwrap().unwrap();
        // It was in the backlog before; the old process is gone by now.
        let (_, peer) = socket.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    }

    #[test]
    fn a_new_process_that_dies_changes_nothing() {
        let given = given(1);
        let address = given.listeners[0].0;
        let (near, far) = UnixStream::pair().unwrap();
        let old = std::thread::spawn(move || (give(near, &given), given));
        drop(take(far).unwrap());
        let (result, given) = old.join().unwrap();
        assert!(matches!(result, Err(HandoverError::Io(_))));
        TcpStream::connect(address).unwrap();
        given.listeners[0].1.accept().unwrap();
    }

    #[test]
    fn a_new_process_serves_when_the_old_one_is_gone_but_not_beside_it() {
        for gives_up in [false, true] {
            let given = given(1);
            let (near, far) = UnixStream::pair().unwrap();
            let other = near.try_clone().unwrap();
            let old = std::thread::spawn(move || give(other, &given));
            let taken = take(far).unwrap();
            // Its wait for READY is over: by its end, or by the time.
            near.shutdown(std::net::Shutdown::Read).unwrap();
            assert!(old.join().unwrap().is_err());
            if !gives_up {
                // What a process that dies has not said.
                let mut word = [0];
                (&taken.old).read_exact(&mut word).unwrap();
                assert_eq!(word, [GAVE_UP]);
            }
            drop(near);
            assert_eq!(taken.ready().is_err(), gives_up);
        }
    }

    #[test]
    fn the_socket_is_ours_alone_and_replaced_without_a_gap() {
        let path = std::env::temp_dir().join(format!("weft-upgrade-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        assert!(take_from(&path).unwrap().is_none());
        let (first, name) = listen(&path).unwrap();
        assert!(!path.exists(), "not before it is published");
        name.publish().unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (second, name) = listen(&path).unwrap();
        name.publish().unwrap();
        UnixStream::connect(&path).unwrap();
        second.accept().unwrap();
        assert!(first.accept().is_err());
        let (_, unused) = listen(&path).unwrap();
        let fresh = unused.fresh.clone();
        drop(unused);
        assert!(!fresh.exists() && path.exists());
        drop(second);
        assert!(
            take_from(&path).unwrap().is_none(),
            "a stale socket is no process"
        );
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn rubbish_is_refused() {
        for list in [
            &b"x"[..],
            b"{}",
            br#"{"version":2,"sockets":[]}"#,
            br#"{"version":1,"sockets":["x"]}"#,
            br#"{"version":1,"sockets":[1]}"#,
        ] {
            assert!(parse_list(list).is_err());
        }
    }
}

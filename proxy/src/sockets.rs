//! The listening sockets of the process: opened, taken over, handed on.
//!
//! Every listener has one socket a worker (SO_REUSEPORT): the kernel spreads
//! connections over them, and no worker waits for another. The originals stay
//! here for as long as the address is configured; workers get duplicates.
//!
//! **Invariant:** a kernel socket of a configured address is never without
//! somebody who accepts on it, or what waits in its backlog would be lost.
//! So a process that takes over adopts all sockets of an address, even if it
//! has fewer workers than the one before.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use weft_config::snapshot::Snapshot;

/// Connections that wait to be accepted; the kernel clamps it to somaxconn.
const BACKLOG: i32 = 4096;

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "{address} is already in use by another process; stop that one (`ss -ltnp` names it), \
         choose another address, or replace a running weft-proxy with --upgrade-socket or \
         `kill -USR2`"
    )]
    InUse { address: SocketAddr },
    #[error(
        "{address}: permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE, or a lower \
         net.ipv4.ip_unprivileged_port_start"
    )]
    Permission { address: SocketAddr },
    #[error("{address} is not an address of this host; `ip addr` lists those that are")]
    NotOurs { address: SocketAddr },
    #[error("{address} cannot be listened on")]
    Other {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    fn new(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { address },
            io::ErrorKind::PermissionDenied => Self::Permission { address },
            io::ErrorKind::AddrNotAvailable => Self::NotOurs { address },
            _ => Self::Other { address, source },
        }
    }
}

/// Whether this kernel knows IPv6 (`ipv6.disable=1` takes it away).
pub fn has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).is_ok()
}

/// What tells the sockets of one listener from another's. With port 0 every
/// listener has a port of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    address: SocketAddr,
    name: Option<Arc<str>>,
}

impl Key {
    pub fn of(name: &Arc<str>, address: SocketAddr) -> Self {
        Self {
            address,
            name: (address.port() == 0).then(|| Arc::clone(name)),
        }
    }
}

/// Sockets by what they listen on.
pub type Group = Vec<TcpListener>;

/// A change of the sockets, made ready but not yet in force.
#[derive(Debug, Default)]
pub struct Prepared {
    opened: HashMap<Key, Group>,
}

/// All listening sockets.
#[derive(Debug, Default)]
pub struct Sockets {
    groups: HashMap<Key, Group>,
}

impl Sockets {
    /// Opens what `snapshot` needs and is neither open nor among `inherited`.
    /// Nothing is in force until [`Sockets::commit`]; on errors nothing stays.
    pub fn prepare(
        &self,
        snapshot: &Snapshot,
        worker_count: usize,
        inherited: &mut HashMap<SocketAddr, Group>,
    ) -> Result<Prepared, Vec<(Arc<str>, SocketError)>> {
        let mut prepared = Prepared::default();
        let mut errors = Vec::new();
        for listener in snapshot.bound_listeners() {
            let key = Key::of(&listener.name, listener.address);
            if self.groups.contains_key(&key) {
                continue;
            }
            if let Some(mut group) = inherited.remove(&listener.address) {
                top_up(&mut group, worker_count);
                prepared.opened.insert(key, group);
                continue;
            }
            match open_group(listener.address, worker_count) {
                Ok(group) => {
                    prepared.opened.insert(key, group);
                }
                Err(error) => errors.push((Arc::clone(&listener.name), error)),
            }
        }
        if errors.is_empty() {
            Ok(prepared)
        } else {
            Err(errors)
        }
    }

    /// Takes what was prepared and closes what `snapshot` does not name.
    pub fn commit(&mut self, prepared: Prepared, snapshot: &Snapshot) {
        self.groups.extend(prepared.opened);
        let wanted: std::collections::HashSet<Key> = snapshot
            .listeners
            .iter()
            .map(|listener| Key::of(&listener.name, listener.address))
            .collect();
        self.groups.retain(|key, _| wanted.contains(key));
    }

    pub fn group(&self, key: &Key) -> &[TcpListener] {
        self.groups.get(key).map_or(&[], Vec::as_slice)
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Duplicates of all sockets, for the process that takes over.
    pub fn duplicates(&self) -> io::Result<Vec<(SocketAddr, TcpListener)>> {
        let mut all = Vec::new();
        for (key, group) in &self.groups {
            for socket in group {
                all.push((key.address, socket.try_clone()?));
            }
        }
        Ok(all)
    }

    /// Closes our side of all sockets.
    pub fn close(&mut self) {
        self.groups.clear();
    }
}

/// One socket for each worker.
fn open_group(address: SocketAddr, worker_count: usize) -> Result<Group, SocketError> {
    let error = |source| SocketError::new(address, source);
    // With SO_REUSEPORT a second process of the same user would silently share
    // the port; without it the kernel says that the port is taken.
    let probe = open(address, false).map_err(error)?;
    let bound = probe.local_addr().map_err(error)?;
    drop(probe);
    (0..worker_count.max(1))
        .map(|_| open(bound, true).map_err(error))
        .collect()
}

/// Opens what a group lacks for every worker to have a socket. One that cannot
/// be opened leaves its worker without this listener; the others carry it.
fn top_up(group: &mut Group, worker_count: usize) {
    while group.len() < worker_count {
        let opened = group.first().map(TcpListener::local_addr);
        match opened.map(|address| address.and_then(|address| open(address, true))) {
            Some(Ok(socket)) => group.push(socket),
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot add a socket to an inherited listener");
                return;
            }
            None => return,
        }
    }
}

/// A socket for the admin server: one, and nobody else's.
pub fn open_admin(address: SocketAddr) -> Result<TcpListener, SocketError> {
    open(address, false).map_err(|error| SocketError::new(address, error))
}

fn open(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A listener that was just closed leaves connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;
    use crate::state::tests::runtime;

    fn snapshot(listeners: &[(&str, SocketAddr)]) -> Arc<Snapshot> {
        let listeners: String = listeners
            .iter()
            .map(|(name, address)| {
                format!("- {{name: {name}, address: '{address}', service: a}}\n")
            })
            .collect();
        let yaml = format!(
            "listeners:\n{listeners}services:\n- {{name: a, endpoints: [{{address: '10.0.0.1:80'}}]}}\n"
        );
        runtime(&yaml, None).expect("good configuration").snapshot
    }

    /// Below the kernel's ephemeral range: no connection takes it before it is bound. Given out once.
    fn free_port() -> SocketAddr {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = u16::try_from(std::process::id() % 8_000).unwrap();
        let mut ports =
            (0..8_000).map(|_| 15_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 8_000);
        let free = ports.find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
        free.unwrap().local_addr().unwrap()
    }

    #[test]
    fn one_socket_a_worker_and_only_what_is_wanted() {
        let (a, b) = (free_port(), free_port());
        let mut sockets = Sockets::default();
        let first = snapshot(&[("a", a), ("b", b)]);
        let prepared = sockets.prepare(&first, 3, &mut HashMap::new()).unwrap();
        sockets.commit(prepared, &first);
        assert_eq!(sockets.group(&Key::of(&"a".into(), a)).len(), 3);
        assert_eq!(sockets.duplicates().unwrap().len(), 6);
        let second = snapshot(&[("renamed", b)]);
        let prepared = sockets.prepare(&second, 3, &mut HashMap::new()).unwrap();
        assert!(prepared.opened.is_empty());
        sockets.commit(prepared, &second);
        assert_eq!(sockets.group(&Key::of(&"renamed".into(), b)).len(), 3);
        assert!(sockets.group(&Key::of(&"a".into(), a)).is_empty());
        TcpListener::bind(a).expect("the port is free again");
    }

    #[test]
    fn a_port_in_use_is_an_error_even_with_our_own_options() {
        let address = free_port();
        let _ours = open_group(address, 2).unwrap();
        let wanted = snapshot(&[("a", address), ("b", free_port())]);
        let errors = Sockets::default()
            .prepare(&wanted, 2, &mut HashMap::new())
            .unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!(&*errors[0].0, "a");
        assert!(
            errors[0].1.to_string().contains("already in use"),
            "{}",
            errors[0].1
        );
    }

    #[test]
    fn inherited_sockets_are_adopted_whole() {
        let address = free_port();
        let mut inherited = HashMap::from([(address, open_group(address, 4).unwrap())]);
        let wanted = snapshot(&[("a", address)]);
        let mut sockets = Sockets::default();
        let prepared = sockets.prepare(&wanted, 1, &mut inherited).unwrap();
        sockets.commit(prepared, &wanted);
        assert_eq!(sockets.group(&Key::of(&"a".into(), address)).len(), 4);
    }

    #[test]
    fn an_address_of_another_host_says_so() {
        let error = open_group("192.0.2.1:80".parse().unwrap(), 1).unwrap_err();
        assert!(
            matches!(
                error,
                SocketError::NotOurs { .. } | SocketError::Permission { .. }
            ),
            "{error}"
        );
    }
}

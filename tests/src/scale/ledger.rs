//! What the proxies of a run have come to: who has everything, how long each change took, and
//! whether anybody was told what it should not be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use weft_config::xds::DeltaDiscoveryResponse;

/// Mistakes that are kept; the rest are counted.
const MISTAKES_SHOWN_MAX: usize = 10;
const PENDING_SHOWN_MAX: usize = 3;
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A change that is under way: the port, and whether its endpoint is listed after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub port: String,
    pub address: SocketAddr,
    pub listed: bool,
}

#[derive(Debug)]
struct Pending {
    change: Change,
    begun: Instant,
    /// Who uses the service and has yet to have it in force.
    awaited: BTreeSet<usize>,
}

/// What was received, by all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    pub responses: u64,
    pub resources: u64,
    pub bytes: u64,
    /// Of the bytes: the resources alone, and the names of those that are gone. How many share a
    /// response, and what else is in it, is a matter of luck.
    pub resource_bytes: u64,
}

#[derive(Debug, Default)]
struct Books {
    synced: BTreeSet<usize>,
    connected: BTreeSet<usize>,
    connections: u64,
    failures: u64,
    last_failure: String,
    /// By port: one change of a service at a time.
    pending: BTreeMap<String, Pending>,
    took: Vec<Duration>,
    received: Received,
    mistakes: Vec<String>,
    mistakes_count: u64,
}

#[derive(Debug, Default)]
pub struct Ledger(Mutex<Books>);

/// How all stands.
#[derive(Clone, Debug)]
pub struct Standing {
    pub synced: usize,
    pub connected: usize,
    /// Streams opened since the start.
    pub connections: u64,
    pub failures: u64,
    pub last_failure: String,
    pub pending: usize,
    pub received: Received,
}

impl Ledger {
    fn write<T>(&self, note: impl FnOnce(&mut Books) -> T) -> T {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn synced(&self, proxy: usize) {
        self.write(|books| books.synced.insert(proxy));
    }

    pub fn connected(&self, proxy: usize) {
        self.write(|books| {
            books.connections += 1;
            books.connected.insert(proxy);
        });
    }

    pub fn disconnected(&self, proxy: usize, why: &str) {
        self.write(|books| {
            books.connected.remove(&proxy);
            books.failures += 1;
            why.clone_into(&mut books.last_failure);
        });
    }

    pub fn received(&self, response: &DeltaDiscoveryResponse) {
        let (resources, gone) = (&response.resources, &response.removed_resources);
        let bytes = resources.iter().map(Message::encoded_len);
        let resource_bytes = bytes.sum::<usize>() + gone.iter().map(String::len).sum::<usize>();
        self.write(|books| {
            books.received.responses += 1;
            books.received.resources += (resources.len() + gone.len()) as u64;
            books.received.bytes += response.encoded_len() as u64;
            books.received.resource_bytes += resource_bytes as u64;
        });
    }

    pub fn mistake(&self, what: String) {
        self.write(|books| {
            books.mistakes_count += 1;
            if books.mistakes.len() < MISTAKES_SHOWN_MAX {
                books.mistakes.push(what);
            }
        });
    }

    /// A change is about to be written, which these proxies have to hear of.
    pub fn begin(&self, change: Change, users: BTreeSet<usize>) {
        let pending = Pending {
            change,
            begun: Instant::now(),
            awaited: users,
        };
        self.write(|books| {
            let port = pending.change.port.clone();
            if pending.awaited.is_empty() || books.pending.insert(port, pending).is_some() {
                books.mistakes_count += 1;
            }
        });
    }

    /// A proxy has these endpoints of a port in force.
    pub fn in_force(&self, proxy: usize, port: &str, endpoints: &BTreeSet<SocketAddr>) {
        self.write(|books| {
            let Some(pending) = books.pending.get_mut(port) else {
                return;
            };
            if endpoints.contains(&pending.change.address) != pending.change.listed {
                return;
            }
            pending.awaited.remove(&proxy);
            if pending.awaited.is_empty()
                && let Some(done) = books.pending.remove(port)
            {
                books.took.push(done.begun.elapsed());
            }
        });
    }

    /// Whether a service has a change under way.
    pub fn is_pending(&self, port: &str) -> bool {
        self.write(|books| books.pending.contains_key(port))
    }

    /// What the changes since the last question took.
    pub fn took(&self) -> Vec<Duration> {
        self.write(|books| std::mem::take(&mut books.took))
    }

    pub fn standing(&self) -> Standing {
        self.write(|books| standing(books))
    }

    /// What should not have been, if anything.
    pub fn mistakes(&self) -> Vec<String> {
        self.write(|books| {
            let mut shown = books.mistakes.clone();
            if books.mistakes_count > shown.len() as u64 {
                shown.push(format!("{} in all", books.mistakes_count));
            }
            shown
        })
    }

    /// Waits until all stands as it should.
    pub fn until(
        &self,
        patience: Duration,
        what: &str,
        is_so: impl Fn(&Standing) -> bool,
    ) -> Result<Standing, String> {
        let deadline = Instant::now() + patience;
        loop {
            let now = self.standing();
            if is_so(&now) {
                return Ok(now);
            }
            if Instant::now() > deadline {
                let shown = self.write(|books| {
                    let pending = books.pending.values().take(PENDING_SHOWN_MAX);
                    format!("{:?}", pending.collect::<Vec<_>>())
                });
                return Err(format!("never came: {what}; {now:?}, {shown}"));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

fn standing(books: &Books) -> Standing {
    Standing {
        synced: books.synced.len(),
        connected: books.connected.len(),
        connections: books.connections,
        failures: books.failures,
        last_failure: books.last_failure.clone(),
        pending: books.pending.len(),
        received: books.received,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_come_through_when_all_who_use_it_have_it_in_force() {
        let ledger = Ledger::default();
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let gone = || Change {
            port: "a/b:80".to_owned(),
            address,
            listed: false,
        };
        let (with, without) = (BTreeSet::from([address]), BTreeSet::new());
        ledger.begin(gone(), BTreeSet::from([1, 2]));
        // As it was, another port, and who is not waited for.
        ledger.in_force(1, "a/b:80", &with);
        ledger.in_force(2, "a/c:80", &without);
        ledger.in_force(3, "a/b:80", &without);
        ledger.in_force(2, "a/b:80", &without);
        assert!(ledger.is_pending("a/b:80"));
        ledger.in_force(1, "a/b:80", &without);
        assert!(!ledger.is_pending("a/b:80"));
        assert_eq!(ledger.took().len(), 1);
        assert!(ledger.mistakes().is_empty());
        // Nobody would ever end these.
        ledger.begin(gone(), BTreeSet::new());
        ledger.begin(gone(), BTreeSet::from([1]));
        ledger.begin(gone(), BTreeSet::from([1]));
        assert_eq!(ledger.mistakes(), ["2 in all"]);
    }
}

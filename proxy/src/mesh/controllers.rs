//! Where the controllers are, the best first. A name stands for all of its addresses, and is
//! resolved anew at each attempt, in Rust alone: there is no libc resolver in an empty image.
//!
//! Names come in the order of the configuration, and a name's addresses in an order of this
//! workload's own (rendezvous hashing): workloads are spread over them evenly, and only those of a
//! controller that goes or comes change places.
//!
//! **Invariant:** a name that cannot be resolved now keeps the addresses that it had.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::FixedState;
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::health::with_sources;
use crate::resolve::SharedResolver;

/// Addresses in use; there are a handful of controllers, whatever DNS says.
const ADDRESSES_MAX: usize = 16;
const RESOLVE_MAX: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Controllers {
    /// `host:port`, as configured.
    names: Vec<Arc<str>>,
    resolver: SharedResolver,
    /// The last good answers.
    known: Mutex<BTreeMap<Arc<str>, Vec<SocketAddr>>>,
    /// Whose order it is.
    workload: Arc<str>,
}

impl Controllers {
    pub fn new(names: &[Arc<str>], workload: &Arc<str>, resolver: SharedResolver) -> Self {
        Self {
            names: names.to_vec(),
            resolver,
            known: Mutex::default(),
            workload: Arc::clone(workload),
        }
    }

    /// All of them, the best first.
    pub async fn addresses(&self) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for name in &self.names {
            match name.parse() {
                Ok(address) => all.push(address),
                Err(_) => all.extend(self.resolve(name).await),
            }
        }
        all.truncate(ADDRESSES_MAX);
        all
    }

    /// The one for an attempt, the next for the next. `lost`: the one to come to last.
    pub async fn choose(
        &self,
        attempt: usize,
        lost: Option<SocketAddr>,
    ) -> Result<(SocketAddr, usize), String> {
        let mut all = self.addresses().await;
        // Stable: the others keep their order.
        all.sort_by_key(|address| Some(*address) == lost);
        let index = attempt.checked_rem(all.len()).unwrap_or(0);
        match all.get(index) {
            Some(address) => Ok((*address, all.len())),
            None => Err(format!(
                "settings.mesh.controllers: {} has no address yet",
                self.names.join(", ")
            )),
        }
    }

    async fn resolve(&self, name: &Arc<str>) -> Vec<SocketAddr> {
        let (host, port) = name.rsplit_once(':').unwrap_or((name, ""));
        let Ok(port) = port.parse() else {
            return Vec::new();
        };
        let problem = match timeout(RESOLVE_MAX, self.resolver.addresses(host)).await {
            Ok(Ok(found)) if !found.is_empty() => {
                let found = found.into_iter().map(|ip| SocketAddr::new(ip, port));
                let mut found: Vec<SocketAddr> = found.collect();
                sort(&mut found, &self.workload);
                self.known.lock().insert(Arc::clone(name), found.clone());
                return found;
            }
            Ok(Ok(_)) => "it has no addresses".to_owned(),
            Ok(Err(error)) => with_sources(&error),
            Err(_) => format!("no answer within {RESOLVE_MAX:?}"),
        };
        let known = self.known.lock().get(name).cloned().unwrap_or_default();
        tracing::warn!(%name, %problem, known = known.len(), "cannot resolve a controller's name; the addresses that it had count");
        known
    }
}

/// Puts addresses into a workload's own order, each once.
fn sort(addresses: &mut Vec<SocketAddr>, workload: &str) {
    let hasher = FixedState::default();
    addresses.sort_by_cached_key(|address| (hasher.hash_one((workload, address)), *address));
    addresses.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::tests::{Zone, server};

    #[tokio::test]
    async fn a_name_stands_for_all_of_its_addresses_and_for_those_it_had() {
        let zone = Arc::new(Mutex::new(Zone {
            addresses: vec![[127, 0, 0, 3], [127, 0, 0, 2]],
            ..Zone::default()
        }));
        let names = ["127.0.0.1:1".into(), "controllers.test:2".into()];
        let controllers =
            Controllers::new(&names, &"web-1".into(), server(Arc::clone(&zone)).await);
        let sorted = async || {
            let mut all = controllers.addresses().await;
            all.sort_unstable();
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            sorted().await,
            ["127.0.0.1:1", "127.0.0.2:2", "127.0.0.3:2"]
        );
        let mut chosen = Vec::new();
        for attempt in 0..3 {
            chosen.push(controllers.choose(attempt, None).await.unwrap().0);
        }
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen.len(), 3, "each has its turn");
        let lost = controllers.choose(0, None).await.unwrap().0;
        let mut others = Vec::new();
        for attempt in 0..3 {
            others.push(controllers.choose(attempt, Some(lost)).await.unwrap().0);
        }
        assert_eq!(others[2], lost, "the one that was lost comes last");
        zone.lock().fails = true;
        assert_eq!(sorted().await.len(), 3);
        *zone.lock() = Zone {
            addresses: vec![[127, 0, 0, 4]],
            ..Zone::default()
        };
        assert_eq!(sorted().await, ["127.0.0.1:1", "127.0.0.4:2"]);
    }

    #[tokio::test]
    async fn without_an_address_it_says_whose() {
        let zone = Arc::new(Mutex::new(Zone::default()));
        let names = ["nobody.test:2".into()];
        let controllers = Controllers::new(&names, &"web-1".into(), server(zone).await);
        let problem = controllers.choose(0, None).await.unwrap_err();
        assert!(problem.contains("nobody.test:2"), "{problem}");
    }

    #[test]
    fn workloads_are_spread_evenly_and_move_only_when_theirs_goes() {
        let all: Vec<SocketAddr> = (1..=3).map(|of| ([10, 0, 0, of], 1).into()).collect();
        let first = |of: &[SocketAddr], workload: usize| {
            let mut of = of.to_vec();
            sort(&mut of, &format!("web-{workload}"));
            of[0]
        };
        for controller in &all {
            let theirs = (0..3000).filter(|workload| first(&all, *workload) == *controller);
            let count = theirs.count();
            assert!((900..1100).contains(&count), "{count} at {controller}");
        }
        let (gone, left) = (all[2], &all[..2]);
        for workload in 0..3000 {
            let before = first(&all, workload);
            assert!(before == gone || first(left, workload) == before);
        }
    }
}

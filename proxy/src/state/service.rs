//! One service as it runs: its endpoints with their state, its budget and
//! limits, its TLS, and the identity of its connection pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use weft_config::snapshot::{self, Endpoint};

use super::endpoints;
use crate::logic::balance::EndpointSet;
use crate::logic::limit::Circuit;
use crate::logic::retry::Budget;
use crate::logic::time::Nanos;
use crate::net::tls::{ClientTls, FileError};

#[derive(Debug)]
pub struct ServiceState {
    pub config: Arc<snapshot::Service>,
    /// Changes only with what makes old connections unusable: the protocol,
    /// TLS, the PROXY protocol.
    pub pool_id: u64,
    /// Shared with the generation before: a request that has begun with that one
    /// tries again where endpoints are now.
    pub endpoints: Arc<ArcSwap<EndpointSet>>,
    /// What `endpoints` are to be once this is published.
    next: Mutex<Option<EndpointSet>>,
    pub budget: Arc<Budget>,
    pub circuit: Arc<Circuit>,
    pub tls: Option<Arc<ClientTls>>,
    zone: Arc<str>,
    /// The last good answer of DNS.
    resolved: Mutex<Vec<Endpoint>>,
}

impl ServiceState {
    /// `previous`: the service of the same name that ran until now, and goes on
    /// running unchanged until `commit`.
    pub fn build(
        config: &Arc<snapshot::Service>,
        zone: &Arc<str>,
        previous: Option<&Self>,
        now: Nanos,
    ) -> Result<Self, Vec<FileError>> {
        let tls = match (&config.tls, previous.and_then(|old| old.tls.as_ref())) {
            (None, _) => None,
            (Some(settings), Some(old)) if old.is_for(settings) => Some(Arc::clone(old)),
            (Some(settings), _) => Some(Arc::new(ClientTls::open(settings)?)),
        };
        let resolved = match previous {
            Some(old) if old.config.dns == config.dns => old.resolved.lock().clone(),
            _ => Vec::new(),
        };
        let known = previous
            .map(|old| endpoints::known(&old.endpoints.load()))
            .unwrap_or_default();
        let policy = (&config.balancer, zone.as_ref());
        let set = endpoints::merge(&config.endpoints, &resolved, &known, policy, now);
        let circuit = match previous {
            Some(old) => Arc::clone(&old.circuit),
            None => Arc::new(Circuit::new(&config.limits)),
        };
        let budget = match previous {
            Some(old) if old.config.retry_budget == config.retry_budget => Arc::clone(&old.budget),
            _ => Arc::new(Budget::new(&config.retry_budget)),
        };
        let (endpoints, next) = match previous {
            Some(old) => (Arc::clone(&old.endpoints), Some(set)),
            None => (Arc::new(ArcSwap::from_pointee(set)), None),
        };
        Ok(Self {
            pool_id: pool_id(config, previous),
            config: Arc::clone(config),
            endpoints,
            next: Mutex::new(next),
            budget,
            circuit,
            tls,
            zone: Arc::clone(zone),
            resolved: Mutex::new(resolved),
        })
    }

    /// Changes what is shared with the generation before: the limits, the
    /// endpoints' weights and decay.
    pub(super) fn commit(&self) {
        self.circuit.set_limits(&self.config.limits);
        if let Some(set) = self.next.lock().take() {
            self.endpoints.store(Arc::new(set));
        }
        self.endpoints.load().commit();
    }

    /// Takes the endpoints that a controller lists now.
    pub fn set_listed(&self, listed: Vec<Endpoint>, now: Nanos) {
        let resolved = self.resolved.lock();
        let known = endpoints::known(&self.endpoints.load());
        let policy = (&self.config.balancer, self.zone.as_ref());
        let set = endpoints::merge(&listed, &resolved, &known, policy, now);
        set.commit();
        self.endpoints.store(Arc::new(set));
    }

    /// Takes a new answer of DNS; true if the set of endpoints changed.
    pub fn set_resolved(&self, answer: Vec<Endpoint>, now: Nanos) -> bool {
        let mut resolved = self.resolved.lock();
        if same(&resolved, &answer) {
            return false;
        }
        let known = endpoints::known(&self.endpoints.load());
        let policy = (&self.config.balancer, self.zone.as_ref());
        let set = endpoints::merge(&self.config.endpoints, &answer, &known, policy, now);
        set.commit();
        self.endpoints.store(Arc::new(set));
        *resolved = answer;
        true
    }
}

fn same(left: &[Endpoint], right: &[Endpoint]) -> bool {
    left.len() == right.len() && left.iter().all(|endpoint| right.contains(endpoint))
}

fn pool_id(config: &snapshot::Service, previous: Option<&ServiceState>) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    match previous {
        Some(old)
            if old.config.protocol == config.protocol
                && old.config.tls == config.tls
                && old.config.send_proxy_protocol == config.send_proxy_protocol =>
        {
            old.pool_id
        }
        _ => NEXT.fetch_add(1, Ordering::Relaxed),
    }
}

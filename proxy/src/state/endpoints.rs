//! The endpoints of one service from all their sources, as one set.
//!
//! **Invariant:** an address that stays keeps its state, whichever source
//! lists it and whatever else changes, unless it is another workload's now; and a set that is made changes nothing in
//! the states, until it is committed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use weft_config::snapshot::{Balancer, Endpoint, Peer};

use crate::logic::balance::{EndpointSet, EndpointState};
use crate::logic::time::Nanos;

/// Where known states are found.
pub type Known = HashMap<(SocketAddr, Option<Arc<Peer>>), Arc<EndpointState>>;

/// Index of a set's endpoints by address and workload.
pub fn known(set: &EndpointSet) -> Known {
    set.endpoints()
        .iter()
        .map(|endpoint| {
            let key = (endpoint.address(), endpoint.peer().cloned());
            (key, Arc::clone(endpoint))
        })
        .collect()
}

/// One set of what is `listed` and what was `resolved`; what is listed wins.
pub fn merge(
    listed: &[Endpoint],
    resolved: &[Endpoint],
    known: &Known,
    policy: (&Balancer, &str),
    now: Nanos,
) -> EndpointSet {
    let mut merged: HashMap<SocketAddr, &Endpoint> = HashMap::new();
    for endpoint in listed.iter().chain(resolved) {
        merged.entry(endpoint.address).or_insert(endpoint);
    }
    let states = merged
        .into_values()
        .map(|endpoint| (endpoint.weight, state_of(endpoint, known, now)))
        .collect();
    let (balancer, zone) = policy;
    EndpointSet::with_weights(states, balancer, zone)
}

fn state_of(endpoint: &Endpoint, known: &Known, now: Nanos) -> Arc<EndpointState> {
    match known.get(&(endpoint.address, endpoint.peer.clone())) {
        Some(state) if *state.zone() == endpoint.zone => Arc::clone(state),
        _ => Arc::new(EndpointState::of(endpoint, now)),
    }
}

//! The tasks that look after services: health checks, name resolution, outlier
//! sweeps. One task a service and kind; each reads the service's current
//! configuration at every turn and ends when it has nothing more to do.
//!
//! **Invariant:** every task is in `tasks`, and ends with its service, or with
//! the process.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinHandle;
use weft_config::snapshot;

use crate::logic::balance::Health;
use crate::state::Shared;
use crate::{health, resolve, sweep};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Health,
    Resolve,
    Sweep,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Health, Self::Resolve, Self::Sweep];

    fn is_wanted(self, service: &snapshot::Service) -> bool {
        match self {
            Self::Health => service.health_check.is_some(),
            Self::Resolve => service.dns.is_some(),
            Self::Sweep => service.outlier.is_some(),
        }
    }
}

/// Owner of the tasks.
#[derive(Debug, Default)]
pub struct Upkeep {
    tasks: HashMap<(Kind, Arc<str>), JoinHandle<()>>,
    resolver: resolve::SharedResolver,
}

impl Upkeep {
    /// Starts and ends tasks to fit the current configuration.
    pub fn apply(&mut self, shared: &Arc<Shared>) {
        let runtime = shared.runtime.load_full();
        self.tasks.retain(|(kind, name), task| {
            let wanted = runtime
                .service_named(name)
                .is_some_and(|service| kind.is_wanted(&service.config));
            if !wanted {
                task.abort();
            }
            wanted && !task.is_finished()
        });
        for service in &runtime.services {
            for kind in Kind::ALL {
                if !kind.is_wanted(&service.config) {
                    continue;
                }
                let name = Arc::clone(&service.config.name);
                self.tasks
                    .entry((kind, Arc::clone(&name)))
                    .or_insert_with(|| {
                        let shared = Arc::clone(shared);
                        match kind {
                            Kind::Health => tokio::spawn(health::run(shared, name)),
                            Kind::Sweep => tokio::spawn(sweep::run(shared, name)),
                            Kind::Resolve => {
                                let resolver = self.resolver.clone();
                                tokio::spawn(resolve::run(shared, name, resolver))
                            }
                        }
                    });
            }
            if service.config.health_check.is_none() {
                forget_health(shared, service);
            }
        }
    }
}

/// A verdict that nobody renews any more must not stay.
fn forget_health(shared: &Shared, service: &crate::state::ServiceState) {
    let now = shared.now();
    let endpoints = service.endpoints.load();
    let mut changed = false;
    for endpoint in endpoints.endpoints() {
        changed |= endpoint.set_health(Health::Unknown, now);
    }
    if changed {
        endpoints.refresh(now);
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

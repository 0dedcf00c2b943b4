//! The drain barrier's far side: a workload leaves, and is told who knows.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::Status;
use weft_config::wire::LeaveResponse;

use super::Caller;
use super::hub::{Hub, Proxy, State};
use crate::index::Type;

/// A workload that leaves, and whom that concerns.
#[derive(Debug)]
pub struct Farewell {
    uid: String,
    /// Names of the Endpoints that it was among.
    services: BTreeSet<String>,
    /// Workloads whose proxies have been seen to use it. A proxy may come back under
    /// another number.
    users: BTreeSet<String>,
}

/// How many use a workload that leaves, and how many of them know. Who is not
/// connected cannot know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub users: usize,
    pub acknowledged: usize,
    /// Connected, and yet to answer.
    pub behind: usize,
}

impl Hub {
    /// Takes a workload out of rotation, and waits until all who use it know.
    pub async fn leave(&self, caller: &Caller, limit: Duration) -> Result<LeaveResponse, Status> {
        let mut farewell = self.begin_leave(caller)?;
        let waiting = async {
            loop {
                let notified = self.acknowledged.notified();
                if self.standing(&mut farewell).behind == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(limit, waiting).await;
        let standing = self.standing(&mut farewell);
        self.metrics.leaves.count(match standing.behind {
            0 => "acknowledged",
            _ => "timed_out",
        });
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        Ok(LeaveResponse {
            users: count(standing.users),
            acknowledged: count(standing.acknowledged),
        })
    }

    /// Takes a workload out of rotation.
    pub fn begin_leave(&self, caller: &Caller) -> Result<Farewell, Status> {
        let uid = caller.workload.as_str();
        let mut state = self.state.lock();
        if !state.is_owner(caller) {
            self.metrics.leaves.count("refused");
            return Err(Status::permission_denied(format!(
                "workload {uid} is not {}",
                caller.identity
            )));
        }
        let touched = state.index.leave(uid);
        if !touched.is_empty() {
            state.publish(touched);
        }
        for proxy in state.proxies.values_mut() {
            proxy.status.leaving |= proxy.status.workload == uid;
        }
        Ok(Farewell {
            uid: uid.to_owned(),
            services: state.index.services_of(uid),
            users: BTreeSet::new(),
        })
    }

    /// Who of those that a farewell concerns knows of it by now. As long as nobody
    /// else could take what the workload gets, nobody does.
    pub fn standing(&self, farewell: &mut Farewell) -> Standing {
        let state = self.state.lock();
        let needed = state.index.needs(&farewell.uid);
        let (mut knowing, mut behind) = (BTreeSet::new(), BTreeSet::new());
        for proxy in state.users(farewell) {
            let workload = proxy.status.workload.clone();
            match !needed && state.knows(proxy, farewell) {
                true => knowing.insert(workload),
                false => behind.insert(workload),
            };
        }
        farewell
            .users
            .extend(knowing.iter().chain(&behind).cloned());
        Standing {
            users: farewell.users.len(),
            acknowledged: knowing.difference(&behind).count(),
            behind: behind.len(),
        }
    }
}

impl State {
    /// The proxies that use a workload, but for its own.
    fn users<'a>(&'a self, farewell: &'a Farewell) -> impl Iterator<Item = &'a Proxy> {
        let names = farewell.services.iter();
        let ids: BTreeSet<u64> = names
            .filter_map(|name| self.subscribers.get(&(Type::Endpoints, name.clone())))
            .flatten()
            .copied()
            .collect();
        let proxies = ids.into_iter().filter_map(|id| self.proxies.get(&id));
        proxies.filter(|proxy| proxy.status.workload != farewell.uid)
    }

    /// Whether what a proxy has in force is without the workload.
    fn knows(&self, proxy: &Proxy, farewell: &Farewell) -> bool {
        let refuses = |service: &String| {
            let resource = format!("{} {service}", Type::Endpoints.name());
            let mut refused = proxy.status.refused.iter();
            refused.any(|refusal| refusal.resource == resource)
        };
        // The present revision: meanwhile it may have been needed, and left, again.
        self.acknowledged(proxy) >= self.revision && !farewell.services.iter().any(refuses)
    }
}

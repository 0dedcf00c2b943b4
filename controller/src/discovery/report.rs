//! How things stand, for `/status` and `/metrics`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use weft_config::status::{self, ProxyStatus, RootStatus};

use super::hub::{Hub, seconds_now};
use crate::ca::{fingerprint, subject_and_end};
use crate::metrics::{BEHIND_SHOWN_MAX, Figures};

impl Hub {
    pub fn status(&self) -> status::Status {
        let state = self.state.lock();
        let named = state.errors.named.iter().map(Arc::as_ref);
        status::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.ca.trust_domain.clone(),
            revision: state.revision,
            leads: self.leads.load(Ordering::Relaxed),
            now: seconds_now(),
            roots: self.roots(),
            errors: named.cloned().chain(self.ca.problem()).collect(),
            errors_beyond: state.errors.beyond as u64,
            watches: state.watches.clone(),
            objects: state.index.statuses(),
            unwritten: Vec::new(),
            proxies: state
                .proxies
                .values()
                .map(|proxy| ProxyStatus {
                    acknowledged: state.acknowledged(proxy),
                    ..proxy.status.clone()
                })
                .collect(),
        }
    }

    fn roots(&self) -> Vec<RootStatus> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let current = self.ca.current();
        let roots = current.roots.iter().enumerate();
        roots
            .map(|(index, root)| {
                let (subject, not_after) = subject_and_end(root);
                RootStatus {
                    subject,
                    fingerprint: hex(&fingerprint(root)),
                    not_after,
                    signing: index == 0,
                }
            })
            .collect()
    }

    pub fn figures(&self) -> Figures {
        let state = self.state.lock();
        let proxies = || state.proxies.values().map(|proxy| &proxy.status);
        let sum = |of: fn(&ProxyStatus) -> u64| proxies().map(of).sum();
        let mut figures = Figures {
            faulty: state.index.faulty() as u64,
            source_errors: (state.errors.count() + self.ca.problem().iter().count()) as u64,
            source_errors_unnamed: state.errors.beyond as u64,
            revision: state.revision,
            proxies: state.proxies.len() as u64,
            subscriptions: sum(|proxy| u64::from(proxy.resources)),
            pending: sum(|proxy| u64::from(proxy.pending)),
            refused: sum(|proxy| proxy.refused.len() as u64),
            leads: self.leads.load(Ordering::Relaxed),
            own_certificate_expires: self.own_expires.load(Ordering::Relaxed),
            ..Figures::default()
        };
        figures.watches.clone_from(&state.watches);
        for key in state.index.objects().keys() {
            *figures.objects.entry(key.kind).or_default() += 1;
        }
        let mut behind: Vec<(u64, &str)> = state
            .proxies
            .values()
            .map(|proxy| (state.acknowledged(proxy), proxy.status.workload.as_str()))
            .filter(|(acknowledged, _)| *acknowledged < state.revision)
            .collect();
        behind.sort_unstable();
        let lowest = behind.first().map(|(revision, _)| *revision);
        figures.acknowledged_min = lowest.unwrap_or(state.revision);
        figures.behind_count = behind.len() as u64;
        behind.truncate(BEHIND_SHOWN_MAX);
        figures.behind = behind
            .into_iter()
            .map(|(revision, workload)| (workload.to_owned(), revision))
            .collect();
        drop(state);
        let roots = self.roots().into_iter();
        figures.roots = roots
            .map(|root| (root.fingerprint, root.signing, root.not_after))
            .collect();
        figures
    }
}

//! Counters of everything rarer than a request: by the name of a listener or
//! service, and up to two fixed words.
//!
//! **Invariant:** the words are constants of the code and the names come from
//! the configuration, so a table's size is bounded by both.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::exposition::Exposition;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Opened,
    Closed,
    Refused,
    TlsFailed,
    Rejected,
    Http2Error,
    UpstreamOpened,
    UpstreamFailed,
    Retried,
    Shed,
    PanicPick,
    Ejected,
    Mirrored,
    Checked,
    Resolved,
    Reloaded,
    CertificatesReloaded,
    MeshHandshake,
    Authorized,
    PassedThrough,
    CertificateRenewed,
    Probed,
}

/// What the name of an event is a name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Listener,
    Service,
    Policy,
    Process,
}

struct Family {
    name: &'static str,
    help: &'static str,
    of: Of,
    /// Labels of the words; empty: unused.
    words: [&'static str; 2],
}

impl Event {
    const ALL: [Self; 22] = [
        Self::Opened,
        Self::Closed,
        Self::Refused,
        Self::TlsFailed,
        Self::Rejected,
        Self::Http2Error,
        Self::UpstreamOpened,
        Self::UpstreamFailed,
        Self::Retried,
        Self::Shed,
        Self::PanicPick,
        Self::Ejected,
        Self::Mirrored,
        Self::Checked,
        Self::Resolved,
        Self::Reloaded,
        Self::CertificatesReloaded,
        Self::MeshHandshake,
        Self::Authorized,
        Self::PassedThrough,
        Self::CertificateRenewed,
        Self::Probed,
    ];

    // tidy: allow size: a table
    const fn family(self) -> Family {
        use Of::{Listener, Policy, Process, Service};
        let (name, of, words, help) = match self {
            Self::Opened => (
                "weft_connections_opened_total",
                Listener,
                ["", ""],
                "Downstream connections accepted.",
            ),
            Self::Closed => (
                "weft_connections_closed_total",
                Listener,
                ["reason", ""],
                "Downstream connections ended.",
            ),
            Self::Refused => (
                "weft_connections_refused_total",
                Listener,
                ["reason", ""],
                "Downstream connections closed unserved.",
            ),
            Self::TlsFailed => (
                "weft_tls_handshakes_failed_total",
                Listener,
                ["reason", ""],
                "Downstream TLS handshakes that failed.",
            ),
            Self::Rejected => (
                "weft_requests_rejected_total",
                Listener,
                ["reason", ""],
                "Requests that were malformed or over a limit.",
            ),
            Self::Http2Error => (
                "weft_http2_connection_errors_total",
                Listener,
                ["reason", ""],
                "Downstream HTTP/2 connections closed for what they did.",
            ),
            Self::UpstreamOpened => (
                "weft_upstream_connections_opened_total",
                Service,
                ["", ""],
                "Upstream connections opened.",
            ),
            Self::UpstreamFailed => (
                "weft_upstream_connections_failed_total",
                Service,
                ["reason", ""],
                "Upstream connections that could not be opened.",
            ),
            Self::Retried => (
                "weft_retries_total",
                Service,
                ["kind", "result"],
                "Retries, and decisions against one.",
            ),
            Self::Shed => (
                "weft_shed_total",
                Service,
                ["limit", ""],
                "Requests shed at a limit of the service.",
            ),
            Self::PanicPick => (
                "weft_panic_picks_total",
                Service,
                ["", ""],
                "Endpoints picked with health ignored.",
            ),
            Self::Ejected => (
                "weft_ejections_total",
                Service,
                ["reason", ""],
                "Endpoints ejected.",
            ),
            Self::Mirrored => (
                "weft_mirrored_requests_total",
                Service,
                ["result", ""],
                "Copies of requests sent to a mirror, or not.",
            ),
            Self::Checked => (
                "weft_health_checks_total",
                Service,
                ["result", ""],
                "Active health checks made.",
            ),
            Self::Resolved => (
                "weft_dns_resolutions_total",
                Service,
                ["result", ""],
                "Names resolved.",
            ),
            Self::Reloaded => (
                "weft_reloads_total",
                Process,
                ["result", ""],
                "Configurations applied or refused.",
            ),
            Self::CertificatesReloaded => (
                "weft_certificate_reloads_total",
                Process,
                ["result", ""],
                "Changed TLS files read or refused.",
            ),
            Self::MeshHandshake => (
                "weft_mesh_handshakes_total",
                Process,
                ["direction", "result"],
                "mTLS handshakes with other sidecars.",
            ),
            Self::Authorized => (
                "weft_authorization_total",
                Policy,
                ["action", ""],
                "Requests and connections that an AuthorizationPolicy denied or audited.",
            ),
            Self::PassedThrough => (
                "weft_unknown_destinations_total",
                Process,
                ["result", ""],
                "Connections to what is no part of the mesh.",
            ),
            Self::CertificateRenewed => (
                "weft_mesh_certificates_total",
                Process,
                ["result", ""],
                "This workload's certificates asked of a controller.",
            ),
            Self::Probed => (
                "weft_probes_total",
                Process,
                ["kind", "result"],
                "A kubelet's probes of the application, let in or made for it.",
            ),
        };
        Family {
            name,
            help,
            of,
            words,
        }
    }
}

type Words = [&'static str; 2];
type Counters = Vec<(Words, AtomicU64)>;

/// One table an event.
#[derive(Debug, Default)]
pub struct Events {
    tables: [RwLock<HashMap<Arc<str>, Counters>>; Event::ALL.len()],
}

impl Events {
    pub fn count(&self, event: Event, name: &str, words: Words, by: u64) {
        let Some(table) = self.tables.get(event as usize) else {
            return;
        };
        let add = |table: &HashMap<Arc<str>, Counters>| {
            let counters = table.get(name)?;
            let (_, counter) = counters.iter().find(|(of, _)| *of == words)?;
            counter.fetch_add(by, Ordering::Relaxed);
            Some(())
        };
        if add(&table.read()).is_some() {
            return;
        }
        let mut table = table.write();
        if add(&table).is_none() {
            let counters = table.entry(Arc::from(name)).or_default();
            counters.push((words, AtomicU64::new(by)));
        }
    }

    pub fn retain(
        &self,
        listeners: &HashSet<&str>,
        services: &HashSet<&str>,
        policies: &HashSet<&str>,
    ) {
        for (event, table) in Event::ALL.iter().zip(&self.tables) {
            let alive = match event.family().of {
                Of::Listener => listeners,
                Of::Service => services,
                Of::Policy => policies,
                Of::Process => continue,
            };
            table
                .write()
                .retain(|name, _| alive.contains(name.as_ref()));
        }
    }

    pub fn write(&self, page: &mut Exposition) {
        for (event, table) in Event::ALL.iter().zip(&self.tables) {
            let family = event.family();
            page.family(family.name, "counter", family.help);
            let of = match family.of {
                Of::Listener => "listener",
                Of::Service => "service",
                Of::Policy => "policy",
                Of::Process => "",
            };
            for (name, counters) in table.read().iter() {
                for (words, counter) in counters {
                    let labels: Vec<(&str, &str)> = [(of, name.as_ref())]
                        .into_iter()
                        .chain(family.words.into_iter().zip(*words))
                        .filter(|(label, _)| !label.is_empty())
                        .collect();
                    page.sample(&labels, counter.load(Ordering::Relaxed));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_stand_in_the_order_of_the_events() {
        for (index, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index);
        }
    }
}

//! The metrics page: the counters, and what is looked up only when asked.

use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;

use super::{Answer, typed};
use crate::control::Control;
use crate::logic::limit::Resource;
use crate::net::tls::files::Expiry;
use crate::state::Runtime;
use crate::telemetry::metrics::Exposition;

pub fn metrics(control: &Control) -> Answer {
    let shared = &control.shared;
    let mut page = Exposition::default();
    shared.metrics.write(&mut page);
    let runtime = shared.runtime.load_full();
    page.family("weft_config_info", "gauge", "The configuration in force.");
    page.sample(&[("revision", &runtime.snapshot.revision)], 1);
    for (name, help, value) in [
        ("weft_workers", "Worker threads.", control.worker_count),
        (
            "weft_drain_phase",
            "0 running, 1 leaving (the drain barrier), 2 draining, 3 closing.",
            shared.drain.phase() as usize,
        ),
        (
            "weft_connections_max",
            "Downstream connections that may be open at once.",
            shared.connections_max(),
        ),
    ] {
        page.family(name, "gauge", help);
        page.sample(&[], value);
    }
    for (name, help, value) in [
        (
            "weft_access_log_lines_dropped_total",
            "Access log lines lost: the queue was full or the disk failed.",
            shared.access_log.dropped(),
        ),
        (
            "weft_access_log_write_errors_total",
            "Failed writes of the access log.",
            shared.access_log.write_errors(),
        ),
    ] {
        page.family(name, "counter", help);
        page.sample(&[], value);
    }
    page.family(
        "weft_connections_open",
        "gauge",
        "Open downstream connections.",
    );
    for listener in &runtime.listeners {
        let open = listener.connections.load(Ordering::Relaxed);
        page.sample(&[("listener", &listener.config.name)], open);
    }
    write_endpoints(&mut page, control, &runtime);
    write_limits(&mut page, &runtime);
    write_certificates(&mut page, &runtime);
    typed(StatusCode::OK, Exposition::CONTENT_TYPE, page.finish())
}

fn write_endpoints(page: &mut Exposition, control: &Control, runtime: &Runtime) {
    let now = control.shared.now();
    page.family(
        "weft_endpoints",
        "gauge",
        "Endpoints of a service by state: known, available, unhealthy (active checks), ejected, draining.",
    );
    for service in &runtime.services {
        let set = service.endpoints.load();
        let counts = set.counts(now);
        for (state, count) in [
            ("known", set.len()),
            ("available", counts.available),
            ("unhealthy", counts.unhealthy),
            ("ejected", counts.ejected),
            ("draining", counts.draining),
        ] {
            page.sample(
                &[("service", &service.config.name), ("state", state)],
                count,
            );
        }
    }
}

fn write_limits(page: &mut Exposition, runtime: &Runtime) {
    for (name, help, max) in [
        (
            "weft_limit_used",
            "What a service uses of its limits now.",
            false,
        ),
        ("weft_limit_max", "The limits of a service.", true),
    ] {
        page.family(name, "gauge", help);
        for service in &runtime.services {
            for resource in Resource::ALL {
                let value = if max {
                    service.circuit.max(resource)
                } else {
                    service.circuit.used(resource)
                };
                let labels = [
                    ("service", service.config.name.as_ref()),
                    ("limit", resource.label()),
                ];
                page.sample(&labels, value);
            }
        }
    }
}

fn write_certificates(page: &mut Exposition, runtime: &Runtime) {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    page.family(
        "weft_certificate_expires_in_seconds",
        "gauge",
        "Time until a certificate in use ends; negative: it has ended.",
    );
    let mut seen = std::collections::HashSet::new();
    for Expiry { file, not_after } in expiries(runtime) {
        // Two listeners may share a file; a sample must be unique.
        if seen.insert(file.clone()) {
            let file = file.display().to_string();
            page.sample(&[("file", &file)], not_after - now);
        }
    }
}

/// When each certificate of a configuration ends.
pub fn expiries(runtime: &Runtime) -> Vec<Expiry> {
    let servers = runtime
        .listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref());
    let clients = runtime
        .services
        .iter()
        .filter_map(|service| service.tls.as_ref());
    servers
        .flat_map(|tls| tls.expiries())
        .chain(clients.filter_map(|tls| tls.expiry()))
        .collect()
}

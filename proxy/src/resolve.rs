//! Endpoints from DNS: A and AAAA, or SRV, asked for again as their TTL says,
//! within the service's bounds.
//!
//! A failure (no answer, SERVFAIL) keeps the last good answer: a DNS outage
//! must not become ours. An empty answer is an answer, but has to come
//! [`EMPTY_ANSWERS_MIN`] times in a row: servers give one for a moment while a
//! zone is reloaded.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::RData;
use parking_lot::Mutex;
use weft_config::snapshot::{Dns, DnsRecord, Endpoint};

use crate::health::with_sources;
use crate::state::Shared;

/// Endpoints taken from one name; more are left out, and a warning says so.
const ENDPOINTS_MAX: usize = 4096;
/// Empty answers in a row before the endpoints are given up.
const EMPTY_ANSWERS_MIN: u32 = 3;
/// The first pause after a failure; it doubles up to the service's bound.
const RETRY_MIN: Duration = Duration::from_millis(500);

/// The resolver of all tasks, made from /etc/resolv.conf at its first use.
#[derive(Clone, Default)]
pub struct SharedResolver(Arc<Mutex<Option<TokioResolver>>>);

impl std::fmt::Debug for SharedResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedResolver")
    }
}

impl SharedResolver {
    fn open(&self) -> Result<TokioResolver, NetError> {
        let mut resolver = self.0.lock();
        if let Some(resolver) = &*resolver {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio()?;
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        // We ask when the service's bounds say so; a cache would ignore them.
        options.cache_size = 0;
        Ok(resolver.insert(builder.build()?).clone())
    }
}

impl SharedResolver {
    /// All addresses of a name now; search domains and /etc/hosts count.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NetError> {
        match self.open()?.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) if error.is_no_records_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// An answer and how long it holds.
#[derive(Debug)]
struct Answer {
    endpoints: Vec<Endpoint>,
    valid_until: Instant,
}

/// Until the service is gone or has no name to resolve any more.
pub async fn run(shared: Arc<Shared>, service: Arc<str>, resolver: SharedResolver) {
    let mut asked: Option<Dns> = None;
    let (mut failures, mut empty) = (0u32, 0u32);
    loop {
        let Some(state) = shared.runtime.load().service_named(&service).cloned() else {
            return;
        };
        let Some(dns) = state.config.dns.clone() else {
            return;
        };
        if asked.as_ref() != Some(&dns) {
            (failures, empty) = (0, 0);
        }
        let result = match resolver.open() {
            Ok(resolver) => ask(&resolver, &dns).await,
            Err(error) => Err(error),
        };
        let pause = match result {
            Ok(answer) => {
                let holds = answer.valid_until.saturating_duration_since(Instant::now());
                empty = if answer.endpoints.is_empty() {
                    empty + 1
                } else {
                    0
                };
                shared
                    .metrics
                    .resolved(&service, if empty > 0 { "empty" } else { "success" });
                if failures > 0 {
                    tracing::info!(%service, name = %dns.name, "the name resolves again");
                }
                failures = 0;
                if empty == 1 {
                    tracing::warn!(%service, name = %dns.name, "the name has no addresses");
                }
                if empty == 0 || empty >= EMPTY_ANSWERS_MIN {
                    publish(&shared, &service, &dns, answer.endpoints);
                    holds.clamp(dns.refresh_min, dns.refresh_max)
                } else {
                    dns.refresh_min
                }
            }
            Err(error) => {
                shared.metrics.resolved(&service, "failure");
                if failures == 0 {
                    tracing::warn!(
                        %service, name = %dns.name, error = %with_sources(&error),
                        "cannot resolve the name; the endpoints known so far stay (check the \
                         name, and the servers in /etc/resolv.conf)"
                    );
                }
                failures = failures.saturating_add(1);
                let backoff = RETRY_MIN.saturating_mul(1 << failures.min(8));
                backoff.clamp(dns.refresh_min, dns.refresh_max)
            }
        };
        asked = Some(dns);
        tokio::time::sleep(pause).await;
    }
}

/// Hands the answer to the service as it is now, if it still asks the same.
fn publish(shared: &Shared, service: &str, dns: &Dns, endpoints: Vec<Endpoint>) {
    let runtime = shared.runtime.load();
    let Some(current) = runtime.service_named(service) else {
        return;
    };
    if current.config.dns.as_ref() != Some(dns) {
        return;
    }
    let count = endpoints.len();
    if current.set_resolved(endpoints, shared.now()) {
        tracing::info!(%service, name = %dns.name, endpoints = count, "endpoints resolved");
    }
}

async fn ask(resolver: &TokioResolver, dns: &Dns) -> Result<Answer, NetError> {
    let answer = match dns.record {
        DnsRecord::Address { port } => addresses(resolver, &dns.name, port, 1).await,
        DnsRecord::Srv => services(resolver, &dns.name).await,
    };
    match answer {
        Ok(mut answer) => {
            if answer.endpoints.len() > ENDPOINTS_MAX {
                tracing::warn!(name = %dns.name, kept = ENDPOINTS_MAX, found = answer.endpoints.len(), "too many addresses; the rest is left out");
                answer.endpoints.truncate(ENDPOINTS_MAX);
            }
            Ok(answer)
        }
        Err(error) if error.is_no_records_found() => Ok(Answer {
            endpoints: Vec::new(),
            valid_until: Instant::now(),
        }),
        Err(error) => Err(error),
    }
}

async fn addresses(
    resolver: &TokioResolver,
    name: &str,
    port: u16,
    weight: u32,
) -> Result<Answer, NetError> {
    let found = resolver.lookup_ip(name).await?;
    let endpoints = found
        .iter()
        .map(|ip| Endpoint {
            peer: None,
            address: SocketAddr::new(ip, port),
            weight,
            zone: Arc::from(""),
        })
        .collect();
    Ok(Answer {
        endpoints,
        valid_until: found.valid_until(),
    })
}

/// RFC 2782: only the targets of the best priority; a weight of 0 is "little",
/// which for us is 1.
async fn services(resolver: &TokioResolver, name: &str) -> Result<Answer, NetError> {
    let found = resolver.srv_lookup(name).await?;
    let records: Vec<_> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(record) => Some(record.clone()),
            _ => None,
        })
        .collect();
    let mut valid_until = found.valid_until();
    let best = records.iter().map(|record| record.priority).min();
    let mut endpoints: HashMap<SocketAddr, Endpoint> = HashMap::new();
    for record in records
        .iter()
        .filter(|record| Some(record.priority) == best)
    {
        let target = record.target.to_utf8();
        // "." means: decidedly not here.
        if target == "." {
            continue;
        }
        let weight = u32::from(record.weight).max(1);
        match addresses(resolver, &target, record.port, weight).await {
            Ok(answer) => {
                valid_until = valid_until.min(answer.valid_until);
                for endpoint in answer.endpoints {
                    endpoints.insert(endpoint.address, endpoint);
                }
            }
            Err(error) if error.is_no_records_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Answer {
        endpoints: endpoints.into_values().collect(),
        valid_until,
    })
}

#[cfg(test)]
pub(crate) mod tests;

//! `services[].balancer`.

use std::time::Duration;

use http::HeaderName;

use super::at::{At, each, known};
use crate::snapshot::{Algorithm, Balancer, HashSource};
use crate::wire;

const PANIC_PERCENT: u32 = 50;
const ZONE_HEALTHY_PERCENT: u32 = 70;
const EWMA_DECAY: Duration = Duration::from_secs(10);

pub(super) fn compile(at: &At<'_>, balancer: Option<&wire::Balancer>) -> Option<Balancer> {
    use wire::balancer::Algorithm as Wire;
    let default = wire::Balancer::default();
    let balancer = balancer.unwrap_or(&default);
    let algorithm = known(&at.field("algorithm"), balancer.algorithm).map(|wire| match wire {
        Wire::PeakEwma => Algorithm::PeakEwma,
        Wire::LeastRequest => Algorithm::LeastRequest,
        Wire::RoundRobin => Algorithm::RoundRobin,
        Wire::Random => Algorithm::Random,
        Wire::ConsistentHash => Algorithm::ConsistentHash,
    });
    let hash_at = at.field("hash");
    let hash = each(&hash_at, &balancer.hash, hash_source);
    match algorithm {
        Some(Algorithm::ConsistentHash) if balancer.hash.is_empty() => hash_at.error(
            "is missing; consistent_hash needs what to hash: {header: …}, {cookie: …} or {sourceAddress: true}",
        ),
        Some(algorithm) if algorithm != Algorithm::ConsistentHash && !balancer.hash.is_empty() => {
            hash_at.error("has no effect; it needs algorithm: consistent_hash");
        }
        _ => {}
    }
    let slow_start = at
        .field("slowStart")
        .duration_or(&balancer.slow_start, Duration::ZERO);
    let panic_percent = at
        .field("panicPercent")
        .percent(balancer.panic_percent.unwrap_or(PANIC_PERCENT));
    let zone_healthy_percent = at.field("zoneHealthyPercent").percent(
        balancer
            .zone_healthy_percent
            .unwrap_or(ZONE_HEALTHY_PERCENT),
    );
    let ewma_decay = at
        .field("ewmaDecay")
        .duration_positive(&balancer.ewma_decay, EWMA_DECAY);
    Some(Balancer {
        algorithm: algorithm?,
        hash,
        slow_start: slow_start?,
        panic_percent: panic_percent?,
        zone_healthy_percent: zone_healthy_percent?,
        ewma_decay: ewma_decay?,
    })
}

fn hash_source(at: &At<'_>, source: &wire::HashSource) -> Option<HashSource> {
    match (
        source.header.as_str(),
        source.cookie.as_str(),
        source.source_address,
    ) {
        ("", "", true) => Some(HashSource::SourceAddress),
        (header, "", false) if !header.is_empty() => at
            .field("header")
            .header_name(header)
            .map(HashSource::Header),
        ("", cookie, false) if !cookie.is_empty() => {
            cookie_name(&at.field("cookie"), cookie).map(|name| HashSource::Cookie(name.into()))
        }
        _ => {
            at.error("must have exactly one of header, cookie and sourceAddress: true");
            None
        }
    }
}

/// RFC 6265 §4.1.1: a cookie's name is a token, as a header's is.
pub(super) fn cookie_name<'t>(at: &At<'_>, text: &'t str) -> Option<&'t str> {
    if HeaderName::from_bytes(text.as_bytes()).is_err() {
        at.error(format!(
            "\"{text}\" is not a cookie name; no spaces or separators are allowed"
        ));
        return None;
    }
    Some(text)
}

//! Active health checks: when which endpoint is asked, and what is told of the
//! answers. How one is asked is in `probe`; what its answer means, the
//! thresholds, in `logic::balance`.
//!
//! **Invariant:** checks of one endpoint never overlap; at most
//! [`CHECKS_MAX`] of a service are under way.

pub mod application;
mod grpc;
mod probe;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use weft_config::snapshot::HealthCheck;

use crate::logic::balance::{EndpointState, Health};
use crate::state::{ServiceState, Shared};
use probe::ProbeError;

/// Checks of one service under way at once.
const CHECKS_MAX: usize = 32;
/// How soon an endpoint that was just added is asked.
const NEW_ENDPOINT_STEP: Duration = Duration::from_millis(500);

/// Until the service is gone or has no check any more.
pub async fn run(shared: Arc<Shared>, service: Arc<str>) {
    let mut due = Instant::now();
    loop {
        let Some(state) = shared.runtime.load().service_named(&service).cloned() else {
            return;
        };
        let Some(check) = state.config.health_check.clone() else {
            return;
        };
        let now = Instant::now();
        let all = now >= due;
        if all {
            // A tenth of jitter, so that many proxies do not ask in step.
            let jitter = rand::random_range(0.9..1.1);
            due = now + check.interval.mul_f64(jitter);
        }
        let endpoints = state.endpoints.load_full();
        let asked = endpoints
            .endpoints()
            .iter()
            .filter(|endpoint| all || endpoint.health() == Health::Unknown);
        futures_util::stream::iter(asked)
            .for_each_concurrent(CHECKS_MAX, |endpoint| {
                check_one(&shared, &state, endpoint, &check, all)
            })
            .await;
        let step = due.min(Instant::now() + NEW_ENDPOINT_STEP.min(check.interval));
        tokio::time::sleep_until(step).await;
    }
}

async fn check_one(
    shared: &Shared,
    service: &ServiceState,
    endpoint: &Arc<EndpointState>,
    check: &HealthCheck,
    spread: bool,
) {
    // The first verdict is wanted at once; later ones are spread over a part
    // of the interval, so that a large service is not asked in one burst.
    if spread && endpoint.health() != Health::Unknown {
        tokio::time::sleep(check.interval.mul_f64(rand::random_range(0.0..0.2))).await;
    }
    let address = endpoint.address();
    let result =
        match tokio::time::timeout(check.timeout, probe::probe(service, address, check)).await {
            Ok(result) => result,
            Err(_) => Err(ProbeError::Timeout),
        };
    let name = &service.config.name;
    shared.metrics.checked(
        name,
        match &result {
            Ok(()) => "success",
            Err(ProbeError::Timeout) => "timeout",
            Err(_) => "failure",
        },
    );
    let now = shared.now();
    let Some(health) = endpoint.checked(result.is_ok(), check, now) else {
        return;
    };
    // The set may have been renewed meanwhile: the current one counts.
    if let Some(current) = shared.runtime.load().service_named(name) {
        current.endpoints.load().refresh(now);
    }
    match result {
        Ok(()) => tracing::info!(service = %name, endpoint = %address, ?health, "health changed"),
        Err(error) => {
            let error = with_sources(&error);
            tracing::warn!(service = %name, endpoint = %address, ?health, %error, "health changed");
        }
    }
}

/// An error with what caused it, in one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;

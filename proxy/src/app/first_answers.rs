//! The first answers of DNS, which a start waits for.

use std::time::Duration;

use crate::state::Runtime;

/// How long a start waits for the first answers of DNS, and how often it looks.
const WAIT_MAX: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(5);

/// Waits a little for services that only DNS gives endpoints to: whoever is let
/// in before would find nobody.
pub async fn wait(runtime: &Runtime) {
    let awaited = || {
        let mut services = runtime.services.iter();
        services.any(|service| service.config.dns.is_some() && service.endpoints.load().is_empty())
    };
    let limit = tokio::time::Instant::now() + WAIT_MAX;
    while awaited() && tokio::time::Instant::now() < limit {
        tokio::time::sleep(STEP).await;
    }
}

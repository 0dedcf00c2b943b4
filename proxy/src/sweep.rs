//! Runs the comparisons of outlier detection, once an interval and service,
//! and tells of every ejection and return.

use std::sync::Arc;

use crate::logic::outlier::{self, Cause, Change, Ejection};
use crate::state::Shared;

/// Until the service is gone or detects outliers no more.
pub async fn run(shared: Arc<Shared>, service: Arc<str>) {
    loop {
        let Some(state) = shared.runtime.load().service_named(&service).cloned() else {
            return;
        };
        let Some(policy) = &state.config.outlier else {
            return;
        };
        tokio::time::sleep(policy.interval).await;
        let now = shared.now();
        for change in outlier::sweep(&state.endpoints.load(), policy, now) {
            match change {
                Change::Ejected(ejection) => tell_ejection(&shared, &service, &ejection),
                Change::Returned(endpoint) => {
                    tracing::info!(%service, endpoint = %endpoint.address(), "endpoint is back from its ejection");
                }
            }
        }
    }
}

/// Logs and counts an ejection, wherever it was decided.
pub fn tell_ejection(shared: &Shared, service: &str, ejection: &Ejection) {
    let reason = match ejection.cause {
        Cause::Consecutive(_) => "consecutive",
        Cause::SuccessRate { .. } => "success_rate",
    };
    shared.metrics.ejected(service, reason);
    let time = ejection.until.since(shared.now());
    tracing::warn!(
        %service,
        endpoint = %ejection.endpoint.address(),
        cause = ?ejection.cause,
        for_seconds = time.as_secs(),
        ejections = ejection.ejections,
        "endpoint ejected"
    );
}

//! Looks after the TLS files: reads changed ones, warns of those that end.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::admin::gauges::expiries;
use crate::state::{Runtime, Shared};

/// Warned of when it ends within this time.
const WARN_SECONDS: i64 = 7 * 24 * 3600;

/// Reads what changed; a bad file keeps the old one in use.
pub fn refresh(shared: &Shared) {
    let runtime = shared.runtime.load_full();
    let mut changed = false;
    let mut tell = |kind: &str,
                    name: &str,
                    result: Result<bool, Vec<crate::net::tls::FileError>>| {
        match result {
            Ok(false) => {}
            Ok(true) => {
                changed = true;
                shared.metrics.certificates_reloaded(true);
                tracing::info!(kind, name, "TLS files reloaded");
            }
            Err(errors) => {
                shared.metrics.certificates_reloaded(false);
                for error in errors {
                    tracing::error!(kind, name, %error, "changed TLS files are refused; the old ones stay in use");
                }
            }
        }
    };
    for listener in &runtime.listeners {
        if let Some(tls) = &listener.tls {
            tell("listener", &listener.config.name, tls.refresh());
        }
    }
    for service in &runtime.services {
        if let Some(tls) = &service.tls {
            tell("service", &service.config.name, tls.refresh());
        }
    }
    if changed {
        warn_of_expiry(&runtime);
    }
}

pub fn warn_of_expiry(runtime: &Runtime) {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    for expiry in expiries(runtime) {
        let left = expiry.not_after - now;
        let file = expiry.file.display();
        if left <= 0 {
            tracing::error!(%file, "the certificate has expired: peers that verify it refuse it; renew it (the file is watched)");
        } else if left < WARN_SECONDS {
            tracing::warn!(%file, hours_left = left / 3600, "the certificate expires soon; renew it (the file is watched)");
        }
    }
}

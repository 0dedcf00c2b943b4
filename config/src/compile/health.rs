//! `services[].healthCheck` and `services[].outlierDetection`: how an endpoint
//! is found to be bad, by asking it and by watching it.

use std::time::Duration;

use http::StatusCode;

use super::at::{At, each, known, or_default};
use super::path;
use crate::snapshot::{HealthCheck, HealthCheckKind, OutlierDetection};
use crate::wire;

const CHECK_INTERVAL: Duration = Duration::from_secs(5);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
const HEALTHY_THRESHOLD: u32 = 1;
const UNHEALTHY_THRESHOLD: u32 = 3;
const CONSECUTIVE_FAILURES: u32 = 5;
const OUTLIER_INTERVAL: Duration = Duration::from_secs(10);
const EJECTION_TIME: Duration = Duration::from_secs(30);
const EJECTION_TIME_MAX: Duration = Duration::from_secs(300);
const EJECTED_PERCENT_MAX: u32 = 50;
const SUCCESS_RATE_STDEV_MILLI: u32 = 1900;
const SUCCESS_RATE_REQUESTS_MIN: u32 = 100;
const SUCCESS_RATE_ENDPOINTS_MIN: u32 = 5;

pub(super) fn check(at: &At<'_>, check: &wire::HealthCheck) -> Option<HealthCheck> {
    let kind = kind(at, check);
    let interval = at
        .field("interval")
        .duration_positive(&check.interval, CHECK_INTERVAL);
    let timeout = at
        .field("timeout")
        .duration_positive(&check.timeout, CHECK_TIMEOUT);
    let port = at.field("port").port_optional(check.port);
    Some(HealthCheck {
        kind: kind?,
        interval: interval?,
        timeout: timeout?,
        healthy_threshold: or_default(check.healthy_threshold, HEALTHY_THRESHOLD),
        unhealthy_threshold: or_default(check.unhealthy_threshold, UNHEALTHY_THRESHOLD),
        port: port?,
    })
}

fn kind(at: &At<'_>, check: &wire::HealthCheck) -> Option<HealthCheckKind> {
    let kind: wire::health_check::Kind = known(&at.field("kind"), check.kind)?;
    let is_http = kind == wire::health_check::Kind::Http;
    let is_grpc = kind == wire::health_check::Kind::Grpc;
    for (field, present, applies, wanted) in [
        ("path", !check.path.is_empty(), is_http, "http"),
        ("host", !check.host.is_empty(), is_http, "http"),
        ("statuses", !check.statuses.is_empty(), is_http, "http"),
        (
            "grpcService",
            !check.grpc_service.is_empty(),
            is_grpc,
            "grpc",
        ),
    ] {
        if present && !applies {
            at.field(field)
                .error(format!("has no effect; it needs kind: {wanted}"));
        }
    }
    match kind {
        wire::health_check::Kind::Tcp => Some(HealthCheckKind::Tcp),
        wire::health_check::Kind::Grpc => Some(HealthCheckKind::Grpc {
            service: check.grpc_service.as_str().into(),
        }),
        wire::health_check::Kind::Http => {
            let path = if check.path.is_empty() {
                Some("/")
            } else {
                path::absolute(&at.field("path"), &check.path)
            };
            let statuses = each(&at.field("statuses"), &check.statuses, |at, code| {
                status(at, *code, 200)
            });
            if !check.host.is_empty() {
                at.field("host").header_value(&check.host)?;
            }
            Some(HealthCheckKind::Http {
                path: path?.into(),
                host: (!check.host.is_empty()).then(|| check.host.as_str().into()),
                statuses,
            })
        }
    }
}

/// A status code from `min` to 599.
pub(super) fn status(at: &At<'_>, code: u32, min: u32) -> Option<StatusCode> {
    u16::try_from(code)
        .ok()
        .filter(|code| u32::from(*code) >= min && *code <= 599)
        .and_then(|code| StatusCode::from_u16(code).ok())
        .or_else(|| {
            at.error(format!(
                "{code} is not allowed here; use a status code from {min} to 599"
            ));
            None
        })
}

pub(super) fn outlier(at: &At<'_>, outlier: &wire::OutlierDetection) -> Option<OutlierDetection> {
    let interval = at
        .field("interval")
        .duration_positive(&outlier.interval, OUTLIER_INTERVAL);
    let base_ejection_time = at
        .field("baseEjectionTime")
        .duration_positive(&outlier.base_ejection_time, EJECTION_TIME);
    let max_at = at.field("ejectionTimeMax");
    // A longer first ejection raises the default bound with it.
    let max_default = EJECTION_TIME_MAX.max(base_ejection_time.unwrap_or_default());
    let ejection_time_max = max_at.duration_positive(&outlier.ejection_time_max, max_default);
    if let (Some(base), Some(max)) = (base_ejection_time, ejection_time_max)
        && max < base
    {
        max_at.error("must not be shorter than baseEjectionTime (default 30s)");
    }
    let ejected_percent_max = at
        .field("ejectedPercentMax")
        .percent(outlier.ejected_percent_max.unwrap_or(EJECTED_PERCENT_MAX));
    let stdev_milli = outlier
        .success_rate_stdev_milli
        .unwrap_or(SUCCESS_RATE_STDEV_MILLI);
    Some(OutlierDetection {
        consecutive_failures: outlier.consecutive_failures.unwrap_or(CONSECUTIVE_FAILURES),
        interval: interval?,
        base_ejection_time: base_ejection_time?,
        ejection_time_max: ejection_time_max?,
        ejected_percent_max: ejected_percent_max?,
        success_rate_stdev: f64::from(stdev_milli) / 1000.0,
        success_rate_requests_min: or_default(
            outlier.success_rate_requests_min,
            SUCCESS_RATE_REQUESTS_MIN,
        ),
        success_rate_endpoints_min: or_default(
            outlier.success_rate_endpoints_min,
            SUCCESS_RATE_ENDPOINTS_MIN,
        ),
    })
}

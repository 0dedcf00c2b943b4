//! How a service's endpoints are balanced over, watched and limited.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

#[derive(Clone, Debug, PartialEq)]
pub struct Balancer {
    pub algorithm: Algorithm,
    pub hash: Vec<HashSource>,
    /// Zero: off.
    pub slow_start: Duration,
    /// Health is ignored when less than this percentage is healthy; 0 never.
    pub panic_percent: u32,
    /// 0: zones play no part.
    pub zone_healthy_percent: u32,
    pub ewma_decay: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    ConsistentHash,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashSource {
    Header(HeaderName),
    Cookie(Arc<str>),
    SourceAddress,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    pub kind: HealthCheckKind,
    pub interval: Duration,
    pub timeout: Duration,
    pub healthy_threshold: u32,
    pub unhealthy_threshold: u32,
    /// `None`: the endpoint's.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum HealthCheckKind {
    Http {
        path: Arc<str>,
        host: Option<Arc<str>>,
        /// Empty: 200 to 299.
        statuses: Vec<StatusCode>,
    },
    Grpc {
        service: Arc<str>,
    },
    Tcp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct OutlierDetection {
    /// 0: off.
    pub consecutive_failures: u32,
    pub interval: Duration,
    pub base_ejection_time: Duration,
    pub ejection_time_max: Duration,
    pub ejected_percent_max: u32,
    /// In standard deviations; 0: off.
    pub success_rate_stdev: f64,
    pub success_rate_requests_min: u32,
    pub success_rate_endpoints_min: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub connections_max: usize,
    pub pending_max: usize,
    pub requests_max: usize,
    pub streams_per_connection_max: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RetryBudget {
    pub percent: u32,
    pub interval: Duration,
    pub retries_min_per_second: u32,
}

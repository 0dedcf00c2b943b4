//! What is counted, and its Prometheus form.
//!
//! Requests are counted in series that a worker looks up once and keeps
//! (`series`): one shard a thread, so that no two workers write one cache line.
//! Everything rarer goes into tables keyed by names and fixed reasons
//! (`events`). What can be computed when somebody asks (open connections,
//! health, in-flight) is not counted here at all: admin adds it to the page.
//!
//! **Invariant:** label values that requests or discovery can invent are
//! bounded (`labels`); all others are names of the configuration or constants
//! of the code.

mod events;
mod exposition;
mod labels;
pub mod process;
mod series;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use events::{Event, Events};
pub use exposition::Exposition;
pub use series::RequestSeries;
use series::{Kind, SeriesTable};

/// Workers whose pools are shown; the machine with more is not built yet, and
/// what is beyond is left out.
const WORKERS_MAX: usize = 1024;

/// How many upstream connections one worker holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolGauge {
    pub idle: usize,
    pub http2: usize,
}

/// All counters of the process.
#[derive(Debug)]
pub struct Metrics {
    series: SeriesTable,
    events: Events,
    pools: Mutex<Vec<PoolGauge>>,
    started: SystemTime,
    accept_pauses: AtomicU64,
    /// Seconds since the Unix epoch; 0: never.
    last_reload: AtomicI64,
    last_reload_failed: AtomicI64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            series: SeriesTable::default(),
            events: Events::default(),
            pools: Mutex::new(Vec::new()),
            started: SystemTime::now(),
            accept_pauses: AtomicU64::new(0),
            last_reload: AtomicI64::new(0),
            last_reload_failed: AtomicI64::new(0),
        }
    }
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// The data path.
impl Metrics {
    /// Where requests with these labels are counted. Look it up once and keep
    /// it; `backend` is the endpoint's `ip:port`, empty if none was picked.
    pub fn series(
        &self,
        listener: &str,
        service: &str,
        route: &str,
        backend: &str,
    ) -> Arc<RequestSeries> {
        self.series
            .find(Kind::Http, [listener, service, route, backend])
    }

    /// The same for opaque connections: one `record` for each, at its end,
    /// with status 0 and its whole duration.
    pub fn tcp_series(
        &self,
        listener: &str,
        service: &str,
        route: &str,
        backend: &str,
    ) -> Arc<RequestSeries> {
        self.series
            .find(Kind::Tcp, [listener, service, route, backend])
    }

    /// Counts a downstream connection as open until the guard is dropped.
    pub fn connection_opened(self: &Arc<Self>, listener: &Arc<str>) -> OpenConnection {
        self.events.count(Event::Opened, listener, ["", ""], 1);
        OpenConnection {
            metrics: Arc::clone(self),
            listener: Arc::clone(listener),
            reason: "done",
        }
    }

    /// A connection that was closed before it was served.
    pub fn connection_refused(&self, listener: &str, reason: &'static str) {
        self.events.count(Event::Refused, listener, [reason, ""], 1);
    }

    pub fn tls_handshake_failed(&self, listener: &str, reason: &'static str) {
        self.events
            .count(Event::TlsFailed, listener, [reason, ""], 1);
    }

    /// `direction`: inbound or outbound; `result`: ok, or why not.
    pub fn mesh_handshake(&self, direction: &'static str, result: &'static str) {
        self.events
            .count(Event::MeshHandshake, "", [direction, result], 1);
    }

    /// A policy denied something, or was told of it (`audit`).
    pub fn authorized(&self, policy: &str, action: &'static str) {
        self.events
            .count(Event::Authorized, policy, [action, ""], 1);
    }

    pub fn certificate_renewed(&self, result: &'static str) {
        self.events
            .count(Event::CertificateRenewed, "", [result, ""], 1);
    }

    /// A kubelet's probe of the application.
    pub fn probed(&self, kind: &'static str, good: bool) {
        let result = if good { "ok" } else { "failed" };
        self.events.count(Event::Probed, "", [kind, result], 1);
    }

    pub fn unknown_destination(&self, result: &'static str) {
        self.events.count(Event::PassedThrough, "", [result, ""], 1);
    }

    /// A request answered 4xx by us, or a malformed one; `reason` is the
    /// detail of it.
    pub fn rejected(&self, listener: &str, reason: &'static str) {
        self.events
            .count(Event::Rejected, listener, [reason, ""], 1);
    }

    /// A downstream HTTP/2 connection that was closed for what it did
    /// (`rapid_reset`, `continuation_flood`, …).
    pub fn http2_error(&self, listener: &str, reason: &'static str) {
        self.events
            .count(Event::Http2Error, listener, [reason, ""], 1);
    }

    /// Descriptors ran out and accepting paused.
    pub fn accept_paused(&self) {
        self.accept_pauses.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection to an endpoint was opened.
    pub fn upstream_connected(&self, service: &str) {
        self.events
            .count(Event::UpstreamOpened, service, ["", ""], 1);
    }

    /// One could not be opened; `reason` is the cause's label.
    pub fn upstream_connect_failed(&self, service: &str, reason: &'static str) {
        self.events
            .count(Event::UpstreamFailed, service, [reason, ""], 1);
    }

    /// A failed try and what was decided: its kind (`connect_failed`,
    /// `unprocessed`, `leaving`, `connection_died`, `try_timeout`, `status`,
    /// `grpc_status`) and `free`, `budgeted` or why it was not tried again.
    pub fn retried(&self, service: &str, kind: &'static str, result: &'static str) {
        self.events
            .count(Event::Retried, service, [kind, result], 1);
    }

    /// A request shed at a limit (`connection`, `pending`, `request`).
    pub fn shed(&self, service: &str, limit: &'static str) {
        self.events.count(Event::Shed, service, [limit, ""], 1);
    }

    /// An endpoint was picked though none, or too few, were healthy.
    pub fn panic_picked(&self, service: &str) {
        self.events.count(Event::PanicPick, service, ["", ""], 1);
    }

    /// An endpoint was ejected (`consecutive`, `success_rate`).
    pub fn ejected(&self, service: &str, reason: &'static str) {
        self.events.count(Event::Ejected, service, [reason, ""], 1);
    }

    /// A copy of a request (`answered`, `failed`, or why it was not sent).
    pub fn mirrored(&self, service: &str, result: &'static str) {
        self.events.count(Event::Mirrored, service, [result, ""], 1);
    }

    pub fn set_pool(&self, worker: usize, gauge: PoolGauge) {
        let mut pools = self.pools.lock();
        if worker < WORKERS_MAX {
            if pools.len() <= worker {
                pools.resize(worker + 1, PoolGauge::default());
            }
            if let Some(slot) = pools.get_mut(worker) {
                *slot = gauge;
            }
        }
    }
}

/// The control thread.
impl Metrics {
    /// An active check ended (`success`, `failure`, `timeout`).
    pub fn checked(&self, service: &str, result: &'static str) {
        self.events.count(Event::Checked, service, [result, ""], 1);
    }

    /// A name was resolved (`success`, `empty`, `failure`).
    pub fn resolved(&self, service: &str, result: &'static str) {
        self.events.count(Event::Resolved, service, [result, ""], 1);
    }

    pub fn reloaded(&self, success: bool) {
        let (result, time) = if success {
            ("success", &self.last_reload)
        } else {
            ("failure", &self.last_reload_failed)
        };
        self.events.count(Event::Reloaded, "", [result, ""], 1);
        time.store(unix_now(), Ordering::Relaxed);
    }

    /// TLS files changed and were read (`success`, `failure`).
    pub fn certificates_reloaded(&self, success: bool) {
        let result = if success { "success" } else { "failure" };
        self.events
            .count(Event::CertificatesReloaded, "", [result, ""], 1);
    }

    /// Distinct values that the labels service, route and backend may have.
    pub fn set_label_values_max(&self, max: usize) {
        self.series.labels.set_max(max);
    }

    /// Forgets counters of what is configured no more.
    pub fn retain(
        &self,
        listeners: &HashSet<&str>,
        services: &HashSet<&str>,
        policies: &HashSet<&str>,
    ) {
        self.events.retain(listeners, services, policies);
    }

    /// Forgets series that nobody holds and nothing was recorded in since the
    /// last call but one, so that gone endpoints do not stay for good. To be
    /// called every few minutes.
    pub fn prune(&self) {
        self.series.prune();
    }

    /// Writes everything that is counted here.
    pub fn write(&self, page: &mut Exposition) {
        self.series.write(page);
        self.events.write(page);
        page.family(
            "weft_accept_pauses_total",
            "counter",
            "Times accepting paused because file descriptors had run out.",
        );
        page.sample(&[], self.accept_pauses.load(Ordering::Relaxed));
        page.family(
            "weft_pool_connections",
            "gauge",
            "Upstream connections held by a worker: idle HTTP/1.1 ones, and HTTP/2 ones.",
        );
        for (worker, pool) in self.pools.lock().iter().enumerate() {
            let worker = worker.to_string();
            page.sample(&[("worker", &worker), ("kind", "idle")], pool.idle);
            page.sample(&[("worker", &worker), ("kind", "http2")], pool.http2);
        }
        for (name, help, time) in [
            (
                "weft_last_reload_success_timestamp_seconds",
                "When a configuration was last applied.",
                &self.last_reload,
            ),
            (
                "weft_last_reload_failure_timestamp_seconds",
                "When a configuration was last refused; 0: never.",
                &self.last_reload_failed,
            ),
        ] {
            page.family(name, "gauge", help);
            page.sample(&[], time.load(Ordering::Relaxed));
        }
        page.family("weft_build_info", "gauge", "The version of this build.");
        page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        process::write(page, self.started);
    }
}

/// An open downstream connection.
#[derive(Debug)]
pub struct OpenConnection {
    metrics: Arc<Metrics>,
    listener: Arc<str>,
    reason: &'static str,
}

impl OpenConnection {
    /// Ends it with a reason other than having done its work.
    pub fn closed(mut self, reason: &'static str) {
        self.reason = reason;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let reason = [self.reason, ""];
        self.metrics
            .events
            .count(Event::Closed, &self.listener, reason, 1);
    }
}

#[cfg(test)]
mod tests;

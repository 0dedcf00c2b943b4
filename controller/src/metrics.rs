//! What the controller counts, and its page for Prometheus.
//!
//! **Invariant:** every label value is a constant of the code, but for the few
//! workloads that are furthest behind and the roots in use.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use weft_config::status::{WatchState, WatchStatus};

/// Proxies that are named on the page: those that are furthest behind.
pub const BEHIND_SHOWN_MAX: usize = 20;
/// Seconds that a change of the index takes.
const BUILD_BUCKETS: [f64; 9] = [1e-5, 1e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1.0];

/// Seconds that a pod waits for the webhook.
const ADMISSION_BUCKETS: [f64; 8] = [5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.02, 0.1, 1.0];
/// What becomes of what comes to the webhook's port.
const ADMISSIONS: [&str; 10] = [
    "injected",
    "skipped",
    "refused",
    "malformed",
    "too_large",
    "timed_out",
    "unknown",
    "not_tls",
    "handshake",
    "connections_max",
];

type Label = [(&'static str, &'static str); 1];

/// A counter for each of a closed set of values, all there from the start.
#[derive(Clone, Debug)]
pub struct Counters {
    label: &'static str,
    family: Family<Label, Counter>,
}

impl Counters {
    fn registered(
        registry: &mut Registry,
        (name, about): (&str, &str),
        label: &'static str,
        values: &[&'static str],
    ) -> Self {
        let counters = Self {
            label,
            family: Family::default(),
        };
        registry.register(name, about, counters.family.clone());
        values.iter().for_each(|value| counters.add(value, 0));
        counters
    }

    pub fn add(&self, value: &'static str, count: u64) {
        self.family
            .get_or_create(&[(self.label, value)])
            .inc_by(count);
    }

    pub fn count(&self, value: &'static str) {
        self.add(value, 1);
    }
}

/// What the webhook counts.
#[derive(Clone, Debug)]
pub struct Admissions {
    pub results: Counters,
    pub seconds: Histogram,
}

impl Admissions {
    fn registered(registry: &mut Registry) -> Self {
        let seconds = Histogram::new(ADMISSION_BUCKETS);
        registry.register(
            "admission_duration_seconds",
            "How long the webhook took to answer",
            seconds.clone(),
        );
        let about = "What came to the webhook, by what became of it";
        let results = Counters::registered(registry, ("admissions", about), "result", &ADMISSIONS);
        Self { results, seconds }
    }
}

/// All counters of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub index_seconds: Histogram,
    pub nacks: Counter,
    pub resources_sent: Counters,
    pub bytes_sent: Counters,
    pub certificates: Counters,
    pub tokens: Counters,
    pub streams_refused: Counters,
    pub connections_refused: Counters,
    pub leaves: Counters,
    pub status_writes: Counters,
    pub admissions: Admissions,
}

/// The values of each label.
#[derive(Clone, Copy, Debug, Default)]
pub struct Values {
    pub types: &'static [&'static str],
    pub certificates: &'static [&'static str],
    pub tokens: &'static [&'static str],
    pub streams_refused: &'static [&'static str],
    pub connections_refused: &'static [&'static str],
    pub leaves: &'static [&'static str],
    pub status_writes: &'static [&'static str],
}

/// What is known only when somebody asks.
#[derive(Debug, Default)]
pub struct Figures {
    pub objects: BTreeMap<&'static str, u64>,
    /// Objects with a condition that is false.
    pub faulty: u64,
    pub source_errors: u64,
    /// Of them those that `/status` does not name.
    pub source_errors_unnamed: u64,
    pub revision: u64,
    pub proxies: u64,
    pub subscriptions: u64,
    pub pending: u64,
    pub refused: u64,
    /// The lowest that a connected proxy has; the present one where there is none.
    pub acknowledged_min: u64,
    /// Workload and acknowledged revision of those that are behind, the furthest first.
    pub behind: Vec<(String, u64)>,
    pub behind_count: u64,
    /// Fingerprint, whether it signs, and when it ends.
    pub roots: Vec<(String, bool, u64)>,
    pub own_certificate_expires: u64,
    /// How each kind is watched, where objects come from an API server.
    pub watches: Vec<WatchStatus>,
    /// Whether this replica writes statuses.
    pub leads: bool,
    /// Objects whose statuses it has yet to look at, and that it cannot write.
    pub statuses_waiting: u64,
    pub statuses_unwritten: u64,
}

impl Metrics {
    // tidy: allow size: a table
    pub fn new(values: Values) -> Self {
        let mut registry = Registry::with_prefix("weft_controller");
        let index_seconds = Histogram::new(BUILD_BUCKETS);
        registry.register(
            "index_change_duration_seconds",
            "How long taking up a change took",
            index_seconds.clone(),
        );
        let admissions = Admissions::registered(&mut registry);
        let nacks = Counter::default();
        registry.register(
            "nacks",
            "Responses that proxies have refused",
            nacks.clone(),
        );
        let mut counters = |name: &str, help: &str, label, values: &[&'static str]| {
            Counters::registered(&mut registry, (name, help), label, values)
        };
        Self {
            index_seconds,
            nacks,
            resources_sent: counters(
                "resources_sent",
                "Resources sent, removals too",
                "type",
                values.types,
            ),
            bytes_sent: counters("bytes_sent", "Their bytes", "type", values.types),
            certificates: counters(
                "certificates",
                "Requests to sign, by what became of them",
                "result",
                values.certificates,
            ),
            tokens: counters(
                "tokens_refused",
                "Join tokens refused",
                "reason",
                values.tokens,
            ),
            streams_refused: counters(
                "streams_refused",
                "Streams refused or ended",
                "reason",
                values.streams_refused,
            ),
            connections_refused: counters(
                "connections_refused",
                "Connections ended before they were served",
                "reason",
                values.connections_refused,
            ),
            leaves: counters(
                "leaves",
                "Workloads that asked to leave",
                "result",
                values.leaves,
            ),
            status_writes: counters(
                "status_writes",
                "Statuses of objects that were to be written",
                "result",
                values.status_writes,
            ),
            admissions,
            registry,
        }
    }

    /// The page.
    pub fn page(&self, figures: &Figures) -> String {
        let mut text = String::new();
        let computed = figures.registry();
        // Writing to a String cannot fail.
        let _ = prometheus_text::encode(&mut text, &self.registry);
        let _ = prometheus_text::encode(&mut text, &computed);
        text
    }
}

type Unsigned = Gauge<u64, AtomicU64>;

impl Figures {
    /// What has no labels: name, help, value.
    fn plain(&self) -> [(&'static str, &'static str, u64); 14] {
        [
            (
                "objects_faulty",
                "Objects that something is wrong with",
                self.faulty,
            ),
            (
                "source_errors",
                "Documents that cannot be used",
                self.source_errors,
            ),
            (
                "source_errors_unnamed",
                "Of them those that /status does not name",
                self.source_errors_unnamed,
            ),
            (
                "revision",
                "Revision of the index, which grows with each change",
                self.revision,
            ),
            ("proxies", "Connected proxies", self.proxies),
            (
                "leader",
                "Whether this replica is the one that writes statuses",
                u64::from(self.leads),
            ),
            (
                "statuses_waiting",
                "Objects whose statuses are to be looked at, here",
                self.statuses_waiting,
            ),
            (
                "statuses_unwritten",
                "Objects whose statuses cannot be written or do not stay, here",
                self.statuses_unwritten,
            ),
            (
                "proxies_behind",
                "Proxies that have yet to acknowledge the present revision",
                self.behind_count,
            ),
            (
                "acknowledged_revision_min",
                "The lowest revision that a connected proxy has acknowledged",
                self.acknowledged_min,
            ),
            (
                "responses_pending",
                "Responses that are not answered yet",
                self.pending,
            ),
            (
                "resources_refused",
                "Resources that proxies refuse now",
                self.refused,
            ),
            (
                "subscriptions",
                "Resources that proxies want",
                self.subscriptions,
            ),
            (
                "certificate_expiry_timestamp_seconds",
                "When the controller's own certificate ends",
                self.own_certificate_expires,
            ),
        ]
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("weft_controller");
        for (name, help, value) in self.plain() {
            let gauge = Unsigned::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        }
        let objects = Family::<Label, Unsigned>::default();
        for (kind, count) in &self.objects {
            objects.get_or_create(&[("kind", kind)]).set(*count);
        }
        registry.register("objects", "Objects, by kind", objects);
        let behind = Family::<[(&str, String); 1], Unsigned>::default();
        for (workload, revision) in self.behind.iter().take(BEHIND_SHOWN_MAX) {
            let label = [("workload", workload.clone())];
            behind.get_or_create(&label).set(*revision);
        }
        registry.register(
            "proxy_acknowledged_revision",
            "What the proxies that are furthest behind have acknowledged",
            behind,
        );
        let roots = Family::<[(&str, String); 2], Unsigned>::default();
        for (fingerprint, signing, ends) in &self.roots {
            let labels = [
                ("fingerprint", fingerprint.clone()),
                ("signing", signing.to_string()),
            ];
            roots.get_or_create(&labels).set(*ends);
        }
        registry.register(
            "root_expiry_timestamp_seconds",
            "When a trusted root ends",
            roots,
        );
        self.watched(&mut registry);
        registry
    }

    fn watched(&self, registry: &mut Registry) {
        let up = |of: &WatchStatus| u64::from(of.state == WatchState::Watching);
        let installed = |of: &WatchStatus| u64::from(of.state != WatchState::Absent);
        type Value<'a> = &'a dyn Fn(&WatchStatus) -> u64;
        let gauges: [(&str, &str, Value); 3] = [
            ("watch_up", "Whether a kind is watched now", &up),
            (
                "watch_installed",
                "Whether the API server has a kind",
                &installed,
            ),
            (
                "watch_changed_timestamp_seconds",
                "Since when that is so",
                &|of| of.since,
            ),
        ];
        for (name, help, value) in gauges {
            let family = Family::<[(&str, String); 1], Unsigned>::default();
            for of in &self.watches {
                let label = [("kind", of.kind.clone())];
                family.get_or_create(&label).set(value(of));
            }
            registry.register(name, help, family);
        }
        let counters: [(&str, &str, Value); 2] = [
            ("watch_lists", "How often a kind was listed", &|of| of.lists),
            (
                "watch_failures",
                "How often listing or watching failed",
                &|of| of.failures,
            ),
        ];
        for (name, help, value) in counters {
            let family = Family::<[(&str, String); 1], Counter>::default();
            for of in &self.watches {
                let label = [("kind", of.kind.clone())];
                family.get_or_create(&label).inc_by(value(of));
            }
            registry.register(name, help, family);
        }
    }
}

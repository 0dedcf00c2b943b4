//! Requests and opaque connections, by listener, service, route and backend.
//!
//! **Invariant:** `record` allocates nothing but, once in a series' life, the
//! cells for causes other than `answered`; it takes no lock.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::exposition::Exposition;
use super::labels::Labels;
use crate::logic::cause::Cause;

/// Upper bounds of the latency buckets, in seconds: from a fast answer on
/// loopback to the default of most timeouts.
const BOUNDS: [f64; 17] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0,
    30.0, 60.0,
];
const BOUNDS_MICROS: [u64; 17] = {
    let mut micros = [0; 17];
    let mut index = 0;
    while index < BOUNDS.len() {
        micros[index] = (BOUNDS[index] * 1e6) as u64;
        index += 1;
    }
    micros
};

/// 0 (none, or not a status), then 1xx to 5xx.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const CAUSES: usize = Cause::ALL.len();

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Http,
    Tcp,
}

/// Durations and bytes of all backends of one listener, service and route, as
/// one thread saw them.
#[derive(Debug, Default)]
struct Totals {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// One thread's counters of one combination of labels.
#[derive(Debug)]
pub struct RequestSeries {
    answered: [AtomicU64; CLASSES.len()],
    /// Failures are rare: most series never need these cells.
    others: OnceLock<Box<[[AtomicU64; CAUSES]; CLASSES.len()]>>,
    totals: Arc<Totals>,
}

impl RequestSeries {
    fn new(totals: Arc<Totals>) -> Self {
        Self {
            answered: Default::default(),
            others: OnceLock::new(),
            totals,
        }
    }

    /// Counts one request. `status` 0: none was sent.
    pub fn record(
        &self,
        status: u16,
        cause: Cause,
        latency: Duration,
        bytes_in: u64,
        bytes_out: u64,
    ) {
        let class = match status / 100 {
            class @ 1..=5 => usize::from(class),
            _ => 0,
        };
        let cell = if cause == Cause::Answered {
            self.answered.get(class)
        } else {
            self.others
                .get_or_init(|| Box::new([const { [const { AtomicU64::new(0) }; CAUSES] }; 6]))
                .get(class)
                .and_then(|causes| causes.get(cause as usize))
        };
        if let Some(cell) = cell {
            cell.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.totals.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.totals.sum_micros.fetch_add(micros, Ordering::Relaxed);
        if bytes_in > 0 {
            self.totals.bytes_in.fetch_add(bytes_in, Ordering::Relaxed);
        }
        if bytes_out > 0 {
            self.totals
                .bytes_out
                .fetch_add(bytes_out, Ordering::Relaxed);
        }
    }

    /// Adds this shard to `sums`, class by class, cause by cause.
    fn add_to(&self, sums: &mut [[u64; CAUSES]; CLASSES.len()]) {
        for (class, sum) in sums.iter_mut().enumerate() {
            if let (Some(cell), Some(answered)) = (
                sum.get_mut(Cause::Answered as usize),
                self.answered.get(class),
            ) {
                *cell += answered.load(Ordering::Relaxed);
            }
            let others = self.others.get().and_then(|others| others.get(class));
            for (cell, other) in sum.iter_mut().zip(others.into_iter().flatten()) {
                *cell += other.load(Ordering::Relaxed);
            }
        }
    }
}

type Key = (Kind, Arc<str>, Arc<str>, Arc<str>, Arc<str>);
type TotalsKey = (Kind, Arc<str>, Arc<str>, Arc<str>);

#[derive(Debug, Default)]
struct Entry {
    /// By thread; a thread that never asked has none.
    shards: Vec<Option<Arc<RequestSeries>>>,
    /// What all shards counted at the last look of `prune`.
    seen: u64,
}

#[derive(Debug, Default)]
struct Tables {
    series: HashMap<Key, Entry>,
    totals: HashMap<TotalsKey, Vec<Option<Arc<Totals>>>>,
}

#[derive(Debug, Default)]
pub struct SeriesTable {
    pub labels: Labels,
    tables: Mutex<Tables>,
}

/// A small number that is this thread's own.
fn shard_index() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static INDEX: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed)));
    INDEX.get()
}

fn shard<T>(shards: &mut Vec<Option<Arc<T>>>, make: impl FnOnce() -> T) -> Arc<T> {
    let index = shard_index();
    if shards.len() <= index {
        shards.resize_with(index + 1, || None);
    }
    match shards.get_mut(index) {
        Some(slot) => Arc::clone(slot.get_or_insert_with(|| Arc::new(make()))),
        None => Arc::new(make()),
    }
}

impl SeriesTable {
    /// `names`: listener, service, route, backend.
    pub fn find(&self, kind: Kind, names: [&str; 4]) -> Arc<RequestSeries> {
        let [listener, service, route, backend] = names;
        let service = self.labels.admit(0, service);
        let route = self.labels.admit(1, route);
        let backend = self.labels.admit(2, backend);
        let listener: Arc<str> = Arc::from(listener);
        let mut tables = self.tables.lock();
        let Tables { series, totals } = &mut *tables;
        let totals_key = (
            kind,
            Arc::clone(&listener),
            Arc::clone(&service),
            Arc::clone(&route),
        );
        let entry = series
            .entry((kind, listener, service, route, backend))
            .or_default();
        shard(&mut entry.shards, || {
            RequestSeries::new(shard(
                totals.entry(totals_key).or_default(),
                Totals::default,
            ))
        })
    }

    pub fn prune(&self) {
        let mut tables = self.tables.lock();
        let Tables { series, totals } = &mut *tables;
        series.retain(|_, entry| {
            let held = entry
                .shards
                .iter()
                .flatten()
                .any(|shard| Arc::strong_count(shard) > 1);
            let count = sum(entry).iter().flatten().sum();
            let changed = entry.seen != count;
            entry.seen = count;
            held || changed
        });
        let alive: std::collections::HashSet<TotalsKey> = series
            .keys()
            .map(|(kind, listener, service, route, _)| {
                (*kind, listener.clone(), service.clone(), route.clone())
            })
            .collect();
        totals.retain(|key, _| alive.contains(key));
        drop(alive);
        drop(tables);
        self.labels.prune();
    }

    pub fn write(&self, page: &mut Exposition) {
        let tables = self.tables.lock();
        write_counts(
            page,
            &tables,
            Kind::Http,
            "weft_requests_total",
            "Requests, by what the client was answered and why.",
        );
        write_counts(
            page,
            &tables,
            Kind::Tcp,
            "weft_tcp_connections_total",
            "Opaque connections that have ended, by how.",
        );
        for (kind, name, help) in [
            (
                Kind::Http,
                "weft_request_duration_seconds",
                "From a request's first byte to the end of its answer.",
            ),
            (
                Kind::Tcp,
                "weft_tcp_connection_duration_seconds",
                "How long opaque connections lasted.",
            ),
        ] {
            page.family(name, "histogram", help);
            write_durations(page, &tables, kind);
        }
        type Read = fn(&Totals) -> &AtomicU64;
        let families: [(&'static str, &'static str, Read); 2] = [
            (
                "weft_bytes_received_total",
                "Body bytes from clients, opaque connections included.",
                |totals| &totals.bytes_in,
            ),
            (
                "weft_bytes_sent_total",
                "Body bytes to clients, opaque connections included.",
                |totals| &totals.bytes_out,
            ),
        ];
        for (name, help, read) in families {
            page.family(name, "counter", help);
            for (kind, label) in [(Kind::Http, "http"), (Kind::Tcp, "tcp")] {
                for (labels, shards) in totals_of(&tables, kind) {
                    let bytes: u64 = shards
                        .iter()
                        .flatten()
                        .map(|totals| read(totals).load(Ordering::Relaxed))
                        .sum();
                    let [listener, service, route] = labels;
                    page.sample(&[listener, service, route, ("kind", label)], bytes);
                }
            }
        }
        page.family(
            "weft_metric_label_overflows_total",
            "counter",
            "Series counted under `other` because a label had metricLabelValuesMax values already.",
        );
        for (label, count) in self.labels.overflows() {
            page.sample(&[("label", label)], count);
        }
    }
}

type TotalsLabels<'a> = [(&'static str, &'a str); 3];

fn totals_of(
    tables: &Tables,
    kind: Kind,
) -> impl Iterator<Item = (TotalsLabels<'_>, &[Option<Arc<Totals>>])> {
    tables
        .totals
        .iter()
        .filter(move |((of, ..), _)| *of == kind)
        .map(|((_, listener, service, route), shards)| {
            let labels = [
                ("listener", listener.as_ref()),
                ("service", service.as_ref()),
                ("route", route.as_ref()),
            ];
            (labels, shards.as_slice())
        })
}

fn sum(entry: &Entry) -> [[u64; CAUSES]; CLASSES.len()] {
    let mut sums = [[0; CAUSES]; CLASSES.len()];
    for shard in entry.shards.iter().flatten() {
        shard.add_to(&mut sums);
    }
    sums
}

fn write_durations(page: &mut Exposition, tables: &Tables, kind: Kind) {
    for (labels, shards) in totals_of(tables, kind) {
        let mut counts = [0; BOUNDS.len() + 1];
        let mut micros = 0;
        for totals in shards.iter().flatten() {
            for (count, bucket) in counts.iter_mut().zip(&totals.buckets) {
                *count += bucket.load(Ordering::Relaxed);
            }
            micros += totals.sum_micros.load(Ordering::Relaxed);
        }
        page.histogram(&labels, &BOUNDS, &counts, micros as f64 / 1e6);
    }
}

fn write_counts(
    page: &mut Exposition,
    tables: &Tables,
    kind: Kind,
    name: &'static str,
    help: &str,
) {
    page.family(name, "counter", help);
    for ((of, listener, service, route, backend), entry) in &tables.series {
        if *of != kind {
            continue;
        }
        for (class, causes) in CLASSES.iter().zip(sum(entry)) {
            for (cause, count) in Cause::ALL.iter().zip(causes) {
                if count == 0 {
                    continue;
                }
                let labels = [
                    ("listener", listener.as_ref()),
                    ("service", service),
                    ("route", route),
                    ("backend", backend),
                    ("cause", cause.label()),
                    ("code_class", class),
                ];
                let shown = if kind == Kind::Http {
                    &labels[..]
                } else {
                    &labels[..5]
                };
                page.sample(shown, count);
            }
        }
    }
}

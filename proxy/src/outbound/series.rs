//! A worker's cache of metric series, so that recording a request looks up
//! nothing in the registry.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::telemetry::metrics::{Metrics, RequestSeries};

/// What a series is about, by identity: the names behind the addresses live as
/// long as the generation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeriesKey {
    pub listener: usize,
    pub service: u64,
    pub rule: usize,
    pub endpoint: Option<SocketAddr>,
}

/// The label values of a series.
#[derive(Clone, Copy, Debug)]
pub struct SeriesLabels<'a> {
    pub listener: &'a str,
    pub service: &'a str,
    pub route: &'a str,
}

/// Series cached by a worker; beyond, the cache begins anew.
const CACHED_MAX: usize = 10_000;

#[derive(Debug, Default)]
struct Cached {
    generation: u64,
    series: HashMap<SeriesKey, Arc<RequestSeries>, foldhash::fast::RandomState>,
}

#[derive(Debug, Default)]
pub struct SeriesCache(Mutex<Cached>);

impl SeriesCache {
    /// The series of a key of this configuration generation.
    pub fn get(
        &self,
        generation: u64,
        key: SeriesKey,
        labels: SeriesLabels<'_>,
        metrics: &Metrics,
    ) -> Arc<RequestSeries> {
        let mut cached = self.0.lock();
        if cached.generation != generation || cached.series.len() >= CACHED_MAX {
            cached.generation = generation;
            cached.series.clear();
        }
        let make = || {
            let backend = key.endpoint.map(|address| address.to_string());
            metrics.series(
                labels.listener,
                labels.service,
                labels.route,
                backend.as_deref().unwrap_or(""),
            )
        };
        Arc::clone(cached.series.entry(key).or_insert_with(make))
    }

    /// Forgets series of earlier generations.
    pub fn renew(&self, generation: u64) {
        let mut cached = self.0.lock();
        if cached.generation < generation {
            cached.generation = generation;
            cached.series.clear();
        }
    }
}

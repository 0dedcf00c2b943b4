//! The bound on label values: what comes beyond it is counted as `other`.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// What the values beyond the bound are called.
pub const OTHER: &str = "other";
/// Until the configuration says otherwise; its default.
const VALUES_MAX_DEFAULT: usize = 1000;

/// The labels that are bounded, by their place in a series' labels.
pub const BOUNDED: [&str; 3] = ["service", "route", "backend"];

#[derive(Debug)]
pub struct Labels {
    max: AtomicUsize,
    seen: Mutex<[HashSet<Arc<str>>; 3]>,
    overflows: [AtomicU64; 3],
}

impl Default for Labels {
    fn default() -> Self {
        Self {
            max: AtomicUsize::new(VALUES_MAX_DEFAULT),
            seen: Mutex::default(),
            overflows: Default::default(),
        }
    }
}

impl Labels {
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// The shared form of a value of bounded label number `label`, or `other`.
    pub fn admit(&self, label: usize, value: &str) -> Arc<str> {
        let mut seen = self.seen.lock();
        let Some(values) = seen.get_mut(label) else {
            return Arc::from(value);
        };
        if let Some(known) = values.get(value) {
            return Arc::clone(known);
        }
        if !value.is_empty() && values.len() >= self.max.load(Ordering::Relaxed) {
            if let Some(overflow) = self.overflows.get(label) {
                overflow.fetch_add(1, Ordering::Relaxed);
            }
            return Arc::from(OTHER);
        }
        let value: Arc<str> = Arc::from(value);
        values.insert(Arc::clone(&value));
        value
    }

    /// Forgets values that no series has any more.
    pub fn prune(&self) {
        for values in self.seen.lock().iter_mut() {
            values.retain(|value| Arc::strong_count(value) > 1);
            values.shrink_to_fit();
        }
    }

    /// How often each bounded label was refused a value.
    pub fn overflows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self
            .overflows
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed));
        BOUNDED.into_iter().zip(counts)
    }
}

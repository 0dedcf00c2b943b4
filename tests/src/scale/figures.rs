//! What a run comes to. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::size::Size;

#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// From before a change is written to the last proxy that uses it; of the churn.
    pub changes: Vec<Duration>,
    /// The same, of a service that all use.
    pub rollout: Vec<Duration>,
    /// Bytes of responses, for each proxy that a change concerned.
    pub bytes_per_proxy_per_change: f64,
    /// The same of the resources alone, without what is around them in a response.
    pub resource_bytes_per_proxy_per_change: f64,
    /// Resources that were told in the churn, for each proxy that a change concerned: one.
    pub resources_per_proxy_per_change: f64,
    /// CPU of the controller in the churn, for each change.
    pub change_cpu: Duration,
    pub cpu: Duration,
    pub memory_now: u64,
    pub memory_peak: u64,
    /// From the start of the new controller until everybody is in sync; and until it was ready.
    pub resync: Duration,
    pub ready: Duration,
}

/// The value that so large a share is not above. Sorts.
pub fn quantile(of: &mut [Duration], share: f64) -> Duration {
    of.sort_unstable();
    let last = of.len().saturating_sub(1);
    let index = (last as f64 * share).ceil() as usize;
    of.get(index).copied().unwrap_or_default()
}

pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

impl Figures {
    /// All changes: those of the churn and those of the rollout.
    fn all(&self) -> Vec<Duration> {
        [self.changes.as_slice(), &self.rollout].concat()
    }

    pub fn json(&self, size: &Size) -> Value {
        let mut all = self.all();
        let mut of = |share| millis(quantile(&mut all, share));
        let mut rollout = self.rollout.clone();
        json!({
            "proxies": size.proxies,
            "services": size.services,
            "endpoints": size.pods(),
            "change_p50_ms": of(0.5),
            "change_p99_ms": of(0.99),
            "change_max_ms": of(1.0),
            "bytes_per_proxy_per_change": self.bytes_per_proxy_per_change.round(),
            "controller_cpu_s": self.cpu.as_secs_f64(),
            "controller_rss_bytes": self.memory_now,
            "resync_s": millis(self.resync) / 1e3,
            "controller_rss_peak_bytes": self.memory_peak,
            "controller_cpu_per_change_us": self.change_cpu.as_micros() as u64,
            "rollout_p50_ms": millis(quantile(&mut rollout, 0.5)),
            "rollout_max_ms": millis(quantile(&mut rollout, 1.0)),
            "controller_ready_s": millis(self.ready) / 1e3,
        })
    }

    /// The bars that are missed.
    pub fn missed(&self) -> Vec<String> {
        let p99 = millis(quantile(&mut self.all(), 0.99));
        let bars = [
            ("change, p99", p99, 200.0, "ms"),
            (
                "memory",
                self.memory_now as f64 / f64::from(1 << 20),
                300.0,
                "MiB",
            ),
            ("resync", self.resync.as_secs_f64(), 10.0, "s"),
        ];
        let missed = bars.into_iter().filter(|(_, value, bar, _)| value >= bar);
        missed
            .map(|(what, value, bar, unit)| format!("{what}: {value:.1} {unit}, not under {bar}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_there() {
        let mut of: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        for (share, expected) in [(0.0, 1), (0.5, 51), (0.99, 100), (1.0, 100)] {
            assert_eq!(quantile(&mut of, share), Duration::from_millis(expected));
        }
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
    }
}

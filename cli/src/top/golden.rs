//! What the proxies' counters say of services, of edges (who calls whom) and of
//! workloads, between two readings. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::exposition::{Buckets, Series};

/// Everything that one proxy has counted of one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests, and opaque connections that have ended.
    pub all: f64,
    pub failed: f64,
    pub retries: f64,
    /// Upstream connections that are open now.
    pub connections: f64,
    pub durations: Buckets,
}

/// One reading of a proxy's `/metrics`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// When the process started: another one counts from zero.
    process: f64,
    /// By service as the proxy calls it: `shop/web:80`, or `inbound:8080` for
    /// what comes in for its own workload.
    services: BTreeMap<String, Counts>,
}

/// What a service of the proxy's own workload is called.
const INBOUND: &str = "inbound:";

impl Reading {
    pub fn parse(page: &str) -> Self {
        let mut reading = Self::default();
        for series in page.lines().filter_map(Series::parse) {
            if series.name == "process_start_time_seconds" {
                reading.process = series.value;
            }
            let service = series.label("service");
            if service.is_empty() {
                continue;
            }
            let counts = reading.services.entry(service.to_owned()).or_default();
            counts.take(&series);
        }
        reading
    }

    /// What was counted since `earlier`.
    fn since(&self, earlier: &Self) -> Self {
        let mut delta = self.clone();
        if self.process != earlier.process {
            return delta;
        }
        for (service, counts) in &mut delta.services {
            if let Some(before) = earlier.services.get(service) {
                counts.all = (counts.all - before.all).max(0.0);
                counts.failed = (counts.failed - before.failed).max(0.0);
                counts.retries = (counts.retries - before.retries).max(0.0);
                counts.durations = counts.durations.since(&before.durations);
            }
        }
        delta
    }
}

impl Counts {
    fn take(&mut self, series: &Series<'_>) {
        let value = series.value;
        match series.name {
            "weft_requests_total" | "weft_tcp_connections_total" => {
                self.all += value;
                if is_failure(series) {
                    self.failed += value;
                }
            }
            "weft_request_duration_seconds_bucket" => {
                self.durations.add(series.label("le"), value);
            }
            // Other results say why there was no retry.
            "weft_retries_total" if matches!(series.label("result"), "free" | "budgeted") => {
                self.retries += value;
            }
            "weft_limit_used" if series.label("limit") == "connection" => {
                self.connections += value;
            }
            _ => {}
        }
    }

    fn merge(&mut self, other: &Self) {
        self.all += other.all;
        self.failed += other.failed;
        self.retries += other.retries;
        self.connections += other.connections;
        self.durations.merge(&other.durations);
    }
}

/// The service's fault: an answer of 500 and up, or none. A client that left or
/// asked for what is not there, or not allowed, is not.
fn is_failure(series: &Series<'_>) -> bool {
    let clients = ["downstream_gone", "downstream_stalled", "filter_answered"];
    let cause = series.label("cause");
    series.label("code_class") == "5xx"
        || series.name == "weft_tcp_connections_total"
            && cause != "answered"
            && !clients.contains(&cause)
}

/// The golden metrics of a service, an edge or a workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Golden {
    /// Requests and ended opaque connections a second.
    pub rate: f64,
    /// Share of them that did not fail, from 0 to 1; none: there was none.
    pub success: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Open upstream connections.
    pub connections: u64,
    /// Retries a second.
    pub retries: f64,
}

impl Golden {
    fn of(counts: &Counts, time: Duration) -> Self {
        let seconds = time.as_secs_f64().max(f64::EPSILON);
        let millis = |share| {
            let of = counts.durations.quantile(share)?;
            Some(of.as_secs_f64() * 1e3)
        };
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of connections"
        )]
        let connections = counts.connections as u64;
        Self {
            rate: counts.all / seconds,
            success: (counts.all > 0.0).then(|| 1.0 - counts.failed / counts.all),
            p50_ms: millis(0.5),
            p95_ms: millis(0.95),
            p99_ms: millis(0.99),
            connections,
            retries: counts.retries / seconds,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The caller's identity; none for a service as a whole, and for a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Service, or for what comes in identity of the workload.
    pub to: String,
    #[serde(flatten)]
    pub golden: Golden,
}

/// One interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// As their callers see them; the busiest first.
    pub services: Vec<Row>,
    pub edges: Vec<Row>,
    /// What came in for the workloads of an identity, from callers outside the mesh too.
    pub inbound: Vec<Row>,
    /// Proxies that could not be read, and why.
    pub unread: Vec<Unread>,
    pub proxies: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unread {
    pub workload: String,
    pub admin: String,
    pub why: String,
}

/// Adds up what was counted between two readings. Readings are by a proxy's
/// workload, with its identity.
#[derive(Debug, Default)]
pub struct Sums {
    services: BTreeMap<String, Counts>,
    edges: BTreeMap<(String, String), Counts>,
    inbound: BTreeMap<String, Counts>,
}

impl Sums {
    pub fn add(&mut self, identity: &str, earlier: &Reading, now: &Reading) {
        for (service, counts) in now.since(earlier).services {
            if service.starts_with(INBOUND) {
                let inbound = self.inbound.entry(identity.to_owned()).or_default();
                inbound.merge(&counts);
            } else {
                self.services
                    .entry(service.clone())
                    .or_default()
                    .merge(&counts);
                let edge = (identity.to_owned(), service);
                self.edges.entry(edge).or_default().merge(&counts);
            }
        }
    }

    /// `time` is what lies between the readings.
    pub fn finish(self, time: Duration) -> Summary {
        let row = |from: Option<String>, to: String, counts: &Counts| Row {
            from,
            to,
            golden: Golden::of(counts, time),
        };
        let services = self.services.into_iter();
        let edges = self.edges.into_iter();
        let inbound = self.inbound.into_iter();
        Summary {
            services: sorted(services.map(|(to, counts)| row(None, to, &counts))),
            edges: sorted(edges.map(|((from, to), counts)| row(Some(from), to, &counts))),
            inbound: sorted(inbound.map(|(to, counts)| row(None, to, &counts))),
            ..Summary::default()
        }
    }
}

/// The busiest first; their names decide between equals.
fn sorted(rows: impl Iterator<Item = Row>) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.collect();
    rows.sort_by(|a, b| b.golden.rate.total_cmp(&a.golden.rate));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
weft_requests_total{listener=\"l\",service=\"shop/web:80\",route=\"\",backend=\"127.0.0.1:1\",cause=\"answered\",code_class=\"2xx\"} 40
weft_requests_total{listener=\"l\",service=\"shop/web:80\",route=\"\",backend=\"127.0.0.1:1\",cause=\"answered\",code_class=\"5xx\"} 10
weft_requests_total{listener=\"l\",service=\"shop/web:80\",route=\"\",backend=\"127.0.0.1:1\",cause=\"answered\",code_class=\"4xx\"} 50
weft_requests_total{listener=\"inbound:8080\",service=\"inbound:8080\",route=\"\",backend=\"\",cause=\"answered\",code_class=\"2xx\"} 7
weft_tcp_connections_total{listener=\"l\",service=\"shop/db:5432\",route=\"\",backend=\"\",cause=\"connect_failed\"} 1
weft_tcp_connections_total{listener=\"l\",service=\"shop/db:5432\",route=\"\",backend=\"\",cause=\"answered\"} 3
weft_request_duration_seconds_bucket{listener=\"l\",service=\"shop/web:80\",route=\"\",le=\"0.002\"} 100
weft_request_duration_seconds_bucket{listener=\"l\",service=\"shop/web:80\",route=\"\",le=\"+Inf\"} 100
weft_retries_total{service=\"shop/web:80\",kind=\"status\",result=\"free\"} 4
weft_retries_total{service=\"shop/web:80\",kind=\"status\",result=\"budget_used\"} 9
weft_limit_used{service=\"shop/web:80\",limit=\"connection\"} 3
process_start_time_seconds 12.5
nonsense
";

    fn summary(earlier: &str, now: &str) -> Summary {
        let mut sums = Sums::default();
        sums.add(
            "shop/client",
            &Reading::parse(earlier),
            &Reading::parse(now),
        );
        sums.finish(Duration::from_secs(2))
    }

    #[test]
    fn rates_shares_and_quantiles() {
        let summary = summary("process_start_time_seconds 12.5\n", PAGE);
        let [web, db] = &summary.edges[..] else {
            panic!("{summary:?}");
        };
        assert_eq!(
            (web.from.as_deref(), &*web.to),
            (Some("shop/client"), "shop/web:80")
        );
        assert_eq!((web.golden.rate, web.golden.success), (50.0, Some(0.9)));
        assert_eq!((web.golden.p50_ms, web.golden.connections), (Some(1.0), 3));
        assert_eq!(web.golden.retries, 2.0);
        assert_eq!((&*db.to, db.golden.success), ("shop/db:5432", Some(0.75)));
        assert_eq!(summary.services.len(), 2);
        assert_eq!(
            (&*summary.inbound[0].to, summary.inbound[0].golden.rate),
            ("shop/client", 3.5)
        );
    }

    #[test]
    fn only_what_is_new_counts_unless_the_process_is() {
        let quiet = summary(PAGE, PAGE);
        assert_eq!(quiet.edges[0].golden.rate, 0.0);
        assert_eq!(quiet.edges[0].golden.success, None);
        let restarted = summary(PAGE, &PAGE.replace("12.5", "99"));
        assert_eq!(restarted.edges[0].golden.rate, 50.0);
    }

    #[test]
    fn two_callers_make_one_service() {
        let mut sums = Sums::default();
        let (none, page) = (
            Reading::parse("process_start_time_seconds 12.5\n"),
            Reading::parse(PAGE),
        );
        sums.add("shop/a", &none, &page);
        sums.add("shop/b", &none, &page);
        let summary = sums.finish(Duration::from_secs(2));
        assert_eq!((summary.services.len(), summary.edges.len()), (2, 4));
        assert_eq!(summary.services[0].golden.rate, 100.0);
    }
}

//! What the sidecars of those who call say of the services that they call: /metrics and /endpoints,
//! parsed, and the counts between two readings. Pure but for the functions that ask.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::manifests::NAMESPACE;
use super::programs::Service;
use crate::admin;

const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// One reading of one sidecar.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When the process started, in seconds: a restarted one counts from zero.
    pub process: f64,
    /// By service and replica.
    pub requests: HashMap<(Service, SocketAddr), Counts>,
    pub durations: HashMap<Service, Buckets>,
    pub retries: u64,
    pub resident_bytes: u64,
    /// Replicas that it would pick.
    pub available: Vec<SocketAddr>,
}

/// Requests by what the caller was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub good: u64,
    pub bad: u64,
}

/// A histogram: upper bounds in seconds, each with the number of values up to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    pub fn add(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        for ((_, count), (_, more)) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }

    fn since(&self, earlier: Option<&Self>) -> Self {
        let mut delta = self.clone();
        for ((_, count), (_, before)) in delta
            .0
            .iter_mut()
            .zip(earlier.into_iter().flat_map(|of| &of.0))
        {
            *count = count.saturating_sub(*before);
        }
        delta
    }

    /// The value below which this share lies, as even as values may lie within a bucket.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let (_, all) = *self.0.last()?;
        if all == 0 {
            return None;
        }
        let rank = all as f64 * share;
        let (mut low, mut below) = (0.0, 0);
        for (high, count) in &self.0 {
            if *count as f64 >= rank && *count > below {
                let within = (rank - below as f64) / (count - below) as f64;
                // The last bucket has no end.
                let high = if high.is_finite() { *high } else { low };
                return Some(Duration::from_secs_f64(low + (high - low) * within));
            }
            (low, below) = (*high, *count);
        }
        None
    }
}

impl Sample {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        if self.process != earlier.process {
            return self.clone();
        }
        let mut delta = self.clone();
        for (key, counts) in &mut delta.requests {
            let before = earlier.requests.get(key).copied().unwrap_or_default();
            counts.good = counts.good.saturating_sub(before.good);
            counts.bad = counts.bad.saturating_sub(before.bad);
        }
        for (service, buckets) in &mut delta.durations {
            *buckets = buckets.since(earlier.durations.get(service));
        }
        delta.retries = self.retries.saturating_sub(earlier.retries);
        delta
    }
}

/// Reads the numbers from an admin address.
pub async fn fetch(admin: SocketAddr) -> Result<Sample> {
    let mut sample = parse(&page(admin, "/metrics").await?);
    sample.available = parse_endpoints(&serde_json::from_str(&page(admin, "/endpoints").await?)?);
    Ok(sample)
}

/// The replicas that a sidecar would pick now.
pub async fn available(admin: SocketAddr) -> Result<Vec<SocketAddr>> {
    let page = page(admin, "/endpoints").await?;
    Ok(parse_endpoints(&serde_json::from_str(&page)?))
}

pub async fn is_ready(admin: SocketAddr) -> bool {
    page(admin, "/ready").await.is_ok()
}

pub async fn page(address: SocketAddr, path: &str) -> Result<String> {
    Ok(admin::get(address, path, PAGE_TIMEOUT).await?.text())
}

/// `shop/catalogue:80`, as the mesh calls a port of a service.
fn service(name: &str) -> Option<Service> {
    let (namespace, rest) = name.split_once('/')?;
    let (name, _port) = rest.rsplit_once(':')?;
    Service::named(name).filter(|_| namespace == NAMESPACE)
}

fn parse_endpoints(page: &Value) -> Vec<SocketAddr> {
    fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
        let list = value.get(name).and_then(Value::as_array);
        list.into_iter().flatten()
    }
    let of_the_store = |of: &&Value| {
        let name = of.get("name").and_then(Value::as_str);
        name.and_then(service).is_some()
    };
    let services = list(page, "services").filter(of_the_store);
    let endpoints = services.flat_map(|service| list(service, "endpoints"));
    let available =
        endpoints.filter(|of| of.get("available").and_then(Value::as_bool) == Some(true));
    let addresses = available.filter_map(|of| of.get("address")?.as_str()?.parse().ok());
    addresses.collect()
}

/// Reads what we know of a page in the Prometheus text format and skips the rest.
pub fn parse(page: &str) -> Sample {
    let mut sample = Sample::default();
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    for (name, labels, value) in lines.filter_map(series) {
        let count = value as u64;
        let service = label(&labels, "service").and_then(service);
        match (name, service) {
            ("weft_requests_total", Some(service)) => {
                if let Some(Ok(address)) = label(&labels, "backend").map(str::parse) {
                    let counts: &mut Counts =
                        sample.requests.entry((service, address)).or_default();
                    match label(&labels, "code_class") {
                        Some("2xx") if label(&labels, "cause") == Some("answered") => {
                            counts.good += count
                        }
                        _ => counts.bad += count,
                    }
                }
            }
            ("weft_request_duration_seconds_bucket", Some(service)) => {
                if let Some(bound) = label(&labels, "le").and_then(bound) {
                    let buckets = &mut sample.durations.entry(service).or_default().0;
                    // Several series are of one service: with a route and without.
                    match buckets.iter_mut().find(|(known, _)| *known == bound) {
                        Some((_, known)) => *known += count,
                        None => buckets.push((bound, count)),
                    }
                }
            }
            // Other results say why there was no retry.
            ("weft_retries_total", Some(_))
                if matches!(label(&labels, "result"), Some("free" | "budgeted")) =>
            {
                sample.retries += count;
            }
            ("process_start_time_seconds", _) => sample.process = value,
            ("process_resident_memory_bytes", _) => sample.resident_bytes = count,
            _ => {}
        }
    }
    sample
}

/// `+Inf` is one, too.
fn bound(text: &str) -> Option<f64> {
    text.parse().ok()
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

/// `name{label="value",…} 1`; none for a line of another form.
fn series(line: &str) -> Option<(&str, Labels<'_>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some((series, Vec::new(), value));
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut labels = Vec::new();
    while let Some((label, quoted)) = rest.split_once("=\"") {
        // The values that we look at have nothing to escape.
        let (text, after) = quoted.split_once('"')?;
        labels.push((label, text));
        rest = after.trim_start_matches(',');
    }
    Some((name, labels, value))
}

fn label<'a>(labels: &Labels<'a>, name: &str) -> Option<&'a str> {
    labels
        .iter()
        .find(|(label, _)| *label == name)
        .map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# HELP weft_requests_total Requests.
# TYPE weft_requests_total counter
weft_requests_total{listener=\"shop/catalogue:80@name\",service=\"shop/catalogue:80\",route=\"\",backend=\"127.0.0.1:1\",cause=\"answered\",code_class=\"2xx\"} 40
weft_requests_total{listener=\"shop/catalogue:80@name\",service=\"shop/catalogue-next:80\",route=\"canary\",backend=\"127.0.0.1:1\",cause=\"answered\",code_class=\"5xx\"} 2
weft_requests_total{listener=\"inbound:8080\",service=\"inbound:8080\",route=\"\",backend=\"127.0.0.1:8\",cause=\"answered\",code_class=\"2xx\"} 9
weft_request_duration_seconds_bucket{listener=\"l\",service=\"shop/catalogue:80\",route=\"\",le=\"0.001\"} 10
weft_request_duration_seconds_bucket{listener=\"l\",service=\"shop/catalogue:80\",route=\"\",le=\"0.005\"} 90
weft_request_duration_seconds_bucket{listener=\"l\",service=\"shop/catalogue:80\",route=\"\",le=\"+Inf\"} 100
weft_retries_total{service=\"shop/catalogue:80\",kind=\"connect_failed\",result=\"free\"} 3
weft_retries_total{service=\"shop/catalogue:80\",kind=\"status\",result=\"budget_used\"} 5
process_start_time_seconds 12.5
process_resident_memory_bytes 9000000
nonsense
";

    fn key() -> (Service, SocketAddr) {
        (Service::Catalogue, "127.0.0.1:1".parse().unwrap())
    }

    #[test]
    fn a_page() {
        let sample = parse(PAGE);
        let counts = Counts { good: 40, bad: 2 };
        assert_eq!(sample.requests, HashMap::from([(key(), counts)]));
        assert_eq!(sample.retries, 3);
        assert_eq!((sample.process, sample.resident_bytes), (12.5, 9_000_000));
    }

    #[test]
    fn quantiles() {
        let buckets = parse(PAGE).durations.remove(&Service::Catalogue).unwrap();
        let micros = |share| buckets.quantile(share).map(|of| of.as_micros());
        assert_eq!(micros(0.1), Some(1000));
        assert_eq!(micros(0.5), Some(3000));
        assert_eq!(micros(0.99), Some(5000), "the last bucket has no end");
        assert_eq!(buckets.since(Some(&buckets)).quantile(0.5), None);
        let mut twice = buckets.clone();
        twice.add(&buckets);
        assert_eq!(twice.quantile(0.5), buckets.quantile(0.5));
    }

    #[test]
    fn who_is_available() {
        let page = r#"{"services": [{"name": "shop/payment:80", "endpoints": [
            {"address": "127.0.0.1:1", "available": true},
            {"address": "127.0.0.1:2", "available": false}]},
            {"name": "inbound:8080", "endpoints": [{"address": "127.0.0.1:3", "available": true}]}]}"#;
        let found = parse_endpoints(&serde_json::from_str(page).unwrap());
        assert_eq!(found, ["127.0.0.1:1".parse().unwrap()]);
    }

    #[test]
    fn a_new_process_counts_from_zero() {
        let first = parse(PAGE);
        let second = parse(&PAGE.replace("2xx\"} 40", "2xx\"} 45"));
        assert_eq!(
            second.since(&first).requests[&key()],
            Counts { good: 5, bad: 0 }
        );
        let restarted = parse(&PAGE.replace("12.5", "99"));
        assert_eq!(
            restarted.since(&first).requests[&key()],
            Counts { good: 40, bad: 2 }
        );
    }
}

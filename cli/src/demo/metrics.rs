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
use crate::exposition::{Buckets, Series};

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
            if let Some(before) = earlier.durations.get(service) {
                *buckets = buckets.since(before);
            }
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
    for series in page.lines().filter_map(Series::parse) {
        let count = series.value as u64;
        match (series.name, service(series.label("service"))) {
            ("weft_requests_total", Some(service)) => {
                if let Ok(address) = series.label("backend").parse() {
                    let counts: &mut Counts =
                        sample.requests.entry((service, address)).or_default();
                    match (series.label("code_class"), series.label("cause")) {
                        ("2xx", "answered") => counts.good += count,
                        _ => counts.bad += count,
                    }
                }
            }
            // Several series are of one service: with a route and without.
            ("weft_request_duration_seconds_bucket", Some(service)) => {
                let buckets = sample.durations.entry(service).or_default();
                buckets.add(series.label("le"), series.value);
            }
            // Other results say why there was no retry.
            ("weft_retries_total", Some(_))
                if matches!(series.label("result"), "free" | "budgeted") =>
            {
                sample.retries += count;
            }
            ("process_start_time_seconds", _) => sample.process = series.value,
            ("process_resident_memory_bytes", _) => sample.resident_bytes = count,
            _ => {}
        }
    }
    sample
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
    fn durations_are_of_the_service() {
        let buckets = parse(PAGE).durations.remove(&Service::Catalogue).unwrap();
        let micros = |share| buckets.quantile(share).map(|of| of.as_micros());
        assert_eq!((micros(0.1), micros(0.5)), (Some(1000), Some(3000)));
        let again = parse(PAGE).since(&parse(PAGE));
        assert_eq!(again.durations[&Service::Catalogue].quantile(0.5), None);
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

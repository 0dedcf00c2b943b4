//! What the proxy says of itself on its admin address: /metrics and /endpoints,
//! parsed, and the counts between two readings. Pure but for the two functions
//! that fetch.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;

use super::load::Http1;

/// One reading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When the process started, in seconds: a restarted one counts from zero.
    pub process: f64,
    pub requests: HashMap<SocketAddr, Counts>,
    /// Whether the balancer would pick an endpoint, for each that is configured.
    pub rotation: HashMap<SocketAddr, Rotation>,
    pub reloads: u64,
    pub reloads_refused: u64,
    pub retries: u64,
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    In,
    /// By the active checks.
    Unhealthy,
    /// For the failures of requests.
    Ejected,
    /// Something else keeps it out.
    Out,
}

/// Requests by what the client was answered.
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
        for (address, counts) in &mut delta.requests {
            let before = earlier.requests.get(address).copied().unwrap_or_default();
            counts.good = counts.good.saturating_sub(before.good);
            counts.bad = counts.bad.saturating_sub(before.bad);
        }
        delta.reloads = self.reloads.saturating_sub(earlier.reloads);
        delta.reloads_refused = self.reloads_refused.saturating_sub(earlier.reloads_refused);
        delta.retries = self.retries.saturating_sub(earlier.retries);
        delta.cpu_seconds = (self.cpu_seconds - earlier.cpu_seconds).max(0.0);
        delta
    }
}

/// Reads the numbers from the admin address.
pub async fn fetch(admin: SocketAddr) -> Result<Sample> {
    let mut sample = parse(&page(admin, "/metrics").await?);
    sample.rotation = parse_endpoints(&serde_json::from_str(&page(admin, "/endpoints").await?)?);
    Ok(sample)
}

/// The first error of the configuration that was refused last.
pub async fn fetch_refusal(admin: SocketAddr) -> Result<Option<String>> {
    let page: Value = serde_json::from_str(&page(admin, "/config").await?)?;
    let error = page
        .pointer("/lastReloadRefused/errors/0")
        .and_then(Value::as_str);
    Ok(error.map(str::to_owned))
}

async fn page(admin: SocketAddr, path: &str) -> Result<String> {
    // A connection each: after a handover the next one reaches the new process.
    let client = Http1::new(admin, false);
    let request = Request::get(path).body(Full::<Bytes>::default())?;
    let answer = match client.call(request).await {
        Ok(answer) => answer,
        Err(loss) => bail!("reading http://{admin}{path}: {}", loss.0),
    };
    if !answer.status.is_success() {
        bail!("reading http://{admin}{path}: status {}", answer.status);
    }
    Ok(String::from_utf8_lossy(&answer.body).into_owned())
}

fn parse_endpoints(page: &Value) -> HashMap<SocketAddr, Rotation> {
    let lists = |value: &Value, name: &str| {
        value
            .get(name)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let services = lists(page, "services").into_iter();
    let endpoints = services.flat_map(|service| lists(&service, "endpoints"));
    endpoints
        .filter_map(|endpoint| {
            Some((
                endpoint.get("address")?.as_str()?.parse().ok()?,
                rotation(&endpoint),
            ))
        })
        .collect()
}

fn rotation(endpoint: &Value) -> Rotation {
    let text = |name| endpoint.get(name).and_then(Value::as_str);
    match endpoint.get("available").and_then(Value::as_bool) {
        Some(true) => Rotation::In,
        _ if text("health") == Some("unhealthy") => Rotation::Unhealthy,
        _ if endpoint
            .get("ejectedForSeconds")
            .is_some_and(Value::is_number) =>
        {
            Rotation::Ejected
        }
        _ => Rotation::Out,
    }
}

/// Reads what we know of a page in the Prometheus text format and skips the rest.
pub fn parse(page: &str) -> Sample {
    let mut sample = Sample::default();
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    for (name, labels, value) in lines.filter_map(series) {
        let count = value as u64;
        match name {
            "weft_requests_total" => {
                if let Some(Ok(address)) = label(&labels, "backend").map(str::parse) {
                    let counts: &mut Counts = sample.requests.entry(address).or_default();
                    match label(&labels, "code_class") {
                        Some("2xx") if label(&labels, "cause") == Some("answered") => {
                            counts.good += count
                        }
                        _ => counts.bad += count,
                    }
                }
            }
            "weft_reloads_total" if label(&labels, "result") == Some("success") => {
                sample.reloads += count
            }
            "weft_reloads_total" => sample.reloads_refused += count,
            // Other results say why there was no retry.
            "weft_retries_total"
                if matches!(label(&labels, "result"), Some("free" | "budgeted")) =>
            {
                sample.retries += count;
            }
            "process_start_time_seconds" => sample.process = value,
            "process_resident_memory_bytes" => sample.resident_bytes = count,
            "process_cpu_seconds_total" => sample.cpu_seconds = value,
            _ => {}
        }
    }
    sample
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
weft_requests_total{listener=\"shop\",service=\"catalogue\",route=\"catalogue\",backend=\"127.0.0.1:1\",cause=\"answered\",code_class=\"2xx\"} 40
weft_requests_total{listener=\"shop\",service=\"catalogue\",route=\"catalogue\",backend=\"127.0.0.1:1\",cause=\"answered\",code_class=\"5xx\"} 2
weft_requests_total{listener=\"shop\",service=\"\",route=\"\",backend=\"\",cause=\"no_route\",code_class=\"4xx\"} 9
weft_retries_total{service=\"catalogue\",kind=\"connect\",result=\"free\"} 3
weft_retries_total{service=\"catalogue\",kind=\"status\",result=\"budget_used\"} 5
weft_reloads_total{result=\"success\"} 2
weft_reloads_total{result=\"failure\"} 1
process_start_time_seconds 12.5
process_resident_memory_bytes 9000000
nonsense
";

    #[test]
    fn a_page() {
        let sample = parse(PAGE);
        let counts = Counts { good: 40, bad: 2 };
        assert_eq!(
            sample.requests,
            HashMap::from([("127.0.0.1:1".parse().unwrap(), counts)])
        );
        assert_eq!(
            (sample.retries, sample.reloads, sample.reloads_refused),
            (3, 2, 1)
        );
        assert_eq!((sample.process, sample.resident_bytes), (12.5, 9_000_000));
    }

    #[test]
    fn rotations() {
        let page = r#"{"services": [{"name": "a", "endpoints": [
            {"address": "127.0.0.1:1", "available": true, "health": "healthy", "ejectedForSeconds": null},
            {"address": "127.0.0.1:2", "available": false, "health": "unhealthy", "ejectedForSeconds": null}]},
            {"name": "b", "endpoints": [
            {"address": "127.0.0.1:3", "available": false, "health": "healthy", "ejectedForSeconds": 1.5},
            {"address": "127.0.0.1:4", "available": false, "health": "unknown"}]}]}"#;
        let found = parse_endpoints(&serde_json::from_str(page).unwrap());
        let at = |port: u16| found[&SocketAddr::from(([127, 0, 0, 1], port))];
        assert_eq!(
            [at(1), at(2), at(3), at(4)],
            [
                Rotation::In,
                Rotation::Unhealthy,
                Rotation::Ejected,
                Rotation::Out
            ]
        );
    }

    #[test]
    fn a_new_process_counts_from_zero() {
        let first = parse(PAGE);
        let second = parse(&PAGE.replace("2xx\"} 40", "2xx\"} 45"));
        let address = "127.0.0.1:1".parse().unwrap();
        assert_eq!(
            second.since(&first).requests[&address],
            Counts { good: 5, bad: 0 }
        );
        let restarted = parse(&PAGE.replace("12.5", "99"));
        assert_eq!(
            restarted.since(&first).requests[&address],
            Counts { good: 40, bad: 2 }
        );
    }
}

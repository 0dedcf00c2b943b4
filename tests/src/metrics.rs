//! Prometheus text, read far enough to sum a metric over the labels that a test names.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

/// A sample without labels of a metrics page; none if nobody answers there.
#[must_use]
pub fn figure(address: SocketAddr, name: &str) -> Option<f64> {
    let mut connection = TcpStream::connect(address).ok()?;
    connection
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: c\r\nconnection: close\r\n\r\n")
        .ok()?;
    let mut page = String::new();
    connection.read_to_string(&mut page).ok()?;
    let mut lines = page.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: HashMap<String, String>,
    value: f64,
}

#[derive(Debug)]
pub struct Metrics(Vec<Sample>);

impl Metrics {
    #[track_caller]
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(sample).collect())
    }

    /// The sum of all samples of `name` that have these labels; 0 when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    #[must_use]
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// The values that a label of `name` has.
    #[must_use]
    pub fn values(&self, name: &str, label: &str) -> Vec<String> {
        let mut values: Vec<String> = self
            .matching(name, &[])
            .filter_map(|sample| sample.labels.get(label).cloned())
            .collect();
        values.sort();
        values.dedup();
        values
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
        })
    }
}

#[track_caller]
fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.trim_end_matches('}')),
        None => (series, ""),
    };
    let labels = labels
        .split("\",")
        .filter_map(|pair| pair.split_once("=\""))
        .map(|(label, value)| (label.to_owned(), value.trim_end_matches('"').to_owned()))
        .collect();
    Sample {
        name: name.to_owned(),
        labels,
        value: value
            .parse()
            .unwrap_or_else(|_| panic!("not a number: {line}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_label() {
        let metrics = Metrics::parse(
            "# HELP a_total x\n# TYPE a_total counter\na_total{x=\"1\",y=\"p,q\"} 2\n\
             a_total{x=\"2\",y=\"\"} 3\nb 1.5\n",
        );
        assert!((metrics.sum("a_total", &[]) - 5.0).abs() < f64::EPSILON);
        assert!((metrics.sum("a_total", &[("y", "p,q")]) - 2.0).abs() < f64::EPSILON);
        assert!((metrics.sum("b", &[]) - 1.5).abs() < f64::EPSILON);
        assert_eq!(metrics.values("a_total", "x"), ["1", "2"]);
        assert!(!metrics.has("c", &[]));
    }
}

//! The Prometheus text format, version 0.0.4.

use std::fmt::{Display, Write};

/// A page of metrics being written.
#[derive(Debug, Default)]
pub struct Exposition {
    page: String,
    name: &'static str,
}

impl Exposition {
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a family; the samples that follow are its own. Families without
    /// samples are fine.
    pub fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // Writing to a String cannot fail, here and below.
        let _ = write!(self.page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// One histogram: counts per bucket (not cumulated; the last is beyond all
    /// bounds) and the sum in seconds.
    pub fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut total = 0;
        for (index, count) in counts.iter().enumerate() {
            total += count;
            let bound = bounds
                .get(index)
                .map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.line("_bucket", labels, Some(&bound), total);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, total);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        bound: Option<&str>,
        value: impl Display,
    ) {
        let _ = write!(self.page, "{}{suffix}", self.name);
        let mut separator = '{';
        for (name, text) in labels
            .iter()
            .copied()
            .chain(bound.map(|bound| ("le", bound)))
        {
            let _ = write!(self.page, "{separator}{name}=\"");
            self.escape(text);
            self.page.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.page.push('}');
        }
        let _ = writeln!(self.page, " {value}");
    }

    fn escape(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '"' => self.page.push_str("\\\""),
                '\\' => self.page.push_str("\\\\"),
                '\n' => self.page.push_str("\\n"),
                c => self.page.push(c),
            }
        }
    }

    pub fn finish(self) -> String {
        self.page
    }
}

//! The Prometheus text format, as our proxies write it. Pure.

use std::time::Duration;

/// One line: a metric's name, its labels and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Series<'a> {
    pub name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    pub value: f64,
}

impl<'a> Series<'a> {
    /// None for a comment, and for a line of another form.
    pub fn parse(line: &'a str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let Some((name, labels)) = series.split_once('{') else {
            let labels = Vec::new();
            let name = series;
            return (!name.starts_with('#')).then_some(Self {
                name,
                labels,
                value,
            });
        };
        let mut rest = labels.strip_suffix('}')?;
        let mut labels = Vec::new();
        while let Some((label, quoted)) = rest.split_once("=\"") {
            // The values that we look at have nothing to escape.
            let (text, after) = quoted.split_once('"')?;
            labels.push((label, text));
            rest = after.trim_start_matches(',');
        }
        Some(Self {
            name,
            labels,
            value,
        })
    }

    pub fn label(&self, name: &str) -> &'a str {
        let found = self.labels.iter().find(|(label, _)| *label == name);
        found.map_or("", |(_, text)| text)
    }
}

/// A histogram: upper bounds in seconds, each with how many values are up to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    /// Counts what a `le` line says. Several lines may have one bound: of series
    /// that are taken together.
    pub fn add(&mut self, bound: &str, count: f64) {
        // `+Inf` is a number, too.
        let Ok(bound) = bound.parse::<f64>() else {
            return;
        };
        match self.0.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, known)) => *known += count,
            None => {
                self.0.push((bound, count));
                self.0.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            }
        }
    }

    /// Takes in another histogram of the same bounds.
    pub fn merge(&mut self, other: &Self) {
        for (bound, count) in &other.0 {
            match self.0.iter_mut().find(|(known, _)| known == bound) {
                Some((_, known)) => *known += count,
                None => self.0.push((*bound, *count)),
            }
        }
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| {
            let found = earlier.0.iter().find(|(known, _)| *known == bound);
            found.map_or(0.0, |(_, count)| *count)
        };
        let delta = |(bound, count): &(f64, f64)| (*bound, (count - before(*bound)).max(0.0));
        Self(self.0.iter().map(delta).collect())
    }

    /// The value below which this share lies, as if values lay evenly in a bucket.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let (_, all) = *self.0.last()?;
        let rank = all * share;
        let (mut low, mut below) = (0.0, 0.0);
        for &(high, count) in &self.0 {
            if count >= rank && count > below {
                // The last bucket has no end.
                let high = if high.is_finite() { high } else { low };
                let within = (rank - below) / (count - below);
                return Duration::try_from_secs_f64(low + (high - low) * within).ok();
            }
            (low, below) = (high, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let parsed = Series::parse("weft_x{service=\"shop/web:80\",le=\"+Inf\"} 12").unwrap();
        assert_eq!((parsed.name, parsed.value), ("weft_x", 12.0));
        assert_eq!(parsed.label("service"), "shop/web:80");
        assert_eq!(parsed.label("none"), "");
        assert_eq!(Series::parse("weft_y 1.5").unwrap().value, 1.5);
        for other in [
            "# TYPE weft_x counter",
            "# x 1",
            "",
            "nonsense",
            "x{y=\"z\"",
            "x{y=\"z} 1",
        ] {
            assert_eq!(Series::parse(other), None, "{other}");
        }
    }

    #[test]
    fn quantiles() {
        let mut buckets = Buckets::default();
        for (bound, count) in [
            ("+Inf", 100.0),
            ("0.001", 10.0),
            ("0.005", 90.0),
            ("?", 1.0),
        ] {
            buckets.add(bound, count);
        }
        let micros = |of: &Buckets, share| of.quantile(share).map(|of| of.as_micros());
        assert_eq!(micros(&buckets, 0.1), Some(1000));
        assert_eq!(micros(&buckets, 0.5), Some(3000));
        assert_eq!(
            micros(&buckets, 0.99),
            Some(5000),
            "the last bucket has no end"
        );
        assert_eq!(micros(&buckets.since(&buckets), 0.5), None);
        assert_eq!(micros(&Buckets::default(), 0.5), None);
        let mut twice = buckets.clone();
        twice.merge(&buckets);
        assert_eq!(twice.since(&buckets), buckets);
    }
}

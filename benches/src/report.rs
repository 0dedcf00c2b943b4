//! What a run says: the median of the repeats as hop.json and as a table, their
//! spread, and Weft's figures against the bars set for them (`bars`). Colour only on
//! a terminal and not under NO_COLOR.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal;

use anyhow::Result;
use serde::{Serialize, Serializer};

use crate::bars;
use crate::case::Case;
use crate::options::Options;
use crate::subjects::Subject;

const MIB: f64 = 1024.0 * 1024.0;

/// One measurement. A request of `tcp-1g` is 1 MiB.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    #[serde(serialize_with = "name")]
    pub case: Case,
    #[serde(serialize_with = "name")]
    pub subject: Subject,
    pub cpu_user_us: f64,
    pub cpu_sys_us: f64,
    pub rps: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub rss_bytes: u64,
    pub rss_start_bytes: u64,
    pub requests: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            case,
            subject,
            cpu_user_us,
            cpu_sys_us,
            rps,
            p99_us,
            ..
        } = self;
        write!(
            formatter,
            "{case:<15} {subject:<8} {cpu_user_us:>7.2} + {cpu_sys_us:>7.2} µs {rps:>8.0}/s  p99 {p99_us:>7.0} µs"
        )
    }
}

/// The medians of one case on one subject.
#[derive(Debug, Clone)]
pub struct Summary {
    pub case: Case,
    pub subject: Subject,
    pub cpu_user_us: f64,
    pub cpu_sys_us: f64,
    pub rps: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub rss_bytes: u64,
    pub rss_start_bytes: u64,
    /// (Highest − lowest) / median of the CPU a request, in percent.
    pub spread_percent: f64,
}

impl Summary {
    pub fn cpu_us(&self) -> f64 {
        self.cpu_user_us + self.cpu_sys_us
    }

    /// How much of its core the subject used: well below 100, the load generator
    /// was the limit, and the rate says nothing about the subject.
    fn busy_percent(&self) -> f64 {
        self.cpu_us() * self.rps / 10_000.0
    }
}

/// An entry of hop.json; its keys are a contract.
#[derive(Debug, Serialize)]
struct Entry {
    case: &'static str,
    subject: &'static str,
    cpu_user_us: f64,
    cpu_sys_us: f64,
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    rss_bytes: u64,
}

fn name<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// The medians, by case and subject.
pub fn summarise(samples: &[Sample]) -> Vec<Summary> {
    let mut groups: BTreeMap<(Case, Subject), Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        groups
            .entry((sample.case, sample.subject))
            .or_default()
            .push(sample);
    }
    let summarise = |((case, subject), group): ((Case, Subject), Vec<&Sample>)| {
        let of =
            |value: fn(&Sample) -> f64| median(group.iter().map(|sample| value(sample)).collect());
        let totals: Vec<f64> = group
            .iter()
            .map(|sample| sample.cpu_user_us + sample.cpu_sys_us)
            .collect();
        let highest = totals.iter().copied().fold(f64::MIN, f64::max);
        let lowest = totals.iter().copied().fold(f64::MAX, f64::min);
        let middle = median(totals);
        Summary {
            case,
            subject,
            cpu_user_us: of(|sample| sample.cpu_user_us),
            cpu_sys_us: of(|sample| sample.cpu_sys_us),
            rps: of(|sample| sample.rps),
            p50_us: of(|sample| sample.p50_us),
            p99_us: of(|sample| sample.p99_us),
            p999_us: of(|sample| sample.p999_us),
            rss_bytes: of(|sample| sample.rss_bytes as f64) as u64,
            rss_start_bytes: of(|sample| sample.rss_start_bytes as f64) as u64,
            spread_percent: if middle > 0.0 {
                (highest - lowest) / middle * 100.0
            } else {
                0.0
            },
        }
    };
    groups.into_iter().map(summarise).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.as_slice()) {
        (_, []) => 0.0,
        (1, values) => values[middle],
        (_, values) => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// hop.json: what was measured; what a subject cannot do has no entry.
pub fn json(summaries: &[Summary]) -> Result<String> {
    let thousandths = |value: f64| (value * 1000.0).round() / 1000.0;
    let entry = |summary: &Summary| Entry {
        case: summary.case.name(),
        subject: summary.subject.name(),
        cpu_user_us: thousandths(summary.cpu_user_us),
        cpu_sys_us: thousandths(summary.cpu_sys_us),
        rps: thousandths(summary.rps),
        p50_us: thousandths(summary.p50_us),
        p99_us: thousandths(summary.p99_us),
        p999_us: thousandths(summary.p999_us),
        rss_bytes: summary.rss_bytes,
    };
    Ok(serde_json::to_string_pretty(&summaries.iter().map(entry).collect::<Vec<_>>())? + "\n")
}

/// The table, the ratios and the bars.
pub fn print(options: &Options, summaries: &[Summary]) {
    let colour = Colour::detect();
    let heading = format!(
        "{:<15} {:<8} {:>8} {:>8} {:>8} {:>7} {:>5} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8}",
        "case",
        "subject",
        "user µs",
        "sys µs",
        "CPU µs",
        "±",
        "busy",
        "rps",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "RSS MiB",
        "at start"
    );
    println!("\n{}", colour.bold(&heading));
    for &case in &options.cases {
        for &subject in &options.subjects {
            match find(summaries, case, subject) {
                Some(summary) => println!("{}", line(summary)),
                None if !subject.is_beside(case.is_pair()) => {}
                None => println!(
                    "{:<15} {:<8} {:>8}  {}",
                    case.name(),
                    subject.name(),
                    "n/a",
                    subject.why_not(case).unwrap_or("is not there")
                ),
            }
        }
    }
    println!(
        "\nCPU and memory are the subject's alone (one worker on core {}; load and upstream on core {}).\n\
         busy: the share of its core that it used; well below 100 % the load generator was the limit, not the subject.\n\
         Medians of {}; ± is highest − lowest of the repeats. A request of tcp-1g is 1 MiB; of idle-10k, a connection and its one request.",
        options.subject_core, options.load_core, options.repeats
    );
    for summary in summaries
        .iter()
        .filter(|summary| summary.case == Case::Idle)
    {
        let each = idle_bytes(summary, options);
        println!(
            "idle-10k {:<8} {each:>8.0} bytes an idle connection, over the RSS at start",
            summary.subject.name()
        );
    }
    print_ratios(options, summaries, &colour);
    let bars = bars::of(options, summaries);
    if !bars.is_empty() {
        println!("\n{}", colour.bold("weft beside its bars"));
        bars.iter()
            .for_each(|bar| println!("{}", bar.line(&colour)));
    }
    println!();
    for file in ["hop.json", "hop.svg", "hop-runs.json"] {
        println!("{}", options.out.join(file).display());
    }
}

/// CPU a request of Weft, as so many times everybody else's.
fn print_ratios(options: &Options, summaries: &[Summary], colour: &Colour) {
    let others: Vec<Subject> = Subject::ALL
        .into_iter()
        .filter(|&subject| subject != Subject::Weft)
        .collect();
    let wefts: Vec<&Summary> = options
        .cases
        .iter()
        .filter_map(|&case| find(summaries, case, Subject::Weft))
        .collect();
    if wefts.is_empty() {
        return;
    }
    let names: String = others
        .iter()
        .map(|&other| format!(" {:>10}", format!("× {other}")))
        .collect();
    println!("\n{}", colour.bold(&format!("{:<15}{names}", "weft's CPU")));
    for weft in wefts {
        let ratio = |&other: &Subject| match find(summaries, weft.case, other) {
            Some(other) => format!(" {:>10.2}", weft.cpu_us() / other.cpu_us()),
            None => format!(" {:>10}", "n/a"),
        };
        println!(
            "{:<15}{}",
            weft.case.name(),
            others.iter().map(ratio).collect::<String>()
        );
    }
}

fn line(summary: &Summary) -> String {
    format!(
        "{:<15} {:<8} {:>8.2} {:>8.2} {:>8.2} {:>6.1}% {:>4.0}% {:>9.0} {:>9.1} {:>9.1} {:>9.1} {:>8.1} {:>8.1}",
        summary.case.name(),
        summary.subject.name(),
        summary.cpu_user_us,
        summary.cpu_sys_us,
        summary.cpu_us(),
        summary.spread_percent,
        summary.busy_percent(),
        summary.rps,
        summary.p50_us,
        summary.p99_us,
        summary.p999_us,
        summary.rss_bytes as f64 / MIB,
        summary.rss_start_bytes as f64 / MIB,
    )
}

pub fn find(summaries: &[Summary], case: Case, subject: Subject) -> Option<&Summary> {
    summaries
        .iter()
        .find(|summary| summary.case == case && summary.subject == subject)
}

pub fn idle_bytes(summary: &Summary, options: &Options) -> f64 {
    summary.rss_bytes.saturating_sub(summary.rss_start_bytes) as f64 / f64::from(options.idle)
}

pub struct Colour(bool);

impl Colour {
    /// <https://no-color.org>: set and not empty means none.
    fn detect() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(!refused && std::io::stdout().is_terminal())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn red(&self, text: &str) -> String {
        self.paint("31;1", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(subject: Subject, cpu: f64) -> Sample {
        Sample {
            case: Case::H1Small,
            subject,
            cpu_user_us: cpu / 4.0,
            cpu_sys_us: cpu * 3.0 / 4.0,
            rps: 1.0,
            p50_us: 2.0,
            p99_us: 3.0,
            p999_us: 4.0,
            rss_bytes: 5,
            rss_start_bytes: 4,
            requests: 1,
        }
    }

    #[test]
    fn the_median_is_kept_and_the_spread_shown() {
        let samples = [9.0, 30.0, 10.0].map(|cpu| sample(Subject::Weft, cpu));
        let summaries = summarise(&samples);
        assert_eq!(summaries.len(), 1);
        assert!((summaries[0].cpu_us() - 10.0).abs() < 1e-9);
        assert!((summaries[0].spread_percent - 210.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn hop_json_has_the_agreed_keys_and_no_others() {
        let text = json(&summarise(&[sample(Subject::Nginx, 12.0)])).unwrap();
        let entries: Vec<BTreeMap<String, serde_json::Value>> =
            serde_json::from_str(&text).unwrap();
        let mut keys: Vec<&str> = entries[0].keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut agreed = [
            "case",
            "subject",
            "cpu_user_us",
            "cpu_sys_us",
            "rps",
            "p50_us",
            "p99_us",
            "p999_us",
            "rss_bytes",
        ];
        agreed.sort_unstable();
        assert_eq!(keys, agreed);
        assert_eq!(entries[0]["case"], "h1-64");
        assert_eq!(entries[0]["subject"], "nginx");
    }
}

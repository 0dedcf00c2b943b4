//! What the demo comes to: for a person, for a script, as an exit code.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::board::{ActRow, Event, LaneTally, Life, ReplicaRow, ServiceRow, State, Tone};
use super::screen::millis;

/// How it ended.
#[derive(Debug)]
pub enum End {
    Complete,
    Interrupted,
    /// A step of the demo failed.
    Failed(String),
}

impl End {
    /// 0: nothing lost; 1: something lost or failed; 130: interrupted (as a shell says it of SIGINT).
    pub fn code(&self, lost: u64) -> u8 {
        match self {
            Self::Failed(_) => 1,
            _ if lost > 0 => 1,
            Self::Interrupted => 130,
            Self::Complete => 0,
        }
    }
}

/// For a person.
pub fn text(state: &State, end: &End, color: bool) -> String {
    let mut text = String::new();
    for lane in &state.lanes {
        let quantile = |share| millis(Duration::from_micros(lane.latency.value_at_quantile(share)));
        text.push_str(&format!(
            "{:<31}{:>8} sent{:>4} lost   p50 {}, p99 {}\n",
            lane.name,
            lane.sent,
            lane.lost,
            quantile(0.5),
            quantile(0.99)
        ));
    }
    let (sent, lost) = (state.sent(), state.lost());
    let (tone, verdict) = match (end, lost) {
        (End::Failed(why), _) => ("31", format!("the demo failed: {why}")),
        (End::Interrupted, _) => (
            "33",
            format!("interrupted: {sent} requests sent, {lost} lost so far"),
        ),
        (End::Complete, 0) => ("32", format!("{sent} requests sent, 0 lost")),
        (End::Complete, _) => ("31", format!("{sent} requests sent, {lost} LOST")),
    };
    let (on, off) = if color {
        (format!("\x1b[1;{tone}m"), "\x1b[0m")
    } else {
        (String::new(), "")
    };
    text.push_str(&format!("{on}{verdict}{off}\n"));
    text
}

/// For a script; what counts comes first.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    sent: u64,
    lost: u64,
    answered: u64,
    /// Tries that the callers' sidecars made elsewhere.
    retried: u64,
    seconds: f64,
    result: &'static str,
    error: Option<&'a str>,
    acts: Vec<Value>,
    clients: Vec<Value>,
    services: Vec<Value>,
    replicas: Vec<Value>,
    events: Vec<Value>,
}

pub fn line<'a>(state: &State, end: &'a End, length: Duration) -> Line<'a> {
    let (result, error) = match end {
        End::Complete => ("complete", None),
        End::Interrupted => ("interrupted", None),
        End::Failed(why) => ("failed", Some(why.as_str())),
    };
    Line {
        sent: state.sent(),
        lost: state.lost(),
        answered: state.answered(),
        retried: state.retries,
        seconds: rounded(length),
        result,
        error,
        acts: state.acts.iter().map(act).collect(),
        clients: state.lanes.iter().map(client).collect(),
        services: state.services.iter().map(service).collect(),
        replicas: state.replicas.iter().map(replica).collect(),
        events: state.events.iter().map(event).collect(),
    }
}

fn act(row: &ActRow) -> Value {
    json!({
        "act": row.act.name(),
        "begun": row.begun.map(rounded),
        "ended": row.ended.map(rounded),
    })
}

fn client(lane: &LaneTally) -> Value {
    let millis = |share| lane.latency.value_at_quantile(share) as f64 / 1000.0;
    json!({
        "client": lane.key,
        "sent": lane.sent,
        "lost": lane.lost,
        "answered": lane.answered,
        "p50_ms": millis(0.5),
        "p99_ms": millis(0.99),
        "p999_ms": millis(0.999),
    })
}

/// As its callers' sidecars saw it, but for the last quarter of a second of a caller that left.
fn service(row: &ServiceRow) -> Value {
    let millis = |share| {
        let value = row.durations.quantile(share);
        value.map(|value| value.as_micros() as f64 / 1000.0)
    };
    let versions = row.versions.iter();
    let versions = versions.map(|(version, (count, _))| (format!("v{version}"), json!(count)));
    json!({
        "service": row.service.name(),
        "answered": row.served,
        "failed": row.failed,
        "p50_ms": millis(0.5),
        "p99_ms": millis(0.99),
        "versions": versions.collect::<serde_json::Map<_, _>>(),
    })
}

fn replica(row: &ReplicaRow) -> Value {
    json!({
        "name": row.name,
        "version": format!("v{}", row.version),
        "address": row.address.to_string(),
        "requests": row.served,
        "life": match row.life {
            Life::Starting => "starting",
            Life::Serving => "serving",
            Life::Leaving => "leaving",
            Life::Killed => "killed",
            Life::Gone => "left",
        },
    })
}

fn event(event: &Event) -> Value {
    json!({
        "seconds": rounded(event.at),
        "text": event.text.trim_start(),
        "bad": event.tone == Tone::Bad,
    })
}

/// Seconds, to the millisecond.
fn rounded(at: Duration) -> f64 {
    at.as_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code() {
        let failed = || End::Failed("x".to_owned());
        for (end, lost, code) in [
            (End::Complete, 0, 0),
            (End::Complete, 1, 1),
            (End::Interrupted, 0, 130),
            (End::Interrupted, 2, 1),
            (failed(), 0, 1),
        ] {
            assert_eq!(end.code(lost), code, "{end:?}, {lost} lost");
        }
    }

    #[test]
    fn the_line_begins_with_what_counts() {
        let end = End::Failed("two\nlines".to_owned());
        let line = line(&State::default(), &end, Duration::from_micros(1_234_567));
        let text = serde_json::to_string(&line).unwrap();
        assert!(text.starts_with("{\"sent\":0,\"lost\":0,"), "{text}");
        assert!(text.contains("\"seconds\":1.234,"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

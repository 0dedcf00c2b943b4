//! What the demo comes to: for a person, for a script, as an exit code.

use std::time::Duration;

use serde_json::{Value, json};

use super::board::{Event, State, Tone};
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
            "{:<32}{:>7} sent{:>4} lost   p50 {}, p99 {}, p99.9 {}\n",
            lane.name,
            lane.sent,
            lane.lost,
            quantile(0.5),
            quantile(0.99),
            quantile(0.999)
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

/// For a script: one line.
pub fn line(state: &State, end: &End, seconds: f64) -> Value {
    let micros = |value: u64| value as f64 / 1000.0;
    let lanes = state.lanes.iter().map(|lane| {
        json!({
            "client": lane.key,
            "sent": lane.sent,
            "answered": lane.answered,
            "lost": lane.lost,
            "p50_ms": micros(lane.latency.value_at_quantile(0.5)),
            "p99_ms": micros(lane.latency.value_at_quantile(0.99)),
        })
    });
    let backends = state.backends.iter().map(|row| {
        json!({
            "name": row.name,
            "program": row.program,
            "address": row.address.to_string(),
            "pid": row.pid,
            "requests": row.served,
        })
    });
    let event = |event: &Event| {
        let at = (event.at.as_secs_f64() * 1000.0).round() / 1000.0;
        json!({"seconds": at, "text": event.text, "bad": event.tone == Tone::Bad})
    };
    let (result, error) = match end {
        End::Complete => ("complete", Value::Null),
        End::Interrupted => ("interrupted", Value::Null),
        End::Failed(why) => ("failed", Value::from(why.as_str())),
    };
    json!({
        "sent": state.sent(),
        "answered": state.answered(),
        "lost": state.lost(),
        "retried": state.proxy.retries,
        "reloads": state.proxy.reloads,
        "reloads_refused": state.proxy.reloads_refused,
        "seconds": (seconds * 10.0).round() / 10.0,
        "result": result,
        "error": error,
        "clients": lanes.collect::<Vec<_>>(),
        "backends": backends.collect::<Vec<_>>(),
        "events": state.events.iter().map(event).collect::<Vec<_>>(),
    })
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
        let line = line(&State::default(), &End::Complete, 1.23).to_string();
        assert!(!line.contains('\n'));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["sent"], &value["lost"], &value["seconds"]),
            (&json!(0), &json!(0), &json!(1.2))
        );
    }
}

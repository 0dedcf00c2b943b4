//! The demo as a person sees it: a table that is redrawn in place on a
//! terminal, plain lines in a pipe. `render` is pure.

use std::io::{self, Write};
use std::time::Duration;

use super::board::{ActRow, Board, Event, Life, ReplicaRow, ServiceRow, State, Tone};
use crate::terminal::{BOLD, CYAN, DIM, Drawing, GREEN, Paint, RED, YELLOW, show_cursor};

/// Events shown on however low a screen; the tables give way.
const EVENTS_MIN: usize = 4;
/// An application that was killed stays in the table for this long.
const KILLED_SHOWN: Duration = Duration::from_secs(3);

/// What does not change while the demo runs.
#[derive(Clone, Debug)]
pub struct Frame {
    pub url: String,
    pub color: bool,
    pub width: usize,
    pub height: usize,
}

/// Where it is shown.
#[derive(Debug)]
pub enum Screen {
    /// Redrawn in place.
    Terminal { frame: Frame, drawing: Drawing },
    /// One line a second, and each event as it happens.
    Lines {
        told: usize,
        second: u64,
        stderr: bool,
    },
}

impl Screen {
    /// Shows what is new. A closed pipe is no reason to end.
    pub fn draw(&mut self, board: &Board) {
        let _closed = match self {
            Self::Terminal { frame, drawing } => {
                if let Some((width, height)) = terminal_size::terminal_size() {
                    (frame.width, frame.height) = (width.0.into(), height.0.into());
                }
                let lines = render(frame, &board.state(), board.now());
                drawing.draw(lines, frame.height)
            }
            Self::Lines {
                told,
                second,
                stderr,
            } => {
                let lines = new_lines(told, second, board);
                let text = lines
                    .into_iter()
                    .map(|line| line + "\n")
                    .collect::<String>();
                match stderr {
                    true => io::stderr().write_all(text.as_bytes()),
                    false => io::stdout().write_all(text.as_bytes()),
                }
            }
        };
    }

    /// Before the first and after the last drawing.
    pub fn show_cursor(&self, shown: bool) {
        if matches!(self, Self::Terminal { .. }) {
            show_cursor(shown);
        }
    }
}

fn new_lines(told: &mut usize, second: &mut u64, board: &Board) -> Vec<String> {
    let (state, now) = (board.state(), board.now());
    let events = state.events.get(*told..).unwrap_or_default();
    let mut lines: Vec<String> = events
        .iter()
        .map(|event| format!("{}  {}", clock(event.at), event.text))
        .collect();
    *told = state.events.len();
    if now.as_secs() > *second && !state.lanes.is_empty() {
        *second = now.as_secs();
        let rates = state.services.iter().map(|row| {
            let cell = |share| row.quantile(share).map_or("-".to_owned(), millis);
            let (name, rate) = (row.service.name(), row.window.rate(now));
            let (_, success) = success_cell(row.window.success(now));
            format!(
                "{name} {rate:.0}/s {} p50 {} p99 {}",
                success.trim(),
                cell(0.5),
                cell(0.99)
            )
        });
        let rates = rates.collect::<Vec<_>>().join(", ");
        lines.push(format!(
            "{}  sent {}, lost {}; {rates}",
            clock(now),
            state.sent(),
            state.lost()
        ));
    }
    lines
}

/// The screen's lines, none wider than the frame, all together not higher.
pub fn render(frame: &Frame, state: &State, now: Duration) -> Vec<String> {
    let paint = Paint {
        color: frame.color,
        width: frame.width.saturating_sub(1),
    };
    let seconds = now.as_secs();
    let time = format!("  {:02}:{:02}  ", seconds / 60, seconds % 60);
    let memory = format!("  {:.1} MiB a sidecar", mib(state.resident_bytes));
    let mut lines = vec![
        paint.line(&[
            (BOLD, "Weft demo".to_owned()),
            (DIM, time),
            (CYAN, frame.url.clone()),
            (DIM, memory),
        ]),
        acts(&paint, state),
        paint.line(&[(DIM, "now: ".to_owned()), (BOLD, state.doing.clone())]),
        String::new(),
    ];
    services(&paint, state, now, &mut lines);
    lines.push(String::new());
    clients(&paint, state, now, &mut lines);
    lines.push(String::new());
    let room = frame.height.saturating_sub(lines.len() + 1).max(EVENTS_MIN);
    let first = state.events.len().saturating_sub(room);
    let events = state.events.iter().skip(first);
    lines.extend(events.map(|event| event_line(&paint, event)));
    lines.truncate(frame.height.saturating_sub(1));
    lines
}

/// The timeline: what is done, what is being done, what will be.
fn acts(paint: &Paint, state: &State) -> String {
    let piece = |row: &ActRow| {
        let (tone, mark) = match (row.begun, row.ended) {
            (_, Some(_)) => (GREEN, '✓'),
            (Some(_), None) => (YELLOW, '▸'),
            (None, None) => (DIM, ' '),
        };
        (tone, format!("{mark}{} ", row.act.name()))
    };
    paint.line(&state.acts.iter().map(piece).collect::<Vec<_>>())
}

fn services(paint: &Paint, state: &State, now: Duration, lines: &mut Vec<String>) {
    let header = format!(
        "{:<15}{:>7}{:>8}{:>9}{:>9}  {:<14} {}",
        "SERVICE", "RATE", "SUCCESS", "P50", "P99", "VERSIONS", "REPLICAS"
    );
    lines.push(paint.line(&[(DIM, header)]));
    for row in &state.services {
        let cell = |share| row.quantile(share).map_or("-".to_owned(), millis);
        let mut pieces = vec![
            (
                "",
                format!("{:<15}{:>5.0}/s", row.service.name(), row.window.rate(now)),
            ),
            success_cell(row.window.success(now)),
            ("", format!("{:>9}{:>9}", cell(0.5), cell(0.99))),
            ("", format!("  {:<14}", versions(row, now))),
        ];
        let replicas = state
            .replicas
            .iter()
            .filter(|replica| replica.service == row.service);
        pieces.extend(replicas.filter(|replica| shown(replica, now)).map(replica));
        lines.push(paint.line(&pieces));
    }
}

/// Which version has how much of the answers.
fn versions(row: &ServiceRow, now: Duration) -> String {
    let rates = row
        .versions
        .iter()
        .map(|(version, (_, window))| (*version, window.rate(now)));
    let rates: Vec<(u32, f64)> = rates.filter(|(_, rate)| *rate > 0.0).collect();
    let all: f64 = rates.iter().map(|(_, rate)| rate).sum();
    let shares = rates
        .iter()
        .map(|(version, rate)| format!("v{version} {:.0}%", rate / all * 100.0));
    shares.collect::<Vec<_>>().join(" ")
}

/// Its number, and a mark unless it just serves.
fn replica(row: &ReplicaRow) -> (&'static str, String) {
    let (tone, mark) = match row.life {
        Life::Serving => (GREEN, ""),
        Life::Starting => (YELLOW, "+"),
        Life::Leaving => (YELLOW, "-"),
        Life::Killed => (RED, "†"),
        Life::Gone => (DIM, ""),
    };
    let number = row
        .name
        .strip_prefix(row.service.name())
        .unwrap_or(&row.name);
    (tone, format!(" {}{mark}", number.trim_start_matches('-')))
}

fn shown(row: &ReplicaRow, now: Duration) -> bool {
    let lately = |ended| now.saturating_sub(ended) < KILLED_SHOWN;
    match row.life {
        Life::Gone => false,
        Life::Killed => row.ended.is_some_and(lately),
        Life::Starting | Life::Serving | Life::Leaving => true,
    }
}

fn clients(paint: &Paint, state: &State, now: Duration, lines: &mut Vec<String>) {
    let header = format!(
        "{:<31}{:>8}{:>8}{:>8}{:>8}{:>8}  {}",
        "CLIENT", "SENT", "RATE", "SUCCESS", "P50", "P99", "LOST"
    );
    lines.push(paint.line(&[(DIM, header)]));
    let mut rates = 0.0;
    for lane in &state.lanes {
        let rate = lane.window.rate(now);
        rates += rate;
        lines.push(paint.line(&[
            (
                "",
                format!("{:<31}{:>8}{rate:>6.0}/s", lane.name, lane.sent),
            ),
            success_cell(lane.window.success(now)),
            ("", latencies(&lane.window, now)),
            lost_cell(lane.lost),
        ]));
    }
    let retried = format!("tried elsewhere: {}", state.retries);
    lines.push(paint.line(&[
        (
            BOLD,
            format!("{:<31}{:>8}{rates:>6.0}/s", "ALL", state.sent()),
        ),
        (DIM, format!("{retried:>24}")),
        lost_cell(state.lost()),
    ]));
}

fn success_cell(success: Option<f64>) -> (&'static str, String) {
    match success {
        None => (DIM, format!("{:>8}", "-")),
        // Rounding must not make a whole of what is not.
        Some(success) if success < 1.0 => (RED, format!("{:>7.2}%", (success * 100.0).min(99.99))),
        Some(_) => (GREEN, format!("{:>8}", "100%")),
    }
}

fn lost_cell(lost: u64) -> (&'static str, String) {
    (if lost == 0 { GREEN } else { RED }, format!("  {lost}"))
}

fn latencies(window: &super::window::Window, now: Duration) -> String {
    let cell = |share| window.quantile(now, share).map_or("-".to_owned(), millis);
    format!("{:>8}{:>8}", cell(0.5), cell(0.99))
}

fn event_line(paint: &Paint, event: &Event) -> String {
    let tone = match event.tone {
        Tone::Plain => "",
        Tone::Good => GREEN,
        Tone::Bad => RED,
    };
    paint.line(&[(CYAN, clock(event.at)), (tone, format!("  {}", event.text))])
}

pub fn millis(latency: Duration) -> String {
    let millis = latency.as_secs_f64() * 1000.0;
    let decimals = usize::from(millis < 100.0);
    format!("{millis:.decimals$} ms")
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Minutes, seconds and tenths.
pub fn clock(at: Duration) -> String {
    let tenths = at.as_millis() / 100;
    format!(
        "{:02}:{:02}.{}",
        tenths / 600,
        tenths / 10 % 60,
        tenths % 10
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::programs::Service;

    fn frame(color: bool, width: usize) -> Frame {
        Frame {
            url: "http://127.0.0.1:18080".to_owned(),
            color,
            width,
            height: 24,
        }
    }

    fn state() -> State {
        let mut state = State::default();
        // In the middle of a rollout.
        for number in 0..12 {
            state.replicas.push(ReplicaRow {
                service: Service::Catalogue,
                name: format!("catalogue-{number}"),
                version: 1 + number % 2,
                address: ([127, 33, 0, 1], 8080).into(),
                life: if number % 2 == 0 {
                    Life::Serving
                } else {
                    Life::Leaving
                },
                ended: None,
                served: 0,
            });
        }
        state.doing = "something ".repeat(30);
        for second in 0..40 {
            let at = Duration::from_secs(second);
            state.events.push(Event {
                at,
                tone: Tone::Good,
                text: "something ".repeat(30),
            });
        }
        state
    }

    #[test]
    fn it_fits() {
        for width in [1, 40, 80, 200] {
            let lines = render(&frame(false, width), &state(), Duration::from_secs(40));
            assert!(lines.len() < 24, "{}", lines.len());
            assert!(
                lines.iter().all(|line| line.chars().count() < width),
                "{lines:#?}"
            );
        }
    }

    #[test]
    fn without_colour_there_is_no_escape() {
        let plain = render(&frame(false, 100), &state(), Duration::from_secs(1)).concat();
        assert!(!plain.contains('\x1b'), "{plain}");
        let painted = render(&frame(true, 100), &state(), Duration::from_secs(1)).concat();
        assert!(painted.contains("\x1b[32m 0\x1b[0m"), "{painted}");
        assert!(painted.contains("\x1b[33m 1-\x1b[0m"), "{painted}");
    }

    #[test]
    fn nearly_all_is_not_all() {
        assert_eq!(success_cell(Some(0.99999)).1.trim(), "99.99%");
        assert_eq!(success_cell(Some(1.0)).1.trim(), "100%");
    }

    #[test]
    fn the_clock() {
        assert_eq!(clock(Duration::from_millis(61_250)), "01:01.2");
    }
}

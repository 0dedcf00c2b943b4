//! What the matrix says: a table for people, JSON for programs, and whether a cell is as it must be.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::fault::Fault;
use super::protocol::Protocol;
use super::stage::Outcome;

/// One fault and one protocol.
#[derive(Debug)]
pub struct Cell {
    pub fault: Fault,
    pub protocol: Protocol,
    pub sent: u64,
    pub lost: u64,
    pub misdelivered: u64,
    pub retried: u64,
    pub p99: Duration,
    /// The first losses in words.
    pub told: Vec<String>,
    sent_min: u64,
}

impl Cell {
    #[must_use]
    pub fn new(fault: Fault, outcome: Outcome, sent_min: u64) -> Self {
        let tally = outcome.tally;
        Self {
            fault,
            protocol: outcome.protocol,
            sent: tally.sent,
            lost: tally.sent - tally.good,
            misdelivered: tally.misdelivered,
            retried: outcome.retried,
            p99: tally.p99,
            told: tally.told,
            sent_min,
        }
    }

    #[must_use]
    pub fn savable(&self) -> bool {
        self.fault.unsavable(self.protocol).is_none()
    }

    /// What is wrong with it.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let name = format!("{} × {}", self.fault.name(), self.protocol.name());
        if self.sent < self.sent_min {
            return Some(format!("{name}: only {} sent", self.sent));
        }
        if self.misdelivered > 0 {
            return Some(format!(
                "{name}: answered by another service: {:#?}",
                self.told
            ));
        }
        // What was inside who died, and no more.
        let unsavable = self.fault.unsavable(self.protocol);
        let most = unsavable.map_or(0, |unsavable| unsavable.lost_max);
        (self.lost > most).then(|| {
            format!(
                "{name}: {} lost, at most {most} may be: {:#?}",
                self.lost, self.told
            )
        })
    }
}

/// The table that people read.
#[must_use]
pub fn table(cells: &[Cell]) -> String {
    header() + &rows(cells)
}

#[must_use]
pub fn header() -> String {
    format!(
        "{:<22} {:<12} {:>7} {:>5} {:>8} {:>9}\n",
        "fault", "protocol", "sent", "lost", "retried", "p99"
    )
}

#[must_use]
pub fn rows(cells: &[Cell]) -> String {
    let mut rows = String::new();
    for cell in cells {
        let _ = writeln!(
            rows,
            "{:<22} {:<12} {:>7} {:>5} {:>8} {:>6} ms{}",
            cell.fault.name(),
            cell.protocol.name(),
            cell.sent,
            cell.lost,
            cell.retried,
            cell.p99.as_millis(),
            if cell.savable() {
                ""
            } else {
                "  no proxy can save it"
            }
        );
    }
    rows
}

/// The list that programs read.
#[must_use]
pub fn json(cells: &[Cell]) -> Value {
    let cell = |cell: &Cell| {
        json!({
            "fault": cell.fault.name(),
            "protocol": cell.protocol.name(),
            "sent": cell.sent,
            "lost": cell.lost,
            "retried": cell.retried,
            "p99_us": u64::try_from(cell.p99.as_micros()).unwrap_or(u64::MAX),
            "savable": cell.savable(),
        })
    };
    cells.iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Tally;

    #[test]
    fn a_bad_cell_is_complained_of() {
        let post = Protocol::Http1Post;
        for (fault, sent, failed, misdelivered, complaint) in [
            (Fault::Rollout, 500, 0, 0, None),
            (Fault::Rollout, 500, 1, 0, Some("1 lost, at most 0")),
            (Fault::Rollout, 50, 0, 0, Some("only 50 sent")),
            (Fault::ReplicaKilled, 500, post.at_once(), 0, None),
            (
                Fault::ReplicaKilled,
                500,
                post.at_once() + 1,
                0,
                Some("lost, at most"),
            ),
            (Fault::ReplicaKilled, 500, 1, 1, Some("another service")),
        ] {
            let tally = Tally {
                sent,
                good: sent - failed,
                failed,
                refused: 0,
                misdelivered,
                p99: Duration::ZERO,
                told: Vec::new(),
            };
            let outcome = Outcome {
                protocol: post,
                tally,
                retried: 0,
            };
            let said = Cell::new(fault, outcome, 100).complaint();
            let as_expected = match (&said, complaint) {
                (None, None) => true,
                (Some(said), Some(complaint)) => said.contains(complaint),
                _ => false,
            };
            assert!(as_expected, "{said:?} rather than {complaint:?}");
        }
    }
}

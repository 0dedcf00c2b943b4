//! What happens during the demo, and when. The moments are shares of its
//! length; an act that takes longer than its share moves the later ones.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::sleep;

use super::board::Board;
use super::stage::Stage;

/// One act. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Stranger,
    RollOut,
    ScaleOut,
    Canary,
    Crash,
    ScaleIn,
    Outage,
    HandOver,
    Mistake,
}

impl Act {
    /// In their order.
    pub const ALL: [Self; 9] = [
        Self::Stranger,
        Self::RollOut,
        Self::ScaleOut,
        Self::Canary,
        Self::Crash,
        Self::ScaleIn,
        Self::Outage,
        Self::HandOver,
        Self::Mistake,
    ];

    /// For a script and for the screen.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stranger => "policy",
            Self::RollOut => "rollout",
            Self::ScaleOut => "scale out",
            Self::Canary => "canary",
            Self::Crash => "crash",
            Self::ScaleIn => "scale in",
            Self::Outage => "outage",
            Self::HandOver => "gateway",
            Self::Mistake => "mistake",
        }
    }

    /// It begins not before this share of the demo's length.
    fn begins(self) -> f64 {
        match self {
            Self::Stranger => 0.02,
            Self::RollOut => 0.05,
            Self::ScaleOut => 0.28,
            Self::Canary => 0.35,
            Self::Crash => 0.48,
            Self::ScaleIn => 0.56,
            Self::Outage => 0.62,
            Self::HandOver => 0.80,
            Self::Mistake => 0.93,
        }
    }
}

/// For those who watch, between two steps of an act.
const PAUSE_SHARE: f64 = 0.03;
const PAUSE_MIN: Duration = Duration::from_millis(300);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Performs all acts and waits for the end of `length`.
pub async fn perform(stage: &mut Stage, board: &Arc<Board>, length: Duration) -> Result<()> {
    let started = board.now();
    let pause = length.mul_f64(PAUSE_SHARE).clamp(PAUSE_MIN, PAUSE_MAX);
    for act in Act::ALL {
        wait_until(board, started + length.mul_f64(act.begins())).await;
        board.begin(act);
        let done = stage.perform(act, pause).await;
        done.with_context(|| format!("the act \"{}\"", act.name()))?;
        board.end(act);
    }
    wait_until(board, started + length).await;
    Ok(())
}

async fn wait_until(board: &Board, moment: Duration) {
    sleep(moment.saturating_sub(board.now())).await;
}

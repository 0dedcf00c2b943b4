//! What happens during the demo, and when. The moments are shares of its
//! length; a step that takes longer than its share moves the later ones.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::board::{Board, Tone};
use super::stage::Stage;

#[derive(Clone, Copy, Debug)]
enum Step {
    Kill,
    Revive,
    ReplaceAll,
    HandOver,
    Spoil,
}

/// The backend that is killed: one of those that only get GETs.
const VICTIM: &str = "catalogue-2";

/// Each step, not before this share of the demo's length.
const STEPS: [(f64, Step); 5] = [
    (0.10, Step::Kill),
    (0.24, Step::Revive),
    (0.34, Step::ReplaceAll),
    (0.70, Step::HandOver),
    (0.86, Step::Spoil),
];

/// Between taking a backend out of the configuration and its SIGTERM: what it was given is answered meanwhile.
const DRAIN_SHARE: f64 = 0.02;
const DRAIN_MIN: Duration = Duration::from_millis(300);
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Performs all steps and waits for the end of `length`.
pub async fn perform(stage: &mut Stage, board: &Arc<Board>, length: Duration) -> Result<()> {
    let started = board.now();
    let drain = length.mul_f64(DRAIN_SHARE).clamp(DRAIN_MIN, DRAIN_MAX);
    for (share, step) in STEPS {
        wait_until(board, started + length.mul_f64(share)).await;
        match step {
            Step::Kill => stage.kill(VICTIM).await?,
            Step::Revive => stage.revive(VICTIM).await?,
            Step::ReplaceAll => {
                let names = stage.names();
                board.tell(
                    Tone::Plain,
                    format!(
                        "rollout: all {} backends are replaced, one after the other",
                        names.len()
                    ),
                );
                for name in names {
                    stage.replace(&name, drain).await?;
                }
                board.tell(
                    Tone::Good,
                    "rollout complete: none of the processes of the beginning is left",
                );
            }
            Step::HandOver => stage.hand_over().await?,
            Step::Spoil => stage.spoil(drain).await?,
        }
    }
    wait_until(board, started + length).await;
    Ok(())
}

async fn wait_until(board: &Board, moment: Duration) {
    sleep(moment.saturating_sub(board.now())).await;
}

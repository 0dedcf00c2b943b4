//! The end of the process: drain, then go.
//!
//! On SIGTERM nobody may know yet that we leave, so accepting goes on while
//! connections tell their peers, until no new one has come for a while. After
//! a handover the new process accepts, so we stop at once. Either way what
//! runs may finish within `drain.timeout`.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::notify;
use super::process::{Process, Signals, settle};
use crate::drain::Phase;
use crate::worker::Command;

/// How often it is asked whether a new connection came.
const QUIET_STEP: Duration = Duration::from_millis(20);
/// What connections get to end themselves after the deadline.
const CLOSING_MAX: Duration = Duration::from_secs(1);
/// What the access log gets to reach the disk.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// 128 and the signal's number, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;
const EXIT_TERMINATED: u8 = 143;

/// Drains and ends.
pub async fn drain(process: Process, signals: Signals) -> ExitCode {
    notify::notify("STOPPING=1");
    end(process, signals, true).await
}

/// Finishes what runs; somebody else accepts.
pub async fn after_handover(process: Process, signals: Signals) -> ExitCode {
    // The admin port is shared by now: a probe that reached us would hear that
    // we are draining.
    process.admin_stop.notify_one();
    end(process, signals, false).await
}

async fn end(mut process: Process, mut signals: Signals, accepting: bool) -> ExitCode {
    let shared = std::sync::Arc::clone(&process.shared);
    let settings = shared.runtime.load().snapshot.settings.clone();
    let deadline = Instant::now() + settings.drain_timeout;
    tracing::info!(open = shared.drain.open(), handed_over = !accepting, timeout = ?settings.drain_timeout, "draining");
    shared.ready.store(false, Ordering::Relaxed);
    shared.drain.advance(Phase::Draining);
    let drained = async {
        if accepting {
            quiet(&process, settings.drain_quiet, deadline).await;
        }
        for worker in &process.workers {
            let _ = worker.commands.send(Command::StopAccepting).await;
        }
        settle(&process.workers).await;
        process.sockets.close();
        if timeout_at(deadline, shared.drain.idle()).await.is_err() {
            tracing::warn!(
                open = shared.drain.open(),
                "drain.timeout has passed: closing what is left"
            );
            shared.drain.advance(Phase::Closing);
            let _ = timeout(CLOSING_MAX, shared.drain.idle()).await;
        }
        ExitCode::SUCCESS
    };
    let code = tokio::select! {
        code = drained => code,
        _ = signals.terminate.recv() => ExitCode::from(EXIT_TERMINATED),
        _ = signals.interrupt.recv() => ExitCode::from(EXIT_INTERRUPTED),
    };
    tracing::info!(open = shared.drain.open(), "the end");
    shared.access_log.flush(FLUSH_MAX);
    code
}

/// Waits until no new connection has come for `time`, or until the deadline.
async fn quiet(process: &Process, time: Duration, deadline: Instant) {
    let accepted = || process.shared.accepted.load(Ordering::Relaxed);
    let (mut last, mut since) = (accepted(), Instant::now());
    while since.elapsed() < time && Instant::now() < deadline {
        sleep(QUIET_STEP.min(time)).await;
        let now = accepted();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

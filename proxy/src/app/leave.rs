//! The end of the process: drain, then go.
//!
//! On SIGTERM nobody may know yet that we leave, so accepting goes on while
//! connections tell their peers, until no new one has come for a while, or too
//! much of the time is gone. A sidecar passes the drain barrier first, and then
//! knows that nobody comes. After a handover the new process accepts, so we
//! stop at once. Either way what runs may finish within `drain.timeout`.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::process::{GiveTask, Process, Signals, finished, settle};
use super::{last_call, notify};
use crate::control::Request;
use crate::drain::Phase;
use crate::handover::READY_TIMEOUT;
use crate::health::with_sources;
use crate::net::pool::FRESH;
use crate::state::Shared;
use crate::worker::Command;

/// How often it is asked whether a new connection came.
const QUIET_STEP: Duration = Duration::from_millis(20);
/// Clients that never stop connecting (a balancer's checks, a client with a
/// connection a request) get this many times `drain.quiet`, and at most half of
/// `drain.timeout`: the rest is for what runs.
const QUIET_TIMES_MAX: u32 = 5;
/// How long who has begun to connect may take for the rest of the handshake.
const HANDSHAKES_MAX: Duration = Duration::from_millis(250);
/// So long after callers began to be told, no connection that was not used since is
/// trusted with a request that must not be sent twice: closing idle ones crosses none.
const SPENT: Duration = FRESH.saturating_add(Duration::from_millis(500));
/// What connections get to end themselves after the deadline.
const CLOSING_MAX: Duration = Duration::from_secs(1);
/// What the access log gets to reach the disk.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// 128 and the signal's number, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;
const EXIT_TERMINATED: u8 = 143;

/// Who may still ask something of a process that is leaving.
type Asking = (Signals, mpsc::Receiver<Request>);

/// Who else accepts on our listening sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heir {
    None,
    /// A process that has them, and may become ready or not.
    Unsure,
    Ready,
}

/// Somebody wants us gone. A process that is just taking over is waited for: if
/// we drained meanwhile, nobody might serve.
pub async fn asked(
    process: Process,
    (mut signals, requests): Asking,
    giving: Option<GiveTask>,
) -> ExitCode {
    let Some(mut giving) = giving else {
        return drain(process, (signals, requests), Heir::None).await;
    };
    let drain_timeout = process
        .shared
        .runtime
        .load()
        .snapshot
        .settings
        .drain_timeout;
    let most = READY_TIMEOUT.min(drain_timeout);
    tracing::info!(?most, "asked to leave during a handover: waiting for it");
    let given = tokio::select! {
        given = timeout(most, finished(Some(&mut giving))) => given,
        code = signalled(&mut signals) => return code,
    };
    match given {
        Ok(Ok(())) => after_handover(process, (signals, requests)).await,
        Ok(Err(error)) => {
            let error = with_sources(&error);
            tracing::error!(%error, "the new process did not take over");
            drain(process, (signals, requests), Heir::None).await
        }
        // When we end without a word, it serves (see `handover`).
        Err(_) => drain(process, (signals, requests), Heir::Unsure).await,
    }
}

async fn drain(process: Process, asking: Asking, heir: Heir) -> ExitCode {
    notify::notify("STOPPING=1");
    end(process, asking, heir).await
}

/// Finishes what runs; somebody else accepts.
pub async fn after_handover(process: Process, asking: Asking) -> ExitCode {
    // The admin port is shared by now: a probe that reached us would hear that
    // we are draining.
    process.admin_stop.notify_one();
    end(process, asking, Heir::Ready).await
}

async fn end(mut process: Process, (mut signals, mut requests): Asking, heir: Heir) -> ExitCode {
    let shared = std::sync::Arc::clone(&process.shared);
    let settings = shared.runtime.load().snapshot.settings.clone();
    let deadline = Instant::now() + settings.drain_timeout;
    tracing::info!(open = shared.drain.open(), handed_over = heir == Heir::Ready, timeout = ?settings.drain_timeout, "draining");
    shared.ready.store(false, Ordering::Relaxed);
    let barrier = match heir {
        Heir::Ready => None,
        Heir::None | Heir::Unsure => process.barrier(),
    };
    let workers = std::mem::take(&mut process.workers);
    let mut sockets = std::mem::take(&mut process.sockets);
    let drained = async {
        if let Some(passed) = barrier {
            let _ = timeout_at(deadline, passed).await;
        }
        shared.drain.advance(Phase::Draining);
        let left = heir != Heir::Ready && has_left(&shared);
        if heir != Heir::Ready && !left {
            let most = quiet_max(settings.drain_quiet, settings.drain_timeout);
            if !quiet(&shared, settings.drain_quiet, most).await {
                tracing::info!(?most, "new connections keep coming: no longer accepting");
            }
        }
        if left && let Some(began) = shared.drain.began() {
            sleep_until(began + SPENT).await;
        }
        if heir == Heir::None {
            last_call::begin(&sockets);
            sleep(HANDSHAKES_MAX.min(settings.drain_quiet)).await;
        }
        for worker in &workers {
            let command = Command::StopAccepting { left };
            let _ = worker.commands.send(command).await;
        }
        settle(&workers).await;
        sockets.close();
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
    let mut drained = std::pin::pin!(drained);
    let code = loop {
        tokio::select! {
            code = &mut drained => break code,
            code = signalled(&mut signals) => break code,
            Some(request) = requests.recv() => process.asked_while_leaving(request),
        }
    };
    tracing::info!(open = shared.drain.open(), "the end");
    shared.access_log.flush(FLUSH_MAX);
    code
}

/// A signal to end at once; the exit code for it.
async fn signalled(signals: &mut Signals) -> ExitCode {
    tokio::select! {
        _ = signals.terminate.recv() => ExitCode::from(EXIT_TERMINATED),
        _ = signals.interrupt.recv() => ExitCode::from(EXIT_INTERRUPTED),
    }
}

/// A sidecar that nothing more comes in for.
fn has_left(shared: &Shared) -> bool {
    let mesh = shared.mesh.as_ref();
    mesh.is_some_and(|mesh| mesh.gate.is_shut())
}

/// How long accepting goes on at most; never less than the quiet asked for.
fn quiet_max(quiet: Duration, timeout: Duration) -> Duration {
    quiet
        .saturating_mul(QUIET_TIMES_MAX)
        .min(timeout / 2)
        .max(quiet)
}

/// Waits until no new connection has come for `time`, but not longer than
/// `most`; whether it has become quiet.
async fn quiet(shared: &Shared, time: Duration, most: Duration) -> bool {
    let accepted = || shared.accepted.load(Ordering::Relaxed);
    let start = Instant::now();
    let (mut last, mut since) = (accepted(), start);
    while since.elapsed() < time {
        if start.elapsed() >= most {
            return false;
        }
        sleep(QUIET_STEP.min(time)).await;
        let now = accepted();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_the_time_is_for_what_runs() {
        let seconds = Duration::from_secs;
        assert_eq!(quiet_max(seconds(1), seconds(30)), seconds(5));
        assert_eq!(quiet_max(seconds(10), seconds(30)), seconds(15));
        assert_eq!(quiet_max(seconds(30), seconds(30)), seconds(30));
        assert_eq!(quiet_max(seconds(0), seconds(30)), seconds(0));
    }
}

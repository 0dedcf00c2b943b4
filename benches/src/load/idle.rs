//! Many connections that make one request each and then stay: what an idle
//! connection costs in memory. The window is the opening of all of them; its
//! end is told only after they have been idle for a while, so that what is
//! sampled then is the memory of idle connections.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mio::{Events, Poll};

use super::http1::{Progress, Slot, request};
use super::{Edge, OnEdge, Outcome, Plan, STALL_TIMEOUT};

const EVENTS_MAX: usize = 256;
const BUFFER_BYTES: usize = 64 * 1024;
/// Connections being opened or waiting for their answer at once.
const OPENING_MAX: usize = 64;
/// How long the connections are left alone before memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);

pub fn run(plan: &Plan, on_edge: OnEdge<'_>) -> Result<Outcome> {
    let (request, body_bytes) = request(plan.case);
    let mut outcome = Outcome::new()?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut slots: Vec<Slot> = Vec::with_capacity(plan.idle);
    let mut done = 0;
    on_edge(Edge::Start)?;
    let start = Instant::now();
    let mut last_answer = start;
    while done < plan.idle {
        while slots.len() < plan.idle && slots.len() - done < OPENING_MAX {
            let mut slot = Slot::connect(plan, &poll, slots.len())?;
            slot.start(&request, Instant::now())?;
            slots.push(slot);
        }
        poll.poll(&mut events, Some(Duration::from_millis(50)))?;
        for event in &events {
            let Some(slot) = slots.get_mut(event.token().0) else {
                continue;
            };
            match slot.turn((&request, body_bytes), &mut buffer)? {
                Progress::Waiting => continue,
                Progress::Closed => bail!("the subject closed a keep-alive connection"),
                Progress::Done => {}
            }
            done += 1;
            last_answer = Instant::now();
            if let Some(started) = slot.finish() {
                outcome.record(last_answer - started);
            }
        }
        ensure!(
            last_answer.elapsed() < STALL_TIMEOUT,
            "no answer for {STALL_TIMEOUT:?}, with {done} of {} connections open",
            plan.idle
        );
    }
    outcome.elapsed = start.elapsed();
    let settled = Instant::now() + SETTLE;
    while Instant::now() < settled {
        poll.poll(&mut events, Some(Duration::from_millis(50)))?;
        for event in &events {
            ensure!(
                !event.is_read_closed(),
                "the subject closed an idle connection"
            );
        }
    }
    on_edge(Edge::End)?;
    let open = slots.iter().filter(|slot| slot.started().is_none()).count();
    ensure!(
        open == plan.idle,
        "only {open} of {} connections are idle",
        plan.idle
    );
    Ok(outcome)
}

//! The drain barrier: when nothing more will reach the application.
//!
//! ```text
//! open ──quiet, or late──▶ shut ──nothing inside, or the limit──▶ passed
//! ```
//!
//! Once it is shut, what comes is "unprocessed" and goes elsewhere.
//!
//! **Invariant:** once shut, nobody is let in any more; what is inside when it is
//! passed is what the limit cut off.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::time::Nanos;

/// Waiting for everybody's acknowledgement, and for somebody else to be there: longer
/// than endpoints are ever late.
pub const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(11);
/// All of the barrier, unless the configuration says otherwise; half of the time that
/// Kubernetes gives a pod to end.
pub const BARRIER_MAX: Duration = Duration::from_secs(15);
/// What is left of it, at the end, for those inside, while nobody is let in any more.
const LAST: Duration = Duration::from_secs(3);
/// The same of a shorter barrier.
const LAST_SHARE: u32 = 5;
/// Nothing in flight for this long: nobody is about to send another.
const QUIET: Duration = Duration::from_millis(100);
/// The same where not everybody could be told: our answers have to.
const QUIET_ALONE: Duration = Duration::from_secs(1);

/// `ACKNOWLEDGED_MAX` of a barrier of another length: the same share.
pub fn acknowledged_max(barrier: Duration) -> Duration {
    let share = ACKNOWLEDGED_MAX.as_secs_f64() / BARRIER_MAX.as_secs_f64();
    barrier.mul_f64(share)
}

/// Counts what the application is being asked, and lets nothing in once it is shut.
#[derive(Debug, Default)]
pub struct Gate(AtomicUsize);

/// Beside the count.
const SHUT: usize = 1 << (usize::BITS - 1);

impl Gate {
    /// False: it is shut.
    pub fn enter(&self) -> bool {
        if self.0.fetch_add(1, Ordering::AcqRel) & SHUT == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// To be called once for each `enter` that let in.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    pub fn inside(&self) -> usize {
        self.0.load(Ordering::Acquire) & !SHUT
    }

    pub fn is_shut(&self) -> bool {
        self.0.load(Ordering::Acquire) & SHUT != 0
    }

    /// True if it is shut now, and nobody was inside.
    fn shut_if_empty(&self) -> bool {
        let shut = self
            .0
            .compare_exchange(0, SHUT, Ordering::AcqRel, Ordering::Acquire);
        shut.is_ok() || self.is_shut()
    }

    fn shut(&self) {
        self.0.fetch_or(SHUT, Ordering::AcqRel);
    }
}

/// One passage of the barrier, from when everybody who can be told has been.
#[derive(Debug)]
pub struct Barrier {
    since: Nanos,
    quiet: Duration,
    late: Nanos,
    limit: Nanos,
}

impl Barrier {
    /// `began`: when the workload began to leave, `BARRIER_MAX` ago at most.
    /// `all_told`: everybody who uses it has acknowledged that.
    pub fn new(began: Nanos, now: Nanos, all_told: bool) -> Self {
        Self::within(BARRIER_MAX, (began, now), all_told)
    }

    /// The same, `most` long in all.
    pub fn within(most: Duration, (began, now): (Nanos, Nanos), all_told: bool) -> Self {
        Self {
            since: now,
            quiet: if all_told { QUIET } else { QUIET_ALONE },
            late: began + (most - LAST.min(most / LAST_SHARE)),
            limit: began + most,
        }
    }

    /// To be called again and again; true: nothing more will reach the application.
    pub fn step(&mut self, gate: &Gate, now: Nanos) -> bool {
        if gate.inside() > 0 {
            self.since = now;
        }
        if now >= self.late {
            gate.shut();
            return gate.inside() == 0 || now >= self.limit;
        }
        now.since(self.since) >= self.quiet && gate.shut_if_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Nanos {
        Nanos::from(Duration::from_millis(millis))
    }

    #[test]
    fn shuts_after_a_quiet_and_lets_nobody_in() {
        let gate = Gate::default();
        assert!(gate.enter());
        let mut barrier = Barrier::new(at(0), at(0), true);
        assert!(!barrier.step(&gate, at(200)));
        gate.leave();
        assert!(!barrier.step(&gate, at(250)));
        assert!(barrier.step(&gate, at(300)) && gate.is_shut());
        assert!(!gate.enter());
        assert_eq!(gate.inside(), 0);
        assert!(barrier.step(&gate, at(301)));
    }

    #[test]
    fn the_limit_shuts_it_and_what_is_inside_may_end() {
        let gate = Gate::default();
        assert!(gate.enter() && gate.enter());
        let mut barrier = Barrier::new(at(0), at(0), false);
        assert!(!barrier.step(&gate, at(11_999)) && !gate.is_shut());
        assert!(!barrier.step(&gate, at(12_000)) && gate.is_shut());
        assert!(!gate.enter());
        gate.leave();
        assert!(!barrier.step(&gate, at(14_999)));
        assert!(barrier.step(&gate, at(15_000)));
        assert_eq!(gate.inside(), 1);
        gate.leave();
        assert!(barrier.step(&gate, at(12_001)));
    }

    #[test]
    fn a_shorter_barrier_keeps_its_shares() {
        let seconds = Duration::from_secs;
        assert_eq!(acknowledged_max(BARRIER_MAX), ACKNOWLEDGED_MAX);
        assert!(acknowledged_max(seconds(5)) < seconds(4));
        let gate = Gate::default();
        assert!(gate.enter());
        let mut barrier = Barrier::within(seconds(5), (at(0), at(0)), true);
        assert!(!barrier.step(&gate, at(3_999)) && !gate.is_shut());
        assert!(!barrier.step(&gate, at(4_000)) && gate.is_shut());
        assert!(barrier.step(&gate, at(5_000)));
        let mut none = Barrier::within(Duration::ZERO, (at(0), at(0)), false);
        assert!(none.step(&gate, at(0)));
    }

    #[test]
    fn who_could_not_be_told_is_waited_for_longer() {
        let gate = Gate::default();
        let mut barrier = Barrier::new(at(0), at(0), false);
        assert!(!barrier.step(&gate, at(999)));
        assert!(barrier.step(&gate, at(1_000)));
    }
}

//! How long a watch waits before it asks again. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::held::ABSENCES_MIN;

/// How often a kind that is missing is looked for; and how soon again at the start, when everybody waits
/// for what there is.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
/// Some watches of some replicas: an API server that comes back is not overrun, and found soon.
const BACK_OFF_MAX: Duration = Duration::from_secs(8);
/// A watch that lasts this long after its list is well. Where lists work and watches do not, each would
/// else begin with all there is and the shortest pause.
const LASTED: Duration = Duration::from_secs(15);
/// A kind is listed for no more than this part of the time, whatever proxies claim: soon again where a list
/// costs little, for until then whoever waits is told nothing new of what he has.
const BEHIND_SHARE: u32 = 20;
const BEHIND_PAUSE_MIN: Duration = Duration::from_secs(2);
const BEHIND_PAUSE_MAX: Duration = Duration::from_secs(20);

/// How long until a kind is looked for that so many looks have not found.
pub(super) fn look_pause(absences: u32) -> Duration {
    match absences < ABSENCES_MIN {
        true => LOOK_AGAIN,
        false => LOOK_INTERVAL,
    }
}

/// How long after a list for what others know, which took so long, there is another.
pub(super) fn behind_pause(took: Duration) -> Duration {
    let pause = took.saturating_mul(BEHIND_SHARE);
    pause.clamp(BEHIND_PAUSE_MIN, BEHIND_PAUSE_MAX)
}

/// Failures in a row, until a watch has lasted.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u32,
    /// When what is watched was listed.
    listed: Option<Instant>,
}

impl Failures {
    pub(super) fn listed(&mut self, now: Instant) {
        self.listed = Some(now);
    }

    /// How long to wait after another one: twice as long each time, and between half of it and all by
    /// chance (0 to 1), so that watches do not come in step.
    pub(super) fn pause(&mut self, now: Instant, chance: f64) -> Duration {
        let listed = self.listed.take();
        if listed.is_some_and(|listed| now.saturating_duration_since(listed) >= LASTED) {
            self.count = 0;
        }
        let doubled = BACK_OFF_MIN.saturating_mul(2_u32.saturating_pow(self.count));
        self.count = self.count.saturating_add(1);
        doubled.min(BACK_OFF_MAX).mul_f64(0.5 + chance / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_little_is_soon_listed_again_for_others() {
        let pause = |took| behind_pause(Duration::from_millis(took)).as_secs();
        assert_eq!([30, 300, 60_000].map(pause), [2, 6, 20]);
    }

    #[test]
    fn lists_that_work_make_up_for_no_watch_that_does_not() {
        let (mut failures, mut now) = (Failures::default(), Instant::now());
        let mut pauses = Vec::new();
        for lasted in [0, 0, 1, 1, 1, 1, 60, 1] {
            failures.listed(now);
            now += Duration::from_secs(lasted);
            pauses.push(failures.pause(now, 1.0).as_millis());
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 8000, 500, 1000]);
        // The API server is away: there is no list.
        assert_eq!(failures.pause(now + LASTED * 4, 0.0).as_millis(), 1000);
    }
}

//! Whether what we know may be old, because some kind cannot be watched: proxies are told, and those that
//! find a replica which is better off go there. Readiness does not follow it: without an API server all
//! replicas would vanish at once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use weft_config::staleness;
use weft_config::status::{WatchState, WatchStatus};
use weft_config::xds::DeltaDiscoveryResponse;

use super::hub::{Hub, seconds_now};
use super::stream::Session;
use crate::index::Type;

/// How long a watch is broken before it counts; and all are well before it does so no more, lest
/// proxies move back and forth.
const BROKEN_MAX: Duration = Duration::from_secs(30);
const WELL_MIN: Duration = Duration::from_secs(30);

/// `was`: what it has been until now. `now`: seconds since the Unix epoch, as in `watches`.
fn is_stale(watches: &[WatchStatus], was: bool, now: u64) -> bool {
    watches.iter().any(|watch| {
        let lasts = Duration::from_secs(now.saturating_sub(watch.since));
        match watch.state {
            WatchState::Broken => was || lasts >= BROKEN_MAX,
            WatchState::Watching => was && lasts < WELL_MIN,
            // Who lists again is not well yet.
            WatchState::Listing => was,
            WatchState::Absent => false,
        }
    })
}

impl Hub {
    /// Looks at the watches, and tells all streams if that makes a difference.
    pub fn review_watches(&self) {
        let state = self.state.lock();
        let was = self.is_stale();
        let is = is_stale(&state.watches, was, seconds_now());
        if is == was {
            return;
        }
        self.stale.store(is, Ordering::Relaxed);
        for proxy in state.proxies.values() {
            proxy.wake.notify_one();
        }
        drop(state);
        match is {
            true => tracing::warn!(
                "watches are broken for {BROKEN_MAX:?}: proxies are told to look for another controller"
            ),
            false => tracing::info!("all watches are well again; proxies are told"),
        }
    }

    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }
}

impl Session {
    /// What this proxy has to be told of it. It carries nothing, so nobody waits for its answer.
    pub(super) fn staleness(&mut self) -> Option<DeltaDiscoveryResponse> {
        let is_stale = self.hub.is_stale();
        if std::mem::replace(&mut self.told_stale, is_stale) == is_stale {
            return None;
        }
        self.count += 1;
        Some(DeltaDiscoveryResponse {
            system_version_info: staleness::say(is_stale),
            type_url: Type::TrustBundle.url(),
            nonce: self.count.to_string(),
            ..DeltaDiscoveryResponse::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::discovery::leave::tests::{acknowledge, caller, hub, turn};

    fn watch(state: WatchState, since: u64) -> WatchStatus {
        WatchStatus {
            kind: "Pod".to_owned(),
            state,
            since,
            ..WatchStatus::default()
        }
    }

    #[test]
    fn it_takes_a_while_to_begin_and_to_end() {
        use WatchState::{Absent, Broken, Listing, Watching};
        for (state, since, was, is) in [
            (Watching, 100, false, false),
            (Broken, 71, false, false),
            (Broken, 70, false, true),
            (Broken, 99, true, true),
            (Watching, 71, true, true),
            (Watching, 70, true, false),
            (Watching, 99, false, false),
            (Listing, 0, true, true),
            (Listing, 0, false, false),
            (Absent, 0, true, false),
        ] {
            let watches = [watch(Watching, 0), watch(state, since)];
            assert_eq!(is_stale(&watches, was, 100), is, "{state:?} {since} {was}");
        }
        assert!(!is_stale(&[], true, 100), "a directory");
    }

    #[test]
    fn a_stream_is_told_once_and_what_it_has_acknowledged_stays() {
        let hub = hub();
        let (mut session, _) = Session::open(Arc::clone(&hub), caller("client", "c")).unwrap();
        let told = |session: &mut Session, state, since| {
            hub.watched(vec![watch(state, since)]);
            hub.review_watches();
            let sent = turn(session);
            let said: Vec<_> = sent
                .iter()
                .map(|of| staleness::said(&of.system_version_info))
                .collect();
            acknowledge(session, sent);
            said
        };
        let now = seconds_now();
        assert_eq!(told(&mut session, WatchState::Broken, now), []);
        let before = hub.status().proxies[0].acknowledged;
        assert_eq!(told(&mut session, WatchState::Broken, 1), [Some(true)]);
        assert_eq!(told(&mut session, WatchState::Broken, 1), []);
        // Who comes meanwhile is told as it comes.
        let (mut late, _) = Session::open(Arc::clone(&hub), caller("late", "c")).unwrap();
        assert!(turn(&mut late).is_empty());
        assert_eq!(told(&mut session, WatchState::Watching, now), []);
        assert_eq!(told(&mut session, WatchState::Watching, 1), [Some(false)]);
        assert_eq!(hub.status().proxies[0].acknowledged, before);
    }
}

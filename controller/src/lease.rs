//! Which replica writes: the holder of a Lease (`coordination.k8s.io`), as Kubernetes' own
//! controllers do it.
//!
//! ```text
//!   follower ──── the holder has not renewed for 15 s, or released it ────▶ leader
//!       ▲                                                                      │
//!       └──── not renewed for 10 s, or somebody else holds it ◀────────────────┘
//! ```
//!
//! Whether another holder is alive is judged by our own clock, from when its record last
//! changed: clocks of replicas may differ.
//!
//! **Invariant:** of two that believe to hold it at once there are none: a leader stops
//! by itself before its Lease can be taken.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Error};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

pub const NAME: &str = "weft-controller";
/// After which silence another may take it.
const EXPIRY: Duration = Duration::from_secs(15);
/// After which the holder gives up by itself: what it began has 5 seconds to end.
const RENEWED_WITHIN: Duration = Duration::from_secs(10);
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
const ANSWER_MAX: Duration = Duration::from_secs(4);

/// What is to be done with the Lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Write our name and the time into it.
    Hold,
    /// It is another's.
    Wait,
}

/// What is known of the Lease. Pure: `now` counts from any moment.
#[derive(Debug)]
struct Elector {
    name: String,
    /// Its holder's last words, and when we saw them first.
    observed: Option<(String, Duration)>,
    /// When the request was sent that renewed it last.
    renewed: Option<Duration>,
}

impl Elector {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            observed: None,
            renewed: None,
        }
    }

    /// `spec`: the Lease as it is; `None`: there is none.
    fn decide(&mut self, spec: Option<&LeaseSpec>, now: Duration) -> Step {
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
        let Some(holder) = holder.filter(|holder| !holder.is_empty()) else {
            return Step::Hold;
        };
        if holder == self.name {
            return Step::Hold;
        }
        self.renewed = None;
        let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
        let words = format!("{holder} {renewed:?}");
        match &self.observed {
            Some((known, since)) if *known == words => match now.saturating_sub(*since) >= EXPIRY {
                true => Step::Hold,
                false => Step::Wait,
            },
            _ => {
                self.observed = Some((words, now));
                Step::Wait
            }
        }
    }

    /// When to look again: sooner than usual where another's Lease expires before.
    fn next(&self, sent: Duration) -> Duration {
        let expires = self.observed.as_ref().map(|(_, since)| *since + EXPIRY);
        let next = sent + RENEW_INTERVAL;
        expires
            .filter(|at| *at > sent)
            .map_or(next, |at| next.min(at))
    }

    fn renewed(&mut self, sent: Duration) {
        self.renewed = Some(sent);
    }

    fn is_leader(&self, now: Duration) -> bool {
        self.renewed
            .is_some_and(|at| now.saturating_sub(at) < RENEWED_WITHIN)
    }
}

/// Our part in the election.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    elector: Mutex<Elector>,
    begun: Instant,
    leads: watch::Sender<bool>,
}

impl Candidate {
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            elector: Mutex::new(Elector::new(name)),
            begun: Instant::now(),
            leads: watch::Sender::new(false),
        }
    }

    /// Whether we lead, as it changes.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Takes part for as long as the process lives.
    pub async fn run(&self) {
        let mut told = false;
        loop {
            let sent = Instant::now();
            match tokio::time::timeout(ANSWER_MAX, self.step()).await {
                Ok(Ok(())) => told = false,
                failed => {
                    if !std::mem::replace(&mut told, true) {
                        let why = match failed {
                            Ok(Err(error)) => error.to_string(),
                            _ => format!("no answer within {ANSWER_MAX:?}"),
                        };
                        tracing::warn!(why, "the Lease {NAME} cannot be read or renewed");
                    }
                }
            }
            self.publish();
            // A leader that cannot renew must know in time.
            let (next, renewed) = {
                let elector = self.elector.lock();
                let next = elector.next(sent.duration_since(self.begun));
                (self.begun + next, elector.renewed)
            };
            let ends = renewed.map(|at| self.begun + at + RENEWED_WITHIN);
            if let Some(ends) = ends.filter(|ends| *ends < next) {
                tokio::time::sleep_until(ends).await;
                self.publish();
            }
            tokio::time::sleep_until(next).await;
        }
    }

    fn publish(&self) {
        let leads = self.elector.lock().is_leader(self.begun.elapsed());
        // Told only when it changes: whoever hears it looks at everything anew.
        let turned = |before: &mut bool| std::mem::replace(before, leads) != leads;
        if self.leads.send_if_modified(turned) {
            match leads {
                true => tracing::info!(name = self.name, "leads: writes statuses"),
                false => tracing::info!(name = self.name, "leads no more"),
            }
        }
    }

    async fn step(&self) -> Result<(), Error> {
        let sent = self.begun.elapsed();
        let lease = self.api.get_opt(NAME).await?;
        let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
        let step = self.elector.lock().decide(spec, sent);
        if step == Step::Wait {
            return Ok(());
        }
        let spec = held(spec, &self.name);
        let written = match lease {
            Some(mut lease) => {
                lease.spec = Some(spec);
                // With the version that was read: of two that take it one fails.
                self.api.replace(NAME, &PostParams::default(), &lease).await
            }
            None => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(NAME.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(spec),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => self.elector.lock().renewed(sent),
            Err(Error::Api(status)) if status.code == 409 => self.elector.lock().renewed = None,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Gives it up, so that another need not wait.
    pub async fn release(&self) {
        if !self.elector.lock().is_leader(self.begun.elapsed()) {
            return;
        }
        let given_up = async {
            let mut lease = self.api.get(NAME).await?;
            let ours = lease
                .spec
                .as_mut()
                .filter(|spec| spec.holder_identity.as_deref() == Some(&self.name));
            if let Some(spec) = ours {
                spec.holder_identity = Some(String::new());
                self.api
                    .replace(NAME, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<(), Error>(())
        };
        match tokio::time::timeout(ANSWER_MAX / 2, given_up).await {
            Ok(Ok(())) => tracing::info!("the Lease is given up"),
            _ => tracing::info!("the Lease could not be given up; it expires"),
        }
    }
}

/// The Lease as we hold it.
fn held(old: Option<&LeaseSpec>, name: &str) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    let mut spec = old.cloned().unwrap_or_default();
    if spec.holder_identity.as_deref() != Some(name) {
        spec.acquire_time = Some(now.clone());
        let transitions = spec.lease_transitions.unwrap_or(0);
        spec.lease_transitions = Some(transitions.saturating_add(i32::from(old.is_some())));
    }
    spec.holder_identity = Some(name.to_owned());
    spec.lease_duration_seconds = i32::try_from(EXPIRY.as_secs()).ok();
    spec.renew_time = Some(now);
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Timestamp::from_second(renewed).ok().map(MicroTime),
            ..LeaseSpec::default()
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_is_taken_when_free_and_when_its_holder_is_silent() {
        let mut of = Elector::new("a");
        assert_eq!(of.decide(None, at(0)), Step::Hold, "there is none");
        assert_eq!(of.decide(Some(&spec("", 1)), at(0)), Step::Hold, "released");
        assert_eq!(of.decide(Some(&spec("a", 1)), at(0)), Step::Hold, "ours");
        // Another's, whose clock is hours off: it counts from when we saw it.
        assert_eq!(of.decide(Some(&spec("b", 1)), at(100)), Step::Wait);
        assert_eq!(of.decide(Some(&spec("b", 1)), at(114)), Step::Wait);
        assert_eq!(of.decide(Some(&spec("b", 6)), at(114)), Step::Wait, "alive");
        assert_eq!(of.decide(Some(&spec("b", 6)), at(128)), Step::Wait);
        assert_eq!(of.decide(Some(&spec("b", 6)), at(129)), Step::Hold);
        assert_eq!(of.next(at(110)), at(115), "no need to look more often");
        assert_eq!(of.next(at(127)), at(129), "then it may be taken");
        assert_eq!(of.next(at(129)), at(134));
        // It was taken by a third one meanwhile.
        assert_eq!(of.decide(Some(&spec("c", 6)), at(130)), Step::Wait);
    }

    #[test]
    fn who_does_not_renew_stops_before_another_may_begin() {
        let mut of = Elector::new("a");
        assert!(!of.is_leader(at(0)));
        of.renewed(at(3));
        assert!(of.is_leader(at(12)));
        assert!(!of.is_leader(at(13)));
        of.renewed(at(14));
        assert!(of.is_leader(at(15)));
        assert_eq!(of.decide(Some(&spec("b", 1)), at(15)), Step::Wait);
        assert!(!of.is_leader(at(15)), "it is another's");
        assert!(RENEWED_WITHIN + ANSWER_MAX < EXPIRY);
    }

    #[test]
    fn a_lease_that_changes_hands_says_so() {
        let first = held(None, "a");
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = held(Some(&first), "a");
        assert_eq!(renewed.acquire_time, first.acquire_time);
        let other = held(Some(&renewed), "b");
        assert_eq!(other.lease_transitions, Some(1));
        assert_eq!(other.holder_identity.as_deref(), Some("b"));
        assert_eq!(other.lease_duration_seconds, Some(15));
    }

    #[tokio::test]
    async fn it_is_told_when_it_changes_and_not_each_time_it_is_renewed() {
        let api = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let candidate = Candidate::new(Client::try_from(api).unwrap(), "weft-system", "a");
        let mut leads = candidate.leads();
        candidate.publish();
        assert!(
            !leads.has_changed().unwrap(),
            "it did not lead, and does not"
        );
        for _ in 0..2 {
            candidate.elector.lock().renewed(candidate.begun.elapsed());
            candidate.publish();
        }
        assert!(*leads.borrow_and_update());
        candidate.publish();
        assert!(!leads.has_changed().unwrap(), "renewed");
    }
}

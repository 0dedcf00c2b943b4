//! A request's life at a client's sidecar, by the proxy's own decisions: where to, what a failure
//! means, whether and when again. Asserts that none is lost that could be saved, and that none is
//! answered by whom it was not meant for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use weft_config::filter::{BackendChoice, choose_backend};
use weft_config::select::{RequestHead, Selection, select};
use weft_config::snapshot::{BackendTarget, Destination, Scheme};
use weft_proxy::logic::balance::{EndpointState, InFlight, Outcome};
use weft_proxy::logic::outlier;
use weft_proxy::logic::retry::{self, Decision, FailedTry, Failure, Reason, Retried};
use weft_proxy::logic::time::Nanos;
use weft_proxy::state::ServiceState;

use super::clock::millis;
use super::cluster::{DIALLED, Phase, Pod};
use super::plan::Without;
use super::proxy::{Connection, Proxy};
use super::world::{Event, World};

/// Between free retries beyond the first (`outbound::forward`).
const FREE_RETRY_PAUSE: Duration = Duration::from_millis(10);
/// A proxy without a stream may know only of endpoints that have gone since; so it may for this
/// long afterwards, and the slices' lag.
const CATCHING_UP: Duration = Duration::from_secs(3);

/// What comes back of a try.
#[derive(Debug)]
pub enum Answer {
    Served {
        pod: usize,
        leaving: bool,
        connection: Connection,
    },
    /// The endpoint's sidecar says that the application has not seen it.
    Unprocessed {
        leaving: bool,
    },
    /// … that its connection to the application died.
    Died {
        leaving: bool,
    },
    /// The connection to the sidecar died after the request was written.
    Broken,
    ConnectFailed,
}

pub struct Request {
    pub proxy: usize,
    method: Method,
    service: Arc<ServiceState>,
    tried: Vec<SocketAddr>,
    retried: Retried,
    trying: Option<(Arc<EndpointState>, InFlight, Nanos)>,
    /// Tries so far: what answers an earlier one is nobody's any more.
    pub tries: u32,
    /// Faults that killed a try.
    pub deaths: u32,
    /// Where its bytes are.
    pub written_to: Option<usize>,
    connection: Option<Connection>,
    /// Nobody served, or nobody that its sidecar could know of.
    starved: bool,
    pub done: bool,
}

impl World {
    pub fn arrive(&mut self, proxy: usize) {
        let now = self.clock.now;
        let share = 1.0 - self.clock.random_share();
        let rate = self.plan.requests_per_second / self.proxies.len() as f64;
        let next = now + Duration::from_secs_f64(-share.ln() / rate);
        if next < self.plan.end {
            self.clock.at(next, Event::Arrive(proxy));
        }
        let method = match self.clock.chance(0.5) {
            true => Method::POST,
            false => Method::GET,
        };
        let random = u64::from_le_bytes(self.clock.random_share().to_le_bytes());
        let service = route(
            &self.proxies[proxy],
            &method,
            random.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        service.budget.deposit(now);
        self.report.requests += 1;
        self.requests.push(Request {
            proxy,
            method,
            service,
            tried: Vec::new(),
            retried: Retried::default(),
            trying: None,
            tries: 0,
            deaths: 0,
            written_to: None,
            connection: None,
            starved: false,
            done: false,
        });
        self.attempt(self.requests.len() - 1);
    }

    /// One try: picks, and sends on a connection that is there or dials.
    pub fn attempt(&mut self, number: usize) {
        let now = self.clock.now;
        let request = &mut self.requests[number];
        let set = request.service.endpoints.load_full();
        let picked = set.pick(now, &mut self.clock.random, None, &request.tried);
        let Some(picked) = picked else {
            return self.lost(number, "no endpoint");
        };
        let endpoint = Arc::clone(picked.endpoint);
        let guard = endpoint.begin(now);
        let request = &mut self.requests[number];
        request.trying = Some((Arc::clone(&endpoint), guard, now));
        request.tries += 1;
        self.clock.say(format_args!(
            "request {number}: {} of client-{} to {}",
            request.method,
            request.proxy,
            endpoint.address()
        ));
        let peer = peer_of(&endpoint);
        let fresh = !retry::is_idempotent(&request.method);
        let (proxy, tries) = (request.proxy, request.tries);
        let how = (now, fresh, self.without);
        let taken = self.proxies[proxy].take((endpoint.address(), &peer), how);
        match taken {
            Some(connection) => self.write(number, connection),
            None => {
                let wait = self.latency();
                self.clock.after(wait, Event::Dial(number, tries));
            }
        }
    }

    /// A handshake has reached the address.
    pub fn dial(&mut self, number: usize, tries: u32) {
        let request = &self.requests[number];
        let Some((endpoint, ..)) = &request.trying else {
            return;
        };
        let (address, peer) = (endpoint.address(), peer_of(endpoint));
        let wait = self.latency();
        let owner = self.cluster.owner(address.ip());
        // Without a peer it is dialled in plain text, which says nothing of who answers.
        let is_meant = |pod: usize| peer.is_empty() || self.cluster.pods[pod].uid == peer;
        let owner = owner.filter(|pod| self.cluster.pods[*pod].accepts);
        match owner {
            Some(pod) if is_meant(pod) || self.without == Without::Identity => {
                let connection = Connection {
                    address,
                    peer,
                    pod,
                    used: self.clock.now,
                    closed: None,
                    fresh: true,
                };
                self.requests[number].connection = Some(connection.clone());
                let arrives = wait + self.latency() + self.latency();
                self.cluster.pods[pod].handshakes += 1;
                self.requests[number].written_to = Some(pod);
                self.clock
                    .after(arrives, Event::Reach(number, tries, connection));
            }
            Some(_) => {
                self.report.elsewhere += 1;
                self.clock
                    .after(wait, Event::Answer(number, tries, Answer::ConnectFailed));
            }
            None => {
                // A host that is gone refuses, or says nothing at all.
                let wait = match self.clock.chance(0.2) {
                    true => self.requests[number].service.config.connect_timeout,
                    false => wait,
                };
                self.clock
                    .after(wait, Event::Answer(number, tries, Answer::ConnectFailed));
            }
        }
    }

    fn write(&mut self, number: usize, connection: Connection) {
        let request = &mut self.requests[number];
        request.written_to = Some(connection.pod);
        let tries = request.tries;
        let wait = self.latency();
        self.clock
            .after(wait, Event::Reach(number, tries, connection));
    }

    /// The request has reached the sidecar at the other end.
    pub fn reach(&mut self, number: usize, tries: u32, mut connection: Connection) {
        if std::mem::take(&mut connection.fresh) {
            self.cluster.pods[connection.pod].handshakes -= 1;
        }
        if self.requests[number].tries != tries || self.requests[number].written_to.is_none() {
            return;
        }
        let wait = self.latency();
        let pod = &mut self.cluster.pods[connection.pod];
        let leaving = pod.draining;
        if !pod.is_there() || connection.closed.is_some() {
            // One that a fault has reset.
            self.requests[number].deaths += u32::from(pod.is_there());
            let answer = Answer::Broken;
            return self.clock.after(wait, Event::Answer(number, tries, answer));
        }
        if !pod.runs || !pod.gate.enter() {
            let answer = Answer::Unprocessed { leaving };
            return self.clock.after(wait, Event::Answer(number, tries, answer));
        }
        pod.inside.insert(number);
        self.requests[number].connection = Some(connection.clone());
        let takes = match self.clock.chance(0.05) {
            true => millis(self.clock.between(200.0, 2_000.0)),
            false => millis(self.clock.between(0.5, 40.0)),
        };
        self.clock
            .after(takes, Event::Served(number, tries, connection.pod));
    }

    /// The application has answered.
    pub fn served(&mut self, number: usize, tries: u32, pod_number: usize) {
        let pod = &mut self.cluster.pods[pod_number];
        if !pod.inside.remove(&number) {
            return;
        }
        pod.gate.leave();
        let leaving = pod.draining;
        let Some(connection) = self.requests[number].connection.clone() else {
            return;
        };
        let wait = self.latency();
        let answer = Answer::Served {
            pod: pod_number,
            leaving,
            connection,
        };
        self.clock.after(wait, Event::Answer(number, tries, answer));
    }

    pub fn answered(&mut self, number: usize, tries: u32, answer: Answer) {
        let now = self.clock.now;
        let request = &mut self.requests[number];
        if request.tries != tries || request.done {
            return;
        }
        let Some((endpoint, guard, began)) = request.trying.take() else {
            return;
        };
        self.clock.say(format_args!("request {number}: {answer:?}"));
        request.written_to = None;
        if let Answer::Served { leaving, .. }
        | Answer::Unprocessed { leaving }
        | Answer::Died { leaving } = &answer
            && endpoint.peer().is_some()
            && endpoint.set_draining(*leaving, now)
        {
            request.service.endpoints.load().refresh(now);
        }
        let (outcome, failure) = match &answer {
            Answer::Served { .. } => (Outcome::Success, None),
            Answer::Unprocessed { .. } => (Outcome::Failure, Some(Failure::Unprocessed)),
            Answer::Died { .. } | Answer::Broken => {
                (Outcome::Failure, Some(Failure::ConnectionDied))
            }
            Answer::ConnectFailed => (Outcome::Unreachable, Some(Failure::ConnectFailed)),
        };
        guard.finish(outcome, now.since(began), now);
        let set = request.service.endpoints.load();
        if let Some(policy) = &request.service.config.outlier {
            let _ = outlier::record(&endpoint, policy, outcome, now, &set);
        }
        drop(set);
        match (answer, failure) {
            (
                Answer::Served {
                    pod,
                    leaving,
                    connection,
                },
                _,
            ) => self.done(number, pod, (leaving, connection)),
            (_, Some(failure)) => self.failed(number, &endpoint, failure),
            (_, None) => {}
        }
    }

    fn done(&mut self, number: usize, pod: usize, (leaving, connection): (bool, Connection)) {
        let now = self.clock.now;
        let request = &mut self.requests[number];
        request.done = true;
        let asked = request.service.config.name.as_ref();
        let by = self.cluster.pods[pod].of;
        assert_eq!(
            asked,
            format!("shop/{by}:80"),
            "{now:?}: {} answered for {asked}",
            self.cluster.pods[pod].uid
        );
        let proxy = request.proxy;
        // An answer of a sidecar that leaves says `Connection: close`.
        if !leaving && self.cluster.pods[pod].is_there() {
            self.proxies[proxy].idle.push(Connection {
                used: now,
                ..connection
            });
        }
    }

    fn failed(&mut self, number: usize, endpoint: &Arc<EndpointState>, failure: Failure) {
        let now = self.clock.now;
        let starved = self.is_starved(number);
        let request = &mut self.requests[number];
        request.starved |= starved;
        let failed = FailedTry {
            failure,
            method: &request.method,
            replayable: true,
            policy: None,
            idempotent_retry: request.service.config.idempotent_retry,
            retried: request.retried,
            endpoints: request.service.endpoints.load().len_with(&request.tried),
        };
        let decision = retry::decide(&failed, &request.service.budget, now);
        request.retried.count(decision);
        request.tried.push(endpoint.address());
        let again = match decision {
            Decision::Free if request.retried.free > 1 => FREE_RETRY_PAUSE,
            Decision::Free | Decision::Budgeted => Duration::ZERO,
            Decision::No(reason) => {
                if reason == Reason::BudgetUsed && self.requests[number].deaths > 0 {
                    self.requests[number].starved = true;
                }
                return self.lost(number, &format!("{failure:?}, {reason:?}"));
            }
        };
        self.report.retried += 1;
        self.clock.after(again, Event::Try(number));
    }

    /// Nobody serves of whom this sidecar can have heard: it has no controller, or had none of late,
    /// or a fault has killed who would, or who left could not wait any longer for another.
    fn is_starved(&self, number: usize) -> bool {
        let now = self.clock.now;
        let request = &self.requests[number];
        let proxy = &self.proxies[request.proxy];
        let catching_up = CATCHING_UP + self.plan.lag;
        let recent = |since: Nanos| since > Nanos::ZERO && now.since(since) < catching_up;
        let cut = proxy.stream.is_none() || recent(proxy.cut_at) || recent(self.controller_down_at);
        let known = proxy.endpoints(&request.service.config.name);
        let mut known = known.iter().filter_map(|(address, peer)| {
            let owner = self.cluster.owner(address.ip())?;
            let pod = &self.cluster.pods[owner];
            (pod.uid == *peer).then_some(pod)
        });
        let serves = known.clone().any(|pod| pod.runs && !pod.gate.is_shut());
        let killed = |pod: &Pod| pod.killed || (pod.phase == Phase::Ready && !pod.runs);
        !serves && (cut || known.any(|pod| killed(pod) || pod.given_up))
    }

    fn lost(&mut self, number: usize, why: &str) {
        let starved = self.is_starved(number);
        let request = &mut self.requests[number];
        request.done = true;
        let killed = match retry::is_idempotent(&request.method) {
            true => request.deaths > retry::IDEMPOTENT_RETRIES_MAX,
            false => request.deaths > 0,
        };
        if killed || request.starved || starved {
            self.report.excused += 1;
            return;
        }
        let (request, now) = (&self.requests[number], self.clock.now);
        let name = &request.service.config.name;
        panic!(
            "{now:?}: a {} is lost: {why}; {} tries at {:?}, {} deaths; its sidecar {} knows {:?}, of which there are {:?}",
            request.method,
            request.tries,
            request.tried,
            request.deaths,
            request.proxy,
            self.proxies[request.proxy].endpoints(name),
            self.cluster
                .pods
                .iter()
                .filter(|pod| pod.is_there())
                .map(|pod| (&pod.uid, pod.address, pod.phase, pod.runs))
                .collect::<Vec<_>>(),
        );
    }
}

fn peer_of(endpoint: &EndpointState) -> String {
    let peer = endpoint.peer().map(|peer| peer.workload.to_string());
    peer.unwrap_or_default()
}

/// Which service takes what is dialled, by what is in force.
fn route(proxy: &Proxy, method: &Method, random: u64) -> Arc<ServiceState> {
    let runtime = &proxy.runtime;
    let destination = Destination::parse(DIALLED).expect("it is one");
    let listener = runtime.destination(&destination).expect("it is in force");
    let head = RequestHead {
        method,
        scheme: Scheme::Http,
        authority: "web.shop",
        path: "/",
        query: None,
        headers: &HeaderMap::new(),
    };
    let id = match select(&listener.config, &head, None) {
        Selection::Service(id) => id,
        Selection::Rule { rule, .. } => match choose_backend(rule, random) {
            BackendChoice::Backend(backend) => match backend.target {
                BackendTarget::Service(id) => id,
                BackendTarget::Invalid(ref reason) => panic!("a backend is {reason}"),
            },
            other => panic!("the route goes nowhere: {other:?}"),
        },
        Selection::NotFound => panic!("the destination has no service"),
    };
    Arc::clone(runtime.service(id).expect("it is in force"))
}

//! The whole: clients' sidecars, a controller and a deployment, driven by one queue of events.
//! What has to hold is asserted where it happens; `request` follows requests.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_controller::api::Slice;
use weft_controller::discovery::leave::Standing;
use weft_proxy::logic::barrier::{ACKNOWLEDGED_MAX, BARRIER_MAX, Barrier};
use weft_proxy::logic::time::Nanos;
use weft_proxy::net::pool::FRESH;

use super::clock::{Clock, at, millis};
use super::cluster::{Cluster, Phase, SERVICES};
use super::controller::Controller;
use super::plan::{Fault, Plan, Without};
use super::proxy::{Connection, Proxy};
use super::request::{Answer, Request};

const BARRIER_STEP: Duration = Duration::from_millis(20);
/// All faults are over by then, and everybody has been told.
const SETTLED: f64 = 90.0;

pub enum Event {
    Arrive(usize),
    Fault(Fault),
    Started(usize),
    WriteSlice(Slice),
    Watch,
    Leave(usize),
    LeaveTimeout(usize),
    Told(usize, Option<Standing>),
    Step(usize),
    SidecarEnds(usize),
    Taken(IpAddr),
    Restarted(usize),
    ControllerUp,
    Connect(usize),
    Noticed(u64),
    Up(u64, DeltaDiscoveryRequest),
    Down(usize, u64, DeltaDiscoveryResponse),
    Publish(usize),
    Try(usize),
    Dial(usize, u32),
    Reach(usize, u32, Connection),
    Served(usize, u32, usize),
    Answer(usize, u32, Answer),
    Settled,
}

/// What a run did, to see that it did something.
#[derive(Debug, Default)]
pub struct Report {
    pub requests: usize,
    pub retried: usize,
    /// Lost to a fault that no proxy can mend.
    pub excused: usize,
    pub left: usize,
    pub elsewhere: usize,
}

pub struct World {
    pub clock: Clock<Event>,
    pub plan: Plan,
    pub without: Without,
    pub cluster: Cluster,
    /// `None`: it is down.
    pub controller: Option<Controller>,
    pub proxies: Vec<Proxy>,
    pub requests: Vec<Request>,
    pub report: Report,
    pub controller_down_at: Nanos,
    /// When the last message of each stream's direction, or slice, arrives: none overtakes.
    last: BTreeMap<(char, u64), Nanos>,
    leaving_since: BTreeMap<usize, Nanos>,
    pub streams: u64,
}

impl World {
    /// Runs a seed to its end; panics where something does not hold.
    pub fn run(seed: u64, without: Without) -> Report {
        let plan = Plan::of(seed);
        let mut world = Self {
            clock: Clock::new(seed),
            without,
            cluster: Cluster::default(),
            controller: None,
            proxies: (0..plan.proxies).map(Proxy::new).collect(),
            requests: Vec::new(),
            report: Report::default(),
            controller_down_at: Nanos::ZERO,
            last: BTreeMap::new(),
            leaving_since: BTreeMap::new(),
            streams: 0,
            plan,
        };
        world.begin();
        while let Some(event) = world.clock.next() {
            world.handle(event);
        }
        world.report
    }

    fn begin(&mut self) {
        self.cluster.put_services();
        self.cluster.desired = self.plan.replicas;
        for of in SERVICES {
            for _ in 0..self.plan.replicas {
                let pod = self.cluster.create(of, None);
                self.started(pod);
            }
            let slice = self.cluster.slice(of);
            self.cluster.put_slice(slice);
        }
        self.controller = Some(Controller::start(self.cluster.objects.clone()));
        for proxy in 0..self.proxies.len() {
            self.clock.at(Nanos::ZERO, Event::Connect(proxy));
            self.clock.at(at(2.0), Event::Arrive(proxy));
        }
        for (time, fault) in std::mem::take(&mut self.plan.faults) {
            self.clock.at(time, Event::Fault(fault));
        }
        self.clock.at(at(SETTLED), Event::Settled);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive(proxy) => self.arrive(proxy),
            Event::Fault(fault) => self.fault(fault),
            Event::Started(pod) => {
                self.started(pod);
                self.changed("web");
            }
            Event::WriteSlice(slice) => {
                self.cluster.put_slice(slice);
                self.written();
            }
            Event::Watch => {
                if let Some(controller) = &mut self.controller {
                    controller.update(self.cluster.objects.clone());
                    self.send_down();
                }
            }
            Event::Leave(pod) => self.leave(pod),
            Event::LeaveTimeout(pod) => {
                let controller = self.controller.as_mut();
                if let Some(standing) = controller.and_then(|controller| controller.give_up(pod)) {
                    self.told(pod, Some(standing));
                }
            }
            Event::Told(pod, standing) => self.told(pod, standing),
            Event::Step(pod) => self.step(pod),
            Event::SidecarEnds(pod) => self.sidecar_ends(pod),
            Event::Taken(address) => {
                let other = self.cluster.create("other", Some(address));
                self.cluster.pods[other].phase = Phase::Ready;
                self.cluster.pods[other].runs = true;
                self.cluster.put_pod(other);
                self.written();
            }
            Event::Restarted(pod) => {
                let pod = &mut self.cluster.pods[pod];
                pod.runs = pod.phase == Phase::Ready;
                pod.killed &= !pod.runs;
            }
            Event::ControllerUp => {
                self.controller = Some(Controller::start(self.cluster.objects.clone()));
            }
            Event::Connect(proxy) => self.connect(proxy),
            Event::Noticed(stream) => {
                if let Some(controller) = &mut self.controller {
                    controller.disconnect(stream);
                    self.tell_leavers();
                }
            }
            Event::Up(stream, request) => {
                if let Some(controller) = &mut self.controller {
                    controller.receive(stream, request);
                    self.send_down();
                }
            }
            Event::Down(proxy, stream, response) => self.down(proxy, stream, &response),
            Event::Publish(proxy) => self.publish(proxy),
            Event::Try(request) => self.attempt(request),
            Event::Dial(request, number) => self.dial(request, number),
            Event::Reach(request, number, connection) => self.reach(request, number, connection),
            Event::Served(request, number, pod) => self.served(request, number, pod),
            Event::Answer(request, number, answer) => self.answered(request, number, answer),
            Event::Settled => self.settled(),
        }
    }

    /// One way through the network.
    pub fn latency(&mut self) -> Duration {
        let (least, spread) = self.plan.latency;
        least + spread.mul_f64(self.clock.random_share())
    }

    /// When something sent now arrives that overtakes nothing of its kind.
    pub fn in_order(&mut self, of: (char, u64), wait: Duration) -> Nanos {
        let last = self.last.entry(of).or_default();
        *last = (*last).max(self.clock.now + wait);
        *last
    }
}

/// The deployment.
impl World {
    fn started(&mut self, pod: usize) {
        if self.cluster.pods[pod].phase == Phase::Starting {
            self.cluster.pods[pod].phase = Phase::Ready;
            self.cluster.pods[pod].runs = true;
            self.cluster.put_pod(pod);
        }
    }

    /// Something about a service's pods has changed.
    fn changed(&mut self, of: &'static str) {
        let slice = self.cluster.slice(of);
        let lag = self.plan.lag.mul_f64(self.clock.random_share());
        let time = self.in_order(('s', 0), lag);
        self.clock.at(time, Event::WriteSlice(slice));
        self.written();
        let (create, delete) = self
            .cluster
            .reconcile(self.plan.surge, self.plan.unavailable);
        for _ in 0..create {
            let pod = self.cluster.create("web", None);
            let wait = millis(self.clock.between(200.0, 2_000.0));
            self.clock.after(wait, Event::Started(pod));
        }
        for pod in &delete {
            self.delete(*pod);
        }
        if !delete.is_empty() {
            self.changed(of);
        }
    }

    /// The API server's objects have changed: the controller will see.
    fn written(&mut self) {
        let wait = millis(self.clock.between(0.5, 20.0));
        self.clock.after(wait, Event::Watch);
    }

    fn delete(&mut self, number: usize) {
        let now = self.clock.now;
        let pod = &mut self.cluster.pods[number];
        if pod.phase == Phase::Starting {
            pod.phase = Phase::Gone;
            return;
        }
        pod.phase = Phase::Leaving;
        pod.draining = true;
        self.clock.say(format_args!("{} leaves", pod.uid));
        self.leaving_since.insert(number, now);
        if self.without == Without::Barrier {
            self.application_ends(number, false);
            self.clock.after(millis(500.0), Event::SidecarEnds(number));
            return;
        }
        let wait = self.latency();
        self.clock.after(wait, Event::Leave(number));
    }

    fn leave(&mut self, number: usize) {
        let Some(controller) = &mut self.controller else {
            return self.told(number, None);
        };
        let pod = &self.cluster.pods[number];
        controller.leave(number, (pod.of, &pod.uid));
        self.clock
            .after(ACKNOWLEDGED_MAX, Event::LeaveTimeout(number));
        self.send_down();
    }

    /// Those of whom everybody knows by now that they leave are told.
    pub fn tell_leavers(&mut self) {
        let Some(controller) = &mut self.controller else {
            return;
        };
        for (pod, standing) in controller.known_to_leave() {
            self.check_acknowledged(pod, standing);
            let wait = self.latency();
            self.clock.after(wait, Event::Told(pod, Some(standing)));
        }
    }

    /// No more proxies are said to know than do.
    fn check_acknowledged(&self, pod: usize, standing: Standing) {
        let pod = &self.cluster.pods[pod];
        let listed = self.listed(&format!("shop/{}:80", pod.of));
        if listed.iter().any(|(_, uid)| *uid == pod.uid) {
            // Nobody else is there: it stays in rotation.
            return;
        }
        let uses = |proxy: &&Proxy| {
            let endpoints = proxy.endpoints(&format!("shop/{}:80", pod.of));
            endpoints.iter().any(|(_, peer)| *peer == pod.uid)
        };
        let used = self.proxies.iter().filter(uses).count();
        assert!(
            standing.acknowledged + used <= self.proxies.len(),
            "{:?}: {standing:?} have acknowledged the leaving of {}, and {used} still use it",
            self.clock.now,
            pod.uid
        );
    }

    pub fn told(&mut self, number: usize, standing: Option<Standing>) {
        let (now, since) = (self.clock.now, self.leaving_since[&number]);
        self.clock.say(format_args!(
            "{} is told {standing:?}",
            self.cluster.pods[number].uid
        ));
        let all = standing.is_some_and(|told| told.users == told.acknowledged);
        let pod = &mut self.cluster.pods[number];
        pod.given_up |= standing.is_none_or(|told| told.behind > 0);
        if pod.barrier.is_none() && pod.phase == Phase::Leaving {
            pod.barrier = Some(Barrier::new(since, now, all));
            self.clock.after(BARRIER_STEP, Event::Step(number));
        }
    }

    fn step(&mut self, number: usize) {
        let now = self.clock.now;
        let pod = &mut self.cluster.pods[number];
        let Some(barrier) = &mut pod.barrier else {
            return;
        };
        if !barrier.step(&pod.gate, now) {
            self.clock.after(BARRIER_STEP, Event::Step(number));
            return;
        }
        let took = now.since(self.leaving_since[&number]);
        assert!(
            took <= BARRIER_MAX + BARRIER_STEP,
            "{}: the barrier took {took:?}",
            pod.uid
        );
        self.report.left += 1;
        // It exits at once.
        self.application_ends(number, false);
        let spent = self.leaving_since[&number] + FRESH + millis(500.0);
        let lingers = millis(self.clock.between(0.0, 2_000.0));
        let ends = (self.clock.now + lingers).max(spent) + millis(250.0);
        self.clock.at(ends, Event::SidecarEnds(number));
    }

    /// What it was doing is cut off. `killed`: a fault, and nobody's mistake.
    fn application_ends(&mut self, number: usize, killed: bool) {
        let pod = &mut self.cluster.pods[number];
        pod.runs = false;
        pod.killed = killed;
        self.clock.say(format_args!(
            "the application of {} ends; killed: {killed}, inside {:?}",
            pod.uid, pod.inside
        ));
        let leaving = pod.draining;
        for request in std::mem::take(&mut pod.inside) {
            self.cluster.pods[number].gate.leave();
            self.requests[request].deaths += u32::from(killed);
            let number = self.requests[request].tries;
            let wait = self.latency();
            let answer = Answer::Died { leaving };
            self.clock
                .after(wait, Event::Answer(request, number, answer));
        }
    }

    fn sidecar_ends(&mut self, number: usize) {
        self.cluster.pods[number].accepts = false;
        if self.cluster.pods[number].handshakes > 0 {
            return self.clock.after(BARRIER_STEP, Event::SidecarEnds(number));
        }
        self.cluster.pods[number].phase = Phase::Gone;
        self.cluster.pods[number].runs = false;
        self.clock
            .say(format_args!("{} is gone", self.cluster.pods[number].uid));
        self.cluster.remove_pod(number);
        self.close_connections(number, None);
        let address = self.cluster.pods[number].address;
        if self.clock.chance(self.plan.reuse) {
            let wait = millis(self.clock.between(0.0, 2_000.0));
            self.clock.after(wait, Event::Taken(address));
        }
        self.changed("web");
    }

    /// A pod's idle connections close; each client hears of it a little later.
    fn close_connections(&mut self, pod: usize, of: Option<usize>) {
        for proxy in 0..self.proxies.len() {
            if of.is_some_and(|of| of != proxy) {
                continue;
            }
            let known = self.clock.now + self.latency();
            let idle = self.proxies[proxy].idle.iter_mut();
            for connection in idle.filter(|connection| connection.pod == pod) {
                connection.closed.get_or_insert(known);
            }
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.clock.say(format_args!("{fault:?}"));
        match fault {
            Fault::Rollout => {
                self.cluster.revision += 1;
                self.changed("web");
            }
            Fault::Scale { replicas } => {
                self.cluster.desired = replicas;
                self.changed("web");
            }
            Fault::Route => {
                self.cluster.turn_route();
                self.written();
            }
            Fault::ControllerDies { back_after } => self.controller_dies(back_after),
            Fault::Cut { proxy, back_after } => self.cut(proxy, back_after),
            Fault::ApplicationDies => {
                let running = self.cluster.pods.iter().enumerate();
                let ready = running.filter(|(_, pod)| pod.runs && pod.phase == Phase::Ready);
                let ready: Vec<usize> = ready.map(|(number, _)| number).collect();
                if ready.len() > 1 {
                    let number = ready[self.clock.below(ready.len())];
                    self.application_ends(number, true);
                    let wait = millis(self.clock.between(100.0, 2_000.0));
                    self.clock.after(wait, Event::Restarted(number));
                }
            }
            Fault::Resets { proxy } => self.reset(proxy),
        }
    }

    fn reset(&mut self, proxy: usize) {
        let there: Vec<usize> = (0..self.cluster.pods.len())
            .filter(|number| self.cluster.pods[*number].is_there())
            .collect();
        let pod = there[self.clock.below(there.len())];
        self.close_connections(pod, Some(proxy));
        for number in 0..self.requests.len() {
            let request = &mut self.requests[number];
            if request.proxy == proxy && request.written_to == Some(pod) && !request.done {
                request.deaths += 1;
                request.written_to = None;
                let event = Event::Answer(number, request.tries, Answer::Broken);
                self.clock.after(Duration::ZERO, event);
            }
        }
    }
}

/// The end.
impl World {
    /// In the end everybody has what the index says, and nothing else.
    fn settled(&mut self) {
        for proxy in &self.proxies {
            assert!(proxy.stream.is_some(), "{} is not connected", proxy.uid);
            for of in SERVICES {
                let name = format!("shop/{of}:80");
                if proxy.runtime.service_named(&name).is_some() {
                    let mut has = proxy.endpoints(&name);
                    has.sort();
                    assert_eq!(has, self.listed(&name), "{}: {name}", proxy.uid);
                }
            }
        }
        let staying = self.cluster.pods.iter();
        let ready = staying.filter(|pod| pod.of == "web" && pod.phase == Phase::Ready);
        assert_eq!(
            ready.count(),
            self.cluster.desired,
            "the deployment is complete"
        );
        let lost = self.requests.iter().find(|request| !request.done);
        assert!(lost.is_none(), "a request has no end");
    }

    /// A service's endpoints as the controller has them, sorted.
    fn listed(&self, service: &str) -> Vec<(SocketAddr, String)> {
        let controller = self.controller.as_ref().expect("it is up");
        let listed = controller.endpoints(service).into_iter();
        let mut listed: Vec<_> = listed
            .map(|of| (of.address.parse().expect("an address"), of.workload))
            .collect();
        listed.sort();
        listed
    }
}

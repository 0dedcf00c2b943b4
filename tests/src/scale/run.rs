//! The acts of a run, in order: everybody connects; endpoints change; a service that all use is
//! rolled out; the controller is killed and everybody comes back at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::runtime::{Builder, Runtime};

use super::controller::Controller;
use super::figures::Figures;
use super::ledger::{Change, Ledger};
use super::objects::Objects;
use super::proxy::{Proxy, Setting};
use super::size::{COMMON, POD_PORT, Size, loopback};

/// How long any act may take that must come to an end.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two proxies that are started.
const START_INTERVAL: Duration = Duration::from_millis(10);

/// What says how far a run is.
pub trait Teller {
    /// An act begins.
    fn act(&self, what: &str);
    /// So many of so many.
    fn step(&self, what: &str, done: usize, of: usize);
    /// What came of an act.
    fn said(&self, what: &str);
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub size: Size,
    pub changes: usize,
    /// Between two changes.
    pub interval: Duration,
}

pub struct Run<'a, T: Teller> {
    plan: Plan,
    teller: &'a T,
    ledger: Arc<Ledger>,
    /// Of the requests to the API server, and of the proxies; each its own thread.
    api: Runtime,
    proxies: Runtime,
    objects: Objects,
    users: Vec<BTreeSet<usize>>,
    pub controller: Controller,
}

impl<'a, T: Teller> Run<'a, T> {
    /// Makes the objects, and starts a controller.
    pub fn begin(
        plan: Plan,
        prefix: &str,
        (binary, kubeconfig): (&Path, &Path),
        teller: &'a T,
    ) -> Result<Self, String> {
        let size = plan.size;
        let (api, proxies) = (runtime("api")?, runtime("proxies")?);
        teller.act("objects are made in the API server");
        let made = api.block_on(async {
            let client = client(kubeconfig).await?;
            let tell = |what: &str, done, of| teller.step(what, done, of);
            Objects::make(client, prefix, size, tell).await
        });
        let objects = made?;
        let mut users = vec![BTreeSet::new(); size.services];
        for proxy in 0..size.proxies {
            for service in size.used_by(proxy) {
                users[service].insert(proxy);
            }
        }
        teller.act("the controller starts");
        let begun = Instant::now();
        let mut controller = Controller::start(binary, kubeconfig, &objects.system());
        controller.ready();
        teller.said(&format!(
            "ready after {:.1} s; memory {}",
            begun.elapsed().as_secs_f64(),
            mib(controller.memory().now)
        ));
        Ok(Self {
            plan,
            teller,
            ledger: Arc::default(),
            api,
            proxies,
            objects,
            users,
            controller,
        })
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Every act.
    pub fn play(&mut self) -> Result<Figures, String> {
        let mut figures = Figures::default();
        self.connect()?;
        self.churn(&mut figures)?;
        self.rollout(&mut figures)?;
        let memory = self.controller.memory();
        (figures.memory_now, figures.memory_peak) = (memory.now, memory.peak);
        self.restart(&mut figures)?;
        figures.cpu = self.controller.cpu();
        match self.ledger.mistakes() {
            mistakes if mistakes.is_empty() => Ok(figures),
            mistakes => Err(mistakes.join("\n")),
        }
    }

    /// Takes what was made away.
    pub fn end(self) {
        drop(self.controller);
        self.proxies.shutdown_background();
        self.api.block_on(self.objects.remove());
    }

    fn connect(&mut self) -> Result<(), String> {
        let size = self.plan.size;
        self.teller
            .act("proxies start: a token, a certificate, what they dial");
        let begun = Instant::now();
        let tell = |what: &str, done, of| self.teller.step(what, done, of);
        let (workloads, root) = self.api.block_on(async {
            let workloads = self.objects.workloads(tell).await?;
            Ok::<_, String>((workloads, self.objects.root().await?))
        })?;
        let root = Arc::new(root);
        for (number, workload) in workloads.into_iter().enumerate() {
            let dials = size.used_by(number).into_iter();
            let dials = dials.map(|of| (self.objects.dialled(of), self.objects.port_of(of)));
            let setting = Setting {
                number,
                workload,
                root: Arc::clone(&root),
                controller: self.controller.listen,
                source: loopback(number),
                dials: dials.collect(),
            };
            let proxy = Proxy::new(setting, Arc::clone(&self.ledger))?;
            let delay = START_INTERVAL * u32::try_from(number).unwrap_or(0);
            self.proxies.spawn(async move {
                tokio::time::sleep(delay).await;
                proxy.run().await;
            });
        }
        let standing = self.until("everybody has what it uses", |standing| {
            self.teller.step("proxies", standing.synced, size.proxies);
            standing.synced == size.proxies
        })?;
        self.settle()?;
        self.teller.said(&format!(
            "{} proxies in sync after {:.1} s: {} resources, {:.1} MB; memory of the controller {}",
            standing.synced,
            begun.elapsed().as_secs_f64(),
            standing.received.resources,
            standing.received.bytes as f64 / 1e6,
            mib(self.controller.memory().now),
        ));
        Ok(())
    }

    fn until(
        &self,
        what: &str,
        is_so: impl Fn(&super::ledger::Standing) -> bool,
    ) -> Result<super::ledger::Standing, String> {
        self.ledger.until(PATIENCE, what, is_so)
    }

    /// Waits until the controller has heard that everybody has everything.
    fn settle(&self) -> Result<(), String> {
        let (proxies, begun) = (self.plan.size.proxies as f64, Instant::now());
        let settled = || {
            let figure = |name: &str| self.controller.figure(name);
            figure("weft_controller_proxies") == Some(proxies)
                && figure("weft_controller_proxies_behind") == Some(0.0)
        };
        while !settled() {
            if begun.elapsed() > PATIENCE {
                return Err("the controller never heard of everybody".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Makes one endpoint ready or not, and lets the ledger await it.
    fn change(&self, service: usize, endpoint: usize, listed: bool) {
        let address = self.plan.size.address(service, endpoint, 0);
        let change = Change {
            port: self.objects.port_of(service),
            address: (address, POD_PORT).into(),
            listed,
        };
        let (objects, ledger) = (self.objects.clone(), Arc::clone(&self.ledger));
        let users = self.users[service].clone();
        ledger.begin(change, users);
        self.api.spawn(async move {
            let written = objects.set_ready(service, endpoint, listed).await;
            if let Err(problem) = written {
                ledger.mistake(format!("a change cannot be written: {problem}"));
            }
        });
    }

    /// Endpoints change at a steady pace, whatever becomes of those before.
    fn churn(&mut self, figures: &mut Figures) -> Result<(), String> {
        let Plan {
            size,
            changes,
            interval,
        } = self.plan;
        self.teller
            .act(&format!("churn: {changes} changes, one each {interval:?}"));
        let used: Vec<usize> = (0..size.services)
            .filter(|of| *of != COMMON && !self.users[*of].is_empty())
            .collect();
        let (before, cpu) = (self.ledger.standing().received, self.controller.cpu());
        let (begun, mut concerned) = (Instant::now(), 0);
        for number in 0..changes {
            let due = begun + interval * u32::try_from(number).unwrap_or(0);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (service, round) = (used[number % used.len()], number / used.len());
            let port = self.objects.port_of(service);
            self.until("the change before of the same service", |_| {
                !self.ledger.is_pending(&port)
            })?;
            // Each pair of rounds takes an endpoint away and brings it back.
            self.change(service, round / 2 % size.endpoints, round % 2 == 1);
            concerned += self.users[service].len();
            self.teller.step("changes", number + 1, changes);
        }
        let standing = self.until("every change at everybody", |of| of.pending == 0)?;
        self.settle()?;
        figures.changes = self.ledger.took();
        let (received, concerned) = (standing.received, concerned.max(1) as f64);
        let each = |now: u64, before: u64| (now - before) as f64 / concerned;
        figures.bytes_per_proxy_per_change = each(received.bytes, before.bytes);
        figures.resource_bytes_per_proxy_per_change =
            each(received.resource_bytes, before.resource_bytes);
        figures.resources_per_proxy_per_change = each(received.resources, before.resources);
        figures.change_cpu =
            (self.controller.cpu() - cpu) / u32::try_from(changes.max(1)).unwrap_or(1);
        self.teller.said(&format!(
            "{} in {:.1} s; {:.0} bytes a proxy a change; {} µs of the controller's CPU a change",
            quantiles(&figures.changes),
            begun.elapsed().as_secs_f64(),
            figures.bytes_per_proxy_per_change,
            figures.change_cpu.as_micros(),
        ));
        Ok(())
    }

    /// One endpoint after the other leaves, and comes back: as pods are replaced.
    fn rollout(&mut self, figures: &mut Figures) -> Result<(), String> {
        let endpoints = self.plan.size.endpoints;
        self.teller.act("a rollout of the service that all use");
        for step in 0..2 * endpoints {
            self.change(COMMON, step / 2, step % 2 == 1);
            self.until("the change at everybody", |of| of.pending == 0)?;
            self.teller.step("steps", step + 1, 2 * endpoints);
        }
        self.settle()?;
        figures.rollout = self.ledger.took();
        self.teller.said(&format!(
            "{}; memory of the controller {}",
            quantiles(&figures.rollout),
            mib(self.controller.memory().now),
        ));
        Ok(())
    }

    fn restart(&mut self, figures: &mut Figures) -> Result<(), String> {
        self.teller
            .act("the controller is killed, and another starts");
        let proxies = self.plan.size.proxies;
        let before = self.ledger.standing();
        self.controller.restart();
        let begun = Instant::now();
        self.controller.ready();
        figures.ready = begun.elapsed();
        self.until("everybody connected again", |of| {
            self.teller.step("proxies", of.connected, proxies);
            of.connections - before.connections >= proxies as u64 && of.connected == proxies
        })?;
        self.settle()?;
        figures.resync = begun.elapsed();
        let sent = self.ledger.standing().received.resources - before.received.resources;
        if sent > 0 {
            let problem = format!("{sent} resources were sent again to who holds them");
            self.ledger.mistake(problem);
        }
        // And it serves: a change gets through to all.
        self.change(COMMON, 0, false);
        self.until("the change at everybody", |of| of.pending == 0)?;
        self.teller.said(&format!(
            "all in sync {:.1} s after its start, of which it was ready after {:.1} s; then a change took {}",
            figures.resync.as_secs_f64(),
            figures.ready.as_secs_f64(),
            quantiles(&self.ledger.took()),
        ));
        Ok(())
    }
}

fn runtime(name: &str) -> Result<Runtime, String> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
}

async fn client(kubeconfig: &Path) -> Result<Client, String> {
    let config = Kubeconfig::read_from(kubeconfig).map_err(|error| error.to_string())?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await;
    let client = Client::try_from(config.map_err(|error| error.to_string())?);
    client.map_err(|error| error.to_string())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn quantiles(of: &[Duration]) -> String {
    let mut of = of.to_vec();
    let mut at = |share| super::figures::millis(super::figures::quantile(&mut of, share));
    let (p50, p99, most) = (at(0.5), at(0.99), at(1.0));
    format!("p50 {p50} ms, p99 {p99} ms, most {most} ms")
}

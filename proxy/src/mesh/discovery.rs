//! Learns from a controller what the workload needs: one delta xDS stream,
//! resumed with what is held when it has to be opened again.
//!
//! **Invariant:** a response is acknowledged only once what it says is in force.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost_types::{Struct, Value, value};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use weft_config::snapshot::Destination;
use weft_config::staleness;
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

use super::mark::Mark;
use super::outgoing::{Outgoing, acknowledgement};
use super::store::{Effect, Store, Type};
use super::stream::{self, Better, Opened};
use super::{Backoff, Client, identity, leave};
use crate::control;
use crate::logic::barrier::ACKNOWLEDGED_MAX;
use crate::state::Runtime;
use crate::state::mesh::{Known, QUESTIONS_MAX, Question, Subject};

/// Changes within this time are published together.
pub const COALESCE: Duration = Duration::from_millis(5);
/// A destination that nobody has dialled for this long is forgotten.
const IDLE: Duration = Duration::from_secs(600);
const SWEEP: Duration = Duration::from_secs(60);
/// The longest pause between attempts. A thousand proxies make some 450 attempts a second as long
/// as nobody answers, which cost nobody much; who waits longer is out of date for as much longer
/// once there is a controller again.
pub const RECONNECT_MAX: Duration = Duration::from_secs(3);
/// A stream that lasts so long is worth another attempt at once when it ends.
const LASTED: Duration = Duration::from_secs(10);
/// Connections that wait for an answer; one more is told that nobody can say.
const WAITING_MAX: usize = 16_384;

/// Resources and what is wrong with them.
type Refused = Vec<(String, String)>;

struct Discovery {
    client: Arc<Client>,
    store: Store,
    mark: Mark,
    waiting: Vec<(Subject, oneshot::Sender<Known>)>,
    /// Responses that are acknowledged once what they changed is in force.
    unacknowledged: Vec<(Type, Vec<String>, String, Refused)>,
    rebuild_at: Option<Instant>,
    changed: BTreeSet<String>,
}

pub async fn run(client: Arc<Client>, mut questions: mpsc::Receiver<Question>) {
    let mesh = &client.mesh.config;
    let domain = mesh.identity.trust_domain();
    let mut store = Store::new(&mesh.workload, domain, &mesh.application.to_string());
    for destination in &client.pinned {
        store.want(destination, true);
    }
    let mut discovery = Discovery {
        client: Arc::clone(&client),
        store,
        mark: Mark::default(),
        waiting: Vec::new(),
        unacknowledged: Vec::new(),
        rebuild_at: None,
        changed: BTreeSet::new(),
    };
    let mut backoff = Backoff::new(RECONNECT_MAX);
    let (mut attempt, mut lost) = (0, None);
    loop {
        let problem = match discovery.connect((attempt, lost), &mut questions).await {
            Ok(opened) => {
                let began = Instant::now();
                let problem;
                (lost, problem) = discovery.follow(opened, &mut questions).await;
                attempt = 0;
                if began.elapsed() > LASTED {
                    backoff.reset();
                }
                problem
            }
            Err(problem) => {
                attempt += 1;
                problem
            }
        };
        tracing::warn!(%problem, "no connection to the controller; going on with what is known");
        {
            let mut told = client.mesh.told.lock();
            told.controller = None;
            told.problem = Some(problem);
        }
        discovery.meanwhile(backoff.pause(), &mut questions).await;
    }
}

/// A controller that has only just started does not know who is on its way out.
async fn leave_again(client: &Client) -> Infallible {
    if client.mesh.leaving.load(Ordering::Relaxed) {
        let _ = leave::leave(client, ACKNOWLEDGED_MAX).await;
    }
    std::future::pending().await
}

/// Why a stream is followed no longer.
enum End {
    Broken(String),
    /// A better controller serves us.
    Moved(Box<Opened>),
}

impl Discovery {
    /// Opens a stream to one of the controllers.
    async fn connect(
        &mut self,
        (attempt, lost): (usize, Option<SocketAddr>),
        questions: &mut mpsc::Receiver<Question>,
    ) -> Result<Opened, String> {
        let client = Arc::clone(&self.client);
        let opening = async {
            let (address, _) = client.controllers.choose(attempt, lost).await?;
            let opened = Box::pin(stream::open(&client, address)).await?;
            Ok(Box::pin(stream::fresher(&client, opened)).await)
        };
        self.meanwhile(opening, questions).await
    }

    /// Follows a stream, and those to better controllers, until one breaks; which, and why.
    async fn follow(
        &mut self,
        mut opened: Opened,
        questions: &mut mpsc::Receiver<Question>,
    ) -> (Option<SocketAddr>, String) {
        let client = Arc::clone(&self.client);
        loop {
            let controller = opened.controller;
            {
                let mut told = client.mesh.told.lock();
                told.controller = Some(controller.to_string());
                told.problem = None;
            }
            tracing::info!(%controller, "connected to the controller");
            let end = tokio::select! {
                end = self.serve(opened, questions) => end,
                never = leave_again(&client) => match never {},
            };
            self.unacknowledged.clear();
            match end {
                End::Broken(problem) => return (Some(controller), problem),
                End::Moved(better) => opened = *better,
            }
        }
    }

    /// Waits for `what`, answering from what is known.
    async fn meanwhile<T>(
        &mut self,
        what: impl Future<Output = T>,
        questions: &mut mpsc::Receiver<Question>,
    ) -> T {
        let mut what = std::pin::pin!(what);
        loop {
            let publish = self.rebuild_at;
            tokio::select! {
                done = &mut what => return done,
                Some(question) = questions.recv() => self.questions(question, questions),
                () = until(publish) => drop(self.publish().await),
            }
        }
    }

    /// Follows one stream to its end.
    async fn serve(&mut self, opened: Opened, questions: &mut mpsc::Receiver<Question>) -> End {
        let Opened {
            controller,
            requests,
            mut responses,
            is_stale,
        } = opened;
        let is_stale = watch::Sender::new(is_stale);
        let mut outgoing = Outgoing::new(requests);
        self.store.reconnected();
        let client = Arc::clone(&self.client);
        let mut credentials = client.credentials.subscribe();
        let mut better: Better = Box::pin(stream::better(
            Arc::clone(&client),
            controller,
            is_stale.subscribe(),
        ));
        let mut node = Some(self.node());
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if outgoing.is_empty() {
                outgoing.subscribe(&mut self.store, &mut node);
            }
            let publish = self.rebuild_at;
            tokio::select! {
                sent = outgoing.send(), if !outgoing.is_empty() => if let Err(problem) = sent {
                    return End::Broken(problem.to_owned());
                },
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        note_staleness(&is_stale, &response.system_version_info);
                        self.receive(response);
                    }
                    Ok(None) => return End::Broken("the controller ended the stream".to_owned()),
                    Err(status) => {
                        return End::Broken(format!("{:?}: {}", status.code(), status.message()));
                    }
                },
                better = &mut better => return End::Moved(Box::new(better)),
                Some(question) = questions.recv() => self.questions(question, questions),
                () = until(publish) => {}
                // Another certificate: who rotates the root wants to know.
                Ok(()) = credentials.changed() => {
                    outgoing.push(DeltaDiscoveryRequest {
                        type_url: Type::TrustBundle.url(),
                        node: Some(self.node()),
                        ..Default::default()
                    });
                }
                _ = sweep.tick() => self.sweep(),
            }
            if self.rebuild_at.is_none_or(|at| at <= Instant::now()) {
                let published = self.publish().await;
                self.acknowledge(&mut outgoing, published.err());
            }
        }
    }

    fn node(&self) -> Node {
        let text = |text: String| Value {
            kind: Some(value::Kind::StringValue(text)),
        };
        let admin = ("admin".to_owned(), text(self.client.admin.to_string()));
        let present = self.client.credentials.borrow();
        let root = present.iter().flat_map(|present| &present.signing_root);
        let root = root.map(|byte| format!("{byte:02x}")).collect();
        let root = ("signingRoot".to_owned(), text(root));
        let mark = ("mark".to_owned(), text(self.mark.text()));
        Node {
            id: self.client.mesh.config.workload.to_string(),
            metadata: Some(Struct {
                fields: [admin, root, mark].into_iter().collect(),
            }),
            user_agent_name: "weft-proxy".to_owned(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn receive(&mut self, response: DeltaDiscoveryResponse) {
        let Some(kind) = Type::of_url(&response.type_url) else {
            tracing::warn!(type_url = %response.type_url, "the controller sent what we do not know; ignored");
            return;
        };
        self.mark.take(&response.system_version_info);
        let mut effect = Effect::default();
        for resource in &response.resources {
            let bytes = resource.resource.as_ref().map_or(&[][..], |any| &any.value);
            self.store
                .set(kind, &resource.name, &resource.version, bytes, &mut effect);
        }
        for name in &response.removed_resources {
            self.store.remove(kind, name, &mut effect);
        }
        for (name, problem) in &effect.refused {
            tracing::error!(resource = %name, %problem, "what the controller sent is refused; what was there stays");
        }
        if effect.trust {
            self.trust();
        }
        if effect.rebuild {
            self.rebuild_at
                .get_or_insert_with(|| Instant::now() + COALESCE);
        }
        self.changed.extend(effect.endpoints);
        let set = response.resources.into_iter().map(|resource| resource.name);
        let names = set.chain(response.removed_resources).collect();
        self.unacknowledged
            .push((kind, names, response.nonce, effect.refused));
    }

    /// Puts a new trust bundle in use with the certificate that we have.
    fn trust(&mut self) {
        let Some(bundle) = self.store.trust() else {
            return;
        };
        let present = self.client.credentials.borrow().clone();
        let Some(present) = present else { return };
        let trust = super::credentials::trust(bundle);
        if trust != present.trust {
            let mut renewed = (*present).clone();
            renewed.trust = trust;
            identity::install(&self.client, renewed);
        }
        if bundle.signing_root != present.signing_root {
            self.client.renew.notify_one();
        }
    }

    /// Puts in force what has changed, and answers who waits for it.
    async fn publish(&mut self) -> Result<(), String> {
        let mut published = Ok(());
        if self.rebuild_at.take().is_some() {
            published = self.publish_overlay().await;
        }
        let shared = &self.client.shared;
        let runtime = shared.runtime.load_full();
        for name in std::mem::take(&mut self.changed) {
            if let (Some(service), Some(endpoints)) =
                (runtime.service_named(&name), self.store.endpoints(&name))
            {
                service.set_listed(endpoints, shared.now());
            }
        }
        self.answer();
        published
    }

    async fn publish_overlay(&mut self) -> Result<(), String> {
        // The overlay has the newest endpoints.
        self.changed.clear();
        let overlay = Box::new(self.store.overlay());
        let (done, applied) = oneshot::channel();
        let request = control::Request::Overlay(overlay, done);
        let sent = self.client.requests.send(request).await;
        if let (Ok(()), Ok(Err(problem))) = (sent, applied.await) {
            tracing::error!(%problem, "what the controller sent cannot be put in force; what was there stays");
            return Err(problem);
        }
        let mesh = &self.client.mesh;
        mesh.refuse_unknown
            .store(self.store.refuses_unknown(), Ordering::Relaxed);
        if self.store.is_synced() {
            mesh.set_synced();
        }
        Ok(())
    }

    /// Answers the responses whose effect is in force, or (`problem`) cannot be.
    fn acknowledge(&mut self, outgoing: &mut Outgoing, problem: Option<String>) {
        let mut told = self.client.mesh.told.lock();
        for (kind, names, nonce, mut refused) in std::mem::take(&mut self.unacknowledged) {
            if let Some(problem) = &problem {
                let all = names.iter().map(|name| (name.clone(), problem.clone()));
                refused.extend(all);
            }
            for name in &names {
                told.refused.remove(name);
            }
            told.refused.extend(refused.iter().cloned());
            outgoing.push(acknowledgement(kind, nonce, &refused));
        }
        told.resources = Type::ALL
            .into_iter()
            .map(|kind| (kind.name(), self.store.count(kind)))
            .collect();
    }

    /// Takes a question and those that have come with it: they are asked together.
    fn questions(&mut self, first: Question, further: &mut mpsc::Receiver<Question>) {
        self.question(first);
        for _ in 1..QUESTIONS_MAX {
            let Ok(next) = further.try_recv() else {
                return;
            };
            self.question(next);
        }
    }

    fn question(&mut self, question: Question) {
        let Question { subject, answer } = question;
        match &subject {
            // Nobody is let in before it is known who may be: the sender goes elsewhere.
            Subject::Port(_) if !self.store.knows_workload() => {
                let _ = answer.send(Known::Unanswered);
                return;
            }
            Subject::Port(port) => {
                if self.store.want_port(*port) {
                    self.rebuild_at.get_or_insert_with(Instant::now);
                }
            }
            Subject::Destination(destination) => {
                if self.store.knows(destination).is_none() && !self.store.has_room() {
                    let _ = answer.send(Known::Unanswered);
                    return;
                }
                self.store.want(destination, false);
            }
        }
        if let Some(known) = self.known(&self.client.shared.runtime.load(), &subject) {
            let _ = answer.send(known);
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.retain(|(_, answer)| !answer.is_closed());
        }
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push((subject, answer));
        }
    }

    fn known(&self, runtime: &Runtime, subject: &Subject) -> Option<Known> {
        match subject {
            Subject::Port(port) => runtime.port(*port).map(|_| Known::Published),
            Subject::Destination(destination) => match self.store.knows(destination) {
                Some(true) if runtime.destination(destination).is_some() => Some(Known::Published),
                Some(false) => Some(Known::Stranger),
                _ => None,
            },
        }
    }

    /// Answers who waits for what is known now.
    fn answer(&mut self) {
        let runtime = self.client.shared.runtime.load_full();
        for (subject, answer) in std::mem::take(&mut self.waiting) {
            match self.known(&runtime, &subject) {
                Some(known) => drop(answer.send(known)),
                None if answer.is_closed() => {}
                None => self.waiting.push((subject, answer)),
            }
        }
    }

    /// Forgets what nobody dials any more.
    fn sweep(&mut self) {
        let shared = &self.client.shared;
        let runtime = shared.runtime.load();
        let now = shared.now().0;
        let idle = u64::try_from(IDLE.as_nanos()).unwrap_or(u64::MAX);
        let unused = |name: &str| {
            let listener = Destination::parse(name)
                .and_then(|destination| runtime.destination(&destination).cloned());
            listener.is_some_and(|listener| {
                let used = listener.used.load(Ordering::Relaxed);
                listener.connections.load(Ordering::Relaxed) == 0 && now.saturating_sub(used) > idle
            })
        };
        if self.store.forget(unused) {
            self.rebuild_at.get_or_insert_with(Instant::now);
        }
    }
}

/// Takes up what the controller says of how old what it knows may be.
fn note_staleness(is_stale: &watch::Sender<bool>, info: &str) {
    let Some(says) = staleness::said(info) else {
        return;
    };
    match says {
        true => tracing::warn!("the controller's watches are broken; looking for another"),
        false => tracing::info!("the controller's watches are well again"),
    }
    is_stale.send_replace(says);
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

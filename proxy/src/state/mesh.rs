//! What the workers know of the mesh, and what they may ask the mesh client
//! (on the control thread) for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use weft_config::snapshot::{Destination, Mesh};

use crate::logic::barrier::Gate;
use crate::logic::time::Nanos;
use crate::net::tls::mesh::MeshTls;

/// Questions that wait to be taken up; more wait for a place, each no longer than `ANSWER_TIMEOUT`.
pub const QUESTIONS_MAX: usize = 1024;
/// How often refused peers are told of in the log.
const REFUSALS_TOLD: Duration = Duration::from_secs(1);
/// How long a connection waits for an address to be explained. With a controller
/// that is down or slow, what is unknown is then treated as no part of the mesh.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// One for a process that is a sidecar.
#[derive(Debug)]
pub struct MeshState {
    pub config: Mesh,
    /// Our certificate and whom we trust; `None`: no certificate yet.
    pub tls: ArcSwapOption<MeshTls>,
    /// Destinations that are no part of the mesh are refused, not passed through.
    pub refuse_unknown: AtomicBool,
    /// Requests and opaque connections that came in for the local workload and
    /// have not ended: what the drain barrier waits for, and shuts.
    pub gate: Gate,
    /// The workload is on its way out: every controller has to know.
    pub leaving: AtomicBool,
    /// When a refused peer was last told of; 0: never.
    refusal_told: AtomicU64,
    /// What the local workload needs first is there: its certificate, its own
    /// description, the destinations of its explicit listeners.
    pub synced: AtomicBool,
    /// `tls` or `synced` has changed.
    changed: Notify,
    /// What the client has to show.
    pub told: Mutex<Told>,
    questions: mpsc::Sender<Question>,
}

/// How the client stands with its controller, and with what that sent.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The one that it is connected to.
    pub controller: Option<String>,
    /// Why there is no connection, or no new certificate.
    pub problem: Option<String>,
    /// Resources held, by type.
    pub resources: Vec<(&'static str, usize)>,
    /// Resources that are refused, and why.
    pub refused: BTreeMap<String, String>,
    pub certificate_expires: Option<SystemTime>,
}

/// What a worker wants to be told.
#[derive(Debug)]
pub struct Question {
    pub subject: Subject,
    pub answer: oneshot::Sender<Known>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// What is behind this address or name.
    Destination(Destination),
    /// A port of the local workload that no service names.
    Port(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Its virtual listener is in the runtime now.
    Published,
    /// It is no part of the mesh.
    Stranger,
    /// Nobody could say, in time.
    Unanswered,
}

impl MeshState {
    pub fn new(config: Mesh) -> (Arc<Self>, mpsc::Receiver<Question>) {
        let (questions, receiver) = mpsc::channel(QUESTIONS_MAX);
        let state = Self {
            config,
            tls: ArcSwapOption::empty(),
            refuse_unknown: AtomicBool::new(false),
            gate: Gate::default(),
            leaving: AtomicBool::new(false),
            refusal_told: AtomicU64::new(0),
            synced: AtomicBool::new(false),
            changed: Notify::new(),
            told: Mutex::default(),
            questions,
        };
        (Arc::new(state), receiver)
    }

    /// Whether a refused peer is to be told of in the log: whoever is refused again
    /// and again must not fill the disk. The metric counts all.
    pub fn tells_refusal(&self, now: Nanos) -> bool {
        let last = self.refusal_told.load(Ordering::Relaxed);
        let due = last == 0 || now.since(Nanos(last)) >= REFUSALS_TOLD;
        due && self
            .refusal_told
            .compare_exchange(last, now.0.max(1), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Puts another certificate or trust in use.
    pub fn set_tls(&self, tls: MeshTls) {
        self.tls.store(Some(Arc::new(tls)));
        self.changed.notify_waiters();
    }

    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Waits until `what` is there; `None`: not within `limit`.
    pub async fn await_change<T>(
        &self,
        limit: Duration,
        what: impl Fn(&Self) -> Option<T>,
    ) -> Option<T> {
        let awaited = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = what(self) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, awaited).await.ok()
    }

    /// Asks the mesh client, and waits for its answer.
    pub async fn ask(&self, subject: Subject) -> Known {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let question = Question { subject, answer };
            self.questions.send(question).await.ok()?;
            answered.await.ok()
        };
        let known = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
        known.ok().flatten().unwrap_or(Known::Unanswered)
    }
}

//! The mesh client, on the control thread: gets and renews this workload's
//! certificate (`identity`), learns from a controller what the workload needs
//! (`discovery`, over a `link`), and keeps what was learned (`store`, pure).
//!
//! **Invariant:** whatever a controller does or fails to do, what was published
//! stays until something better is whole.

mod controllers;
pub mod credentials;
mod discovery;
mod identity;
mod inbound;
pub mod leave;
pub mod link;
mod mark;
mod outgoing;
mod resource;
pub mod store;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use weft_config::snapshot::Destination;

use crate::control;
use crate::resolve::SharedResolver;
use crate::state::Shared;
use crate::state::mesh::{MeshState, Question};
use controllers::Controllers;
use credentials::Credentials;
pub use discovery::{COALESCE, RECONNECT_MAX};

/// The first pause between attempts.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// What the tasks of the client share.
#[derive(Debug)]
struct Client {
    mesh: Arc<MeshState>,
    controllers: Controllers,
    shared: Arc<Shared>,
    requests: mpsc::Sender<control::Request>,
    /// Destinations of explicit listeners: never forgotten.
    pinned: Vec<Destination>,
    admin: SocketAddr,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    /// The root that signs now is not the one that signed ours.
    renew: Notify,
}

/// What a mesh client is started with.
#[derive(Debug)]
pub struct Setting {
    pub shared: Arc<Shared>,
    pub requests: mpsc::Sender<control::Request>,
    pub questions: mpsc::Receiver<Question>,
    pub pinned: Vec<Destination>,
    /// Where others reach our metrics.
    pub admin: SocketAddr,
}

/// Owner of the client's tasks.
#[derive(Debug)]
pub struct MeshClient {
    _tasks: JoinSet<()>,
    client: Arc<Client>,
}

impl MeshClient {
    /// `None`: the process is no sidecar.
    pub fn start(setting: Setting) -> Option<Self> {
        let mesh = Arc::clone(setting.shared.mesh.as_ref()?);
        let (names, workload) = (&mesh.config.controllers, &mesh.config.workload);
        let controllers = Controllers::new(names, workload, SharedResolver::default());
        let client = Arc::new(Client {
            mesh,
            controllers,
            shared: setting.shared,
            requests: setting.requests,
            pinned: setting.pinned,
            admin: setting.admin,
            credentials: watch::Sender::new(None),
            renew: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(identity::run(Arc::clone(&client)));
        tasks.spawn(discovery::run(Arc::clone(&client), setting.questions));
        Some(Self {
            _tasks: tasks,
            client,
        })
    }

    /// Takes the workload out of rotation; who used it, and who has acknowledged.
    pub fn leave(&self, limit: Duration) -> impl Future<Output = Option<leave::Told>> + use<> {
        let client = Arc::clone(&self.client);
        client.mesh.leaving.store(true, Ordering::Relaxed);
        async move { leave::leave(&client, limit).await }
    }
}

/// Grows with each attempt, and is different for everybody.
#[derive(Debug)]
pub struct Backoff {
    attempts: u32,
    longest: Duration,
}

impl Backoff {
    pub fn new(longest: Duration) -> Self {
        Self {
            attempts: 0,
            longest,
        }
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    pub async fn pause(&mut self) {
        let longest = BACKOFF_FIRST
            .saturating_mul(1 << self.attempts.min(10))
            .min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        let share = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(longest.mul_f64(share)).await;
    }
}

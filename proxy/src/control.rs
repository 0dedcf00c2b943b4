//! What the admin server and the signals know of the process and may ask of
//! it. The app answers; see `app`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use weft_config::wire;

use crate::state::Shared;
use crate::telemetry::log::LogControl;

/// Requests under way; one more is refused.
pub const REQUESTS_MAX: usize = 16;

#[derive(Debug)]
pub enum Request {
    /// Read the configuration again; what came of it.
    Reload(oneshot::Sender<Result<String, String>>),
    /// Begin to leave.
    Drain,
}

/// The configuration in force and what became of the last attempt to change it.
#[derive(Debug)]
pub struct Applied {
    pub source: Arc<wire::Config>,
    pub path: PathBuf,
    pub since: SystemTime,
    /// When a newer one was refused, and why.
    pub refused: Option<(SystemTime, String)>,
    /// Where each listener listens (port 0 filled in).
    pub bound: Vec<(Arc<str>, SocketAddr)>,
}

/// One for the process.
#[derive(Debug)]
pub struct Control {
    pub shared: Arc<Shared>,
    pub log: LogControl,
    pub requests: mpsc::Sender<Request>,
    pub applied: Mutex<Applied>,
    pub worker_count: usize,
}

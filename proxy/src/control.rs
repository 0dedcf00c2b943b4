//! What the admin server and the signals know of the process and may ask of
//! it. The app answers; see `app`.

use std::net::SocketAddr;
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
    /// A sidecar: take the workload out of rotation and say when nothing will
    /// reach the application any more; the process stays.
    Leave(oneshot::Sender<Left>),
    /// What a controller told, in place of what it told before.
    Overlay(Box<wire::Config>, oneshot::Sender<Result<(), String>>),
}

/// How the drain barrier was passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Proxies that used the workload's endpoints; `None`: no controller could be told.
    pub users: Option<u32>,
    /// Those that have acknowledged that it leaves.
    pub acknowledged: u32,
    /// Requests and connections still in flight when the bound was reached.
    pub in_flight: usize,
}

/// The configuration in force and what became of the last attempt to change it.
#[derive(Debug)]
pub struct Applied {
    pub source: Arc<wire::Config>,
    /// The file, or what else the configuration is from.
    pub from: String,
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

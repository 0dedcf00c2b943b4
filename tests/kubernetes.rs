//! Weft on a real Kubernetes: its chart, its images, real pods.
//!
//! Tests that load the node run alone; the others beside each other.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

#[path = "kubernetes/chart.rs"]
mod chart;
#[path = "kubernetes/command_line.rs"]
mod command_line;
#[path = "kubernetes/controller.rs"]
mod controller;
#[path = "kubernetes/definitions.rs"]
mod definitions;
#[path = "kubernetes/faults.rs"]
mod faults;
#[path = "kubernetes/lag.rs"]
mod lag;
#[path = "kubernetes/outage.rs"]
mod outage;
#[path = "kubernetes/pods.rs"]
mod pods;
#[path = "kubernetes/replicas.rs"]
mod replicas;
#[path = "kubernetes/scale.rs"]
mod scale;
#[path = "kubernetes/source.rs"]
mod source;
#[path = "kubernetes/statuses.rs"]
mod statuses;
#[path = "kubernetes/storm.rs"]
mod storm;
#[path = "kubernetes/unwritten.rs"]
mod unwritten;
#[path = "kubernetes/verdicts.rs"]
mod verdicts;

/// The label of a namespace whose pods get a sidecar.
const INJECTED: (&str, &str) = ("weft.dev/inject", "enabled");
/// How long anything on a node may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

static NODE: RwLock<()> = RwLock::new(());

/// Beside others that say so.
fn shared() -> RwLockReadGuard<'static, ()> {
    NODE.read().unwrap_or_else(PoisonError::into_inner)
}

/// With nothing else on the node.
fn alone() -> RwLockWriteGuard<'static, ()> {
    NODE.write().unwrap_or_else(PoisonError::into_inner)
}

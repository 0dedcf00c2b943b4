//! Weft on a real Kubernetes.

#[path = "kubernetes/definitions.rs"]
mod definitions;
#[path = "kubernetes/storm.rs"]
mod storm;

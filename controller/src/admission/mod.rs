//! Injection: what the API server asks before it makes a pod.

pub mod inject;

//! Injection: what the API server asks before it makes a pod. `inject` decides (pure),
//! `review` speaks the API server's language (pure), `serve` is the port.

pub mod inject;
pub mod review;
pub mod serve;

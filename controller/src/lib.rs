//! Weft's control plane.
//!
//! `source` reads objects, `index` (pure) turns them into what each proxy needs,
//! `discovery` sends it, `ca` signs identities, `metrics` counts, `app` wires them.

pub mod admission;
pub mod api;
pub mod app;
pub mod ca;
pub mod discovery;
pub mod index;
pub mod lease;
pub mod metrics;
pub mod source;
pub mod sparing;
pub mod status;
pub mod tally;

/// The gRPC services that proxies call.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    reason = "generated"
)]
pub mod services {
    tonic::include_proto!("weft.v1");
    pub mod xds {
        tonic::include_proto!("envoy.service.discovery.v3");
    }
}

//! Weft's data plane: an L4/L7 proxy.
//!
//! `app` wires it; `outbound` is one connection's life; `net` touches sockets;
//! `state` is what all workers share; `telemetry` tells; `logic` decides.

pub mod admin;
pub mod app;
pub mod args;
pub mod capture;
pub mod control;
pub mod drain;
pub mod handover;
pub mod health;
pub mod logic;
pub mod mesh;
pub mod net;
pub mod outbound;
pub mod reload;
pub mod resolve;
pub mod sidecar;
pub mod sockets;
pub mod state;
pub mod sweep;
pub mod telemetry;
pub mod upkeep;
pub mod worker;

/// The gRPC services that a sidecar calls.
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

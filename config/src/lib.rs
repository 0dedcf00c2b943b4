//! Configuration that the proxy and the controller agree on, and the pure
//! decisions over it.
//!
//! | step | where |
//! | --- | --- |
//! | text (YAML or JSON) → [`wire::Config`] | [`file`] |
//! | protobuf bytes → [`wire::Config`] | `prost` ([`wire`]) |
//! | [`wire::Config`] → [`snapshot::Snapshot`] | [`compile`] |
//! | snapshot + request head → rule | [`select`] |
//! | rule + request → changed request, answer, backend | [`filter`] |
//! | snapshot + request → all of that, in words | [`explain`] |
//!
//! Text and bytes are two forms of one schema (`proto/weft/v1/config.proto`), so
//! they cannot differ, and both go through the same compiler. Nothing here opens
//! a file or a socket, asks for the time or for a random number.
//!
//! **Invariant:** untrusted input (files, bytes, requests) never panics; a
//! configuration either compiles without a single mistake or yields all of them.
#![deny(unsafe_code)]
#![warn(missing_debug_implementations)]

pub mod authorize;
pub mod compile;
pub mod duration;
pub mod error;
pub mod explain;
pub mod file;
pub mod filter;
pub mod nearest;
pub mod resource;
pub mod select;
pub mod snapshot;
pub mod spiffe;
pub mod staleness;
pub mod status;
/// The wire and file form, generated from `proto/weft/v1/config.proto`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    reason = "generated"
)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/weft.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/weft.v1.serde.rs"));
}

/// The messages of xDS' delta transport, generated from `proto/envoy/service/discovery/v3`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    reason = "generated"
)]
pub mod xds {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
}

pub use error::{ConfigError, Errors};

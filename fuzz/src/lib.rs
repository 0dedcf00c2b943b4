//! What must hold of every parser for every input. The fuzz targets call one function
//! each; `proxy/tests/byte_parsers.rs` includes [`bytes`] too, and feeds it seeded
//! mutations on stable.

pub mod bytes;
pub mod config;

//! TLS on both sides: what listeners present and what upstream connections
//! verify. The files are read here, watched here, and swapped here.
//!
//! **Invariant:** a bad new file never replaces what works: the old
//! configuration stays until the new one is whole.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub mod client;
pub mod expiry;
pub mod files;
pub mod mesh;
pub mod server;

pub use client::{Alpn, ClientTls};
pub use files::FileError;
pub use server::ServerTls;

/// The one crypto provider, X25519MLKEM768 first among its key exchanges.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

#[cfg(test)]
mod tests;

//! Sockets, streams, TLS, HTTP connections and the pools of them. Touches the
//! world and decides nothing.

pub mod http;
pub mod lease;
pub mod pool;
pub mod stream;
pub mod timer;
pub mod tls;

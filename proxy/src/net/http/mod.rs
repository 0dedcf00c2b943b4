//! HTTP connections as sources and sinks of messages: one shape for HTTP/1.1
//! and HTTP/2, so that whatever forwards does not care which it has.

pub mod exchange;
pub mod http1;
pub mod http2;
pub mod message;

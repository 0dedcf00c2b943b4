//! Pure decisions: no sockets, no clock, no runtime. `now` and randomness are
//! arguments.

pub mod balance;
pub mod barrier;
pub mod cause;
pub mod client_hello;
pub mod detect;
pub mod http1;
pub mod limit;
pub mod outlier;
pub mod proxy_protocol;
pub mod retry;
pub mod time;

#[cfg(test)]
mod simulation;

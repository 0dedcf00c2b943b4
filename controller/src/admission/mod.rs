//! Injection: what the API server asks before it makes a pod. `inject` decides (pure),
//! `review` speaks the API server's language (pure), `serve` is the port, `bundle` keeps
//! up to date whom the API server believes there.

pub mod bundle;
pub mod inject;
pub mod review;
pub mod serve;

use rand::RngExt as _;

/// A path that nobody guesses.
pub fn drain_token() -> inject::DrainToken {
    inject::DrainToken(rand::rng().random())
}

//! Many proxies at a real controller that a real API server feeds: `make scale`, and a smaller run
//! among the tests.
//!
//! `size` says how much of what, `objects` makes it, `proxy` is one of the simulated proxies,
//! `ledger` is what all of them have come to, `controller` the process that is looked at, `run`
//! the acts, `figures` what they come to.

pub mod controller;
pub mod figures;
pub mod ledger;
pub mod objects;
pub mod proxy;
pub mod run;
pub mod size;

//! Which of a rule's backends a request goes to, by weight.

use crate::snapshot::{Backend, BackendTarget, Rule};

/// Where a rule sends a request.
#[derive(Clone, Copy, Debug)]
pub enum BackendChoice<'r> {
    /// Its target is a service.
    Backend(&'r Backend),
    /// The share of an invalid reference, with its reason: answer 500 (gRPC
    /// `UNAVAILABLE`). Never spread over the other backends.
    Invalid(&'r str),
    /// No backends, or all of weight 0: answer 500.
    None,
}

/// Chooses by `random`, which is uniform over all of `u64`.
pub fn choose_backend(rule: &Rule, random: u64) -> BackendChoice<'_> {
    // Multiply and shift: uniform for any sum, and one backend costs no division.
    let mut rest = (u128::from(random) * u128::from(rule.weight_total)) >> 64;
    for backend in &rule.backends {
        let weight = u128::from(backend.weight);
        if rest < weight {
            return match &backend.target {
                BackendTarget::Service(_) => BackendChoice::Backend(backend),
                BackendTarget::Invalid(reason) => BackendChoice::Invalid(reason),
            };
        }
        rest -= weight;
    }
    BackendChoice::None
}

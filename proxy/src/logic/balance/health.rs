//! What active checks say of an endpoint. Owns the states and the thresholds
//! between them; leaves the checking to others.
//!
//! ```text
//!            first check passes              unhealthy_threshold fails
//!  Unknown ──────────────────────▶ Healthy ────────────────────────────▶ Unhealthy
//!     │                               ▲     healthy_threshold passes         │ ▲
//!     │                               └──────────────────────────────────────┘ │
//!     └─────────────────────────── first check fails ──────────────────────────┘
//! ```
//!
//! `Unknown` counts as healthy. Whoever listed the endpoint (a file, DNS, a
//! Kubernetes readiness probe) vouched for it; counting it as unhealthy would
//! put every start into panic mode and take a whole service out when a reload
//! adds a check. The first check of an endpoint should therefore be made at
//! once, and its verdict counts alone, whatever the thresholds.

use weft_config::snapshot::HealthCheck;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Not checked yet, or not checked at all: counts as healthy.
    Unknown = 0,
    Healthy = 1,
    Unhealthy = 2,
}

impl Health {
    pub(super) fn from_bits(bits: u8) -> Health {
        match bits {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    /// The state after `streak` checks in a row (this one included) that all
    /// ended like this one.
    pub(super) fn after(self, passed: bool, streak: u32, check: &HealthCheck) -> Health {
        match (self, passed) {
            (Health::Unknown, true) => Health::Healthy,
            (Health::Unknown, false) => Health::Unhealthy,
            (Health::Healthy, false) if streak >= check.unhealthy_threshold => Health::Unhealthy,
            (Health::Unhealthy, true) if streak >= check.healthy_threshold => Health::Healthy,
            (unchanged, _) => unchanged,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_config::snapshot::HealthCheckKind;

    use super::*;

    #[test]
    fn thresholds() {
        let check = HealthCheck {
            kind: HealthCheckKind::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            healthy_threshold: 2,
            unhealthy_threshold: 3,
            port: None,
        };
        use Health::{Healthy, Unhealthy, Unknown};
        for (before, passed, streak, after) in [
            (Unknown, true, 1, Healthy),
            (Unknown, false, 1, Unhealthy),
            (Healthy, true, 9, Healthy),
            (Healthy, false, 1, Healthy),
            (Healthy, false, 2, Healthy),
            (Healthy, false, 3, Unhealthy),
            (Unhealthy, false, 9, Unhealthy),
            (Unhealthy, true, 1, Unhealthy),
            (Unhealthy, true, 2, Healthy),
        ] {
            assert_eq!(
                before.after(passed, streak, &check),
                after,
                "{before:?}, passed {passed}, {streak} in a row"
            );
        }
    }
}

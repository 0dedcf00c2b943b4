//! What goes wrong. Each fault is done to a [`Stage`] under load, sees to it that it happened, and
//! leaves the mesh whole.

use super::protocol::Protocol;
use super::stage::Stage;

mod control;
mod death;
mod leaving;

/// Failures in a row that eject an endpoint, by default.
const EJECTED_AFTER: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Replicas are replaced one by one, each leaving through the drain barrier.
    Rollout,
    /// More replicas, then all but one leave at once through the barrier, then more again.
    Scale,
    /// The old replicas leave through the barrier while the controller is dead.
    RolloutWithoutController,
    /// A replica leaves through the barrier while the controller's news are held back so long.
    Lag(u64),
    /// The same without the barrier: application and sidecar get SIGTERM together.
    LagAbrupt(u64),
    /// A sidecar gets SIGTERM without `/drain` before; its application stays.
    SidecarTerminated,
    ApplicationKilled,
    SidecarKilled,
    /// Application and sidecar at once; the news come late.
    ReplicaKilled,
    /// The same, and another workload gets the address and ports before the news.
    AddressReused,
    /// A replica is announced before its application listens.
    ApplicationRefuses,
    /// An application hangs for a while.
    ApplicationHangs,
    /// An application hangs for ever; routes bound their tries.
    ApplicationStuck,
    /// A whole replica hangs for a while.
    ReplicaFrozen,
    ControllerKilled,
    /// Routes and services are rewritten every 100 ms, some of them wrongly.
    ConfigChurn,
    RootChanged,
    /// The caller's sidecar replaces itself (SIGUSR2).
    CallerUpgraded,
    /// Every application dies: nothing can save anything. It shows that losses are seen, and is no
    /// part of the matrix.
    EverybodyKilled,
}

impl Fault {
    pub const ALL: [Self; 24] = [
        Self::Rollout,
        Self::Scale,
        Self::RolloutWithoutController,
        Self::Lag(0),
        Self::Lag(1),
        Self::Lag(5),
        Self::Lag(10),
        Self::LagAbrupt(0),
        Self::LagAbrupt(1),
        Self::LagAbrupt(5),
        Self::LagAbrupt(10),
        Self::SidecarTerminated,
        Self::ApplicationKilled,
        Self::SidecarKilled,
        Self::ReplicaKilled,
        Self::AddressReused,
        Self::ApplicationRefuses,
        Self::ApplicationHangs,
        Self::ApplicationStuck,
        Self::ReplicaFrozen,
        Self::ControllerKilled,
        Self::ConfigChurn,
        Self::RootChanged,
        Self::CallerUpgraded,
    ];

    #[must_use]
    pub fn name(self) -> String {
        let name = match self {
            Self::Lag(seconds) => return format!("lag-{seconds}s"),
            Self::LagAbrupt(seconds) => return format!("lag-{seconds}s-abrupt"),
            Self::Rollout => "rollout",
            Self::Scale => "scale-out-and-in",
            Self::RolloutWithoutController => "rollout-no-controller",
            Self::SidecarTerminated => "sidecar-sigterm",
            Self::ApplicationKilled => "application-kill-9",
            Self::SidecarKilled => "sidecar-kill-9",
            Self::ReplicaKilled => "replica-kill-9",
            Self::AddressReused => "address-reused",
            Self::ApplicationRefuses => "application-refuses",
            Self::ApplicationHangs => "application-hangs-2s",
            Self::ApplicationStuck => "application-stuck",
            Self::ReplicaFrozen => "replica-frozen-2s",
            Self::ControllerKilled => "controller-kill-9",
            Self::ConfigChurn => "config-churn",
            Self::RootChanged => "root-changed",
            Self::CallerUpgraded => "caller-upgraded",
            Self::EverybodyKilled => "everybody-killed",
        };
        name.to_owned()
    }

    /// What of this protocol no proxy can save, if anything.
    #[must_use]
    pub fn unsavable(self, protocol: Protocol) -> Option<Unsavable> {
        let reason = match protocol {
            Protocol::Http1Post => "the application may have acted on the POST",
            Protocol::GrpcUnary => "a gRPC call is a POST, on which the application may have acted",
            Protocol::OpaqueShort => {
                "bytes that the application may have read cannot be sent again"
            }
            // GETs may be sent again, and what is long is not on who dies.
            _ => return None,
        };
        let lost_max = match self {
            // What was under way at the moment of the death.
            Self::LagAbrupt(_)
            | Self::ApplicationKilled
            | Self::SidecarKilled
            | Self::ReplicaKilled
            | Self::AddressReused => protocol.at_once(),
            // Each failure costs a request until the endpoint is ejected.
            Self::ApplicationStuck => protocol.at_once() + EJECTED_AFTER,
            Self::EverybodyKilled => u64::MAX,
            _ => return None,
        };
        Some(Unsavable { reason, lost_max })
    }

    pub fn strike(self, stage: &mut Stage) {
        match self {
            Self::Rollout => leaving::rollout(stage),
            Self::Scale => leaving::scale(stage),
            Self::RolloutWithoutController => leaving::rollout_without_controller(stage),
            Self::Lag(seconds) => leaving::lag(stage, seconds),
            Self::LagAbrupt(seconds) => leaving::lag_abrupt(stage, seconds),
            Self::SidecarTerminated => leaving::sidecar_terminated(stage),
            Self::ApplicationKilled => death::application_killed(stage),
            Self::SidecarKilled => death::sidecar_killed(stage),
            Self::ReplicaKilled => death::replica_killed(stage),
            Self::AddressReused => death::address_reused(stage),
            Self::ApplicationRefuses => death::application_refuses(stage),
            Self::ApplicationHangs => death::application_hangs(stage),
            Self::ApplicationStuck => death::application_stuck(stage),
            Self::ReplicaFrozen => death::replica_frozen(stage),
            Self::ControllerKilled => control::controller_killed(stage),
            Self::ConfigChurn => control::config_churn(stage),
            Self::RootChanged => control::root_changed(stage),
            Self::CallerUpgraded => control::caller_upgraded(stage),
            Self::EverybodyKilled => death::everybody_killed(stage),
        }
    }
}

/// Why some of a cell may be lost, and how many at most.
#[derive(Debug, Clone, Copy)]
pub struct Unsavable {
    pub reason: &'static str,
    pub lost_max: u64,
}

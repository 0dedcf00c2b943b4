//! What goes wrong. Each fault is done to a [`Stage`] under load, sees to it that it happened, and
//! leaves the mesh whole.

use super::protocol::Protocol;
use super::stage::{REPLICAS, Stage, WEB};
use crate::eventually;
use crate::process::Signal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Rollout,
    ApplicationKilled,
}

impl Fault {
    pub const ALL: [Self; 2] = [Self::Rollout, Self::ApplicationKilled];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rollout => "rollout",
            Self::ApplicationKilled => "application-killed",
        }
    }

    /// How many die with requests inside that only they could answer.
    #[must_use]
    pub fn deaths(self) -> u64 {
        match self {
            Self::Rollout => 0,
            Self::ApplicationKilled => 1,
        }
    }

    /// Why no proxy can save what of this protocol is under way, if it cannot.
    #[must_use]
    pub fn unsavable(self, protocol: Protocol) -> Option<&'static str> {
        if self.deaths() == 0 {
            return None;
        }
        match protocol {
            Protocol::Http1Post => Some("the application may have acted on a POST before it died"),
            Protocol::GrpcUnary => Some("a gRPC call is a POST, which may have been acted on"),
            Protocol::OpaqueShort => {
                Some("bytes that the application had read cannot be sent again")
            }
            _ => None,
        }
    }

    pub fn strike(self, stage: &mut Stage) {
        match self {
            Self::Rollout => rollout(stage),
            Self::ApplicationKilled => application_killed(stage),
        }
    }
}

/// One by one: a new replica, then the old one leaves through the drain barrier.
fn rollout(stage: &mut Stage) {
    for _ in 0..REPLICAS {
        let new = stage.replica(WEB);
        stage.replicas.push(new);
        stage.publish();
        let mut old = stage.replicas.remove(0);
        assert!(stage.serves(&old), "the leaving replica was in use");
        old.leave();
        stage.publish();
        stage.left.push(old);
        stage.go_on();
    }
    eventually("the new replicas serving", || {
        stage
            .replicas
            .iter()
            .all(|new| stage.serves(new))
            .then_some(())
    });
}

fn application_killed(stage: &mut Stage) {
    assert!(stage.serves(&stage.replicas[0]), "it was in use");
    stage.replicas[0].application.signal(Signal::KILL);
    let _ = stage.replicas[0].application.ended();
    stage.go_on();
    stage.go_on();
}

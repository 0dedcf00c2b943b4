//! Whether a failed try is followed by another, and when. Owns the rules and
//! the back-off; `budget` owns the accounts. The caller owns the body, and says
//! whether it can still be sent whole.
//!
//! 1. What provably was not processed is tried elsewhere at once, whatever its
//!    method, without charge. Bounded by the number of endpoints and by
//!    [`FREE_RETRIES_MAX`]; beyond that rule 3 counts.
//! 2. An idempotent request (RFC 9110 §9.2.2) whose connection died before any
//!    byte of the answer: by default, within the budget, up to
//!    [`IDEMPOTENT_RETRIES_MAX`] times.
//! 3. Everything else only by the route's policy: the codes that it lists, and
//!    timeouts of a try and dead connections even if it lists none (Gateway API,
//!    HTTPRouteRetry), whatever the method, for who wrote the policy knew it.
//!    Up to its `attempts`, and within the budget. A policy replaces rule 2's
//!    bound by its own, so `attempts: 0` turns rule 2 off as well.

mod budget;

use std::time::Duration;

use http::{Method, StatusCode};
use rand::{Rng, RngExt};
use weft_config::snapshot::RetryPolicy;

pub use budget::Budget;

use super::time::Nanos;

/// Free retries of one request, however many endpoints there are: if 16 in a
/// row cannot be reached, more connecting is what a storm is made of.
pub const FREE_RETRIES_MAX: u32 = 16;

/// A request that kills whoever reads it must not kill them all.
pub const IDEMPOTENT_RETRIES_MAX: u32 = 2;

/// Back-off grows up to this many times the policy's.
const BACKOFF_GROWTH_MAX: u32 = 10;

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection was made: nothing was sent.
    ConnectFailed,
    /// The upstream said, or its protocol proves, that it did not process the
    /// request: REFUSED_STREAM, a pooled connection that died before the first
    /// byte was written, our own marker.
    Unprocessed,
    /// The same by a GOAWAY: the server lives and will take the request on its
    /// next connection, so that this says nothing against trying it there.
    Leaving,
    /// Sent, at least in part, and no byte came back.
    ConnectionDied,
    /// The route's per-try timeout passed.
    TryTimeout,
    /// An answer came, with this status.
    Status(StatusCode),
    /// An answer came, with this gRPC status.
    GrpcStatus(u8),
}

/// One failed try and what is known of its request.
#[derive(Clone, Copy, Debug)]
pub struct FailedTry<'a> {
    pub failure: Failure,
    pub method: &'a Method,
    /// The whole body can still be sent: none, not begun, or kept.
    pub replayable: bool,
    pub policy: Option<&'a RetryPolicy>,
    /// The service's `idempotent_retry`.
    pub idempotent_retry: bool,
    /// Retries that this request has had.
    pub retried: Retried,
    /// Endpoints of the service.
    pub endpoints: usize,
}

/// Retries of one request so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retried {
    pub free: u32,
    pub budgeted: u32,
}

impl Retried {
    pub fn count(&mut self, decision: Decision) {
        match decision {
            Decision::Free => self.free += 1,
            Decision::Budgeted => self.budgeted += 1,
            Decision::No(_) => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try another endpoint at once.
    Free,
    /// The budget is charged. Try again after `backoff`, or at once if the
    /// route has no policy that says how long.
    Budgeted,
    No(Reason),
}

/// Why not, for the access log and a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Part of the body is gone.
    NotReplayable,
    /// No rule asks for it.
    NotRetryable,
    /// The policy's attempts, or the bound of rule 1 or 2, are used up.
    AttemptsUsed,
    BudgetUsed,
}

impl Reason {
    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Reason::NotReplayable => "not_replayable",
            Reason::NotRetryable => "not_retryable",
            Reason::AttemptsUsed => "attempts_used",
            Reason::BudgetUsed => "budget_used",
        }
    }
}

/// Charges the budget if, and only if, it answers `Budgeted`.
pub fn decide(failed: &FailedTry<'_>, budget: &Budget, now: Nanos) -> Decision {
    let unprocessed = matches!(
        failed.failure,
        Failure::ConnectFailed | Failure::Unprocessed | Failure::Leaving
    );
    let free_max = match failed.failure {
        Failure::Leaving => FREE_RETRIES_MAX,
        _ => free_max(failed.endpoints),
    };
    if !failed.replayable {
        Decision::No(Reason::NotReplayable)
    } else if unprocessed && failed.retried.free < free_max {
        Decision::Free
    } else {
        match attempts_max(failed) {
            None if unprocessed => Decision::No(Reason::AttemptsUsed),
            None => Decision::No(Reason::NotRetryable),
            Some(max) if failed.retried.budgeted >= max => Decision::No(Reason::AttemptsUsed),
            Some(_) if !budget.withdraw(now) => Decision::No(Reason::BudgetUsed),
            Some(_) => Decision::Budgeted,
        }
    }
}

/// One more than there are endpoints: the only one may just be restarting its
/// listener, and its pooled connection be stale.
fn free_max(endpoints: usize) -> u32 {
    u32::try_from(endpoints)
        .unwrap_or(u32::MAX)
        .saturating_add(1)
        .min(FREE_RETRIES_MAX)
}

/// How many budgeted retries this failure may have; `None`: no rule is for it.
fn attempts_max(failed: &FailedTry<'_>) -> Option<u32> {
    let by_default = failed.failure == Failure::ConnectionDied
        && failed.idempotent_retry
        && is_idempotent(failed.method);
    match failed.policy {
        Some(policy) if asks_for(policy, failed.failure) => Some(policy.attempts),
        _ => by_default.then_some(IDEMPOTENT_RETRIES_MAX),
    }
}

fn asks_for(policy: &RetryPolicy, failure: Failure) -> bool {
    match failure {
        Failure::Status(status) => policy.codes.contains(&status),
        Failure::GrpcStatus(code) => policy.grpc_codes.contains(&code),
        Failure::ConnectFailed
        | Failure::Unprocessed
        | Failure::Leaving
        | Failure::ConnectionDied
        | Failure::TryTimeout => true,
    }
}

/// RFC 9110 §9.2.2: the safe methods, PUT and DELETE. A method that nobody
/// knows is not.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// The wait before retry number `retry` (from 1): at least the policy's, and at
/// random up to twice, 4, 8 and then 10 times that.
pub fn backoff<R: Rng + ?Sized>(policy: &RetryPolicy, retry: u32, random: &mut R) -> Duration {
    let growth = 1u32.checked_shl(retry.max(1)).unwrap_or(0);
    let growth = if growth == 0 {
        BACKOFF_GROWTH_MAX
    } else {
        growth.min(BACKOFF_GROWTH_MAX)
    };
    let spread = policy.backoff.saturating_mul(growth - 1);
    policy
        .backoff
        .saturating_add(spread.mul_f64(random.random::<f64>()))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use weft_config::snapshot::RetryBudget;

    use super::*;

    fn budget(percent: u32, retries_min_per_second: u32) -> Budget {
        let interval = Duration::from_secs(10);
        Budget::new(&RetryBudget {
            percent,
            interval,
            retries_min_per_second,
        })
    }

    fn policy(codes: &[u16], attempts: u32) -> RetryPolicy {
        RetryPolicy {
            codes: codes
                .iter()
                .map(|code| StatusCode::from_u16(*code).expect("a code"))
                .collect(),
            grpc_codes: vec![14],
            attempts,
            backoff: Duration::from_millis(25),
        }
    }

    fn failed(failure: Failure, method: &Method) -> FailedTry<'_> {
        FailedTry {
            failure,
            method,
            replayable: true,
            policy: None,
            idempotent_retry: true,
            retried: Retried::default(),
            endpoints: 3,
        }
    }

    const NOT_RETRYABLE: Decision = Decision::No(Reason::NotRetryable);

    #[test]
    fn without_a_policy() {
        use Decision::{Budgeted, Free};
        let unavailable = Failure::Status(StatusCode::SERVICE_UNAVAILABLE);
        for (failure, method, decision) in [
            (Failure::ConnectFailed, Method::POST, Free),
            (Failure::ConnectFailed, Method::GET, Free),
            (Failure::Unprocessed, Method::POST, Free),
            (Failure::Unprocessed, Method::CONNECT, Free),
            (Failure::Leaving, Method::POST, Free),
            (Failure::ConnectionDied, Method::GET, Budgeted),
            (Failure::ConnectionDied, Method::PUT, Budgeted),
            (Failure::ConnectionDied, Method::POST, NOT_RETRYABLE),
            (Failure::ConnectionDied, Method::PATCH, NOT_RETRYABLE),
            (Failure::ConnectionDied, Method::CONNECT, NOT_RETRYABLE),
            (Failure::TryTimeout, Method::GET, NOT_RETRYABLE),
            (unavailable, Method::GET, NOT_RETRYABLE),
            (Failure::GrpcStatus(14), Method::POST, NOT_RETRYABLE),
        ] {
            let decided = decide(&failed(failure, &method), &budget(20, 10), Nanos::ZERO);
            assert_eq!(decided, decision, "{failure:?} of {method}");
        }
    }

    #[test]
    fn with_a_policy() {
        let policy = policy(&[503], 2);
        let status = |code| Failure::Status(StatusCode::from_u16(code).expect("a code"));
        for (failure, method, decision) in [
            (Failure::ConnectFailed, Method::POST, Decision::Free),
            (Failure::ConnectionDied, Method::POST, Decision::Budgeted),
            (Failure::TryTimeout, Method::POST, Decision::Budgeted),
            (status(503), Method::POST, Decision::Budgeted),
            (status(500), Method::GET, NOT_RETRYABLE),
            (Failure::GrpcStatus(14), Method::POST, Decision::Budgeted),
            (Failure::GrpcStatus(13), Method::POST, NOT_RETRYABLE),
        ] {
            let failed = FailedTry {
                policy: Some(&policy),
                ..failed(failure, &method)
            };
            let decided = decide(&failed, &budget(20, 10), Nanos::ZERO);
            assert_eq!(decided, decision, "{failure:?} of {method}");
        }
        // Timeouts and dead connections need no listed code.
        let bare = RetryPolicy {
            grpc_codes: Vec::new(),
            ..self::policy(&[], 1)
        };
        for failure in [Failure::TryTimeout, Failure::ConnectionDied] {
            let failed = FailedTry {
                policy: Some(&bare),
                ..failed(failure, &Method::POST)
            };
            assert_eq!(
                decide(&failed, &budget(20, 10), Nanos::ZERO),
                Decision::Budgeted
            );
        }
    }

    #[test]
    fn every_bound_says_which_it_was() {
        let (once, never) = (policy(&[503], 1), policy(&[503], 0));
        let unavailable = Failure::Status(StatusCode::SERVICE_UNAVAILABLE);
        let get = Method::GET;
        let base = failed(Failure::ConnectionDied, &get);
        let free = |free, endpoints| FailedTry {
            failure: Failure::ConnectFailed,
            retried: Retried { free, budgeted: 0 },
            endpoints,
            ..base
        };
        let budgeted = |budgeted| Retried { free: 9, budgeted };
        for (name, failed, decision) in [
            (
                "body gone",
                FailedTry {
                    replayable: false,
                    ..base
                },
                Reason::NotReplayable,
            ),
            (
                "body gone, free",
                FailedTry {
                    replayable: false,
                    ..free(0, 3)
                },
                Reason::NotReplayable,
            ),
            (
                "every endpoint and one more",
                free(4, 3),
                Reason::AttemptsUsed,
            ),
            ("free, in all", free(16, 1000), Reason::AttemptsUsed),
            (
                "idempotent twice",
                FailedTry {
                    retried: budgeted(2),
                    ..base
                },
                Reason::AttemptsUsed,
            ),
            (
                "flag off",
                FailedTry {
                    idempotent_retry: false,
                    ..base
                },
                Reason::NotRetryable,
            ),
            (
                "attempts used",
                FailedTry {
                    failure: unavailable,
                    policy: Some(&once),
                    retried: budgeted(1),
                    ..base
                },
                Reason::AttemptsUsed,
            ),
            (
                "attempts: 0",
                FailedTry {
                    policy: Some(&never),
                    ..base
                },
                Reason::AttemptsUsed,
            ),
        ] {
            let decided = decide(&failed, &budget(20, 10), Nanos::ZERO);
            assert_eq!(decided, Decision::No(decision), "{name}");
        }
        let decided = decide(&base, &budget(0, 0), Nanos::ZERO);
        assert_eq!(decided, Decision::No(Reason::BudgetUsed));
        for (name, failed, decision) in [
            ("the last endpoint", free(3, 3), Decision::Free),
            (
                "beyond the free ones by policy",
                FailedTry {
                    policy: Some(&once),
                    ..free(4, 3)
                },
                Decision::Budgeted,
            ),
        ] {
            assert_eq!(
                decide(&failed, &budget(20, 10), Nanos::ZERO),
                decision,
                "{name}"
            );
        }
    }

    #[test]
    fn only_a_budgeted_retry_is_charged() {
        let budget = budget(20, 10);
        let (get, post) = (Method::GET, Method::POST);
        decide(&failed(Failure::ConnectFailed, &get), &budget, Nanos::ZERO);
        decide(
            &failed(Failure::ConnectionDied, &post),
            &budget,
            Nanos::ZERO,
        );
        assert_eq!(budget.used(Nanos::ZERO), (0, 0));
        let mut retried = Retried::default();
        retried.count(decide(
            &failed(Failure::ConnectionDied, &get),
            &budget,
            Nanos::ZERO,
        ));
        retried.count(decide(
            &failed(Failure::Unprocessed, &get),
            &budget,
            Nanos::ZERO,
        ));
        assert_eq!(budget.used(Nanos::ZERO), (0, 1));
        assert_eq!(
            retried,
            Retried {
                free: 1,
                budgeted: 1
            }
        );
    }

    #[test]
    fn a_leaving_connection_says_nothing_against_its_endpoint() {
        let post = Method::POST;
        for (failure, free) in [
            (Failure::Unprocessed, 2),
            (Failure::Leaving, FREE_RETRIES_MAX),
        ] {
            let retried = Retried {
                free: free - 1,
                budgeted: 0,
            };
            let last = FailedTry {
                retried,
                endpoints: 1,
                ..failed(failure, &post)
            };
            assert_eq!(decide(&last, &budget(20, 10), Nanos::ZERO), Decision::Free);
            let retried = Retried { free, budgeted: 0 };
            let beyond = FailedTry { retried, ..last };
            let decision = decide(&beyond, &budget(20, 10), Nanos::ZERO);
            assert_eq!(decision, Decision::No(Reason::AttemptsUsed));
        }
    }

    #[test]
    fn every_loop_ends() {
        let policy = policy(&[503], 5);
        let unavailable = Failure::Status(StatusCode::SERVICE_UNAVAILABLE);
        let get = Method::GET;
        let mut random = SmallRng::seed_from_u64(1);
        let failures = [
            Failure::ConnectFailed,
            Failure::Unprocessed,
            Failure::Leaving,
            Failure::ConnectionDied,
            unavailable,
        ];
        for endpoints in [0, 1, 10, 100_000] {
            let mut retried = Retried::default();
            let budget = budget(100, 1_000_000);
            loop {
                let failure = failures[random.random_range(0..failures.len())];
                let failed = FailedTry {
                    policy: Some(&policy),
                    retried,
                    endpoints,
                    ..failed(failure, &get)
                };
                let decision = decide(&failed, &budget, Nanos::ZERO);
                retried.count(decision);
                if matches!(decision, Decision::No(_)) {
                    break;
                }
            }
            assert!(
                retried.free <= FREE_RETRIES_MAX && retried.budgeted <= 5,
                "{retried:?}"
            );
        }
    }

    #[test]
    fn backoff_grows_within_bounds() {
        let policy = policy(&[], 9);
        let mut random = SmallRng::seed_from_u64(1);
        for (retry, most) in [
            (0, 50),
            (1, 50),
            (2, 100),
            (3, 200),
            (4, 250),
            (31, 250),
            (32, 250),
            (u32::MAX, 250),
        ] {
            let waits: Vec<_> = (0..1000)
                .map(|_| backoff(&policy, retry, &mut random))
                .collect();
            let (least, most) = (policy.backoff, Duration::from_millis(most));
            assert!(
                waits.iter().all(|wait| (least..=most).contains(wait)),
                "retry {retry}"
            );
            // The jitter uses the room.
            assert!(
                waits.iter().any(|wait| *wait < least + (most - least) / 10),
                "retry {retry}"
            );
            assert!(
                waits.iter().any(|wait| *wait > most - (most - least) / 10),
                "retry {retry}"
            );
        }
        let none = RetryPolicy {
            backoff: Duration::ZERO,
            ..policy
        };
        assert_eq!(backoff(&none, 3, &mut random), Duration::ZERO);
    }

    #[test]
    fn idempotent_methods() {
        for (method, idempotent) in [
            ("GET", true),
            ("HEAD", true),
            ("OPTIONS", true),
            ("TRACE", true),
            ("PUT", true),
            ("DELETE", true),
            ("POST", false),
            ("PATCH", false),
            ("CONNECT", false),
            ("PROPFIND", false),
            ("get", false),
        ] {
            let parsed = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(is_idempotent(&parsed), idempotent, "{method}");
        }
    }
}

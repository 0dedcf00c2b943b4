//! Tells the controllers that the workload leaves: each of them, since the proxies that
//! use it are spread over them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use weft_config::wire;

use super::credentials::Credentials;
use super::{Client, link};
use crate::health::with_sources;
use crate::services::workloads_client::WorkloadsClient;

/// A controller that cannot be reached within this has nobody to tell.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// What all controllers that could be told have said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub users: u32,
    pub acknowledged: u32,
    /// None is missing: whoever uses the workload is among those counted.
    pub by_all: bool,
}

/// Tells all at once; `None`: none could be told.
pub(super) async fn leave(client: &Client, limit: Duration) -> Option<Told> {
    let present = client.credentials.borrow().clone()?;
    let addresses = timeout(limit, client.controllers.addresses()).await.ok()?;
    let mut telling = JoinSet::new();
    for address in addresses {
        let present = Arc::clone(&present);
        telling.spawn(async move {
            let told = timeout(limit, tell(address, &present, limit)).await;
            told.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")))
                .map_err(|problem| (address, problem))
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = telling.join_next().await {
        match answer {
            Ok(Ok(told)) => answers.push(Some(told)),
            Ok(Err((controller, problem))) => {
                tracing::warn!(%controller, %problem, "cannot tell a controller that we leave");
                answers.push(None);
            }
            Err(_) => answers.push(None),
        }
    }
    sum(&answers)
}

async fn tell(
    address: SocketAddr,
    present: &Credentials,
    limit: Duration,
) -> Result<wire::LeaveResponse, String> {
    let svid = Some(present.svid.clone());
    let connecting = link::connect(address, &present.trust, svid);
    let link = timeout(CONNECT_MAX, connecting)
        .await
        .map_err(|_| format!("no connection within {CONNECT_MAX:?}"))?
        .map_err(|error| with_sources(&error))?;
    let mut workloads = WorkloadsClient::with_origin(link, link::origin());
    let mut request = tonic::Request::new(wire::LeaveRequest {});
    request.set_timeout(limit);
    let answer = workloads.leave(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| format!("{:?}: {}", status.code(), status.message()))
}

/// Pure.
fn sum(answers: &[Option<wire::LeaveResponse>]) -> Option<Told> {
    let mut all = Told {
        by_all: answers.iter().all(Option::is_some),
        ..Told::default()
    };
    for told in answers.iter().flatten() {
        all.users = all.users.saturating_add(told.users);
        all.acknowledged = all.acknowledged.saturating_add(told.acknowledged);
    }
    answers.iter().any(Option::is_some).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_not_be_told_is_missing_from_the_sum() {
        let answer = |users, acknowledged| {
            Some(wire::LeaveResponse {
                users,
                acknowledged,
            })
        };
        let told = |users, acknowledged, by_all| {
            Some(Told {
                users,
                acknowledged,
                by_all,
            })
        };
        for (answers, expected) in [
            (vec![], None),
            (vec![None, None], None),
            (vec![answer(3, 3)], told(3, 3, true)),
            (vec![answer(3, 3), answer(0, 0)], told(3, 3, true)),
            (vec![answer(3, 2), answer(4, 4)], told(7, 6, true)),
            (vec![answer(3, 3), None], told(3, 3, false)),
        ] {
            assert_eq!(sum(&answers), expected, "{answers:?}");
        }
    }
}

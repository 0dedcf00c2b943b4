//! Opens a stream to a controller; and, while one is open, finds out whether there is a better
//! controller by now: one that came back would else have no proxies for good, and one that has lost the
//! API server would keep its own out of date.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_config::staleness;
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::link::LinkError;
use super::{Client, link};
use crate::health::with_sources;
use crate::services::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

/// The largest response taken.
const RESPONSE_BYTES_MAX: usize = 32 << 20;
/// Requests that wait to be sent; what there is to say beyond them gathers, and is said together.
const REQUESTS_MAX: usize = 8;
/// How often a better controller is looked for; everybody at a time of its own, so that a
/// controller that comes back is not met by all at once.
const LOOK_SECONDS: std::ops::Range<f64> = 15.0..45.0;
/// How much less often, after twice as much each time, where all others know no more than ours.
const LOOK_RARELY: f64 = 4.0;

pub type Requests = mpsc::Sender<DeltaDiscoveryRequest>;

/// A stream that is open.
#[derive(Debug)]
pub struct Opened {
    pub controller: SocketAddr,
    pub requests: Requests,
    pub responses: Streaming<DeltaDiscoveryResponse>,
    /// It says that what it knows may be old.
    pub is_stale: bool,
}

/// A better controller, once there is one.
pub type Better = Pin<Box<dyn Future<Output = Opened> + Send>>;

/// Opens a stream, once there is a certificate.
pub async fn open(client: &Client, controller: SocketAddr) -> Result<Opened, String> {
    let mut credentials = client.credentials.subscribe();
    let present = credentials
        .wait_for(Option::is_some)
        .await
        .map_err(|error| error.to_string())?
        .clone()
        .ok_or("no certificate")?;
    let svid = Some(present.svid.clone());
    let link = link::connect(controller, &present.trust, svid)
        .await
        .map_err(|error| {
            // Whom we believe may be out of date, and so may we: who refuses us only closes.
            if matches!(error, LinkError::Refused(_)) || present.remaining().is_zero() {
                client.renew.notify_one();
            }
            format!("{controller}: {}", with_sources(&error))
        })?;
    let mut service = AggregatedDiscoveryServiceClient::with_origin(link, link::origin())
        .max_decoding_message_size(RESPONSE_BYTES_MAX);
    let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
    let responses = service
        .delta_aggregated_resources(ReceiverStream::new(outgoing))
        .await
        .map_err(|status| format!("{controller}: {:?}: {}", status.code(), status.message()))?;
    Ok(Opened {
        controller,
        requests,
        is_stale: responses.metadata().contains_key(staleness::HEADER),
        responses: responses.into_inner(),
    })
}

/// Rather one that does not say that what it knows may be old, if there is one.
pub async fn fresher(client: &Client, opened: Opened) -> Opened {
    if !opened.is_stale {
        return opened;
    }
    let all = client.controllers.addresses().await;
    let found = fresh(client, &candidates(&all, opened.controller, true)).await;
    found.unwrap_or(opened)
}

/// Waits until there is a better controller than this one, and it takes a stream: this one is left only
/// for one that serves. `is_stale`: what this one says of itself.
pub async fn better(
    client: std::sync::Arc<Client>,
    present: SocketAddr,
    mut is_stale: watch::Receiver<bool>,
) -> Opened {
    let mut rarely = 1.0;
    loop {
        let pause = rand::rng().random_range(LOOK_SECONDS) * rarely;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64(pause)) => {}
            Ok(()) = is_stale.changed() => {
                rarely = 1.0;
                continue;
            }
        }
        let all = client.controllers.addresses().await;
        let is_stale = *is_stale.borrow();
        if let Some(opened) = fresh(&client, &candidates(&all, present, is_stale)).await {
            return opened;
        }
        if is_stale {
            rarely = LOOK_RARELY.min(rarely * 2.0);
        }
    }
}

/// Who may be better than this one, of all, the best first.
fn candidates(all: &[SocketAddr], present: SocketAddr, is_stale: bool) -> Vec<SocketAddr> {
    let looked_at = if is_stale { all.len() } else { 1 };
    let all = all.iter().take(looked_at);
    all.copied().filter(|of| *of != present).collect()
}

/// The first that serves, and does not say that what it knows may be old.
async fn fresh(client: &Client, candidates: &[SocketAddr]) -> Option<Opened> {
    for controller in candidates {
        match open(client, *controller).await {
            Ok(opened) if !opened.is_stale => return Some(opened),
            Ok(_) => tracing::debug!(%controller, "another controller's watches are broken, too"),
            Err(problem) => tracing::debug!(%problem, "a better controller does not serve"),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_others_are_better_than_one_that_is_stale() {
        let all: Vec<SocketAddr> = (1..=3).map(|of| ([10, 0, 0, of], 1).into()).collect();
        let of = |present: usize, is_stale| {
            let found = candidates(&all, all[present], is_stale);
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of(0, false), [""; 0]);
        assert_eq!(of(2, false), ["10.0.0.1:1"]);
        assert_eq!(of(0, true), ["10.0.0.2:1", "10.0.0.3:1"]);
        assert_eq!(of(1, true), ["10.0.0.1:1", "10.0.0.3:1"]);
        assert!(candidates(&[], all[0], true).is_empty());
    }
}

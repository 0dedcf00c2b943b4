//! Opens a stream to a controller; and, while one is open, finds out whether there is a better
//! controller by now: one that came back would else have no proxies for good.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::link::LinkError;
use super::{Client, link};
use crate::health::with_sources;
use crate::services::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

/// The largest response taken.
const RESPONSE_BYTES_MAX: usize = 32 << 20;
/// Requests that wait to be sent; each turn of discovery makes a handful.
const REQUESTS_MAX: usize = 64;
/// How often a better controller is looked for; everybody at a time of its own, so that a
/// controller that comes back is not met by all at once.
const LOOK_SECONDS: std::ops::Range<f64> = 15.0..45.0;

pub type Requests = mpsc::Sender<DeltaDiscoveryRequest>;

/// A stream that is open.
#[derive(Debug)]
pub struct Opened {
    pub controller: SocketAddr,
    pub requests: Requests,
    pub responses: Streaming<DeltaDiscoveryResponse>,
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
            // Whom we believe may be out of date, and so may we.
            if matches!(error, LinkError::Refused(_)) {
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
        responses: responses.into_inner(),
    })
}

/// Waits until the best controller is another than this one and takes a stream: this one is left
/// only for one that serves.
pub async fn better(client: std::sync::Arc<Client>, present: SocketAddr) -> Opened {
    loop {
        let pause = rand::rng().random_range(LOOK_SECONDS);
        tokio::time::sleep(Duration::from_secs_f64(pause)).await;
        let best = client.controllers.addresses().await.into_iter().next();
        let Some(best) = best.filter(|best| *best != present) else {
            continue;
        };
        match open(&client, best).await {
            Ok(opened) => return opened,
            Err(problem) => tracing::debug!(%problem, "the better controller does not serve"),
        }
    }
}

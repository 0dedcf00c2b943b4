//! Serves proxies: certificates, resources by the delta xDS transport, and the
//! drain barrier. `hub` is what all streams share, `stream` is one of them, `sign`
//! gives out certificates, `report` says how it all stands.

pub mod hub;
pub mod leave;
mod limits;
mod marks;
mod node;
mod refusals;
mod report;
pub mod serve;
mod sign;
mod stale;
pub mod stream;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio_stream::Stream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};
use weft_config::spiffe::SpiffeId;
use weft_config::staleness;
use weft_config::wire::{LeaveRequest, LeaveResponse, SignRequest, SignResponse};
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use crate::services::workloads_server::Workloads;
use crate::services::xds::aggregated_discovery_service_server::AggregatedDiscoveryService;
use hub::Hub;

/// How long Leave waits for acknowledgements where the caller sets no limit.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// What is left of the caller's limit for the answer to arrive.
const LEAVE_MARGIN: Duration = Duration::from_millis(200);

/// Who has proved by its certificate to be at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    pub identity: SpiffeId,
    pub workload: String,
    pub expires: u64,
    pub address: String,
    pub certificate: CertificateDer<'static>,
}

/// Both gRPC services.
#[derive(Clone, Debug)]
pub struct Service {
    pub hub: Arc<Hub>,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

/// Who calls, if its certificate is still good: a connection may outlast it.
fn caller<T>(hub: &Hub, request: &Request<T>) -> Result<Caller, (&'static str, Status)> {
    let Some(caller) = request.extensions().get::<Caller>() else {
        let needed = "this needs the client certificate of a workload of the mesh";
        return Err(("no_certificate", Status::unauthenticated(needed)));
    };
    match hub.lost_proof(caller) {
        None => Ok(caller.clone()),
        Some(reason) => {
            let problem = format!("the client certificate is {reason}");
            Err((reason, Status::unauthenticated(problem)))
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let caller = caller(&self.hub, &request).map_err(|(reason, status)| {
            self.hub.metrics.streams_refused.count(reason);
            status
        })?;
        let hub = Arc::clone(&self.hub);
        let is_stale = hub.is_stale();
        let responses = stream::open(hub, caller, request.into_inner())?;
        let mut response: Response<Responses> = Response::new(Box::pin(responses));
        if is_stale {
            let headers = response.metadata_mut();
            headers.insert(staleness::HEADER, MetadataValue::from_static("1"));
        }
        Ok(response)
    }
}

#[tonic::async_trait]
impl Workloads for Service {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let signed = sign::answer(&self.hub, caller.as_ref(), request.get_ref()).await;
        signed.map(Response::new)
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let caller = caller(&self.hub, &request).map_err(|(_, status)| {
            self.hub.metrics.leaves.count("refused");
            status
        })?;
        let limit = timeout_of(&request).unwrap_or(LEAVE_MAX).min(LEAVE_MAX);
        let left = self.hub.leave(&caller, limit.saturating_sub(LEAVE_MARGIN));
        Ok(Response::new(left.await?))
    }
}

/// `grpc-timeout` (gRPC over HTTP/2): up to eight digits and a unit.
fn timeout_of<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.checked_mul(3600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

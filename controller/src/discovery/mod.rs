//! Serves proxies: certificates, resources by the delta xDS transport, and the
//! drain barrier. `hub` is what all streams share, `stream` is one of them.

pub mod hub;
pub mod serve;
mod stream;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use weft_config::spiffe::{self, SpiffeId};
use weft_config::wire::{LeaveRequest, LeaveResponse, SignRequest, SignResponse};
use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use crate::ca::CaError;
use crate::ca::token::TokenError;
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
}

/// Both gRPC services.
#[derive(Clone, Debug)]
pub struct Service {
    pub hub: Arc<Hub>,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| {
            Status::unauthenticated("this needs the client certificate of a workload of the mesh")
        })
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let caller = caller(&request)?;
        let hub = Arc::clone(&self.hub);
        let responses = stream::open(hub, caller, request.into_inner())?;
        Ok(Response::new(Box::pin(responses)))
    }
}

#[tonic::async_trait]
impl Workloads for Service {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let request = request.into_inner();
        self.hub.admit_sign()?;
        let (identity, claims) = match (caller, request.token.as_str()) {
            (Some(caller), "") => {
                mean_same(&caller.workload, &request.workload, "certificate")?;
                (caller.identity, None)
            }
            (None, "") => {
                return Err(Status::unauthenticated(
                    "no proof: neither a token nor a client certificate",
                ));
            }
            (_, token) => {
                let claims = self.hub.tokens.verify(token).map_err(unproven)?;
                if !claims.workload.is_empty() {
                    mean_same(&claims.workload, &request.workload, "token")?;
                }
                let identity = SpiffeId::new(&self.hub.ca.trust_domain, &claims.ns, &claims.sa)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                (identity, Some(claims))
            }
        };
        if (identity.namespace(), identity.service_account()) == spiffe::CONTROLLER {
            return Err(Status::permission_denied(
                "a controller's identity is given to nobody",
            ));
        }
        if !spiffe::is_workload_uid(&request.workload) {
            return Err(Status::invalid_argument("workload: not a UID"));
        }
        let signed = self.hub.ca.sign(&request.csr, &identity, &request.workload);
        let chain = signed.map_err(|error| match error {
            CaError::TooLarge | CaError::Request(_) => Status::invalid_argument(error.to_string()),
            CaError::Identity { .. } => Status::permission_denied(error.to_string()),
            error => Status::internal(error.to_string()),
        })?;
        if let Some(claims) = claims {
            self.hub.tokens.redeem(&claims).map_err(unproven)?;
        }
        self.hub.signed(&request.workload, &chain);
        tracing::info!(%identity, workload = %request.workload, "signed a certificate");
        Ok(Response::new(SignResponse {
            chain,
            trust_bundle: Some(self.hub.ca.bundle()),
        }))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let caller = caller(&request)?;
        let limit = timeout_of(&request).unwrap_or(LEAVE_MAX).min(LEAVE_MAX);
        let left = self.hub.leave(&caller, limit.saturating_sub(LEAVE_MARGIN));
        Ok(Response::new(left.await?))
    }
}

fn unproven(error: TokenError) -> Status {
    Status::unauthenticated(error.to_string())
}

fn mean_same(proven: &str, asked: &str, by: &str) -> Result<(), Status> {
    match proven == asked {
        true => Ok(()),
        false => Err(Status::permission_denied(format!(
            "the {by} is for workload {proven}, not {asked}"
        ))),
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

//! Who gets a certificate: the proof, what it is for, and every reason to refuse.

use tonic::{Code, Status};
use weft_config::spiffe::{self, SpiffeId};
use weft_config::wire::{SignRequest, SignResponse};

use super::Caller;
use super::hub::Hub;
use super::refusals::shortened;
use crate::ca::CaError;
use crate::ca::proof::ProofError;

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("too many certificates are asked for; try again")]
    RateLimited,
    #[error("this workload asks for too many certificates; it gets another one in some seconds")]
    CallerLimited,
    #[error("the client certificate is {0}")]
    LostProof(&'static str),
    #[error("no proof: neither a token nor a client certificate")]
    NoProof,
    #[error(transparent)]
    Token(ProofError),
    #[error("the {by} is for workload {proven}, not {asked}")]
    OtherWorkload {
        by: &'static str,
        proven: String,
        asked: String,
    },
    #[error("the token is for no identity: {0}")]
    NoIdentity(String),
    #[error("a controller's identity is given to nobody")]
    Controller,
    #[error("workload: not a UID")]
    NoUid,
    #[error(transparent)]
    Ca(CaError),
}

impl SignError {
    /// What `weft_controller_certificates_total` may say; the first is for success.
    pub const RESULTS: &'static [&'static str] = &[
        "signed",
        "rate_limited",
        "caller_limited",
        "lost_proof",
        "no_proof",
        "token",
        "unavailable",
        "other_workload",
        "other_identity",
        "malformed",
        "internal",
    ];

    fn result(&self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::CallerLimited => "caller_limited",
            Self::LostProof(_) => "lost_proof",
            Self::NoProof => "no_proof",
            Self::Token(error) if error.is_passing() => "unavailable",
            Self::Token(_) => "token",
            Self::OtherWorkload { .. } => "other_workload",
            Self::Controller | Self::Ca(CaError::Identity { .. }) => "other_identity",
            Self::NoIdentity(_)
            | Self::NoUid
            | Self::Ca(CaError::TooLarge | CaError::Request(_)) => "malformed",
            Self::Ca(CaError::File { .. } | CaError::Sign(_)) => "internal",
        }
    }

    fn code(&self) -> Code {
        match self.result() {
            "rate_limited" | "caller_limited" => Code::ResourceExhausted,
            "unavailable" => Code::Unavailable,
            "no_proof" | "lost_proof" | "token" => Code::Unauthenticated,
            "other_workload" | "other_identity" => Code::PermissionDenied,
            "malformed" => Code::InvalidArgument,
            _ => Code::Internal,
        }
    }
}

/// Signs, and counts what became of it.
pub async fn answer(
    hub: &Hub,
    caller: Option<&Caller>,
    request: &SignRequest,
) -> Result<SignResponse, Status> {
    match sign(hub, caller, request).await {
        Ok((identity, chain)) => {
            hub.metrics.certificates.count("signed");
            if !request.token.is_empty() {
                // Who needs a token begins anew, whatever became of its predecessor.
                hub.returned(&request.workload);
            }
            hub.signed(&request.workload, &chain);
            tracing::info!(%identity, workload = %request.workload, "signed a certificate");
            Ok(SignResponse {
                chain,
                trust_bundle: Some(hub.ca.bundle()),
            })
        }
        Err(error) => {
            hub.metrics.certificates.count(error.result());
            if let SignError::Token(error) = &error {
                hub.metrics.tokens.count(error.reason());
            }
            // Whoever has proved nothing may say to be anybody.
            let who = caller.map_or("", |caller| caller.workload.as_str());
            if let Some(left_out) = hub.may_log(&["sign", error.result(), who]) {
                let workload = shortened(&request.workload).escape_debug();
                tracing::warn!(reason = error.result(), %workload, left_out, "refused to sign: {error}");
            }
            Err(Status::new(error.code(), error.to_string()))
        }
    }
}

/// Whose the certificate is, and the chain.
type Signed = (SpiffeId, Vec<Vec<u8>>);

async fn sign(
    hub: &Hub,
    caller: Option<&Caller>,
    request: &SignRequest,
) -> Result<Signed, SignError> {
    let (identity, proof) = match (caller, request.token.as_str()) {
        (Some(caller), "") => {
            if let Some(reason) = hub.lost_proof(caller) {
                return Err(SignError::LostProof(reason));
            }
            // The key may have outlived the pod.
            if hub.is_gone(&caller.workload) {
                return Err(SignError::LostProof("of a pod that is gone"));
            }
            mean_same(&caller.workload, &request.workload, "certificate")?;
            (caller.identity.clone(), None)
        }
        (None, "") => return Err(SignError::NoProof),
        (_, token) => {
            let proof = hub.prover.prove(token).await.map_err(SignError::Token)?;
            if let Some(workload) = &proof.workload {
                mean_same(workload, &request.workload, "token")?;
            }
            let (domain, namespace) = (&hub.ca.trust_domain, &proof.namespace);
            let identity = SpiffeId::new(domain, namespace, &proof.service_account)
                .map_err(|error| SignError::NoIdentity(error.to_string()))?;
            (identity, Some(proof))
        }
    };
    if (identity.namespace(), identity.service_account()) == spiffe::CONTROLLER {
        return Err(SignError::Controller);
    }
    if !spiffe::is_workload_uid(&request.workload) {
        return Err(SignError::NoUid);
    }
    // Only who has proved something counts, and for itself first.
    hub.admit_sign(&match &proof {
        None => format!("{identity} {}", request.workload),
        Some(proof) => format!("{} {}", proof.id, request.workload),
    })?;
    let chain = hub
        .ca
        .sign(&request.csr, &identity, &request.workload)
        .map_err(SignError::Ca)?;
    if let Some(proof) = proof {
        hub.prover.redeem(&proof).map_err(SignError::Token)?;
    }
    Ok((identity, chain))
}

fn mean_same(proven: &str, asked: &str, by: &'static str) -> Result<(), SignError> {
    match proven == asked {
        true => Ok(()),
        false => Err(SignError::OtherWorkload {
            by,
            proven: proven.to_owned(),
            asked: asked.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::place::Place;
    use crate::ca::proof::Prover;
    use crate::ca::review::{ReviewError, Reviewer};
    use crate::ca::token::TokenError;
    use crate::index::Change;
    use crate::source::manifest;

    /// A key that is taken out of a pod is worth nothing once the pod has gone.
    #[tokio::test]
    async fn a_certificate_is_renewed_for_as_long_as_its_pod_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let life = std::time::Duration::from_secs(60);
        let (ca, _place) = Place::directory(folder.path(), "td", life).unwrap();
        // It is not asked: the certificate is the proof.
        let api = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let api = kube::Client::try_from(api).unwrap();
        let hub = Hub::new(ca, Prover::Kubernetes(Reviewer::new(api)));
        let caller = Caller {
            identity: SpiffeId::new("td", "shop", "web").unwrap(),
            workload: "uid-1".to_owned(),
            expires: u64::MAX,
            address: String::new(),
            certificate: Vec::new().into(),
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key);
        let request = SignRequest {
            csr: csr.unwrap().der().to_vec(),
            token: String::new(),
            workload: "uid-1".to_owned(),
        };
        let refused = sign(&hub, Some(&caller), &request).await.unwrap_err();
        assert!(refused.to_string().contains("gone"), "{refused}");
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop, uid: uid-1, annotations: {weft.dev/inbound: captured}}\nspec: {serviceAccountName: web, containers: []}\nstatus: {podIP: 10.0.0.1}\n";
        let pods = manifest::parse("pod.yaml", pod).objects;
        let changes = pods.into_iter().map(|pod| Change {
            key: pod.key(),
            object: Some(std::sync::Arc::new(pod)),
        });
        hub.update(changes.collect(), std::sync::Arc::default());
        let signed = sign(&hub, Some(&caller), &request).await;
        assert!(signed.is_ok(), "{signed:?}");
    }

    #[test]
    fn every_refusal_has_its_label() {
        for error in [
            SignError::RateLimited,
            SignError::CallerLimited,
            SignError::LostProof("revoked"),
            SignError::NoProof,
            SignError::Token(TokenError::Used.into()),
            SignError::Token(ReviewError::Unavailable(String::new()).into()),
            SignError::OtherWorkload {
                by: "token",
                proven: String::new(),
                asked: String::new(),
            },
            SignError::NoIdentity(String::new()),
            SignError::Controller,
            SignError::NoUid,
            SignError::Ca(CaError::TooLarge),
            SignError::Ca(CaError::Sign(rcgen::Error::CouldNotParseCertificate)),
        ] {
            assert!(SignError::RESULTS.contains(&error.result()), "{error}");
        }
    }
}

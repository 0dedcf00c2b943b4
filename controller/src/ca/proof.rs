//! How a workload without a certificate proves who it is: by a bearer token, which one
//! of a closed set of issuers vouches for. On Kubernetes that is the API server, elsewhere
//! the controller's own join token.
//!
//! **Invariant:** a proof is spent only once all else is well: a mistake must not cost it.

use super::review::{ReviewError, Reviewer};
use super::token::{Claims, TokenError, Verifier};

/// Who is asked about tokens.
#[derive(Debug)]
pub enum Prover {
    /// `weft token` made it.
    Join(Verifier),
    /// The kubelet projected it into a pod.
    Kubernetes(Reviewer),
}

/// Who somebody has proved to be.
#[derive(Clone, Debug)]
pub struct Proof {
    pub namespace: String,
    pub service_account: String,
    /// UID of the only workload that it is for; `None`: any of the service account's.
    pub workload: Option<String>,
    /// Whose requests are counted together: the same for the same token.
    pub id: String,
    /// `None`: it may be used again.
    spent: Option<Claims>,
}

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error(transparent)]
    Join(#[from] TokenError),
    #[error(transparent)]
    Kubernetes(#[from] ReviewError),
}

impl ProofError {
    /// What `weft_controller_tokens_refused_total` may say.
    pub const REASONS: &'static [&'static str] = &[
        "expired",
        "used",
        "invalid",
        "full",
        "audience",
        "gone",
        "foreign",
        "unbound",
        "unavailable",
    ];

    pub fn reason(&self) -> &'static str {
        match self {
            Self::Join(error) => error.reason(),
            Self::Kubernetes(error) => error.reason(),
        }
    }

    /// Whether the same token may be good in a while.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Kubernetes(ReviewError::Unavailable(_)))
    }
}

impl Prover {
    /// Asks who the bearer of a token is. Spends nothing.
    pub async fn prove(&self, token: &str) -> Result<Proof, ProofError> {
        match self {
            Self::Join(verifier) => Ok(verifier.verify(token).map(Proof::from)?),
            Self::Kubernetes(reviewer) => Ok(reviewer.review(token).await?),
        }
    }

    /// Spends a proof.
    pub fn redeem(&self, proof: &Proof) -> Result<(), ProofError> {
        match (self, &proof.spent) {
            (Self::Join(verifier), Some(claims)) => Ok(verifier.redeem(claims)?),
            (Self::Join(_), None) | (Self::Kubernetes(_), _) => Ok(()),
        }
    }
}

impl From<Verifier> for Prover {
    fn from(verifier: Verifier) -> Self {
        Self::Join(verifier)
    }
}

impl From<Reviewer> for Prover {
    fn from(reviewer: Reviewer) -> Self {
        Self::Kubernetes(reviewer)
    }
}

impl Proof {
    /// One that may be used again, for one workload.
    pub(super) fn lasting(namespace: &str, service_account: &str, workload: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            workload: Some(workload.to_owned()),
            id: workload.to_owned(),
            spent: None,
        }
    }
}

impl From<Claims> for Proof {
    fn from(claims: Claims) -> Self {
        Self {
            namespace: claims.ns.clone(),
            service_account: claims.sa.clone(),
            workload: (!claims.workload.is_empty()).then(|| claims.workload.clone()),
            id: claims.jti.clone(),
            spent: Some(claims),
        }
    }
}

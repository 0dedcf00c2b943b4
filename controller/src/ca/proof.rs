//! How a workload without a certificate proves who it is: by a bearer token, which one
//! of a closed set of issuers vouches for. Where no Kubernetes can be asked that is the
//! controller's own join token.
//!
//! **Invariant:** a proof is spent only once all else is well: a mistake must not cost it.

use super::token::{Claims, TokenError, Verifier};

/// Who is asked about tokens.
#[derive(Debug)]
pub enum Prover {
    /// `weft token` made it.
    Join(Verifier),
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
    spent: Claims,
}

impl Prover {
    /// Asks who the bearer of a token is. Spends nothing.
    pub async fn prove(&self, token: &str) -> Result<Proof, TokenError> {
        match self {
            Self::Join(verifier) => verifier.verify(token).map(Proof::from),
        }
    }

    /// Spends a proof.
    pub fn redeem(&self, proof: &Proof) -> Result<(), TokenError> {
        match self {
            Self::Join(verifier) => verifier.redeem(&proof.spent),
        }
    }
}

impl From<Verifier> for Prover {
    fn from(verifier: Verifier) -> Self {
        Self::Join(verifier)
    }
}

impl From<Claims> for Proof {
    fn from(claims: Claims) -> Self {
        Self {
            namespace: claims.ns.clone(),
            service_account: claims.sa.clone(),
            workload: (!claims.workload.is_empty()).then(|| claims.workload.clone()),
            id: claims.jti.clone(),
            spent: claims,
        }
    }
}

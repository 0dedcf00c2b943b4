//! Service-account tokens of Kubernetes, which only the API server can vouch for: asked
//! by TokenReview. It knows what nothing else does, whether the pod that a token is bound
//! to is still there.
//!
//! Spends nothing: a token may be used again for as long as it lives, since what it is
//! good for is bound to one pod.
//!
//! **Invariant:** an API server that cannot answer refuses, and never lets pass.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::Api;
use kube::api::PostParams;
use tokio::sync::Semaphore;

use super::proof::Proof;
use super::token::TOKEN_BYTES_MAX;

/// For whom tokens are meant (`audience` of the projected volume).
pub const AUDIENCE: &str = "weft.dev";
/// Less than a proxy waits for its certificate.
const REVIEW_MAX: Duration = Duration::from_secs(5);
/// Questions that the API server is asked at once; the next wait, as long as an answer may take.
const REVIEWS_MAX: usize = 32;
const USER_PREFIX: &str = "system:serviceaccount:";
/// Where the API server says which pod a token is bound to.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// What the API server's words mean to us. They are no API: what is not among them is
/// "invalid", and refused all the same.
const MEANINGS: [(&str, Refusal); 5] = [
    ("token has expired", Refusal::Expired),
    ("invalid for the target audiences", Refusal::Audience),
    ("token has been invalidated", Refusal::Gone),
    // Another pod, or service account, has its name now.
    ("does not match", Refusal::Gone),
    ("cryptographic primitive", Refusal::Foreign),
];

/// Why a token is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Expired,
    Audience,
    Gone,
    Foreign,
    Unbound,
    Invalid,
}

impl Refusal {
    fn what_to_do(self) -> &'static str {
        match self {
            Self::Expired => "it has expired; the kubelet renews the file that it projects",
            Self::Audience => "it is for another audience; project one for \"weft.dev\"",
            Self::Gone => "its pod or service account is gone",
            Self::Foreign => "it is signed by no key of this cluster",
            Self::Unbound => {
                "it is bound to no pod; use one that the kubelet projects (a serviceAccountToken \
                 volume), or that is made with --bound-object-kind=Pod"
            }
            Self::Invalid => "it is no service account's of this cluster",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error("the token is refused: {}{}", .refusal.what_to_do(), in_brackets(.said))]
    Refused { refusal: Refusal, said: String },
    #[error("the API server cannot be asked about the token now ({0}); try again")]
    Unavailable(String),
}

/// What the API server said, as far as it said something.
fn in_brackets(text: &str) -> String {
    match text.is_empty() {
        true => String::new(),
        false => format!(" ({text})"),
    }
}

impl ReviewError {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Refused { refusal, .. } => match refusal {
                Refusal::Expired => "expired",
                Refusal::Audience => "audience",
                Refusal::Gone => "gone",
                Refusal::Foreign => "foreign",
                Refusal::Unbound => "unbound",
                Refusal::Invalid => "invalid",
            },
        }
    }
}

fn refused(refusal: Refusal, said: impl Into<String>) -> ReviewError {
    ReviewError::Refused {
        refusal,
        said: said.into(),
    }
}

/// Asks the API server.
pub struct Reviewer {
    reviews: Api<TokenReview>,
    places: Semaphore,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reviewer")
    }
}

impl Reviewer {
    pub fn new(client: kube::Client) -> Self {
        Self {
            reviews: Api::all(client),
            places: Semaphore::new(REVIEWS_MAX),
        }
    }

    /// Who the bearer of a token is.
    pub async fn review(&self, token: &str) -> Result<Proof, ReviewError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused(Refusal::Invalid, "it is too long"));
        }
        let asked = tokio::time::timeout(REVIEW_MAX, self.ask(token));
        let status = asked
            .await
            .map_err(|_| ReviewError::Unavailable(format!("no answer within {REVIEW_MAX:?}")))??;
        decide(&status)
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, ReviewError> {
        let unavailable = |error: String| ReviewError::Unavailable(error);
        let place = self.places.acquire().await;
        let _place = place.map_err(|error| unavailable(error.to_string()))?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answered = self.reviews.create(&PostParams::default(), &review).await;
        let answered = answered.map_err(|error| match error {
            kube::Error::Api(status) => unavailable(format!("{}: {}", status.code, status.message)),
            other => unavailable(other.to_string()),
        })?;
        let status = answered.status;
        status.ok_or_else(|| unavailable("its answer has no status".to_owned()))
    }
}

/// What an answer proves. Pure.
fn decide(status: &TokenReviewStatus) -> Result<Proof, ReviewError> {
    if status.authenticated != Some(true) {
        let said = status.error.as_deref().unwrap_or_default();
        let meaning = MEANINGS.iter().find(|(words, _)| said.contains(words));
        return Err(refused(
            meaning.map_or(Refusal::Invalid, |(_, refusal)| *refusal),
            said,
        ));
    }
    // An authenticator that knows of no audiences says so by leaving this out.
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(refused(Refusal::Audience, ""));
    }
    let user = status.user.as_ref();
    let name = user.and_then(|user| user.username.as_deref());
    let name = name.unwrap_or_default();
    let account = name.strip_prefix(USER_PREFIX);
    let Some((namespace, account)) = account.and_then(|rest| rest.split_once(':')) else {
        return Err(refused(Refusal::Invalid, format!("it is {name}'s")));
    };
    let uid = user.and_then(pod_uid);
    let uid = uid.ok_or_else(|| refused(Refusal::Unbound, ""))?;
    Ok(Proof::lasting(namespace, account, uid))
}

fn pod_uid(user: &UserInfo) -> Option<&str> {
    match user.extra.as_ref()?.get(POD_UID)?.as_slice() {
        [uid] if !uid.is_empty() => Some(uid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str, audiences: &[&str], pods: &[&str]) -> TokenReviewStatus {
        let owned = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect();
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(owned(audiences)),
            user: Some(UserInfo {
                username: Some(name.to_owned()),
                extra: Some([(POD_UID.to_owned(), owned(pods))].into()),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn only_a_pod_s_token_for_us_is_a_proof() {
        let web = "system:serviceaccount:shop:web";
        let proof = decide(&status(web, &["other", AUDIENCE], &["u1"])).unwrap();
        assert_eq!(
            (proof.namespace.as_str(), proof.service_account.as_str()),
            ("shop", "web")
        );
        assert_eq!(proof.workload.as_deref(), Some("u1"));
        let without_audiences = TokenReviewStatus {
            audiences: None,
            ..status(web, &[], &["u1"])
        };
        for (answer, reason) in [
            (
                status(web, &["https://kubernetes.default.svc"], &["u1"]),
                "audience",
            ),
            (without_audiences, "audience"),
            (status(web, &[AUDIENCE], &[]), "unbound"),
            (status(web, &[AUDIENCE], &["u1", "u2"]), "unbound"),
            (status(web, &[AUDIENCE], &[""]), "unbound"),
            (status("admin", &[AUDIENCE], &["u1"]), "invalid"),
            (
                status("system:serviceaccount:shop", &[AUDIENCE], &["u1"]),
                "invalid",
            ),
            (status("system:node:n1", &[AUDIENCE], &["u1"]), "invalid"),
            (TokenReviewStatus::default(), "invalid"),
        ] {
            let refused = decide(&answer).unwrap_err();
            assert_eq!(refused.reason(), reason, "{answer:?}: {refused}");
        }
        // Whatever else it says, who is not authenticated is nobody.
        let denied = TokenReviewStatus {
            authenticated: Some(false),
            ..status(web, &[AUDIENCE], &["u1"])
        };
        assert!(decide(&denied).is_err());
    }
}

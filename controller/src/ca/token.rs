//! Join tokens: a short-lived proof of who a workload is, where no Kubernetes
//! can be asked. A JWT signed with the authority's `token.key`.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};

use super::{CaError, file_error, write};

/// For whom tokens are meant (`aud`).
const AUDIENCE: &str = "weft";
/// Used tokens that are remembered until they expire; with so many at once no
/// further one is taken.
const USED_MAX: usize = 100_000;
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Who is proven.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub ns: String,
    pub sa: String,
    /// UID of the workload; empty: any.
    #[serde(default)]
    pub workload: String,
    pub aud: String,
    /// Seconds since the Unix epoch.
    pub exp: u64,
    pub jti: String,
    pub uses: u32,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(
        "the token has expired by this controller's clock; make a new one with `weft token`, and if it is new, compare the clocks"
    )]
    Expired,
    #[error("the token has been used; make a new one with `weft token`, or one with --uses")]
    Used,
    #[error("the token is not one of this controller's: {0}")]
    Invalid(String),
    #[error("too many tokens are in use; try again in a while")]
    Full,
}

impl TokenError {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Used => "used",
            Self::Invalid(_) => "invalid",
            Self::Full => "full",
        }
    }
}

/// The key that signs tokens; made if it is not there.
pub fn key(directory: &Path) -> Result<Vec<u8>, CaError> {
    let path = directory.join("token.key");
    if !path.exists() {
        let fresh: [u8; 32] = rand::rng().random();
        write(&path, &fresh, 0o600)?;
    }
    std::fs::read(&path).map_err(|error| file_error(&path, error))
}

fn seconds_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Makes a token; whoever may read the authority's directory can.
pub fn mint(
    directory: &Path,
    (namespace, account, workload): (&str, &str, &str),
    life: Duration,
    uses: u32,
) -> Result<String, CaError> {
    let id: [u8; 16] = rand::rng().random();
    let claims = Claims {
        ns: namespace.to_owned(),
        sa: account.to_owned(),
        workload: workload.to_owned(),
        aud: AUDIENCE.to_owned(),
        exp: seconds_now() + life.as_secs(),
        jti: id.iter().map(|byte| format!("{byte:02x}")).collect(),
        uses: uses.max(1),
    };
    let key = EncodingKey::from_secret(&key(directory)?);
    encode(&Header::default(), &claims, &key).map_err(|error| file_error(directory, error))
}

/// Checks tokens, and remembers those that were used.
#[derive(Debug)]
pub struct Verifier {
    key: DecodingKey,
    used: parking_lot::Mutex<HashMap<String, (u64, u32)>>,
}

impl Verifier {
    pub fn open(directory: &Path) -> Result<Self, CaError> {
        Ok(Self {
            key: DecodingKey::from_secret(&key(directory)?),
            used: parking_lot::Mutex::default(),
        })
    }

    /// Who is proven.
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid("it is too long".to_owned()));
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[AUDIENCE]);
        validation.leeway = 0;
        let decoded = decode::<Claims>(token, &self.key, &validation);
        decoded
            .map(|token| token.claims)
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::ExpiredSignature => TokenError::Expired,
                _ => TokenError::Invalid(error.to_string()),
            })
    }

    /// Counts a use, once all else is well: a mistake must not cost the token.
    pub fn redeem(&self, claims: &Claims) -> Result<(), TokenError> {
        let mut used = self.used.lock();
        if used.len() >= USED_MAX {
            let now = seconds_now();
            used.retain(|_, (expires, _)| *expires >= now);
        }
        if used.len() >= USED_MAX {
            return Err(TokenError::Full);
        }
        let (_, uses) = used.entry(claims.jti.clone()).or_insert((claims.exp, 0));
        if *uses >= claims.uses {
            return Err(TokenError::Used);
        }
        *uses += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let verifier = Verifier::open(directory.path()).unwrap();
        let who = ("shop", "payment", "uid-1");
        let mint =
            |life, uses| mint(directory.path(), who, Duration::from_secs(life), uses).unwrap();
        let redeem = |token: &str| {
            verifier
                .verify(token)
                .and_then(|claims| verifier.redeem(&claims))
        };
        let once = mint(60, 1);
        let claims = verifier.verify(&once).unwrap();
        assert_eq!(redeem(&once), Ok(()), "looking at it is no use");
        assert_eq!(
            (claims.ns.as_str(), claims.sa.as_str()),
            ("shop", "payment")
        );
        assert_eq!(redeem(&once), Err(TokenError::Used));
        let twice = mint(60, 2);
        assert!(redeem(&twice).is_ok() && redeem(&twice).is_ok());
        assert_eq!(redeem(&twice), Err(TokenError::Used));
        let other = tempfile::tempdir().unwrap();
        let foreign = super::mint(other.path(), who, Duration::from_secs(60), 1).unwrap();
        assert!(matches!(
            verifier.verify(&foreign),
            Err(TokenError::Invalid(_))
        ));
        assert!(matches!(
            verifier.verify("nonsense"),
            Err(TokenError::Invalid(_))
        ));
        let old = mint(0, 1);
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(verifier.verify(&old), Err(TokenError::Expired));
    }

    #[test]
    fn used_tokens_are_remembered_up_to_a_limit_and_forgotten_when_they_have_expired() {
        let directory = tempfile::tempdir().unwrap();
        let verifier = Verifier::open(directory.path()).unwrap();
        let claims = |number: usize, expires: u64| Claims {
            ns: "shop".to_owned(),
            sa: "web".to_owned(),
            workload: String::new(),
            aud: AUDIENCE.to_owned(),
            exp: expires,
            jti: number.to_string(),
            uses: 1,
        };
        let later = seconds_now() + 3600;
        for number in 0..USED_MAX - 1 {
            assert_eq!(verifier.redeem(&claims(number, later)), Ok(()));
        }
        assert_eq!(
            verifier.redeem(&claims(USED_MAX, 1)),
            Ok(()),
            "the last place"
        );
        // One that has expired makes room for one more; with none, nobody gets in.
        let next = USED_MAX + 1;
        assert_eq!(verifier.redeem(&claims(next, later)), Ok(()));
        let full = verifier.redeem(&claims(next + 1, later));
        assert_eq!(full, Err(TokenError::Full));
        assert_eq!(verifier.used.lock().len(), USED_MAX);
    }
}

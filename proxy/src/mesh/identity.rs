//! This workload's certificate: asked for with a proof, renewed at half of its
//! life with the old one as the proof, with a fresh key each time.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::time::Instant;
use weft_config::snapshot::{Peer, TrustBundle};
use weft_config::spiffe::SpiffeId;
use weft_config::wire;

use super::credentials::{self, Credentials};
use super::{Backoff, Client, link};
use crate::health::with_sources;
use crate::net::tls::mesh::{MeshTls, Trust, check_own};
use crate::services::workloads_client::WorkloadsClient;

/// When the signing root changed, everybody renews within this time.
const RENEW_SPREAD: Duration = Duration::from_secs(3);
/// However short a certificate's life is, and whatever a clock says.
const RENEW_MIN: Duration = Duration::from_millis(500);
/// How often the time is looked at: a sleep does not go on while a machine is suspended, and knows
/// nothing of a clock that is set.
const LOOK: Duration = Duration::from_secs(10);
/// The longest pause between attempts: each may cost the API server the review of a token.
const RETRY_MAX: Duration = Duration::from_secs(20);
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// A token of more bytes is none.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

pub async fn run(client: Arc<Client>) {
    let mesh = &client.mesh.config;
    let restored = mesh
        .state
        .as_deref()
        .and_then(|directory| credentials::restore(directory, &mesh.identity));
    let mut present = false;
    if let Some(restored) = restored {
        tracing::info!(remaining = ?restored.remaining(), "using the certificate of an earlier process");
        present = install(&client, restored);
    }
    let mut backoff = Backoff::new(RETRY_MAX);
    let mut attempt = 0;
    loop {
        if present {
            until_renewal(&client).await;
        }
        let signed = sign(&client, attempt).await;
        present = signed.is_ok_and(|fresh| install(&client, fresh));
        let result = if present { "ok" } else { "failed" };
        client.shared.metrics.certificate_renewed(result);
        if present {
            backoff.reset();
            attempt = 0;
            tracing::info!(identity = %mesh.identity, "new certificate");
        } else {
            // What there is serves on, for as long as it is valid.
            attempt += 1;
            backoff.pause().await;
        }
    }
}

/// When a certificate is renewed, by the clock or by the time that was slept: whichever is first.
#[derive(Clone, Copy, Debug)]
struct Renewal {
    /// This long after it was installed,
    after: Duration,
    /// or once no more than this is left of its life.
    at_left: Duration,
}

impl Renewal {
    /// `share`: of what is left.
    fn new(left: Duration, share: f64) -> Self {
        let after = left.mul_f64(share).max(RENEW_MIN);
        Self {
            after,
            at_left: left.saturating_sub(after),
        }
    }

    /// How long to sleep before the next look; `None`: it is due.
    fn pause(&self, slept: Duration, left: Duration) -> Option<Duration> {
        let by_clock = left.saturating_sub(self.at_left);
        let soonest = RENEW_MIN.saturating_sub(slept);
        let by_sleep = self.after.saturating_sub(slept);
        let pause = by_sleep.min(by_clock.max(soonest));
        (!pause.is_zero()).then(|| pause.min(LOOK))
    }
}

/// Waits for half of what is left, or until another root signs.
async fn until_renewal(client: &Client) {
    let left = || {
        let present = client.credentials.borrow();
        present.as_ref().map_or(Duration::ZERO, |of| of.remaining())
    };
    let renewal = Renewal::new(left(), rand::rng().random_range(0.45..0.55));
    let began = Instant::now();
    while let Some(pause) = renewal.pause(began.elapsed(), left()) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = client.renew.notified() => {
                let spread = rand::rng().random_range(0.0..1.0);
                tokio::time::sleep(RENEW_SPREAD.mul_f64(spread)).await;
                return;
            }
        }
    }
}

/// Puts credentials in use.
pub fn install(client: &Client, credentials: Credentials) -> bool {
    let previous = client.mesh.tls.load_full();
    let tls = MeshTls::new(
        credentials.svid.clone(),
        credentials.trust.clone(),
        previous.as_deref(),
    );
    match tls {
        Ok(tls) => {
            client.mesh.set_tls(tls);
            let mut told = client.mesh.told.lock();
            told.certificate_expires = Some(credentials.expires);
            drop(told);
            client.credentials.send_replace(Some(Arc::new(credentials)));
            true
        }
        Err(error) => {
            let error = with_sources(&error);
            tracing::error!(%error, "what the controller sent cannot be used; the old certificate stays");
            false
        }
    }
}

/// The roots of the configuration, for who has not been told any.
fn trust_to_begin_with(client: &Client) -> Result<Trust, String> {
    let mesh = &client.mesh.config;
    let (roots, from) = match &mesh.trust_bundle {
        TrustBundle::File(path) => (
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>),
            path.display().to_string(),
        ),
        TrustBundle::Text(text) => (
            CertificateDer::pem_slice_iter(text.as_bytes()).collect(),
            "its text".to_owned(),
        ),
    };
    let roots = roots.map_err(|error| format!("settings.mesh.trustBundle: {from}: {error}"))?;
    if roots.is_empty() {
        return Err(format!(
            "settings.mesh.trustBundle: {from}: holds no certificate (PEM)"
        ));
    }
    Ok(Trust {
        domain: mesh.identity.trust_domain().to_owned(),
        roots,
        revocations: Vec::new(),
    })
}

/// Asks one controller, and tells why it gave nothing.
async fn sign(client: &Client, attempt: usize) -> Result<Credentials, ()> {
    let signed = match client.controllers.choose(attempt, None).await {
        Ok((controller, count)) => {
            // Every other round begins anew.
            let anew = (attempt / count.max(1)) % 2 == 1;
            let signed = try_sign(client, controller, anew).await;
            signed.map_err(|problem| format!("{controller}: {problem}"))
        }
        Err(problem) => Err(problem),
    };
    let mut told = client.mesh.told.lock();
    signed.inspect(|_| told.problem = None).map_err(|problem| {
        tracing::warn!(%problem, "no new certificate; trying again");
        told.problem = Some(problem);
    })
}

async fn try_sign(
    client: &Client,
    controller: SocketAddr,
    anew: bool,
) -> Result<Credentials, String> {
    let mesh = &client.mesh.config;
    // The certificate is the proof where there is one. `anew`: from the files, since
    // roots may have changed while nobody could be reached.
    let present = client.credentials.borrow().clone();
    let proof = present.filter(|present| !anew && !present.remaining().is_zero());
    let (trust, token, svid) = match &proof {
        Some(proof) => (proof.trust.clone(), String::new(), Some(proof.svid.clone())),
        None => (trust_to_begin_with(client)?, token(&mesh.token)?, None),
    };
    let (key, csr) = request(&mesh.identity).map_err(|error| error.to_string())?;
    let link = link::connect(controller, &trust, svid)
        .await
        .map_err(|error| with_sources(&error))?;
    let mut workloads = WorkloadsClient::with_origin(link, link::origin());
    let request = wire::SignRequest {
        csr,
        token,
        workload: mesh.workload.to_string(),
    };
    let signed = tokio::time::timeout(SIGN_TIMEOUT, workloads.sign(request))
        .await
        .map_err(|_| format!("the controller did not sign within {SIGN_TIMEOUT:?}"))?
        .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?
        .into_inner();
    let fresh = Credentials::new(&mesh.identity, &signed, key.clone())?;
    let expected = Peer {
        identity: mesh.identity.clone(),
        workload: Arc::clone(&mesh.workload),
        address: client.admin,
    };
    check_own(&fresh.svid, &fresh.trust, &expected).map_err(|error| with_sources(&error))?;
    if let Some(directory) = &mesh.state
        && let Err(error) = credentials::store(directory, &signed, &key)
    {
        tracing::warn!(directory = %directory.display(), %error, "cannot keep the certificate for a restart");
    }
    Ok(fresh)
}

/// A fresh key (PKCS#8) and a request to sign it.
fn request(identity: &SpiffeId) -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "");
    params
        .subject_alt_names
        .push(SanType::URI(identity.as_str().try_into()?));
    let csr = params.serialize_request(&key)?;
    Ok((key.serialize_der(), csr.der().to_vec()))
}

fn token(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map(|metadata| metadata.len());
    let text = match size {
        Ok(size) if size > TOKEN_BYTES_MAX => {
            return Err(format!(
                "settings.mesh.token: {}: is no token: too large",
                path.display()
            ));
        }
        Ok(_) => std::fs::read_to_string(path),
        Err(error) => Err(error),
    };
    match text {
        Ok(text) if text.trim().is_empty() => Err(format!(
            "settings.mesh.token: {}: is empty; make a token with `weft token`",
            path.display()
        )),
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(format!(
            "settings.mesh.token: {}: {error}; make a token with `weft token`",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn renewal_is_due_by_whichever_clock_is_first() {
        let renewal = Renewal::new(24 * HOUR, 0.5);
        let soon = Duration::from_secs(3);
        for (slept, left, pause) in [
            (Duration::ZERO, 24 * HOUR, Some(LOOK)),
            (11 * HOUR, 13 * HOUR, Some(LOOK)),
            (12 * HOUR - soon, 12 * HOUR + soon, Some(soon)),
            (12 * HOUR, 12 * HOUR, None),
            // Suspended for most of its life, or for more.
            (HOUR, 4 * HOUR, None),
            (HOUR, Duration::ZERO, None),
            (HOUR, 12 * HOUR + soon, Some(soon)),
            // A clock that was set back.
            (12 * HOUR - soon, 30 * HOUR, Some(soon)),
            (12 * HOUR, 30 * HOUR, None),
        ] {
            assert_eq!(renewal.pause(slept, left), pause, "{slept:?} {left:?}");
        }
    }

    #[test]
    fn renewals_keep_their_distance_whatever_the_clock_says() {
        for (installed, now) in [
            (Duration::ZERO, Duration::ZERO),
            (24 * HOUR, Duration::ZERO),
        ] {
            let renewal = Renewal::new(installed, 0.5);
            assert_eq!(renewal.pause(Duration::ZERO, now), Some(RENEW_MIN));
            assert_eq!(renewal.pause(RENEW_MIN, now), None);
        }
    }
}

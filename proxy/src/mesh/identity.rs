//! This workload's certificate: asked for with a proof, renewed at half of its
//! life with the old one as the proof, with a fresh key each time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use weft_config::spiffe::SpiffeId;
use weft_config::wire;

use super::credentials::{self, Credentials};
use super::{Backoff, Client, link};
use crate::health::with_sources;
use crate::net::tls::files::load_roots;
use crate::net::tls::mesh::{MeshTls, Trust};
use crate::services::workloads_client::WorkloadsClient;

/// When the signing root changed, everybody renews within this time.
const RENEW_SPREAD: Duration = Duration::from_secs(3);
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
    let mut backoff = Backoff::default();
    let mut attempt = 0;
    loop {
        if present {
            until_renewal(&client).await;
        }
        match sign(&client, attempt).await {
            Ok(fresh) => {
                backoff.reset();
                let expires_in = fresh.remaining();
                present = install(&client, fresh);
                client.shared.metrics.certificate_renewed("ok");
                tracing::info!(identity = %mesh.identity, ?expires_in, "new certificate");
            }
            Err(problem) => {
                attempt += 1;
                // What there is serves on, for as long as it is valid.
                present = false;
                client.shared.metrics.certificate_renewed("failed");
                tracing::warn!(
                    controller = link::controller(mesh, attempt - 1), %problem,
                    "no new certificate; trying again"
                );
                backoff.pause().await;
            }
        }
    }
}

/// Waits for half of what is left, or until another root signs.
async fn until_renewal(client: &Client) {
    let remaining = client
        .credentials
        .borrow()
        .as_ref()
        .map_or(Duration::ZERO, |present| present.remaining());
    let share = rand::rng().random_range(0.45..0.55);
    tokio::select! {
        () = tokio::time::sleep(remaining.mul_f64(share)) => {}
        () = client.renew.notified() => {
            let spread = rand::rng().random_range(0.0..1.0);
            tokio::time::sleep(RENEW_SPREAD.mul_f64(spread)).await;
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
            client.mesh.tls.store(Some(Arc::new(tls)));
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

/// Whom a controller is verified by: what we were told last, else the file.
pub fn trust(client: &Client) -> Result<Trust, String> {
    if let Some(present) = client.credentials.borrow().as_ref() {
        return Ok(present.trust.clone());
    }
    let mesh = &client.mesh.config;
    let roots = std::fs::read(&mesh.trust_bundle)
        .map_err(|error| format!("{}: {error}", mesh.trust_bundle.display()))
        .and_then(|pem| pem_certificates(&pem, &mesh.trust_bundle))?;
    // The loader's checks give better words than a handshake that fails.
    load_roots("settings.mesh.trustBundle", &mesh.trust_bundle)
        .map_err(|error| format!("{}: {}", error.file.display(), error.problem))?;
    Ok(Trust {
        domain: mesh.identity.trust_domain().to_owned(),
        roots,
        revocations: Vec::new(),
    })
}

fn pem_certificates(
    pem: &[u8],
    path: &Path,
) -> Result<Vec<rustls_pki_types::CertificateDer<'static>>, String> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{}: {error}", path.display()))
}

async fn sign(client: &Client, attempt: usize) -> Result<Credentials, String> {
    let mesh = &client.mesh.config;
    let trust = trust(client)?;
    let present = client.credentials.borrow().clone();
    let proof = present.filter(|present| !present.remaining().is_zero());
    let (key, csr) = request(&mesh.identity).map_err(|error| error.to_string())?;
    let token = if proof.is_some() {
        String::new()
    } else {
        token(&mesh.token)?
    };
    let svid = proof.map(|proof| proof.svid.clone());
    let link = link::connect(link::controller(mesh, attempt), &trust, svid)
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
    if let Some(directory) = &mesh.state
        && let Err(error) = credentials::store(directory, &signed, &key)
    {
        tracing::warn!(directory = %directory.display(), %error, "cannot keep the certificate for a restart");
    }
    Credentials::new(&mesh.identity, &signed, key)
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
            return Err(format!("{}: is no token: too large", path.display()));
        }
        Ok(_) => std::fs::read_to_string(path),
        Err(error) => Err(error),
    };
    match text {
        Ok(text) if text.trim().is_empty() => Err(format!(
            "{}: is empty; make a token with `weft token`",
            path.display()
        )),
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(format!(
            "{}: {error}; make a token with `weft token`",
            path.display()
        )),
    }
}

/// Tells the controller that the workload leaves; `None`: none could be told.
pub async fn leave(client: &Client, limit: Duration) -> Option<wire::LeaveResponse> {
    let present = client.credentials.borrow().clone()?;
    let telling = async {
        for attempt in 0..client.mesh.config.controllers.len() {
            let address = link::controller(&client.mesh.config, attempt);
            let svid = Some(present.svid.clone());
            let Ok(link) = link::connect(address, &present.trust, svid).await else {
                continue;
            };
            let mut workloads = WorkloadsClient::with_origin(link, link::origin());
            let mut request = tonic::Request::new(wire::LeaveRequest {});
            request.set_timeout(limit);
            match workloads.leave(request).await {
                Ok(response) => return Some(response.into_inner()),
                Err(status) => {
                    tracing::warn!(controller = address, code = ?status.code(), message = status.message(), "cannot tell the controller that we leave");
                }
            }
        }
        None
    };
    tokio::time::timeout(limit, telling).await.ok().flatten()
}

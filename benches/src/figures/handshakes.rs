//! Handshakes: new connections with mutual TLS 1.3 and one request each, to the side
//! of a pair that takes them: full ones, and resumed ones. The client checks nothing,
//! as its core is not measured; what is told is the CPU of the one that is asked.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rcgen::KeyPair;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme,
    StreamOwned,
};
use weft_config::spiffe::{SpiffeId, server_name};

use super::{Figure, Stage, admin, until, workload};
use crate::case::Mode;
use crate::load::tls::HOST;
use crate::mesh::{NAMESPACE, TRUST_DOMAIN};
use crate::process::{Cpu, Process};
use crate::subjects::{Setup, Side, Subject, command};

const THREADS: usize = 8;

/// Whom to connect to, and as whom.
struct Target {
    addr: SocketAddr,
    name: String,
    alpn: &'static [u8],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

pub fn take(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for subject in [
        Subject::Weft,
        Subject::Nginx,
        Subject::Haproxy,
        Subject::Envoy,
    ] {
        if !stage.options.hop.subjects.contains(&subject) {
            continue;
        }
        if subject == Subject::Weft {
            figures.extend(weft(stage)?);
        } else if let Ok(binary) = crate::peers::find(subject, &stage.options.hop) {
            figures.extend(peer(stage, subject, fs::canonicalize(binary)?)?);
        } else {
            eprintln!("{subject}: is not there");
        }
    }
    Ok(figures)
}

fn weft(stage: &Stage<'_>) -> Result<Vec<Figure>> {
    let (mesh, _controller) = stage.mesh()?;
    let asked = workload("asked", 10);
    let replica = stage.replica(&mesh, "asked", 10)?;
    mesh.service("up", "http", &[asked])?;
    let key = KeyPair::generate()?;
    let identity = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, "asking")?;
    let chain = mesh.sign(&key, &identity, "asking")?;
    let target = Target {
        addr: asked.inbound,
        name: server_name(asked.application.port(), "asked"),
        alpn: b"weft-http/1.1",
        chain: chain.into_iter().map(CertificateDer::from).collect(),
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    };
    until("the sidecar's own service", || {
        Ok(target.connect(&target.config(false)?).is_ok())
    })?;
    let figures = both(stage, Subject::Weft, &target, &replica.sidecar)?;
    let counted = super::metric(admin(10), "weft_mesh_handshakes_total", "result=\"ok\"")?;
    ensure!(counted > 0.0, "the sidecar counted no handshake");
    Ok(figures)
}

fn peer(stage: &Stage<'_>, subject: Subject, binary: std::path::PathBuf) -> Result<Vec<Figure>> {
    let upstream = workload("upstream", 10);
    let _application = stage.application(upstream)?;
    let listen = workload("peer", 11).inbound;
    let setup = Setup {
        mode: Mode::Http1,
        side: Side::Server,
        between: Mode::Http1,
        listen,
        upstream: upstream.application,
        admin: admin(11),
        controller: listen,
        controller_admin: listen,
        folder: stage.folder.clone(),
        binary,
    };
    let process = stage.start(
        subject.name(),
        &command(subject, &setup)?,
        stage.options.hop.subject_core,
    )?;
    let target = Target {
        addr: listen,
        name: HOST.to_owned(),
        alpn: b"http/1.1",
        chain: vec![CertificateDer::from_pem_file(
            stage.folder.join("client.pem"),
        )?],
        key: PrivateKeyDer::from_pem_file(stage.folder.join("client-key.pem"))?,
    };
    until("a peer", || {
        Ok(target.connect(&target.config(false)?).is_ok())
    })?;
    both(stage, subject, &target, &process)
}

fn both(
    stage: &Stage<'_>,
    subject: Subject,
    target: &Target,
    process: &Process,
) -> Result<Vec<Figure>> {
    [
        ("mesh-handshake-full", false),
        ("mesh-handshake-resumed", true),
    ]
    .into_iter()
    .map(|(case, resumed)| {
        let length = Duration::from_secs_f64(stage.options.hop.seconds);
        let (count, elapsed, (user, system)) = measure(target, process, resumed, length)?;
        let cpu = (user + system) / count as f64;
        let mut figure = Figure::new(case, 1e6 / cpu, "/s of one core");
        figure.subject = subject.name().to_owned();
        figure.beside.insert("cpu_us", cpu);
        figure
            .beside
            .insert("measured_per_second", count as f64 / elapsed.as_secs_f64());
        Ok(figure)
    })
    .collect()
}

fn measure(
    target: &Target,
    process: &Process,
    resumed: bool,
    length: Duration,
) -> Result<(u64, Duration, (f64, f64))> {
    let (count, wrong, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let expected = if resumed {
        HandshakeKind::Resumed
    } else {
        HandshakeKind::Full
    };
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for _thread in 0..THREADS {
            threads.push(scope.spawn(|| -> Result<()> {
                let config = target.config(resumed)?;
                // The first gets the ticket.
                target.connect(&config)?;
                while !ended.load(Ordering::Relaxed) {
                    let kind = target.connect(&config)?;
                    count.fetch_add(1, Ordering::Relaxed);
                    // X25519 only at the peer costs a full one no more than a round trip.
                    let full = kind == HandshakeKind::FullWithHelloRetryRequest;
                    let kind = if full { HandshakeKind::Full } else { kind };
                    wrong.fetch_add(u64::from(kind != expected), Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        let watched = (|| {
            thread::sleep(length / 5);
            let (before, first, start) = (
                process.cpu()?,
                count.load(Ordering::Relaxed),
                Instant::now(),
            );
            thread::sleep(length);
            let after: Cpu = process.cpu()?;
            let made = count.load(Ordering::Relaxed) - first;
            Ok((made, start.elapsed(), after.since(before)))
        })();
        ended.store(true, Ordering::Relaxed);
        for thread in threads {
            thread
                .join()
                .map_err(|_panic| anyhow::anyhow!("a client panicked"))??;
        }
        let wrong = wrong.load(Ordering::Relaxed);
        ensure!(
            wrong == 0,
            "{wrong} of {} handshakes were not {expected:?}",
            count.load(Ordering::Relaxed)
        );
        watched
    })
}

impl Target {
    fn config(&self, resumed: bool) -> Result<Arc<ClientConfig>> {
        let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![self.alpn.to_vec()];
        if !resumed {
            config.resumption = Resumption::disabled();
        }
        Ok(Arc::new(config))
    }

    /// One connection and its one request.
    fn connect(&self, config: &Arc<ClientConfig>) -> Result<HandshakeKind> {
        let name = ServerName::try_from(self.name.clone())?;
        let tcp = TcpStream::connect(self.addr)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, tcp);
        write!(
            stream,
            "GET /64 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        // Not everybody says goodbye.
        let read = stream.read_to_end(&mut answer);
        ensure!(
            answer.starts_with(b"HTTP/1.1 200 "),
            "{read:?} {}",
            String::from_utf8_lossy(&answer)
        );
        stream
            .conn
            .handshake_kind()
            .context("a handshake that is over")
    }
}

/// Believes everybody.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _stapled: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

//! Puts the controller together: the source, the authority, the ports.

mod admin;
mod args;
mod injection;
mod statuses;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

pub use args::Args;

use crate::admission::bundle;
use crate::ca::Ca;
use crate::ca::place::Place;
use crate::ca::proof::Prover;
use crate::ca::review::Reviewer;
use crate::ca::token;
use crate::discovery::hub::Hub;
use crate::discovery::serve;
use crate::source::{Source, kubernetes};
use admin::Pages;
use injection::Injection;
use statuses::{Statuses, Teller};

/// What the client of the API server says of each failed request we say once, in `source`.
const LOGGED: &str = "info,kube_client=off,kube_runtime=off";

/// How often it is looked who has lost the right to a stream.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

pub fn run(args: &Args) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(LOGGED)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(serve_all(args)),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every connection needs a descriptor; the soft limit is a default for programs that
/// use select(2), not a decision about us.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the file-descriptor limit to its hard limit");
    }
}

async fn serve_all(args: &Args) -> anyhow::Result<()> {
    let admin = TcpListener::bind(args.admin())
        .await
        .with_context(|| format!("--admin {}", args.admin()))?;
    let admins = admin.local_addr()?;
    let pages = Arc::new(Pages::default());
    let statuses = OnceLock::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = Box::pin(live(args, &pages, &statuses, admins)) => ended?,
        () = admin::serve(admin, Arc::clone(&pages)) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if let Some(statuses) = statuses.get() {
        Statuses::release(statuses).await;
    }
    tracing::info!("the end; proxies go on with what they know");
    Ok(())
}

/// From the first object to the end. Proxies are served once all there is is known.
async fn live(
    args: &Args,
    pages: &Pages,
    statuses: &OnceLock<Statuses>,
    admins: SocketAddr,
) -> anyhow::Result<()> {
    let client = match args.kubernetes {
        true => Some(kubernetes::client().await?),
        false => None,
    };
    let (mut source, hub, place) = begin(args, client.as_ref()).await?;
    pages.begun(&hub);
    let statuses = client
        .as_ref()
        .map(|client| statuses.get_or_init(|| Statuses::new(client, &args.cluster, &hub)));
    if let Some(statuses) = statuses {
        pages.writes(statuses.writer());
    }
    let teller = statuses.map(Statuses::teller);
    while !take(&mut source, &hub, teller.as_ref()).await {}
    let listener = TcpListener::bind(args.listen())
        .await
        .with_context(|| format!("--listen {}", args.listen()))?;
    let listens = listener.local_addr()?;
    let tls = Arc::new(ArcSwap::new(serve::tls(&hub)?));
    let injection = Injection::open(args, &hub).await?;
    pages.ready();
    if let Some(path) = &args.ready_file {
        let webhook = injection.as_ref().map(Injection::address).transpose()?;
        let text = serde_json::json!({"listen": listens, "admin": admins, "webhook": webhook});
        crate::ca::write(path, text.to_string().as_bytes(), 0o644)?;
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %listens, admin = %admins, "ready");
    tokio::select! {
        ended = serve::run(listener, Arc::clone(&hub), Arc::clone(&tls)) => ended?,
        () = follow(source, Arc::clone(&hub), teller) => {}
        () = write(statuses, &hub) => {}
        () = renew(Arc::clone(&hub), place, tls, injection.as_ref()) => {}
        () = inject(args, injection.as_ref().zip(client), &hub.ca) => {}
    }
    Ok(())
}

/// Answers the API server, which is told whom to believe.
async fn inject(args: &Args, injection: Option<(&Injection, kube::Client)>, ca: &Ca) {
    let Some((injection, client)) = injection else {
        return std::future::pending().await;
    };
    let configuration = &args.injection.webhook_configuration;
    tokio::select! {
        () = injection.run() => {}
        () = bundle::keep(client, configuration, ca) => {}
    }
}

/// The source and the authority.
async fn begin(args: &Args, client: Option<&Client>) -> anyhow::Result<(Source, Arc<Hub>, Place)> {
    let (domain, life) = (
        args.trust_domain.as_str(),
        Duration::from_secs(args.certificate_ttl.max(2)),
    );
    let (ca, place, prover) = match (&args.ca_dir, client) {
        (Some(directory), _) => {
            let (ca, place) = Place::directory(directory, domain, life)?;
            (ca, place, Prover::from(token::Verifier::open(directory)?))
        }
        (None, Some(client)) => {
            let secret = (&*args.cluster.namespace, &*args.cluster.ca_secret);
            let (ca, place) = Place::secret(client.clone(), secret, domain, life).await?;
            (ca, place, Prover::from(Reviewer::new(client.clone())))
        }
        (None, None) => bail!("--ca-dir is missing: where the certificate authority is kept"),
    };
    let hub = Arc::new(Hub::new(ca, prover));
    let source = match (&args.manifests, client) {
        (Some(path), _) => Source::directory(path),
        (None, Some(client)) => Source::kubernetes(client, &hub.behind()),
        (None, None) => bail!("--manifests is missing: where the objects are"),
    };
    Ok((source, hub, place))
}

/// Takes up what the source has; whether all there is has been read once.
async fn take(source: &mut Source, hub: &Hub, teller: Option<&Teller>) -> bool {
    let update = source.next().await;
    let is_complete = update.is_complete;
    match teller {
        Some(teller) => teller.take(hub, update),
        None => drop(hub.update(update.changes, update.errors)),
    }
    is_complete
}

async fn follow(mut source: Source, hub: Arc<Hub>, mut teller: Option<Teller>) {
    loop {
        let Some(teller) = &mut teller else {
            take(&mut source, &hub, None).await;
            continue;
        };
        tokio::select! {
            update = source.next() => teller.take(&hub, update),
            () = teller.turned(&hub) => {}
        }
    }
}

async fn write(statuses: Option<&Statuses>, hub: &Hub) {
    match statuses {
        Some(statuses) => statuses.run(hub).await,
        None => std::future::pending().await,
    }
}

/// Takes up new files of the authority, and renews our own certificate.
async fn renew(
    hub: Arc<Hub>,
    mut place: Place,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    injection: Option<&Injection>,
) {
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let interval = serve::RENEW_INTERVAL.min(hub.ca.life / 3);
    let mut renewal = tokio::time::interval_at(Instant::now() + interval, interval);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let changed = tokio::select! {
            taken = place.follow(&hub.ca) => taken,
            _ = renewal.tick() => false,
            _ = sweep.tick() => {
                hub.sweep();
                hub.review_watches();
                continue;
            }
        };
        match serve::tls(&hub) {
            Ok(config) => tls.store(config),
            Err(error) => tracing::error!(%error, "no new certificate of our own"),
        }
        if let Some(injection) = injection {
            injection.renew(&hub.ca);
        }
        if changed {
            hub.trust_changed();
            hub.sweep();
        }
    }
}

//! Whether the application answers, as a kubelet's readiness probe finds out,
//! and saying so in the manifest.

use std::convert::Infallible;
use std::future::pending;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::manifest::{self, Standing};
use super::plan::Plan;
use super::say;
use super::sidecar::Sidecar;
use crate::admin;

/// How often it is asked until it is ready, and from then on.
const STARTING_INTERVAL: Duration = Duration::from_millis(100);
const READY_INTERVAL: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// So many silent probes in a row, and it is ready no more.
const SILENT_MAX: u32 = 3;
/// How often it is told that it still is not ready.
const TOLD_INTERVAL: Duration = Duration::from_secs(10);

/// What a probe met with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Probe {
    Answered,
    /// Nobody listens, or it says itself that it is not ready.
    Refused(String),
    /// It may be busy only.
    Silent(String),
}

/// What the probes say in sum. Pure.
#[derive(Debug, Default)]
struct Readiness {
    ready: bool,
    silent: u32,
}

impl Readiness {
    fn observe(&mut self, probe: &Probe) -> bool {
        self.silent = match probe {
            Probe::Silent(_) => self.silent.saturating_add(1),
            _ => 0,
        };
        self.ready = match probe {
            Probe::Answered => true,
            Probe::Refused(_) => false,
            Probe::Silent(_) => self.ready && self.silent < SILENT_MAX,
        };
        self.ready
    }
}

/// The workload's place in the manifests, if it is kept there.
pub struct Rotation<'a> {
    plan: &'a Plan,
    readiness: Readiness,
    written: Option<Standing>,
}

impl<'a> Rotation<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            readiness: Readiness::default(),
            written: None,
        }
    }

    /// Keeps the manifest as the application and its sidecar are.
    pub async fn follow(&mut self, sidecar: &Sidecar) -> Infallible {
        let Some(application) = self.plan.application().filter(|_| self.is_kept()) else {
            return pending().await;
        };
        self.publish(Standing::NotReady, "");
        let mut told = Instant::now();
        loop {
            let probe = self.probe(application).await;
            let ready = self.readiness.observe(&probe);
            let why = match &probe {
                _ if ready && !sidecar.is_serving() => "the sidecar does not serve yet",
                Probe::Refused(why) | Probe::Silent(why) => why,
                Probe::Answered => "",
            };
            let standing = match ready && sidecar.is_serving() {
                true => Standing::Ready,
                false => Standing::NotReady,
            };
            self.publish(standing, &format!("{application}: {why}"));
            if standing == Standing::Ready {
                told = Instant::now();
            } else if told.elapsed() >= TOLD_INTERVAL {
                told = Instant::now();
                say(&format!("still not in rotation: {application}: {why}"));
            }
            sleep(if ready {
                READY_INTERVAL
            } else {
                STARTING_INTERVAL
            })
            .await;
        }
    }

    /// The workload leaves; `serving`: it still answers.
    pub fn leave(&mut self, serving: bool) {
        if self.is_kept() {
            let standing = match serving && self.written == Some(Standing::Ready) {
                true => Standing::Leaving,
                false => Standing::NotReady,
            };
            self.publish(standing, "it has ended");
        }
    }

    fn is_kept(&self) -> bool {
        self.plan.manifest.is_some()
    }

    fn publish(&mut self, standing: Standing, why: &str) {
        let Some(path) = &self.plan.manifest else {
            return;
        };
        if self.written == Some(standing) {
            return;
        }
        if let Err(error) = manifest::write(path, &manifest::text(self.plan, standing)) {
            // The next look tries again.
            say(&format!("writing {}: {error}", path.display()));
            return;
        }
        let service = self.plan.arguments.service.as_deref().unwrap_or_default();
        match (self.written.replace(standing), standing) {
            (_, Standing::Ready) => say(&format!("in rotation as an endpoint of {service}")),
            (None, _) | (_, Standing::Leaving) => {}
            (Some(_), Standing::NotReady) => say(&format!("out of rotation: {why}")),
        }
    }

    async fn probe(&self, application: SocketAddr) -> Probe {
        let Some(path) = &self.plan.arguments.ready_path else {
            return connect(application).await;
        };
        match admin::ask(&Method::GET, application, path, PROBE_TIMEOUT).await {
            Ok(page) if page.status.is_success() => Probe::Answered,
            Ok(page) => Probe::Refused(format!("{path} answers {}", page.status)),
            Err(error) => Probe::Silent(format!("{error:#}")),
        }
    }
}

impl Drop for Rotation<'_> {
    fn drop(&mut self) {
        if let Some(path) = &self.plan.manifest {
            // An error: there is nothing to remove, or nobody to tell.
            let _gone = std::fs::remove_file(path);
        }
    }
}

async fn connect(application: SocketAddr) -> Probe {
    match timeout(PROBE_TIMEOUT, TcpStream::connect(application)).await {
        Ok(Ok(_)) => Probe::Answered,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            Probe::Refused("nobody listens there".to_owned())
        }
        Ok(Err(error)) => Probe::Silent(error.to_string()),
        Err(_) => Probe::Silent(format!("no connection within {PROBE_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_counts_at_once_and_silence_after_a_while() {
        let silent = Probe::Silent(String::new());
        let refused = Probe::Refused(String::new());
        let mut readiness = Readiness::default();
        for (probe, ready) in [
            (&silent, false),
            (&refused, false),
            (&Probe::Answered, true),
            (&silent, true),
            (&silent, true),
            (&Probe::Answered, true),
            (&silent, true),
            (&silent, true),
            (&silent, false),
            (&silent, false),
            (&Probe::Answered, true),
            (&refused, false),
        ] {
            assert_eq!(readiness.observe(probe), ready, "{probe:?}");
        }
    }
}

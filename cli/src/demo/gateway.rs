//! The gateway: a weft-proxy at the store's door. Starting it, having it replace itself, ending it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::Signal;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use super::metrics;
use super::processes::{self, Group};

const NAME: &str = "weft-proxy";
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The new process appears within this, and the old one's drain (10 s) is over within this.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Gateway {
    /// The process that we started, while it runs.
    child: Option<Child>,
    /// The one that serves now: the child, or what replaced it.
    pid: u32,
    admin: SocketAddr,
    log: PathBuf,
    told: Instant,
}

impl Gateway {
    pub async fn start(
        group: &Group,
        command: Command,
        log: &Path,
        admin: SocketAddr,
    ) -> Result<Self> {
        let child = group.start(command, log)?;
        let mut gateway = Self {
            pid: child.id().unwrap_or_default(),
            child: Some(child),
            admin,
            log: log.to_owned(),
            told: Instant::now(),
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while !metrics::is_ready(admin).await {
            let child = gateway.child.as_mut();
            let ended = child.map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                bail!("{NAME} ended ({status}); {}", gateway.log_end());
            }
            if Instant::now() > deadline {
                bail!(
                    "http://{admin}/ready does not answer 200 within {START_TIMEOUT:?}; {}",
                    gateway.log_end()
                );
            }
            sleep(LOOK_INTERVAL).await;
        }
        Ok(gateway)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells the process to replace itself, and returns the new one's pid once that is ready.
    pub async fn begin_handover(&mut self) -> Result<u32> {
        self.told = Instant::now();
        processes::signal(self.pid, Signal::USR2)?;
        while self.told.elapsed() < HANDOVER_TIMEOUT {
            let mut children = processes::children(self.pid).into_iter();
            if let Some((new, _)) = children.find(|(_, name)| name == NAME)
                && metrics::is_ready(self.admin).await
            {
                return Ok(new);
            }
            sleep(LOOK_INTERVAL).await;
        }
        bail!(
            "no new {NAME} is ready {HANDOVER_TIMEOUT:?} after SIGUSR2; {}",
            self.log_end()
        )
    }

    /// Waits until the old process has left; returns how long it took since the signal.
    pub async fn end_handover(&mut self, new: u32) -> Result<Duration> {
        let left = match self.child.as_mut() {
            Some(child) => timeout(HANDOVER_TIMEOUT, child.wait()).await.is_ok(),
            None => processes::ended_within(self.pid, HANDOVER_TIMEOUT).await,
        };
        if !left {
            bail!(
                "the old {NAME} (pid {}) still runs {HANDOVER_TIMEOUT:?} after its replacement was ready; {}",
                self.pid,
                self.log_end()
            );
        }
        self.child = None;
        self.pid = new;
        Ok(self.told.elapsed())
    }

    pub async fn end(&mut self) -> Result<()> {
        match &mut self.child {
            Some(child) => processes::end(child).await,
            None => processes::end_adopted(self.pid).await,
        }
    }

    fn log_end(&self) -> String {
        processes::log_end(&self.log)
    }
}

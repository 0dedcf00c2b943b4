//! The weft-proxy of the demo: finding its binary, starting it, having it
//! replace itself, ending it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use rustix::process::Signal;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use super::load::Http1;
use super::processes::{self, Group};

const NAME: &str = "weft-proxy";
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// The new process appears within this, and the old one's drain (10 s) is over within this.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(15);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Proxy {
    /// The process that we started, while it runs.
    child: Option<Child>,
    /// The one that serves now: the child, or what replaced it.
    pid: u32,
    admin: SocketAddr,
    log: PathBuf,
    told: Instant,
}

/// The binary that was asked for, or the one beside this program.
pub fn find(asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = asked {
        return path
            .canonicalize()
            .with_context(|| format!("finding {} (--proxy)", path.display()));
    }
    let own = std::env::current_exe().context("finding this program's own file")?;
    let path = own.with_file_name(NAME);
    if !path.is_file() {
        bail!(
            "there is no {NAME} beside {}: build it (cargo build --release -p weft-proxy, which `make demo` does) or name one by --proxy",
            own.display()
        );
    }
    Ok(path)
}

impl Proxy {
    pub async fn start(
        group: &Group,
        command: Command,
        log: &Path,
        admin: SocketAddr,
    ) -> Result<Self> {
        let child = group.start(command, log)?;
        let mut proxy = Self {
            pid: child.id().unwrap_or_default(),
            child: Some(child),
            admin,
            log: log.to_owned(),
            told: Instant::now(),
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while !proxy.is_ready().await {
            let ended = proxy
                .child
                .as_mut()
                .map(Child::try_wait)
                .transpose()?
                .flatten();
            if let Some(status) = ended {
                bail!("{NAME} ended ({status}); {}", proxy.log_end());
            }
            if Instant::now() > deadline {
                bail!(
                    "http://{admin}/ready does not answer 200 within {START_TIMEOUT:?}; {}",
                    proxy.log_end()
                );
            }
            sleep(LOOK_INTERVAL).await;
        }
        Ok(proxy)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells the process to replace itself, and returns the new one's pid once that is ready.
    pub async fn begin_handover(&mut self, group: &Group) -> Result<u32> {
        self.told = Instant::now();
        processes::signal(self.pid, Signal::USR2)?;
        while self.told.elapsed() < HANDOVER_TIMEOUT {
            let new = group.named(NAME).into_iter().find(|pid| *pid != self.pid);
            if let Some(new) = new
                && self.is_ready().await
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

    async fn is_ready(&self) -> bool {
        let Ok(request) = Request::get("/ready").body(Full::<Bytes>::default()) else {
            return false;
        };
        let answer = Http1::new(self.admin, false).call(request).await;
        answer.is_ok_and(|answer| answer.status.is_success())
    }

    fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        let lines = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("the end of {}:\n{lines}", self.log.display())
    }
}

//! The controller of the demo's mesh: starting it, killing it, starting it again, what it says of itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::process::Child;
use tokio::time::{Instant, sleep};
use weft_config::status::Status;

use super::metrics;
use super::processes::{self, Group};

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// What is written is in force within this on however slow a machine.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(30);
const DISCOVERY_PORT: u16 = 14_010;
const ADMIN_PORT: u16 = 14_021;

#[derive(Debug)]
pub struct Controller {
    binary: PathBuf,
    folder: PathBuf,
    address: Ipv4Addr,
    child: Option<Child>,
}

impl Controller {
    pub fn new(binary: &Path, folder: &Path, address: Ipv4Addr) -> Self {
        Self {
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            address,
            child: None,
        }
    }

    pub fn listen(&self) -> SocketAddr {
        (self.address, DISCOVERY_PORT).into()
    }

    fn admin(&self) -> SocketAddr {
        (self.address, ADMIN_PORT).into()
    }

    pub fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca")
    }

    /// Starts it, where it was before; its pid once it serves.
    pub async fn start(&mut self, group: &Group) -> Result<u32> {
        let mut command = Command::new(&self.binary);
        command.arg("--manifests").arg(self.manifests());
        command.arg("--ca-dir").arg(self.authority());
        command.arg("--listen").arg(self.listen().to_string());
        command.arg("--admin").arg(self.admin().to_string());
        let log = self.folder.join("controller.log");
        let mut child = group.start(command, &log)?;
        let deadline = Instant::now() + START_TIMEOUT;
        while !metrics::is_ready(self.admin()).await {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let how = ended.map_or("is not ready".to_owned(), |how| format!("ended ({how})"));
                bail!("weft-controller {how}; {}", processes::log_end(&log));
            }
            sleep(LOOK_INTERVAL).await;
        }
        let pid = child.id().context("it runs")?;
        self.child = Some(child);
        Ok(pid)
    }

    /// Ends it as a crash would; the pid that it had.
    pub async fn kill(&mut self) -> Result<u32> {
        let mut child = self.child.take().context("the controller runs")?;
        let pid = child.id().context("it runs")?;
        processes::signal(pid, Signal::KILL)?;
        child.wait().await?;
        Ok(pid)
    }

    pub async fn end(&mut self) -> Result<()> {
        match &mut self.child {
            Some(child) => processes::end(child).await,
            None => Ok(()),
        }
    }

    pub async fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(
            &metrics::page(self.admin(), "/status").await?,
        )?)
    }

    /// Waits until it says so; what it said then.
    pub async fn awaits(&self, what: &str, so: impl Fn(&Status) -> bool) -> Result<Status> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        while Instant::now() < deadline {
            // One that has just been started may not answer yet.
            if let Ok(status) = self.status().await
                && so(&status)
            {
                return Ok(status);
            }
            sleep(LOOK_INTERVAL).await;
        }
        bail!(
            "the controller does not say within {CHANGE_TIMEOUT:?} that {what}; {}",
            processes::log_end(&self.folder.join("controller.log"))
        )
    }
}

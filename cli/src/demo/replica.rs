//! A replica of a service: `weft run` with the application, and what can be done to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::process::Child;
use tokio::time::{Instant, timeout, timeout_at};

use super::addresses::ADMIN_PORT;
use super::manifests::NAMESPACE;
use super::processes::{self, Group};
use super::programs::{Application, CANARY, Programs, Service, application};

/// The barrier's own bounds are some ten seconds each.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a replica is to be.
#[derive(Clone, Debug)]
pub struct Role {
    pub service: Service,
    pub version: u32,
    /// It is an endpoint of the catalogue's next version.
    pub canary: bool,
}

impl Role {
    pub fn new(service: Service, version: u32) -> Self {
        Self {
            service,
            version,
            canary: false,
        }
    }

    /// The Kubernetes Service that it serves.
    pub fn endpoint_of(&self) -> &'static str {
        if self.canary {
            CANARY
        } else {
            self.service.name()
        }
    }
}

#[derive(Debug)]
pub struct Replica {
    pub role: Role,
    pub name: String,
    pub address: Ipv4Addr,
    log: PathBuf,
    child: Child,
}

/// What every replica is started with.
#[derive(Debug)]
pub struct Surroundings<'a> {
    pub group: &'a Group,
    pub programs: &'a Programs,
    /// Where replicas have their folders.
    pub folder: &'a Path,
    pub controller: SocketAddr,
    pub manifests: PathBuf,
    pub authority: PathBuf,
}

impl Replica {
    /// Starts one; it takes its place in the rotation by itself.
    pub fn start(
        with: &Surroundings<'_>,
        role: Role,
        name: &str,
        address: Ipv4Addr,
    ) -> Result<Self> {
        let folder = with.folder.join(name);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("creating {}", folder.display()))?;
        let log = folder.join("log");
        let mut command = Command::new(&with.programs.weft);
        command.arg("run").args(["--namespace", NAMESPACE]);
        command.args(["--service-account", role.service.name()]);
        command.args(["--workload", name]);
        command.args(["--address", &address.to_string()]);
        if role.service == Service::Frontend {
            for called in Service::CALLED {
                let way = SocketAddr::from((address, called.way_port()));
                command.args(["--upstream", &format!("{way}={}", called.destination())]);
            }
        }
        command.args(["--controller", &with.controller.to_string()]);
        command.arg("--ca-dir").arg(&with.authority);
        command.arg("--proxy").arg(&with.programs.proxy);
        command.arg("--manifests").arg(&with.manifests);
        command.args(["--service", role.endpoint_of()]);
        let listen = application(address);
        command.args(["--port", &listen.port().to_string()]);
        command.args(["--ready-path", "/health", "--"]);
        let program = with.programs.command(
            role.service,
            &Application {
                address: listen,
                version: role.version,
                folder: &folder,
            },
        )?;
        command.arg(program.get_program()).args(program.get_args());
        Ok(Self {
            role,
            name: name.to_owned(),
            address,
            child: with.group.start(command, &log)?,
            log,
        })
    }

    /// Where its application listens.
    pub fn application(&self) -> SocketAddr {
        application(self.address)
    }

    /// Where its sidecar says what it does.
    pub fn admin(&self) -> SocketAddr {
        (self.address, ADMIN_PORT).into()
    }

    /// An error once it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status}); {}", self.name, self.log_end()),
        }
    }

    /// SIGTERM, as from whoever runs it.
    pub fn tell(&self) -> Result<()> {
        processes::signal(self.child.id().context("it runs")?, Signal::TERM)
    }

    /// The same until it has ended: the barrier first, then the application's end, at once.
    pub async fn leave(&mut self) -> Result<()> {
        self.tell()?;
        self.ended().await.map(|_status| ())
    }

    /// Kills its application as a crash would, and returns that one's pid.
    pub fn kill_application(&self) -> Result<u32> {
        let run = self.child.id().context("it runs")?;
        let ours = ["weft", "weft-proxy"];
        let mut children = processes::children(run).into_iter();
        let application = children.find(|(_, name)| !ours.contains(&name.as_str()));
        let (pid, _) = application.with_context(|| format!("{} has no application", self.name))?;
        processes::signal(pid, Signal::KILL)?;
        Ok(pid)
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        match timeout(LEAVE_TIMEOUT, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!(
                "{} still runs after {LEAVE_TIMEOUT:?}; {}",
                self.name,
                self.log_end()
            ),
        }
    }

    /// Waits for its end until this moment, then kills it.
    pub async fn end_by(&mut self, deadline: Instant) -> Result<()> {
        if timeout_at(deadline, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }

    pub fn log_end(&self) -> String {
        processes::log_end(&self.log)
    }
}

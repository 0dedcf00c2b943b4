//! The store: its replicas, its gateway, its controller, and the steps that acts are made of. Owns every
//! process; what is done in which order is `acts`'.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};
use weft_controller::ca::token;

use super::addresses::{ADMIN_PORT, Subnet};
use super::board::{Board, Life, ReplicaRow, Tone};
use super::controller::Controller;
use super::gateway::Gateway;
use super::manifests;
use super::metrics;
use super::processes::Group;
use super::programs::{Programs, Service};
use super::replica::{Replica, Role, Surroundings};

/// A replica that is not in rotation after this will never be.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long replicas may take to end when the demo does.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// Of the gateway's join token.
const TOKEN_LIFE: Duration = Duration::from_secs(120);
/// How often something awaited is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Where to ask what is known of the services: the sidecars of those who call.
pub type Callers = Arc<Mutex<Vec<SocketAddr>>>;

/// All of the demo's processes.
#[derive(Debug)]
pub struct Stage {
    folder: PathBuf,
    programs: Programs,
    pub(super) board: Arc<Board>,
    pub(super) replicas: Vec<Replica>,
    /// How many replicas of each service there have been.
    numbers: HashMap<&'static str, u32>,
    pub(super) gateway: Option<Gateway>,
    pub(super) controller: Controller,
    pub(super) subnet: Subnet,
    pub callers: Callers,
    /// The last, so that it is dropped when all others are: it kills what is left.
    pub(super) group: Group,
}

impl Stage {
    pub fn new(folder: &Path, programs: Programs, board: Arc<Board>) -> Result<Self> {
        // What an earlier demo left.
        for left in ["manifests", "ca", "replicas", "gateway"] {
            let left = folder.join(left);
            if left.exists() {
                fs::remove_dir_all(&left)
                    .with_context(|| format!("removing {}", left.display()))?;
            }
            fs::create_dir(&left).with_context(|| format!("creating {}", left.display()))?;
        }
        let log = folder.join("controller.log");
        if log.exists() {
            fs::remove_file(&log).with_context(|| format!("removing {}", log.display()))?;
        }
        let subnet = Subnet::claim()?;
        Ok(Self {
            controller: Controller::new(&programs.controller, folder, subnet.controller()),
            folder: folder.to_owned(),
            programs,
            board,
            replicas: Vec::new(),
            numbers: HashMap::new(),
            gateway: None,
            subnet,
            callers: Callers::default(),
            group: Group::new()?,
        })
    }

    /// Where the store takes requests.
    pub fn listen(&self) -> SocketAddr {
        self.subnet.store()
    }

    /// Starts all there is.
    pub async fn open(&mut self) -> Result<()> {
        self.board
            .doing("starting controller, replicas and gateway");
        self.write(manifests::STORE, &manifests::store())?;
        let controller = self.controller.start(&self.group).await?;
        for service in Service::ALL {
            for _ in 0..service.replicas() {
                self.start(Role::new(service, 1))?;
            }
        }
        let gateway = self.start_gateway().await?;
        self.gateway = Some(gateway);
        let addresses: Vec<Ipv4Addr> = self.replicas.iter().map(|of| of.address).collect();
        for address in addresses {
            self.await_rotation(address).await?;
        }
        let text = format!(
            "open: {} replicas, each with a sidecar; weft-controller has pid {controller}",
            self.replicas.len()
        );
        self.board.tell(Tone::Plain, text);
        Ok(())
    }

    async fn start_gateway(&self) -> Result<Gateway> {
        let folder = self.folder.join("gateway");
        let authority = self.controller.authority();
        let who = (manifests::NAMESPACE, manifests::GATEWAY, manifests::GATEWAY);
        let token = token::mint(&authority, who, TOKEN_LIFE, 1).context("the gateway's token")?;
        let token_file = folder.join("token");
        fs::write(&token_file, token).context("writing the gateway's token")?;
        let gateway = manifests::Gateway {
            subnet: &self.subnet,
            controller: self.controller.listen(),
            trust: authority.join("trust.pem"),
            token: token_file,
            state: folder.join("state"),
        };
        let file = folder.join("weft.json");
        manifests::write(&file, &format!("{:#}\n", gateway.configuration()))?;
        let mut command = Command::new(&self.programs.proxy);
        command.arg("--config").arg(&file);
        command.args(["--log-level", "info"]);
        let admin = self.gateway_admin();
        Gateway::start(&self.group, command, &folder.join("log"), admin).await
    }

    pub(super) fn gateway_admin(&self) -> SocketAddr {
        (self.subnet.gateway(), ADMIN_PORT).into()
    }

    /// Writes a file of the controller's directory.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        manifests::write(&self.controller.manifests().join(name), text)
    }

    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.controller.manifests().join(name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// Starts a replica, and returns its address; it is not in rotation yet.
    pub(super) fn start(&mut self, role: Role) -> Result<Ipv4Addr> {
        let number = self.numbers.entry(role.endpoint_of()).or_default();
        *number += 1;
        let name = format!("{}-{number}", role.endpoint_of());
        let address = self.subnet.replica()?;
        let with = Surroundings {
            group: &self.group,
            programs: &self.programs,
            folder: &self.folder.join("replicas"),
            controller: self.controller.listen(),
            manifests: self.controller.manifests(),
            authority: self.controller.authority(),
        };
        let replica = Replica::start(&with, role.clone(), &name, address)?;
        self.board.add_replica(ReplicaRow {
            service: role.service,
            name,
            version: role.version,
            address: replica.application(),
            life: Life::Starting,
            ended: None,
            served: 0,
        });
        self.replicas.push(replica);
        self.publish_callers();
        Ok(address)
    }

    /// Waits until everybody who calls its service would pick the replica.
    pub(super) async fn await_rotation(&mut self, address: Ipv4Addr) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let place = self.place(address)?;
        let replica = self.replicas.get_mut(place).context("it is there")?;
        let (application, service) = (replica.application(), replica.role.service);
        let callers = self.callers_of(service);
        for caller in callers {
            loop {
                let known = metrics::available(caller).await.unwrap_or_default();
                if known.contains(&application) {
                    break;
                }
                let replica = self.replicas.get_mut(place).context("it is there")?;
                replica.check()?;
                if Instant::now() > deadline {
                    bail!(
                        "{} is not in rotation at {caller} within {START_TIMEOUT:?}; {}",
                        replica.name,
                        replica.log_end()
                    );
                }
                sleep(LOOK_INTERVAL).await;
            }
        }
        self.board.set_life(application, Life::Serving);
        Ok(())
    }

    /// Starts a replica and waits until it serves; its name.
    pub(super) async fn add(&mut self, role: Role) -> Result<String> {
        let address = self.start(role)?;
        self.await_rotation(address).await?;
        let place = self.place(address)?;
        Ok(self
            .replicas
            .get(place)
            .context("it is there")?
            .name
            .clone())
    }

    /// SIGTERM to a replica; returns when it has ended.
    pub(super) async fn leave(&mut self, name: &str) -> Result<()> {
        let mut replica = self.take(name)?;
        self.board.set_life(replica.application(), Life::Leaving);
        replica.leave().await?;
        self.board.set_life(replica.application(), Life::Gone);
        Ok(())
    }

    /// A replica that is no part of the store any more.
    pub(super) fn take(&mut self, name: &str) -> Result<Replica> {
        let mut names = self.replicas.iter();
        let place = names.position(|replica| replica.name == name);
        let place = place.with_context(|| format!("there is no replica {name}"))?;
        let replica = self.replicas.remove(place);
        self.publish_callers();
        Ok(replica)
    }

    /// The names of a service's replicas, the oldest first.
    pub(super) fn names(&self, service: Service) -> Vec<String> {
        let of = |replica: &&Replica| replica.role.service == service && !replica.role.canary;
        let names = self.replicas.iter().filter(of);
        names.map(|replica| replica.name.clone()).collect()
    }

    fn place(&self, address: Ipv4Addr) -> Result<usize> {
        let mut addresses = self.replicas.iter().map(|replica| replica.address);
        let place = addresses.position(|other| other == address);
        place.with_context(|| format!("there is no replica at {address}"))
    }

    /// The admin addresses of those who call a service.
    fn callers_of(&self, service: Service) -> Vec<SocketAddr> {
        match service {
            Service::Frontend => vec![self.gateway_admin()],
            _ => self.frontends(),
        }
    }

    fn frontends(&self) -> Vec<SocketAddr> {
        let of = |replica: &&Replica| replica.role.service == Service::Frontend;
        self.replicas
            .iter()
            .filter(of)
            .map(Replica::admin)
            .collect()
    }

    fn publish_callers(&self) {
        let mut callers = self.frontends();
        callers.push(self.gateway_admin());
        *self.callers.lock().unwrap_or_else(PoisonError::into_inner) = callers;
    }

    /// Ends everything, from the door inwards.
    pub async fn close(mut self) -> Result<()> {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.end().await?;
        }
        // Nothing is under way any more: all at once, and who is not gone soon is killed.
        for replica in &self.replicas {
            // An error: it has ended.
            let _ended = replica.tell();
        }
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        for replica in &mut self.replicas {
            replica.end_by(deadline).await?;
        }
        self.controller.end().await
    }
}

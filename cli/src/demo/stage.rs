//! The backends and the proxy of the demo, and what can be done to them. Owns
//! every process; what is done when is the timeline's.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use super::board::{BackendRow, Board, Life, Tone};
use super::configuration::{self, Configuration};
use super::load::Http1;
use super::metrics;
use super::processes::{self, Group};
use super::programs::{Programs, Service};
use super::proxy::Proxy;

/// The first port tried; below those that the kernel gives to clients, which could collide.
const PORT_FIRST: u16 = 18_080;
const PORT_LAST: u16 = 28_080;
/// A program that does not answer after this will not.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// The proxy reads a changed file within this.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How often something awaited is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(30);

/// One backend: a place in the shop, whatever process fills it.
#[derive(Debug)]
struct Backend {
    service: Service,
    name: String,
    address: SocketAddr,
    child: Child,
}

/// All of the demo's processes.
#[derive(Debug)]
pub struct Stage {
    folder: PathBuf,
    programs: Programs,
    board: Arc<Board>,
    backends: Vec<Backend>,
    proxy: Option<Proxy>,
    ports: Ports,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// The last, so that it is dropped when all others are: it kills what is left.
    group: Group,
}

impl Stage {
    pub fn new(folder: &Path, programs: Programs, board: Arc<Board>) -> Result<Self> {
        let mut ports = Ports { next: PORT_FIRST };
        let folder = folder.to_owned();
        // What an earlier demo left.
        for left in [access_log(&folder), proxy_log(&folder)] {
            if left.exists() {
                fs::remove_file(&left).with_context(|| format!("removing {}", left.display()))?;
            }
        }
        let left = folder.join("backends");
        if left.exists() {
            fs::remove_dir_all(&left).with_context(|| format!("removing {}", left.display()))?;
        }
        Ok(Self {
            listen: ports.take()?,
            admin: ports.take()?,
            folder,
            programs,
            board,
            backends: Vec::new(),
            proxy: None,
            ports,
            group: Group::new()?,
        })
    }

    /// Starts all backends and the proxy before them.
    pub async fn open(&mut self, binary: &Path) -> Result<()> {
        for service in self.programs.services.clone() {
            for number in 1..=service.replicas() {
                let name = match service.replicas() {
                    1 => service.name().to_owned(),
                    _ => format!("{}-{number}", service.name()),
                };
                let address = self.ports.take()?;
                let backend = self.start(service, name, address)?;
                self.backends.push(backend);
            }
        }
        for backend in &mut self.backends {
            await_answer(backend, &self.folder).await?;
            self.board.set_life(backend.address, Life::Serving);
        }
        self.configuration().write(&self.config_file())?;
        let mut command = Command::new(binary);
        command.arg("--config").arg(self.config_file());
        command.arg("--log-level").arg("info");
        command
            .arg("--upgrade-socket")
            .arg(self.folder.join("upgrade.sock"));
        let proxy =
            Proxy::start(&self.group, command, &proxy_log(&self.folder), self.admin).await?;
        self.board.state().proxy.pid = proxy.pid();
        self.board.tell(
            Tone::Plain,
            format!(
                "weft-proxy (pid {}) serves http://{} with {} backends",
                proxy.pid(),
                self.listen,
                self.backends.len()
            ),
        );
        self.proxy = Some(proxy);
        Ok(())
    }

    /// Ends a backend as a crash would.
    pub async fn kill(&mut self, name: &str) -> Result<()> {
        let backend = find(&mut self.backends, name)?;
        let pid = backend.child.id().context("it runs")?;
        self.board.tell(
            Tone::Bad,
            format!("SIGKILL to {name} (pid {pid}), in the middle of its work"),
        );
        let why = "  (one that takes GETs: nobody may send a half-done payment twice)";
        self.board.tell(Tone::Plain, why);
        processes::signal(pid, Signal::KILL)?;
        backend.child.wait().await?;
        self.board.set_life(backend.address, Life::Killed);
        Ok(())
    }

    /// Starts a killed backend again, on the port it had.
    pub async fn revive(&mut self, name: &str) -> Result<()> {
        let index = self
            .backends
            .iter()
            .position(|backend| backend.name == name);
        let index = index.with_context(|| format!("there is no backend {name}"))?;
        let Some(old) = self.backends.get(index) else {
            bail!("there is no backend {name}");
        };
        let mut new = self.start(old.service, old.name.clone(), old.address)?;
        await_answer(&mut new, &self.folder).await?;
        self.board.set_life(new.address, Life::Serving);
        let pid = new.child.id().unwrap_or_default();
        self.board
            .tell(Tone::Plain, format!("{name} is started again (pid {pid})"));
        if let Some(place) = self.backends.get_mut(index) {
            *place = new;
        }
        Ok(())
    }

    /// Replaces one backend: the new process first, then the configuration, then the old one's end.
    pub async fn replace(&mut self, name: &str, drain: Duration) -> Result<()> {
        let service = find(&mut self.backends, name)?.service;
        let address = self.ports.take()?;
        let mut new = self.start(service, name.to_owned(), address)?;
        await_answer(&mut new, &self.folder).await?;
        self.board.set_life(address, Life::Serving);
        let mut old = std::mem::replace(find(&mut self.backends, name)?, new);
        self.reload().await?;
        self.board.set_life(old.address, Life::Leaving);
        let port = (old.address.port(), address.port());
        self.board.tell(
            Tone::Plain,
            format!(
                "{name}: :{} replaced by :{}, configuration reloaded",
                port.0, port.1
            ),
        );
        // What the proxy had given to the old one it finishes meanwhile.
        sleep(drain).await;
        processes::end(&mut old.child).await?;
        self.board.set_life(old.address, Life::Gone);
        Ok(())
    }

    /// The names of all backends, in order.
    pub fn names(&self) -> Vec<String> {
        self.backends
            .iter()
            .map(|backend| backend.name.clone())
            .collect()
    }

    /// The proxy replaces itself.
    pub async fn hand_over(&mut self) -> Result<()> {
        let proxy = self.proxy.as_mut().context("the proxy runs")?;
        let old = proxy.pid();
        self.board.tell(
            Tone::Plain,
            format!("weft-proxy (pid {old}) is told to replace itself (SIGUSR2)"),
        );
        let new = proxy.begin_handover(&self.group).await?;
        self.board.state().proxy.pid = new;
        self.board.tell(
            Tone::Good,
            format!("the new weft-proxy (pid {new}) has the listeners; the old one drains"),
        );
        let took = proxy.end_handover(new).await?;
        self.board.tell(
            Tone::Good,
            format!(
                "the old one (pid {old}) has answered all it had and left after {:.2} s",
                took.as_secs_f64()
            ),
        );
        Ok(())
    }

    /// A configuration with a mistake, and after a while the right one again.
    pub async fn spoil(&mut self, pause: Duration) -> Result<()> {
        let path = self.config_file();
        let before = metrics::fetch(self.admin).await?;
        let mistaken =
            self.configuration()
                .text()
                .replacen("name: catalogue", "nmae: catalogue", 1);
        configuration::replace(&path, &mistaken)?;
        self.board.tell(
            Tone::Plain,
            "a configuration with a mistake in it is written (nmae: catalogue)",
        );
        self.reread(|now| now.since(&before).reloads_refused > 0)
            .await?;
        let error = metrics::fetch_refusal(self.admin)
            .await?
            .unwrap_or_default();
        // The file is known, and what is allowed instead is a long list.
        let error = error.replace(&format!("{}: ", self.config_file().display()), "");
        let error = error.split(" (allowed").next().unwrap_or_default();
        self.board.tell(
            Tone::Good,
            "the proxy refuses it and goes on with the last good one:",
        );
        self.board.tell(Tone::Plain, format!("  {error}"));
        sleep(pause).await;
        self.reload().await?;
        self.board
            .tell(Tone::Plain, "the mistake is mended, configuration reloaded");
        Ok(())
    }

    /// Ends everything, the proxy first.
    pub async fn close(mut self) -> Result<()> {
        if let Some(mut proxy) = self.proxy.take() {
            proxy.end().await?;
        }
        for backend in &mut self.backends {
            processes::end(&mut backend.child).await?;
        }
        Ok(())
    }

    pub fn access_log(&self) -> PathBuf {
        access_log(&self.folder)
    }

    fn start(&self, service: Service, name: String, address: SocketAddr) -> Result<Backend> {
        let folder = backend_folder(&self.folder, &name, address);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let command = self.programs.command(service, address, &folder)?;
        let child = self.group.start(command, &folder.join("log"))?;
        self.board.add_backend(BackendRow {
            name: name.clone(),
            program: self.programs.title(service),
            address,
            pid: child.id().unwrap_or_default(),
            life: Life::Starting,
            ended: None,
            rotation: None,
            served: 0,
            window: Default::default(),
        });
        Ok(Backend {
            service,
            name,
            address,
            child,
        })
    }

    async fn reload(&self) -> Result<()> {
        let before = metrics::fetch(self.admin).await?;
        self.configuration().write(&self.config_file())?;
        self.reread(|now| now.since(&before).reloads > 0).await
    }

    /// Waits until the proxy has looked at a changed configuration.
    async fn reread(&self, done: impl Fn(&metrics::Sample) -> bool) -> Result<()> {
        let deadline = Instant::now() + RELOAD_TIMEOUT;
        while Instant::now() < deadline {
            if done(&metrics::fetch(self.admin).await?) {
                return Ok(());
            }
            sleep(LOOK_INTERVAL).await;
        }
        bail!(
            "the proxy did not take the changed {} within {RELOAD_TIMEOUT:?}: see {}",
            self.config_file().display(),
            proxy_log(&self.folder).display()
        )
    }

    fn configuration(&self) -> Configuration<'_> {
        Configuration {
            listen: self.listen,
            admin: self.admin,
            access_log: self.access_log(),
            services: &self.programs.services,
            endpoints: self
                .backends
                .iter()
                .map(|backend| (backend.service, backend.address))
                .collect(),
        }
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("weft.yaml")
    }
}

fn access_log(folder: &Path) -> PathBuf {
    folder.join("access.log")
}

fn proxy_log(folder: &Path) -> PathBuf {
    folder.join("proxy.log")
}

fn backend_folder(folder: &Path, name: &str, address: SocketAddr) -> PathBuf {
    folder
        .join("backends")
        .join(format!("{name}-{}", address.port()))
}

fn find<'a>(backends: &'a mut [Backend], name: &str) -> Result<&'a mut Backend> {
    let found = backends.iter_mut().find(|backend| backend.name == name);
    found.with_context(|| format!("there is no backend {name}"))
}

/// Waits until a backend answers; one that ended instead is an error with the end of its log.
async fn await_answer(backend: &mut Backend, folder: &Path) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    let name = &backend.name;
    loop {
        if answers(backend.service, backend.address).await {
            return Ok(());
        }
        let ended = backend.child.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            let log = backend_folder(folder, name, backend.address).join("log");
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(5).collect();
            let lines = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
            let how = ended.map_or("does not answer".to_owned(), |status| {
                format!("ended ({status})")
            });
            bail!("{name} {how}; the end of {}:\n{lines}", log.display());
        }
        sleep(LOOK_INTERVAL).await;
    }
}

async fn answers(service: Service, address: SocketAddr) -> bool {
    if service == Service::Authentication {
        return TcpStream::connect(address).await.is_ok();
    }
    let Ok(request) = Request::get("/health").body(Full::<Bytes>::default()) else {
        return false;
    };
    let answer = Http1::new(address, false).call(request).await;
    answer.is_ok_and(|answer| answer.status.is_success())
}

/// Free ports on loopback, each given once.
#[derive(Debug)]
struct Ports {
    next: u16,
}

impl Ports {
    fn take(&mut self) -> Result<SocketAddr> {
        loop {
            ensure!(
                self.next < PORT_LAST,
                "no free port between {PORT_FIRST} and {PORT_LAST}"
            );
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.next));
            self.next += 1;
            if TcpListener::bind(address).is_ok() {
                return Ok(address);
            }
        }
    }
}

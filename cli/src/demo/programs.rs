//! The store's services and their programs: which of them this machine has, and how each is started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::addresses::APPLICATION_PORT;
use super::manifests::NAMESPACE;

const SHOP: &str = include_str!("programs/shop.py");
const FRONTEND: &str = include_str!("programs/frontend.py");
/// The Kubernetes Service of the catalogue's next version.
pub const CANARY: &str = "catalogue-next";

/// A service of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    Frontend,
    Authentication,
    Catalogue,
    Payment,
}

impl Service {
    pub const ALL: [Self; 4] = [
        Self::Frontend,
        Self::Authentication,
        Self::Catalogue,
        Self::Payment,
    ];
    /// Those that the frontend calls.
    pub const CALLED: [Self; 3] = [Self::Authentication, Self::Catalogue, Self::Payment];

    pub fn name(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Authentication => "authentication",
            Self::Catalogue => "catalogue",
            Self::Payment => "payment",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|service| service.name() == name);
        found.or_else(|| (name == CANARY).then_some(Self::Catalogue))
    }

    pub fn replicas(self) -> usize {
        match self {
            Self::Catalogue => 3,
            Self::Frontend | Self::Authentication | Self::Payment => 2,
        }
    }

    /// What a sidecar calls it that has a listener for it.
    pub fn destination(self) -> String {
        format!("{}.{NAMESPACE}:80", self.name())
    }

    /// The port of that listener.
    pub fn way_port(self) -> u16 {
        match self {
            Self::Frontend => 9000,
            Self::Authentication => 9001,
            Self::Catalogue => 9002,
            Self::Payment => 9003,
        }
    }
}

/// The programs that the demo starts.
#[derive(Clone, Debug)]
pub struct Programs {
    pub weft: PathBuf,
    pub proxy: PathBuf,
    pub controller: PathBuf,
    python: PathBuf,
    nginx: Option<PathBuf>,
}

impl Programs {
    pub fn find(proxy: Option<&Path>, controller: Option<&Path>) -> Result<Self> {
        let weft = std::env::current_exe().context("finding this program's own file")?;
        let python = on_path("python3").filter(|python| runs(python, "import http.server"));
        let python = python.context(
            "python3 is not installed, in which the store's services are written: install it (apt-get install python3)",
        )?;
        Ok(Self {
            proxy: beside(&weft, "weft-proxy", ("--proxy", proxy))?,
            controller: beside(&weft, "weft-controller", ("--controller", controller))?,
            weft,
            python,
            nginx: on_path("nginx"),
        })
    }

    /// What a person should know of what this machine lacks.
    pub fn missing(&self) -> Option<&'static str> {
        self.nginx.is_none().then_some(
            "no nginx here: the catalogue is a Python server instead (apt-get install nginx-light)",
        )
    }

    /// How to start a replica's application. Its files go to `folder`, which is its own.
    pub fn command(&self, service: Service, of: &Application<'_>) -> Result<Command> {
        let version = format!("v{}", of.version);
        match (service, &self.nginx) {
            (Service::Catalogue, Some(nginx)) => nginx_command(nginx, of),
            (Service::Frontend, _) => {
                let mut command = self.script(of.folder, FRONTEND)?;
                command.arg(of.address.to_string()).arg(version);
                for called in Service::CALLED {
                    let way = SocketAddr::from((of.address.ip(), called.way_port()));
                    command.arg(way.to_string());
                }
                Ok(command)
            }
            _ => {
                let mut command = self.script(of.folder, SHOP)?;
                command.arg(service.name());
                command.arg(of.address.to_string()).arg(version);
                Ok(command)
            }
        }
    }

    fn script(&self, folder: &Path, text: &str) -> Result<Command> {
        let path = folder.join("server.py");
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        let mut command = Command::new(&self.python);
        command.arg(path);
        Ok(command)
    }
}

/// One replica's application.
#[derive(Debug)]
pub struct Application<'a> {
    pub address: SocketAddr,
    pub version: u32,
    pub folder: &'a Path,
}

/// One process (no master), so that SIGKILL leaves no worker behind that still answers.
fn nginx_command(nginx: &Path, of: &Application<'_>) -> Result<Command> {
    let (address, version) = (of.address, of.version);
    let text = format!(
        r#"daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type application/json;
    server {{
        listen {address};
        add_header shop-version catalogue=v{version};
        location = /health {{ return 200 "ok\n"; }}
        location = /item {{ return 200 '{{"item": $arg_id, "in_stock": true}}\n'; }}
    }}
}}
"#
    );
    let path = of.folder.join("nginx.conf");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(nginx);
    command.arg("-p").arg(of.folder).arg("-c").arg(path);
    command.arg("-e").arg("stderr");
    Ok(command)
}

/// The binary that was asked for, or the one beside this program.
fn beside(weft: &Path, name: &str, (flag, asked): (&str, Option<&Path>)) -> Result<PathBuf> {
    if let Some(path) = asked {
        return path
            .canonicalize()
            .with_context(|| format!("finding {} ({flag})", path.display()));
    }
    let path = weft.with_file_name(name);
    if !path.is_file() {
        bail!(
            "there is no {name} beside {}: build it (cargo build --release -p {name}, which `make demo` does) or name one by {flag}",
            weft.display()
        );
    }
    Ok(path)
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where a user's PATH does not look.
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

fn runs(python: &Path, code: &str) -> bool {
    let mut command = Command::new(python);
    command
        .arg("-c")
        .arg(code)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The address of an application.
pub fn application(address: std::net::Ipv4Addr) -> SocketAddr {
    (address, APPLICATION_PORT).into()
}

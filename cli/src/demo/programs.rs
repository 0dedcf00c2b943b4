//! The real programs of the demo: which of them this machine has, and how each
//! is started. What takes the place of one that is missing is said here.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

const SHOP: &str = include_str!("programs/shop.py");
const AUTHENTICATION: &str = include_str!("programs/authentication.py");

/// A service of the demo and its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Catalogue,
    Payment,
    Authentication,
}

impl Service {
    pub fn name(self) -> &'static str {
        match self {
            Self::Catalogue => "catalogue",
            Self::Payment => "payment",
            Self::Authentication => "authentication",
        }
    }

    pub fn replicas(self) -> usize {
        match self {
            Self::Catalogue => 3,
            Self::Payment => 2,
            Self::Authentication => 1,
        }
    }
}

/// What this machine has.
#[derive(Clone, Debug)]
pub struct Programs {
    pub services: Vec<Service>,
    nginx: Option<PathBuf>,
    python: Option<PathBuf>,
    /// A Python that has grpcio.
    grpc: Option<PathBuf>,
    /// One line for each program that is missing.
    pub missing: Vec<String>,
}

impl Programs {
    pub fn find() -> Result<Self> {
        let nginx = on_path("nginx");
        let pythons: Vec<PathBuf> = [venv_python(), on_path("python3")]
            .into_iter()
            .flatten()
            .collect();
        let python = pythons
            .iter()
            .find(|python| runs(python, "import http.server"))
            .cloned();
        let grpc = pythons
            .iter()
            .find(|python| runs(python, "import grpc"))
            .cloned();
        let mut services = vec![Service::Catalogue];
        let mut missing = Vec::new();
        if nginx.is_none() {
            python.as_ref().context(
                "neither nginx nor python3 is installed, so there is nothing to put behind the proxy: install one (apt-get install nginx-light)",
            )?;
            missing.push("no nginx here: Python HTTP servers are the catalogue instead (apt-get install nginx-light)".to_owned());
        }
        match &python {
            Some(_) => services.push(Service::Payment),
            None => {
                missing.push("no python3 here: the payment service (POST) is left out".to_owned())
            }
        }
        match &grpc {
            Some(_) => services.push(Service::Authentication),
            None => missing.push(
                "no python3 with grpcio here: the gRPC service is left out (pip install grpcio)"
                    .to_owned(),
            ),
        }
        Ok(Self {
            services,
            nginx,
            python,
            grpc,
            missing,
        })
    }

    pub fn has(&self, service: Service) -> bool {
        self.services.contains(&service)
    }

    /// What the screen calls the program of a service.
    pub fn title(&self, service: Service) -> &'static str {
        match service {
            Service::Catalogue if self.nginx.is_some() => "nginx",
            Service::Catalogue | Service::Payment => "Python HTTP",
            Service::Authentication => "Python gRPC",
        }
    }

    /// How to start one on `address`. Its files go to `folder`, which is its own.
    pub fn command(&self, service: Service, address: SocketAddr, folder: &Path) -> Result<Command> {
        match (service, &self.nginx) {
            (Service::Catalogue, Some(nginx)) => nginx_command(nginx, address, folder),
            (Service::Authentication, _) => {
                let mut command = script(self.grpc.as_deref(), folder, AUTHENTICATION)?;
                command.arg(address.to_string());
                Ok(command)
            }
            _ => {
                let mut command = script(self.python.as_deref(), folder, SHOP)?;
                command.arg(address.to_string()).arg(service.name());
                Ok(command)
            }
        }
    }
}

fn script(python: Option<&Path>, folder: &Path, text: &str) -> Result<Command> {
    let python = python.context("a service without its Python is not among the demo's services")?;
    let path = folder.join("server.py");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(python);
    command.arg(path);
    Ok(command)
}

/// One process (no master), so that SIGKILL leaves no worker behind that still answers.
fn nginx_command(nginx: &Path, address: SocketAddr, folder: &Path) -> Result<Command> {
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
        location = /health {{ return 200 "ok\n"; }}
        location = /catalogue {{ return 200 '{{"item":$arg_item,"in_stock":true}}\n'; }}
    }}
}}
"#
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new(nginx);
    command
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(path)
        .arg("-e")
        .arg("stderr");
    Ok(command)
}

/// The Python that `make test` made, if this is a working copy.
fn venv_python() -> Option<PathBuf> {
    let path = PathBuf::from("target/venv/bin/python");
    path.is_file()
        .then(|| std::path::absolute(path).ok())
        .flatten()
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

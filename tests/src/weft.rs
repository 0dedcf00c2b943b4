//! `weft` as a user runs it, and applications under `weft run`.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

use crate::mesh::{APPLICATION_PORT, Mesh, Sidecar, own_address};
use crate::process::Program;
use crate::proxy::{self, built};
use crate::raw::Raw;
use crate::upstream::Upstream;
use crate::{eventually, root};

/// The command line, of the profile that this test was built with.
#[must_use]
pub fn weft() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(BUILT.get_or_init(|| built("weft-cli", "weft")));
    command.env_remove("NO_COLOR");
    command
}

/// An application with its sidecar, by `weft run`.
pub struct Run {
    pub program: Program,
    pub address: IpAddr,
    pub name: String,
    pub manifest: PathBuf,
}

impl Run {
    /// Starts `application`, an endpoint of `shop/SERVICE`; `change` adds to `weft run`'s own arguments.
    #[must_use]
    pub fn start(
        mesh: &Mesh,
        service: &str,
        change: impl FnOnce(&mut Command),
        application: impl FnOnce(IpAddr) -> Vec<String>,
    ) -> Self {
        let address = own_address();
        let name = format!("{service}-{}", address.to_string().replace('.', "-"));
        let folder = mesh.folder.path();
        let mut command = weft();
        command
            .args(["run", "--namespace", "shop", "--service-account", service])
            .args(["--workload", &name, "--address", &address.to_string()])
            .args(["--controller", &mesh.listen.to_string()])
            .arg("--ca-dir")
            .arg(folder.join("ca"))
            .arg("--proxy")
            .arg(proxy::binary())
            .arg("--manifests")
            .arg(folder.join("manifests"))
            .args(["--service", service, "--port-name", "auto"])
            .args(["--port", &APPLICATION_PORT.to_string()]);
        change(&mut command);
        command.arg("--").args(application(address));
        Self {
            program: Program::start(&name, &mut command, folder),
            address,
            manifest: folder.join(format!("manifests/run-shop-{name}.yaml")),
            name,
        }
    }

    /// The same with an application that echoes paths and ends at once on SIGTERM, awaited.
    #[must_use]
    pub fn echo(mesh: &Mesh, service: &str) -> Self {
        let run = Self::start(mesh, service, |_| (), echo);
        run.is_in_rotation();
        run
    }

    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.address, 14_020)
    }

    #[track_caller]
    pub fn is_in_rotation(&self) {
        let what = format!("{} being in rotation", self.name);
        eventually(&what, || {
            self.program
                .output()
                .contains("in rotation as")
                .then_some(())
        });
    }

    /// Waits until its sidecar says that it is ready.
    #[track_caller]
    pub fn sidecar_is_ready(&self) {
        eventually("the sidecar being ready", || {
            Raw::try_connect(self.admin())
                .and_then(|mut raw| raw.try_get("/ready"))
                .filter(|answer| answer.status == 200)
        });
    }

    /// Its processes' pids, by a part of their command line.
    #[must_use]
    pub fn pids(&self, part: &str) -> Vec<u32> {
        let folder = fs::read_dir("/proc").expect("there is /proc");
        let pids = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let ours = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let parent = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(part)
                && parent.contains(&format!("PPid:\t{}\n", self.program.pid()))
        };
        pids.filter(ours).collect()
    }
}

/// The command of an application that echoes paths at this address.
#[must_use]
pub fn echo(address: IpAddr) -> Vec<String> {
    let script: &Path = &root().join("tests/python/echo_server.py");
    let port = APPLICATION_PORT.to_string();
    let words = ["python3", "-u", &script.display().to_string()].map(str::to_owned);
    [words.to_vec(), vec![address.to_string(), port]].concat()
}

/// `shop/web` with an application, and a client of it.
#[must_use]
pub fn shop() -> (Mesh, Sidecar, Upstream, Sidecar) {
    let mesh = Mesh::start();
    let web = mesh.sidecar("web", &[]);
    let application = Upstream::echo_at(web.application(), "one");
    mesh.service("web", &[&web]);
    let client = mesh.sidecar("client", &["web.shop:80"]);
    mesh.settled();
    (mesh, web, application, client)
}

/// What a command that ends says.
pub struct Said {
    pub code: Option<i32>,
    pub text: String,
    pub errors: String,
}

impl Said {
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.all()))
    }

    #[must_use]
    pub fn all(&self) -> String {
        format!("{:?}\n{}{}", self.code, self.text, self.errors)
    }

    #[track_caller]
    pub fn is(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.all());
        for part in parts {
            assert!(
                self.all().contains(part),
                "{part:?} is not in {}",
                self.all()
            );
        }
    }
}

pub fn ended(command: &mut Command) -> Said {
    let output: Output = command.output().expect("weft runs");
    Said {
        code: output.status.code(),
        text: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

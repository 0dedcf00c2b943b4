//! `weft` as a user runs it, and applications under `weft run`.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::mesh::{APPLICATION_PORT, Mesh, own_address};
use crate::process::Program;
use crate::proxy::{self, built};
use crate::raw::Raw;
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

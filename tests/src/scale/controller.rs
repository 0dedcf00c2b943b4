//! The controller of a run: a real process, whose CPU and memory the kernel tells.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::metrics::figure;
use crate::process::{Program, status_kib};
use crate::{eventually_within, port};

/// How long it may take to read all that there is.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Controller {
    program: Program,
    binary: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
    pub listen: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
    /// CPU of processes that have ended.
    spent: Duration,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub now: u64,
    pub peak: u64,
}

impl Controller {
    pub fn start(binary: &Path, kubeconfig: &Path, namespace: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let (listen, admin) = (port::free_address(), port::free_address());
        let started = start(
            (binary, kubeconfig, namespace),
            (listen, admin),
            folder.path(),
        );
        Self {
            program: started,
            binary: binary.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            namespace: namespace.to_owned(),
            listen,
            admin,
            folder,
            spent: Duration::ZERO,
        }
    }

    /// Kills it, as a crash would, and starts another in its place.
    pub fn restart(&mut self) {
        self.spent += self.cpu_of_this();
        self.program.kill();
        let _old = fs::remove_file(ready_file(self.folder.path()));
        self.program = start(
            (&self.binary, &self.kubeconfig, &self.namespace),
            (self.listen, self.admin),
            self.folder.path(),
        );
    }

    /// Waits until it serves proxies.
    pub fn ready(&mut self) {
        let file = ready_file(self.folder.path());
        eventually_within(PATIENCE, "a controller that is ready", || {
            let alive = self.program.is_running();
            assert!(alive, "it has ended:\n{}", self.program.output());
            file.exists().then_some(())
        });
    }

    /// A sample of its metrics page.
    pub fn figure(&self, name: &str) -> Option<f64> {
        figure(self.admin, name)
    }

    pub fn memory(&self) -> Memory {
        let field = |name: &str| status_kib(self.program.pid(), name).unwrap_or(0) * 1024;
        Memory {
            now: field("VmRSS:"),
            peak: field("VmHWM:"),
        }
    }

    /// CPU of all processes so far, of user and kernel.
    pub fn cpu(&self) -> Duration {
        self.spent + self.cpu_of_this()
    }

    fn cpu_of_this(&self) -> Duration {
        let stat = format!("/proc/{}/stat", self.program.pid());
        let stat = fs::read_to_string(stat).unwrap_or_default();
        // After the name in brackets: state, ppid, …; utime and stime are the 12th and 13th.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks: u64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    pub fn log(&self) -> String {
        self.program.output()
    }

    pub fn pid(&self) -> u32 {
        self.program.pid()
    }
}

fn ready_file(folder: &Path) -> PathBuf {
    folder.join("ready.json")
}

fn start(
    (binary, kubeconfig, namespace): (&Path, &Path, &str),
    (listen, admin): (SocketAddr, SocketAddr),
    folder: &Path,
) -> Program {
    let mut command = Command::new(binary);
    command
        .env("KUBECONFIG", kubeconfig)
        .args(["--kubernetes", "--namespace", namespace])
        .args(["--identity", "scale", "--ready-file"])
        .arg(ready_file(folder))
        .args(["--listen", &listen.to_string()])
        .args(["--admin", &admin.to_string()]);
    Program::start("weft-controller", &mut command, folder)
}

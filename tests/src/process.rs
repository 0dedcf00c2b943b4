//! A program that runs beside a test: its output goes to a file, and dropping it ends it.
//!
//! **Invariant:** only processes started here are signalled, by the pid that starting gave.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

use crate::eventually;

/// A failing test shows this much of each of its programs' output.
const SHOWN_LINES: usize = 40;

pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `command`; what it writes goes to `folder/name.log`.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = File::create(&log).expect("the log file can be made");
        let errors = output.try_clone().expect("the log file can be shared");
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{name} cannot be started ({error}): {command:?}; `make test` installs it")
            });
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// Holds it where it is until [`Signal::CONT`], and sees to it that it is held.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        eventually("the process being stopped", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
            stat.contains(") T ").then_some(())
        });
    }

    /// What it has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    #[must_use]
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, || self.child.try_wait().ok().flatten())
    }

    /// Waits until it accepts connections, and fails when it ends before.
    #[track_caller]
    pub fn accepts(&mut self, address: SocketAddr) {
        let what = format!("{} listening on {address}", self.name);
        eventually(&what, || {
            let alive = self.is_running();
            assert!(alive, "{} has ended:\n{}", self.name, self.output());
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
        });
    }

    /// Resident memory in KiB.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        resident_kib(self.pid())
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that a test started.
pub fn signal_pid(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a pid is positive"), signal).expect("the process is there");
}

/// Resident memory of a process in KiB.
#[must_use]
pub fn resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:").expect("the process is there")
}

/// A field of a process' status that is in KiB.
#[must_use]
pub fn status_kib(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().trim_end_matches(" kB").parse().ok()
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            eprintln!("--- {}\n{}", self.name, shown.join("\n"));
        }
    }
}

/// Debian keeps servers in sbin, which a user's PATH lacks.
#[must_use]
pub fn path_with_sbin() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

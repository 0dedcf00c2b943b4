//! What ends the programs that we start however we end, SIGKILL included.
//!
//! A guard leads a process group that the programs are started in, and holds
//! the reading end of a pipe whose writing end only its owner has. The end of
//! that pipe is the end of the owner, and then the whole group is killed, the
//! guard with it. (The parent-death signal of `prctl` would not do: it reaches
//! the child alone and none of its children, and a proxy that replaces itself
//! has another parent.)

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process_group};
use tokio::signal::unix::{SignalKind, signal};

/// The owner's end. Dropping it kills the group.
#[derive(Debug)]
pub struct Guard {
    leader: Pid,
    /// Its standard input is the pipe whose end tells the guard that we are gone.
    process: Child,
}

impl Guard {
    /// Starts a guard; when its owner is killed it also removes these files and folders.
    pub fn start(removed: &[&Path]) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program's own file")?;
        let mut command = Command::new(program);
        command.arg("guard");
        for path in removed {
            command.arg("--remove").arg(path);
        }
        let process = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the guard that ends our programs")?;
        let leader = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        Ok(Self {
            leader: leader.ok_or_else(|| anyhow!("{} is no process id", process.id()))?,
            process,
        })
    }

    /// The group, for `process_group` of what is started in it.
    pub fn group(&self) -> i32 {
        self.leader.as_raw_nonzero().get()
    }

    /// Signals all of the group; the guard itself heeds SIGKILL only.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process_group(self.leader, signal)
            .with_context(|| format!("signalling process group {}", self.group()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // An error: the guard, and so the group, has ended already.
        let _ended = kill_process_group(self.leader, Signal::KILL);
        // Reaped, so that its pid cannot be another process' before we forget it.
        let _ended = self.process.wait();
    }
}

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long, value_name = "PATH")]
    remove: Vec<PathBuf>,
}

/// `weft guard`, which only [`Guard::start`] starts.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if getpgrp() != getpid() {
        bail!(
            "this is started by `weft demo` and `weft run`, as the leader of a process group; there is no use for it by hand"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _entered = runtime.enter();
    // What the group is sent is for the programs; from now on these do nothing here.
    let heeded = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ];
    let _ignored: Vec<_> = heeded.map(signal).into_iter().collect::<io::Result<_>>()?;
    await_end(&mut io::stdin());
    // First: nobody is to be sent to what is about to die.
    for path in &arguments.remove {
        let _gone = match path.is_dir() {
            true => std::fs::remove_dir_all(path),
            false => std::fs::remove_file(path),
        };
    }
    kill_process_group(getpgrp(), Signal::KILL).context("killing the programs")?;
    Ok(ExitCode::SUCCESS)
}

/// Reads until the pipe has no writer. An error but an interruption ends it as well.
fn await_end(pipe: &mut impl Read) {
    let mut ignored = [0; 16];
    loop {
        match pipe.read(&mut ignored) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
        }
    }
}

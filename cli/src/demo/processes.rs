//! The processes that the demo starts: in one group with the [guard](crate::guard),
//! so that none of them outlives it, each with a log file of its own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use crate::guard::Guard;

/// How long a program may take to end on SIGTERM before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// Lines of a log that are shown when its program failed.
const LOG_LINES: usize = 8;
/// How often a process that is not our child is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The group of the demo's processes. Dropping it kills them all.
#[derive(Debug)]
pub struct Group(Guard);

impl Group {
    pub fn new() -> Result<Self> {
        // A proxy that replaced itself becomes our child when its parent ends, to be waited for.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("becoming the parent of orphaned processes")?;
        Ok(Self(Guard::start(&[])?))
    }

    /// Starts a program, what it says going to `log`.
    pub fn start(&self, mut command: Command, log: &Path) -> Result<Child> {
        let output = File::options().append(true).create(true).open(log);
        let output = output.with_context(|| format!("creating {}", log.display()))?;
        command
            .process_group(self.0.group())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let name = command.get_program().to_owned();
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn();
        child.with_context(|| format!("starting {}", name.display()))
    }
}

/// What the kernel says of a process that has not ended.
struct Stat {
    name: String,
    parent: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let (front, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let ended = matches!(state, "Z" | "X");
    (!ended).then_some(Stat {
        name: front.split_once('(')?.1.to_owned(),
        parent: fields.next()?.parse().ok()?,
    })
}

/// The children of a process: their pids and names (of which the kernel keeps 15 bytes).
pub fn children(of: u32) -> Vec<(u32, String)> {
    let Ok(folder) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let child = |pid: u32| {
        let stat = stat(pid)?;
        (stat.parent == of).then_some((pid, stat.name))
    };
    pids.filter_map(child).collect()
}

pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill_process(pid_of(pid)?, signal).with_context(|| format!("signalling process {pid}"))
}

fn pid_of(pid: u32) -> Result<Pid> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    raw.ok_or_else(|| anyhow!("{pid} is no process id"))
}

/// Asks a child to end, and kills it if it does not.
pub async fn end(child: &mut Child) -> Result<()> {
    if let Some(pid) = child.id() {
        signal(pid, Signal::TERM)?;
        if timeout(END_TIMEOUT, child.wait()).await.is_err() {
            child.kill().await?;
        }
    }
    Ok(())
}

/// The same for a process that became our child when its parent ended.
pub async fn end_adopted(pid: u32) -> Result<()> {
    // An error: it has ended.
    if signal(pid, Signal::TERM).is_ok() && !ended_within(pid, END_TIMEOUT).await {
        signal(pid, Signal::KILL)?;
        ended_within(pid, END_TIMEOUT).await;
    }
    Ok(())
}

/// Whether the process ends within this time.
pub async fn ended_within(pid: u32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if stat(pid).is_none() {
            // Not our child: its parent waits for it.
            let _reaped = pid_of(pid).map(|pid| waitpid(Some(pid), WaitOptions::NOHANG));
            return true;
        }
        sleep(LOOK_INTERVAL).await;
    }
    false
}

/// What a program said last.
pub fn log_end(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(LOG_LINES).collect();
    let lines = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
    format!("the end of {}:\n{lines}", log.display())
}

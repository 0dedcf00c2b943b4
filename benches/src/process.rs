//! Processes of a run: started on a core, watched through /proc, ended by the
//! pid that starting gave. Owns the meaning of "CPU" and "RSS" in the results:
//! CPU is the sum of all threads of the process and its children (nginx has a
//! master), in nanoseconds from schedstat, split into user and system in the
//! proportion of the 10 ms ticks of /proc/PID/stat; RSS is the sum of VmRSS.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

/// How long a process may take to end before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// CPU time used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    ticks_user: u64,
    ticks_system: u64,
    total_ns: u64,
}

impl Cpu {
    /// User and system microseconds between two readings.
    pub fn since(self, earlier: Self) -> (f64, f64) {
        let user = self.ticks_user.saturating_sub(earlier.ticks_user) as f64;
        let system = self.ticks_system.saturating_sub(earlier.ticks_system) as f64;
        let total_us = self.total_ns.saturating_sub(earlier.total_ns) as f64 / 1000.0;
        let ticks = user + system;
        if ticks == 0.0 {
            // Less than a tick: no way to tell the two apart.
            return (total_us / 2.0, total_us / 2.0);
        }
        (total_us * user / ticks, total_us * system / ticks)
    }
}

impl std::ops::Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            ticks_user: self.ticks_user + other.ticks_user,
            ticks_system: self.ticks_system + other.ticks_system,
            total_ns: self.total_ns + other.total_ns,
        }
    }
}

/// Pins the calling process to one core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    if core >= CpuSet::MAX_CPU {
        bail!("core {core} is beyond what the kernel can name");
    }
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| {
        format!("pinning to core {core}: it takes two cores, see --subject-core and --load-core")
    })
}

/// A command on a core, which ends with the run even if that is killed. A process
/// of this binary between the two sees to both, for what it sets outlives exec.
#[derive(Debug, clap::Args)]
pub struct Launch {
    #[arg(long)]
    core: usize,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Launch {
    fn command(core: usize, command: &Command) -> Result<Command> {
        let mut launch = Command::new(env::current_exe()?);
        launch.arg("launch").arg(format!("--core={core}")).arg("--");
        launch.arg(command.get_program()).args(command.get_args());
        Ok(launch)
    }

    /// Returns only if it fails.
    pub fn run(&self) -> Result<()> {
        pin(self.core)?;
        set_parent_process_death_signal(Some(Signal::TERM))?;
        let (program, arguments) = self.command.split_first().context("a command")?;
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("running {}", program.display()))
    }
}

/// A process of this run. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts a command on `core`, its output going to `log`.
    pub fn start(name: &str, command: &Command, core: usize, log: &Path) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let mut launch = Launch::command(core, command)?;
        launch
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = launch.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    /// An error if the process has ended by itself.
    pub fn check_running(&mut self, log: &Path) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let text = fs::read_to_string(log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(5).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!(
                "{} ended ({status}); the end of {}:\n{}",
                self.name,
                log.display(),
                tail.join("\n")
            );
        }
        Ok(())
    }

    pub fn signal(&self, of: Signal) {
        signal(self.child.id(), of);
    }

    pub fn cpu(&self) -> Result<Cpu> {
        let mut sum = Cpu::default();
        for pid in self.pids() {
            add_cpu(pid, &mut sum)
                .with_context(|| format!("reading the CPU time of {}", self.name))?;
        }
        Ok(sum)
    }

    pub fn rss_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// What of the RSS is no file's.
    pub fn anonymous_bytes(&self) -> Result<u64> {
        self.memory("RssAnon:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let mut sum = 0;
        for pid in self.pids() {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            sum += kib
                .with_context(|| format!("{field} of a living process"))?
                .trim()
                .parse::<u64>()?
                * 1024;
        }
        Ok(sum)
    }

    /// The process and its children.
    fn pids(&self) -> Vec<u32> {
        let own = self.child.id();
        let mut pids = vec![own];
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        pids.extend(
            children
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
        pids
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pids = self.pids();
        let deadline = Instant::now() + END_TIMEOUT;
        let mut signalled = Instant::now();
        signal(self.child.id(), Signal::TERM);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            // Weft drains at the first TERM and ends at once at the second.
            if signalled.elapsed() > Duration::from_millis(300) {
                signal(self.child.id(), Signal::TERM);
                signalled = Instant::now();
            }
            sleep(Duration::from_millis(5));
        }
        for pid in pids {
            signal(pid, Signal::KILL);
        }
        // Reaped, so that its pid cannot be another process' before we forget it.
        let _ended = self.child.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Failing means that it has ended already.
        let _ended = kill_process(pid, signal);
    }
}

fn add_cpu(pid: u32, sum: &mut Cpu) -> Result<()> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses and may hold anything.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    sum.ticks_user += fields.get(11).context("utime")?.parse::<u64>()?;
    sum.ticks_system += fields.get(12).context("stime")?.parse::<u64>()?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        if let Ok(schedstat) = fs::read_to_string(task?.path().join("schedstat")) {
            sum.total_ns += schedstat
                .split_whitespace()
                .next()
                .context("run time")?
                .parse::<u64>()?;
        }
    }
    Ok(())
}

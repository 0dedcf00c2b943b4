//! Processes that took over from one that a test started: found by their configuration file, since
//! nobody was given their pids.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::{Signal, signal_pid};

/// Processes that run with this configuration file.
#[must_use]
pub fn running(file: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let named = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let wanted = file.display().to_string();
    named
        .filter(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line)
                .split('\0')
                .any(|word| word == wanted)
        })
        .collect()
}

/// The successors of a proxy, ended with the test: nobody else knows their pids.
pub struct Successors(pub PathBuf);

impl Drop for Successors {
    fn drop(&mut self) {
        for pid in running(&self.0) {
            signal_pid(pid, Signal::KILL);
        }
    }
}

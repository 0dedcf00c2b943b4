//! What ends the programs of a demo however the demo ends, SIGKILL included.
//!
//! The guard leads a process group that all of them are started in, and holds
//! the reading end of a pipe whose writing end only the demo has. The end of
//! that pipe is the end of the demo, and then the whole group is killed, the
//! guard with it. (The parent-death signal of `prctl` would not do: it must be
//! set in the child, and a proxy that replaces itself has another parent.)

use std::io::{self, Read};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, getpgrp, getpid, kill_process_group};

/// `weft guard`, which only [`crate::demo`] starts.
pub fn run() -> Result<ExitCode> {
    if getpgrp() != getpid() {
        bail!(
            "this is started by `weft demo`, as the leader of a process group; there is no use for it by hand"
        );
    }
    let mut pipe = io::stdin();
    let mut ignored = [0; 16];
    // An error ends the demo as an end of the pipe does.
    while matches!(pipe.read(&mut ignored), Ok(1..)) {}
    kill_process_group(getpgrp(), Signal::KILL).context("killing the demo's programs")?;
    Ok(ExitCode::SUCCESS)
}

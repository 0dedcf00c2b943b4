//! A process that takes our place: started here, or come by itself.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command as Program, Stdio};

use super::process::{GiveTask, Process};
use super::{HANDOVER_STDIN, HANDOVER_VARIABLE};
use crate::handover::{self, Given};

impl Process {
    /// SIGUSR2: a new process of the same binary and arguments.
    pub(super) fn start_successor(&mut self, busy: bool) -> Result<GiveTask, String> {
        if std::process::id() == 1 {
            return Err(
                "this is the first process of its container, which ends with it; use \
                        --upgrade-socket from a second container, or a rolling update"
                    .to_owned(),
            );
        }
        if busy {
            return Err("a handover is under way already".to_owned());
        }
        let (near, far) = UnixStream::pair().map_err(|error| error.to_string())?;
        let program = &self.program;
        let child = Program::new(program)
            .args(std::env::args_os().skip(1))
            .env(HANDOVER_VARIABLE, HANDOVER_STDIN)
            .stdin(Stdio::from(OwnedFd::from(far)))
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        tracing::info!(pid = child.id(), program = %program.display(), "started a new process to take over");
        self.successor = Some(child);
        self.give(near, false)
    }

    pub(super) fn give(&self, stream: UnixStream, busy: bool) -> Result<GiveTask, String> {
        if busy {
            return Err("a handover is under way already".to_owned());
        }
        let given = Given {
            listeners: self
                .sockets
                .duplicates()
                .map_err(|error| error.to_string())?,
            admin: Some(self.admin.try_clone().map_err(|error| error.to_string())?),
        };
        Ok(tokio::task::spawn_blocking(move || {
            handover::give(stream, &given)
        }))
    }

    pub(super) fn reap_successor(&mut self) {
        if let Some(child) = &mut self.successor
            && let Ok(Some(status)) = child.try_wait()
        {
            tracing::error!(%status, "the new process has ended");
            self.successor = None;
        }
    }
}

//! A real DNS server on a loopback address of its own, and the resolver configuration that names it.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::process::Program;
use crate::{eventually, script};

pub struct Dns {
    zone: PathBuf,
    /// What /etc/resolv.conf is to say.
    pub resolv: PathBuf,
    _program: Program,
    _folder: TempDir,
}

impl Dns {
    /// It takes root, for port 53. `number` tells servers of tests that run at once apart.
    #[must_use]
    pub fn start(number: u8, zone: &str) -> Self {
        let folder = TempDir::new().expect("a folder can be made");
        let path = folder.path().join("zone");
        fs::write(&path, zone).expect("the zone can be written");
        let address = format!("127.53.{}.{number}", std::process::id() % 250 + 1);
        let resolv = folder.path().join("resolv.conf");
        let lines = format!("nameserver {address}\noptions timeout:1 attempts:1\n");
        fs::write(&resolv, lines).expect("it can be written");
        let mut command = script("dns_server.py");
        command.arg(&address).arg(&path);
        let program = Program::start("dns", &mut command, folder.path());
        eventually("the DNS server", || {
            program.output().contains("serving").then_some(())
        });
        Self {
            zone: path,
            resolv,
            _program: program,
            _folder: folder,
        }
    }

    pub fn set(&self, zone: &str) {
        let new = self.zone.with_extension("new");
        fs::write(&new, zone).expect("the zone can be written");
        fs::rename(&new, &self.zone).expect("the zone can be replaced");
    }
}

//! PostgreSQL as an upstream, and psql as its client.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::certificate::Authority;
use crate::process::Program;
use crate::{eventually, port};

/// The user that Debian's package makes: PostgreSQL refuses to run as root.
const USER: &str = "postgres";

pub struct Postgres {
    pub address: SocketAddr,
    pub program: Program,
    _folder: TempDir,
}

impl Postgres {
    /// A new database with TLS on, user `postgres`, no password.
    #[track_caller]
    #[must_use]
    pub fn start() -> Self {
        let folder = TempDir::new().expect("a folder can be made");
        let data = folder.path().join("data");
        let owner = owner();
        if let Some((user, group)) = owner {
            let open = fs::Permissions::from_mode(0o755);
            fs::set_permissions(folder.path(), open).expect("our folder can be opened");
            fs::create_dir(&data).expect("a folder can be made");
            chown(&data, Some(user), Some(group)).expect("root gives files away");
        }
        let mut initdb = as_user(&installed("initdb"), owner);
        let made = initdb
            .args(["-A", "trust", "-U", USER, "-N", "-D"])
            .arg(&data)
            .output()
            .expect("initdb can be run; `make test` installs it");
        assert!(made.status.success(), "{made:?}");
        certify(&data, owner);

        let address = port::free_address();
        let mut server = as_user(&installed("postgres"), owner);
        server.arg("-D").arg(&data);
        for setting in [
            format!("port={}", address.port()),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "ssl=on".to_owned(),
            "fsync=off".to_owned(),
        ] {
            server.arg("-c").arg(setting);
        }
        let mut program = Program::start("postgres", &mut server, folder.path());
        program.accepts(address);
        eventually("the database taking queries", || {
            psql(address, "", "select 1").status.success().then_some(())
        });
        Self {
            address,
            program,
            _folder: folder,
        }
    }
}

fn certify(data: &Path, owner: Option<(u32, u32)>) {
    let authority = Authority::new(data, "root");
    let pair = authority.issue("server", &["localhost"]);
    fs::rename(pair.certificate, data.join("server.crt")).expect("a file can be renamed");
    let key = data.join("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("the key is ours");
    if let Some((user, group)) = owner {
        for name in ["server.crt", "server.key"] {
            chown(data.join(name), Some(user), Some(group)).expect("root gives files away");
        }
    }
}

/// Runs one query; `options` go into the connection string (`sslmode=require`).
pub fn psql(address: SocketAddr, options: &str, query: &str) -> Output {
    let connection = format!(
        "host={} port={} user={USER} dbname=postgres connect_timeout=10 {options}",
        address.ip(),
        address.port()
    );
    Command::new("psql")
        .args([
            "-X",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            query,
            &connection,
        ])
        .output()
        .expect("psql can be run; `make test` installs it")
}

/// PostgreSQL's own folder on Debian, else the PATH.
fn installed(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    versions
        .flatten()
        .map(|version| version.path().join("bin").join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(program))
}

fn as_user(program: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    // initdb wants to enter the folder it is started in.
    command.current_dir("/");
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}

/// Whom to run as when we are root: user and group of `postgres`.
fn owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
    let mut fields = users
        .lines()
        .find(|line| line.starts_with(&format!("{USER}:")))
        .expect("the postgresql package made its user")
        .split(':')
        .skip(2);
    let mut number = || fields.next()?.parse().ok();
    number().zip(number())
}

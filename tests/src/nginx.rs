//! nginx as an upstream, of Debian's package, in the foreground and in a folder of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::port;
use crate::process::Program;

/// Answers each request with its own target, so that an answer shows what it answers.
pub const ECHO: &str = "location / { default_type text/plain; return 200 $request_uri; }";

pub struct Nginx {
    pub address: SocketAddr,
    pub program: Program,
    pub folder: TempDir,
}

impl Nginx {
    /// One server block with this body.
    #[track_caller]
    #[must_use]
    pub fn start(server: &str) -> Self {
        Self::listening("", server)
    }

    /// The same with options to `listen`: `http2`, `ssl`, `proxy_protocol`.
    #[track_caller]
    #[must_use]
    pub fn listening(options: &str, server: &str) -> Self {
        let address = port::free_address();
        let folder = TempDir::new().expect("a folder can be made");
        let path = folder.path().to_owned();
        let config = configuration(&path, address, options, server);
        fs::write(path.join("nginx.conf"), config).expect("the configuration can be written");
        let mut command = Command::new("nginx");
        command
            .env("PATH", crate::process::path_with_sbin())
            .arg("-p")
            .arg(&path)
            .arg("-c")
            .arg(path.join("nginx.conf"))
            .arg("-e")
            .arg(path.join("error.log"));
        let mut program = Program::start("nginx", &mut command, &path);
        program.accepts(address);
        Self {
            address,
            program,
            folder,
        }
    }
}

fn configuration(folder: &Path, address: SocketAddr, options: &str, server: &str) -> String {
    let folder = folder.display();
    format!(
        "daemon off; master_process off; pid {folder}/nginx.pid;
        events {{ worker_connections 8192; }}
        http {{
            access_log off;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
            scgi_temp_path {folder}/scgi;
            keepalive_requests 10000000; keepalive_timeout 3600s; client_max_body_size 0;
            root {folder};
            server {{ listen {address} {options}; {server} }}
        }}"
    )
}

//! HAProxy: one thread, no master, upstream connections shared as freely as it
//! can (`http-reuse always`), no log.

use std::process::Command;

use anyhow::Result;

use super::{CONNECTIONS_MAX, Setup};
use crate::case::Mode;

pub fn command(setup: &Setup) -> Result<Command> {
    let Setup {
        listen, upstream, ..
    } = setup;
    let (mode, bind, server) = match setup.mode {
        Mode::Http1 => ("http", String::new(), ""),
        Mode::Http2 | Mode::Grpc => ("http", " proto h2".to_owned(), " proto h2"),
        Mode::Tls => (
            "http",
            format!(" ssl crt {} alpn http/1.1", setup.file("both.pem")),
            "",
        ),
        Mode::Tcp => ("tcp", String::new(), ""),
    };
    let reuse = if mode == "http" {
        "  http-reuse always\n"
    } else {
        ""
    };
    // It counts two open files a connection, which 20,000 do not carry; with
    // upstream connections shared it needs hardly more than one: hence not strict.
    let text = format!(
        "global\n  nbthread 1\n  no strict-limits\n  maxconn {CONNECTIONS_MAX}\n\
         defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 120s\n  timeout server 120s\n\
         frontend front\n  bind {listen}{bind} backlog 4096\n  default_backend back\n\
         backend back\n{reuse}  server up {upstream}{server}\n"
    );
    let path = setup.write("haproxy", "cfg", &text)?;
    let mut command = Command::new(&setup.binary);
    command.arg("-db").arg("-f").arg(path);
    Ok(command)
}

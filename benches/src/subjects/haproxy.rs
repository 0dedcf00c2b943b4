//! HAProxy: one thread, no master, upstream connections shared as freely as it
//! can (`http-reuse always`), no log.

use std::process::Command;

use anyhow::Result;

use super::{CONNECTIONS_MAX, Setup, Side};
use crate::case::Mode;
use crate::load::tls::HOST;

pub fn command(setup: &Setup) -> Result<Command> {
    let Setup {
        listen, upstream, ..
    } = setup;
    let (mode, protocol) = match setup.mode {
        Mode::Http1 | Mode::Tls => ("http", ""),
        Mode::Http2 | Mode::Grpc => ("http", " proto h2"),
        Mode::Tcp => ("tcp", ""),
    };
    let (mut bind, mut server) = (protocol.to_owned(), protocol.to_owned());
    if setup.mode == Mode::Tls {
        bind = format!(" ssl crt {} alpn http/1.1", setup.file("both.pem"));
    }
    let mutual = |side: &str| {
        format!(
            " ssl crt {} ca-file {} verify required ssl-min-ver TLSv1.3{protocol}",
            setup.file(&format!("{side}-both.pem")),
            setup.file("ca.pem")
        )
    };
    let alpn = match setup.mode {
        Mode::Http2 | Mode::Grpc => " alpn h2",
        Mode::Http1 | Mode::Tls => " alpn http/1.1",
        Mode::Tcp => "",
    };
    match setup.side {
        Side::Alone => {}
        Side::Client => {
            server = format!(
                "{}{alpn} sni str({HOST}) verifyhost {HOST}",
                mutual("client")
            );
        }
        Side::Server => bind = format!("{}{alpn}", mutual("server")),
    }
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

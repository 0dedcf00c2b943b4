//! Weft: one worker, metrics on (they always are), nothing else turned on or off.

use std::process::Command;

use anyhow::Result;

use super::{CONNECTIONS_MAX, Setup};
use crate::case::Mode;

pub fn command(setup: &Setup) -> Result<Command> {
    let (listener, service) = match setup.mode {
        Mode::Http1 | Mode::Tls => ("http", "http1"),
        Mode::Http2 => ("http", "http2"),
        Mode::Grpc => ("http", "grpc"),
        Mode::Tcp => ("tcp", "tcp"),
    };
    let tls = if setup.mode == Mode::Tls {
        format!(
            "    tls:\n      certificates:\n        - {{certificate: \"{}\", privateKey: \"{}\"}}\n",
            setup.file("cert.pem"),
            setup.file("key.pem")
        )
    } else {
        String::new()
    };
    let text = format!(
        "settings: {{workers: 1, admin: \"{admin}\", connectionsMax: {CONNECTIONS_MAX}}}\n\
         listeners:\n\
         \x20 - name: front\n\
         \x20   address: \"{listen}\"\n\
         \x20   protocol: {listener}\n\
         \x20   service: up\n\
         {tls}\
         services:\n\
         \x20 - name: up\n\
         \x20   protocol: {service}\n\
         \x20   endpoints: [{{address: \"{upstream}\"}}]\n",
        admin = setup.admin,
        listen = setup.listen,
        upstream = setup.upstream,
    );
    let path = setup.write("weft", "yaml", &text)?;
    let mut command = Command::new(&setup.binary);
    command.arg("--config").arg(path);
    Ok(command)
}

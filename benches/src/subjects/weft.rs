//! Weft: one worker, metrics on (they always are), nothing else turned on or off.

use std::process::Command;

use anyhow::Result;

use super::{CONNECTIONS_MAX, Setup};
use crate::case::Mode;

pub fn command(setup: &Setup) -> Result<Command> {
    let path = setup.write("weft", "yaml", &configuration(setup))?;
    let mut command = Command::new(&setup.binary);
    command.arg("--config").arg(path);
    Ok(command)
}

fn configuration(setup: &Setup) -> String {
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
    format!(
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
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subjects::Side;

    #[test]
    fn every_mode_has_a_valid_configuration() {
        for mode in [Mode::Http1, Mode::Http2, Mode::Grpc, Mode::Tcp, Mode::Tls] {
            let local = crate::upstream::local;
            let setup = Setup {
                mode,
                side: Side::Alone,
                between: mode,
                listen: local(21_000),
                upstream: local(21_001),
                admin: local(21_002),
                controller: local(21_003),
                controller_admin: local(21_004),
                folder: "/conf".into(),
                binary: "weft-proxy".into(),
            };
            let text = configuration(&setup);
            if let Err(errors) = weft_config::file::load("weft.yaml", &text) {
                panic!("{mode:?}: {errors}\n{text}");
            }
        }
    }
}

//! Weft's pair: two sidecars, one worker each, with the certificates and the service
//! that a controller gives them; the application's is the bench's upstream.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Result, ensure};

use super::Setup;
use crate::case::Mode;
use crate::mesh::{Mesh, Workload};

/// The pod of the client has another address than the upstream's.
const CLIENT_HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const SERVICE: &str = "up";

pub struct Commands {
    pub controller: Command,
    pub sidecars: Vec<Command>,
}

pub fn prepare(client: &Setup, server: &Setup) -> Result<Commands> {
    let controller = client.binary.with_file_name("weft-controller");
    ensure!(
        controller.exists(),
        "no {}: cargo build --release -p weft-controller",
        controller.display()
    );
    let protocol = match client.mode {
        Mode::Http1 | Mode::Tls => "http",
        Mode::Http2 => "kubernetes.io/h2c",
        Mode::Grpc => "grpc",
        Mode::Tcp => "tcp",
    };
    let mesh = Mesh::create(&client.folder.join("mesh"), client.controller)?;
    let serving = Workload {
        name: "server",
        application: server.upstream,
        inbound: server.listen,
    };
    let asking = Workload {
        name: "client",
        application: SocketAddr::from((CLIENT_HOST, 80)),
        inbound: SocketAddr::from((CLIENT_HOST, server.listen.port())),
    };
    mesh.pod(serving)?;
    mesh.pod(asking)?;
    mesh.service(SERVICE, protocol, &[serving])?;
    let sidecar = |workload, setup: &Setup, dialled: &[(SocketAddr, &str)]| {
        mesh.sidecar(&setup.binary, workload, setup.admin, dialled)
    };
    Ok(Commands {
        controller: mesh.controller(&controller, client.controller_admin),
        sidecars: vec![
            sidecar(asking, client, &[(client.listen, SERVICE)])?,
            sidecar(serving, server, &[])?,
        ],
    })
}

//! What only a mesh has: `settings.mesh`, a listener's role and who may use it,
//! an endpoint's identity.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::at::{At, each, known};
use super::authorization;
use crate::snapshot::{
    Destination, Inbound, ListenerRole, Mesh, Mtls, Peer, Probe, ProbeKind, TrustBundle,
};
use crate::spiffe::{SpiffeId, is_workload_uid};
use crate::wire;

const TRUST_DOMAIN: &str = "cluster.local";
const SERVICE_ACCOUNT: &str = "default";
/// A pod has a handful of containers, and each three probes.
const PROBES_MAX: usize = 100;
/// What no file is called.
const PEM: &str = "-----BEGIN ";

pub(super) fn settings(at: &At<'_>, mesh: &wire::Mesh) -> Option<Mesh> {
    let controllers_at = at.field("controllers");
    if mesh.controllers.is_empty() {
        controllers_at.error("is missing; write host:port of at least one controller");
    }
    let controllers: Vec<Arc<str>> = each(&controllers_at, &mesh.controllers, |at, text| {
        let port = text
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        if port.is_none_or(|port: u16| port == 0) {
            at.error(format!("\"{text}\" is not host:port"));
            return None;
        }
        Some(text.as_str().into())
    });
    let identity = identity(at, mesh);
    let workload_at = at.field("workload");
    let workload = workload_at.required(&mesh.workload).map(str::to_owned);
    if workload.as_deref().is_some_and(|uid| !is_workload_uid(uid)) {
        workload_at.error("is not a UID: up to 63 lower-case letters, digits and hyphens");
    }
    let addresses_at = at.field("addresses");
    if mesh.addresses.is_empty() {
        addresses_at.error("is missing; write the workload's IP addresses");
    }
    let ip = |at: &At<'_>, text: &str| match text.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            at.error(format!("\"{text}\" is not an IP address"));
            None
        }
    };
    let addresses: Vec<IpAddr> = each(&addresses_at, &mesh.addresses, |at, text| ip(at, text));
    let application = match mesh.application.as_str() {
        "" => addresses.first().copied(),
        text => ip(&at.field("application"), text),
    };
    let trust_bundle = at
        .field("trustBundle")
        .required(&mesh.trust_bundle)
        .map(|text| match text.trim_start().starts_with(PEM) {
            true => TrustBundle::Text(text.into()),
            false => TrustBundle::File(text.into()),
        });
    let token = at.field("token").required(&mesh.token).map(Into::into);
    let probes = probes(&at.field("probes"), &mesh.probes);
    Some(Mesh {
        controllers,
        trust_bundle: trust_bundle?,
        token: token?,
        identity: identity?,
        workload: workload?.into(),
        addresses,
        application: application?,
        state: (!mesh.state.is_empty()).then(|| mesh.state.clone().into()),
        await_controller: mesh.await_controller,
        probes: probes?,
    })
}

/// What the workload is to prove to be.
fn identity(at: &At<'_>, mesh: &wire::Mesh) -> Option<SpiffeId> {
    let or = |text: &str, default: &str| {
        if text.is_empty() {
            default.to_owned()
        } else {
            text.to_owned()
        }
    };
    let namespace = at.field("namespace").required(&mesh.namespace)?;
    let account = or(&mesh.service_account, SERVICE_ACCOUNT);
    let domain = or(&mesh.trust_domain, TRUST_DOMAIN);
    SpiffeId::new(&domain, namespace, &account)
        .map_err(|error| at.error(error.to_string()))
        .ok()
}

fn probes(at: &At<'_>, probes: &[wire::Probe]) -> Option<Vec<Probe>> {
    if probes.len() > PROBES_MAX {
        at.error(format!("has {}; {PROBES_MAX} may be", probes.len()));
        return None;
    }
    let compiled: Vec<Probe> = each(at, probes, |at, probe| {
        let port = u16::try_from(probe.port).ok().filter(|port| *port > 0);
        if port.is_none() {
            at.field("port").error("is not a port, 1 to 65535");
        }
        // As a kubelet makes a URL of it.
        let path: Arc<str> = match probe.path.starts_with('/') {
            true => probe.path.as_str().into(),
            false => format!("/{}", probe.path).into(),
        };
        let good = path.bytes().all(|byte| byte.is_ascii_graphic());
        if !good {
            at.field("path")
                .error("has characters that no URL has; escape them");
        }
        let kind = match known(&at.field("kind"), probe.kind)? {
            wire::probe::Kind::Http => ProbeKind::Http(path),
            wire::probe::Kind::Https => ProbeKind::Https(path),
            wire::probe::Kind::Tcp => ProbeKind::Tcp,
            wire::probe::Kind::Grpc => ProbeKind::Grpc,
        };
        let port = port.filter(|_| good)?;
        Some(Probe { kind, port })
    });
    // What has a mistake is left out of the list, and reported.
    Some(compiled)
}

pub(super) fn role(at: &At<'_>, listener: &wire::Listener) -> Option<ListenerRole> {
    use wire::listener_role::Value;
    let destination_at = at.field("destination");
    let destination = match listener.destination.as_str() {
        "" => None,
        text => match Destination::parse(text) {
            Some(destination) => Some(destination),
            None => {
                destination_at.error(format!(
                    "\"{text}\" is neither ip:port nor service.namespace:port"
                ));
                return None;
            }
        },
    };
    let role = known(&at.field("role"), listener.role)?;
    if destination.is_some() && matches!(role, Value::Direct | Value::Inbound) {
        destination_at.error("has no effect; it needs role: outbound");
    }
    Some(match role {
        Value::Direct => ListenerRole::Direct,
        Value::Inbound => ListenerRole::Inbound,
        Value::Virtual => ListenerRole::Virtual { destination },
        Value::Outbound => ListenerRole::Outbound { destination },
    })
}

pub(super) fn inbound(at: &At<'_>, inbound: &wire::Inbound) -> Option<Inbound> {
    let mtls = known(&at.field("mtls"), inbound.mtls).map(|mtls| match mtls {
        wire::inbound::Mtls::Permissive => Mtls::Permissive,
        wire::inbound::Mtls::Strict => Mtls::Strict,
    });
    let authorization =
        authorization::compile(&at.field("authorization"), inbound.authorization.as_ref());
    Some(Inbound {
        mtls: mtls?,
        authorization: authorization?,
    })
}

/// `Some(None)`: not of the mesh.
pub(super) fn peer(
    at: &At<'_>,
    endpoint: &wire::Endpoint,
    address: SocketAddr,
) -> Option<Option<Peer>> {
    if endpoint.identity.is_empty() {
        return Some(None);
    }
    let identity = SpiffeId::parse(&endpoint.identity)
        .map_err(|error| at.field("identity").error(error.to_string()))
        .ok()?;
    if !is_workload_uid(&endpoint.workload) {
        at.field("workload")
            .error("is needed beside identity: the UID of the endpoint's workload");
        return None;
    }
    let address = match endpoint.mesh_address.as_str() {
        "" => address,
        text => at.field("meshAddress").address(text)?,
    };
    Some(Some(Peer {
        identity,
        workload: endpoint.workload.as_str().into(),
        address,
    }))
}

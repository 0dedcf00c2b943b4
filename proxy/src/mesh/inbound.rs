//! The local workload's ports as virtual listeners, and its application as
//! their services. Pure.

use weft_config::wire;

/// Ports that no service names and somebody dials.
pub const EXTRA_PORTS_MAX: usize = 256;
/// An inbound connection outlives the pooled connections of its peers (a
/// service's idleTimeout, 60 s), so that the side that sends requests is the one
/// that closes.
const IDLE_TIMEOUT: &str = "10m";

/// Listeners and services of the workload's ports, and the zone that it runs in.
pub fn overlay(workload: &wire::Workload, application: &str, extra: &[u16]) -> wire::Config {
    let mut config = wire::Config::default();
    if !workload.zone.is_empty() {
        config.settings = Some(wire::Settings {
            zone: workload.zone.clone(),
            ..Default::default()
        });
    }
    for port in &workload.ports {
        add(&mut config, application, port.clone());
    }
    for port in extra {
        let port = u32::from(*port);
        if workload.ports.iter().any(|known| known.port == port) {
            continue;
        }
        let other = wire::WorkloadPort {
            port,
            protocol: wire::listener_protocol::Value::Auto.into(),
            inbound: workload.other_ports.clone(),
        };
        add(&mut config, application, other);
    }
    config
}

fn add(config: &mut wire::Config, application: &str, port: wire::WorkloadPort) {
    let name = format!("inbound:{}", port.port);
    let http = matches!(
        port.protocol(),
        wire::listener_protocol::Value::Auto | wire::listener_protocol::Value::Http
    );
    let options = wire::HttpOptions {
        forwarded: wire::http_options::Forwarded::Preserve.into(),
        idle_timeout: IDLE_TIMEOUT.to_owned(),
        ..Default::default()
    };
    config.listeners.push(wire::Listener {
        name: name.clone(),
        address: format!("0.0.0.0:{}", port.port),
        protocol: port.protocol,
        service: name.clone(),
        http: http.then_some(options),
        role: wire::listener_role::Value::Virtual.into(),
        inbound: Some(port.inbound.unwrap_or_default()),
        ..Default::default()
    });
    let address = match application.contains(':') {
        true => format!("[{application}]:{}", port.port),
        false => format!("{application}:{}", port.port),
    };
    config.services.push(wire::Service {
        name,
        protocol: match http {
            true => wire::service::Protocol::Mirror.into(),
            false => wire::service::Protocol::Tcp.into(),
        },
        endpoints: vec![wire::Endpoint {
            address,
            ..Default::default()
        }],
        // The sender decides, who has other endpoints.
        disable_idempotent_retry: true,
        ..Default::default()
    });
}

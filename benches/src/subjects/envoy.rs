//! Envoy: one worker thread (`--concurrency 1`), static configuration, no access
//! log, no admin, its circuit limits out of the way.

use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::identity::identity;
use super::{Setup, Side, Subject};
use crate::case::Mode;

/// Beyond anything that a case asks for.
const LIMIT: u32 = 1_000_000;

pub fn command(setup: &Setup, subject: Subject) -> Result<Command> {
    let text = serde_json::to_string_pretty(&configuration(setup))?;
    let path = setup.write(subject.name(), "json", &text)?;
    let mut command = Command::new(&setup.binary);
    command
        .args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "-c",
        ])
        .arg(path);
    Ok(command)
}

fn configuration(setup: &Setup) -> Value {
    let mut chain = json!({ "filters": [filter(setup.downstream())] });
    if setup.mode == Mode::Tls {
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["http/1.1"],
                    "tls_certificates": [{
                        "certificate_chain": { "filename": setup.file("cert.pem") },
                        "private_key": { "filename": setup.file("key.pem") },
                    }],
                },
            },
        });
    }
    if setup.side == Side::Server {
        chain["transport_socket"] = mutual(setup, "Downstream");
    }
    let mut cluster = json!({
        "name": "up",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": LIMIT, "max_pending_requests": LIMIT, "max_requests": LIMIT,
        }]},
        "load_assignment": { "cluster_name": "up", "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": address(setup.upstream) } },
        ]}]},
    });
    if setup.side == Side::Client {
        cluster["transport_socket"] = mutual(setup, "Upstream");
    }
    if matches!(setup.upstream_mode(), Mode::Http2 | Mode::Grpc) {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        });
    }
    json!({
        "static_resources": {
            "listeners": [{ "name": "front", "address": address(setup.listen), "filter_chains": [chain] }],
            "clusters": [cluster],
        },
    })
}

/// Mutual TLS 1.3, towards the one of the pair that is upstream or downstream of this.
fn mutual(setup: &Setup, towards: &str) -> Value {
    let (own, other) = match setup.side {
        Side::Client => ("client", "server"),
        _ => ("server", "client"),
    };
    let mut common = json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{
            "certificate_chain": { "filename": setup.file(&format!("{own}.pem")) },
            "private_key": { "filename": setup.file(&format!("{own}-key.pem")) },
        }],
        "validation_context": {
            "trusted_ca": { "filename": setup.file("ca.pem") },
            "match_typed_subject_alt_names": [{
                "san_type": "URI", "matcher": { "exact": identity(other) },
            }],
        },
    });
    match setup.between {
        Mode::Http2 | Mode::Grpc => common["alpn_protocols"] = json!(["h2"]),
        Mode::Http1 | Mode::Tls => common["alpn_protocols"] = json!(["http/1.1"]),
        Mode::Tcp => {}
    }
    let mut context = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{towards}TlsContext"),
        "common_tls_context": common,
    });
    if setup.side == Side::Server {
        context["require_client_certificate"] = json!(true);
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

fn filter(mode: Mode) -> Value {
    if mode == Mode::Tcp {
        return json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "front",
                "cluster": "up",
            },
        });
    }
    let codec = if matches!(mode, Mode::Http2 | Mode::Grpc) {
        "HTTP2"
    } else {
        "HTTP1"
    };
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type":
                "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "front",
            "codec_type": codec,
            "route_config": { "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "up" } }],
            }]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        },
    })
}

fn address(addr: std::net::SocketAddr) -> Value {
    json!({ "socket_address": { "address": addr.ip().to_string(), "port_value": addr.port() } })
}

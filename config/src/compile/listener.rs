//! `listeners[]`, without their routes (`attach` adds those).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::at::{At, each, known, or_default};
use super::{ServiceNames, service};
use crate::snapshot::{
    Forwarded, HttpOptions, Listener, ListenerProtocol, ListenerRole, ProxyProtocol, ServerTls,
    ServiceId,
};
use crate::wire;

const HEADER_BYTES: u32 = 60 * 1024;
const HEADER_BYTES_LOWEST: u32 = 1024;
const HEADER_BYTES_HIGHEST: u32 = 1024 * 1024;
const HEADERS: u32 = 100;
/// `http::HeaderMap` holds 24,576 and fails beyond; nobody needs a tenth of it.
const HEADERS_HIGHEST: u32 = 256;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const STREAMS: u32 = 250;
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// A listener, with its place in the configuration.
pub(super) struct Draft {
    pub index: usize,
    pub listener: Listener,
    /// The `service` field as written, resolvable or not: a mistake in it must
    /// not also be reported as a listener that leads nowhere.
    pub service_named: bool,
    /// A route that failed to compile names it.
    pub route_named: bool,
}

pub(super) fn compile_all(
    at: &At<'_>,
    list: &[wire::Listener],
    names: &ServiceNames<'_>,
) -> Vec<Draft> {
    let mut index = 0;
    each(at, list, |at, listener| {
        index += 1;
        compile(at, listener, names).map(|compiled| Draft {
            index: index - 1,
            listener: compiled,
            service_named: !listener.service.is_empty(),
            route_named: false,
        })
    })
}

fn compile(at: &At<'_>, listener: &wire::Listener, names: &ServiceNames<'_>) -> Option<Listener> {
    let at = at.owned_by("listener", &listener.name);
    let name = at.field("name").required(&listener.name);
    let address = at.field("address").address(&listener.address);
    let protocol = known(&at.field("protocol"), listener.protocol).map(protocol);
    let tls = match &listener.tls {
        None => Some(None),
        Some(tls) => server_tls(&at.field("tls"), tls).map(Some),
    };
    if protocol == Some(ListenerProtocol::Tls) && listener.tls.is_some() {
        at.field("tls").error(
            "contradicts protocol: tls, which passes TLS through undecrypted; to terminate TLS use protocol: http, tcp or auto",
        );
    }
    let service = default_service(&at.field("service"), &listener.service, protocol, names);
    let proxy_protocol = known(&at.field("proxyProtocol"), listener.proxy_protocol).map(
        |wire: wire::listener::ProxyProtocol| match wire {
            wire::listener::ProxyProtocol::None => None,
            wire::listener::ProxyProtocol::V1 => Some(ProxyProtocol::V1),
            wire::listener::ProxyProtocol::V2 => Some(ProxyProtocol::V2),
            wire::listener::ProxyProtocol::Any => Some(ProxyProtocol::Any),
        },
    );
    let http_at = at.field("http");
    if let (Some(ListenerProtocol::Tcp | ListenerProtocol::Tls), Some(_)) =
        (protocol, &listener.http)
    {
        http_at.error("has no effect; it needs protocol: http or auto");
    }
    let http = http_options(&http_at, listener.http.as_ref());
    let tcp_idle_timeout = at
        .field("tcpIdleTimeout")
        .duration_or(&listener.tcp_idle_timeout, TCP_IDLE_TIMEOUT);
    let role = super::mesh::role(&at, listener);
    let inbound = listener
        .inbound
        .as_ref()
        .map(|inbound| super::mesh::inbound(&at.field("inbound"), inbound));
    Some(Listener {
        role: role?,
        inbound: inbound.map_or(Some(None), |inbound| inbound.map(Some))?,
        name: name?.into(),
        address: address?,
        protocol: protocol?,
        tls: tls?,
        service,
        http_routes: None,
        tls_routes: None,
        tcp_route: None,
        proxy_protocol: proxy_protocol?,
        http: http?,
        connections_max: listener.connections_max as usize,
        tcp_idle_timeout: tcp_idle_timeout
            .map(|timeout| (!timeout.is_zero()).then_some(timeout))?,
    })
}

fn protocol(wire: wire::listener_protocol::Value) -> ListenerProtocol {
    match wire {
        wire::listener_protocol::Value::Auto => ListenerProtocol::Auto,
        wire::listener_protocol::Value::Http => ListenerProtocol::Http,
        wire::listener_protocol::Value::Tcp => ListenerProtocol::Tcp,
        wire::listener_protocol::Value::Tls => ListenerProtocol::Tls,
    }
}

fn default_service(
    at: &At<'_>,
    name: &str,
    protocol: Option<ListenerProtocol>,
    names: &ServiceNames<'_>,
) -> Option<ServiceId> {
    if name.is_empty() {
        return None;
    }
    let (id, service) = names.resolve(at, name)?;
    if protocol == Some(ListenerProtocol::Http)
        && service.protocol() == wire::service::Protocol::Tcp
    {
        at.error(format!(
            "service \"{name}\" has protocol: tcp, which cannot take a protocol: http listener's requests; change one of the two"
        ));
    }
    Some(id)
}

fn server_tls(at: &At<'_>, tls: &wire::ServerTls) -> Option<ServerTls> {
    let certificates_at = at.field("certificates");
    if tls.certificates.is_empty() {
        certificates_at.error("is missing; terminating TLS needs at least one certificate");
        return None;
    }
    Some(ServerTls {
        certificates: each(&certificates_at, &tls.certificates, service::certificate),
        client_ca: (!tls.client_ca.is_empty()).then(|| tls.client_ca.clone().into()),
    })
}

fn http_options(at: &At<'_>, options: Option<&wire::HttpOptions>) -> Option<HttpOptions> {
    use wire::http_options::Forwarded as Wire;
    let default = wire::HttpOptions::default();
    let options = options.unwrap_or(&default);
    let forwarded = known(&at.field("forwarded"), options.forwarded).map(|wire| match wire {
        Wire::Append => Forwarded::Append,
        Wire::Replace => Forwarded::Replace,
        Wire::Preserve => Forwarded::Preserve,
        Wire::Remove => Forwarded::Remove,
    });
    let request_id_header = if options.request_id_header.is_empty() {
        if options.trust_request_id {
            at.field("trustRequestId")
                .error("has no effect without requestIdHeader");
        }
        Some(None)
    } else {
        at.field("requestIdHeader")
            .header_name(&options.request_id_header)
            .map(Some)
    };
    let header_bytes_max = between(
        &at.field("headerBytesMax"),
        or_default(options.header_bytes_max, HEADER_BYTES),
        (HEADER_BYTES_LOWEST, HEADER_BYTES_HIGHEST),
    );
    let headers_max = between(
        &at.field("headersMax"),
        or_default(options.headers_max, HEADERS),
        (1, HEADERS_HIGHEST),
    );
    let header_timeout = at
        .field("headerTimeout")
        .duration_positive(&options.header_timeout, HEADER_TIMEOUT);
    let idle_timeout = at
        .field("idleTimeout")
        .duration_positive(&options.idle_timeout, IDLE_TIMEOUT);
    let body_idle_timeout = at
        .field("bodyIdleTimeout")
        .duration_positive(&options.body_idle_timeout, BODY_IDLE_TIMEOUT);
    Some(HttpOptions {
        forwarded: forwarded?,
        request_id_header: request_id_header?,
        trust_request_id: options.trust_request_id,
        header_bytes_max: header_bytes_max? as usize,
        headers_max: headers_max? as usize,
        header_timeout: header_timeout?,
        idle_timeout: idle_timeout?,
        body_idle_timeout: body_idle_timeout?,
        streams_max: or_default(options.streams_max, STREAMS),
        requests_per_connection_max: options.requests_per_connection_max,
        body_bytes_max: options.body_bytes_max,
    })
}

fn between(at: &At<'_>, value: u32, (lowest, highest): (u32, u32)) -> Option<u32> {
    if (lowest..=highest).contains(&value) {
        return Some(value);
    }
    at.error(format!(
        "{value} is out of range; it must be between {lowest} and {highest}"
    ));
    None
}

/// What can only be seen with all listeners and routes at hand.
pub(super) fn check_all(at: &At<'_>, drafts: &[Draft], admin: Option<SocketAddr>, mesh: bool) {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for (position, draft) in drafts.iter().enumerate() {
        let at = at.index(draft.index);
        let listener = &draft.listener;
        let first = *by_name.entry(&listener.name).or_insert(draft.index);
        if first != draft.index {
            at.field("name").error(format!(
                "\"{}\" is already the name of listeners[{first}]",
                listener.name
            ));
        }
        let at = at.owned_by("listener", &listener.name);
        let taken = drafts[..position].iter().find(|other| {
            is_bound(&other.listener) && overlap(other.listener.address, listener.address)
        });
        if let Some(other) = taken.filter(|_| is_bound(listener)) {
            at.field("address").error(format!(
                "{} is already taken by listeners[{}] (\"{}\", {})",
                listener.address, other.index, other.listener.name, other.listener.address
            ));
        }
        if let Some(admin) = admin.filter(|_| is_bound(listener))
            && overlap(admin, listener.address)
        {
            at.field("address").error(format!(
                "{} is already taken by settings.admin ({admin})",
                listener.address
            ));
        }
        let has_routes = listener.http_routes.is_some()
            || listener.tls_routes.is_some()
            || listener.tcp_route.is_some()
            || draft.route_named;
        // A sidecar's two listeners hand on what they accept.
        let hands_on = matches!(
            listener.role,
            ListenerRole::Outbound { .. } | ListenerRole::Inbound
        );
        if hands_on && !mesh {
            at.field("role")
                .error("needs settings.mesh, which says whose sidecar this is");
        }
        if !draft.service_named && !has_routes && !hands_on {
            at.error("leads nowhere: give it a service, or name it in a route's parentRefs");
        }
    }
}

fn is_bound(listener: &Listener) -> bool {
    !matches!(listener.role, ListenerRole::Virtual { .. })
}

/// Whether the kernel could hand a connection to either: the same address, or
/// the two wildcards (`[::]` takes IPv4 too). Port 0 is a different port each time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && (one.ip() == other.ip() || (one.ip().is_unspecified() && other.ip().is_unspecified()))
}

//! `services[]`: named sets of endpoints, and how to reach them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::at::{At, each, known, or_default};
use super::{ServiceNames, WEIGHT_MAX, balancer, health, hostname};
use crate::snapshot::{
    Certificate, ClientTls, Dns, DnsRecord, Endpoint, Limits, ProxyProtocol, RetryBudget, Service,
    ServiceProtocol,
};
use crate::wire;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const REPLAY_BYTES: u32 = 64 * 1024;
/// A body kept for a retry is held in memory for as long as the request runs.
const REPLAY_BYTES_MAX: u32 = 64 * 1024 * 1024;
const DNS_REFRESH_MIN: Duration = Duration::from_secs(1);
const DNS_REFRESH_MAX: Duration = Duration::from_secs(300);
const CONNECTIONS_MAX: u32 = 10_000;
const PENDING_MAX: u32 = 1_000;
const REQUESTS_MAX: u32 = 20_000;
const STREAMS_PER_CONNECTION_MAX: u32 = 100;
const RETRY_PERCENT: u32 = 20;
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
const RETRIES_MIN_PER_SECOND: u32 = 10;

pub(super) fn compile(
    at: &At<'_>,
    service: &wire::Service,
    names: &ServiceNames<'_>,
) -> Option<Service> {
    let at = at.owned_by("service", &service.name);
    let protocol = protocol(&at, service);
    let endpoints = endpoints(&at.field("endpoints"), &service.endpoints);
    let dns = service.dns.as_ref().map(|wire| dns(&at.field("dns"), wire));
    let tls = service
        .tls
        .as_ref()
        .map(|wire| client_tls(&at.field("tls"), wire));
    let balancer = balancer::compile(&at.field("balancer"), service.balancer.as_ref());
    let health_check = service
        .health_check
        .as_ref()
        .map(|wire| health::check(&at.field("healthCheck"), wire));
    let outlier = service
        .outlier_detection
        .as_ref()
        .map(|wire| health::outlier(&at.field("outlierDetection"), wire));
    let connect_timeout = at
        .field("connectTimeout")
        .duration_positive(&service.connect_timeout, CONNECT_TIMEOUT);
    let idle_timeout = at
        .field("idleTimeout")
        .duration_positive(&service.idle_timeout, IDLE_TIMEOUT);
    let retry_budget = retry_budget(&at.field("retryBudget"), service.retry_budget.as_ref());
    let send_proxy_protocol =
        match known(&at.field("sendProxyProtocol"), service.send_proxy_protocol) {
            Some(wire::service::ProxyProtocol::None) => Some(None),
            Some(wire::service::ProxyProtocol::V1) => Some(Some(ProxyProtocol::V1)),
            Some(wire::service::ProxyProtocol::V2) => Some(Some(ProxyProtocol::V2)),
            None => None,
        };
    if service.replay_bytes_max > REPLAY_BYTES_MAX {
        at.field("replayBytesMax")
            .error(format!("must not be more than {REPLAY_BYTES_MAX} bytes"));
    }
    Some(Service {
        id: names.id(&service.name)?,
        name: service.name.as_str().into(),
        protocol: protocol?,
        endpoints,
        dns: dns.map_or(Some(None), |dns| dns.map(Some))?,
        tls: tls.map_or(Some(None), |tls| tls.map(Some))?,
        balancer: balancer?,
        health_check: health_check.map_or(Some(None), |check| check.map(Some))?,
        outlier: outlier.map_or(Some(None), |outlier| outlier.map(Some))?,
        limits: limits(service.limits.as_ref()),
        connect_timeout: connect_timeout?,
        idle_timeout: idle_timeout?,
        retry_budget: retry_budget?,
        idempotent_retry: !service.disable_idempotent_retry,
        send_proxy_protocol: send_proxy_protocol?,
        replay_bytes_max: or_default(service.replay_bytes_max, REPLAY_BYTES) as usize,
    })
}

fn protocol(at: &At<'_>, service: &wire::Service) -> Option<ServiceProtocol> {
    use wire::service::Protocol;
    Some(match known(&at.field("protocol"), service.protocol)? {
        Protocol::Http => ServiceProtocol::Http,
        Protocol::Http1 => ServiceProtocol::Http1,
        Protocol::Http2 | Protocol::Grpc => ServiceProtocol::Http2,
        Protocol::Mirror => ServiceProtocol::Mirror,
        Protocol::Tcp => ServiceProtocol::Tcp,
    })
}

fn endpoints(at: &At<'_>, list: &[wire::Endpoint]) -> Vec<Endpoint> {
    let mut seen: HashMap<SocketAddr, usize> = HashMap::with_capacity(list.len());
    let mut index = 0;
    each(at, list, |at, endpoint| {
        let here = index;
        index += 1;
        let weight = weight(&at.field("weight"), endpoint.weight);
        let address_at = at.field("address");
        let address = endpoint_address(&address_at, &endpoint.address)?;
        if let Some(first) = seen.insert(address, here) {
            address_at.error(format!(
                "{address} is already endpoints[{first}]; for a larger share give one of them a weight"
            ));
        }
        Some(Endpoint {
            address,
            weight: weight?,
            zone: endpoint.zone.as_str().into(),
            peer: super::mesh::peer(at, endpoint, address)?.map(Arc::new),
        })
    })
}

pub(super) fn weight(at: &At<'_>, weight: Option<u32>) -> Option<u32> {
    let weight = weight.unwrap_or(1);
    if weight > WEIGHT_MAX {
        at.error(format!(
            "{weight} is too large; a weight is at most {WEIGHT_MAX}"
        ));
        return None;
    }
    Some(weight)
}

fn endpoint_address(at: &At<'_>, text: &str) -> Option<SocketAddr> {
    // A name with a port is the commonest mistake, and has an answer of its own.
    if let Some((host, port)) = text.rsplit_once(':')
        && host.parse::<IpAddr>().is_err()
        && host.bytes().any(|byte| byte.is_ascii_alphabetic())
        && hostname::is_dns_name(host)
    {
        at.error(format!(
            "\"{text}\" is a name, and endpoints are IP addresses; for a name write dns: {{name: {host}, port: {port}}} in the service"
        ));
        return None;
    }
    if !text.contains(':')
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && hostname::is_dns_name(text)
    {
        at.error(format!(
            "\"{text}\" is a name, and endpoints are IP addresses; for a name write dns: {{name: {text}, port: …}} in the service"
        ));
        return None;
    }
    let address = at.address(text)?;
    if address.port() == 0 {
        at.error(format!(
            "\"{text}\" has port 0; an endpoint's port is between 1 and 65535"
        ));
        return None;
    }
    Some(address)
}

fn dns(at: &At<'_>, dns: &wire::Dns) -> Option<Dns> {
    let name_at = at.field("name");
    let name = name_at.required(&dns.name).and_then(|name| {
        if name.parse::<IpAddr>().is_ok() {
            name_at.error(format!("\"{name}\" is an IP address; list it in endpoints"));
            return None;
        }
        if !hostname::is_dns_name(name.strip_suffix('.').unwrap_or(name)) {
            name_at.error(format!(
                "\"{name}\" is not a DNS name; the port goes in dns.port"
            ));
            return None;
        }
        Some(name)
    });
    let port_at = at.field("port");
    let port = port_at.port_optional(dns.port);
    let record = match (known(&at.field("record"), dns.record), port) {
        (Some(wire::dns::Record::Address), Some(Some(port))) => Some(DnsRecord::Address { port }),
        (Some(wire::dns::Record::Address), Some(None)) => {
            port_at.error(
                "is missing; address records need the port to connect to (or use record: srv)",
            );
            None
        }
        (Some(wire::dns::Record::Srv), Some(None)) => Some(DnsRecord::Srv),
        (Some(wire::dns::Record::Srv), Some(Some(_))) => {
            port_at.error("does not go with record: srv, whose records carry the port");
            None
        }
        _ => None,
    };
    let refresh_min = at
        .field("refreshMin")
        .duration_positive(&dns.refresh_min, DNS_REFRESH_MIN);
    let max_at = at.field("refreshMax");
    let refresh_max = max_at.duration_positive(&dns.refresh_max, DNS_REFRESH_MAX);
    let (refresh_min, refresh_max) = (refresh_min?, refresh_max?);
    if refresh_max < refresh_min {
        max_at.error("must not be shorter than refreshMin (default 1s)");
    }
    Some(Dns {
        name: Arc::from(name?),
        record: record?,
        refresh_min,
        refresh_max,
    })
}

fn client_tls(at: &At<'_>, tls: &wire::ClientTls) -> Option<ClientTls> {
    let name_at = at.field("serverName");
    let server_name = if tls.server_name.is_empty() {
        Some(None)
    } else if tls.server_name.parse::<IpAddr>().is_ok() {
        Some(Some(tls.server_name.clone()))
    } else {
        hostname::precise(&name_at, &tls.server_name).map(Some)
    };
    let client_certificate = match &tls.client_certificate {
        None => Some(None),
        Some(wire) => certificate(&at.field("clientCertificate"), wire).map(Some),
    };
    if tls.insecure_skip_verify && !tls.ca.is_empty() {
        at.field("insecureSkipVerify")
            .error("contradicts ca: either verify with these roots or not at all");
    }
    Some(ClientTls {
        server_name: server_name?.map(Arc::from),
        ca: (!tls.ca.is_empty()).then(|| tls.ca.clone().into()),
        client_certificate: client_certificate?,
        insecure_skip_verify: tls.insecure_skip_verify,
    })
}

pub(super) fn certificate(at: &At<'_>, certificate: &wire::Certificate) -> Option<Certificate> {
    let file = |field: &str, text: &str| {
        if text.is_empty() {
            at.field(field).error("is missing; name a PEM file");
        }
        (!text.is_empty()).then(|| text.into())
    };
    let chain = file("certificate", &certificate.certificate);
    let private_key = file("privateKey", &certificate.private_key);
    Some(Certificate {
        certificate: chain?,
        private_key: private_key?,
    })
}

fn limits(limits: Option<&wire::Limits>) -> Limits {
    let limits = limits.copied().unwrap_or_default();
    Limits {
        connections_max: or_default(limits.connections_max, CONNECTIONS_MAX) as usize,
        pending_max: or_default(limits.pending_max, PENDING_MAX) as usize,
        requests_max: or_default(limits.requests_max, REQUESTS_MAX) as usize,
        streams_per_connection_max: or_default(
            limits.streams_per_connection_max,
            STREAMS_PER_CONNECTION_MAX,
        ) as usize,
    }
}

fn retry_budget(at: &At<'_>, budget: Option<&wire::RetryBudget>) -> Option<RetryBudget> {
    let budget = budget.cloned().unwrap_or_default();
    let percent = at
        .field("percent")
        .percent(budget.percent.unwrap_or(RETRY_PERCENT));
    let interval = at
        .field("interval")
        .duration_positive(&budget.interval, RETRY_INTERVAL);
    Some(RetryBudget {
        percent: percent?,
        interval: interval?,
        retries_min_per_second: budget
            .retries_min_per_second
            .unwrap_or(RETRIES_MIN_PER_SECOND),
    })
}

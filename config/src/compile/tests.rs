//! The defaults that the schema's comments promise, and the forms of rules.

use std::time::Duration;

use crate::file::load;
use crate::snapshot::*;

fn snapshot(text: &str) -> Snapshot {
    load("test.yaml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

const MINIMAL: &str = "
listeners: [{name: l, address: '0.0.0.0:80', service: s}]
services: [{name: s, dns: {name: s.local, port: 80}, healthCheck: {}, outlierDetection: {}, endpoints: [{address: '1.1.1.1:1'}]}]
routes:
- name: r
  parentRefs: [{name: l}]
  rules:
  - backendRefs: [{name: s}]
    retry: {}
    sessionPersistence: {}
    filters: [{cors: {allowOrigins: ['*']}}, {requestMirror: {backendRef: {name: s}}}]
";

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn defaults_of_the_process() {
    let settings = snapshot(MINIMAL).settings;
    assert_eq!(
        settings,
        Settings {
            workers: 0,
            admin: "0.0.0.0:14020".parse().expect("an address"),
            access_log: AccessLog {
                format: AccessLogFormat::Off,
                path: None
            },
            drain_timeout: seconds(30),
            drain_quiet: seconds(1),
            drain_barrier: seconds(15),
            drain_path: None,
            zone: "".into(),
            connections_max: 0,
            metric_label_values_max: 1000,
            mesh: None,
        }
    );
}

#[test]
fn defaults_of_a_listener() {
    let snapshot = snapshot(MINIMAL);
    let listener = &snapshot.listeners[0];
    assert_eq!(listener.protocol, ListenerProtocol::Auto);
    assert_eq!(listener.tls, None);
    assert_eq!(listener.proxy_protocol, None);
    assert_eq!(listener.connections_max, 0);
    assert_eq!(listener.tcp_idle_timeout, Some(seconds(3600)));
    assert_eq!(
        listener.http,
        HttpOptions {
            forwarded: Forwarded::Append,
            request_id_header: None,
            trust_request_id: false,
            header_bytes_max: 60 * 1024,
            headers_max: 100,
            header_timeout: seconds(10),
            idle_timeout: seconds(75),
            body_idle_timeout: seconds(60),
            streams_max: 250,
            requests_per_connection_max: 0,
            body_bytes_max: 0,
        }
    );
}

#[test]
fn defaults_of_a_service() {
    let snapshot = snapshot(MINIMAL);
    let service = &snapshot.services[0];
    assert_eq!(service.protocol, ServiceProtocol::Http);
    assert_eq!(
        (service.endpoints[0].weight, &*service.endpoints[0].zone),
        (1, "")
    );
    let dns = service.dns.as_ref().expect("has dns");
    assert_eq!(
        (dns.refresh_min, dns.refresh_max),
        (seconds(1), seconds(300))
    );
    assert_eq!(dns.record, DnsRecord::Address { port: 80 });
    assert_eq!(service.tls, None);
    assert_eq!(
        service.balancer,
        Balancer {
            algorithm: Algorithm::PeakEwma,
            hash: vec![],
            slow_start: Duration::ZERO,
            panic_percent: 50,
            zone_healthy_percent: 70,
            ewma_decay: seconds(10),
        }
    );
    assert_eq!(
        service.health_check,
        Some(HealthCheck {
            kind: HealthCheckKind::Http {
                path: "/".into(),
                host: None,
                statuses: vec![]
            },
            interval: seconds(5),
            timeout: seconds(1),
            healthy_threshold: 1,
            unhealthy_threshold: 3,
            port: None,
        })
    );
    assert_eq!(
        service.outlier,
        Some(OutlierDetection {
            consecutive_failures: 5,
            interval: seconds(10),
            base_ejection_time: seconds(30),
            ejection_time_max: seconds(300),
            ejected_percent_max: 50,
            success_rate_stdev: 1.9,
            success_rate_requests_min: 100,
            success_rate_endpoints_min: 5,
        })
    );
    assert_eq!(
        service.limits,
        Limits {
            connections_max: 10_000,
            pending_max: 1_000,
            requests_max: 20_000,
            streams_per_connection_max: 100,
        }
    );
    assert_eq!(
        (service.connect_timeout, service.idle_timeout),
        (seconds(5), seconds(60))
    );
    assert_eq!(
        service.retry_budget,
        RetryBudget {
            percent: 20,
            interval: seconds(10),
            retries_min_per_second: 10
        }
    );
    assert!(service.idempotent_retry);
    assert_eq!(service.send_proxy_protocol, None);
    assert_eq!(service.replay_bytes_max, 64 * 1024);
}

#[test]
fn defaults_of_a_rule() {
    let snapshot = snapshot(MINIMAL);
    let table = snapshot.listeners[0]
        .http_routes
        .as_ref()
        .expect("has routes");
    let entry = &table.entries[0];
    assert!(matches!(entry.condition.path, PathCondition::Any));
    let rule = &entry.rule;
    assert_eq!((&*rule.route, &*rule.name, rule.grpc), ("r", "0", false));
    assert_eq!((rule.backends[0].weight, rule.weight_total), (1, 1));
    assert_eq!((rule.request_timeout, rule.try_timeout), (None, None));
    assert_eq!(
        rule.retry,
        Some(RetryPolicy {
            codes: vec![],
            grpc_codes: vec![],
            attempts: 1,
            backoff: Duration::from_millis(25),
        })
    );
    assert_eq!(
        rule.session,
        Some(SessionPersistence {
            source: SessionSource::Cookie("weft-session".into()),
            absolute_timeout: None,
            idle_timeout: None,
        })
    );
    let [Filter::Cors(cors), Filter::Mirror(mirror)] = rule.filters.as_slice() else {
        panic!("{:?}", rule.filters);
    };
    assert_eq!(cors.max_age, 5);
    assert_eq!((mirror.numerator, mirror.denominator), (100, 100));
}

#[test]
fn timeouts() {
    for (yaml, request, one_try) in [
        ("{request: 10s, backendRequest: 10s}", Some(10), Some(10)),
        ("{request: 0s, backendRequest: 5s}", None, Some(5)),
        ("{request: 10s, backendRequest: 0s}", Some(10), None),
        ("{request: 1m}", Some(60), None),
        ("{}", None, None),
    ] {
        let snapshot = snapshot(&MINIMAL.replace("retry: {}", &format!("timeouts: {yaml}")));
        let table = snapshot.listeners[0]
            .http_routes
            .as_ref()
            .expect("has routes");
        let rule = &table.entries[0].rule;
        assert_eq!(rule.request_timeout, request.map(seconds), "{yaml}");
        assert_eq!(rule.try_timeout, one_try.map(seconds), "{yaml}");
    }
}

#[test]
fn zero_turns_off_or_is_taken_as_it_is() {
    let snapshot = snapshot(
        "
listeners: [{name: l, address: '0.0.0.0:80', service: s, tcpIdleTimeout: 0s}]
services: [{name: s, balancer: {panicPercent: 0, zoneHealthyPercent: 0}, outlierDetection: {consecutiveFailures: 0, successRateStdevMilli: 0, ejectedPercentMax: 0}, retryBudget: {percent: 0, retriesMinPerSecond: 0}, endpoints: [{address: '1.1.1.1:1', weight: 0}]}]
",
    );
    assert_eq!(snapshot.listeners[0].tcp_idle_timeout, None);
    let service = &snapshot.services[0];
    assert_eq!(
        (
            service.balancer.panic_percent,
            service.balancer.zone_healthy_percent
        ),
        (0, 0)
    );
    let outlier = service.outlier.as_ref().expect("is on");
    assert_eq!(
        (outlier.consecutive_failures, outlier.ejected_percent_max),
        (0, 0)
    );
    assert!(outlier.success_rate_stdev.abs() < f64::EPSILON);
    assert_eq!(
        (
            service.retry_budget.percent,
            service.retry_budget.retries_min_per_second
        ),
        (0, 0)
    );
    assert_eq!(service.endpoints[0].weight, 0);
}

#[test]
fn listeners_that_may_stand_together() {
    // Any port is a new one, and specific addresses do not collide.
    snapshot(
        "
listeners:
- {name: a, address: '127.0.0.1:0', service: s}
- {name: b, address: '127.0.0.1:0', service: s}
- {name: c, address: '127.0.0.1:80', service: s}
- {name: d, address: '127.0.0.2:80', service: s}
services: [{name: s}]
",
    );
}

#[test]
fn routes_of_different_kinds_may_share_a_name() {
    snapshot(
        "
listeners: [{name: l, address: '0.0.0.0:80'}]
services: [{name: s, protocol: grpc}]
routes:
- {name: r, parentRefs: [{name: l}, {name: l}], rules: [{backendRefs: [{name: s}]}]}
- {name: r, kind: grpc, parentRefs: [{name: l}], rules: [{backendRefs: [{name: s}]}]}
",
    );
}

#[test]
fn the_revision_follows_the_content() {
    let one = snapshot(MINIMAL).revision;
    assert_eq!(one.len(), 12);
    assert_eq!(one, snapshot(MINIMAL).revision);
    assert_ne!(
        one,
        snapshot(&MINIMAL.replace("0.0.0.0:80", "0.0.0.0:81")).revision
    );
}

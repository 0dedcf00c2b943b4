//! What every request pays for, alone: selecting a route among 1,000 rules, picking
//! one of 1,000 endpoints, recording it in the metrics.
//! `cargo bench -p weft-benches --bench micro`; hop measures them in their place.

use std::fmt::Write;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use weft_config::select::{RequestHead, Selection, select};
use weft_config::snapshot::{Algorithm, Balancer, Scheme, Snapshot};
use weft_proxy::logic::balance::{EndpointSet, EndpointState, InFlight, Outcome};
use weft_proxy::logic::cause::Cause;
use weft_proxy::logic::time::Nanos;
use weft_proxy::telemetry::metrics::{Metrics, RequestSeries};

const ROUTES: usize = 100;
const RULES_PER_ROUTE: usize = 10;
const ENDPOINTS: u16 = 1000;
/// The same numbers each time.
const SEED: u64 = 7;

/// 100 routes of a hostname each, of 10 rules each: 1,000 rules.
fn by_hostname() -> Snapshot {
    snapshot(
        (0..ROUTES)
            .map(|route| (format!("h{route}.example.com"), RULES_PER_ROUTE))
            .collect(),
    )
}

/// The same 1,000 rules on one hostname.
fn by_path() -> Snapshot {
    snapshot(vec![(
        "h0.example.com".to_owned(),
        ROUTES * RULES_PER_ROUTE,
    )])
}

/// Every rule of a path prefix; every other one of a header too.
fn snapshot(hosts: Vec<(String, usize)>) -> Snapshot {
    let mut text = String::from(
        "listeners: [{name: web, address: \"127.0.0.1:8080\", protocol: http}]\n\
         services: [{name: up, endpoints: [{address: \"127.0.0.1:9000\"}]}]\nroutes:\n",
    );
    for (index, (host, rules)) in hosts.into_iter().enumerate() {
        // Sixteen rules a route at most, as in Gateway API.
        for (part, start) in (0..rules).step_by(16).enumerate() {
            let parent = "parentRefs: [{name: web}]";
            writeln!(
                text,
                "- {{name: r{index}-{part}, {parent}, hostnames: [{host}], rules: ["
            )
            .expect("a String takes it");
            for rule in start..(start + 16).min(rules) {
                let headers = if rule % 2 == 1 {
                    "headers: [{name: x-canary, value: \"1\"}], "
                } else {
                    ""
                };
                let matches = format!("matches: [{{{headers}path: {{value: /p{rule}}}}}]");
                writeln!(text, "  {{{matches}, backendRefs: [{{name: up}}]}},")
                    .expect("a String takes it");
            }
            text.push_str("  ]}\n");
        }
    }
    weft_config::file::load("micro.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn selection(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("select a route of 1,000 rules");
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("user-agent", "micro"),
        ("accept", "*/*"),
        ("x-canary", "1"),
    ] {
        headers.insert(name, http::HeaderValue::from_static(value));
    }
    let (by_hostname, by_path) = (by_hostname(), by_path());
    for (name, snapshot, authority, path, found) in [
        (
            "100 hostnames",
            &by_hostname,
            "h73.example.com:8080",
            "/p8/a/b",
            true,
        ),
        (
            "100 hostnames, header too",
            &by_hostname,
            "h73.example.com",
            "/p7/a/b",
            true,
        ),
        (
            "1 hostname, first",
            &by_path,
            "h0.example.com",
            "/p998",
            true,
        ),
        (
            "1 hostname, last",
            &by_path,
            "h0.example.com",
            "/p0/a/b",
            true,
        ),
        (
            "1 hostname, none",
            &by_path,
            "h0.example.com",
            "/elsewhere/a/b",
            false,
        ),
        ("no such hostname", &by_hostname, "other.test", "/p8", false),
    ] {
        let listener = &snapshot.listeners[0];
        let method = Method::GET;
        let request = RequestHead {
            method: &method,
            scheme: Scheme::Http,
            authority,
            path,
            query: None,
            headers: &headers,
        };
        let selected = matches!(select(listener, &request, None), Selection::Rule { .. });
        assert_eq!(selected, found, "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter(|| select(black_box(listener), black_box(&request), None))
        });
    }
    group.finish();
}

/// A latency known of each endpoint, and a request on every third for as long as
/// the second value lives.
fn endpoints(algorithm: Algorithm) -> (EndpointSet, Vec<InFlight>) {
    let mut under_way = Vec::new();
    let start = Nanos::ZERO;
    let states: Vec<Arc<EndpointState>> = (0..ENDPOINTS)
        .map(|index| {
            let address =
                SocketAddr::from((Ipv4Addr::new(10, 0, (index >> 8) as u8, index as u8), 80));
            Arc::new(EndpointState::new(address, Arc::from(""), 1, start))
        })
        .collect();
    for (index, state) in states.iter().enumerate() {
        let latency = Duration::from_micros(500 + index as u64);
        let in_flight = state.begin(start);
        if index % 3 == 0 {
            in_flight.observe(Outcome::Success, latency, start + latency);
            under_way.push(in_flight);
        } else {
            in_flight.finish(Outcome::Success, latency, start + latency);
        }
    }
    let balancer = Balancer {
        algorithm,
        hash: Vec::new(),
        slow_start: Duration::ZERO,
        panic_percent: 50,
        zone_healthy_percent: 70,
        ewma_decay: Duration::from_secs(10),
    };
    (EndpointSet::new(states, &balancer, ""), under_way)
}

fn picking(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick one of 1,000 endpoints");
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
        Algorithm::Random,
        Algorithm::ConsistentHash,
    ] {
        let (set, _under_way) = endpoints(algorithm);
        let now = Nanos::from(Duration::from_secs(1));
        let name = format!("{algorithm:?}");
        let mut random = SmallRng::seed_from_u64(SEED);
        let mut key = SEED;
        group.bench_function(BenchmarkId::from_parameter(&name), |bencher| {
            bencher.iter(|| {
                key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                set.pick(black_box(now), &mut random, Some(key), &[])
                    .map(|pick| pick.endpoint.address())
            });
        });
        let mut random = SmallRng::seed_from_u64(SEED);
        group.bench_function(
            BenchmarkId::new(name, "and its request recorded"),
            |bencher| {
                bencher.iter(|| {
                    key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if let Some(pick) = set.pick(black_box(now), &mut random, Some(key), &[]) {
                        let in_flight = pick.endpoint.begin(now);
                        in_flight.finish(Outcome::Success, Duration::from_micros(700), now);
                    }
                });
            },
        );
    }
    group.finish();
}

fn recording(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record a request in the metrics");
    let metrics = Metrics::default();
    let names: Vec<String> = (0..ENDPOINTS)
        .map(|index| format!("10.0.{}.{}:80", index >> 8, index & 255))
        .collect();
    let series: Vec<Arc<RequestSeries>> = names
        .iter()
        .map(|backend| metrics.series("web", "up", "route", backend))
        .collect();
    let latency = Duration::from_micros(700);
    group.bench_function("one series", |bencher| {
        bencher.iter(|| {
            black_box(&series[0]).record(200, Cause::Answered, black_box(latency), 120, 200)
        });
    });
    let mut turn = 0;
    group.bench_function("1,000 series in turn", |bencher| {
        bencher.iter(|| {
            turn = (turn + 1) % series.len();
            black_box(&series[turn]).record(200, Cause::Answered, black_box(latency), 120, 200);
        });
    });
    group.bench_function("looking its series up by name", |bencher| {
        bencher.iter(|| metrics.series("web", "up", "route", black_box(&names[7])));
    });
    group.finish();
}

criterion_group!(benches, selection, picking, recording);
criterion_main!(benches);

//! The index alone: what one change costs with few services and with many, which is about the
//! same, and how its memory grows with them (printed, and written to target/index-memory.json).

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, criterion_group};
use weft_controller::api::{Node, Object, Pod, Service, ServicePort, Slice, SliceEndpoint, Spec};
use weft_controller::index::{Change, Index};

const SERVICES: [u32; 5] = [100, 300, 1_000, 3_000, 10_000];
/// Endpoints of each service, each with its pod.
const ENDPOINTS: u32 = 10;
const NAMESPACES: u32 = 20;
const PODS_OF_NODE: u32 = 110;

fn change(namespace: String, name: String, spec: Spec) -> Change {
    let object = Object {
        namespace,
        name,
        created: None,
        generation: 0,
        spec,
    };
    Change {
        key: object.key(),
        object: Some(Arc::new(object)),
    }
}

fn namespace(service: u32) -> String {
    format!("namespace-{}", service % NAMESPACES)
}

fn ip(service: u32, endpoint: u32) -> IpAddr {
    let number = 0x0a00_0000 + service * 16 + endpoint;
    IpAddr::V4(Ipv4Addr::from_bits(number))
}

/// As long as the API server's.
fn uid(service: u32, endpoint: u32) -> String {
    let pod = service * ENDPOINTS + endpoint;
    format!(
        "{:08x}-7c1f-4f0a-9d5e-{pod:012x}",
        pod.wrapping_mul(0x9e37_79b9)
    )
}

fn slice(service: u32, ready: bool) -> Change {
    let endpoints = (1..=ENDPOINTS).map(|endpoint| SliceEndpoint {
        addresses: vec![ip(service, endpoint)],
        ready: ready || endpoint > 1,
        serving: true,
        terminating: false,
        zone: String::new(),
        pod: Some((
            format!("service-{service}-{endpoint}"),
            uid(service, endpoint),
        )),
    });
    let slice = Slice {
        service: format!("service-{service}"),
        ports: vec![("http".to_owned(), 8080)],
        endpoints: endpoints.collect(),
    };
    let name = format!("service-{service}");
    change(namespace(service), name, Spec::Slice(slice))
}

fn pod(service: u32, endpoint: u32) -> Change {
    let pod = Pod {
        uid: uid(service, endpoint),
        account: format!("service-{service}"),
        labels: [("app".to_owned(), format!("service-{service}"))].into(),
        addresses: vec![ip(service, endpoint)],
        inbound: Some("captured".to_owned()),
        node: format!("node-{}", (service * ENDPOINTS + endpoint) / PODS_OF_NODE),
        is_leaving: false,
    };
    let name = format!("service-{service}-{endpoint}");
    change(namespace(service), name, Spec::Pod(pod))
}

fn index(services: u32) -> Index {
    let mut index = Index::new("cluster.local");
    let nodes = (0..=services * (ENDPOINTS + 1) / PODS_OF_NODE).map(|node| {
        let zone = format!("zone-{}", node % 3);
        change(
            String::new(),
            format!("node-{node}"),
            Spec::Node(Node { zone }),
        )
    });
    index.apply(nodes);
    let changes = (0..services).flat_map(|service| {
        let port = ServicePort {
            name: "http".to_owned(),
            port: 80,
            protocol: "http".to_owned(),
            unknown_protocol: false,
        };
        let of = Service {
            addresses: vec![ip(service, 0)],
            ports: vec![port],
            ..Service::default()
        };
        let name = format!("service-{service}");
        let own = change(namespace(service), name, Spec::Service(of));
        let pods = (1..=ENDPOINTS).map(move |endpoint| pod(service, endpoint));
        [own, slice(service, true)].into_iter().chain(pods)
    });
    index.apply(changes);
    index
}

fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("an endpoint's readiness");
    for services in SERVICES {
        let mut index = index(services);
        let mut ready = false;
        let id = BenchmarkId::from_parameter(services);
        group.bench_function(id, |bencher| {
            bencher.iter(|| {
                ready = !ready;
                black_box(index.apply([slice(services / 2, ready)]))
            });
        });
    }
    group.finish();
    criterion.bench_function("all of 1000 services", |bencher| {
        bencher.iter(|| black_box(index(1_000)));
    });
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The smallest first: what one gives back the next takes.
fn memory() {
    let mut written = String::new();
    for services in SERVICES {
        let (before, begun) = (resident(), Instant::now());
        let index = black_box(index(services));
        let (bytes, took) = (resident().saturating_sub(before), begun.elapsed());
        drop(index);
        let endpoints = services * ENDPOINTS;
        println!(
            "{services} services, {endpoints} endpoints: {:.1} MiB, built in {:.2} s",
            bytes as f64 / f64::from(1 << 20),
            took.as_secs_f64()
        );
        let _ = writeln!(
            written,
            r#"{{"services": {services}, "endpoints": {endpoints}, "bytes": {bytes}}}"#
        );
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    if let Err(error) = fs::write(target.join("index-memory.json"), written) {
        println!("index-memory.json cannot be written: {error}");
    }
}

criterion_group!(benches, one_change);

fn main() {
    memory();
    benches();
    Criterion::default().configure_from_args().final_summary();
}

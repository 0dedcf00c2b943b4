//! What one change costs the index, with few services and with many: about the same.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use weft_controller::api::{Object, Pod, Service, ServicePort, Slice, SliceEndpoint, Spec};
use weft_controller::index::{Change, Index};

/// Endpoints of each service.
const ENDPOINTS: u32 = 5;

fn change(name: String, spec: Spec) -> Change {
    let object = Object {
        namespace: "shop".to_owned(),
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

fn ip(service: u32, endpoint: u32) -> IpAddr {
    let number = 0x0a00_0000 + service * 16 + endpoint;
    IpAddr::V4(Ipv4Addr::from_bits(number))
}

fn slice(service: u32, ready: bool) -> Change {
    let endpoints = (1..=ENDPOINTS).map(|endpoint| SliceEndpoint {
        addresses: vec![ip(service, endpoint)],
        ready: ready || endpoint > 1,
        serving: true,
        terminating: false,
        zone: String::new(),
        pod: Some((
            format!("s{service}-{endpoint}"),
            format!("u{service}-{endpoint}"),
        )),
    });
    let slice = Slice {
        service: format!("s{service}"),
        ports: vec![("http".to_owned(), 8080)],
        endpoints: endpoints.collect(),
    };
    change(format!("s{service}"), Spec::Slice(slice))
}

fn index(services: u32) -> Index {
    let mut index = Index::new("cluster.local");
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
        let pods = (1..=ENDPOINTS).map(move |endpoint| {
            let pod = Pod {
                uid: format!("u{service}-{endpoint}"),
                account: format!("s{service}"),
                addresses: vec![ip(service, endpoint)],
                inbound: Some("captured".to_owned()),
                ..Pod::default()
            };
            change(format!("s{service}-{endpoint}"), Spec::Pod(pod))
        });
        let own = change(format!("s{service}"), Spec::Service(of));
        [own, slice(service, true)].into_iter().chain(pods)
    });
    index.apply(changes);
    index
}

fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("an endpoint's readiness");
    for services in [100, 1_000, 10_000] {
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

criterion_group!(benches, one_change);
criterion_main!(benches);

//! Names against a DNS server on loopback that changes its mind.

use super::*;
use crate::state::tests::shared;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use tokio::net::UdpSocket;

/// What the server says: addresses of every name, SRV targets, or an error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone {
    pub(crate) addresses: Vec<[u8; 4]>,
    pub(crate) services: Vec<(u16, u16, u16, &'static str)>,
    pub(crate) fails: bool,
}

pub(crate) async fn server(zone: Arc<Mutex<Zone>>) -> SharedResolver {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let zone = zone.lock().clone();
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            answer.metadata.recursion_available = true;
            let asked = query.queries[0].clone();
            if zone.fails {
                answer.metadata.response_code = ResponseCode::ServFail;
            }
            let name = asked.name().clone();
            let data: Vec<RData> = match asked.query_type() {
                _ if zone.fails => Vec::new(),
                RecordType::A => zone
                    .addresses
                    .iter()
                    .map(|ip| RData::A(A((*ip).into())))
                    .collect(),
                RecordType::SRV => zone
                    .services
                    .iter()
                    .map(|(priority, weight, port, target)| {
                        let target = Name::from_ascii(target).unwrap();
                        RData::SRV(SRV::new(*priority, *weight, *port, target))
                    })
                    .collect(),
                _ => Vec::new(),
            };
            answer.add_query(asked);
            for data in data {
                answer.add_answer(Record::from_rdata(name.clone(), 0, data));
            }
            socket
                .send_to(&answer.to_vec().unwrap(), peer)
                .await
                .unwrap();
        }
    });
    let mut connection = ConnectionConfig::new(ProtocolConfig::Udp);
    connection.port = port;
    let server = NameServerConfig::new([127, 0, 0, 1].into(), true, vec![connection]);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().cache_size = 0;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    SharedResolver(Arc::new(Mutex::new(Some(builder.build().unwrap()))))
}

fn service(dns: &str) -> Arc<Shared> {
    shared(&format!(
        "
listeners: [{{name: web, address: '127.0.0.1:0', service: a}}]
services:
- {{name: a, dns: {{{dns}, refreshMin: 10ms, refreshMax: 20ms}}}}
"
    ))
}

fn endpoints(shared: &Shared) -> Vec<(String, u32)> {
    let set = shared.runtime.load().services[0].endpoints.load_full();
    let mut all: Vec<_> = set
        .endpoints()
        .iter()
        .map(|endpoint| (endpoint.address().to_string(), endpoint.weight()))
        .collect();
    all.sort();
    all
}

async fn until(shared: &Shared, want: &[(&str, u32)]) {
    let want: Vec<(String, u32)> = want.iter().map(|(a, w)| ((*a).to_owned(), *w)).collect();
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while endpoints(shared) != want {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    if waited.await.is_err() {
        panic!("have {:?}, want {want:?}", endpoints(shared));
    }
}

#[tokio::test]
async fn addresses_are_followed_and_an_outage_keeps_the_last() {
    let zone = Arc::new(Mutex::new(Zone {
        addresses: vec![[10, 0, 0, 1], [10, 0, 0, 2]],
        ..Zone::default()
    }));
    let resolver = server(Arc::clone(&zone)).await;
    let shared = service("name: a.example., port: 80");
    let task = tokio::spawn(run(Arc::clone(&shared), "a".into(), resolver));
    until(&shared, &[("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]).await;
    zone.lock().addresses.remove(0);
    until(&shared, &[("10.0.0.2:80", 1)]).await;
    zone.lock().fails = true;
    tokio::time::sleep(Duration::from_millis(100)).await;
    until(&shared, &[("10.0.0.2:80", 1)]).await;
    *zone.lock() = Zone::default();
    until(&shared, &[]).await;
    task.abort();
}

#[tokio::test]
async fn services_give_ports_and_weights_of_the_best_priority() {
    let zone = Arc::new(Mutex::new(Zone {
        addresses: vec![[10, 0, 0, 1]],
        services: vec![
            (1, 5, 8080, "x.example."),
            (1, 0, 8081, "y.example."),
            (2, 9, 9090, "z.example."),
        ],
        fails: false,
    }));
    let resolver = server(zone).await;
    let shared = service("name: _http._tcp.a.example., record: srv");
    let task = tokio::spawn(run(Arc::clone(&shared), "a".into(), resolver));
    until(&shared, &[("10.0.0.1:8080", 5), ("10.0.0.1:8081", 1)]).await;
    task.abort();
}

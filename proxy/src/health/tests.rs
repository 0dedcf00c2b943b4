//! Checks against real servers on loopback that change their minds.

use super::*;
use crate::state::tests::shared;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn until(what: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("it happens in time");
}

fn check(port: u16, kind: &str) -> Arc<Shared> {
    shared(&format!(
        "
listeners: [{{name: web, address: '127.0.0.1:0', service: a}}]
services:
- name: a
  healthCheck: {{{kind}, interval: 20ms, timeout: 500ms, unhealthyThreshold: 2, healthyThreshold: 2}}
  endpoints: [{{address: '127.0.0.1:{port}'}}]
"
    ))
}

fn health(shared: &Shared) -> Health {
    shared.runtime.load().services[0]
        .endpoints
        .load()
        .endpoints()[0]
        .health()
}

#[tokio::test]
async fn http_checks_follow_what_the_server_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shared = check(
        listener.local_addr().unwrap().port(),
        "kind: http, path: /live, host: app",
    );
    let good = Arc::new(AtomicBool::new(true));
    let server = tokio::spawn({
        let good = Arc::clone(&good);
        async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 1024];
                let read = tcp.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
                assert!(
                    head.starts_with("get /live http/1.1\r\n") && head.contains("host: app\r\n"),
                    "{head}"
                );
                let status = if good.load(Ordering::Relaxed) {
                    "204 Fine"
                } else {
                    "500 No"
                };
                let _ = tcp
                    .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await;
            }
        }
    });
    let task = tokio::spawn(run(Arc::clone(&shared), "a".into()));
    until(|| health(&shared) == Health::Healthy).await;
    good.store(false, Ordering::Relaxed);
    until(|| health(&shared) == Health::Unhealthy).await;
    good.store(true, Ordering::Relaxed);
    until(|| health(&shared) == Health::Healthy).await;
    task.abort();
    server.abort();
}

#[tokio::test]
async fn tcp_checks_see_a_closed_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shared = check(listener.local_addr().unwrap().port(), "kind: tcp");
    let task = tokio::spawn(run(Arc::clone(&shared), "a".into()));
    until(|| health(&shared) == Health::Healthy).await;
    drop(listener);
    until(|| health(&shared) == Health::Unhealthy).await;
    task.abort();
}

#[tokio::test]
async fn grpc_checks_ask_the_health_service() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shared = check(
        listener.local_addr().unwrap().port(),
        "kind: grpc, grpcService: cart",
    );
    let serving = Arc::new(AtomicBool::new(false));
    let server = tokio::spawn({
        let serving = Arc::clone(&serving);
        async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let serving = Arc::clone(&serving);
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(tcp).await?;
                    while let Some(request) = connection.accept().await {
                        let (request, mut answer) = request?;
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        let status = if serving.load(Ordering::Relaxed) {
                            1
                        } else {
                            2
                        };
                        let mut send = answer.send_response(http::Response::new(()), false)?;
                        send.send_data(grpc::frame(&grpc::CheckResponse { status }), false)?;
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                        send.send_trailers(trailers)?;
                    }
                    Ok::<_, h2::Error>(())
                });
            }
        }
    });
    let task = tokio::spawn(run(Arc::clone(&shared), "a".into()));
    until(|| health(&shared) == Health::Unhealthy).await;
    serving.store(true, Ordering::Relaxed);
    until(|| health(&shared) == Health::Healthy).await;
    task.abort();
    server.abort();
}

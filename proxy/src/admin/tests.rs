//! Every page over a real connection, and who may see it.

use super::*;
use crate::control::{Applied, REQUESTS_MAX, Request as Asked};
use crate::drain::Phase;
use crate::state::tests::shared;
use crate::telemetry::log::LogControl;
use parking_lot::Mutex;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

const YAML: &str = "
listeners: [{name: web, address: '127.0.0.1:18080', protocol: http, service: a}]
services: [{name: a, endpoints: [{address: '10.0.0.1:80', zone: z}]}]
";

fn control() -> (Arc<Control>, mpsc::Receiver<Asked>) {
    control_of(YAML)
}

fn control_of(yaml: &str) -> (Arc<Control>, mpsc::Receiver<Asked>) {
    let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
    let source = weft_config::file::parse(yaml).unwrap();
    let control = Control {
        shared: shared(yaml),
        log: LogControl::detached("info"),
        requests,
        applied: Mutex::new(Applied {
            source: Arc::new(source),
            from: "weft.yaml".to_owned(),
            since: std::time::SystemTime::UNIX_EPOCH,
            refused: Some((std::time::SystemTime::UNIX_EPOCH, "a\nb".to_owned())),
            bound: Vec::new(),
        }),
        worker_count: 2,
    };
    (Arc::new(control), receiver)
}

async fn ask(control: &Arc<Control>, request: &str) -> (u16, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, Arc::clone(control), Arc::default()));
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    tcp.read_to_string(&mut all).await.unwrap();
    server.abort();
    let status = all[9..12].parse().unwrap();
    let body = all.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}

async fn get(control: &Arc<Control>, path: &str) -> (u16, String) {
    ask(
        control,
        &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
    )
    .await
}

#[tokio::test]
async fn readiness_follows_the_process() {
    let (control, _receiver) = control();
    let ready = async |want: (u16, &str)| {
        let (status, body) = get(&control, "/ready").await;
        assert_eq!((status, body.as_str()), want);
    };
    ready((503, "not ready: starting\n")).await;
    control.shared.ready.store(true, Ordering::Relaxed);
    ready((200, "ready\n")).await;
    control.shared.drain.advance(Phase::Draining);
    ready((503, "not ready: draining\n")).await;
    assert_eq!(get(&control, "/live").await.0, 200);
}

#[tokio::test]
async fn the_pages_show_the_state() {
    let (control, _receiver) = control();
    let (_, body) = get(&control, "/config").await;
    let page: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(page["config"]["listeners"][0]["name"], "web");
    assert_eq!(
        page["lastReloadRefused"]["errors"],
        serde_json::json!(["a", "b"])
    );
    let (_, body) = get(&control, "/endpoints").await;
    let page: serde_json::Value = serde_json::from_str(&body).unwrap();
    let endpoint = &page["services"][0]["endpoints"][0];
    assert_eq!(endpoint["address"], "10.0.0.1:80");
    assert_eq!(endpoint["health"], "unknown");
    let (_, body) = get(&control, "/listeners").await;
    assert!(body.contains("127.0.0.1:18080"));
    let (status, body) = get(&control, "/explain?url=http://x:18080/y").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("\"listener\": \"web\""), "{body}");
    assert_eq!(get(&control, "/explain").await.0, 400);
    let (_, body) = get(&control, "/metrics").await;
    for line in [
        r#"weft_endpoints{service="a",state="available"} 1"#,
        r#"weft_connections_open{listener="web"} 0"#,
        r#"weft_limit_max{service="a",limit="connection"} 10000"#,
        "weft_workers 2",
    ] {
        assert!(body.lines().any(|found| found == line), "no `{line}`");
    }
    let (status, body) = get(&control, "/nothing").await;
    assert!(status == 404 && body.contains("/metrics"));
}

#[tokio::test]
async fn what_changes_something_needs_its_method() {
    let (control, mut receiver) = control();
    assert_eq!(get(&control, "/drain").await.0, 405);
    let post = |path: &str, more: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{more}\r\n")
    };
    assert_eq!(ask(&control, &post("/drain", "")).await.0, 202);
    assert!(matches!(receiver.recv().await, Some(Asked::Drain)));
    assert_eq!(
        ask(&control, &post("/drain", "origin: http://evil\r\n"))
            .await
            .0,
        403
    );
    let reload = tokio::spawn({
        let (control, request) = (Arc::clone(&control), post("/reload", ""));
        async move { ask(&control, &request).await }
    });
    let Some(Asked::Reload(answer)) = receiver.recv().await else {
        panic!("no reload")
    };
    answer.send(Err("line 1".to_owned())).unwrap();
    let (status, body) = reload.await.unwrap();
    assert!(status == 422 && body.contains("line 1"));
    let put = |level: &str| {
        format!(
            "PUT /log-level HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{level}",
            level.len()
        )
    };
    assert_eq!(ask(&control, &put("debug")).await.0, 200);
    assert_eq!(get(&control, "/log-level").await.1, "debug\n");
    assert_eq!(ask(&control, &put("a=b=c")).await.0, 400);
}

/// As whoever connects from another host.
async fn ask_from_afar(control: &Arc<Control>, method: &str, path: &str) -> StatusCode {
    let request = Request::builder().method(method).uri(path);
    let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let peer = "10.0.0.9:1000".parse().unwrap();
    answer(control, peer, request).await.status()
}

#[tokio::test]
async fn others_see_metrics_and_probes_alone() {
    let (control, _receiver) = control();
    for (method, path, want) in [
        ("GET", "/metrics", 200),
        ("GET", "/ready", 503),
        ("GET", "/live", 200),
        ("GET", "/", 404),
        ("GET", "/config", 404),
        ("GET", "/endpoints", 404),
        ("GET", "/log-level", 404),
        ("PUT", "/log-level", 404),
        ("POST", "/reload", 404),
        ("POST", "/drain", 404),
        ("GET", "/drain", 404),
        ("GET", "/nothing", 404),
        ("POST", "/metrics", 405),
    ] {
        let status = ask_from_afar(&control, method, path).await;
        assert_eq!(status, want, "{method} {path}");
    }
}

#[tokio::test]
async fn who_knows_the_path_may_have_it_drain() {
    let path = "/drain/0123456789abcdef0123456789abcdef";
    let (control, mut receiver) =
        control_of(&format!("settings: {{drain: {{path: {path}}}}}{YAML}"));
    for wrong in [
        &path[..path.len() - 1],
        "/drain/0123456789abcdef0123456789abcdee",
        "/drain/0123456789abcdef0123456789abcdef0",
        "/drain/",
        "/drain",
    ] {
        assert_eq!(ask_from_afar(&control, "POST", wrong).await, 404, "{wrong}");
    }
    assert_eq!(ask_from_afar(&control, "PUT", path).await, 405);
    assert!(receiver.try_recv().is_err());
    for method in ["GET", "POST"] {
        assert_eq!(ask_from_afar(&control, method, path).await, 202);
        assert!(matches!(receiver.recv().await, Some(Asked::Drain)));
    }
}

#[test]
fn loopback_is_loopback_in_both_families() {
    for (ip, want) in [
        ("127.0.0.1", true),
        ("127.9.9.9", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("10.0.0.1", false),
        ("::ffff:10.0.0.1", false),
        ("2001:db8::1", false),
    ] {
        assert_eq!(is_loopback(ip.parse().unwrap()), want, "{ip}");
    }
}

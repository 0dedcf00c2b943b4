//! Lines, escaping, limits, and a file that moves or fills up.

use super::*;

fn entry() -> Entry<'static> {
    Entry {
        time: SystemTime::UNIX_EPOCH,
        listener: "web",
        client: ([127, 0, 0, 1], 5).into(),
        method: "GET",
        authority: "example.com",
        path: "/a?b=c",
        protocol: "HTTP/1.1",
        status: 200,
        cause: Cause::Answered,
        reason: "",
        route: "shop/cart",
        rule: "0",
        service: "cart",
        backend: Some(([10, 0, 0, 1], 80).into()),
        tries: 1,
        duration: Duration::from_micros(1500),
        upstream: Some(Duration::from_micros(1200)),
        bytes_in: 0,
        bytes_out: 64,
        request_id: "",
        tls: "",
        peer: "spiffe://td/ns/a/sa/b",
        probe: "",
    }
}

fn path(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("weft-log-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn file_log(path: &Path, format: AccessLogFormat) -> AccessLog {
    let log = AccessLog::default();
    log.configure(&snapshot::AccessLog {
        format,
        path: Some(path.to_owned()),
    })
    .unwrap();
    log
}

#[test]
fn both_formats_carry_every_field() {
    let mut line = Vec::new();
    write_json(&mut line, &entry());
    let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
    assert_eq!(json["flag"], "answered");
    assert_eq!(json["duration_us"], 1500);
    assert_eq!(json["backend"], "10.0.0.1:80");
    assert_eq!(json["peer"], "spiffe://td/ns/a/sa/b");
    assert!(json.get("tls").is_none());
    line.clear();
    write_text(&mut line, &entry());
    let text = String::from_utf8(line).unwrap();
    assert_eq!(
        text,
        "1970-01-01T00:00:00.000Z listener=web client=127.0.0.1:5 method=GET \
         authority=example.com path=/a?b=c protocol=HTTP/1.1 status=200 flag=answered \
         route=shop/cart rule=0 service=cart backend=10.0.0.1:80 tries=1 duration_us=1500 \
         upstream_us=1200 bytes_in=0 bytes_out=64 peer=spiffe://td/ns/a/sa/b\n"
    );
}

#[test]
fn nothing_a_client_sends_forges_a_line() {
    let nasty = Entry {
        path: "/\n1970 listener=\"x\" \u{1b}[31m\\ \u{2028} é",
        ..entry()
    };
    let mut line = Vec::new();
    write_text(&mut line, &nasty);
    let text = String::from_utf8(line.clone()).unwrap();
    assert_eq!(text.lines().count(), 1);
    let want = r#"path="/\n1970 listener=\"x\" \u{1b}[31m\\ \u{2028} é""#;
    assert!(text.contains(want), "{text}");
    line.clear();
    write_json(&mut line, &nasty);
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
}

#[test]
fn lines_reach_the_file_and_follow_it_when_moved() {
    let (path, moved) = (path("moved"), path("moved-away"));
    let log = file_log(&path, AccessLogFormat::Text);
    log.record(&entry());
    log.flush(Duration::from_secs(5));
    std::fs::rename(&path, &moved).unwrap();
    log.reopen();
    while !path.exists() {
        std::thread::yield_now();
    }
    log.record(&entry());
    log.flush(Duration::from_secs(5));
    for file in [&path, &moved] {
        assert_eq!(std::fs::read_to_string(file).unwrap().lines().count(), 1);
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(log.dropped(), 0);
}

#[test]
fn a_full_disk_drops_lines_and_counts_them() {
    let log = file_log(Path::new("/dev/full"), AccessLogFormat::Json);
    for _ in 0..3 {
        log.record(&entry());
        log.flush(Duration::from_secs(5));
    }
    assert_eq!(log.dropped(), 3);
    assert_eq!(log.write_errors(), 3);
}

#[test]
fn a_full_queue_drops_lines_and_counts_them() {
    let queue = Queue::default();
    let line = vec![b'x'; QUEUE_BYTES_MAX / 2];
    for _ in 0..3 {
        queue.push(&line);
    }
    assert_eq!(queue.dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn a_bad_path_keeps_the_old_target() {
    let path = path("kept");
    let log = file_log(&path, AccessLogFormat::Text);
    let bad = snapshot::AccessLog {
        format: AccessLogFormat::Json,
        path: Some("/nonexistent/dir/log".into()),
    };
    assert!(AccessLog::check(&bad).is_err());
    assert!(log.configure(&bad).is_err());
    log.record(&entry());
    log.flush(Duration::from_secs(5));
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("1970-"));
    log.configure(&snapshot::AccessLog {
        format: AccessLogFormat::Off,
        path: None,
    })
    .unwrap();
    assert!(!log.is_on());
    std::fs::remove_file(&path).unwrap();
}

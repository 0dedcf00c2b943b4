//! Counting, the bound on labels, and the text form.

use super::*;
use crate::logic::cause::Cause;
use std::time::Duration;

fn page(metrics: &Metrics) -> String {
    let mut page = Exposition::default();
    metrics.write(&mut page);
    page.finish()
}

fn has(page: &str, line: &str) {
    assert!(
        page.lines().any(|found| found == line),
        "no `{line}` in\n{page}"
    );
}

#[test]
fn requests_are_summed_over_threads() {
    let metrics = Arc::new(Metrics::default());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let series = metrics.series("web", "cart", "shop/cart", "10.0.0.1:80");
                series.record(200, Cause::Answered, Duration::from_millis(1), 5, 7);
                series.record(504, Cause::TryTimeout, Duration::from_secs(99), 0, 0);
            });
        }
    });
    let page = page(&metrics);
    let labels = r#"listener="web",service="cart",route="shop/cart""#;
    has(
        &page,
        &format!(
            r#"weft_requests_total{{{labels},backend="10.0.0.1:80",cause="answered",code_class="2xx"}} 3"#
        ),
    );
    has(
        &page,
        &format!(
            r#"weft_requests_total{{{labels},backend="10.0.0.1:80",cause="try_timeout",code_class="5xx"}} 3"#
        ),
    );
    has(
        &page,
        &format!(r#"weft_request_duration_seconds_bucket{{{labels},le="0.0005"}} 0"#),
    );
    has(
        &page,
        &format!(r#"weft_request_duration_seconds_bucket{{{labels},le="0.001"}} 3"#),
    );
    has(
        &page,
        &format!(r#"weft_request_duration_seconds_bucket{{{labels},le="60"}} 3"#),
    );
    has(
        &page,
        &format!(r#"weft_request_duration_seconds_bucket{{{labels},le="+Inf"}} 6"#),
    );
    has(
        &page,
        &format!(r#"weft_request_duration_seconds_count{{{labels}}} 6"#),
    );
    has(
        &page,
        &format!(r#"weft_bytes_received_total{{{labels},kind="http"}} 15"#),
    );
}

#[test]
fn label_values_beyond_the_bound_are_other() {
    let metrics = Metrics::default();
    metrics.set_label_values_max(2);
    for backend in ["a", "b", "c", "d", ""] {
        let series = metrics.series("web", "s", "r", backend);
        series.record(200, Cause::Answered, Duration::ZERO, 0, 0);
    }
    let page = page(&metrics);
    let line = |backend: &str, count: u32| {
        has(
            &page,
            &format!(
                r#"weft_requests_total{{listener="web",service="s",route="r",backend="{backend}",cause="answered",code_class="2xx"}} {count}"#
            ),
        );
    };
    line("a", 1);
    line("b", 1);
    line("other", 2);
    line("", 1);
    has(
        &page,
        r#"weft_metric_label_overflows_total{label="backend"} 2"#,
    );
}

#[test]
fn unused_series_are_given_back_and_make_room() {
    let metrics = Metrics::default();
    metrics.set_label_values_max(1);
    let held = metrics.series("web", "s", "r", "a");
    held.record(200, Cause::Answered, Duration::ZERO, 0, 0);
    for _ in 0..3 {
        metrics.prune();
    }
    assert!(page(&metrics).contains(r#"backend="a""#));
    drop(held);
    metrics.prune();
    assert!(!page(&metrics).contains(r#"backend="a""#));
    metrics
        .series("web", "s", "r", "b")
        .record(200, Cause::Answered, Duration::ZERO, 0, 0);
    assert!(page(&metrics).contains(r#"backend="b""#));
}

#[test]
fn events_are_counted_and_forgotten_with_their_names() {
    let metrics = Arc::new(Metrics::default());
    let web: Arc<str> = Arc::from("web");
    metrics.connection_opened(&web).closed("tls_timeout");
    drop(metrics.connection_opened(&web));
    metrics.connection_refused("web", "connections_max");
    metrics.retried("cart", "policy", "budget_used");
    metrics.retried("cart", "policy", "budget_used");
    metrics.reloaded(true);
    metrics.set_pool(1, PoolGauge { idle: 3, http2: 1 });
    let all = page(&metrics);
    has(&all, r#"weft_connections_opened_total{listener="web"} 2"#);
    has(
        &all,
        r#"weft_connections_closed_total{listener="web",reason="tls_timeout"} 1"#,
    );
    has(
        &all,
        r#"weft_connections_closed_total{listener="web",reason="done"} 1"#,
    );
    has(
        &all,
        r#"weft_retries_total{service="cart",kind="policy",result="budget_used"} 2"#,
    );
    has(&all, r#"weft_reloads_total{result="success"} 1"#);
    has(&all, r#"weft_pool_connections{worker="1",kind="idle"} 3"#);
    metrics.retain(&HashSet::from(["web"]), &HashSet::new(), &HashSet::new());
    let all = page(&metrics);
    assert!(!all.contains("cart") && all.contains(r#"listener="web""#));
}

#[test]
fn label_values_are_escaped() {
    let mut page = Exposition::default();
    page.family("f", "gauge", "Help.");
    page.sample(&[("a", "x\"y\\z\n")], 1.5);
    assert_eq!(
        page.finish(),
        "# HELP f Help.\n# TYPE f gauge\nf{a=\"x\\\"y\\\\z\\n\"} 1.5\n"
    );
}

#[test]
fn the_process_is_seen() {
    assert!(process::resident_bytes().is_some_and(|bytes| bytes > 100_000));
    assert!(process::open_descriptors().is_some_and(|count| count > 2));
}

//! What the controller counts: the table in docs/mesh.md is /metrics, and the numbers are true.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use support::{Controller, Deltas, connect, eventually, request, service, sign};
use weft_config::wire::SignRequest;

#[tokio::test]
async fn every_metric_is_documented_and_no_other() {
    let controller = Controller::start(&[]).await;
    controller.manifest("web.yaml", &service("web", "10.96.0.1", &["10.1.0.1"]));
    // Who has said nothing yet is behind.
    let svid = controller.svid("web", "uid-1").await;
    let link = connect(&controller, Some(&svid)).await.unwrap();
    let _silent = Deltas::open(link).await.unwrap();
    let page = eventually("objects", async || {
        let page = controller.page("/metrics").await;
        (page.contains("kind=\"Service\"") && page.contains("workload=\"uid-1\"")).then_some(page)
    })
    .await;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let text = fs::read_to_string(docs.join("mesh.md")).unwrap();
    let (_, section) = text.split_once("## The controller's metrics").unwrap();
    let table = section.split("\n## ").next().unwrap();
    let documented: BTreeSet<&str> = table
        .split('`')
        .filter(|piece| piece.starts_with("weft_"))
        // Only with an API server: tests/kubernetes has one.
        .filter(|piece| !piece.starts_with("weft_controller_watch_"))
        .collect();
    let shown: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    assert_eq!(documented, shown);
    // Elsewhere no name is wrong.
    let limits = fs::read_to_string(docs.join("limits.md")).unwrap();
    for name in limits
        .split('`')
        .filter(|of| of.starts_with("weft_controller_"))
    {
        assert!(documented.contains(name), "limits.md names {name}");
    }
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else {
            continue;
        };
        for label in ["result", "reason"] {
            let Some((_, rest)) = rest.split_once(&format!("{label}=\"")) else {
                continue;
            };
            let value = rest.split('"').next().unwrap();
            let row = table.lines().find(|row| row.contains(name)).unwrap();
            assert!(row.contains(&format!("`{value}`")), "{value} in: {row}");
        }
    }
}

#[tokio::test]
async fn what_happens_is_counted() {
    let controller = Controller::start(&[]).await;
    controller.manifest("web.yaml", &service("web", "10.96.0.1", &["10.1.0.1"]));
    let svid = controller.svid("web", "uid-1").await;
    let link = connect(&controller, Some(&svid)).await.unwrap();
    let mut deltas = Deltas::open(link).await.unwrap();
    deltas.want("Endpoints", &["shop/web:80"]).await;
    let mut response = deltas.next().await.unwrap();
    while response.resources.is_empty() {
        deltas.ack(&response).await;
        response = deltas.next().await.unwrap();
    }
    deltas.answer(&response, Some("shop/web:80: no")).await;
    eventually("the refusal", async || {
        (controller.metric("weft_controller_resources_refused").await > 0.0).then_some(())
    })
    .await;
    // A token is good once.
    let token = controller.token("web", "uid-2");
    for result in ["signed", "token"] {
        let name = format!("weft_controller_certificates_total{{result=\"{result}\"}}");
        let before = controller.metric(&name).await;
        let (_, csr) = request(None);
        let request = SignRequest {
            csr,
            token: token.clone(),
            workload: "uid-2".to_owned(),
        };
        let link = connect(&controller, None).await.unwrap();
        assert_eq!(sign(link, request).await.is_ok(), result == "signed");
        assert_eq!(controller.metric(&name).await, before + 1.0);
    }
    let link = connect(&controller, None).await.unwrap();
    assert!(Deltas::open(link).await.is_err());
    for (name, value) in [
        ("proxies", 1.0),
        ("nacks_total", 1.0),
        ("resources_refused", 1.0),
        ("subscriptions", 1.0),
        ("tokens_refused_total{reason=\"used\"}", 1.0),
        ("streams_refused_total{reason=\"no_certificate\"}", 1.0),
        ("objects{kind=\"EndpointSlice\"}", 1.0),
        ("source_errors", 0.0),
        ("proxies_behind", 0.0),
    ] {
        let found = controller.metric(&format!("weft_controller_{name}")).await;
        assert_eq!(found, value, "{name}");
    }
    let bytes = "weft_controller_bytes_sent_total{type=\"Endpoints\"}";
    assert!(controller.metric(bytes).await > 10.0);
    let own = "weft_controller_certificate_expiry_timestamp_seconds";
    assert!(controller.metric(own).await > 1e9);
}

//! Proxies that behave badly: what each costs is bounded, says whose it is, and harms no other.

mod support;

use support::bystander::Bystander;
use support::{Controller, Deltas, connect, eventually, service};

/// Services that the hostile ones ask for.
const SERVICES: usize = 300;

fn names() -> Vec<String> {
    let all = 0..SERVICES;
    all.map(|number| format!("shop/s{number}:80")).collect()
}

/// A controller with many services.
async fn with_services() -> Controller {
    let controller = Controller::start(&[]).await;
    let all: String = (0..SERVICES)
        .map(|number| {
            let address = format!("10.97.{}.{}", number / 250, number % 250 + 1);
            service(&format!("s{number}"), &address, &["10.1.0.1"])
        })
        .collect();
    controller.manifest("all.yaml", &all);
    controller.has("EndpointSlice", SERVICES).await;
    controller
}

fn lines(controller: &Controller, of: &str) -> usize {
    let log = controller.log();
    log.lines().filter(|line| line.contains(of)).count()
}

#[tokio::test]
async fn who_refuses_everything_at_great_length_is_shown_and_costs_the_others_nothing() {
    let controller = with_services().await;
    let mut bystander = Bystander::start(&controller).await;
    let names = names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut hostile = controller.stream("hostile").await;
    let problem = "it is not to our liking\n".repeat(40_000);
    for _ in 0..40 {
        // Subscribed anew, all is sent anew.
        hostile.want("Endpoints", &names).await;
        let response = hostile.next().await.unwrap();
        assert_eq!(response.resources.len(), SERVICES);
        hostile.answer(&response, Some(&problem)).await;
    }
    let proxy = eventually("the refusals", async || {
        let proxy = controller.proxy("hostile").await?;
        (proxy.refused.len() == 256 && proxy.pending == 0).then_some(proxy)
    })
    .await;
    assert!(proxy.refused.iter().all(|of| of.message.len() <= 1024));
    assert_eq!(controller.metric("weft_controller_nacks_total").await, 40.0);
    // What is refused is not sent again by itself.
    let sent = "weft_controller_resources_sent_total{type=\"Endpoints\"}";
    let before = controller.metric(sent).await;
    bystander.is_served(&controller).await;
    assert_eq!(controller.metric(sent).await, before + 1.0);
    assert_eq!(lines(&controller, "refuses what it was sent"), 5);
    assert!(controller.log().len() < 64 * 1024, "the log is full of it");
}

#[tokio::test]
async fn who_comes_again_without_end_is_some_lines_of_the_log() {
    let controller = with_services().await;
    let mut bystander = Bystander::start(&controller).await;
    let svid = controller.svid("web", "hostile").await;
    let link = connect(&controller, Some(&svid)).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(Deltas::open(link.clone()).await.unwrap());
    }
    for _ in 0..300 {
        assert!(Deltas::open(link.clone()).await.is_err());
    }
    let refused = "weft_controller_streams_refused_total{reason=\"streams_max\"}";
    assert_eq!(controller.metric(refused).await, 300.0);
    assert_eq!(lines(&controller, "a stream is refused"), 5);
    // Another's is told all the same.
    let svid = controller.svid("web", "other").await;
    let link = connect(&controller, Some(&svid)).await.unwrap();
    let other = Deltas::open(link).await.unwrap();
    other.want("Nothing", &["x"]).await;
    eventually("a line about the other", async || {
        (lines(&controller, "workload=\"other\"") > 0).then_some(())
    })
    .await;
    bystander.is_served(&controller).await;
}

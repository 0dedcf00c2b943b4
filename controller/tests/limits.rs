//! Proxies that behave badly: what each costs is bounded, says whose it is, and harms no other.

mod support;

use std::time::Duration;

use support::bystander::Bystander;
use support::{Controller, Deltas, connect, eventually, leave, pod, service};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::Code;

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

#[tokio::test]
async fn who_never_answers_holds_up_who_leaves_for_a_while_and_is_named() {
    let controller = Controller::start(&[]).await;
    let slice = service("web", "10.96.0.1", &["10.1.0.1", "10.1.0.2"]).replace(
        "['10.1.0.1']",
        "['10.1.0.1'], targetRef: {kind: Pod, name: p1, uid: p1}",
    );
    controller.manifest("web.yaml", &format!("{slice}{}", pod("p1", "10.1.0.1")));
    controller.has("Pod", 1).await;
    let own = controller.svid("web", "p1").await;
    let mut silent = controller.stream("silent").await;
    silent.want("Endpoints", &["shop/web:80"]).await;
    silent.next().await.unwrap();
    let (mut bystander, short) = (
        Bystander::start(&controller).await,
        Duration::from_millis(600),
    );
    let counted = |result: &str| format!("weft_controller_leaves_total{{result=\"{result}\"}}");
    eventually("it is waited for no more", async || {
        // That it answers something else changes nothing.
        silent.want("Service", &["shop/web:80"]).await;
        let other = silent.next().await.unwrap();
        silent.ack(&other).await;
        let link = connect(&controller, Some(&own)).await.unwrap();
        let left = leave(link, short).await.unwrap();
        assert_eq!(
            (left.users, left.acknowledged),
            (1, 0),
            "it is counted all the same"
        );
        (controller.metric(&counted("acknowledged")).await > 0.0).then_some(())
    })
    .await;
    assert!(
        controller.metric(&counted("timed_out")).await > 0.0,
        "it was at first"
    );
    assert!(lines(&controller, "proxies=\"silent\"") > 0);
    let proxy = controller.proxy("silent").await.unwrap();
    assert_eq!((proxy.pending, proxy.acknowledged), (1, 0));
    let behind = "weft_controller_proxy_acknowledged_revision{workload=\"silent\"}";
    assert_eq!(controller.metric(behind).await, 0.0);
    bystander.is_served(&controller).await;
}

#[tokio::test]
async fn names_are_bounded_by_their_bytes_too() {
    let controller = Controller::start(&[]).await;
    let mut bystander = Bystander::start(&controller).await;
    let names: Vec<String> = (0..10_000)
        .map(|number| format!("{number:0>500}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut hostile = controller.stream("hostile").await;
    hostile.want("Endpoints", &names).await;
    let status = hostile.next().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let refused = "weft_controller_streams_refused_total{reason=\"subscriptions_max\"}";
    assert_eq!(controller.metric(refused).await, 1.0);
    bystander.is_served(&controller).await;
}

#[tokio::test]
async fn what_a_workload_wants_is_bounded_over_all_its_streams() {
    let controller = Controller::start(&[]).await;
    let mut bystander = Bystander::start(&controller).await;
    let names: Vec<String> = (0..40_000).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut first, mut second) = (
        controller.stream("hostile").await,
        controller.stream("hostile").await,
    );
    for stream in [&mut first, &mut second] {
        stream.want("Endpoints", &names).await;
        stream.next().await.unwrap();
    }
    let mut third = controller.stream("hostile").await;
    third.want("Endpoints", &names).await;
    let status = third.next().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("workload"), "{status:?}");
    bystander.is_served(&controller).await;
    // Who closes one has its place again.
    drop(first);
    eventually("a place for another", async || {
        let mut fourth = controller.stream("hostile").await;
        fourth.want("Endpoints", &names).await;
        fourth.next().await.ok()
    })
    .await;
}

#[tokio::test]
async fn an_address_that_connects_without_end_is_held_to_a_rate() {
    let controller = Controller::start(&[]).await;
    let mut bystander = Bystander::start(&controller).await;
    let refused = "weft_controller_connections_refused_total{reason=\"connections_rate\"}";
    let mut rounds = 0;
    while controller.metric(refused).await == 0.0 {
        rounds += 1;
        assert!(rounds < 100, "no limit");
        // At once: one after the other, a busy machine would not make as many as are allowed.
        let mut connecting = JoinSet::new();
        for _ in 0..1_000 {
            connecting.spawn(TcpStream::connect(controller.listen));
        }
        for connected in connecting.join_all().await {
            drop(connected.unwrap());
        }
    }
    bystander.is_served(&controller).await;
    assert!(lines(&controller, "connection refused") <= 20);
    // It is not for ever.
    eventually("a place for the next", async || {
        connect(&controller, None).await.ok()
    })
    .await;
}

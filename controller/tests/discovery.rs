//! The delta transport as proxies and others use it, over the real port: what is sent,
//! in which order, and what the controller believes to be acknowledged.

mod support;

use std::time::Duration;

use support::{Controller, Deltas, connect, eventually, leave, pod, service};
use weft_config::xds::DeltaDiscoveryResponse;

const WEB: &str = "shop/web:80";

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let resources = response.resources.iter();
    resources.map(|resource| resource.name.as_str()).collect()
}

fn kind(response: &DeltaDiscoveryResponse) -> &str {
    response.type_url.strip_prefix(support::PREFIX).unwrap()
}

async fn with_web() -> Controller {
    let controller = Controller::start(&[]).await;
    controller.manifest("web.yaml", &service("web", "10.96.0.1", &["10.1.0.1"]));
    controller.has("EndpointSlice", 1).await;
    controller
}

/// Whether a workload has acknowledged the present revision.
async fn is_settled(controller: &Controller, workload: &str) -> bool {
    let report = controller.report().await;
    let mut proxies = report.proxies.iter();
    let proxy = proxies.find(|proxy| proxy.workload == workload).unwrap();
    proxy.acknowledged == report.revision
}

async fn settled(controller: &Controller, workload: &str) {
    eventually("an acknowledgement", async || {
        is_settled(controller, workload).await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_is_resumed_with_what_is_held_and_nothing_is_sent_again() {
    let mut controller = with_web().await;
    controller.manifest("b.yaml", &service("b", "10.96.0.2", &["10.1.0.2"]));
    controller.manifest("c.yaml", &service("c", "10.96.0.3", &["10.1.0.3"]));
    controller.has("EndpointSlice", 3).await;
    let wanted = [WEB, "shop/b:80", "shop/c:80"];
    let svid = controller.svid("web", "uid-1").await;
    let mut deltas = controller.stream_as(&svid).await;
    deltas.want("Endpoints", &wanted).await;
    let first = deltas.take().await;
    assert_eq!(first.resources.len(), 3);
    let held: Vec<(&str, &str)> = first
        .resources
        .iter()
        .map(|of| (of.name.as_str(), of.version.as_str()))
        .collect();
    drop(deltas);
    // Gone, and changed, while nobody was connected; and another controller altogether.
    std::fs::remove_file(controller.folder.path().join("manifests/b.yaml")).unwrap();
    controller.manifest("c.yaml", &service("c", "10.96.0.3", &["10.1.0.9"]));
    controller = controller.restart(&[]).await;
    let mut deltas = controller.stream_as(&svid).await;
    deltas.resume("Endpoints", &wanted, &held).await;
    let second = deltas.next().await.unwrap();
    assert_eq!(names(&second), ["shop/c:80"], "{second:?}");
    assert_eq!(second.removed_resources, ["shop/b:80"]);
    deltas.ack(&second).await;
    settled(&controller, "uid-1").await;
    let sent = "weft_controller_resources_sent_total{type=\"Endpoints\"}";
    assert_eq!(controller.metric(sent).await, 2.0);
}

#[tokio::test]
async fn one_response_of_a_type_waits_for_its_answer_and_only_its_own_nonce_answers() {
    let controller = with_web().await;
    let mut deltas = controller.stream("uid-1").await;
    deltas.want("Endpoints", &[WEB]).await;
    let first = deltas.next().await.unwrap();
    assert!(!is_settled(&controller, "uid-1").await, "not answered yet");
    for address in ["10.1.0.2", "10.1.0.3"] {
        let revision = controller.report().await.revision;
        controller.manifest("web.yaml", &service("web", "10.96.0.1", &[address]));
        eventually("the change", async || {
            (controller.report().await.revision > revision).then_some(())
        })
        .await;
    }
    // A foreign nonce answers nothing.
    let mut foreign = first.clone();
    foreign.nonce = "no such".to_owned();
    deltas.ack(&foreign).await;
    deltas.want("Service", &[WEB]).await;
    let other = deltas.next().await.unwrap();
    assert_eq!(kind(&other), "Service", "the Endpoints wait");
    deltas.ack(&other).await;
    eventually("one pending", async || {
        (controller.proxy("uid-1").await?.pending == 1).then_some(())
    })
    .await;
    assert!(!is_settled(&controller, "uid-1").await);
    deltas.ack(&first).await;
    let second = deltas.next().await.unwrap();
    let text =
        String::from_utf8_lossy(&second.resources[0].resource.as_ref().unwrap().value).into_owned();
    assert!(
        text.contains("10.1.0.3") && !text.contains("10.1.0.2"),
        "both changes at once: {text}"
    );
    assert!(!is_settled(&controller, "uid-1").await);
    deltas.ack(&second).await;
    settled(&controller, "uid-1").await;
}

#[tokio::test]
async fn a_proxy_that_has_said_nothing_has_acknowledged_nothing() {
    let controller = with_web().await;
    let deltas = controller.stream("uid-1").await;
    let proxy = eventually("the proxy", async || controller.proxy("uid-1").await).await;
    assert_eq!(proxy.acknowledged, 0);
    assert_eq!(
        controller.metric("weft_controller_proxies_behind").await,
        1.0
    );
    deltas.want("TrustBundle", &["no such"]).await;
    eventually("an answer to wait for", async || {
        (controller.proxy("uid-1").await?.pending == 1).then_some(())
    })
    .await;
    drop(deltas);
    eventually("its end", async || {
        controller.proxy("uid-1").await.is_none().then_some(())
    })
    .await;
}

fn route(namespace: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: {namespace}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: web, namespace: shop}}], rules: [{{backendRefs: [{{name: {backend}, namespace: shop, port: 80}}]}}]}}\n---\n"
    )
}

#[tokio::test]
async fn a_service_goes_only_after_the_routes_to_it() {
    let controller = with_web().await;
    let both = format!(
        "{}{}",
        service("b", "10.96.0.2", &["10.1.0.2"]),
        route("shop", "b")
    );
    controller.manifest("b.yaml", &both);
    controller.has("HTTPRoute", 1).await;
    let mut deltas = controller.stream("uid-1").await;
    deltas.want("Destination", &["web.shop:80"]).await;
    deltas.want("Service", &["shop/b:80"]).await;
    deltas.want("Endpoints", &["shop/b:80"]).await;
    for _ in 0..3 {
        assert_eq!(deltas.take().await.resources.len(), 1);
    }
    settled(&controller, "uid-1").await;
    std::fs::remove_file(controller.folder.path().join("manifests/b.yaml")).unwrap();
    let destination = deltas.next().await.unwrap();
    assert_eq!(
        (kind(&destination), names(&destination)),
        ("Destination", vec!["web.shop:80"])
    );
    assert!(!is_settled(&controller, "uid-1").await);
    deltas.ack(&destination).await;
    for expected in ["Endpoints", "Service"] {
        let gone = deltas.take().await;
        assert_eq!(
            (kind(&gone), gone.removed_resources.as_slice()),
            (expected, &["shop/b:80".to_owned()][..])
        );
    }
    settled(&controller, "uid-1").await;
}

#[tokio::test]
async fn a_consumer_s_route_is_its_namespace_s_alone() {
    let controller = with_web().await;
    controller.manifest("b.yaml", &service("b", "10.96.0.2", &["10.1.0.2"]));
    controller.has("Service", 2).await;
    let own = controller.svid_in("other", "web", "uid-1").await;
    let mut consumer = controller.stream_as(&own).await;
    let mut producer = controller.stream("uid-2").await;
    for deltas in [&mut consumer, &mut producer] {
        deltas.want("Destination", &["web.shop:80"]).await;
        assert_eq!(deltas.take().await.resources.len(), 1);
    }
    controller.manifest("route.yaml", &route("other", "b"));
    let changed = consumer.take().await;
    let text = String::from_utf8_lossy(&changed.resources[0].resource.as_ref().unwrap().value)
        .into_owned();
    assert!(text.contains("shop/b:80"), "{text}");
    // The other's destination is what it was: the next that comes is of the next change.
    settled(&controller, "uid-2").await;
    controller.manifest(
        "shop.yaml",
        &route("shop", "b").replace("name: r,", "name: own,"),
    );
    let changed = producer.take().await;
    let text = String::from_utf8_lossy(&changed.resources[0].resource.as_ref().unwrap().value)
        .into_owned();
    assert!(text.contains("own"), "{text}");
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_delays_nobody() {
    let controller = with_web().await;
    let mut slow = controller.stream("slow").await;
    let mut quick = controller.stream("quick").await;
    slow.want("Endpoints", &[WEB]).await;
    quick.want("Endpoints", &[WEB]).await;
    let unanswered = slow.next().await.unwrap();
    quick.take().await;
    for last in 2..40 {
        let address = format!("10.1.0.{last}");
        controller.manifest("web.yaml", &service("web", "10.96.0.1", &[&address]));
        let response = quick.take().await;
        let text = String::from_utf8_lossy(&response.resources[0].resource.as_ref().unwrap().value)
            .into_owned();
        assert!(text.contains(&address), "{text}");
    }
    settled(&controller, "quick").await;
    assert!(!is_settled(&controller, "slow").await);
    assert_eq!(
        controller.metric("weft_controller_proxies_behind").await,
        1.0
    );
    slow.ack(&unanswered).await;
    slow.take().await;
    settled(&controller, "slow").await;
}

#[tokio::test]
async fn a_refusal_is_visible_until_it_is_mended() {
    let controller = with_web().await;
    controller.manifest("b.yaml", &service("web2", "10.96.0.2", &["10.1.0.2"]));
    controller.has("Service", 2).await;
    let mut deltas = controller.stream("uid-1").await;
    let wanted = [WEB, "shop/web2:80"];
    deltas.want("Endpoints", &wanted).await;
    deltas.want("Service", &[WEB]).await;
    let mut responses = [deltas.next().await.unwrap(), deltas.next().await.unwrap()];
    responses.sort_by_key(|of| kind(of).to_owned());
    deltas
        .answer(&responses[0], Some("shop/web:80: too odd"))
        .await;
    deltas.ack(&responses[1]).await;
    let refused = async || -> Vec<String> {
        let proxy = controller.proxy("uid-1").await.unwrap();
        proxy.refused.into_iter().map(|of| of.resource).collect()
    };
    settled(&controller, "uid-1").await;
    assert_eq!(
        refused().await,
        ["Endpoints shop/web:80"],
        "that one, and the Service is well"
    );
    // A good answer about another resource mends nothing.
    controller.manifest("b.yaml", &service("web2", "10.96.0.2", &["10.1.0.3"]));
    assert_eq!(names(&deltas.take().await), ["shop/web2:80"]);
    settled(&controller, "uid-1").await;
    assert_eq!(refused().await, ["Endpoints shop/web:80"]);
    controller.manifest("web.yaml", &service("web", "10.96.0.1", &["10.1.0.4"]));
    assert_eq!(names(&deltas.take().await), [WEB]);
    eventually("no refusal", async || {
        refused().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn leaving_is_answered_once_all_who_use_the_workload_know() {
    let controller = Controller::start(&[]).await;
    let slice = service("web", "10.96.0.1", &["10.1.0.1", "10.1.0.2"]).replace(
        "['10.1.0.1']",
        "['10.1.0.1'], targetRef: {kind: Pod, name: p1, uid: p1}",
    );
    controller.manifest("web.yaml", &format!("{slice}{}", pod("p1", "10.1.0.1")));
    controller.has("Pod", 1).await;
    let own = controller.svid("web", "p1").await;
    let link = connect(&controller, Some(&own)).await.unwrap();
    let mut user = controller.stream("user").await;
    let mut other = controller.stream("other").await;
    user.want("Endpoints", &[WEB]).await;
    other.want("Service", &[WEB]).await;
    user.take().await;
    other.take().await;
    let left = leave(link.clone(), Duration::from_millis(600))
        .await
        .unwrap();
    assert_eq!(
        (left.users, left.acknowledged),
        (1, 0),
        "the user has not answered"
    );
    let without = user.next().await.unwrap();
    let text = String::from_utf8_lossy(&without.resources[0].resource.as_ref().unwrap().value)
        .into_owned();
    assert!(!text.contains("10.1.0.1:"), "{text}");
    user.ack(&without).await;
    let left = leave(link, Duration::from_secs(5)).await.unwrap();
    assert_eq!((left.users, left.acknowledged), (1, 1));
    // Another's workload is not the caller's to take out.
    let thief = controller.svid("thief", "p1").await;
    let link = connect(&controller, Some(&thief)).await.unwrap();
    let refused = leave(link, Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    let counted = |result: &str| format!("weft_controller_leaves_total{{result=\"{result}\"}}");
    for result in ["acknowledged", "timed_out", "refused"] {
        assert_eq!(controller.metric(&counted(result)).await, 1.0, "{result}");
    }
}

#[tokio::test]
async fn a_workload_sees_its_own_policies_and_nobody_else_s() {
    let controller = Controller::start(&[]).await;
    controller.manifest("p.yaml", &pod("p1", "10.1.0.1"));
    controller.has("Pod", 1).await;
    let svid = controller.svid("web", "p1").await;
    let mut own = controller.stream_as(&svid).await;
    own.want("Workload", &["p1"]).await;
    assert_eq!(names(&own.take().await), ["p1"]);
    let mut stranger: Deltas = controller.stream("uid-9").await;
    stranger.want("Workload", &["p1"]).await;
    assert_eq!(stranger.take().await.removed_resources, ["p1"]);
    let thief = controller.svid("thief", "p1").await;
    let mut thief = controller.stream_as(&thief).await;
    thief.want("Workload", &["p1"]).await;
    assert_eq!(
        thief.take().await.removed_resources,
        ["p1"],
        "the UID alone is no proof"
    );
}

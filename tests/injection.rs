//! Injection on a real API server: it asks the real controller's webhook, of the chart's
//! configuration. The pods are for a node that there is not, so nobody runs them.

#[path = "injection/injector.rs"]
mod injector;
#[path = "injection/pods.rs"]
mod pods;

use std::fs;
use std::io::Read as _;

use serde_json::{Value, json};
use weft_tests::curl::curl;
use weft_tests::eventually;
use weft_tests::raw::Raw;
use weft_tests::weft::{ended, weft};

use injector::{CONTROLLER, ENABLED, IMAGE, Injector, LABEL};
use pods::{PODS, pod};

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod["spec"][list].as_array().cloned().unwrap_or_default();
    containers
        .iter()
        .map(|of| of["name"].as_str().unwrap().to_owned())
        .collect()
}

fn is_injected(pod: &Value) -> bool {
    names(pod, "initContainers").starts_with(&["weft-capture".to_owned(), "weft-proxy".to_owned()])
}

#[test]
fn the_api_server_takes_injected_pods_of_every_kind() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let space = injector.namespace(&[ENABLED]);
    for (name, spec) in PODS {
        space.apply(&pod(name, "{}", spec).replacen(
            "metadata:\n",
            "metadata:\n  namespace: NAMESPACE\n",
            1,
        ));
        let made = injector.cluster.get(&["-n", &space.name, "pod", name]);
        assert!(is_injected(&made), "{made:#}");
        assert_eq!(
            made["metadata"]["annotations"]["weft.dev/inbound"],
            "captured"
        );
        let proxy = &made["spec"]["initContainers"][1];
        assert_eq!(proxy["restartPolicy"], "Always");
        // Nothing of ours can ask the API server for anything.
        for container in [&made["spec"]["initContainers"][0], proxy] {
            let mounts = container["volumeMounts"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let api = mounts.iter().find(|of| {
                of["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
                    && of["name"] != "weft-state"
            });
            assert_eq!(api, None, "{made:#}");
        }
    }
    assert_eq!(injector.counted("malformed"), 0);
    assert!(injector.counted("injected") >= PODS.len() as u64);
}

#[test]
fn who_asked_is_injected_and_nobody_else() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let (labelled, other) = (injector.namespace(&[ENABLED]), injector.namespace(&[]));
    let label = |value: &str| format!("{{\"labels\": {{\"weft.dev/inject\": \"{value}\"}}}}");
    let app = "containers: [{name: app, image: a}]";
    let on_host = "hostNetwork: true\ncontainers: [{name: app, image: a}]";
    for (space, metadata, spec, injected) in [
        (&labelled, "{}".to_owned(), app, true),
        (&labelled, label("enabled"), app, true),
        (&labelled, label("disabled"), app, false),
        (&labelled, "{}".to_owned(), on_host, false),
        (&other, "{}".to_owned(), app, false),
        (&other, label("disabled"), app, false),
        (&other, label("enabled"), app, true),
    ] {
        let made = injector
            .dry_run(space, &pod("one", &metadata, spec))
            .unwrap();
        assert_eq!(is_injected(&made), injected, "{metadata} {spec}: {made:#}");
    }
}

#[test]
fn workloads_get_injected_pods() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let space = injector.namespace(&[ENABLED]);
    let template = "template: {metadata: {labels: {app: a}}, spec: {nodeSelector: {weft.dev/nowhere: 'yes'}, containers: [{name: app, image: a}]";
    space.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: deployment, namespace: NAMESPACE}}\nspec: {{selector: {{matchLabels: {{app: a}}}}, {template}}}}}}}\n---\n\
         apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: set, namespace: NAMESPACE}}\nspec: {{serviceName: set, selector: {{matchLabels: {{app: a}}}}, {template}}}}}}}\n---\n\
         apiVersion: batch/v1\nkind: Job\nmetadata: {{name: job, namespace: NAMESPACE}}\nspec: {{{template}, restartPolicy: Never}}}}}}\n"
    ));
    for owner in ["deployment-", "set-", "job-"] {
        let made = eventually(owner, || {
            let pods = injector.cluster.get(&["-n", &space.name, "pods"]);
            let mut pods = pods["items"].as_array()?.iter();
            let is_theirs = |pod: &&Value| {
                pod["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with(owner))
            };
            pods.find(is_theirs).cloned()
        });
        assert!(is_injected(&made), "{made:#}");
    }
}

#[test]
fn bad_annotations_are_refused_with_what_is_allowed() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let space = injector.namespace(&[ENABLED]);
    let annotation =
        |key: &str, value: &str| format!("{{\"annotations\": {{\"{key}\": \"{value}\"}}}}");
    let app = "containers: [{name: app, image: a}]";
    for (metadata, spec, said) in [
        (
            annotation("sidecar.weft.dev/memory-limit", "256m"),
            app,
            "metadata.annotations[sidecar.weft.dev/memory-limit]: \"256m\" is no amount of memory for a sidecar; allowed is 4Mi to 1Ti",
        ),
        (
            annotation("sidecar.weft.dev/memory-limt", "256Mi"),
            app,
            "did you mean \"memory-limit\"?",
        ),
        (
            "{\"labels\": {\"weft.dev/inject\": \"yes\"}}".to_owned(),
            app,
            "metadata.labels[weft.dev/inject]: \"yes\" means nothing; allowed are \"enabled\" and \"disabled\"",
        ),
        (
            "{}".to_owned(),
            "containers: [{name: weft-proxy, image: a}]",
            "spec.containers[0].name: \"weft-proxy\" is the name of a container that injection adds",
        ),
        (
            "{}".to_owned(),
            "containers: [{name: app, image: a, securityContext: {runAsUser: 1337}}]",
            "spec.containers[0].securityContext.runAsUser: 1337 is the sidecar's user",
        ),
    ] {
        let refused = injector
            .dry_run(&space, &pod("bad", &metadata, spec))
            .unwrap_err();
        assert!(refused.contains("denied the request: "), "{refused}");
        assert!(refused.contains(said), "{refused}\nlacks {said}");
    }
    assert_eq!(injector.counted("refused"), 5);
    assert!(injector.controller.output().contains("a pod is refused"));
}

#[test]
fn a_dead_controller_stops_only_who_asked() {
    let Some(mut injector) = Injector::start() else {
        return;
    };
    let (labelled, other) = (injector.namespace(&[ENABLED]), injector.namespace(&[]));
    injector.controller.kill();
    let app = "containers: [{name: app, image: a}]";
    let refused = injector
        .dry_run(&labelled, &pod("a", "{}", app))
        .unwrap_err();
    assert!(refused.contains("namespaces.inject.weft.dev"), "{refused}");
    let asks = "{\"labels\": {\"weft.dev/inject\": \"enabled\"}}";
    let refused = injector.dry_run(&other, &pod("a", asks, app)).unwrap_err();
    assert!(refused.contains("pods.inject.weft.dev"), "{refused}");
    let out = "{\"labels\": {\"weft.dev/inject\": \"disabled\"}}";
    injector.dry_run(&labelled, &pod("a", out, app)).unwrap();
    let agent = "hostNetwork: true\ncontainers: [{name: app, image: a}]";
    injector.dry_run(&labelled, &pod("a", "{}", agent)).unwrap();
    injector.dry_run(&other, &pod("a", "{}", app)).unwrap();
    // Whoever was stopped by the label is no more.
    let label = ["label", "namespace", &labelled.name, &format!("{LABEL}-")];
    injector.cluster.kubectl(&label);
    eventually("the label being gone", || {
        injector.dry_run(&labelled, &pod("a", "{}", app)).ok()
    });
}

#[test]
fn garbage_and_plain_http_do_no_harm() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let port = injector.webhook.port();
    let url = format!("https://localhost:{port}/inject");
    let results = ["malformed", "unknown", "too_large", "not_tls", "handshake"];
    // The API server asks before it has been told by which roots it knows who answers.
    let before = results.map(|result| injector.counted(result));
    let roots = injector.folder.path().join("ca/trust.pem");
    let trusted = ["--cacert", roots.to_str().unwrap()];
    let ask = |arguments: &[&str]| curl(&[&trusted[..], arguments].concat());
    let large = injector.folder.path().join("large");
    fs::write(&large, vec![b' '; (4 << 20) + 1]).unwrap();
    let large = format!("@{}", large.display());
    for version in ["--http1.1", "--http2"] {
        let nonsense = ask(&[version, "-d", "{\"kind\": 1}", &url]);
        assert_eq!(nonsense.status, 400, "{nonsense:?}");
        assert!(
            nonsense.text().contains("is no AdmissionReview"),
            "{nonsense:?}"
        );
        let got = ask(&[version, &url]);
        assert_eq!(got.status, 405, "{got:?}");
        let elsewhere = ask(&[version, "-d", "x", &url.replace("/inject", "/")]);
        assert_eq!(elsewhere.status, 404, "{elsewhere:?}");
        let refused = ask(&[version, "--data-binary", &large, &url]);
        assert_eq!(refused.status, 413, "{refused:?}");
    }
    let plain = curl(&["-d", "x", &format!("http://localhost:{port}/inject")]);
    assert_eq!(
        (plain.status, plain.text().as_str()),
        (400, "this port speaks HTTPS\n")
    );
    for bytes in [&b"\x00\x01\x02"[..], b"\x16\x03\x01\x00\x05hello", b"\x16"] {
        let mut raw = Raw::connect(injector.webhook);
        raw.send(bytes);
        // It may have been closed already.
        let _closed = raw.stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        // An alert, or nothing; never anything that waits.
        let _reset = raw.stream.read_to_end(&mut answer);
        assert!(answer.len() < 64, "{answer:?}");
    }
    let counts = [2, 4, 2, 2, 2];
    for ((result, before), count) in results.into_iter().zip(before).zip(counts) {
        assert_eq!(injector.counted(result) - before, count, "{result}");
    }
    // One who opens connections and says nothing takes nobody else's place.
    let silent: Vec<Raw> = (0..64).map(|_| Raw::connect(injector.webhook)).collect();
    let mut refused = Raw::connect(injector.webhook);
    let mut answer = Vec::new();
    assert_eq!(refused.stream.read_to_end(&mut answer).unwrap_or(0), 0);
    // The API server is at the same address here, and has a place.
    assert!(injector.counted("connections_max") >= 1);
    drop(silent);
    let space = injector.namespace(&[ENABLED]);
    let made = injector.dry_run(
        &space,
        &pod("good", "{}", "containers: [{name: app, image: a}]"),
    );
    assert!(is_injected(&made.unwrap()));
}

#[test]
fn a_file_is_injected_as_the_api_server_s_pods_are() {
    let Some(injector) = Injector::start() else {
        return;
    };
    let (labelled, other) = (injector.namespace(&[ENABLED]), injector.namespace(&[]));
    let folder = injector.folder.path();
    let token = "00112233445566778899aabbccddeeff";
    for (name, spec) in PODS {
        let path = folder.join("pods.yaml");
        fs::write(&path, pod(name, "{}", spec)).unwrap();
        let said = ended(
            weft()
                .args([
                    "inject",
                    "-f",
                    path.to_str().unwrap(),
                    "--controller",
                    CONTROLLER,
                ])
                .args([
                    "--proxy-image",
                    IMAGE,
                    "--proxy-image-pull-policy",
                    "IfNotPresent",
                ])
                .args(["--drain-token", token, "--trust-bundle"])
                .arg(folder.join("ca/trust.pem")),
        );
        said.is(0, &[]);
        let injected = injector.dry_run(&other, &said.text).unwrap();
        // Left alone, since it has a sidecar.
        assert_eq!(
            comparable(injector.dry_run(&labelled, &said.text).unwrap()),
            comparable(injected.clone())
        );
        let asked = injector.dry_run(&labelled, &pod(name, "{}", spec)).unwrap();
        assert_eq!(comparable(asked), comparable(injected), "{name}");
    }
}

/// A pod without what differs from one to the next.
fn comparable(mut pod: Value) -> Value {
    let text = pod["spec"].to_string();
    let drain = text
        .split_once("/drain/")
        .map(|(_, after)| after[..32].to_owned());
    let api = text
        .split_once("kube-api-access-")
        .map(|(_, after)| after[..5].to_owned());
    let mut text = json!([pod["spec"].take(), pod["metadata"]["annotations"].take()]).to_string();
    for one in [drain, api].into_iter().flatten() {
        text = text.replace(&one, "…");
    }
    serde_json::from_str(&text).unwrap()
}

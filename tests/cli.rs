//! `weft status`, `check` and `top` of a real mesh: what they show is what is there, what is
//! wrong is named with what to do, and a script can go by the exit code.

use std::process::Command;

use serde_json::Value;
use weft_tests::curl::curl;
use weft_tests::eventually;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::Mesh;
use weft_tests::process::{Program, Signal};
use weft_tests::weft::{Said, ended, shop, weft};

fn status(mesh: &Mesh, arguments: &[&str]) -> Said {
    let admin = mesh.admin.to_string();
    let mut command = weft();
    ended(
        command
            .args(["status", "--controller-admin", &admin])
            .args(arguments),
    )
}

const BROKEN: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\nspec: {ports: [{port: many}]}\n";

#[test]
fn the_status_of_a_mesh_in_order() {
    let (mesh, web, _application, client) = shop();
    let shown = status(&mesh, &[]);
    shown.is(
        0,
        &[
            &web.uid,
            &client.uid,
            "ns/shop/sa/web",
            "in sync",
            "All is well.",
        ],
    );
    assert!(
        !shown.text.contains('\x1b'),
        "a pipe gets no colours: {}",
        shown.text
    );
    let page = status(&mesh, &["-o", "json"]);
    page.is(0, &[]);
    let page = page.json();
    assert_eq!(page["healthy"], true, "{page:#}");
    assert_eq!(page["problems"], serde_json::json!([]), "{page:#}");
    assert_eq!(
        page["proxies"].as_array().map(Vec::len),
        Some(2),
        "{page:#}"
    );
    assert_eq!(page["roots"][0]["signing"], true, "{page:#}");
}

#[test]
fn the_status_names_what_is_wrong() {
    let (mut mesh, web, _application, _client) = shop();
    mesh.apply("bad", BROKEN);
    mesh.apply(
        "route",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: canary, namespace: shop}\n\
         spec: {parentRefs: [{group: '', kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: none, port: 80}]}]}\n",
    );
    eventually("both being told", || {
        let told = mesh.status();
        (!told.errors.is_empty() && !told.objects.is_empty()).then_some(())
    });
    mesh.settled();
    let shown = status(&mesh, &[]);
    shown.is(
        1,
        &[
            "wrong  bad.yaml, document 1, Service shop/bad, spec.ports[0].port",
            "wrong  HTTPRoute shop/canary",
            "BackendNotFound",
        ],
    );
    let page = status(&mesh, &["-o", "json"]);
    page.is(1, &[]);
    assert_eq!(page.json()["healthy"], false);
    assert_eq!(page.json()["problems"].as_array().map(Vec::len), Some(2));
    // A controller that has gone is told as such.
    mesh.controller.kill();
    let gone = status(&mesh, &[]);
    gone.is(
        1,
        &[
            "no controller at",
            "--controller-admin",
            "Connection refused",
        ],
    );
    let wrong = weft()
        .args(["status", "--controller-admin", &web.proxy.admin.to_string()])
        .output()
        .expect("weft runs");
    assert_eq!(wrong.status.code(), Some(1));
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let (mesh, _web, _application, _client) = shop();
    let on_a_terminal = |no_color: &str| {
        let line = format!(
            "NO_COLOR={no_color} {} status --controller-admin {}",
            weft().get_program().to_string_lossy(),
            mesh.admin
        );
        let mut command = Command::new("script");
        ended(
            command
                .env("TERM", "xterm")
                .args(["-qec", &line, "/dev/null"]),
        )
    };
    on_a_terminal("").is(0, &["\x1b[32min sync", "\x1b[32mAll is well."]);
    let plain = on_a_terminal("1");
    plain.is(0, &["All is well."]);
    assert!(!plain.text.contains("\x1b[32m"), "{}", plain.text);
}

fn check(mesh: &Mesh, arguments: &[&str]) -> Said {
    let admin = mesh.admin.to_string();
    let mut command = weft();
    ended(
        command
            .args(["check", "--controller-admin", &admin])
            .args(arguments),
    )
}

#[test]
fn a_mesh_in_order_passes_the_check() {
    let (mesh, _web, _application, _client) = shop();
    let ca = mesh.folder.path().join("ca");
    let (folder, bundle) = (
        ca.display().to_string(),
        ca.join("trust.pem").display().to_string(),
    );
    let checked = check(&mesh, &["--ca-dir", &folder, "--trust-bundle", &bundle]);
    checked.is(
        0,
        &[
            "holds the controller's roots",
            "2 of 2 are well",
            "all are read and accepted",
            "0 wrong",
        ],
    );
    let page = check(&mesh, &["-o", "json"]);
    page.is(0, &[]);
    assert_eq!(page.json()["healthy"], true);
}

#[test]
fn the_check_says_what_to_do() {
    let (mut mesh, mut web, _application, client) = shop();
    let other = Mesh::start();
    let foreign = other
        .folder
        .path()
        .join("ca/trust.pem")
        .display()
        .to_string();
    check(&mesh, &["--trust-bundle", &foreign]).is(
        1,
        &[
            "does not hold the root that the controller signs with",
            "copy the controller's trust.pem",
        ],
    );
    check(&mesh, &["--ca-dir", "/nonexistent"]).is(1, &["/nonexistent/trust.pem"]);
    mesh.apply("bad", BROKEN);
    eventually("it being told", || {
        (!mesh.status().errors.is_empty()).then_some(())
    });
    check(&mesh, &[]).is(1, &["bad.yaml, document 1, Service shop/bad", "→ mend it"]);
    // A sidecar that does not answer, while the controller has yet to notice.
    web.proxy.program.signal(Signal::STOP);
    let stopped = check(&mesh, &[]);
    stopped.is(1, &[&format!("{}: ", web.uid), "does not answer within"]);
    assert!(
        !stopped.text.contains(&format!("{}: ", client.uid)),
        "{}",
        stopped.text
    );
    web.proxy.program.kill();
    mesh.controller.kill();
    check(&mesh, &[]).is(1, &["no controller answers", "start weft-controller"]);
}

#[test]
fn manifests_are_checked_without_a_controller() {
    let (mesh, _web, _application, _client) = shop();
    let folder = mesh.folder.path().join("manifests").display().to_string();
    let checked = || ended(weft().args(["check", "--manifests", &folder]));
    checked().is(0, &["objects, all accepted"]);
    mesh.apply("bad", BROKEN);
    // What is read well, and no sidecar could use.
    mesh.apply(
        "policy",
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: odd, namespace: shop}\n\
         spec: {action: allow, rules: [{from: [{cidrs: ['10.0.0.0/99']}]}]}\n",
    );
    checked().is(
        1,
        &["bad.yaml, document 1", "spec.ports[0].port", "10.0.0.0/99"],
    );
    ended(weft().args(["check", "--manifests", "/nonexistent"])).is(1, &["is no directory"]);
}

fn top(mesh: &Mesh, arguments: &[&str]) -> Said {
    let admin = mesh.admin.to_string();
    let mut command = weft();
    ended(
        command
            .args(["top", "--controller-admin", &admin])
            .args(arguments),
    )
}

#[test]
fn top_shows_services_and_edges() {
    let (mesh, _web, _application, client) = shop();
    let load = Load::start(client.upstreams[0], Mode::KeepAlive, 2);
    load.goes_on(20);
    // As long as it waits for an answer at most.
    let page = top(&mesh, &["--once", "--interval", "5s", "-o", "json"]).json();
    load.stop().none_lost();
    for (list, from, to) in [
        ("services", Value::Null, "shop/web:80"),
        ("edges", "ns/shop/sa/client".into(), "shop/web:80"),
        ("inbound", Value::Null, "ns/shop/sa/web"),
    ] {
        let row = &page[list][0];
        assert_eq!((&row["from"], &row["to"]), (&from, &to.into()), "{page:#}");
        assert_eq!(row["success"], 1.0, "{page:#}");
        assert!(row["rate"].as_f64() > Some(1.0), "{page:#}");
        assert!(row["p50Ms"].as_f64() <= row["p99Ms"].as_f64(), "{page:#}");
        assert!(row["p99Ms"].as_f64() > Some(0.0), "{page:#}");
    }
    assert!(
        page["edges"][0]["connections"].as_u64() > Some(0),
        "{page:#}"
    );
    assert_eq!(page["unread"], serde_json::json!([]), "{page:#}");
    top(&mesh, &["--once", "--interval", "2s"])
        .is(0, &["edge ns/shop/sa/client -> shop/web:80 success="]);
}

#[test]
fn top_counts_failures_and_names_who_cannot_be_read() {
    let (mesh, web, mut application, client) = shop();
    let url = format!("http://{}/x", client.upstreams[0]);
    assert_eq!(curl(&[&url]).status, 200);
    application.stop();
    let failing = std::thread::scope(|scope| {
        let asking =
            scope.spawn(|| top(&mesh, &["--once", "--interval", "2s", "-o", "json"]).json());
        while !asking.is_finished() {
            curl(&[&url]);
        }
        asking.join().expect("it does not panic")
    });
    let success = failing["edges"][0]["success"].as_f64();
    assert!(success < Some(0.5), "{failing:#}");
    web.proxy.program.signal(Signal::STOP);
    let page = top(&mesh, &["--once", "--interval", "2s", "-o", "json"]).json();
    assert_eq!(page["unread"][0]["workload"], web.uid.as_str(), "{page:#}");
    assert_eq!(page["unread"].as_array().map(Vec::len), Some(1), "{page:#}");
    // On a terminal it is drawn again and again, until it is interrupted.
    let line = format!(
        "stty rows 30 cols 120; exec timeout --foreground -s INT 8 {} top --interval 100ms --controller-admin {}",
        weft().get_program().to_string_lossy(),
        mesh.admin
    );
    let mut shown = Command::new("script");
    shown.args(["-qec", &line, "/dev/null"]);
    let drawn = ended(shown.env("TERM", "xterm"));
    for part in [
        "SERVICE",
        "shop/web:80",
        "cannot be read",
        "\x1b[?25l",
        "\x1b[?25h",
    ] {
        assert!(drawn.text.contains(part), "{part:?} in {}", drawn.all());
    }
    top(&mesh, &["--interval", "1ms"]).is(2, &["shorter than"]);
}

#[test]
fn top_goes_on_without_the_controller() {
    let (mut mesh, _web, _application, client) = shop();
    let admin = mesh.admin.to_string();
    let mut command = weft();
    command.args(["top", "--interval", "100ms", "--controller-admin", &admin]);
    let top = Program::start("top", &mut command, mesh.folder.path());
    let line = |part: &str| {
        eventually(part, || top.output().contains(part).then_some(()));
    };
    line("edge ns/shop/sa/client -> shop/web:80 success=-");
    mesh.controller.kill();
    line("unread the controller");
    let url = format!("http://{}/x", client.upstreams[0]);
    eventually("requests being shown all the same", || {
        curl(&[&url]);
        let said = top.output();
        let (_, after) = said.split_once("unread the controller")?;
        after.contains("shop/web:80 success=100%").then_some(())
    });
}

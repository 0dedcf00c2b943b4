//! `weft status`, `check`, `top` and `explain` of a real mesh: what they show is what is there, what is
//! wrong is named with what to do, and a script can go by the exit code.

use std::process::{Command, Output};

use serde_json::Value;
use weft_tests::curl::curl;
use weft_tests::eventually;
use weft_tests::load::{Load, Mode};
use weft_tests::mesh::{Mesh, Sidecar};
use weft_tests::process::{Program, Signal};
use weft_tests::upstream::Upstream;
use weft_tests::weft::weft;

/// `shop/web` with an application, and a client of it.
fn shop() -> (Mesh, Sidecar, Upstream, Sidecar) {
    let mesh = Mesh::start();
    let web = mesh.sidecar("web", &[]);
    let application = Upstream::echo_at(web.application(), "one");
    mesh.service("web", &[&web]);
    let client = mesh.sidecar("client", &["web.shop:80"]);
    mesh.settled();
    (mesh, web, application, client)
}

/// What a command that ends says.
struct Said {
    code: Option<i32>,
    text: String,
    errors: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.all()))
    }

    fn all(&self) -> String {
        format!("{:?}\n{}{}", self.code, self.text, self.errors)
    }

    #[track_caller]
    fn is(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.all());
        for part in parts {
            assert!(
                self.all().contains(part),
                "{part:?} is not in {}",
                self.all()
            );
        }
    }
}

fn ended(command: &mut Command) -> Said {
    let output: Output = command.output().expect("weft runs");
    Said {
        code: output.status.code(),
        text: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

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
    check(&mesh, &[]).is(
        1,
        &["bad.yaml, document 1, Service shop/bad", "→ mend the file"],
    );
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
    let page = top(&mesh, &["--once", "-o", "json"]).json();
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
    top(&mesh, &["--once"]).is(0, &["edge ns/shop/sa/client -> shop/web:80 success="]);
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
    let page = top(&mesh, &["--once", "--interval", "100ms", "-o", "json"]).json();
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

fn explain(arguments: &[&str]) -> Said {
    ended(weft().arg("explain").args(arguments))
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: split, namespace: shop}\n\
     spec: {parentRefs: [{group: '', kind: Service, name: web, port: 80}], rules: [\
     {matches: [{path: {value: /gone}}], filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, hostname: new.example}}]}, \
     {matches: [{path: {value: /admin}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /private}}}], backendRefs: [{name: web, port: 80}]}, \
     {backendRefs: [{name: web, port: 80}]}]}\n";
const POLICY: &str = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: reads, namespace: shop}\n\
     spec: {targetRefs: [{kind: Service, name: web}], action: allow, rules: [\
     {from: [{identities: ['spiffe://cluster.local/ns/shop/sa/client']}], to: [{methods: [GET], paths: ['/public/*', '/private/*']}]}]}\n";

#[test]
fn a_live_sidecar_explains() {
    let (mesh, web, _application, client) = shop();
    mesh.apply("route", ROUTE);
    let admin = client.proxy.admin.to_string();
    let ask = |arguments: &[&str]| explain(&[&["--proxy", &admin], arguments].concat());
    eventually("the route being in force", || {
        let said = ask(&["GET", "http://web.shop:80/gone"]);
        said.text.contains("answered 301").then_some(())
    });
    let routed = ask(&["GET", "http://web.shop:80/admin/x"]);
    routed.is(
        0,
        &[
            "taken by route shop/split",
            "/private/x",
            "endpoints of service shop/web:80:",
            "in rotation",
        ],
    );
    routed.is(0, &[&web.application().to_string()]);
    // By where the application dials, with a method and headers.
    let dialled = format!("http://{}/", client.upstreams[0]);
    let page = ask(&["-o", "json", "-H", "x-a: b", "POST", &dialled]).json();
    assert_eq!(page["decision"]["route"], "shop/split", "{page:#}");
    assert_eq!(
        page["endpoints"][0]["endpoints"][0]["available"], true,
        "{page:#}"
    );
    ask(&["http://none.shop:80/"]).is(
        1,
        &["knows nothing of none.shop:80", "it knows web.shop:80"],
    );
    ask(&["--listener", "none", "http://web.shop:80/"]).is(1, &["no listener is named \"none\""]);
    explain(&["--proxy", &mesh.listen.to_string(), "http://web.shop:80/"]).is(1, &["--proxy"]);
}

#[test]
fn manifests_explain_with_who_would_be_let_in() {
    let (mesh, web, _application, client) = shop();
    mesh.apply("route", ROUTE);
    mesh.apply("policy", POLICY);
    let folder = mesh.folder.path().join("manifests").display().to_string();
    let ask = |from: &str, arguments: &[&str]| {
        explain(&[&["--manifests", &folder, "--from", from], arguments].concat())
    };
    let endpoint = format!("{}  {}", web.application(), web.uid);
    for (from, method, path, code, parts) in [
        (
            "shop/client",
            "GET",
            "/public/a",
            0,
            &["allowed by AuthorizationPolicy shop/reads"][..],
        ),
        (
            "shop/client",
            "GET",
            "/admin/a",
            0,
            &["/private/a", "allowed by AuthorizationPolicy shop/reads"],
        ),
        (
            "shop/client",
            "GET",
            "/other",
            1,
            &["denied (403): no allow policy matches"],
        ),
        (
            "shop/client",
            "POST",
            "/public/a",
            1,
            &["denied (403): no allow policy matches"],
        ),
        (
            "shop/thief",
            "GET",
            "/public/a",
            1,
            &["denied (403): no allow policy matches"],
        ),
        ("shop/client", "GET", "/gone", 0, &["answered 301"]),
    ] {
        let said = ask(from, &[method, &format!("http://web.shop:80{path}")]);
        said.is(code, parts);
        assert_eq!(
            said.text.contains(&endpoint),
            path != "/gone",
            "{}",
            said.all()
        );
    }
    // The mesh does what was said of it.
    eventually("the policy being in force", || {
        let url = |path: &str| format!("http://{}{path}", client.upstreams[0]);
        let status = |path: &str| curl(&[&url(path)]).status;
        (status("/public/a") == 200 && status("/admin/a") == 200 && status("/other") == 403)
            .then_some(())
    });
    ask(
        "shop/client",
        &["http://web.shop.svc.cluster.local/public/a"],
    )
    .is(0, &["route shop/split"]);
    ask("shop/client", &["http://web/public/a"]).is(0, &["route shop/split"]);
    ask("shop/client", &["http://none.shop/"]).is(1, &["there are web.shop:80"]);
    ask("client", &["http://web.shop/"]).is(1, &["NAMESPACE/SERVICE-ACCOUNT"]);
    let page = ask("shop/client", &["-o", "json", "http://web.shop/public/a"]).json();
    let identity = &page["endpoints"][0]["endpoints"][0]["identity"];
    assert_eq!(
        *identity, "spiffe://cluster.local/ns/shop/sa/web",
        "{page:#}"
    );
}

#[test]
fn a_file_explains_as_weft_proxy_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weft.yaml");
    std::fs::write(
        &file,
        "listeners: [{name: web, address: '127.0.0.1:18080', protocol: http, service: a}]\n\
         services: [{name: a, endpoints: [{address: '10.0.0.1:80'}]}]\n",
    )
    .expect("it can be written");
    let path = file.display().to_string();
    let said = explain(&["--config", &path, "http://x:18080/y"]);
    said.is(0, &["goes to service a", "10.0.0.1:80  weight 1"]);
    let proxy = Command::new(weft_tests::proxy::binary())
        .args(["--config", &path, "--explain", "http://x:18080/y"])
        .output()
        .expect("weft-proxy runs");
    let own = String::from_utf8_lossy(&proxy.stdout).into_owned();
    assert!(
        said.text.starts_with(own.trim_end()),
        "{own}\n{}",
        said.all()
    );
    explain(&["--config", &path, "nonsense"]).is(1, &["is not a URL"]);
    explain(&["--config", "/nonexistent", "http://x/"]).is(1, &["/nonexistent"]);
}

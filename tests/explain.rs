//! `weft explain`: of a live sidecar, of a mesh's manifests, of a file. What it says is what happens.

use std::process::Command;

use weft_tests::curl::curl;
use weft_tests::eventually;
use weft_tests::mesh::Sidecar;
use weft_tests::weft::{Said, ended, shop, weft};

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

/// The mesh does what the manifests' explanation says of it.
fn as_said(client: &Sidecar) {
    eventually("the policy being in force", || {
        let url = |path: &str| format!("http://{}{path}", client.upstreams[0]);
        let status = |path: &str| curl(&[&url(path)]).status;
        (status("/public/a") == 200 && status("/admin/a") == 200 && status("/other") == 403)
            .then_some(())
    });
}

/// Who asks for what, the exit code, and what is said of it.
const CASES: [(&str, &str, &str, i32, &str); 6] = [
    ("shop/client", "GET", "/public/a", 0, ALLOWED),
    ("shop/client", "GET", "/admin/a", 0, ALLOWED),
    ("shop/client", "GET", "/other", 1, DENIED),
    ("shop/client", "POST", "/public/a", 1, DENIED),
    ("shop/thief", "GET", "/public/a", 1, DENIED),
    ("shop/client", "GET", "/gone", 0, "answered 301"),
];
const ALLOWED: &str = "allowed by AuthorizationPolicy shop/reads";
const DENIED: &str = "denied (403): no allow policy matches";

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
    for (from, method, path, code, part) in CASES {
        let said = ask(from, &[method, &format!("http://web.shop:80{path}")]);
        said.is(code, &[part]);
        assert_eq!(
            said.text.contains(&endpoint),
            path != "/gone",
            "{}",
            said.all()
        );
    }
    as_said(&client);
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

//! Gateway API's rules as traffic meets them in a mesh: manifests through a real controller to the
//! sidecar of a client, and what the application behind another sidecar saw, and what the client got,
//! exactly. Every corner of a decision has its table in `config`; here the whole chain keeps them.

#[path = "traffic/table.rs"]
mod table;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use weft_tests::mesh::{APPLICATION_PORT, Mesh, Sidecar};
use weft_tests::raw::{Answer, Raw};
use weft_tests::upstream::{self, Seen, Then, Upstream};
use weft_tests::{eventually, http2, script};

use table::{Case, Row, TO_WEB, filtered, route, row, table};

/// Longer than any time-out of a row that is to pass.
const SLOW: Duration = Duration::from_secs(4);

/// A controller, two applications with their sidecars, and a client of every row's Service.
struct Stage {
    _mesh: Mesh,
    _sidecars: Vec<Sidecar>,
    applications: Vec<(&'static str, Upstream)>,
    client: Sidecar,
}

fn application(address: SocketAddr, name: &'static str) -> Upstream {
    Upstream::start_at(address, move |seen, stream| {
        if seen.target().starts_with("/slow") {
            std::thread::sleep(SLOW);
        }
        let name = format!("x-upstream: {name}");
        let fields = [&name, "x-set: a", "x-set: b", "x-add: 1", "x-gone: 1"];
        upstream::answer(stream, 200, &fields, b"");
        Then::Keep
    })
}

/// A Service with two ports that declare nothing, in front of a workload.
fn service(name: &str, of: &Sidecar) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{ports: [{{name: main, port: 80}}, {{name: other, port: 8080}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: main, port: {APPLICATION_PORT}}}, {{name: other, port: {APPLICATION_PORT}}}]\n\
         endpoints: [{{addresses: ['{}'], targetRef: {{kind: Pod, name: {1}, uid: {1}}}}}]\n",
        of.address, of.uid
    )
}

impl Stage {
    fn set(rows: &[Row]) -> Self {
        let mesh = Mesh::start();
        let sidecars: Vec<Sidecar> = ["web", "next"].map(|name| mesh.sidecar(name, &[])).into();
        mesh.service("web", &[&sidecars[0]]);
        mesh.service("next", &[&sidecars[1]]);
        mesh.service("empty", &[]);
        let applications = vec![
            ("web", application(sidecars[0].application(), "web")),
            ("next", application(sidecars[1].application(), "next")),
        ];
        let client = client_of(
            &mesh,
            rows.iter().map(|row| row.routes.as_str()),
            &sidecars[0],
        );
        Self {
            _mesh: mesh,
            _sidecars: sidecars,
            applications,
            client,
        }
    }

    /// Where the client dials a row's Service.
    fn address(&self, row: usize, other_port: bool) -> SocketAddr {
        self.client.upstreams[2 * row + usize::from(other_port)]
    }

    fn counts(&self) -> Vec<usize> {
        self.applications.iter().map(|(_, of)| of.count()).collect()
    }

    /// What is not as a case has it.
    fn wrong(&self, row: usize, case: &Case) -> Option<String> {
        let before = self.counts();
        let (other_port, request) = match case.request.strip_prefix("PORT 8080 ") {
            Some(rest) => (true, rest),
            None => (false, case.request.as_str()),
        };
        let mut parts = request.split(" | ");
        let (method, target) = parts.next()?.split_once(' ')?;
        let headers: Vec<&str> = parts.collect();
        let mut raw = Raw::connect(self.address(row, other_port));
        let answer = raw.request(method, target, &headers, b"");
        let mut problem = String::new();
        wrong_answer(&answer, &case.answer, &mut problem);
        let seen: Vec<(&str, Seen)> = self
            .applications
            .iter()
            .zip(before)
            .flat_map(|((name, of), before)| {
                let fresh = of.seen().into_iter().skip(before);
                fresh.map(move |seen| (*name, seen))
            })
            .collect();
        wrong_seen(&seen, &case.seen, &mut problem);
        (!problem.is_empty()).then(|| format!("{}:\n{problem}", case.request))
    }
}

/// Writes every row's Service and routes, and starts a client of all once the controller has them.
fn client_of<'a>(mesh: &Mesh, routes: impl Iterator<Item = &'a str>, behind: &Sidecar) -> Sidecar {
    let mut yaml = String::new();
    let mut dialled = Vec::new();
    for (number, routes) in routes.enumerate() {
        let name = format!("r{number}");
        yaml.push_str(&service(&name, behind));
        yaml.push_str(&routes.replace("PARENT", &name));
        dialled.push(format!("{name}.shop:80"));
        dialled.push(format!("{name}.shop:8080"));
    }
    let routes = yaml.matches("Route\n").count();
    mesh.apply("rows", &yaml);
    eventually("the controller's verdicts", || {
        let status = mesh.status();
        assert!(status.errors.is_empty(), "{:?}", status.errors);
        let of_routes = status
            .objects
            .iter()
            .filter(|of| of.kind.ends_with("Route"));
        (of_routes.count() == routes).then_some(())
    });
    let dialled: Vec<&str> = dialled.iter().map(String::as_str).collect();
    mesh.sidecar("client", &dialled)
}

fn wrong_answer(answer: &Answer, expected: &str, problem: &mut String) {
    let mut parts = expected.split(" | ");
    let status = parts.next().unwrap_or_default();
    if answer.status.to_string() != status {
        let _ = writeln!(problem, "  answer {answer:?} and not {status}");
    }
    let all = |name: &str| {
        let lines = answer.headers.iter();
        let lines = lines.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| value.as_str()).collect()
    };
    wrong_fields("answer", parts, all, problem);
}

fn wrong_seen(seen: &[(&str, Seen)], expected: &str, problem: &mut String) {
    let mut parts = expected.split(" | ");
    let line = parts.next().unwrap_or_default();
    let lines: Vec<String> = seen
        .iter()
        .map(|(name, seen)| format!("{name} {} {}", seen.method(), seen.target()))
        .collect();
    if lines.join("\n") != line {
        let _ = writeln!(problem, "  seen {lines:?} and not {line:?}");
    }
    if let [(_, seen)] = seen {
        wrong_fields("seen", parts, |name| seen.headers(name), problem);
    }
}

fn wrong_fields<'a>(
    whose: &str,
    expected: impl Iterator<Item = &'a str>,
    all: impl Fn(&str) -> Vec<&'a str>,
    problem: &mut String,
) {
    for part in expected {
        let (name, value) = match part.strip_prefix('-') {
            Some(name) => (name, ""),
            None => part.split_once(": ").unwrap_or((part, "")),
        };
        let found = all(name).join(" & ");
        if found != value {
            let _ = writeln!(problem, "  {whose} {name}: {found:?} and not {value:?}");
        }
    }
}

#[test]
fn http_is_routed_as_gateway_api_has_it() {
    let rows = table();
    let stage = Stage::set(&rows);
    let mut problems = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        for case in &row.cases {
            let problem = stage.wrong(number, case);
            problems.extend(problem.map(|of| format!("{}: {of}", row.name)));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_mirror_gets_the_same_and_nobody_hears_of_it() {
    let mirror = |backend: &str| {
        format!(
            "{{type: RequestMirror, requestMirror: {{backendRef: {{name: {backend}, port: 80}}}}}}"
        )
    };
    let rules = [
        filtered("/to", &mirror("next")),
        filtered("/lost", &mirror("lost")),
        filtered("/empty", &mirror("empty")),
        filtered(
            "/never",
            "{type: RequestMirror, requestMirror: {backendRef: {name: next, port: 80}, percent: 0}}",
        ),
    ];
    let rows = [row("mirrors", &rules.join(", "), Vec::new())];
    let stage = Stage::set(&rows);
    for path in ["/lost", "/empty", "/never"] {
        let answer = Raw::connect(stage.address(0, false)).get(path);
        assert_eq!(answer.header("x-upstream"), Some("web"), "{path}");
    }
    let mut raw = Raw::connect(stage.address(0, false));
    let answer = raw.request("POST", "/to/a%2Fb?c=d", &["x-a: 1", "x-a: 2"], b"body");
    assert_eq!(answer.header("x-upstream"), Some("web"));
    let (web, next) = (&stage.applications[0].1, &stage.applications[1].1);
    eventually("the copy", || (next.count() == 1).then_some(()));
    let (seen, copy) = (web.last(), next.last());
    assert_eq!(copy.target(), "/to/a%2Fb?c=d");
    assert_eq!(copy.headers("x-a"), ["1", "2"]);
    assert_eq!((copy.body, seen.body), (b"body".to_vec(), b"body".to_vec()));
}

/// A share of an invalid backend is nobody else's.
#[test]
fn a_share_that_leads_nowhere_is_not_spread_over_the_others() {
    let rules =
        "{backendRefs: [{name: web, port: 80, weight: 1}, {name: lost, port: 80, weight: 1}]}";
    let rows = [row("shares", rules, Vec::new())];
    let stage = Stage::set(&rows);
    let mut raw = Raw::connect(stage.address(0, false));
    let good = (0..400).filter(|_| raw.get("/").status == 200).count();
    // 200 expected; a fair draw is off by 60 (six standard deviations) less often than this runs.
    assert!(good.abs_diff(200) < 60, "{good} of 400");
    assert_eq!(stage.counts(), [good, 0]);
}

struct Server(Child);

impl Server {
    /// A real gRPC server, where a sidecar looks for its application.
    fn start(address: SocketAddr) -> Self {
        let child = script("grpc_server.py")
            .args([address.port().to_string(), address.ip().to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .expect("Python runs; `make test` installs it");
        let server = Self(child);
        eventually("the gRPC server listening", || {
            std::net::TcpStream::connect(address).ok()
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A call; its head (a status that the proxy gives itself is there) and its trailers.
fn call(address: SocketAddr, method: &str, message: &[u8], header: (&str, &str)) -> http2::Answer {
    let mut body = vec![
        0,
        0,
        0,
        0,
        u8::try_from(message.len()).expect("it is short"),
    ];
    body.extend_from_slice(message);
    let request = http::Request::post(format!("http://test{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(header.0, header.1)
        .body(body)
        .expect("it is valid");
    http2::exchange(address, request, None).expect("it is answered")
}

#[test]
fn grpc_is_routed_as_gateway_api_has_it() {
    let mesh = Mesh::start();
    let web = mesh.sidecar("web", &[]);
    mesh.service("web", &[&web]);
    mesh.service("empty", &[]);
    let _server = Server::start(web.application());
    let set = |value: &str| {
        format!(
            "filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-sent, value: {value}}}]}}}}], {TO_WEB}"
        )
    };
    let rules = [
        format!("{{matches: [{{method: {{service: weft.Test, method: Echo}}}}], {}}}", set("method")),
        format!("{{matches: [{{method: {{service: weft.Test, method: Echo}}, headers: [{{name: x-beta, value: 'yes'}}]}}], {}}}", set("header")),
        format!("{{matches: [{{method: {{service: weft.Test}}, headers: [{{name: x-fail, value: 'yes'}}]}}], {TO_WEB}}}"),
        "{matches: [{method: {service: weft.Lost}}], backendRefs: [{name: lost, port: 80}]}".to_owned(),
        "{matches: [{method: {service: weft.Empty}}], backendRefs: [{name: empty, port: 80}]}".to_owned(),
        "{matches: [{method: {service: weft.None}}]}".to_owned(),
        "{matches: [{method: {service: weft.Extended}}], filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}], backendRefs: [{name: web, port: 80}]}".to_owned(),
    ];
    let routes = route("GRPCRoute", "r", "01", &rules.join(", "));
    let client = client_of(&mesh, std::iter::once(routes.as_str()), &web);
    let address = client.upstreams[0];
    let field = |map: Option<&http::HeaderMap>, name: &str| {
        let value = map.and_then(|map| map.get(name));
        value.map(|value| value.to_str().unwrap_or("not text").to_owned())
    };
    // What the application saw is in its trailers.
    for (header, tail) in [(("x-none", "1"), "method"), (("x-beta", "yes"), "header")] {
        let answer = call(address, "/weft.Test/Echo", b"hello", header);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, b"\0\0\0\0\x05hello");
        let trailers = answer.trailers.as_ref();
        assert_eq!(field(trailers, "grpc-status").as_deref(), Some("0"));
        assert_eq!(field(trailers, "x-tail").as_deref(), Some(tail));
        assert_eq!(answer.header("x-head"), Some("one"));
    }
    // The application's own failure, with its message as it was encoded.
    let answer = call(address, "/weft.Test/Fail", b"5", ("x-fail", "yes"));
    let ended = answer.trailers.as_ref().unwrap_or(&answer.headers);
    assert_eq!(field(Some(ended), "grpc-status").as_deref(), Some("5"));
    assert_eq!(
        field(Some(ended), "grpc-message").as_deref(),
        Some("d%C3%A9tails, 100 %25")
    );
    assert_eq!(field(Some(ended), "x-why").as_deref(), Some("because"));
    // Ours: UNIMPLEMENTED where no rule matches, UNAVAILABLE where one leads nowhere.
    for (method, status, reason) in [
        ("/weft.Test/Add", "12", "no_route"),
        ("/weft.test/Echo", "12", "no_route"),
        ("/weft.Lost/A", "14", "invalid_backend"),
        ("/weft.Empty/A", "14", "no_endpoint"),
        ("/weft.None/A", "14", "no_backend"),
        ("/weft.Extended/A", "14", "invalid_backend"),
    ] {
        let answer = call(address, method, b"", ("x-none", "1"));
        assert_eq!(answer.status, 200, "{method}");
        assert_eq!(answer.header("grpc-status"), Some(status), "{method}");
        assert_eq!(answer.reason(), reason, "{method}");
    }
    // On a port of gRPC routes nothing else has a rule.
    assert_eq!(Raw::connect(address).get("/weft.Test/Echo").status, 404);
}

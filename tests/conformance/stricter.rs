//! What the suite does not look at, with its application in real pods: the path and the headers that
//! a backend saw, where a redirect leads, what a refused request is told, which rule won.

use std::time::Instant;

use weft_tests::cluster::Namespace;
use weft_tests::{conformance, eventually, install};

use super::{INJECTED, PATIENCE};

/// A request, by the arguments of the application's client, and what it then prints.
struct Case {
    name: &'static str,
    request: &'static [&'static str],
    /// Lines that it prints; one that ends in `*` is the beginning of a line.
    has: &'static [&'static str],
    /// The beginning of a line that it does not print.
    lacks: Option<&'static str>,
}

const fn case(
    name: &'static str,
    request: &'static [&'static str],
    has: &'static [&'static str],
) -> Case {
    Case {
        name,
        request,
        has,
        lacks: None,
    }
}

const V1: &str = "Hostname=v1-*";
const V2: &str = "Hostname=v2-*";

#[rustfmt::skip] // one row a line
const CASES: &[Case] = &[
    // What a backend saw.
    case("as it is", &["http://web/as-it-is/%7Ea?q=1&q=2"], &["StatusCode=200", "URL=/as-it-is/%7Ea?q=1&q=2", "Host=web", V1]),
    case("prefix replaced", &["http://web/rewrite/prefix/one?q=1"], &["URL=/new/one?q=1", V1]),
    case("prefix replaced, nothing behind it", &["http://web/rewrite/prefix"], &["URL=/new"]),
    case("prefix replaced, its slash stays", &["http://web/rewrite/prefix/"], &["URL=/new/"]),
    case("prefix replaced by the root", &["http://web/rewrite/root/one"], &["URL=/one"]),
    case("prefix that is not whole elements", &["http://web/rewrite/prefixed"], &["StatusCode=404"]),
    case("prefixes know case", &["http://web/Rewrite/prefix"], &["StatusCode=404"]),
    case("path replaced", &["http://web/rewrite/full/one?q=1"], &["URL=/whole?q=1"]),
    case("host replaced", &["http://web/rewrite/host"], &["Host=other.example", "URL=/rewrite/host"]),
    case("headers of the request, by rule and by backend", &["http://web/headers", "-H=X-Set:mine", "-H=X-Add:mine", "-H=x-remove:mine", "-H=X-Other:mine"],
        &["RequestHeader=X-Set:rule", "RequestHeader=X-Add:mine", "RequestHeader=X-Add:rule", "RequestHeader=X-Add:backend", "RequestHeader=X-Other:mine"]).without("RequestHeader=X-Remove"),
    case("headers of the answer, by rule and by backend", &["http://web/headers?headers=X-Secret:1,X-Answer:app"],
        &["ResponseHeader=X-Answer:rule", "ResponseHeader=X-Both:rule", "ResponseHeader=X-Both:backend"]).without("ResponseHeader=X-Secret"),
    case("HTTP/2 stays HTTP/2", &["http://web/as-it-is", "--http2"], &["StatusCode=200", "Proto=HTTP/2.0"]),
    case("HTTP/1.1 stays HTTP/1.1", &["http://web/as-it-is"], &["Proto=HTTP/1.1"]),
    case("a WebSocket", &["ws://web/as-it-is"], &["Echo=HelloWorld", "URL=/as-it-is", V1]),
    case("an application's own TLS", &["https://v1/nowhere", "-k"], &["StatusCode=200", "URL=/nowhere", V1]),
    // Where a redirect leads.
    case("to a host", &["http://web/redirect/host?q=1"], &["StatusCode=302", "ResponseHeader=Location:http://example.org/redirect/host?q=1"]),
    case("to a scheme, whose port is well known", &["http://web/redirect/scheme"], &["StatusCode=302", "ResponseHeader=Location:https://web/redirect/scheme"]),
    case("to a scheme, from another port", &["http://web:8080/redirect/scheme"], &["ResponseHeader=Location:https://web/redirect/scheme"]),
    case("to a port", &["http://web/redirect/port"], &["StatusCode=301", "ResponseHeader=Location:http://web:8083/redirect/port"]),
    case("to a port that goes without saying", &["http://web/redirect/well-known"], &["StatusCode=301", "ResponseHeader=Location:https://web/redirect/well-known"]),
    case("the service's port stays", &["http://web:8080/redirect/host"], &["ResponseHeader=Location:http://example.org:8080/redirect/host"]),
    case("to another prefix", &["http://web/redirect/prefix/one?q=1"], &["ResponseHeader=Location:http://web/there/one?q=1"]),
    case("to another path", &["http://web/redirect/full/one?q=1"], &["ResponseHeader=Location:http://web/there?q=1"]),
    case("by 303", &["http://web/redirect/303", "--method=POST"], &["StatusCode=303", "ResponseHeader=Location:http://example.org/redirect/303"]),
    case("by 307", &["http://web/redirect/307", "--method=POST"], &["StatusCode=307", "ResponseHeader=Location:http://example.org/redirect/307"]),
    case("by 308", &["http://web/redirect/308", "--method=POST"], &["StatusCode=308", "ResponseHeader=Location:http://example.org/redirect/308"]),
    // Which rule won.
    case("the shorter prefix", &["http://web/order/other"], &["ResponseHeader=X-Rule:prefix"]),
    case("the longer prefix", &["http://web/order/long?q=1"], &["ResponseHeader=X-Rule:query"]),
    case("the first of a repeated parameter", &["http://web/order/long?q=2&q=1"], &["ResponseHeader=X-Rule:prefix"]),
    case("a header before a parameter", &["http://web/order/long?q=1", "-H=x-kind:a"], &["ResponseHeader=X-Rule:header"]),
    case("a method before a header", &["http://web/order/long?q=1", "-H=X-Kind:a", "--method=DELETE"], &["ResponseHeader=X-Rule:method"]),
    case("an exact path before all", &["http://web/order/long/exact?q=1", "-H=X-Kind:a", "--method=DELETE"], &["ResponseHeader=X-Rule:exact"]),
    // What a refused request is told.
    case("no rule", &["http://web/nowhere"], &["StatusCode=404"]),
    case("a backend that is not there", &["http://web/backends/missing"], &["StatusCode=500"]),
    case("a backend of no known kind", &["http://web/backends/kind"], &["StatusCode=500"]),
    case("a missing backend of weight 0", &["http://web/backends/weightless"], &["StatusCode=200", V1]),
    case("weights of 0 only", &["http://web/backends/zero"], &["StatusCode=500"]),
    case("no backends", &["http://web/backends/none"], &["StatusCode=500"]),
    case("nobody behind a backend", &["http://web/backends/empty"], &["StatusCode=503"]),
    case("a request's time", &["http://web/timeout/request?delay=5s"], &["StatusCode=504"]),
    case("a backend's time", &["http://web/timeout/backend?delay=5s"], &["StatusCode=504"]),
    case("no limit of time", &["http://web/timeout/none?delay=300ms"], &["StatusCode=200"]),
    // Cross-origin requests.
    case("a preflight", &["http://web/cors", "--method=OPTIONS", "-H=Origin:https://good.example", "-H=Access-Control-Request-Method:PUT"],
        &["ResponseHeader=Access-Control-Allow-Origin:https://good.example", "ResponseHeader=Access-Control-Max-Age:60"]),
    case("an origin that is known", &["http://web/cors", "-H=Origin:https://good.example"], &["StatusCode=200", V1, "ResponseHeader=Access-Control-Allow-Origin:https://good.example"]),
    case("an origin that is not", &["http://web/cors", "-H=Origin:https://bad.example"], &["StatusCode=200", V1]).without("ResponseHeader=Access-Control-Allow-Origin"),
    // What a route is attached to.
    case("a port by its number, and the dialled address counts", &["http://ported/", "-H=Host:v2"], &["ResponseHeader=X-Rule:by-number", "Host=v2"]),
    case("a port by its name", &["http://ported:8080/"], &["ResponseHeader=X-Rule:by-name"]),
    case("a port without a route", &["http://ported:8081/"], &["StatusCode=200"]).without("ResponseHeader=X-Rule"),
    case("a service without a route", &["http://v1/order/long"], &["StatusCode=200"]).without("ResponseHeader=X-Rule"),
    // gRPC.
    case("headers of a call", &["grpc://web:7070", "-H=x-case:modified", "-H=x-set:mine", "-H=x-add:mine", "-H=x-remove:mine"],
        &["StatusCode=200", "RequestHeader=x-set:rule", "RequestHeader=x-add:mine", "RequestHeader=x-add:rule", "ResponseHeader=x-answer:rule", V1]).without("RequestHeader=x-remove"),
    case("a call by its method", &["grpc://web:7070", "-H=x-case:method"], &["StatusCode=200", V2]),
    case("a call that no rule is for", &["grpc://web:7070", "-H=x-case:none"], &["*code = Unimplemented"]),
    case("a call whose backend is not there", &["grpc://web:7070", "-H=x-case:missing"], &["*code = Unavailable"]),
    case("a call that nobody is there for", &["grpc://web:7070", "-H=x-case:empty"], &["*code = Unavailable"]),
];

#[rustfmt::skip] // one row a line
const OF_THE_CONSUMER: &[Case] = &[
    case("its own route", &["http://web.NAMESPACE/as-it-is"], &["ResponseHeader=X-Rule:consumer", V2]),
    case("replaces the producer's", &["http://web.NAMESPACE/rewrite/full"], &["ResponseHeader=X-Rule:consumer", "URL=/rewrite/full"]),
];

impl Case {
    const fn without(mut self, begin: &'static str) -> Self {
        self.lacks = Some(begin);
        self
    }

    /// What of it the client's words do not bear out.
    fn missed(&self, said: &str) -> Vec<String> {
        let lines: Vec<&str> = said.lines().map(value).collect();
        let is_there = |want: &&&str| match (want.strip_prefix('*'), want.strip_suffix('*')) {
            (Some(part), _) => lines.iter().any(|line| line.contains(part)),
            (_, Some(begin)) => lines.iter().any(|line| line.starts_with(begin)),
            _ => lines.iter().any(|line| *line == **want),
        };
        let lacking = self.has.iter().filter(|want| !is_there(want));
        let mut missed: Vec<String> = lacking.map(|want| format!("no {want}")).collect();
        let unwanted = self.lacks.iter();
        let unwanted = unwanted.filter(|not| lines.iter().any(|line| line.starts_with(**not)));
        missed.extend(unwanted.map(|not| format!("{not} is there")));
        missed
    }
}

/// A line without the number of its request: `[0 body] URL=/` is `URL=/`.
fn value(line: &str) -> &str {
    let value = line
        .strip_prefix('[')
        .and_then(|line| line.split_once("] "));
    value.map_or(line, |(_, value)| value)
}

/// What the client in a pod of `namespace` prints.
fn ask(namespace: &Namespace, request: &[String]) -> String {
    let exec = [
        "-n",
        &namespace.name,
        "exec",
        "deployment/caller",
        "-c",
        "echo",
        "--",
        "client",
    ];
    let request = request.iter().map(String::as_str);
    let arguments: Vec<&str> = exec.into_iter().chain(request).collect();
    let output = namespace.cluster.try_kubectl(&arguments);
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{out}{error}")
}

/// Asks until a case holds, for a route may be on its way; or says what does not.
fn check(caller: &Namespace, producer: &str, case: &Case) -> Option<String> {
    let request = case
        .request
        .iter()
        .map(|part| part.replace("NAMESPACE", producer));
    let request: Vec<String> = request.collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = ask(caller, &request);
        let missed = case.missed(&said);
        if missed.is_empty() {
            return None;
        }
        if Instant::now() > deadline {
            let missed = missed.join("; ");
            return Some(format!("{}: {request:?}: {missed}\n{said}", case.name));
        }
    }
}

#[test]
fn pods_see_what_the_suite_does_not_look_at() {
    let Some(cluster) = install::connect() else {
        return;
    };
    cluster.install_gateway_api("experimental");
    let image = conformance::echo(&cluster);
    let namespace = cluster.namespace("stricter", &[INJECTED]);
    let consumer = cluster.namespace("consumer", &[INJECTED]);
    let manifests = include_str!("stricter.yaml");
    namespace.apply(
        &manifests
            .replace("IMAGE", &image)
            .replace("CONSUMER", &consumer.name),
    );
    for of in ["v1", "v2", "caller"] {
        namespace.rolled_out(of);
    }
    consumer.rolled_out("caller");
    let wrong: Vec<String> = CASES
        .iter()
        .filter_map(|case| check(&namespace, &namespace.name, case))
        .chain(
            OF_THE_CONSUMER
                .iter()
                .filter_map(|case| check(&consumer, &namespace.name, case)),
        )
        .collect();
    assert!(
        wrong.is_empty(),
        "{} wrong\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    half_of_the_answers_are_the_missing_backends(&namespace);
    mirrored_requests_arrive(&namespace);
    a_pods_address_bypasses_routes(&namespace);
}

/// The share of an invalid backend is refused, and never spread over the others.
fn half_of_the_answers_are_the_missing_backends(namespace: &Namespace) {
    let request = ["http://web/backends/half", "--count=200", "--qps=0"].map(str::to_owned);
    let said = ask(namespace, &request);
    let count = |code: &str| said.lines().filter(|line| value(line) == code).count();
    let (refused, served) = (count("StatusCode=500"), count("StatusCode=200"));
    assert_eq!(refused + served, 200, "{said}");
    // Five standard deviations of a fair coin.
    assert!(refused.abs_diff(100) < 36, "{refused} of 200 were refused");
}

fn mirrored_requests_arrive(namespace: &Namespace) {
    for (request, trace) in [
        (["http://web/mirror/one", "-H=X-Trace:of-http"], "of-http"),
        (
            ["grpc://web:7070", "-H=x-case:mirrored,x-trace:of-grpc"],
            "of-grpc",
        ),
    ] {
        let said = ask(namespace, &request.map(str::to_owned));
        assert!(
            said.lines()
                .any(|line| value(line).starts_with("Hostname=v1-")),
            "{said}"
        );
        eventually("the mirrored request", || {
            let logs = namespace.kubectl(&["logs", "deployment/v2", "-c", "echo"]);
            logs.contains(trace).then_some(())
        });
    }
}

fn a_pods_address_bypasses_routes(namespace: &Namespace) {
    let address = namespace.kubectl(&[
        "get",
        "pods",
        "-l",
        "version=v2",
        "-o",
        "jsonpath={.items[0].status.podIP}",
    ]);
    let said = ask(namespace, &[format!("http://{address}:8080/nowhere")]);
    let is = |want: &str| said.lines().any(|line| value(line).starts_with(want));
    assert!(is("StatusCode=200") && is("Hostname=v2-"), "{said}");
}

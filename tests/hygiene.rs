//! Requests and answers that must not pass, byte by byte over raw sockets, both directions: the
//! table of request smuggling. What is refused never reaches the upstream, is answered with a reason,
//! closes the connection and is counted.

use std::net::SocketAddr;

use weft_tests::config::front;
use weft_tests::port;
use weft_tests::proxy::Proxy;
use weft_tests::raw::Raw;
use weft_tests::upstream::{Then, Upstream};

/// A request's bytes after its first line's end and `Host`, and the status and reason it gets.
struct Bad {
    request: &'static str,
    status: u16,
    reason: &'static str,
}

const fn bad(request: &'static str, status: u16, reason: &'static str) -> Bad {
    Bad {
        request,
        status,
        reason,
    }
}

/// Each ends in a way that a lenient parser would take for a whole request, with another behind it.
const REFUSED: &[Bad] = &[
    // Two lengths, in every disguise.
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "length_and_chunked",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        400,
        "length_and_chunked",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        400,
        "content_length_repeated",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
        400,
        "content_length_repeated",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nabcde",
        400,
        "",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde",
        400,
        "content_length",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        400,
        "content_length",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nabcde",
        400,
        "content_length",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nabcde",
        400,
        "content_length",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        400,
        "content_length",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
        400,
        "content_length",
    ),
    // Transfer codings that one side knows and another does not.
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
        "transfer_encoding",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        501,
        "transfer_encoding",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        501,
        "transfer_encoding",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        501,
        "transfer_encoding",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        400,
        "",
    ),
    bad(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        400,
        "space_before_colon",
    ),
    bad(
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "transfer_encoding_in_http10",
    ),
    // Lines that end in more than one way.
    bad("GET / HTTP/1.1\nHost: a\n\n", 400, "bare_lf"),
    bad("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400, "bare_lf"),
    bad(
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n",
        400,
        "bare_cr",
    ),
    bad(
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
        400,
        "obs_fold",
    ),
    bad(
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tfolded\r\n\r\n",
        400,
        "obs_fold",
    ),
    bad("GET / HTTP/1.1\r\n X: b\r\nHost: a\r\n\r\n", 400, ""),
    // Fields.
    bad(
        "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n",
        400,
        "space_before_colon",
    ),
    bad(
        "GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n",
        400,
        "header_name",
    ),
    bad(
        "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        400,
        "header_name",
    ),
    bad("GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400, ""),
    bad("GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", 400, ""),
    bad("GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", 400, ""),
    // Whose request it is.
    bad("GET / HTTP/1.1\r\n\r\n", 400, "host_missing"),
    bad(
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        400,
        "host_repeated",
    ),
    bad(
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        400,
        "host_repeated",
    ),
    bad("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "host"),
    bad("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "host"),
    bad("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400, ""),
    bad("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", 400, "host"),
    bad(
        "GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        "userinfo",
    ),
    // Start lines.
    bad("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    bad("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, ""),
    bad("GET / HTTP/1.1\x0b\r\nHost: a\r\n\r\n", 400, ""),
    bad("GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "method"),
    bad("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 0, ""),
    bad(
        "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        "target_fragment",
    ),
    bad("GET nowhere HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    bad("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target"),
    bad("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    bad("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, "version"),
    bad("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "version"),
    bad("GET / http/1.1\r\nHost: a\r\n\r\n", 0, ""),
    bad("GET / HTTP/01.1\r\nHost: a\r\n\r\n", 0, ""),
    bad("GET /\r\n\r\n", 0, ""),
    bad(
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nabcde",
        400,
        "connect_body",
    ),
    bad("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target"),
];

/// What follows a refused request on the same connection must never be taken for one.
const BEHIND: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

fn setting() -> (Upstream, SocketAddr, Proxy) {
    let upstream = Upstream::echo("up");
    let web = port::free_address();
    let proxy = Proxy::start(front(web, &[upstream.address]));
    (upstream, web, proxy)
}

#[test]
fn malformed_requests_are_refused() {
    let (upstream, web, mut proxy) = setting();
    let mut wrong = Vec::new();
    for case in REFUSED {
        let mut raw = Raw::connect(web);
        raw.send(format!("{}{BEHIND}", case.request));
        let answer = raw.try_answer("GET").unwrap_or_default();
        let right_status = match case.status {
            0 => (400..600).contains(&answer.status),
            status => answer.status == status,
        };
        // The reason's header names the cause; the detail is in the metric.
        let rest = raw.closed();
        if !right_status || answer.reason().is_empty() || !rest.is_empty() {
            wrong.push(format!(
                "{:?}\n  gave {} {:?}, then {:?}",
                case.request,
                answer.status,
                answer.headers,
                String::from_utf8_lossy(&rest)
            ));
        }
        if !case.reason.is_empty() {
            let labels = [("listener", "web"), ("reason", case.reason)];
            if !proxy.metrics().has("weft_requests_rejected_total", &labels) {
                wrong.push(format!(
                    "{:?}\n  was not counted as {}",
                    case.request, case.reason
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let reached: Vec<String> = upstream.seen().into_iter().map(|seen| seen.head).collect();
    assert!(reached.is_empty(), "{reached:#?}");
    let rejected = proxy.metrics().sum("weft_requests_rejected_total", &[]);
    assert!(rejected >= REFUSED.len() as f64, "{rejected} counted");
    proxy.is_well();
}

/// Bodies whose framing breaks after the head was fine: the request may have gone out, what comes
/// behind it may not.
#[test]
fn broken_chunks_end_the_connection() {
    let (upstream, web, mut proxy) = setting();
    let head = "POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut wrong = Vec::new();
    for body in [
        "5\nabcde\r\n0\r\n\r\n",
        "5\r\nabcdefg\r\n0\r\n\r\n",
        "5\r\nabcde0\r\n\r\n",
        "0x5\r\nabcde\r\n0\r\n\r\n",
        "+5\r\nabcde\r\n0\r\n\r\n",
        "-5\r\nabcde\r\n0\r\n\r\n",
        " 5\r\nabcde\r\n0\r\n\r\n",
        "5 \r\nabcde\r\n0\r\n\r\n",
        "g\r\nabcde\r\n0\r\n\r\n",
        "\r\nabcde\r\n0\r\n\r\n",
        "10000000000000005\r\nabcde\r\n0\r\n\r\n",
        "5;\nabcde\r\n0\r\n\r\n",
        "5;a\rb=c\r\nabcde\r\n0\r\n\r\n",
        "5;a=\"\nb\"\r\nabcde\r\n0\r\n\r\n",
        "5\r\nabcde\r\n0\n\n",
        "5\r\nabcde\r\n0\r\nX : y\r\n\r\n",
        "5\r\nabcde\r\n0\r\nContent-Length: 7\r\n\r\n",
        "5\r\nabcde\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nabcde\r\n0\r\nX: y\n\r\n",
    ] {
        let mut raw = Raw::connect(web);
        raw.send(format!("{head}{body}{BEHIND}"));
        let answer = raw.try_answer("POST").unwrap_or_default();
        let rest = raw.try_closed();
        if !matches!(answer.status, 400 | 431) || rest.as_deref() != Some(b"") {
            wrong.push(format!("{body:?} gave {answer:?}, then {rest:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let whole = upstream
        .seen()
        .into_iter()
        .filter(|seen| !seen.target().is_empty());
    let whole: Vec<String> = whole
        .map(|seen| format!("{} {:?}", seen.head, seen.body))
        .collect();
    assert!(whole.is_empty(), "{whole:#?}");
    proxy.is_well();
}

/// What is unusual and allowed must pass, or the refusals above would prove little.
#[test]
fn unusual_requests_pass() {
    let (upstream, web, _proxy) = setting();
    for (request, body) in [
        ("GET / HTTP/1.1\r\nhOsT:a\r\n\r\n", ""),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t \r\n\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: \"caf\u{e9}\"\r\n\r\n", ""),
        ("BREW-1 / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\nabcde",
            "abcde",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
            "abcde",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"b;c\"\r\nabcde\r\n00\r\n\r\n",
            "abcde",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde",
            "abcde",
        ),
    ] {
        let mut raw = Raw::connect(web);
        raw.send(request);
        let answer = raw.answer();
        assert_eq!(
            (answer.status, answer.text()),
            (200, format!("/{body}")),
            "{request:?}"
        );
        // The upstream heard one framing, and a canonical one.
        let seen = upstream.last();
        let framings =
            seen.headers("content-length").len() + seen.headers("transfer-encoding").len();
        assert!(framings <= 1, "{}", seen.head);
        assert!(!seen.head.contains("005"), "{}", seen.head);
    }
}

/// Answers that must not pass: 502, never a byte of them, and the upstream connection is not used
/// again.
#[test]
fn malformed_answers_are_refused() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nabcde",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 99 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0d\r\n\r\n",
    ] {
        let upstream = Upstream::fixed(answer, Then::Close);
        let web = port::free_address();
        let proxy = Proxy::start(front(web, &[upstream.address]));
        let mut raw = Raw::connect(web);
        let got = raw.get("/");
        assert_eq!(
            (got.status, got.reason()),
            (502, "upstream_protocol"),
            "{answer:?}"
        );
        // The client's own connection is fine.
        assert_eq!(raw.get("/").status, 502);
        assert_eq!(upstream.connections(), 2, "{answer:?}");
        proxy.counts("upstream_protocol", 2.0);
    }
}

/// Bytes behind an answer are no answer to the next request (response queue poisoning).
#[test]
fn bytes_behind_an_answer_are_dropped() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned",
        Then::Keep,
    );
    let web = port::free_address();
    let _proxy = Proxy::start(front(web, &[upstream.address]));
    let mut raw = Raw::connect(web);
    for _ in 0..10 {
        assert_eq!(raw.get("/").text(), "ok");
    }
    assert_eq!(upstream.connections(), 10);
}

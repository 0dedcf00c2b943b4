//! The fuzz targets' invariants on stable: seeded mutations of well-formed and of
//! malformed inputs. `fuzz/` searches; this keeps what it guards in every test run.

#[path = "../../fuzz/src/bytes.rs"]
mod invariants;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const MUTATIONS: usize = 4000;

const REQUESTS: &[&[u8]] = &[
    b"GET /a/b?c=%20d HTTP/1.1\r\nHost: example.org:8080\r\nAccept: */*\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close, x-a\r\nX-A: 1\r\n\r\nhello",
    b"\r\nPUT http://b/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n0\r\n\r\n",
    b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nExpect: 100-continue\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\r\n fold\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
];

const RESPONSES: &[&[u8]] = &[
    b"\x02HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\nhello",
    b"\x00HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
    b"\x02HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\nContent-Type: a\r\n\r\n",
    b"\x02HTTP/1.0 204\r\nConnection: keep-alive\r\n\r\n",
    b"\x01HTTP/1.1 200 Connection established\r\n\r\n",
    b"\x03HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
];

const CHUNKED: &[&[u8]] = &[
    b"5\r\nhello\r\n0\r\n\r\n",
    b"1;a=b;c=\"d e\"\r\nx\r\nA ;q\r\n0123456789\r\n0\r\nx-t: 1\r\ny-t: 2\r\n\r\nrest",
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"00000000000000000005\r\nhello\r\n",
    b"5\nhello\r\n0\r\n\r\n",
];

const CLIENT_HELLOS: &[&[u8]] = &[
    b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    b"\x16\x03\x01\x00\x43\x01\x00\x00\x3f\x03\x03................................\x00\x00\x02\x13\x01\x01\x00\x00\x14\x00\x00\x00\x06\x00\x04\x00\x00\x01a\x00\x10\x00\x05\x00\x03\x02h2\x00",
    b"\x16\x03\x01\x00\x02\x01\x00\x16\x03\x01\x00\x29\x00\x29\x03\x03................................\x00\x00\x02\x13\x01\x01\x00",
];

const PREFIXES: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"CONNECT a.b:443 HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET https://a/ HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"EHLO host\r\n",
];

const PROXY_HEADERS: &[&[u8]] = &[
    b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\nGET /",
    b"PROXY TCP6 ::1 2001:db8::1 5 10\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x06\x07\x08\x09\x00\x05\x00\x0a",
    b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00",
];

/// Bytes that parsers treat apart.
const SIGNIFICANT: &[u8] = b"\r\n \t:;,0159afAF\0\x01\x16\x7f\x80\xff/*#?@[]%-+\"\\";

fn mutate(input: &[u8], rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..=bytes.len());
        let byte = SIGNIFICANT[rng.random_range(0..SIGNIFICANT.len())];
        match rng.random_range(0..5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, byte),
            2 if at < bytes.len() => bytes[at] = byte,
            3 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.extend_from_within(at..),
        }
    }
    bytes
}

fn check(seed: u64, inputs: &[&[u8]], invariant: fn(&[u8])) {
    let mut rng = SmallRng::seed_from_u64(seed);
    for round in 0..MUTATIONS {
        let input = inputs[round % inputs.len()];
        let bytes = if round < inputs.len() {
            input.to_vec()
        } else {
            mutate(input, &mut rng)
        };
        // Shown when an assertion fails.
        println!("seed {seed}, round {round}: {}", bytes.escape_ascii());
        invariant(&bytes);
    }
}

#[test]
fn http1_requests() {
    check(1, REQUESTS, invariants::http1_request);
}

#[test]
fn http1_responses() {
    check(2, RESPONSES, invariants::http1_response);
}

#[test]
fn http1_chunked_bodies() {
    check(3, CHUNKED, invariants::http1_chunked);
}

#[test]
fn client_hellos() {
    check(4, CLIENT_HELLOS, invariants::client_hello);
}

#[test]
fn detection() {
    check(5, PREFIXES, invariants::detect);
}

#[test]
fn proxy_protocol_headers() {
    check(6, PROXY_HEADERS, invariants::proxy_protocol);
}

//! Invariants of the proxy's byte parsers: how bytes are cut into segments changes
//! nothing, an answer once given stays, and what was accepted and written anew parses to
//! the same message.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method};
use weft_proxy::logic::client_hello::{self, HelloError};
use weft_proxy::logic::detect::{self, Detection};
use weft_proxy::logic::http1::{
    BodyDecoder, BodyLimits, Chunk, Connection, Framing, HeadLimits, HeadReader, Reject,
    RequestHead, RequestLine, ResponseHead, TargetForm, UpstreamFault, encode_chunk_header,
    encode_last_chunk, encode_request, encode_response,
};
use weft_proxy::logic::proxy_protocol;

/// Small, so that the fuzzer finds the limits.
const HEAD_LIMITS: HeadLimits = HeadLimits {
    bytes_max: 1024,
    headers_max: 16,
    target_bytes_max: 256,
};
const BODY_LIMITS: BodyLimits = BodyLimits {
    chunk_line_bytes_max: 32,
    extension_bytes_max: 64,
    trailer_bytes_max: 128,
    trailers_max: 4,
};

/// A head, how many bytes it took, or why there is none.
type Parsed<T, E> = Result<Option<(T, usize)>, E>;

fn whole<T, E>(
    data: &[u8],
    mut parse: impl FnMut(&mut BytesMut) -> Result<Option<T>, E>,
) -> Parsed<T, E> {
    let mut buffer = BytesMut::from(data);
    let parsed = parse(&mut buffer)?;
    Ok(parsed.map(|head| (head, data.len() - buffer.len())))
}

fn byte_by_byte<T, E>(
    data: &[u8],
    mut parse: impl FnMut(&mut BytesMut) -> Result<Option<T>, E>,
) -> Parsed<T, E> {
    let mut buffer = BytesMut::new();
    for (fed, byte) in data.iter().enumerate() {
        buffer.put_u8(*byte);
        if let Some(head) = parse(&mut buffer)? {
            assert!(buffer.is_empty(), "a head was found late");
            return Ok(Some((head, fed + 1)));
        }
    }
    Ok(None)
}

fn agree<T: std::fmt::Debug, E: std::fmt::Debug>(
    whole: Parsed<T, E>,
    split: Parsed<T, E>,
    same: impl Fn(&T, &T) -> bool,
) -> Option<T> {
    match (whole, split) {
        (Ok(Some((a, a_bytes))), Ok(Some((b, b_bytes)))) => {
            assert_eq!(a_bytes, b_bytes);
            assert!(same(&a, &b), "{a:?} ≠ {b:?}");
            Some(a)
        }
        (Ok(None), Ok(None)) | (Err(_), Err(_)) => None,
        // Whole, a later byte already breaks a rule; byte by byte it would with the end.
        (Err(_), Ok(None)) => None,
        (whole, split) => panic!("whole {whole:?}, split {split:?}"),
    }
}

fn same_request(a: &RequestHead, b: &RequestHead) -> bool {
    a.method == b.method
        && a.target == b.target
        && a.version == b.version
        && a.headers == b.headers
        && a.body == b.body
        && a.keep_alive == b.keep_alive
        && a.upgrade == b.upgrade
        && a.expect_continue == b.expect_continue
}

fn parse_request(
    mut reader: HeadReader,
) -> impl FnMut(&mut BytesMut) -> Result<Option<RequestHead>, Reject> {
    move |buffer| reader.parse_request(buffer)
}

/// One request head.
pub fn http1_request(data: &[u8]) {
    let reader = || parse_request(HeadReader::new(HEAD_LIMITS));
    let head = agree(
        whole(data, reader()),
        byte_by_byte(data, reader()),
        same_request,
    );
    let Some(head) = head else { return };
    check_hop_by_hop(&head.headers);
    assert!(!head.headers.contains_key("host"));
    assert!(!head.headers.contains_key("content-length"));
    detect_agrees(data, &head);
    let mut out = BytesMut::new();
    let line = RequestLine {
        method: &head.method,
        path_and_query: &head.target.path_and_query,
        authority: head.target.authority.as_ref(),
    };
    let connection = head
        .upgrade
        .as_ref()
        .map_or(Connection::Unstated, Connection::Upgrade);
    encode_request(&mut out, line, &head.headers, head.body, connection);
    let again = HeadReader::new(HeadLimits::default()).parse_request(&mut out);
    if head.target.authority.is_none() {
        assert_eq!(again.err(), Some(Reject::Host));
        return;
    }
    let again = again
        .expect("what was written parses")
        .expect("it is complete");
    assert!(out.is_empty(), "bytes are left after the head");
    assert_eq!(again.method, head.method);
    assert_eq!(again.target.authority, head.target.authority);
    assert_eq!(
        again.target.path_and_query.as_str(),
        head.target.path_and_query.as_str()
    );
    assert_ne!(again.target.form, TargetForm::Absolute);
    assert_eq!(again.headers, head.headers);
    assert_eq!(again.body, head.body);
    assert_eq!(again.upgrade, head.upgrade);
}

fn check_hop_by_hop(headers: &HeaderMap) {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    ] {
        assert!(!headers.contains_key(name), "{name}");
    }
    assert!(headers.get("te").is_none_or(|te| te == "trailers"));
}

/// What the parser accepts with a common method, detection must not call opaque.
fn detect_agrees(data: &[u8], head: &RequestHead) {
    let capitals = head.method.as_str().bytes().all(|b| b.is_ascii_uppercase());
    if capitals && head.method.as_str().len() <= 24 && data.first() != Some(&b'\r') {
        assert_eq!(detect::detect(data), Detection::Http1);
    }
}

fn same_response(a: &ResponseHead, b: &ResponseHead) -> bool {
    a.status == b.status
        && a.version == b.version
        && a.headers == b.headers
        && a.body == b.body
        && a.not_kept == b.not_kept
        && a.upgrade == b.upgrade
}

/// One response head; the first byte chooses the request's method.
pub fn http1_response(data: &[u8]) {
    let Some((selector, data)) = data.split_first() else {
        return;
    };
    let method = match selector % 4 {
        0 => Method::HEAD,
        1 => Method::CONNECT,
        _ => Method::GET,
    };
    let parser = || {
        let mut reader = HeadReader::new(HEAD_LIMITS);
        let method = method.clone();
        move |buffer: &mut BytesMut| -> Result<_, UpstreamFault> {
            reader.parse_response(buffer, &method)
        }
    };
    let head = agree(
        whole(data, parser()),
        byte_by_byte(data, parser()),
        same_response,
    );
    let Some(head) = head else { return };
    check_hop_by_hop(&head.headers);
    let mut out = BytesMut::new();
    let connection = head
        .upgrade
        .as_ref()
        .map_or(Connection::Unstated, Connection::Upgrade);
    encode_response(&mut out, head.status, &head.headers, head.body, connection);
    let again = HeadReader::new(HeadLimits::default())
        .parse_response(&mut out, &method)
        .expect("what was written parses")
        .expect("it is complete");
    assert!(out.is_empty(), "bytes are left after the head");
    assert_eq!(again.status, head.status);
    assert_eq!(again.headers, head.headers);
    assert_eq!(again.body, head.body);
    assert_eq!(again.upgrade, head.upgrade);
}

/// Data, trailers and bytes taken, where the body ended.
type Decoded = Result<(Vec<u8>, Option<(Option<HeaderMap>, usize)>), Reject>;

fn decode(data: &[u8], segment_bytes: usize, limits: BodyLimits) -> Decoded {
    let mut decoder = BodyDecoder::new(Framing::Chunked, limits);
    let mut buffer = BytesMut::new();
    let mut body = Vec::new();
    let mut fed = 0;
    for segment in data.chunks(segment_bytes.max(1)) {
        buffer.put_slice(segment);
        fed += segment.len();
        loop {
            match decoder.decode(&mut buffer)? {
                Chunk::NeedMore => break,
                Chunk::Data(chunk) => {
                    assert!(!chunk.is_empty());
                    body.extend_from_slice(&chunk);
                }
                Chunk::End(trailers) => return Ok((body, Some((trailers, fed - buffer.len())))),
            }
        }
    }
    assert_eq!(decoder.end_of_stream(), Err(Reject::Truncated));
    Ok((body, None))
}

/// One chunked body.
pub fn http1_chunked(data: &[u8]) {
    let whole = decode(data, data.len(), BODY_LIMITS);
    for segment_bytes in [1, 2, 3, 7] {
        let split = decode(data, segment_bytes, BODY_LIMITS);
        assert_eq!(whole.is_err(), split.is_err(), "{whole:?} ≠ {split:?}");
        if whole.is_ok() {
            assert_eq!(whole, split);
        }
    }
    let Ok((body, Some((trailers, _)))) = whole else {
        return;
    };
    let mut out = BytesMut::new();
    for chunk in body.chunks(5) {
        encode_chunk_header(&mut out, chunk.len() as u64);
        out.put_slice(chunk);
        out.put_slice(b"\r\n");
    }
    encode_last_chunk(&mut out, trailers.as_ref());
    // Wider: a space after each colon may be new.
    let again = decode(&out, out.len(), BodyLimits::default());
    assert_eq!(again, Ok((body, Some((trailers, out.len())))));
}

/// A ClientHello: an answer stays as more bytes come.
pub fn client_hello(data: &[u8]) {
    let decided = client_hello::parse(data);
    for cut in (0..data.len()).rev().take(2048) {
        let earlier = client_hello::parse(&data[..cut]);
        if earlier != Err(HelloError::NeedMore) {
            assert_eq!(earlier, decided, "cut at {cut}");
        }
    }
    if decided.is_ok() {
        assert_eq!(detect::detect(data), Detection::Tls);
    }
}

/// Detection: an answer stays as more bytes come, and comes within the limit.
pub fn detect(data: &[u8]) {
    let decided = detect::detect(data);
    for cut in 0..data.len() {
        let earlier = detect::detect(&data[..cut]);
        if earlier != Detection::NeedMore {
            assert_eq!(earlier, decided, "cut at {cut}");
        }
    }
    if data.len() >= detect::PREFIX_BYTES_MAX {
        assert_ne!(decided, Detection::NeedMore);
    }
}

/// A PROXY protocol header: an answer stays, none comes early, addresses survive.
pub fn proxy_protocol(data: &[u8]) {
    let decided = proxy_protocol::parse(data);
    for cut in 0..data.len() {
        match proxy_protocol::parse(&data[..cut]) {
            Ok(None) => {}
            earlier => assert_eq!(earlier, decided, "cut at {cut}"),
        }
    }
    if data.len() >= proxy_protocol::HEADER_BYTES_MAX {
        assert_ne!(decided, Ok(None));
    }
    let Ok(Some((header, consumed))) = decided else {
        return;
    };
    assert!((1..=data.len()).contains(&consumed));
    let (Some(source), Some(destination)) = (header.source, header.destination) else {
        assert_eq!(header.source.is_none(), header.destination.is_none());
        return;
    };
    for encode in [proxy_protocol::encode_v1, proxy_protocol::encode_v2] {
        let mut out = BytesMut::new();
        encode(source, destination, &mut out);
        let written = Bytes::from(out);
        let (again, length) = proxy_protocol::parse(&written)
            .expect("parses")
            .expect("complete");
        assert_eq!(length, written.len());
        for (a, b) in [(again.source, source), (again.destination, destination)] {
            let a = a.expect("an address");
            assert_eq!(
                (a.ip().to_canonical(), a.port()),
                (b.ip().to_canonical(), b.port())
            );
        }
    }
}

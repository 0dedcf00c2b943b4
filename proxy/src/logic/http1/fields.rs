//! The header fields of one head: framing and connection fields kept aside, hop-by-hop
//! fields stripped, the rest moved into the header map without copying.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::reject::Reject;

/// Where one field's name and value lie in its head. Offsets rather than slices, so
/// that the buffer they were found in can be split.
#[derive(Clone, Copy)]
pub(super) struct FieldSpan {
    pub name: (u32, u32),
    pub value: (u32, u32),
}

/// Sized for common heads, so that collecting them does not allocate.
pub(super) type FieldSpans = SmallVec<[FieldSpan; 32]>;

/// Fields whose meaning the parser takes on itself.
enum Special {
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Upgrade,
    Te,
    Expect,
    /// Keep-Alive, Proxy-Connection: dropped unread.
    Drop,
}

/// By length first: most fields are told apart from these without comparing a byte.
fn special(name: &[u8]) -> Option<Special> {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        2 if is(b"te") => Some(Special::Te),
        4 if is(b"host") => Some(Special::Host),
        6 if is(b"expect") => Some(Special::Expect),
        7 if is(b"upgrade") => Some(Special::Upgrade),
        10 if is(b"connection") => Some(Special::Connection),
        10 if is(b"keep-alive") => Some(Special::Drop),
        14 if is(b"content-length") => Some(Special::ContentLength),
        16 if is(b"proxy-connection") => Some(Special::Drop),
        17 if is(b"transfer-encoding") => Some(Special::TransferEncoding),
        _ => None,
    }
}

/// What the fields kept aside said.
#[derive(Default)]
pub(super) struct Fields {
    pub host: Option<Bytes>,
    pub content_length: Option<u64>,
    /// The field's value itself, for messages where it frames nothing.
    pub content_length_value: Option<Bytes>,
    pub chunked: bool,
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: Option<HeaderValue>,
    pub expect_continue: bool,
}

impl Fields {
    /// Moves the fields of `head` at `spans` into `headers`, but for those kept aside.
    pub fn collect(
        head: &Bytes,
        spans: &[FieldSpan],
        headers: &mut HeaderMap,
    ) -> Result<Self, Reject> {
        let mut fields = Self::default();
        let mut te_trailers = false;
        let mut upgrade = None;
        let mut connections: SmallVec<[Bytes; 2]> = SmallVec::new();
        headers.reserve(spans.len());
        for span in spans {
            let name = slice(head, span.name);
            let value = head.slice(span.value.0 as usize..span.value.1 as usize);
            match special(name) {
                None => append(headers, name, value)?,
                Some(Special::Host) if fields.host.is_some() => return Err(Reject::HostRepeated),
                Some(Special::Host) => fields.host = Some(value),
                Some(Special::ContentLength) => fields.content_length(value)?,
                // Two fields of `chunked` are a list, and not exactly `chunked`.
                Some(Special::TransferEncoding) => {
                    if fields.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Reject::TransferEncoding);
                    }
                    fields.chunked = true;
                }
                Some(Special::Connection) => connections.push(value),
                Some(Special::Upgrade) => {
                    // Several fields would have to be joined; nobody sends them.
                    if upgrade.is_none() && may_upgrade(&value) {
                        upgrade = Some(to_value(value)?);
                    }
                }
                Some(Special::Te) => te_trailers |= tokens(&value).any(is_te_trailers),
                Some(Special::Expect) => {
                    fields.expect_continue |= value.eq_ignore_ascii_case(b"100-continue");
                    append(headers, name, value)?;
                }
                Some(Special::Drop) => {}
            }
        }
        if fields.chunked && fields.content_length.is_some() {
            return Err(Reject::LengthAndChunked);
        }
        if te_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let mut upgrade_named = false;
        for option in connections.iter().flat_map(|value| tokens(value)) {
            match option.len() {
                5 if option.eq_ignore_ascii_case(b"close") => fields.close = true,
                10 if option.eq_ignore_ascii_case(b"keep-alive") => fields.keep_alive = true,
                7 if option.eq_ignore_ascii_case(b"upgrade") => upgrade_named = true,
                _ => remove_named(headers, option),
            }
        }
        // RFC 9110 §7.8: Upgrade counts only where Connection names it.
        if upgrade_named {
            fields.upgrade = upgrade;
        }
        Ok(fields)
    }

    /// A repeat is refused even where it says the same (RFC 9112 §6.3 would allow to
    /// merge it): no sound sender repeats it, every smuggler does.
    fn content_length(&mut self, value: Bytes) -> Result<(), Reject> {
        if self.content_length.is_some() {
            return Err(Reject::ContentLengthRepeated);
        }
        self.content_length = Some(parse_length(&value)?);
        self.content_length_value = Some(value);
        Ok(())
    }
}

fn slice(head: &[u8], (start, end): (u32, u32)) -> &[u8] {
    head.get(start as usize..end as usize).unwrap_or_default()
}

fn append(headers: &mut HeaderMap, name: &[u8], value: Bytes) -> Result<(), Reject> {
    let name = HeaderName::from_bytes(name).map_err(|_| Reject::HeaderName)?;
    headers
        .try_append(name, to_value(value)?)
        .map_err(|_| Reject::TooManyHeaders)?;
    Ok(())
}

fn to_value(value: Bytes) -> Result<HeaderValue, Reject> {
    HeaderValue::from_maybe_shared(value).map_err(|_| Reject::HeaderValue)
}

/// `1*DIGIT` within 64 bits: no sign, no list, no whitespace (RFC 9110 §8.6).
fn parse_length(value: &[u8]) -> Result<u64, Reject> {
    if value.is_empty() {
        return Err(Reject::ContentLength);
    }
    value.iter().try_fold(0u64, |length, digit| {
        if !digit.is_ascii_digit() {
            return Err(Reject::ContentLength);
        }
        length
            .checked_mul(10)
            .and_then(|length| length.checked_add(u64::from(digit - b'0')))
            .ok_or(Reject::ContentLength)
    })
}

/// The elements of a comma-separated list, without their whitespace (RFC 9110 §5.6.1).
fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|b| *b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

/// `trailers`, perhaps with a (meaningless) weight.
fn is_te_trailers(element: &[u8]) -> bool {
    let name = element.split(|b| *b == b';').next().unwrap_or_default();
    name.trim_ascii().eq_ignore_ascii_case(b"trailers")
}

/// An upgrade to `h2c`, forwarded, gives the client an HTTP/2 connection to the upstream
/// that no rule sees ("h2c smuggling"); RFC 9113 §3.1 has retired it. Ignoring Upgrade
/// is always allowed (RFC 9110 §7.8).
fn may_upgrade(value: &[u8]) -> bool {
    !tokens(value).any(|protocol| {
        let name = protocol.split(|b| *b == b'/').next().unwrap_or_default();
        name.eq_ignore_ascii_case(b"h2c")
            || name.eq_ignore_ascii_case(b"h2")
            || name.eq_ignore_ascii_case(b"http")
            || name.eq_ignore_ascii_case(b"tls")
    })
}

/// Fields that a Connection option cannot remove.
///
/// RFC 9110 §7.6.1 wants every named field removed, and forbids senders to name a field
/// meant for all recipients. Attackers do all the same, to make a proxy drop what the
/// next hop relies on (CVE-2022-1388, CVE-2022-31813, "hop-by-hop header abuse"). So a
/// field that decides about framing, routing, access, caching or tracing stays; the
/// message goes on, since a client that names one in error is common enough.
static END_TO_END: [HeaderName; 22] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::CONTENT_LOCATION,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::TE,
    header::EXPECT,
    header::RANGE,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::CACHE_CONTROL,
    header::VARY,
    header::ORIGIN,
    header::LOCATION,
    header::FORWARDED,
    header::VIA,
    header::DATE,
];

/// The same, by prefix: names that proxies and meshes add, ours among them.
static END_TO_END_PREFIXES: [&str; 8] = [
    "x-forwarded-",
    "x-real-",
    "x-request-",
    "x-client-",
    "x-envoy-",
    "x-b3-",
    "weft-",
    "trace",
];

fn is_end_to_end(name: &HeaderName) -> bool {
    END_TO_END.contains(name)
        || END_TO_END_PREFIXES
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
}

fn remove_named(headers: &mut HeaderMap, option: &[u8]) {
    if let Ok(name) = HeaderName::from_bytes(option)
        && !is_end_to_end(&name)
    {
        headers.remove(name);
    }
}

/// Removes hop-by-hop fields from a header map that did not come from this parser (an
/// HTTP/2 message, a filter): Connection and what it names, Keep-Alive,
/// Proxy-Connection, Transfer-Encoding, Upgrade, and TE but for `trailers`.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: SmallVec<[HeaderName; 4]> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| tokens(value.as_bytes()))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .filter(|name| !is_end_to_end(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    if headers.contains_key(header::TE) {
        let trailers = headers
            .get_all(header::TE)
            .iter()
            .any(|value| tokens(value.as_bytes()).any(is_te_trailers));
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

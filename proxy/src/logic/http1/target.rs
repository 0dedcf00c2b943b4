//! Request targets and authorities: the form, and what may stand in a host.

use std::net::Ipv6Addr;

use bytes::Bytes;
use http::Method;
use http::uri::{Authority, PathAndQuery};

use super::message::{Target, TargetForm};
use super::reject::Reject;

/// Parses a request target. `host` is the Host field's value, already found unique.
pub(super) fn parse_target(
    method: &Method,
    raw: Bytes,
    host: Option<Bytes>,
) -> Result<Target, Reject> {
    // Validated also where the target's own authority replaces it: a Host that is not
    // one is an attack, or a client that an upstream would refuse all the same.
    let host = host.map(parse_authority).transpose()?;
    if *method == Method::CONNECT {
        return parse_authority_form(raw);
    }
    match raw.first() {
        Some(b'/') => Ok(Target {
            form: TargetForm::Origin,
            authority: host,
            path_and_query: parse_path(raw)?,
        }),
        Some(b'*') if raw.len() == 1 && *method == Method::OPTIONS => Ok(Target {
            form: TargetForm::Asterisk,
            authority: host,
            path_and_query: PathAndQuery::from_static("*"),
        }),
        _ => parse_absolute_form(method, raw),
    }
}

fn parse_authority_form(raw: Bytes) -> Result<Target, Reject> {
    check_target_bytes(&raw)?;
    let authority = parse_authority(raw)?;
    // RFC 9112 §3.2.3: uri-host ":" port, both present.
    if authority.port_u16().is_none() {
        return Err(Reject::Target);
    }
    Ok(Target {
        form: TargetForm::Authority,
        authority: Some(authority),
        path_and_query: PathAndQuery::from_static("/"),
    })
}

fn parse_absolute_form(method: &Method, raw: Bytes) -> Result<Target, Reject> {
    check_target_bytes(&raw)?;
    let after_scheme = [b"http://".as_slice(), b"https://"]
        .iter()
        .find_map(|scheme| {
            let head = raw.get(..scheme.len())?;
            head.eq_ignore_ascii_case(scheme).then_some(scheme.len())
        })
        .ok_or(Reject::Target)?;
    let rest = raw.slice(after_scheme..);
    let end = rest
        .iter()
        .position(|b| matches!(b, b'/' | b'?'))
        .unwrap_or(rest.len());
    let authority = parse_authority(rest.slice(..end))?;
    let path = rest.slice(end..);
    let path_and_query = match path.first() {
        Some(b'/') => parse_path(path)?,
        // RFC 9112 §3.2.4: OPTIONS of an absolute-form without path means the server
        // as a whole.
        None if *method == Method::OPTIONS => PathAndQuery::from_static("*"),
        None => PathAndQuery::from_static("/"),
        // RFC 9112 §3.2.1: an empty path is sent as "/", its query follows.
        Some(_) => {
            let mut owned = Vec::with_capacity(path.len() + 1);
            owned.push(b'/');
            owned.extend_from_slice(&path);
            parse_path(Bytes::from(owned))?
        }
    };
    Ok(Target {
        form: TargetForm::Absolute,
        authority: Some(authority),
        path_and_query,
    })
}

fn parse_path(raw: Bytes) -> Result<PathAndQuery, Reject> {
    check_target_bytes(&raw)?;
    PathAndQuery::from_maybe_shared(raw).map_err(|_| Reject::TargetByte)
}

/// `http` drops a fragment in silence and takes UTF-8; neither is byte for byte.
fn check_target_bytes(raw: &[u8]) -> Result<(), Reject> {
    if !raw.is_ascii() {
        return Err(Reject::TargetByte);
    }
    match memchr::memchr(b'#', raw) {
        Some(_) => Err(Reject::TargetFragment),
        None => Ok(()),
    }
}

/// Parses `host [":" port]` as it stands in Host, an absolute-form or CONNECT.
///
/// Stricter than RFC 3986's reg-name: no percent-encoding and no sub-delims, which no
/// name that resolves has, and which implementations disagree about (`a,b` is what two
/// merged Host fields look like). An IPv6 literal must be one, without a zone. An empty
/// host is refused (RFC 9110 §4.2.1), an empty port is not (RFC 3986 §3.2.3).
pub fn parse_authority(raw: Bytes) -> Result<Authority, Reject> {
    let host_end = match raw.first() {
        Some(b'[') => ipv6_literal_end(&raw)?,
        _ => host_name_end(&raw)?,
    };
    match raw.get(host_end..) {
        Some([]) => {}
        Some([b':', port @ ..]) if is_port(port) => {}
        _ => return Err(Reject::Host),
    }
    Authority::from_maybe_shared(raw).map_err(|_| Reject::Host)
}

fn host_name_end(raw: &[u8]) -> Result<usize, Reject> {
    let end = raw
        .iter()
        .position(
            |b| !matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~'),
        )
        .unwrap_or(raw.len());
    if memchr::memchr(b'@', raw.get(end..).unwrap_or_default()).is_some() {
        return Err(Reject::Userinfo);
    }
    if end == 0 {
        return Err(Reject::Host);
    }
    Ok(end)
}

fn ipv6_literal_end(raw: &[u8]) -> Result<usize, Reject> {
    let close = memchr::memchr(b']', raw).ok_or(Reject::Host)?;
    raw.get(1..close)
        .and_then(|literal| std::str::from_utf8(literal).ok())
        .and_then(|literal| literal.parse::<Ipv6Addr>().ok())
        .ok_or(Reject::Host)?;
    Ok(close + 1)
}

fn is_port(digits: &[u8]) -> bool {
    let mut port = 0u32;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return false;
        }
        port = port * 10 + u32::from(digit - b'0');
        if port > u32::from(u16::MAX) {
            return false;
        }
    }
    true
}

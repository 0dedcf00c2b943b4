//! The key of consistent hashing: what a request is recognised by. Owns the
//! hash function, which must not change: every proxy of a fleet, of whatever
//! version, sends one key to one endpoint.

use std::net::IpAddr;

use http::{HeaderMap, header};
use weft_config::snapshot::HashSource;

/// Key of the first source that the request has; `None`: it has none of them.
pub fn hash_key(
    sources: &[HashSource],
    headers: &HeaderMap,
    source: Option<IpAddr>,
) -> Option<u64> {
    sources.iter().find_map(|kind| match kind {
        HashSource::Header(name) => {
            let mut values = headers.get_all(name).iter().peekable();
            values.peek()?;
            Some(mix(
                values.fold(FNV_OFFSET, |hash, value| fnv(hash, value.as_bytes()))
            ))
        }
        HashSource::Cookie(name) => Some(mix(fnv(FNV_OFFSET, cookie_value(headers, name)?))),
        HashSource::SourceAddress => Some(match source?.to_canonical() {
            IpAddr::V4(address) => mix(fnv(FNV_OFFSET, &address.octets())),
            IpAddr::V6(address) => mix(fnv(FNV_OFFSET, &address.octets())),
        }),
    })
}

/// The first cookie of this name, over all Cookie fields (HTTP/2 may send one
/// for each pair, RFC 9113 §8.2.3), without the quotes it may have. Names are
/// compared byte for byte.
pub fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|field| field.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| {
            let value = pair
                .trim_ascii()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")?;
            let unquoted = value
                .strip_prefix(b"\"")
                .and_then(|value| value.strip_suffix(b"\""));
            Some(unquoted.unwrap_or(value))
        })
}

const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

/// FNV-1a: short, fixed for ever, and good enough once mixed.
pub(super) fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// splitmix64's end: spreads every bit over all others.
pub(super) fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            map.append(name, HeaderValue::from_str(value).expect("a header value"));
        }
        map
    }

    #[test]
    fn cookies() {
        for (fields, value) in [
            (&[("cookie", "s=1")][..], Some("1")),
            (&[("cookie", "a=0; s=1;t=2")], Some("1")),
            (&[("cookie", "a=0"), ("cookie", "s=1")], Some("1")),
            (&[("cookie", "s=\"1\"")], Some("1")),
            (&[("cookie", "s=\"1")], Some("\"1")),
            (&[("cookie", "s=a=b")], Some("a=b")),
            (&[("cookie", "s=")], Some("")),
            (&[("cookie", "ss=1; xs=2; S=3; s")], None),
            (&[("other", "s=1")], None),
        ] {
            let map = headers(fields);
            assert_eq!(
                cookie_value(&map, "s"),
                value.map(str::as_bytes),
                "{fields:?}"
            );
        }
    }

    #[test]
    fn the_first_source_present_counts() {
        let sources = [
            HashSource::Header(HeaderName::from_static("x-user")),
            HashSource::Cookie(Arc::from("s")),
            HashSource::SourceAddress,
        ];
        let address = Some(IpAddr::from([10, 0, 0, 1]));
        let header = headers(&[("x-user", "ann"), ("cookie", "s=1")]);
        let cookie = headers(&[("cookie", "s=1")]);
        let keys = [
            hash_key(&sources, &header, address),
            hash_key(&sources, &cookie, address),
            hash_key(&sources, &HeaderMap::new(), address),
        ];
        assert!(keys.iter().all(Option::is_some));
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
        assert_eq!(
            hash_key(&sources, &headers(&[("x-user", "ann")]), None),
            keys[0]
        );
        assert_ne!(
            hash_key(&sources, &headers(&[("x-user", "bob")]), None),
            keys[0]
        );
        assert_eq!(hash_key(&sources, &HeaderMap::new(), None), None);
        assert_eq!(hash_key(&[], &header, address), None);
        let mapped = Some("::ffff:10.0.0.1".parse().expect("an address"));
        assert_eq!(hash_key(&sources, &HeaderMap::new(), mapped), keys[2]);
    }

    #[test]
    fn the_function_is_fixed() {
        let sources = [HashSource::Header(HeaderName::from_static("x-user"))];
        let key = hash_key(&sources, &headers(&[("x-user", "ann")]), None);
        assert_eq!(key, Some(FIXED));
    }

    /// Changing this moves every session of every running fleet.
    const FIXED: u64 = 9_265_845_255_492_201_856;
}

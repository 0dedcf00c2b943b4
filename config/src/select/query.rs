//! Query parameters as `application/x-www-form-urlencoded` (WHATWG URL §5.1):
//! split at `&`, `+` is a space, `%XX` a byte, an invalid escape stands for
//! itself. Names and values are decoded before they are compared, as Linkerd,
//! Traefik and nginx' njs do (Envoy compares them undecoded). The first of a repeated
//! parameter counts.

use std::borrow::Cow;

use crate::snapshot::{QueryCondition, ValueCondition};

pub(super) fn matches(condition: &QueryCondition, query: &str) -> bool {
    let Some(raw) = first(query, &condition.name) else {
        return false;
    };
    match &condition.value {
        ValueCondition::Exact(exact) => decoded(raw).eq(exact.bytes()),
        ValueCondition::Regex(regex) => text(raw).is_some_and(|value| regex.is_match(&value)),
    }
}

/// The raw value of the first parameter of this name; one without `=` is empty.
pub(super) fn first<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(raw, _)| decoded(raw).eq(name.bytes()))
        .map(|(_, value)| value)
}

/// The decoded value; `None` if it is not UTF-8.
pub(super) fn text(raw: &str) -> Option<Cow<'_, str>> {
    if !raw.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(Cow::Borrowed(raw));
    }
    String::from_utf8(decoded(raw).collect())
        .ok()
        .map(Cow::Owned)
}

fn decoded(raw: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = raw.as_bytes();
    std::iter::from_fn(move || {
        let (byte, after) = match rest {
            [b'%', high, low, after @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (b'%', rest.get(1..).unwrap_or_default()),
            },
            [b'+', after @ ..] => (b' ', after),
            [byte, after @ ..] => (*byte, after),
            [] => return None,
        };
        rest = after;
        Some(byte)
    })
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (query, name, value) in [
            ("a=1&b=2", "b", Some("2")),
            ("a=1&a=2", "a", Some("1")),
            ("a", "a", Some("")),
            ("a=", "a", Some("")),
            ("a=b=c", "a", Some("b=c")),
            ("A=1", "a", None),
            ("", "a", None),
            ("&&a=1", "a", Some("1")),
            ("a=x+y%20z%2B", "a", Some("x y z+")),
            ("%61=1", "a", Some("1")),
            ("a=%", "a", Some("%")),
            ("a=%zz%4", "a", Some("%zz%4")),
            ("a=%C3%A9", "a", Some("é")),
            ("a=%FF", "a", None),
            ("a=1;b=2", "b", None),
        ] {
            let found = first(query, name).and_then(text);
            assert_eq!(found.as_deref(), value, "{query} {name}");
            if let Some(value) = value {
                let condition = QueryCondition {
                    name: name.into(),
                    value: ValueCondition::Exact(value.into()),
                };
                assert!(matches(&condition, query), "{query} {name}");
            }
        }
    }
}

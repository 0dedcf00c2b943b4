//! The host of an authority, in the form that hostnames are compared in.

use crate::compile::HOSTNAME_BYTES_MAX;

/// The host of `host[:port]`; brackets of an IPv6 address stay.
pub(crate) fn without_port(authority: &str) -> &str {
    if authority.starts_with('[') {
        return match authority.find(']') {
            Some(end) => authority.get(..=end).unwrap_or(authority),
            None => authority,
        };
    }
    match authority.rsplit_once(':') {
        // Two colons without brackets: a bare IPv6 address, not a port.
        Some((host, _)) if !host.contains(':') => host,
        _ => authority,
    }
}

/// A host in lower case, without port and final dot. No request allocates for it:
/// what is lower-case already is borrowed, anything else held in place.
#[expect(
    clippy::large_enum_variant,
    reason = "on the stack; a box would be the allocation that this avoids"
)]
pub(crate) enum Host<'a> {
    Borrowed(&'a str),
    Lowered {
        bytes: [u8; HOSTNAME_BYTES_MAX],
        length: usize,
    },
}

impl<'a> Host<'a> {
    /// A host that can be no hostname (too long, not ASCII) is taken as empty, which
    /// only entries without a hostname match.
    pub fn of(authority: &'a str) -> Self {
        let host = without_port(authority);
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.len() > HOSTNAME_BYTES_MAX || !host.is_ascii() {
            return Self::Borrowed("");
        }
        if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Self::Borrowed(host);
        }
        let mut bytes = [0; HOSTNAME_BYTES_MAX];
        for (place, byte) in bytes.iter_mut().zip(host.bytes()) {
            *place = byte.to_ascii_lowercase();
        }
        Self::Lowered {
            bytes,
            length: host.len(),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Borrowed(host) => host,
            // ASCII by construction, so never the default.
            Self::Lowered { bytes, length } => bytes
                .get(..*length)
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (authority, host) in [
            ("", ""),
            ("shop.example.com", "shop.example.com"),
            ("shop.example.com:8080", "shop.example.com"),
            ("Shop.EXAMPLE.com.:443", "shop.example.com"),
            ("shop.example.com.", "shop.example.com"),
            ("shop:", "shop"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:8080", "[::1]"),
            ("[2001:DB8::1]", "[2001:db8::1]"),
            ("[::1", "[::1"),
            ("::1", "::1"),
            (":80", ""),
            ("é.example.com", ""),
        ] {
            assert_eq!(Host::of(authority).as_str(), host, "{authority}");
        }
        let longest = "a".repeat(HOSTNAME_BYTES_MAX);
        assert_eq!(Host::of(&longest).as_str(), longest);
        assert_eq!(Host::of(&longest.to_uppercase()).as_str(), longest);
        assert_eq!(Host::of(&format!("{longest}a")).as_str(), "");
    }
}

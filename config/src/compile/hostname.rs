//! Host names of routes, rewrites and TLS. Lower-cased here once, so that the
//! decisions compare bytes.

use std::net::IpAddr;

use super::at::At;
use crate::snapshot::HostnameMatch;

/// RFC 1035 §2.3.4, without the root's dot.
pub(crate) const HOSTNAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// A route's hostname: precise, or with a wildcard as its whole first label.
pub(super) fn pattern(at: &At<'_>, text: &str) -> Option<HostnameMatch> {
    const FORM: &str =
        "write a host name such as shop.example.com or *.example.com, without port or scheme";
    if text.is_empty() {
        at.error(format!("is empty; {FORM}"));
        return None;
    }
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix("*.") {
        Some(rest) if is_dns_name(rest) => Some(HostnameMatch::Suffix(format!(".{rest}").into())),
        None if is_dns_name(&lower) && lower.parse::<IpAddr>().is_err() => {
            Some(HostnameMatch::Exact(lower.into()))
        }
        _ => {
            at.error(format!("\"{text}\" is not a host name; {FORM}"));
            None
        }
    }
}

/// A name without wildcard, as redirects and rewrites write it.
pub(super) fn precise(at: &At<'_>, text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    if is_dns_name(&lower) {
        return Some(lower);
    }
    at.error(format!(
        "\"{text}\" is not a host name; write one such as shop.example.com, without port or wildcard"
    ));
    None
}

/// Labels of letters, digits, `-` and `_` (which SRV names and Docker hosts have).
pub(super) fn is_dns_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= HOSTNAME_BYTES_MAX
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= LABEL_BYTES_MAX
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

//! SPIFFE IDs of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
//! (SPIFFE-ID §2; the path is Kubernetes' customary one), and the DNS name that
//! carries a workload's UID in its certificate.

use std::fmt;
use std::sync::Arc;

/// Longest ID (SPIFFE-ID §2.3).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Namespace and service account of the controllers.
pub const CONTROLLER: (&str, &str) = ("weft", "controller");
const SCHEME: &str = "spiffe://";
const WORKLOAD_SUFFIX: &str = ".workload.weft";

/// A workload's identity, well-formed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a workload's SPIFFE ID; it must look like spiffe://cluster.local/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
)]
pub struct NotAnIdentity(pub String);

impl SpiffeId {
    pub fn new(trust_domain: &str, namespace: &str, account: &str) -> Result<Self, NotAnIdentity> {
        Self::parse(&format!(
            "{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}"
        ))
    }

    pub fn parse(text: &str) -> Result<Self, NotAnIdentity> {
        match parts(text) {
            Some((domain, namespace, account))
                if text.len() <= SPIFFE_ID_BYTES_MAX
                    && is_trust_domain(domain)
                    && is_segment(namespace)
                    && is_segment(account) =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(NotAnIdentity(text.chars().take(200).collect())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn trust_domain(&self) -> &str {
        self.parts().0
    }

    pub fn namespace(&self) -> &str {
        self.parts().1
    }

    pub fn service_account(&self) -> &str {
        self.parts().2
    }

    fn parts(&self) -> (&str, &str, &str) {
        parts(&self.0).unwrap_or_default()
    }
}

fn parts(text: &str) -> Option<(&str, &str, &str)> {
    let (domain, path) = text.strip_prefix(SCHEME)?.split_once('/')?;
    let (namespace, account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
    Some((domain, namespace, account))
}

/// Lower-case letters, digits, `.`, `-`, `_` (SPIFFE-ID §2.1).
fn is_trust_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
}

/// Letters, digits, `.`, `-`, `_`; no relative segments (SPIFFE-ID §2.2).
fn is_segment(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The DNS name that a workload's certificate carries beside its SPIFFE ID.
/// Two pods of one service account share the ID; this tells them apart.
pub fn workload_name(uid: &str) -> String {
    format!("{uid}{WORKLOAD_SUFFIX}")
}

/// The UID in such a name.
pub fn workload_of_name(name: &str) -> Option<&str> {
    name.strip_suffix(WORKLOAD_SUFFIX)
        .filter(|uid| is_workload_uid(uid))
}

/// What a UID may look like: one DNS label.
pub fn is_workload_uid(uid: &str) -> bool {
    (1..=63).contains(&uid.len())
        && uid
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !uid.starts_with('-')
        && !uid.ends_with('-')
}

/// The server name (SNI) by which a proxy says which port of which workload it
/// means: `p8080.<uid>.workload.weft`.
pub fn server_name(port: u16, uid: &str) -> String {
    format!("p{port}.{uid}{WORKLOAD_SUFFIX}")
}

/// Port and UID of such a server name.
pub fn parse_server_name(name: &str) -> Option<(u16, &str)> {
    let (port, workload) = name.split_once('.')?;
    let port = port
        .strip_prefix('p')?
        .parse()
        .ok()
        .filter(|port| *port > 0)?;
    Some((port, workload_of_name(workload)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_identity_looks_like() {
        let id = SpiffeId::new("cluster.local", "shop", "payment").unwrap();
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/payment");
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "shop", "payment")
        );
        for bad in [
            "",
            "spiffe://",
            "spiffe://td/ns/a",
            "spiffe://td/ns//sa/b",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/ns/../sa/b",
            "https://td/ns/a/sa/b",
            "spiffe://td/ns/a%2f/sa/b",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_carry_port_and_workload() {
        let name = server_name(8080, "3f2a-1");
        assert_eq!(parse_server_name(&name), Some((8080, "3f2a-1")));
        for bad in [
            "",
            "p80",
            "p0.a.workload.weft",
            "80.a.workload.weft",
            "p80..workload.weft",
            "p80.a.b.workload.weft",
        ] {
            assert_eq!(parse_server_name(bad), None, "{bad}");
        }
    }
}

//! Session persistence (GEP-1619): a cookie or header that says which endpoint
//! answered first, so that later requests meet it again.
//!
//! The value is `endpoint-created-seen`: a fingerprint of the endpoint's
//! address (which it does not reveal) and two times in Unix seconds, in
//! hexadecimal. It beats weights; an endpoint that is gone or not available is
//! replaced by another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, header};
use weft_config::filter::RequestParts;
use weft_config::snapshot::{BackendTarget, Rule, SessionPersistence, SessionSource};

use super::request::Current;
use crate::logic::balance::{EndpointSet, EndpointState, cookie_value};
use crate::logic::time::Nanos;

/// What a request says of its session.
#[derive(Clone, Debug)]
pub struct Session {
    policy: SessionPersistence,
    /// `None`: a new session.
    token: Option<Token>,
    now: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    endpoint: u64,
    created: u64,
    seen: u64,
}

impl Token {
    fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(value).ok()?.split('-');
        let mut next = || u64::from_str_radix(parts.next()?, 16).ok();
        let token = Self {
            endpoint: next()?,
            created: next()?,
            seen: next()?,
        };
        parts.next().is_none().then_some(token)
    }

    fn is_expired(&self, policy: &SessionPersistence, now: u64) -> bool {
        let over = |since: u64, limit: Option<Duration>| {
            limit.is_some_and(|limit| now.saturating_sub(since) > limit.as_secs())
        };
        over(self.created, policy.absolute_timeout) || over(self.seen, policy.idle_timeout)
    }
}

impl Session {
    /// `None`: the rule keeps no sessions.
    pub fn of(rule: &Rule, parts: &RequestParts) -> Option<Self> {
        let policy = rule.session.clone()?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        let value = match &policy.source {
            SessionSource::Cookie(name) => cookie_value(&parts.headers, name),
            SessionSource::Header(name) => parts.headers.get(name).map(HeaderValue::as_bytes),
        };
        let token = value
            .and_then(Token::parse)
            .filter(|token| !token.is_expired(&policy, now));
        Some(Self { policy, token, now })
    }

    /// The rule's backend that has the session's endpoint, whatever its weight.
    pub fn backend(&self, current: &Current, rule: &Rule) -> Option<usize> {
        rule.backends.iter().position(|backend| {
            let BackendTarget::Service(id) = backend.target else {
                return false;
            };
            let service = current.runtime.service(id);
            service.is_some_and(|service| self.find(&service.endpoints.load()).is_some())
        })
    }

    /// The session's endpoint, if it can take a request.
    pub fn endpoint(&self, set: &EndpointSet, now: Nanos) -> Option<Arc<EndpointState>> {
        self.find(set)
            .filter(|endpoint| endpoint.is_available(now))
            .cloned()
    }

    fn find<'s>(&self, set: &'s EndpointSet) -> Option<&'s Arc<EndpointState>> {
        let wanted = self.token?.endpoint;
        set.endpoints()
            .iter()
            .find(|endpoint| fingerprint(endpoint.address()) == wanted)
    }

    /// Tells the client which endpoint answered, if it does not know already.
    pub fn mark(&self, endpoint: &EndpointState, headers: &mut HeaderMap) {
        let endpoint = fingerprint(endpoint.address());
        let same = self.token.filter(|token| token.endpoint == endpoint);
        if same.is_some() && self.policy.idle_timeout.is_none() {
            return;
        }
        let created = same.map_or(self.now, |token| token.created);
        let value = format!("{endpoint:x}-{created:x}-{:x}", self.now);
        match &self.policy.source {
            SessionSource::Header(name) => {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    headers.insert(name, value);
                }
            }
            SessionSource::Cookie(name) => {
                let age = match self.policy.absolute_timeout {
                    Some(timeout) => format!("; Max-Age={}", timeout.as_secs()),
                    None => String::new(),
                };
                let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{age}");
                if let Ok(cookie) = HeaderValue::from_str(&cookie) {
                    headers.append(header::SET_COOKIE, cookie);
                }
            }
        }
    }
}

/// FNV-1a of the address: fixed for ever, so that a session outlives the
/// process and holds across proxies.
fn fingerprint(address: SocketAddr) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    let start = 0xCBF2_9CE4_8422_2325;
    let hash = match address.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => ip.octets().iter().fold(start, fold),
        std::net::IpAddr::V6(ip) => ip.octets().iter().fold(start, fold),
    };
    address.port().to_be_bytes().iter().fold(hash, fold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        for (text, want) in [
            ("a-1-2", Some((10, 1, 2))),
            ("a-1", None),
            ("a-1-2-3", None),
            ("x-1-2", None),
            ("", None),
        ] {
            let token = Token::parse(text.as_bytes());
            assert_eq!(
                token.map(|t| (t.endpoint, t.created, t.seen)),
                want,
                "{text}"
            );
        }
    }

    #[test]
    fn timeouts() {
        let token = Token {
            endpoint: 1,
            created: 100,
            seen: 150,
        };
        let policy = |absolute: Option<u64>, idle: Option<u64>| SessionPersistence {
            source: SessionSource::Cookie("s".into()),
            absolute_timeout: absolute.map(Duration::from_secs),
            idle_timeout: idle.map(Duration::from_secs),
        };
        assert!(!token.is_expired(&policy(None, None), 1_000));
        assert!(token.is_expired(&policy(Some(60), None), 161));
        assert!(!token.is_expired(&policy(Some(60), None), 160));
        assert!(token.is_expired(&policy(None, Some(10)), 161));
        assert!(!token.is_expired(&policy(None, Some(10)), 160));
    }
}

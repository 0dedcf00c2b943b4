//! Where in the configuration the compiler is, and the mistakes it has found.
//! A path costs nothing until a mistake is reported. Also the checks of single
//! values that several nouns share (durations, addresses, header names).
//!
//! **Invariant:** a check that returns `None` has reported why.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::duration;
use crate::error::ConfigError;

pub(crate) type Found = RefCell<Vec<ConfigError>>;

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

/// One place in the configuration.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
    /// `service`, `catalogue`.
    owner: Option<(&'a str, &'a str)>,
    found: &'a Found,
}

impl<'a> At<'a> {
    pub fn root(found: &'a Found) -> Self {
        Self {
            parent: None,
            step: Step::Root,
            owner: None,
            found,
        }
    }

    pub fn field(&'a self, name: &'a str) -> At<'a> {
        At {
            parent: Some(self),
            step: Step::Field(name),
            ..*self
        }
    }

    pub fn index(&'a self, index: usize) -> At<'a> {
        At {
            parent: Some(self),
            step: Step::Index(index),
            ..*self
        }
    }

    /// From here on, messages name this object.
    pub fn owned_by(self, kind: &'a str, name: &'a str) -> At<'a> {
        At {
            owner: (!name.is_empty()).then_some((kind, name)).or(self.owner),
            ..self
        }
    }

    pub fn error(&self, message: impl AsRef<str>) {
        let mut text = String::new();
        if let Some((kind, name)) = self.owner {
            let _ = write!(text, "{kind} \"{name}\": ");
        }
        text.push_str(message.as_ref());
        let mut path = String::new();
        self.write_path(&mut path);
        self.found.borrow_mut().push(ConfigError {
            path,
            message: text,
        });
    }

    fn write_path(&self, path: &mut String) {
        if let Some(parent) = self.parent {
            parent.write_path(path);
        }
        match self.step {
            Step::Root => {}
            Step::Field(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            Step::Index(index) => {
                let _ = write!(path, "[{index}]");
            }
        }
    }

    /// Empty: `None` in `Some`, so that the caller's default holds.
    pub fn duration_optional(&self, text: &str) -> Option<Option<Duration>> {
        if text.is_empty() {
            return Some(None);
        }
        match duration::parse(text) {
            Ok(duration) => Some(Some(duration)),
            Err(error) => {
                self.error(format!("\"{text}\" {error}"));
                None
            }
        }
    }

    pub fn duration_or(&self, text: &str, default: Duration) -> Option<Duration> {
        Some(self.duration_optional(text)?.unwrap_or(default))
    }

    /// For what cannot be switched off.
    pub fn duration_positive(&self, text: &str, default: Duration) -> Option<Duration> {
        let duration = self.duration_or(text, default)?;
        if duration.is_zero() {
            self.error("must be longer than 0s");
            return None;
        }
        Some(duration)
    }

    /// Zero and absent both mean `None`.
    pub fn duration_or_off(&self, text: &str) -> Option<Option<Duration>> {
        Some(
            self.duration_optional(text)?
                .filter(|duration| !duration.is_zero()),
        )
    }

    pub fn address(&self, text: &str) -> Option<SocketAddr> {
        const FORM: &str = "write an IP address and a port, such as 10.0.0.7:8080 or [::1]:8080";
        if text.is_empty() {
            self.error(format!("is missing; {FORM}"));
            return None;
        }
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        if text.parse::<std::net::IpAddr>().is_ok() {
            self.error(format!("\"{text}\" has no port; {FORM}"));
        } else {
            self.error(format!("\"{text}\" is not an address; {FORM}"));
        }
        None
    }

    pub fn percent(&self, value: u32) -> Option<u32> {
        if value > 100 {
            self.error(format!(
                "{value} is not a percentage; it must be between 0 and 100"
            ));
            return None;
        }
        Some(value)
    }

    /// 0: absent.
    pub fn port_optional(&self, value: u32) -> Option<Option<u16>> {
        match u16::try_from(value) {
            Ok(0) => Some(None),
            Ok(port) => Some(Some(port)),
            Err(_) => {
                self.error(format!(
                    "{value} is not a port; it must be between 1 and 65535"
                ));
                None
            }
        }
    }

    pub fn header_name(&self, text: &str) -> Option<HeaderName> {
        if text.is_empty() {
            self.error("is missing; write a header name such as x-user");
            return None;
        }
        match HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) => Some(name),
            Err(_) => {
                self.error(format!(
                    "\"{text}\" is not a header name; only letters, digits and !#$%&'*+-.^_`|~ are allowed"
                ));
                None
            }
        }
    }

    pub fn header_value(&self, text: &str) -> Option<HeaderValue> {
        match HeaderValue::from_str(text) {
            Ok(value) if text.trim() == text => Some(value),
            Ok(_) => {
                self.error("starts or ends with white space, which HTTP drops from a header value");
                None
            }
            Err(_) => {
                self.error("is not a header value; only visible ASCII characters, spaces and tabs are allowed");
                None
            }
        }
    }

    /// Reports an empty name.
    pub fn required<'t>(&self, text: &'t str) -> Option<&'t str> {
        if text.is_empty() {
            self.error("is missing");
            return None;
        }
        Some(text)
    }
}

/// Maps every element at its own place; what failed is left out (it was reported).
pub(crate) fn each<T, U>(
    at: &At<'_>,
    list: &[T],
    mut compile: impl FnMut(&At<'_>, &T) -> Option<U>,
) -> Vec<U> {
    list.iter()
        .enumerate()
        .filter_map(|(index, item)| compile(&at.index(index), item))
        .collect()
}

/// `value` unless it is 0.
pub(crate) fn or_default(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

/// An enum's value as it came over the wire. One that this build does not know
/// is refused, never taken for the default.
pub(crate) fn known<E: TryFrom<i32>>(at: &At<'_>, value: i32) -> Option<E> {
    let known = E::try_from(value).ok();
    if known.is_none() {
        at.error(format!(
            "has the unknown value {value}; whatever wrote it is newer than this program"
        ));
    }
    known
}

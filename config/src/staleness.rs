//! How a controller says that what it knows may be old: its watches have been broken for a while. Its
//! proxies then look for one that does not say so, and stay if there is none. On a stream's first headers
//! ([`HEADER`]), and, when that changes, as a part of `system_version_info`.
//!
//! Who does not know the word takes it for the mark of a kind that nobody watches.

pub const HEADER: &str = "weft-stale";
pub const WORD: &str = "stale";

#[must_use]
pub fn say(is_stale: bool) -> String {
    format!("{WORD}={}", u8::from(is_stale))
}

/// What is said of it, if anything is.
#[must_use]
pub fn said(info: &str) -> Option<bool> {
    let mut parts = info.split(',').filter_map(|part| part.split_once('='));
    parts
        .find(|(word, _)| *word == WORD)
        .map(|(_, value)| value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        for is_stale in [true, false] {
            assert_eq!(said(&say(is_stale)), Some(is_stale));
        }
        assert_eq!(said(""), None);
        assert_eq!(said("Pod=12,Service=7"), None);
        assert_eq!(said("Pod=12,stale=0,Service=7"), Some(false));
    }
}

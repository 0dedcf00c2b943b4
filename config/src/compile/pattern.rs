//! Regular expressions of routes: RE2's syntax and its linear time, through the
//! `regex` crate. They match the whole value, as in Envoy and so in every mesh
//! whose users bring their routes along.

use regex::{Regex, RegexBuilder};

use super::at::At;

/// Length of an expression; Gateway API allows 1,024 for paths and 4,096 for headers.
const PATTERN_BYTES_MAX: usize = 4096;
/// A compiled expression: `\w{1000}` and the like end here.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// An expression for the whole of a value.
pub(super) fn full(at: &At<'_>, text: &str) -> Option<Regex> {
    if text.is_empty() {
        at.error("is missing; write a regular expression");
        return None;
    }
    if text.len() > PATTERN_BYTES_MAX {
        at.error(format!("is longer than {PATTERN_BYTES_MAX} bytes"));
        return None;
    }
    // By itself first: `a)|(b` is no expression, although `^(?:a)|(b)$` is.
    build(at, text, text)?;
    build(at, text, &format!("^(?:{text})$"))
}

fn build(at: &At<'_>, shown: &str, pattern: &str) -> Option<Regex> {
    match RegexBuilder::new(pattern)
        .size_limit(COMPILED_BYTES_MAX)
        .build()
    {
        Ok(regex) => Some(regex),
        Err(regex::Error::CompiledTooBig(limit)) => {
            at.error(format!(
                "\"{shown}\" needs more than {limit} bytes when compiled; make its repetitions smaller"
            ));
            None
        }
        Err(error) => {
            // The crate draws a picture over several lines; its last line says what.
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default();
            let reason = reason.strip_prefix("error: ").unwrap_or(reason);
            at.error(format!(
                "\"{shown}\" is not a regular expression (RE2 syntax): {reason}"
            ));
            None
        }
    }
}

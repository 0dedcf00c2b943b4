//! Paths as configuration writes them.

use super::at::{At, known};
use super::pattern;
use crate::snapshot::{PathCondition, PathModifier};
use crate::wire;

/// Gateway API's own limit (`HTTPPathMatch.value`).
const PATH_BYTES_MAX: usize = 1024;

/// A path that starts with `/` and has nothing that no request path has.
pub(super) fn absolute<'t>(at: &At<'_>, text: &'t str) -> Option<&'t str> {
    if !text.starts_with('/') {
        at.error(format!("\"{text}\" must start with /"));
        return None;
    }
    if text.len() > PATH_BYTES_MAX {
        at.error(format!("is longer than {PATH_BYTES_MAX} bytes"));
        return None;
    }
    let bad = |c: char| !c.is_ascii_graphic() || matches!(c, '?' | '#');
    if let Some(c) = text.chars().find(|c| bad(*c)) {
        at.error(format!(
            "\"{text}\" has {c:?}, which no path has; query strings do not belong here, other characters are percent-encoded"
        ));
        return None;
    }
    Some(text)
}

/// A prefix in the form that decisions use: without its trailing slash.
pub(crate) fn prefix(text: &str) -> PathCondition {
    match text.strip_suffix('/').unwrap_or(text) {
        "" => PathCondition::Any,
        prefix => PathCondition::Prefix(prefix.into()),
    }
}

pub(super) fn condition(at: &At<'_>, path: Option<&wire::PathMatch>) -> Option<PathCondition> {
    use wire::path_match::Type;
    let Some(path) = path else {
        return Some(PathCondition::Any);
    };
    let value_at = at.field("value");
    match known(&at.field("type"), path.r#type)? {
        Type::PathPrefix if path.value.is_empty() => Some(PathCondition::Any),
        Type::PathPrefix => absolute(&value_at, &path.value).map(prefix),
        Type::Exact => {
            absolute(&value_at, &path.value).map(|path| PathCondition::Exact(path.into()))
        }
        Type::RegularExpression => pattern::full(&value_at, &path.value).map(PathCondition::Regex),
    }
}

pub(super) fn modifier(at: &At<'_>, path: &wire::PathModifier) -> Option<PathModifier> {
    use wire::path_modifier::Type;
    let kind: Type = known(&at.field("type"), path.r#type)?;
    let full_at = at.field("replaceFullPath");
    let prefix_at = at.field("replacePrefixMatch");
    match (&path.replace_full_path, &path.replace_prefix_match) {
        (Some(full), None) => {
            if kind == Type::ReplacePrefixMatch {
                at.field("type")
                    .error("is ReplacePrefixMatch, but replaceFullPath is set");
            }
            // The empty path of a URL is `/` (RFC 9110 §4.2.3).
            let full = if full.is_empty() { "/" } else { full };
            absolute(&full_at, full).map(|full| PathModifier::Full(full.into()))
        }
        (None, Some(prefix)) => {
            if kind == Type::ReplaceFullPath {
                at.field("type")
                    .error("is ReplaceFullPath, but replacePrefixMatch is set");
            }
            if prefix.is_empty() {
                return Some(PathModifier::Prefix("".into()));
            }
            absolute(&prefix_at, prefix).map(|prefix| PathModifier::Prefix(prefix.into()))
        }
        _ => {
            at.error("must have exactly one of replaceFullPath and replacePrefixMatch");
            None
        }
    }
}

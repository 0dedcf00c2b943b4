//! serde's error texts in the words of somebody who writes the file: what is
//! there, what is allowed, what was probably meant.

use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::nearest::{nearest, suggestion};

/// `error` is serde's, for the value at `path` of `tree`.
pub(super) fn explain(error: &str, path: &Path, tree: &Value) -> String {
    let value = value_at(tree, path);
    let text = reword(error, value);
    match owner(tree, path) {
        Some((kind, name)) => format!("{kind} \"{name}\": {text}"),
        None => text,
    }
}

/// The field that was probably meant, if the error is an unknown one.
pub(super) fn meant(error: &str) -> Option<String> {
    let (given, allowed) = unknown(error).filter(|_| is_field(error))?;
    nearest(given, allowed).map(str::to_owned)
}

fn is_field(error: &str) -> bool {
    error.starts_with("unknown field")
}

/// What was given and what is allowed, if the error is of such a kind.
fn unknown(error: &str) -> Option<(&str, Vec<&str>)> {
    if !is_field(error) && !error.starts_with("unknown variant") {
        return None;
    }
    let names = quoted(error);
    let (given, allowed) = names.split_first()?;
    // The generated code takes `snake_case` fields as well; one spelling is enough to show.
    let allowed = allowed
        .iter()
        .copied()
        .filter(|name| !is_field(error) || !name.contains('_'));
    Some((given, allowed.collect()))
}

fn reword(error: &str, value: Option<&Value>) -> String {
    if let Some((given, allowed)) = unknown(error) {
        let what = if is_field(error) {
            "is not a field"
        } else {
            "is not possible"
        };
        let near = suggestion(given, allowed.iter().copied());
        return format!(
            "\"{given}\" {what} here{near} (allowed: {})",
            allowed.join(", ")
        );
    }
    match value {
        Some(Value::Null) => {
            return "has no value; write one, or leave the field out".to_owned();
        }
        Some(value) if error.contains("untagged enum") || error.contains("invalid digit") => {
            return format!(
                "must be a whole number that is not negative and not too large, not {value}"
            );
        }
        _ => {}
    }
    if let Some((_, expected)) = error.split_once("expected ") {
        let expected = match expected {
            "a string" => "text (in quotes, if YAML takes it for something else)",
            "a sequence" => "a list (each item begins with -)",
            expected if expected.starts_with("struct weft.v1.") => "a map of fields",
            expected => expected,
        };
        let given = value.map_or_else(|| "this".to_owned(), brief);
        return format!("must be {expected}, not {given}");
    }
    error.to_owned()
}

/// A value short enough for a message.
fn brief(value: &Value) -> String {
    const CHARS_MAX: usize = 40;
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
        other => {
            let text = other.to_string();
            if text.chars().count() > CHARS_MAX {
                text.chars().take(CHARS_MAX).chain(['…']).collect()
            } else {
                text
            }
        }
    }
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn value_at<'v>(tree: &'v Value, path: &Path) -> Option<&'v Value> {
    path.iter().try_fold(tree, |node, segment| match segment {
        Segment::Map { key } => node.get(key),
        Segment::Seq { index } => node.get(index),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

/// The listener, service or route that the path leads into, if it says its name.
fn owner<'v>(tree: &'v Value, path: &Path) -> Option<(&'static str, &'v str)> {
    let mut segments = path.iter();
    let (Some(Segment::Map { key }), Some(Segment::Seq { index })) =
        (segments.next(), segments.next())
    else {
        return None;
    };
    let kind = match key.as_str() {
        "listeners" => "listener",
        "services" => "service",
        "routes" => "route",
        _ => return None,
    };
    let name = tree.get(key)?.get(index)?.get("name")?.as_str()?;
    (!name.is_empty()).then_some((kind, name))
}

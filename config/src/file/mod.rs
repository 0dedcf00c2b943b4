//! Configuration files: YAML (and so JSON) text into [`wire::Config`], with all
//! mistakes at once. Owns what is about the text: syntax, size, unknown fields,
//! types. What the fields mean, [`compile`](crate::compile) checks.
//!
//! serde stops at the first mistake. So each one found is noted, the offending
//! field is taken out of the tree, and the rest is read again, until nothing is
//! wrong any more. Mistakes are few; a file without one is read once. A misspelt
//! field is taken for the one that was probably meant, or one wrong letter in a
//! `name` would be followed by complaints that it is missing, and that nothing of
//! that name is there.

mod message;

use std::cell::RefCell;
use std::fmt;

use serde::Deserialize as _;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};
use serde_saphyr::{Error as YamlError, MergeKeyPolicy};

use crate::compile;
use crate::error::{ConfigError, ERRORS_MAX, Errors};
use crate::snapshot::Snapshot;
use crate::wire;

/// Largest file; a generated one with 50,000 endpoints is a tenth of this.
pub const FILE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Deepest nesting; the schema needs 10.
const DEPTH_MAX: usize = 32;
/// Nodes of a file, aliases expanded: what keeps a small file from becoming a big tree.
const NODES_MAX: usize = 1_000_000;
/// What anchors and aliases may copy; a handful of shared blocks is all anybody writes.
const ALIASED_NODES_MAX: usize = 50_000;

/// Reads and compiles a file's text. `name` is what errors call the file.
pub fn load(name: &str, text: &str) -> Result<Snapshot, Errors> {
    let (config, mistakes) = read(text).map_err(|errors| errors.named(name))?;
    let found = RefCell::default();
    let snapshot = compile::compile_into(&config, &found);
    let mut list = mistakes;
    // What was taken out of the tree must not be reported as missing too.
    let taken: Vec<String> = list.iter().map(|error| error.path.clone()).collect();
    list.extend(
        found
            .into_inner()
            .into_iter()
            .filter(|error| !taken.iter().any(|path| concerns(path, &error.path))),
    );
    for (index, listener) in config.listeners.iter().enumerate() {
        if listener.role() == wire::listener_role::Value::Virtual {
            list.push(ConfigError {
                path: format!("listeners[{index}].role"),
                message: "virtual is only for a controller to say; a file has direct, outbound and inbound".to_owned(),
            });
        }
    }
    if config.listeners.is_empty() && list.is_empty() {
        list.push(ConfigError {
            path: "listeners".to_owned(),
            message: "is missing; without a listener nothing is accepted".to_owned(),
        });
    }
    match snapshot {
        Some(snapshot) if list.is_empty() => Ok(snapshot),
        _ => Err(Errors {
            source_name: name.to_owned(),
            list,
        }),
    }
}

/// Reads a file's text, without looking at what it means.
pub fn parse(text: &str) -> Result<wire::Config, Errors> {
    let (config, list) = read(text)?;
    if list.is_empty() {
        Ok(config)
    } else {
        Err(Errors {
            source_name: String::new(),
            list,
        })
    }
}

/// The text of a configuration, as YAML.
pub fn print(config: &wire::Config) -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(config)
}

/// Whether an error at `path` follows from the field at `taken` having been taken
/// out: the same field, one within it, or (for references) a whole list gone.
fn concerns(taken: &str, path: &str) -> bool {
    !taken.contains(['.', '['])
        || path
            .strip_prefix(taken)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// What could be read, and what was wrong. `Err`: not even a tree.
fn read(text: &str) -> Result<(wire::Config, Vec<ConfigError>), Errors> {
    if text.len() > FILE_BYTES_MAX {
        return Err(Errors::one(
            "",
            format!("is larger than {FILE_BYTES_MAX} bytes"),
        ));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_recorded_anchor_events: ALIASED_NODES_MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIASED_NODES_MAX,
        },
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
    };
    let Tree(tree) = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| Errors::one("", yaml_message(&error)))?;
    match tree {
        Value::Null => Err(Errors::one(
            "",
            "is empty; write at least listeners and services",
        )),
        Value::Object(_) => Ok(read_tree(tree)),
        _ => Err(Errors::one(
            "",
            "must be a map with the keys settings, listeners, services and routes",
        )),
    }
}

fn yaml_message(error: &YamlError) -> String {
    let error = error.without_snippet();
    let place = error.location().map_or_else(String::new, |at| {
        format!("line {}, column {}: ", at.line(), at.column())
    });
    match error {
        YamlError::MultipleDocuments { .. } => format!(
            "{place}a second document begins here (---); a file holds exactly one configuration"
        ),
        YamlError::MergeKeyNotAllowed { .. } => {
            format!("{place}merge keys (<<) are not supported; write the fields out")
        }
        other => {
            let text = other.to_string();
            // A limit comes as any of several variants, some of them nested.
            if ["budget", "alias replay", "alias expansion", "depth", "nest"]
                .iter()
                .any(|word| text.contains(word))
            {
                return format!(
                    "{place}is too large, too deeply nested or expands too much through aliases ({text})"
                );
            }
            // The place is said already.
            let text = text.split(" at line ").next().unwrap_or(&text);
            format!("{place}{}", text.trim_end())
        }
    }
}

/// Takes mistakes out of the tree until the rest can be read.
fn read_tree(mut tree: Value) -> (wire::Config, Vec<ConfigError>) {
    let mut mistakes: Vec<ConfigError> = Vec::new();
    // Replacements tried in turn for an element of a list, which cannot be left out
    // without renumbering its neighbours.
    let mut attempts = 0;
    let mut last_path = String::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, wire::Config>(&tree) {
            Ok(config) => return (config, mistakes),
            Err(error) => error,
        };
        let path = error.path().clone();
        let shown = shown(&path);
        if shown == last_path {
            attempts += 1;
        } else {
            attempts = 0;
            last_path.clone_from(&shown);
            mistakes.push(ConfigError {
                message: message::explain(&error.inner().to_string(), &path, &tree),
                path: shown,
            });
        }
        let meant = message::meant(&error.inner().to_string());
        if mistakes.len() > ERRORS_MAX
            || !(rename(&mut tree, &path, meant) || take_out(&mut tree, &path, attempts))
        {
            return (wire::Config::default(), mistakes);
        }
    }
}

/// The path without serde's `.` for the root.
fn shown(path: &Path) -> String {
    let text = path.to_string();
    if text == "." { String::new() } else { text }
}

/// Gives the field at `path` the name that was meant, unless that is there too.
/// False: it cannot be done.
fn rename(tree: &mut Value, path: &Path, meant: Option<String>) -> bool {
    let mut segments: Vec<&Segment> = path.iter().collect();
    let (Some(Segment::Map { key }), Some(meant)) = (segments.pop(), meant) else {
        return false;
    };
    let owner = segments
        .into_iter()
        .try_fold(tree, |node, segment| step(node, segment));
    let Some(Value::Object(map)) = owner else {
        return false;
    };
    // The generated code takes `snake_case` as well.
    let is_meant = |name: &String| name.replace('_', "").eq_ignore_ascii_case(&meant);
    if map.keys().any(is_meant) {
        return false;
    }
    match map.remove(key) {
        Some(value) => map.insert(meant, value).is_none(),
        None => false,
    }
}

/// Removes what is at `path`, or puts something harmless in its place. False: it
/// cannot be done.
fn take_out(tree: &mut Value, path: &Path, attempts: usize) -> bool {
    let segments: Vec<&Segment> = path.iter().collect();
    let Some((last, parents)) = segments.split_last() else {
        return false;
    };
    let mut node = tree;
    for segment in parents {
        match step(node, segment) {
            Some(next) => node = next,
            None => return false,
        }
    }
    match (last, node) {
        (Segment::Map { key }, Value::Object(map)) => map.remove(key).is_some(),
        (Segment::Enum { variant }, Value::Object(map)) => map.remove(variant).is_some(),
        (Segment::Seq { index }, Value::Array(list)) => {
            let replacements = [
                Value::Object(Map::new()),
                Value::String(String::new()),
                Value::from(0),
            ];
            match (list.get_mut(*index), replacements.get(attempts)) {
                (Some(place), Some(replacement)) => {
                    *place = replacement.clone();
                    true
                }
                _ => false,
            }
        }
        _ => false,
    }
}

fn step<'v>(node: &'v mut Value, segment: &Segment) -> Option<&'v mut Value> {
    match segment {
        Segment::Map { key } => node.get_mut(key),
        Segment::Seq { index } => node.get_mut(index),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// A JSON tree as YAML means it. `serde_json::Value` itself would take a map key
/// of any type; here only text is one.
struct Tree(Value);

impl<'de> serde::Deserialize<'de> for Tree {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(Tree)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a configuration")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Tree::deserialize(deserializer).map(|Tree(value)| value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Tree(value)) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Tree(value))) = access.next_entry::<String, Tree>()? {
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests;

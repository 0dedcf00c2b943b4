//! The rules about who may name whom: between crates by their manifests, inside proxy/ and
//! controller/ by the modules that a file names, and what may not be named where decisions are pure.
//!
//! Only code that ships is held to them: a test may name whatever shows that the code works.

use super::source::{Findings, Source, names_path, words};

/// Each crate that ships, with those of ours it may depend on, and foreign ones it may not.
const CRATES: [(&str, &[&str], &[&str]); 4] = [
    (
        "config",
        &[],
        &["tokio", "hyper", "rustls", "socket2", "kube", "k8s-openapi"],
    ),
    ("proxy", &["weft-config"], &["kube", "k8s-openapi"]),
    ("controller", &["weft-config"], &[]),
    ("cli", &["weft-config", "weft-controller"], &[]),
];

/// A module and its height. It may name what is lower; at `SHARED_HEIGHT` its neighbours too.
type Heights = &'static [(&'static str, u8)];

/// inbound, outbound and admin are strangers to each other: what two of them need belongs below.
const PROXY: Heights = &[
    ("app", 5),
    ("worker", 4),
    ("inbound", 3),
    ("outbound", 3),
    ("admin", 3),
    ("args", SHARED_HEIGHT),
    ("capture", SHARED_HEIGHT),
    ("control", SHARED_HEIGHT),
    ("drain", SHARED_HEIGHT),
    ("handover", SHARED_HEIGHT),
    ("health", SHARED_HEIGHT),
    ("mesh", SHARED_HEIGHT),
    ("net", SHARED_HEIGHT),
    ("reload", SHARED_HEIGHT),
    ("resolve", SHARED_HEIGHT),
    ("sidecar", SHARED_HEIGHT),
    ("sockets", SHARED_HEIGHT),
    ("state", SHARED_HEIGHT),
    ("sweep", SHARED_HEIGHT),
    ("telemetry", SHARED_HEIGHT),
    ("upkeep", SHARED_HEIGHT),
    ("logic", 1),
];
const CONTROLLER: Heights = &[
    ("app", 4),
    ("source", 3),
    ("status", 3),
    ("discovery", 3),
    ("ca", SHARED_HEIGHT),
    ("admission", 3),
    ("lease", 3),
    ("metrics", SHARED_HEIGHT),
    ("sparing", SHARED_HEIGHT),
    ("tally", SHARED_HEIGHT),
    ("index", 1),
    ("api", 0),
];
const SHARED_HEIGHT: u8 = 2;

/// Where decisions are pure: the clock, randomness and the world come in as arguments.
const PURE: [&str; 4] = [
    "proxy/src/logic",
    "controller/src/index",
    "controller/src/admission/inject",
    "config/src",
];
const IMPURE: [&str; 13] = [
    "tokio",
    "socket2",
    "rustix",
    "Instant::now",
    "SystemTime::now",
    "std::env",
    "std::thread",
    "std::process",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "thread_rng",
    "rand::rng",
];

pub fn check(source: &Source, findings: &mut Findings) {
    manifest(source, findings);
    if source.is_rust() {
        modules(source, "proxy", PROXY, findings);
        modules(source, "controller", CONTROLLER, findings);
        purity(source, findings);
    }
}

fn manifest(source: &Source, findings: &mut Findings) {
    let Some(owner) = source.path.strip_suffix("/Cargo.toml") else {
        return;
    };
    let Some((_, ours, banned)) = CRATES.iter().find(|(name, ..)| *name == owner) else {
        return;
    };
    for (line, dependency) in dependencies(&source.lines) {
        if dependency.starts_with("weft-") && !ours.contains(&dependency) {
            let what = format!(
                "{owner} depends on {dependency}: crates depend only on weft-config, so move what both need there"
            );
            findings.add(source, line, "layer", what);
        } else if banned.contains(&dependency) {
            let what = format!(
                "{owner} depends on {dependency}: what touches the world or Kubernetes is not for this crate"
            );
            findings.add(source, line, "layer", what);
        }
    }
}

/// The names under a manifest's (or a target's) `[dependencies]` and `[build-dependencies]`.
fn dependencies(lines: &[String]) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut within = false;
    for (line, text) in lines.iter().enumerate() {
        let text = text.trim();
        if let Some(section) = text.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            // `[dependencies.tokio]` is a dependency of its own section.
            let (table, own) = section
                .rsplit_once("dependencies.")
                .unwrap_or((section, ""));
            within = section.ends_with("dependencies") && !section.contains("dev-");
            if !own.is_empty() && !table.contains("dev-") {
                found.push((line, own));
            }
        } else if within && !text.starts_with('#') {
            let name = text.split(['=', '.', ' ']).next().unwrap_or_default();
            found.push((line, name.trim_matches('"')));
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

fn modules(source: &Source, owner: &str, heights: Heights, findings: &mut Findings) {
    let Some(path) = source
        .path
        .strip_prefix(owner)
        .and_then(|rest| rest.strip_prefix("/src/"))
    else {
        return;
    };
    let path: Vec<&str> = path
        .trim_end_matches(".rs")
        .trim_end_matches("/mod")
        .split('/')
        .collect();
    let Some(&top) = path.first() else { return };
    if ["main", "lib", "bin"].contains(&top) {
        return;
    }
    let Some(own) = height(heights, top) else {
        let what = format!(
            "module `{top}` has no place in the layers: put it under one that has, or give it a height in tests/tidy/layers.rs"
        );
        findings.add(source, 0, "layer", what);
        return;
    };
    for (line, named) in named_modules(source.shipped(), &path) {
        let Some(other) = height(heights, named).filter(|_| named != top) else {
            continue;
        };
        if other > own || (other == own && own != SHARED_HEIGHT) {
            let what = format!(
                "`{top}` names `{named}`, which is beside or above it: pass a value down, or move what both need below them"
            );
            findings.add(source, line, "layer", what);
        }
    }
}

fn height(heights: Heights, module: &str) -> Option<u8> {
    heights
        .iter()
        .find(|(name, _)| *name == module)
        .map(|(_, height)| *height)
}

/// The top-level modules named by `crate::…` or by `super::…` that climbs to the root.
fn named_modules<'a>(code: &'a [String], path: &[&str]) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for (line, text) in code.iter().enumerate() {
        for (column, word) in words(text) {
            let rest = &text[column + word.len()..];
            if text[..column].ends_with("::") || !rest.starts_with("::") {
                continue;
            }
            let climbs = 1 + rest.matches("super::").count();
            let after = match word {
                "crate" => &rest[2..],
                "super" if climbs >= path.len() => rest[2..].trim_start_matches("super::"),
                _ => continue,
            };
            match after.strip_prefix('{') {
                Some(group) => found.extend(group_heads(code, line, group)),
                None => found.extend(words(after).next().map(|(_, name)| (line, name))),
            }
        }
    }
    found
}

/// The first name of each item of a `{a::b, c}` that may run over several lines.
fn group_heads<'a>(code: &'a [String], line: usize, group: &'a str) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    let (mut depth, mut head) = (1, true);
    for (at, text) in code.iter().enumerate().skip(line) {
        let text = if at == line { group } else { text.as_str() };
        for (column, c) in text.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => head = true,
                c if head && (c.is_alphabetic() || c == '_') => {
                    found.extend(words(&text[column..]).next().map(|(_, name)| (at, name)));
                    head = false;
                }
                _ => {}
            }
            if depth == 0 {
                return found;
            }
        }
    }
    found
}

fn purity(source: &Source, findings: &mut Findings) {
    if !PURE.iter().any(|at| source.path.starts_with(at)) {
        return;
    }
    for (line, text) in source.shipped().iter().enumerate() {
        for name in IMPURE.iter().filter(|name| names_path(text, name)) {
            let what = format!(
                "`{name}` where decisions are pure: take the time, the randomness or the bytes as an argument"
            );
            findings.add(source, line, "pure", what);
        }
    }
}

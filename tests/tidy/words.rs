//! The rules about words: names that say nothing, work that is left undone, queues without a limit,
//! and what lies outside the repository.
//!
//! The words themselves are put together from pieces, since this file is read by its own rules.

use super::source::{Findings, Source, names_path, words};

/// A name made of one of these hides what the thing is.
const EMPTY_NAMES: [&str; 6] = ["util", "utils", "common", "manager", "helper", "helpers"];
/// Marks of work left undone, in code or comment.
const UNDONE: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];
/// The same as macros and attributes.
const UNDONE_CODE: [&str; 3] = [
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
    concat!("#[ig", "nore"),
];
/// Queues that grow as long as somebody sends.
const UNBOUNDED: [&str; 5] = [
    concat!("unbounded", "_channel"),
    concat!("Unbounded", "Sender"),
    concat!("Unbounded", "Receiver"),
    concat!("channel::unb", "ounded"),
    concat!("std::sync::mpsc::", "channel"),
];
/// Papers that guide the work but are no part of the repository.
const OUTSIDE: [&str; 4] = [
    concat!("../sh", "ared"),
    concat!("/work/", "shared"),
    concat!("DES", "IGN.md"),
    concat!("CONVEN", "TIONS.md"),
];

pub fn check(source: &Source, findings: &mut Findings) {
    outside(source, findings);
    let is_code = ["rs", "proto", "toml", "sh", "py", "yaml", "yml"]
        .iter()
        .any(|kind| source.path.rsplit('.').next() == Some(kind));
    if is_code || !source.path.contains('.') {
        undone(source, findings);
    }
    if source.is_rust() {
        file_name(source, findings);
        declared_names(source, findings);
        unbounded(source, findings);
    }
}

fn outside(source: &Source, findings: &mut Findings) {
    for (line, text) in source.lines.iter().enumerate() {
        for name in OUTSIDE.iter().filter(|name| text.contains(*name)) {
            let what = format!(
                "names `{name}`, which a reader of the repository does not have: say it in the project's own words"
            );
            findings.add(source, line, "outside", what);
        }
    }
}

fn undone(source: &Source, findings: &mut Findings) {
    for (line, text) in source.lines.iter().enumerate() {
        let marked = UNDONE
            .iter()
            .find(|mark| words(text).any(|(_, word)| word == **mark));
        let coded = UNDONE_CODE
            .iter()
            .find(|mark| source.is_rust() && source.code[line].contains(**mark));
        if let Some(mark) = marked.or(coded) {
            let what = format!(
                "`{mark}`: do it now, or file an issue and leave no mark; a test that cannot pass is mended or removed"
            );
            findings.add(source, line, "undone", what);
        }
    }
}

fn file_name(source: &Source, findings: &mut Findings) {
    let parts = source.path.trim_end_matches(".rs").split('/');
    for part in parts.filter(|part| is_empty_name(part)) {
        let what = format!("`{part}` is a name for anything: call the file after the noun it owns");
        findings.add(source, 0, "name", what);
    }
}

fn declared_names(source: &Source, findings: &mut Findings) {
    for (line, text) in source.code.iter().enumerate() {
        let mut before = "";
        for (_, word) in words(text) {
            if ["mod", "struct", "enum", "trait", "type"].contains(&before) && is_empty_name(word) {
                let what = format!("`{before} {word}` is a name for anything: say what it is");
                findings.add(source, line, "name", what);
            }
            if before == "fn" && word.len() > 4 && word.starts_with("get_") {
                let what = format!(
                    "`fn {word}`: a getter is named after what it gives, `{}`",
                    &word[4..]
                );
                findings.add(source, line, "name", what);
            }
            before = word;
        }
    }
}

/// Whether one of the words that the name is made of, `snake_case` or `CamelCase`, says nothing.
fn is_empty_name(name: &str) -> bool {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_uppercase() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake.split('_').any(|word| EMPTY_NAMES.contains(&word))
}

fn unbounded(source: &Source, findings: &mut Findings) {
    for (line, text) in source.shipped().iter().enumerate() {
        for name in UNBOUNDED.iter().filter(|name| names_path(text, name)) {
            let what = format!(
                "`{name}`: a queue has a named limit, what happens at the limit is written beside it and counted"
            );
            findings.add(source, line, "unbounded", what);
        }
    }
}

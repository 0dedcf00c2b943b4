//! The rules about a file's shape: its header, its length, its functions' lengths.
//!
//! A table or generated code is exempt by `tidy: allow size: reason`.

use super::source::{Findings, Source, words};

const FILE_LINES_MAX: usize = 500;
const MAIN_LINES_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;

pub fn check(source: &Source, findings: &mut Findings) {
    if !source.is_rust() {
        return;
    }
    header(source, findings);
    file_size(source, findings);
    function_sizes(source, findings);
}

fn header(source: &Source, findings: &mut Findings) {
    let opens = source
        .lines
        .first()
        .is_some_and(|line| line.starts_with("//!") && line.len() > 4);
    if !opens {
        let what = "the file does not open with `//!`: say what it owns, what it leaves to others, and its invariants";
        findings.add(source, 0, "header", what.to_owned());
    }
}

fn file_size(source: &Source, findings: &mut Findings) {
    if source.is_unit_tests() {
        return;
    }
    let lines = source.own().len();
    let main = source.path.ends_with("/main.rs");
    let (max, remedy) = match main {
        true => (
            MAIN_LINES_MAX,
            "main only reads arguments and starts what app wires",
        ),
        false => (FILE_LINES_MAX, "split it by noun, never into a second part"),
    };
    if lines > max {
        let what = format!("{lines} lines without its tests, {max} at most: {remedy}");
        findings.add(source, 0, "size", what);
    }
}

fn function_sizes(source: &Source, findings: &mut Findings) {
    // Tables, mostly; where they stand inside the file that they test they are not looked at either.
    if source.is_unit_tests() {
        return;
    }
    for (name, first, last) in functions(source.own()) {
        let lines = last - first + 1;
        if lines > FUNCTION_LINES_MAX {
            let what = format!(
                "`fn {name}` has {lines} lines, {FUNCTION_LINES_MAX} at most: give each of its steps a name"
            );
            findings.add(source, first, "size", what);
        }
    }
}

/// Every function with a body: its name, the line of `fn` and that of its closing brace.
fn functions(code: &[String]) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (line, text) in code.iter().enumerate() {
        let mut after_fn = false;
        for (column, word) in words(text) {
            if after_fn {
                let last = body_end(code, line, column);
                found.extend(last.map(|last| (word.to_owned(), line, last)));
            }
            // `fn(u8)` is a type, `fn name` a function.
            after_fn = word == "fn" && text[column + 2..].starts_with(' ');
        }
    }
    found
}

/// The line on which the body that begins after the signature closes; none for a mere signature.
fn body_end(code: &[String], line: usize, column: usize) -> Option<usize> {
    let (mut round, mut curly) = (0_i32, 0_i32);
    for (at, text) in code.iter().enumerate().skip(line) {
        let from = if at == line { column } else { 0 };
        for c in text[from..].chars() {
            match c {
                '(' | '[' => round += 1,
                ')' | ']' => round -= 1,
                ';' if round == 0 && curly == 0 => return None,
                '{' => curly += 1,
                '}' => {
                    curly -= 1;
                    if curly == 0 {
                        return Some(at);
                    }
                }
                _ => {}
            }
        }
    }
    None
}

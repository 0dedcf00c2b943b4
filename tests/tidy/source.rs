//! The tree as the rules see it: each text file with its lines, and for Rust the same lines with
//! comments and literals blanked, so that a rule about code never reads prose.
//!
//! It owns reading and blanking; what is wrong with a file is for the rules. **Invariant:** `code`
//! has as many lines as `lines`, so an index into one is an index into the other.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

/// Folders that hold what is built or fetched, never what is written here.
const NOT_OURS: [&str; 5] = ["target", ".git", "node_modules", "__pycache__", ".venv"];
/// A larger file is data, not text that somebody reads.
const BYTES_MAX: u64 = 1 << 20;

/// One text file of the repository.
pub struct Source {
    /// Relative to the root, with `/` between its parts.
    pub path: String,
    pub lines: Vec<String>,
    /// As `lines`; in a Rust file with comments and the insides of literals blanked.
    pub code: Vec<String>,
    /// Where the unit tests begin, or the number of lines.
    tests_from: usize,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let code = match path.ends_with(".rs") {
            true => blanked(text).lines().map(str::to_owned).collect(),
            false => lines.clone(),
        };
        let tests_from = tests_from(&code);
        Source {
            path: path.to_owned(),
            lines,
            code,
            tests_from,
        }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// A file of unit tests beside the code that it tests.
    pub fn is_unit_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// The code that ships: without unit tests, and nothing of the test crates.
    pub fn shipped(&self) -> &[String] {
        let apart = ["tests/", "fuzz/", "benches/"]
            .iter()
            .any(|at| self.path.starts_with(at));
        match apart || self.is_unit_tests() {
            true => &[],
            false => self.own(),
        }
    }

    /// The code above the unit tests.
    pub fn own(&self) -> &[String] {
        &self.code[..self.tests_from]
    }

    /// Whether `tidy: allow RULE: reason` stands on the line, in the comments and attributes
    /// right above it, or in the file's own header.
    pub fn allows(&self, line: usize, rule: &str) -> bool {
        let mark = format!("tidy: allow {rule}: ");
        let marked = |text: &String| {
            text.split_once(&mark)
                .is_some_and(|(_, reason)| !reason.trim().is_empty())
        };
        let above = self.lines[..line.min(self.lines.len())]
            .iter()
            .rev()
            .take_while(|text| {
                text.trim_start().starts_with("//") || text.trim_start().starts_with("#[")
            });
        let header = self.lines.iter().take_while(|text| text.starts_with("//!"));
        self.lines
            .get(line)
            .into_iter()
            .chain(above)
            .chain(header)
            .any(marked)
    }
}

/// What is wrong, where, by which rule, and what to do about it.
pub struct Violation {
    path: String,
    line: usize,
    rule: &'static str,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}: {}",
            self.path,
            self.line + 1,
            self.rule,
            self.what
        )
    }
}

/// What the rules found so far.
#[derive(Default)]
pub struct Findings(pub Vec<Violation>);

impl Findings {
    /// Adds one, unless the file says why it may be so. `line` counts from 0.
    pub fn add(&mut self, source: &Source, line: usize, rule: &'static str, what: String) {
        if !source.allows(line, rule) {
            self.0.push(Violation {
                path: source.path.clone(),
                line,
                rule,
                what,
            });
        }
    }
}

/// Every text file under `root`, in the order of their paths.
pub fn read_tree(root: &Path) -> io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() && !NOT_OURS.iter().any(|not| name == *not) {
                folders.push(path);
            } else if kind.is_file() && name != "Cargo.lock" && entry.metadata()?.len() <= BYTES_MAX
            {
                // What is not UTF-8 is a picture or a certificate, which no rule reads.
                let Ok(text) = fs::read_to_string(&path) else {
                    continue;
                };
                let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
                sources.push(Source::new(&relative.replace('\\', "/"), &text));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

/// The identifiers of a line of code, with the column of each.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.split(move |c| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(move |word| (word.as_ptr() as usize - code.as_ptr() as usize, word))
}

/// Where `path` (`std::env`, say) stands in a line of code as whole identifiers.
pub fn names_path(code: &str, path: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(path).any(|(at, found)| {
        !code[..at].ends_with(is_word) && !code[at + found.len()..].starts_with(is_word)
    })
}

fn tests_from(code: &[String]) -> usize {
    (0..code.len())
        .find(|&at| {
            let mut after = code[at + 1..].iter().map(|line| line.trim());
            code[at].trim() == "#[cfg(test)]"
                && after
                    .find(|line| !line.is_empty() && !line.starts_with("#["))
                    .is_some_and(|line| line.contains("mod ") && line.ends_with('{'))
        })
        .unwrap_or(code.len())
}

/// The text with comments and the insides of string and character literals as spaces.
fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match literal_end(&chars, at) {
            Some(end) => end,
            None => {
                out.push(chars[at]);
                at += 1;
                continue;
            }
        };
        out.extend(
            chars[at..end]
                .iter()
                .map(|&c| if c == '\n' { '\n' } else { ' ' }),
        );
        at = end;
    }
    out
}

/// Where the comment or literal that begins at `at` ends, if one does begin there.
fn literal_end(chars: &[char], at: usize) -> Option<usize> {
    let next = |by: usize| chars.get(at + by).copied();
    match chars[at] {
        '/' if next(1) == Some('/') => Some(
            chars[at..]
                .iter()
                .position(|&c| c == '\n')
                .map_or(chars.len(), |by| at + by),
        ),
        '/' if next(1) == Some('*') => Some(block_comment_end(chars, at)),
        '"' => Some(quoted_end(chars, at + 1, '"')),
        'r' if !at
            .checked_sub(1)
            .is_some_and(|before| is_name(chars[before]) && chars[before] != 'b') =>
        {
            raw_end(chars, at + 1)
        }
        // `'a'` and `'\n'` are characters, `'a` is a lifetime.
        '\'' if next(1) == Some('\\') || next(2) == Some('\'') => {
            Some(quoted_end(chars, at + 1, '\''))
        }
        _ => None,
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn quoted_end(chars: &[char], mut at: usize, quote: char) -> usize {
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn raw_end(chars: &[char], from: usize) -> Option<usize> {
    let hashes = chars[from..].iter().take_while(|&&c| c == '#').count();
    if chars.get(from + hashes) != Some(&'"') {
        return None;
    }
    let mut at = from + hashes + 1;
    while at < chars.len() {
        let closed = chars[at] == '"'
            && chars[at + 1..]
                .iter()
                .take(hashes)
                .filter(|&&c| c == '#')
                .count()
                == hashes;
        at += 1;
        if closed {
            return Some(at + hashes);
        }
    }
    Some(chars.len())
}

fn block_comment_end(chars: &[char], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0_usize);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(chars.len())
}

//! docs/limits.md says what the code says: every limit of what serves proxies and writes
//! statuses has its row, with its value, and no row names a constant that is not there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Whose constants must all have their rows.
const WHOLE: [&str; 6] = [
    "api/errors.rs",
    "discovery",
    "status",
    "index/attach.rs",
    "sparing.rs",
    "ca/review.rs",
];
/// Whose may have one.
const FURTHER: [&str; 2] = ["ca/token.rs", "ca/mod.rs"];
/// What makes a constant a limit.
const ENDINGS: [&str; 3] = ["_MAX", "_BURST", "_PER_SECOND"];

/// Constants of a file by the name that the page gives them, and their values as it writes them.
fn constants(path: &Path, into: &mut BTreeMap<String, String>) {
    let text = fs::read_to_string(path).expect("the source can be read");
    let stem = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod") => path
            .parent()
            .and_then(Path::file_name)
            .and_then(|of| of.to_str()),
        stem => stem,
    };
    let stem = stem.expect("a name of letters");
    let mut values: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines() {
        let line = line
            .trim_start_matches("pub ")
            .trim_start_matches("pub(super) ");
        let declared = line
            .strip_prefix("const ")
            .and_then(|line| line.split_once(": "));
        let Some((name, (of, value))) = declared
            .and_then(|(name, rest)| Some((name, rest.strip_suffix(';')?.split_once(" = ")?)))
        else {
            continue;
        };
        let (value, unit) = match value.strip_prefix("Duration::from_") {
            Some(rest) => {
                let (unit, value) = rest.split_once('(').expect("an argument");
                (value.trim_end_matches(')'), unit)
            }
            None => (value, ""),
        };
        if !matches!(of, "usize" | "u32" | "u64" | "Duration") {
            continue;
        }
        let Some(number) = number(value, &values) else {
            continue;
        };
        values.insert(name, number);
        if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            into.insert(format!("{stem}::{name}"), shown(name, number, unit));
        }
    }
}

fn number(text: &str, known: &BTreeMap<&str, u64>) -> Option<u64> {
    for (operator, apply) in [
        (" << ", (|a, b| a << b) as fn(u64, u64) -> u64),
        (" / ", |a, b| a / b),
        (" * ", |a, b| a * b),
    ] {
        if let Some((a, b)) = text.split_once(operator) {
            return Some(apply(number(a, known)?, number(b, known)?));
        }
    }
    let digits = text.replace('_', "");
    digits.parse().ok().or_else(|| known.get(text).copied())
}

fn shown(name: &str, number: u64, unit: &str) -> String {
    match unit {
        "secs" => return format!("{number}s"),
        "millis" => return format!("{number}ms"),
        _ => {}
    }
    if name.contains("BYTES") {
        return match number {
            _ if number.is_multiple_of(1 << 20) => format!("{} MiB", number >> 20),
            _ if number.is_multiple_of(1 << 10) => format!("{} KiB", number >> 10),
            _ => format!("{number} bytes"),
        };
    }
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn all_of(places: &[&str]) -> BTreeMap<String, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = BTreeMap::new();
    for place in places {
        let path = source.join(place);
        match path.is_dir() {
            false => constants(&path, &mut all),
            true => {
                for entry in fs::read_dir(&path).expect("a folder").flatten() {
                    constants(&entry.path(), &mut all);
                }
            }
        }
    }
    all
}

#[test]
fn every_limit_is_documented_with_its_value() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md");
    let page = fs::read_to_string(page).expect("docs/limits.md can be read");
    let (_, section) = page.split_once("## The controller\n").expect("its section");
    let mut rows: BTreeMap<&str, String> = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [_, value, reaction, seen, named] = cells[..] else {
            panic!("not five cells: {line}");
        };
        let says = format!(" {value} ; {reaction} ; {seen} ").replace("; ", " ; ");
        for name in named.split('`').filter(|name| name.contains("::")) {
            rows.insert(name, says.replace(", ", " ; "));
        }
    }
    let whole = all_of(&WHOLE);
    assert!(whole.len() > 35, "{whole:#?}");
    let further = all_of(&FURTHER);
    for name in whole.keys() {
        assert!(
            rows.contains_key(name.as_str()),
            "docs/limits.md has no row for `{name}`"
        );
    }
    for (name, says) in rows {
        let Some(shown) = whole.get(name).or_else(|| further.get(name)) else {
            panic!("docs/limits.md names `{name}`, which is not there");
        };
        assert!(
            says.contains(&format!(" {shown} ")),
            "`{name}` is {shown}, and not:{says}"
        );
    }
}

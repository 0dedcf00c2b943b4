//! docs/configuration.md says what the schema says: every message has a section,
//! every field a row, every value of an enum is named, and nothing is documented
//! that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The fields of each message in their camelCase form, and all values of enums.
#[derive(Debug, Default)]
struct Schema {
    messages: BTreeMap<String, BTreeSet<String>>,
    values: BTreeSet<String>,
}

/// Enough of a parser for our one proto file: a line holds one declaration.
fn schema(text: &str) -> Schema {
    let mut schema = Schema::default();
    let (mut message, mut in_enum) = (String::new(), false);
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["message", name, ..] => message = (*name).to_owned(),
            ["enum", _, "{", values @ ..] => {
                in_enum = !line.ends_with('}');
                let values = values.join(" ");
                schema.values.extend(values.split(';').filter_map(value));
            }
            ["}", ..] if in_enum => in_enum = false,
            _ if in_enum => schema.values.extend(line.split(';').filter_map(value)),
            [.., name, "=", number] if number.ends_with(';') && !message.is_empty() => {
                let fields = schema.messages.entry(message.clone()).or_default();
                fields.insert(camel_case(name));
            }
            _ => {}
        }
    }
    schema.values.remove("Unset");
    schema
}

fn value(declaration: &str) -> Option<String> {
    let (name, _) = declaration.split_once('=')?;
    Some(name.trim().to_owned())
}

fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let mut camel = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (first, rest) = part.split_at(1);
        camel.push_str(&first.to_uppercase());
        camel.push_str(rest);
    }
    camel
}

/// The rows' first cells of each `### Section`.
fn sections(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut sections: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("### ") {
            name.clone_into(&mut section);
            sections.entry(section.clone()).or_default();
        } else if let Some(row) = line.strip_prefix("| `") {
            let field = row.split('`').next().unwrap_or_default();
            let rows = sections.entry(section.clone()).or_default();
            assert!(rows.insert(field.to_owned()), "{section} has {field} twice");
        }
    }
    sections
}

#[test]
fn every_field_is_documented_and_no_other() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = fs::read_to_string(crate_dir.join("proto/weft/v1/config.proto"));
    let schema = schema(&proto.expect("the schema can be read"));
    assert!(
        schema.messages.len() > 30 && schema.values.len() > 40,
        "{schema:#?}"
    );
    let page = fs::read_to_string(crate_dir.join("../docs/configuration.md"));
    let page = page.expect("docs/configuration.md can be read");
    let sections = sections(&page);
    for (message, fields) in &schema.messages {
        let Some(rows) = sections.get(message) else {
            panic!("docs/configuration.md has no section `### {message}`");
        };
        assert_eq!(
            rows, fields,
            "the rows (left) of `### {message}` are not its fields (right)"
        );
    }
    for section in sections.keys() {
        assert!(
            schema.messages.contains_key(section),
            "`### {section}` is not a message"
        );
    }
    for value in &schema.values {
        let code = format!("`{value}`");
        assert!(
            page.contains(&code),
            "docs/configuration.md does not name {code}"
        );
    }
}

/// Every page that a reader of the repository finds: at the root and in docs/.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = Vec::new();
    for folder in ["", "docs/", "benches/", "fuzz/"] {
        let listing = fs::read_dir(root.join(folder)).expect("the folder is there");
        for entry in listing.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                let text = fs::read_to_string(entry.path()).expect("a page can be read");
                pages.push((format!("{folder}{name}"), text));
            }
        }
    }
    pages
}

/// GitHub's name for a heading's place.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || "- _".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn has_anchor(page: &str, wanted: &str) -> bool {
    page.lines()
        .filter(|line| line.starts_with('#'))
        .any(|line| anchor(line.trim_start_matches('#').trim()) == wanted)
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut broken = Vec::new();
    for (name, text) in pages() {
        let folder = root
            .join(&name)
            .parent()
            .expect("a page has a folder")
            .to_owned();
        for piece in text.split("](").skip(1) {
            let link = piece.split(')').next().unwrap_or_default();
            if link.contains("://") {
                continue;
            }
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                root.join(&name)
            } else {
                folder.join(file)
            };
            let lost = place.is_empty() && !target.exists()
                || !place.is_empty()
                    && fs::read_to_string(&target).map_or(true, |page| !has_anchor(&page, place));
            if lost {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A path in code marks that begins with a folder of ours is there.
#[test]
fn files_that_are_named_are_there() {
    const FOLDERS: [&str; 9] = [
        "benches/",
        "cli/",
        "config/",
        "controller/",
        "docs/",
        "examples/",
        "fuzz/",
        "proxy/",
        "tests/",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut lost = Vec::new();
    for (name, text) in pages() {
        for path in text.split('`').skip(1).step_by(2) {
            let ours = FOLDERS.iter().any(|folder| path.starts_with(folder));
            if ours && !path.contains([' ', '*', '\n']) && !root.join(path).exists() {
                lost.push(format!("{name}: {path}"));
            }
        }
    }
    assert!(lost.is_empty(), "{lost:#?}");
}

#[test]
fn the_readme_s_configuration_is_valid() {
    let pages = pages();
    let (_, readme) = pages
        .iter()
        .find(|(name, _)| name == "README.md")
        .expect("README.md");
    let (_, behind) = readme
        .split_once("```yaml\n")
        .expect("it has a configuration");
    let (yaml, _) = behind.split_once("```").expect("which ends");
    if let Err(errors) = weft_config::file::load("README.md", yaml) {
        panic!("{errors}");
    }
}

//! Holds what no lint can: who may name whom, sizes, headers, names, limits.
//!
//! One test reads the whole tree and prints every violation at once; the others show that each rule
//! finds what it is for and nothing else. A rule that would make the code worse is put aside where
//! it does, in a comment: `tidy: allow RULE: reason`.

#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use source::{Findings, Source};
use std::path::Path;

fn violations(sources: &[Source]) -> Vec<String> {
    let mut findings = Findings::default();
    for source in sources {
        shape::check(source, &mut findings);
        words::check(source, &mut findings);
        layers::check(source, &mut findings);
    }
    findings.0.iter().map(ToString::to_string).collect()
}

fn violations_under(root: &Path) -> Vec<String> {
    let sources = source::read_tree(root).expect("the tree can be read");
    violations(&sources)
}

#[test]
fn the_tree_is_tidy() {
    let found = violations_under(weft_tests::root());
    assert!(
        found.is_empty(),
        "{} violations (why each rule is there: CONTRIBUTING.md)\n{}\n",
        found.len(),
        found.join("\n")
    );
}

/// A file, and what its violations begin with, in order.
type Case = (&'static str, String, &'static [&'static str]);

fn assert_cases(cases: &[Case]) {
    for (path, text, expected) in cases {
        let found = violations(&[Source::new(path, text)]);
        let begins = found.len() == expected.len()
            && found
                .iter()
                .zip(*expected)
                .all(|(found, begin)| found.starts_with(begin));
        assert!(
            begins,
            "{path}, {} lines\nexpected {expected:#?}\nfound {found:#?}",
            text.lines().count()
        );
    }
}

/// A Rust file with a header and this body.
fn rust(body: &str) -> String {
    format!("//! A case.\n{}\n", body.trim_end())
}

#[test]
fn headers_and_file_sizes() {
    assert_cases(&[
        (
            "proxy/src/logic/a.rs",
            "use b;\n".into(),
            &["proxy/src/logic/a.rs:1: header"],
        ),
        (
            "proxy/src/logic/a.rs",
            String::new(),
            &["proxy/src/logic/a.rs:1: header"],
        ),
        ("proxy/src/logic/a.rs", rust(&"// x\n".repeat(498)), &[]),
        (
            "proxy/src/logic/a.rs",
            rust(&"// x\n".repeat(500)),
            &["proxy/src/logic/a.rs:1: size: 501"],
        ),
        (
            "proxy/src/logic/a/tests.rs",
            rust(&"// x\n".repeat(600)),
            &[],
        ),
        (
            "proxy/src/logic/a.rs",
            rust(&format!(
                "#[cfg(test)]\nmod tests {{\n{}}}",
                "// x\n".repeat(600)
            )),
            &[],
        ),
        (
            "proxy/src/logic/a.rs",
            format!("//! tidy: allow size: a table\n{}", "// x\n".repeat(600)),
            &[],
        ),
        (
            "proxy/src/logic/a.rs",
            format!("//! tidy: allow size: \n{}", "// x\n".repeat(600)),
            &["proxy/src/logic/a.rs:1: size"],
        ),
        (
            "proxy/src/main.rs",
            rust(&"// x\n".repeat(100)),
            &["proxy/src/main.rs:1: size: 101"],
        ),
    ]);
}

#[test]
fn function_sizes() {
    let long_body = "    step();\n".repeat(70);
    let brace_in_text = format!("fn f() {{\n    p('{{', \"}}\", r#\"}}\"#); // }}\n{long_body}}}");
    assert_cases(&[
        (
            "cli/src/a.rs",
            rust(&format!("fn short() {{}}\nfn f<'a>() {{\n{long_body}}}")),
            &["cli/src/a.rs:3: size: `fn f` has 72"],
        ),
        (
            "cli/src/a.rs",
            rust(&brace_in_text),
            &["cli/src/a.rs:2: size: `fn f` has 73"],
        ),
        (
            "cli/src/a.rs",
            rust(&format!(
                "// tidy: allow size: a table\nfn f() {{\n{long_body}}}"
            )),
            &[],
        ),
        (
            "cli/src/a.rs",
            rust("trait T { fn f(&self, g: fn(u8) -> [u8; 2]); }"),
            &[],
        ),
    ]);
}

#[test]
fn names_and_words() {
    let undone = concat!("to", "do!()");
    let comment = concat!("// TO", "DO: later");
    let ignored = concat!("#[ig", "nore]");
    let outside = concat!("see ../sh", "ared/a\n");
    let unbounded = concat!("let q = unbounded", "_channel();");
    assert_cases(&[
        (
            "cli/src/a.rs",
            rust(&format!("fn f() {{ {undone} }}")),
            &["cli/src/a.rs:2: undone"],
        ),
        ("cli/src/a.rs", rust(comment), &["cli/src/a.rs:2: undone"]),
        ("cli/src/a.rs", rust(ignored), &["cli/src/a.rs:2: undone"]),
        (
            "cli/src/a.rs",
            rust(&format!("const T: &str = \"{undone}\";")),
            &[],
        ),
        ("docs/a.md", outside.into(), &["docs/a.md:1: outside"]),
        ("cli/src/util.rs", rust(""), &["cli/src/util.rs:1: name"]),
        (
            "cli/src/utility.rs",
            rust("fn get_up() {}"),
            &["cli/src/utility.rs:2: name"],
        ),
        (
            "cli/src/a.rs",
            rust("mod common;\nstruct PoolManager;"),
            &["cli/src/a.rs:2: name", "cli/src/a.rs:3: name"],
        ),
        (
            "cli/src/a.rs",
            rust("struct Uncommon; // a common helper"),
            &[],
        ),
        (
            "cli/src/a.rs",
            rust(unbounded),
            &["cli/src/a.rs:2: unbounded"],
        ),
        ("tests/a.rs", rust(unbounded), &[]),
    ]);
}

#[test]
fn layers_between_crates() {
    assert_cases(&[
        (
            "proxy/Cargo.toml",
            "[dependencies]\nweft-config.workspace = true\ntokio = \"1\"\n".into(),
            &[],
        ),
        (
            "proxy/Cargo.toml",
            "[dependencies]\nweft-controller = { path = \"\" }\n".into(),
            &["proxy/Cargo.toml:2: layer"],
        ),
        (
            "controller/Cargo.toml",
            "[dependencies.weft-proxy]\npath = \"\"\n".into(),
            &["controller/Cargo.toml:1: layer"],
        ),
        (
            "config/Cargo.toml",
            "[package]\nname = \"tokio\"\n[dependencies]\ntokio = \"1\"\n".into(),
            &["config/Cargo.toml:4: layer"],
        ),
        (
            "proxy/Cargo.toml",
            "[target.'cfg(unix)'.dependencies]\nkube = \"1\"\n".into(),
            &["proxy/Cargo.toml:2: layer"],
        ),
        (
            "proxy/Cargo.toml",
            "[dev-dependencies]\nweft-tests = \"1\"\n".into(),
            &[],
        ),
    ]);
}

#[test]
fn layers_between_modules() {
    assert_cases(&[
        (
            "proxy/src/inbound/http.rs",
            rust("use crate::net::pool;\nuse super::Connection;"),
            &[],
        ),
        (
            "proxy/src/inbound/http.rs",
            rust("use crate::outbound::pick;"),
            &["proxy/src/inbound/http.rs:2: layer"],
        ),
        (
            "proxy/src/inbound/http.rs",
            rust("use super::super::outbound;"),
            &["proxy/src/inbound/http.rs:2: layer"],
        ),
        (
            "proxy/src/inbound/mod.rs",
            rust("use super::app;"),
            &["proxy/src/inbound/mod.rs:2: layer"],
        ),
        (
            "proxy/src/outbound.rs",
            rust("use crate::{\n    logic::{inbound, app},\n    inbound,\n};"),
            &["proxy/src/outbound.rs:4: layer"],
        ),
        (
            "proxy/src/net/tls/mod.rs",
            rust("use crate::state::Trust;\nuse crate::app;"),
            &["proxy/src/net/tls/mod.rs:3: layer"],
        ),
        (
            "proxy/src/app.rs",
            rust("use crate::{admin, inbound, outbound, drain};"),
            &[],
        ),
        ("proxy/src/main.rs", rust("use crate::app;"), &[]),
        (
            "proxy/src/shared_things.rs",
            rust(""),
            &["proxy/src/shared_things.rs:1: layer"],
        ),
        (
            "proxy/src/logic/retry.rs",
            rust("use crate::net;\n// crate::net, says a comment"),
            &["proxy/src/logic/retry.rs:2: layer"],
        ),
        (
            "proxy/src/net/a.rs",
            rust("#[cfg(test)]\nmod tests {\n    use crate::app;\n}"),
            &[],
        ),
        (
            "controller/src/index/mod.rs",
            rust("use crate::source::Event;\nuse crate::api::Policy;"),
            &["controller/src/index/mod.rs:2: layer"],
        ),
    ]);
}

#[test]
fn purity() {
    assert_cases(&[
        (
            "proxy/src/logic/a.rs",
            rust("fn f() { let now = std::time::Instant::now(); }"),
            &["proxy/src/logic/a.rs:2: pure: `Instant::now`"],
        ),
        (
            "proxy/src/logic/a.rs",
            rust("fn f(now: Instant) -> Option<IpAddr> { None } // not tokio"),
            &[],
        ),
        (
            "proxy/src/logic/a.rs",
            rust("use tokio::time;"),
            &["proxy/src/logic/a.rs:2: pure"],
        ),
        ("config/src/route.rs", rust("fn f() { tokio_like(); }"), &[]),
        (
            "proxy/src/net/a.rs",
            rust("use tokio::time::Instant; fn f() { Instant::now(); }"),
            &[],
        ),
    ]);
}

/// The walk itself: nested folders are read, built and fetched ones are not, and nothing stops at
/// the first violation.
#[test]
fn violations_on_disk_are_all_found() {
    let root = std::env::temp_dir().join(format!("weft-tidy-{}", std::process::id()));
    for (path, text) in [
        ("proxy/src/inbound/mod.rs", "use crate::outbound;\n"),
        ("proxy/src/logic/helper.rs", "//! A case.\n"),
        ("target/debug/built.rs", "no header\n"),
        ("notes.md", "fine\n"),
    ] {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().expect("it has a folder")).expect("a folder is made");
        std::fs::write(file, text).expect("a file is written");
    }
    let found = violations_under(&root);
    std::fs::remove_dir_all(&root).expect("the folder is removed");
    let rules: Vec<&str> = found
        .iter()
        .filter_map(|line| line.split(": ").nth(1))
        .collect();
    assert_eq!(rules, ["header", "layer", "name"], "{found:#?}");
}

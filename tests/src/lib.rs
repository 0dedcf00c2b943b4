//! The harness: what the whole-system tests share.
//!
//! It owns where the installed programs are found, which of them a test may do without, and how
//! programs are started, awaited, asked and ended. It leaves what must hold to the tests.
//!
//! Nothing is skipped in silence: a test steps aside only when `WEFT_TESTS_WITHOUT` names what it
//! needs, and says so. Without that variable a missing program is a failed test. Nothing sleeps
//! for readiness: whoever starts a program waits for its port or its own word.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub mod certificate;
pub mod chaos;
pub mod cluster;
pub mod config;
pub mod conformance;
pub mod curl;
pub mod dns;
pub mod frames;
pub mod h2load;
pub mod http2;
pub mod images;
pub mod install;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod namespace;
pub mod nginx;
pub mod port;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod replicas;
pub mod root_change;
pub mod scale;
pub mod storm;
pub mod successors;
pub mod upstream;
pub mod verdicts;
pub mod weft;

/// The variable that names, between commas, what the tests are to do without.
pub const WITHOUT: &str = "WEFT_TESTS_WITHOUT";
/// How long anything that must happen may take. Only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The root of the repository.
#[must_use]
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The Python that has the packages of `tests/requirements.txt`, put there by `make test`.
#[must_use]
pub fn python() -> PathBuf {
    root().join("target/venv/bin/python")
}

/// A script of `tests/python`, run by [`python`], its output unbuffered.
#[must_use]
pub fn script(name: &str) -> Command {
    let mut command = Command::new(python());
    command
        .arg("-u")
        .arg(root().join("tests/python").join(name));
    command
}

/// True, with a line that says so, when the caller was told to do without `program`.
#[must_use]
pub fn stepping_aside(program: &str) -> bool {
    let without = env::var(WITHOUT).unwrap_or_default();
    let aside = names(&without, program);
    if aside {
        println!("stepped aside: {WITHOUT} names {program}");
    }
    aside
}

fn names(list: &str, program: &str) -> bool {
    list.split(',').any(|name| name.trim() == program)
}

/// Looks again and again until `look` gives something, and fails the test after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, look)
}

/// The same with a patience of the caller's, for what takes many steps.
#[track_caller]
pub fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never came: {what}");
        sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_named_program_steps_aside() {
        for (list, program, expected) in [
            ("", "nginx", false),
            ("nginx", "nginx", true),
            ("postgresql, nginx", "nginx", true),
            ("nginx-light", "nginx", false),
        ] {
            assert_eq!(names(list, program), expected, "{list:?} names {program}");
        }
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("rust-toolchain.toml").is_file());
    }
}

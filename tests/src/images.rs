//! The container images, built as `make images` builds them.
//!
//! They are of the profile that is built fastest, which makes the largest programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{root, stepping_aside};

pub const NAMES: [&str; 2] = ["weft-proxy", "weft-controller"];
/// What they are called: `PREFIX/NAME:TAG`.
pub const PREFIX: &str = "localhost";
pub const TAG: &str = "test";

/// Set by whoever has built them just now: they are taken as they are.
pub const BUILT: &str = "WEFT_TESTS_IMAGES_BUILT";

/// Builds them.
///
/// # Panics
/// If that fails, with what was said.
pub fn build() {
    build_in(&root().join("target/images"));
}

/// The same into another folder.
///
/// # Panics
/// If that fails, with what was said.
pub fn build_in(folder: &Path) {
    let mut command = Command::new(root().join("scripts/images"));
    command
        .current_dir(root())
        .env("OUT", folder)
        .env("PROFILE", "quick")
        .env("PREFIX", PREFIX)
        .env("TAG", TAG);
    let output = command.output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
}

/// What `docker save` would write of one.
#[must_use]
pub fn archive(name: &str) -> PathBuf {
    root().join(format!("target/images/{name}.tar"))
}

/// Builds them once for all tests of a process; false, with a line that says so, where nothing can.
#[must_use]
pub fn built() -> bool {
    static ONCE: OnceLock<()> = OnceLock::new();
    if stepping_aside("buildah") {
        return false;
    }
    if std::env::var_os(BUILT).is_none() {
        ONCE.get_or_init(build);
    }
    true
}

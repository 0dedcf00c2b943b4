//! Who has yet to follow a step of a rotation. Pure.

use std::collections::HashMap;

use weft_config::status::Status;

use super::plan::{Roots, Step};
use crate::mesh::Known;

/// Files whose refusal by a controller concerns us.
const FILES: [&str; 6] = [
    "ca.crt",
    "ca.key",
    "tls.crt",
    "tls.key",
    "bundle.pem",
    "crl.pem",
];

/// How far everybody is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub done: usize,
    pub of: usize,
    /// Who is waited for, and why.
    pub waiting: Vec<String>,
}

impl Progress {
    pub fn is_complete(&self) -> bool {
        self.waiting.is_empty()
    }

    fn count(&mut self, done: bool, waiting: impl FnOnce() -> String) {
        self.of += 1;
        match done {
            true => self.done += 1,
            false => self.waiting.push(waiting()),
        }
    }
}

/// For each controller the revision at which it had the roots of a step: who has
/// acknowledged that has them too, since a controller takes up roots and tells of them
/// in one.
pub type Marks = HashMap<String, u64>;

/// How far everybody is once a step is written.
pub fn progress(known: &Known, step: Step, roots: &Roots, marks: &mut Marks) -> Progress {
    let mut progress = Progress::default();
    for controller in &known.controllers {
        let name = &controller.name;
        match &controller.answer {
            Err(problem) => progress.count(false, || {
                format!("controller {name} does not answer: {problem}")
            }),
            Ok(status) if has(status, step, roots) => {
                let mark = marks.entry(name.clone()).or_insert(status.revision);
                // One that has begun anew counts from the beginning.
                *mark = (*mark).min(status.revision);
                progress.count(true, String::new);
            }
            Ok(status) => {
                marks.remove(name);
                progress.count(false, || refusal(name, status));
            }
        }
    }
    for proxy in known.proxies() {
        let told = &proxy.proxy;
        let mark = marks.get(proxy.controller);
        let acknowledged = mark.is_some_and(|mark| told.acknowledged >= *mark);
        let refused = told
            .refused
            .iter()
            .find(|of| of.resource.starts_with("TrustBundle"));
        let signed = step != Step::Sign || told.signing_root == roots.new;
        progress.count(acknowledged && signed && refused.is_none(), || {
            let why = match refused {
                Some(refusal) => format!("refuses the roots: {}", refusal.message),
                None if !acknowledged => "has yet to acknowledge the roots".to_owned(),
                None if told.signing_root.is_empty() => {
                    "is of a version that does not say which root it lives by; restart it"
                        .to_owned()
                }
                None => "has yet to renew its certificate".to_owned(),
            };
            format!("{} {why}", proxy.name)
        });
    }
    progress
}

/// Whether a controller has what a step wrote.
fn has(status: &Status, step: Step, roots: &Roots) -> bool {
    let has = |print: &str| status.roots.iter().any(|root| root.fingerprint == print);
    let mut signing = status.roots.iter().filter(|root| root.signing);
    match step {
        Step::Begin => has(&roots.old) && has(&roots.new),
        Step::Sign => has(&roots.old) && signing.any(|root| root.fingerprint == roots.new),
        Step::Drop => has(&roots.new) && !has(&roots.old),
    }
}

fn refusal(name: &str, status: &Status) -> String {
    let refused = status
        .errors
        .iter()
        .find(|error| FILES.iter().any(|file| error.file.ends_with(file)));
    match refused {
        Some(error) => format!(
            "controller {name} refuses it: {}: {}",
            error.file, error.message
        ),
        None => format!("controller {name} has yet to take it up"),
    }
}

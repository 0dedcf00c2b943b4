//! Of any mesh: its roots, its proxies, its objects.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use weft_config::status::ObjectStatus;

use super::{Finding, Findings, about};
use crate::mesh::{Door, Known, Mesh};
use crate::status;
use crate::terminal::span;

/// Proxies asked at once.
const ASKED_MAX: usize = 32;

pub async fn look(all: &mut Vec<Finding>, mesh: &Mesh, known: &Known) {
    proxies(all, mesh, known).await;
    let mut findings = about(all, "manifests");
    let before = findings.all.len();
    let mut said = std::collections::HashSet::new();
    for error in known.statuses().flat_map(|status| &status.errors) {
        let found = format!("{}: {}", status::place(error), error.message);
        if said.insert(found.clone()) {
            let remedy = "mend it; what it said before is in force meanwhile";
            findings.wrong(found, remedy);
        }
    }
    // All replicas read the same.
    if let Some(status) = known.statuses().next() {
        if let Some(beyond) = status::beyond(status) {
            findings.wrong(beyond, "mend those that are named first");
        }
        objects(&mut findings, &status.objects);
    }
    if findings.all.len() == before {
        findings.ok("all are read and accepted");
    }
}

pub fn objects(findings: &mut Findings<'_>, objects: &[ObjectStatus]) {
    for problem in status::objects(objects) {
        findings.wrong(
            problem,
            "mend the object or what it refers to; the rest of it is in force",
        );
    }
}

pub fn roots(findings: &mut Findings<'_>, known: &Known) {
    for (now, root) in status::roots(known) {
        let left = root.not_after.saturating_sub(now);
        let name = root.fingerprint.get(..12).unwrap_or_default();
        let change = "replace it while everything runs: weft ca rotate";
        match left {
            0 => findings.wrong(format!("root {name} has expired"), change),
            left if left < status::ROOT_LEFT_MIN => {
                findings.wrong(format!("root {name} expires in {}", span(left)), change);
            }
            left => findings.ok(format!("root {name} is good for {}", span(left))),
        }
    }
}

async fn proxies(all: &mut Vec<Finding>, mesh: &Mesh, known: &Known) {
    let proxies = known.proxies();
    let asked = ask_all(
        proxies
            .iter()
            .map(|proxy| (mesh.door(proxy), proxy.proxy.leaving)),
        mesh.patience(),
    )
    .await;
    let mut findings = about(all, "proxies");
    let mut well = 0;
    for (proxy, own) in proxies.iter().zip(asked) {
        let problems = status::of_proxy(proxy);
        well += usize::from(problems.is_empty() && own.is_none());
        for problem in problems {
            let remedy = "its log and its own page /mesh say why; one that is only behind may be so for a moment";
            findings.wrong(problem, remedy);
        }
        if let Some(own) = own {
            findings.wrong(
                format!("{}: {own}", proxy.name),
                "look at the sidecar's log, and whether its admin address can be reached from here",
            );
        }
    }
    match proxies.len() {
        0 => findings.warn("none is connected", mesh.first_step()),
        all => findings.ok(format!(
            "{well} of {all} are well and have what their controller has"
        )),
    }
}

/// Asks the proxies themselves; what is wrong with each, in their order.
async fn ask_all(
    doors: impl Iterator<Item = (Door, bool)>,
    limit: Duration,
) -> Vec<Option<String>> {
    let places = Arc::new(Semaphore::new(ASKED_MAX));
    let mut tasks = JoinSet::new();
    let mut answers = Vec::new();
    for (index, (door, leaving)) in doors.enumerate() {
        answers.push(None);
        let places = Arc::clone(&places);
        tasks.spawn(async move {
            let _place = places.acquire().await;
            (index, ask(&door, leaving, limit).await)
        });
    }
    while let Some(asked) = tasks.join_next().await {
        if let Ok((index, answer)) = asked
            && let Some(slot) = answers.get_mut(index)
        {
            *slot = answer;
        }
    }
    answers
}

/// What a proxy says is wrong with itself.
async fn ask(door: &Door, leaving: bool, limit: Duration) -> Option<String> {
    // One that leaves is not ready, and rightly.
    if !leaving && let Err(error) = door.get("/ready", limit).await {
        return Some(format!("{error:#}"));
    }
    // Private: only a proxy of this host, or of a pod, tells.
    let page = door.get("/mesh", limit).await.ok()?;
    let page: Value = serde_json::from_slice(&page.body).ok()?;
    let problem = page.get("problem").and_then(Value::as_str)?;
    Some(format!("says of itself: {problem}"))
}

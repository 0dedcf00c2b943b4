//! `weft status`: what the controller knows, and whether all of it is well.
//! `problems` and `render` are pure; `weft check` shares them.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use weft_config::status::{ObjectStatus, ProxyStatus, SourceError, Status};

use crate::admin;
use crate::terminal::{BOLD, Cell, DIM, GREEN, PLAIN, Paint, RED, Table, YELLOW, print, span};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A root that ends sooner wants replacing.
pub const ROOT_LEFT_MIN: u64 = 14 * 86_400;
/// Certificates are renewed at half of their life; one with so little left was not.
pub const CERTIFICATE_LEFT_MIN: u64 = 300;

const EXAMPLES: &str = "\
Examples:
  weft status                         who is connected, what is wrong, has everyone got everything
  weft status -o json | jq .problems
  until weft status > /dev/null; do sleep 0.1; done
                                      wait until everyone has got everything

Exit code: 0 all is well; 1 something is wrong (it is listed at the end), or no controller answers;
2 wrong arguments. Wrong is: a root or certificate that has ended or is about to, a proxy that refuses
something or is behind, a manifest that cannot be read, an object that is not accepted.";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables; with colours on a terminal
    #[default]
    Text,
    /// What the controller says, with `healthy` and `problems`
    Json,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The controller's admin address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:14021")]
    controller_admin: SocketAddr,
    /// What is printed
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
struct Report<'a> {
    healthy: bool,
    problems: &'a [String],
    #[serde(flatten)]
    status: &'a Status,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let status = runtime.block_on(fetch(arguments.controller_admin))?;
    let problems = problems(&status);
    let _read = match arguments.output {
        Output::Json => {
            let report = Report {
                healthy: problems.is_empty(),
                problems: &problems,
                status: &status,
            };
            print(&[serde_json::to_string_pretty(&report)?])
        }
        Output::Text => print(&render(&status, &problems, Paint::of_stdout())),
    };
    Ok(match problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Asks the controller.
pub async fn fetch(admin: SocketAddr) -> Result<Status> {
    let page = admin::get(admin, "/status", ANSWER_TIMEOUT).await;
    let page = page.with_context(|| {
        format!("no controller at {admin}: start weft-controller, or name its --admin address by --controller-admin")
    })?;
    serde_json::from_slice(&page.body)
        .with_context(|| format!("http://{admin}/status is not a weft-controller's"))
}

/// What is wrong, each with the object it is about. Pure: `now` is the controller's.
pub fn problems(status: &Status) -> Vec<String> {
    let mut problems = Vec::new();
    for root in &status.roots {
        let left = root.not_after.saturating_sub(status.now);
        let name = short(&root.fingerprint);
        if left == 0 {
            problems.push(format!(
                "root {name} has expired: change the root (docs/mesh.md, Identity)"
            ));
        } else if left < ROOT_LEFT_MIN {
            let left = span(left);
            problems.push(format!(
                "root {name} expires in {left}: change the root (docs/mesh.md, Identity)"
            ));
        }
    }
    for proxy in &status.proxies {
        problems.extend(of_proxy(status, proxy));
    }
    let errors = status.errors.iter();
    problems.extend(errors.map(|error| format!("{}: {}", place(error), error.message)));
    problems.extend(objects(&status.objects));
    problems
}

/// Objects that are not accepted as they are, and why.
pub fn objects(objects: &[ObjectStatus]) -> Vec<String> {
    let mut problems = Vec::new();
    for object in objects {
        let refused = object
            .conditions
            .iter()
            .filter(|condition| !condition.status);
        problems.extend(refused.map(|condition| {
            let (kind, reason) = (&condition.kind, &condition.reason);
            format!(
                "{}: not {kind}: {reason}: {}",
                name(object),
                condition.message
            )
        }));
    }
    problems
}

/// What is wrong with one proxy.
pub fn of_proxy(status: &Status, proxy: &ProxyStatus) -> Vec<String> {
    let of = &proxy.workload;
    let refused = proxy.refused.iter().map(|refusal| {
        let (resource, message) = (&refusal.resource, &refusal.message);
        format!("{of}: refuses {resource}: {message}")
    });
    let mut problems: Vec<String> = refused.collect();
    let left = proxy.certificate_expires.saturating_sub(status.now);
    if left < CERTIFICATE_LEFT_MIN {
        let state = match left {
            0 => "has expired".to_owned(),
            left => format!("expires in {}", span(left)),
        };
        problems.push(format!(
            "{of}: its certificate {state} and is not renewed; its own page says why: http://{}/mesh",
            proxy.admin
        ));
    }
    if proxy.acknowledged < status.revision {
        let (has, revision) = (proxy.acknowledged, status.revision);
        problems.push(format!("{of}: is behind: revision {has} of {revision}"));
    }
    problems
}

/// `file, document 2, Service shop/web, spec.ports[0]`, as far as known.
pub fn place(error: &SourceError) -> String {
    let mut place = error.file.clone();
    if error.document > 0 {
        place.push_str(&format!(", document {}", error.document));
    }
    for part in [&error.object, &error.field] {
        if !part.is_empty() {
            place.push_str(&format!(", {part}"));
        }
    }
    place
}

fn name(object: &ObjectStatus) -> String {
    let of = format!("{} {}/{}", object.kind, object.namespace, object.name);
    match object.parent.is_empty() {
        true => of,
        false => format!("{of} at {}", object.parent),
    }
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}

/// How long until then, red when it has passed and yellow when that is near.
fn until(now: u64, then: u64, near: u64) -> Cell {
    match then.saturating_sub(now) {
        0 => (RED, format!("{} ago", span(now.saturating_sub(then)))),
        left if left < near => (YELLOW, format!("in {}", span(left))),
        left => (PLAIN, format!("in {}", span(left))),
    }
}

/// The whole page. Pure.
pub fn render(status: &Status, problems: &[String], paint: Paint) -> Vec<String> {
    let plain = |text: &str| (PLAIN, text.to_owned());
    let mut lines = vec![paint.line(&[
        (BOLD, format!("weft-controller {}", status.version)),
        (
            PLAIN,
            format!(
                "  trust domain {}  revision {}",
                status.trust_domain, status.revision
            ),
        ),
    ])];
    let mut section = |table: Table| {
        lines.push(String::new());
        lines.extend(table.lines(paint));
    };
    let mut roots = Table::new(&["ROOT", "SUBJECT", "EXPIRES", "SIGNS"]);
    for root in &status.roots {
        roots.row(vec![
            plain(short(&root.fingerprint)),
            plain(&root.subject),
            until(status.now, root.not_after, ROOT_LEFT_MIN),
            plain(if root.signing { "yes" } else { "no" }),
        ]);
    }
    section(roots);
    let mut proxies = Table::new(&[
        "PROXY",
        "IDENTITY",
        "ADMIN",
        "VERSION",
        "CONNECTED",
        "CERTIFICATE",
        "RESOURCES",
        "REVISION",
        "STATE",
    ]);
    for proxy in &status.proxies {
        proxies.row(vec![
            plain(&proxy.workload),
            plain(identity(&proxy.identity, &status.trust_domain)),
            plain(&proxy.admin),
            plain(&proxy.version),
            (
                PLAIN,
                span(status.now.saturating_sub(proxy.connected_since)),
            ),
            until(status.now, proxy.certificate_expires, CERTIFICATE_LEFT_MIN),
            (PLAIN, proxy.resources.to_string()),
            (PLAIN, proxy.acknowledged.to_string()),
            state(status, proxy),
        ]);
    }
    section(proxies);
    lines.push(String::new());
    if problems.is_empty() {
        lines.push(paint.line(&[(GREEN, "All is well.".to_owned())]));
    }
    for problem in problems {
        lines.push(paint.line(&[(RED, "wrong  ".to_owned()), (PLAIN, problem.clone())]));
    }
    lines
}

/// Without what all of them have in common.
pub fn identity<'a>(identity: &'a str, trust_domain: &str) -> &'a str {
    let local = identity.strip_prefix("spiffe://");
    let local = local.and_then(|rest| rest.strip_prefix(trust_domain));
    local.map_or(identity, |rest| rest.trim_start_matches('/'))
}

fn state(status: &Status, proxy: &ProxyStatus) -> Cell {
    if !proxy.refused.is_empty() {
        (RED, format!("refuses {}", proxy.refused.len()))
    } else if proxy.acknowledged < status.revision {
        (YELLOW, format!("behind, {} pending", proxy.pending))
    } else if proxy.leaving {
        (DIM, "leaving".to_owned())
    } else {
        (GREEN, "in sync".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_config::status::{Condition, Refusal, RootStatus};

    fn status() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            revision: 7,
            now: 1_000_000,
            roots: vec![RootStatus {
                subject: "Weft root".to_owned(),
                fingerprint: "0123456789abcdef".to_owned(),
                not_after: 1_000_000 + 2 * ROOT_LEFT_MIN,
                signing: true,
            }],
            proxies: vec![ProxyStatus {
                workload: "web-1".to_owned(),
                identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
                admin: "127.1.0.1:14020".to_owned(),
                certificate_expires: 1_080_000,
                connected_since: 999_000,
                acknowledged: 7,
                ..ProxyStatus::default()
            }],
            ..Status::default()
        }
    }

    /// The problems, and the page without colours.
    fn shown(status: &Status) -> (Vec<String>, String) {
        let problems = problems(status);
        let paint = Paint {
            color: false,
            width: usize::MAX,
        };
        let page = render(status, &problems, paint).join("\n");
        (problems, page)
    }

    #[test]
    fn all_is_well() {
        let (problems, page) = shown(&status());
        assert_eq!(problems, Vec::<String>::new());
        assert!(
            page.contains("web-1  ns/shop/sa/web  127.1.0.1:14020"),
            "{page}"
        );
        assert!(page.contains("in sync\n"), "{page}");
        assert!(page.ends_with("All is well."), "{page}");
    }

    #[test]
    fn each_thing_that_is_wrong() {
        type Change = fn(&mut Status);
        let cases: [(Change, &str); 8] = [
            (
                |of| of.roots[0].not_after = of.now + 60,
                "root 0123456789ab expires in 1m 0s",
            ),
            (
                |of| of.roots[0].not_after = 5,
                "root 0123456789ab has expired",
            ),
            (
                |of| of.proxies[0].certificate_expires = of.now + 60,
                "web-1: its certificate expires in 1m 0s",
            ),
            (
                |of| of.proxies[0].certificate_expires = 5,
                "web-1: its certificate has expired",
            ),
            (
                |of| of.proxies[0].acknowledged = 6,
                "web-1: is behind: revision 6 of 7",
            ),
            (
                |of| {
                    of.proxies[0].refused.push(Refusal {
                        resource: "Service shop/web:80".to_owned(),
                        message: "services[0]: no".to_owned(),
                        since: 1,
                    });
                },
                "web-1: refuses Service shop/web:80: services[0]: no",
            ),
            (
                |of| {
                    of.errors.push(SourceError {
                        file: "a.yaml".to_owned(),
                        document: 2,
                        object: "Service shop/web".to_owned(),
                        field: "spec.ports[0]".to_owned(),
                        message: "is no port".to_owned(),
                    });
                },
                "a.yaml, document 2, Service shop/web, spec.ports[0]: is no port",
            ),
            (
                |of| {
                    of.objects.push(ObjectStatus {
                        kind: "HTTPRoute".to_owned(),
                        namespace: "shop".to_owned(),
                        name: "canary".to_owned(),
                        parent: "Service shop/web:80".to_owned(),
                        conditions: vec![
                            Condition {
                                kind: "Accepted".to_owned(),
                                status: true,
                                ..Condition::default()
                            },
                            Condition {
                                observed_generation: 0,
                                kind: "ResolvedRefs".to_owned(),
                                status: false,
                                reason: "BackendNotFound".to_owned(),
                                message: "there is no Service shop/none".to_owned(),
                            },
                        ],
                    });
                },
                "HTTPRoute shop/canary at Service shop/web:80: not ResolvedRefs: BackendNotFound: there is no Service shop/none",
            ),
        ];
        for (change, expected) in cases {
            let mut status = status();
            change(&mut status);
            let (problems, page) = shown(&status);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(expected), "{problems:?}");
            assert!(page.contains(&format!("wrong  {expected}")), "{page}");
        }
    }
}

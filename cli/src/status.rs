//! `weft status`: what the controllers know, and whether all of it is well.
//! `problems` and `render` are pure; `weft check` shares them.

use std::collections::HashSet;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Value, json};
use weft_config::status::{ObjectStatus, RootStatus, SourceError, Status, WatchState, WatchStatus};

use crate::mesh::{self, Choice, Known, Mesh, Proxy};
use crate::terminal::{BOLD, Cell, DIM, GREEN, PLAIN, Paint, RED, Table, YELLOW, print, span};

/// A root that ends sooner wants replacing.
pub const ROOT_LEFT_MIN: u64 = 14 * 86_400;
/// Certificates are renewed at half of their life; one with so little left was not.
pub const CERTIFICATE_LEFT_MIN: u64 = 300;

const EXAMPLES: &str = "\
Examples:
  weft status                         who is connected, what is wrong, has everyone got everything
  weft status -k                      the same of a cluster: all replicas of its controller
  weft status -o json | jq .problems
  until weft status > /dev/null; do sleep 0.1; done
                                      wait until everyone has got everything

Exit code: 0 all is well; 1 something is wrong (it is listed at the end), or no controller answers;
2 wrong arguments. Wrong is: a root or certificate that has ended or is about to, a proxy that refuses
something or is behind, a manifest that cannot be read, an object that is not accepted, a replica of the
controller that does not answer or cannot watch the API server.";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables; with colours on a terminal
    #[default]
    Text,
    /// What the controller says, with `healthy` and `problems`
    Json,
}

#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", mesh::WHICH))]
pub struct Arguments {
    #[command(flatten)]
    choice: Choice,
    /// What is printed
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t)]
    output: Output,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mesh, known) = runtime.block_on(async {
        let mesh = arguments.choice.mesh(false).await?;
        let known = mesh.known().await?;
        anyhow::Ok((mesh, known))
    })?;
    let problems = problems(&known);
    let _read = match arguments.output {
        Output::Json => {
            let report = report(&mesh, &known, &problems)?;
            print(&[serde_json::to_string_pretty(&report)?])
        }
        Output::Text => print(&render(
            &mesh.title(),
            &known,
            &problems,
            Paint::of_stdout(),
        )),
    };
    Ok(match problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Of this host the controller's own page; of a cluster those of all replicas, and the proxies once.
fn report(mesh: &Mesh, known: &Known, problems: &[String]) -> Result<Value> {
    let healthy = problems.is_empty();
    let with = |value: &mut Value, more: Value| {
        if let (Value::Object(value), Value::Object(more)) = (value, more) {
            value.extend(more);
        }
    };
    let mut report = json!({"healthy": healthy, "problems": problems});
    let cluster = match mesh {
        Mesh::Here(_) => {
            let status = known.statuses().next();
            with(&mut report, serde_json::to_value(status)?);
            return Ok(report);
        }
        Mesh::Cluster(cluster) => cluster,
    };
    let mut controllers = Vec::new();
    for controller in &known.controllers {
        let mut of = json!({"name": controller.name});
        match &controller.answer {
            Ok(status) => with(&mut of, serde_json::to_value(status)?),
            Err(error) => with(&mut of, json!({"error": error})),
        }
        if let Value::Object(of) = &mut of {
            of.remove("proxies");
        }
        controllers.push(of);
    }
    let mut proxies = Vec::new();
    for proxy in known.proxies() {
        let mut of = json!({"name": proxy.name, "controller": proxy.controller});
        with(&mut of, serde_json::to_value(proxy.proxy)?);
        proxies.push(of);
    }
    let more = json!({
        "context": cluster.context, "namespace": cluster.namespace,
        "controllers": controllers, "proxies": proxies,
    });
    with(&mut report, more);
    Ok(report)
}

/// What is wrong, each with the object it is about. Pure: `now` is the controllers'.
pub fn problems(known: &Known) -> Vec<String> {
    let mut problems = Vec::new();
    for controller in &known.controllers {
        let name = &controller.name;
        match &controller.answer {
            Ok(status) => {
                problems.extend(watches(&status.watches).map(|of| format!("{name}: {of}")));
                let unwritten = status.unwritten.iter();
                problems.extend(unwritten.map(|of| {
                    let (object, tries, problem) = (&of.object, of.tries, &of.problem);
                    format!("{object}: its status, after {tries} tries: {problem}")
                }));
            }
            Err(error) => problems.push(format!("{name}: does not answer: {error}")),
        }
    }
    for (now, root) in roots(known) {
        let left = root.not_after.saturating_sub(now);
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
    for proxy in known.proxies() {
        problems.extend(of_proxy(&proxy));
    }
    // All replicas read the same.
    let mut said = HashSet::new();
    for status in known.statuses() {
        let errors = status.errors.iter();
        let errors = errors.map(|error| format!("{}: {}", place(error), error.message));
        let errors = errors.chain(beyond(status));
        let all = errors.chain(objects(&status.objects));
        problems.extend(all.filter(|problem| said.insert(problem.clone())));
    }
    problems
}

/// The trusted roots of all controllers, each once, and what time it is there.
pub fn roots(known: &Known) -> Vec<(u64, &RootStatus)> {
    let mut roots: Vec<(u64, &RootStatus)> = Vec::new();
    for status in known.statuses() {
        for root in &status.roots {
            let same = |of: &(u64, &RootStatus)| of.1.fingerprint == root.fingerprint;
            if !roots.iter().any(same) {
                roots.push((status.now, root));
            }
        }
    }
    roots
}

/// Kinds that a controller cannot watch, and why.
pub fn watches(watches: &[WatchStatus]) -> impl Iterator<Item = String> {
    let broken = watches.iter().filter(|of| of.state == WatchState::Broken);
    broken.map(|of| format!("cannot watch {}: {}", of.kind, of.message))
}

/// Objects that are not accepted as they are, or not as a whole, and why.
pub fn objects(objects: &[ObjectStatus]) -> Vec<String> {
    let mut problems = Vec::new();
    for object in objects {
        let refused = object
            .conditions
            .iter()
            .filter(|condition| condition.is_bad());
        problems.extend(refused.map(|condition| {
            let (kind, reason) = (&condition.kind, &condition.reason);
            let not = if condition.status { "" } else { "not " };
            format!(
                "{}: {not}{kind}: {reason}: {}",
                name(object),
                condition.message
            )
        }));
    }
    problems
}

/// What is wrong with one proxy.
pub fn of_proxy(of: &Proxy<'_>) -> Vec<String> {
    let (status, proxy, of) = (of.status, of.proxy, &of.name);
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

/// That more is wrong than is named.
pub fn beyond(status: &Status) -> Option<String> {
    let (named, more) = (status.errors.len(), status.errors_beyond);
    (more > 0).then(|| {
        format!("{more} more that cannot be read: {named} are named, mend those first; an object's own status says why it cannot be read")
    })
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
pub fn render(title: &str, known: &Known, problems: &[String], paint: Paint) -> Vec<String> {
    let mut lines = header(title, known, paint);
    let mut section = |table: Table| {
        lines.push(String::new());
        lines.extend(table.lines(paint));
    };
    let plain = |text: &str| (PLAIN, text.to_owned());
    let mut table = Table::new(&["ROOT", "SUBJECT", "EXPIRES", "SIGNS"]);
    for (now, root) in roots(known) {
        table.row(vec![
            plain(short(&root.fingerprint)),
            plain(&root.subject),
            until(now, root.not_after, ROOT_LEFT_MIN),
            plain(if root.signing { "yes" } else { "no" }),
        ]);
    }
    section(table);
    section(proxies(known));
    lines.push(String::new());
    if problems.is_empty() {
        lines.push(paint.line(&[(GREEN, "All is well.".to_owned())]));
    }
    for problem in problems {
        lines.push(paint.line(&[(RED, "wrong  ".to_owned()), (PLAIN, problem.clone())]));
    }
    lines
}

/// The controller; where there are several, a table of them.
fn header(title: &str, known: &Known, paint: Paint) -> Vec<String> {
    if title.is_empty()
        && let Some(status) = known.statuses().next()
    {
        let (domain, revision) = (&status.trust_domain, status.revision);
        let more = format!("  trust domain {domain}  revision {revision}");
        let name = format!("weft-controller {}", status.version);
        return vec![paint.line(&[(BOLD, name), (PLAIN, more)])];
    }
    let domain = known.statuses().next();
    let domain = domain.map_or("", |status| &status.trust_domain);
    let mut lines = vec![
        paint.line(&[
            (BOLD, title.to_owned()),
            (PLAIN, format!("  trust domain {domain}")),
        ]),
        String::new(),
    ];
    let mut table = Table::new(&["CONTROLLER", "VERSION", "REVISION", "PROXIES", "STATE"]);
    let proxies = known.proxies();
    for controller in &known.controllers {
        let name = (PLAIN, controller.name.clone());
        let none = || (PLAIN, "-".to_owned());
        let own = proxies.iter().filter(|of| of.controller == controller.name);
        table.row(match &controller.answer {
            Ok(status) => vec![
                name,
                (PLAIN, status.version.clone()),
                (PLAIN, status.revision.to_string()),
                (PLAIN, own.count().to_string()),
                match watches(&status.watches).next() {
                    None if status.leads => (GREEN, "well, leads".to_owned()),
                    None => (GREEN, "well".to_owned()),
                    Some(broken) => (RED, broken),
                },
            ],
            Err(_) => vec![name, none(), none(), none(), (RED, "no answer".to_owned())],
        });
    }
    lines.extend(table.lines(paint));
    lines
}

fn proxies(known: &Known) -> Table {
    // A pod's address is nobody's business here, but which controller it is connected to is.
    let several = !known.names.is_empty();
    let mut table = Table::new(&[
        "PROXY",
        "IDENTITY",
        if several { "CONTROLLER" } else { "ADMIN" },
        "VERSION",
        "CONNECTED",
        "CERTIFICATE",
        "RESOURCES",
        "REVISION",
        "STATE",
    ]);
    for of in known.proxies() {
        let (status, proxy) = (of.status, of.proxy);
        let place = if several { of.controller } else { &proxy.admin };
        table.row(vec![
            (PLAIN, of.name.clone()),
            (
                PLAIN,
                identity(&proxy.identity, &status.trust_domain).to_owned(),
            ),
            (PLAIN, place.to_owned()),
            (PLAIN, proxy.version.clone()),
            (
                PLAIN,
                span(status.now.saturating_sub(proxy.connected_since)),
            ),
            until(status.now, proxy.certificate_expires, CERTIFICATE_LEFT_MIN),
            (PLAIN, proxy.resources.to_string()),
            (PLAIN, proxy.acknowledged.to_string()),
            state(&of),
        ]);
    }
    table
}

/// Without what all of them have in common.
pub fn identity<'a>(identity: &'a str, trust_domain: &str) -> &'a str {
    let local = identity.strip_prefix("spiffe://");
    let local = local.and_then(|rest| rest.strip_prefix(trust_domain));
    local.map_or(identity, |rest| rest.trim_start_matches('/'))
}

fn state(of: &Proxy<'_>) -> Cell {
    let (status, proxy) = (of.status, of.proxy);
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
    use crate::cluster::PodName;
    use crate::mesh::Controller;
    use std::collections::HashMap;
    use weft_config::status::{Condition, ProxyStatus, Refusal, Unwritten};

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
        let known = Known {
            controllers: vec![Controller {
                name: "127.0.0.1:14021".to_owned(),
                answer: Ok(status.clone()),
            }],
            names: HashMap::new(),
        };
        page("", &known)
    }

    fn page(title: &str, known: &Known) -> (Vec<String>, String) {
        let problems = problems(known);
        let paint = Paint {
            color: false,
            width: usize::MAX,
        };
        let page = render(title, known, &problems, paint).join("\n");
        (problems, page)
    }

    #[test]
    fn several_controllers_are_one_mesh() {
        let error = SourceError {
            file: "HTTPRoute shop/web".to_owned(),
            message: "is none".to_owned(),
            ..SourceError::default()
        };
        let mut first = status();
        first.errors.push(error);
        let mut second = first.clone();
        second.revision = 900;
        second.proxies[0].workload = "uid-2".to_owned();
        second.watches.push(WatchStatus {
            kind: "Pod".to_owned(),
            state: WatchState::Broken,
            message: "forbidden".to_owned(),
            ..WatchStatus::default()
        });
        let controller = |name: &str, answer| Controller {
            name: name.to_owned(),
            answer,
        };
        let name = PodName {
            namespace: "shop".to_owned(),
            name: "web-2".to_owned(),
        };
        let known = Known {
            controllers: vec![
                controller("weft-controller-a", Ok(first)),
                controller("weft-controller-b", Ok(second)),
                controller("weft-controller-c", Err("connection refused".to_owned())),
            ],
            names: HashMap::from([("uid-2".to_owned(), name)]),
        };
        let (problems, page) = page("context kind", &known);
        assert_eq!(
            problems,
            [
                "weft-controller-b: cannot watch Pod: forbidden",
                "weft-controller-c: does not answer: connection refused",
                "shop/web-2: is behind: revision 7 of 900",
                "HTTPRoute shop/web: is none",
            ]
        );
        for line in [
            "weft-controller-a    0.1.0         7        1  well",
            "weft-controller-c        -         -        -  no answer",
            "shop/web-2  ns/shop/sa/web  weft-controller-b",
        ] {
            assert!(page.contains(line), "{line}: {page}");
        }
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
        let cases: [(Change, &str); 10] = [
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
                    of.unwritten.push(Unwritten {
                        object: "HTTPRoute shop/web".to_owned(),
                        problem: "denied by a webhook".to_owned(),
                        tries: 4,
                        since: 1,
                    });
                },
                "HTTPRoute shop/web: its status, after 4 tries: denied by a webhook",
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
                |of| of.errors_beyond = 5,
                "5 more that cannot be read: 0 are named",
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

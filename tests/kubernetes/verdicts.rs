//! What Gateway API has a mesh say of routes, written into their statuses and read back from a real
//! API server: the table of `verdicts.rs`.

use serde_json::Value;
use weft_tests::cluster::Cluster;
use weft_tests::eventually_within;
use weft_tests::install::Away;
use weft_tests::verdicts::{Expected, Row, is_said, table};

use super::PATIENCE;
use crate::controller::{Controller, install};

const CONTROLLER: &str = "weft.dev/controller";

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// What is wrong with a route's status, if anything is.
fn wrong(route: &Value, expected: &Expected, number: usize) -> Option<String> {
    let parents = list(&route["status"]["parents"]);
    let ours = expected.parents.iter().flatten().count();
    if parents.len() != ours {
        return Some(format!("{} entries and not {ours}", parents.len()));
    }
    let references = list(&route["spec"]["parentRefs"]);
    for (reference, expected) in references.iter().zip(&expected.parents) {
        // Verbatim, as the API server has it.
        let mut entries = parents.iter().filter(|of| of["parentRef"] == *reference);
        let (Some(entry), Some(expected)) = (entries.next(), expected) else {
            if expected.is_some() {
                return Some(format!("nothing of {reference}"));
            }
            continue;
        };
        let conditions = list(&entry["conditions"]);
        let generation = &route["metadata"]["generation"];
        let is_right = entry["controllerName"] == CONTROLLER
            && is_said(&conditions, expected, number)
            && conditions
                .iter()
                .all(|of| of["observedGeneration"] == *generation);
        if !is_right {
            return Some(format!("{entry:#}"));
        }
    }
    None
}

/// Whose statuses are not yet what they have to be.
fn all_wrong(cluster: &Cluster, rows: &[Row], (own, other): (&str, &str)) -> Vec<String> {
    let kinds = "httproutes,grpcroutes,tlsroutes,tcproutes";
    let mut routes = list(&cluster.get(&["-n", own, kinds])["items"]);
    routes.extend(list(&cluster.get(&["-n", other, kinds])["items"]));
    let mut all = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        for expected in &row.expected {
            let (namespace, name) = match expected.name.split_once('/') {
                Some((_, name)) => (other, name),
                None => (own, expected.name),
            };
            let name = format!("r{number}-{name}");
            let mut found = routes.iter();
            let route = found.find(|of| {
                of["kind"] == expected.kind
                    && of["metadata"]["name"] == *name
                    && of["metadata"]["namespace"] == *namespace
            });
            let problem = match route {
                Some(route) => wrong(route, expected, number),
                None => Some("it is not there".to_owned()),
            };
            all.extend(problem.map(|of| format!("{}: {expected:?}: {of}", row.name)));
        }
    }
    all
}

#[test]
fn routes_are_told_by_gateway_api_s_rules() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _alone = super::alone();
    let _away = Away::send(&cluster);
    install(&cluster);
    let (own, other) = (
        cluster.namespace("verdicts", &[]),
        cluster.namespace("others", &[]),
    );
    let rows = table();
    let names = (own.name.as_str(), other.name.as_str());
    let manifests = rows.iter().enumerate();
    let manifests = manifests.map(|(number, row)| row.manifests(names.0, names.1, number));
    cluster.apply(&manifests.collect::<Vec<_>>().join("\n---\n"));
    let controller = Controller::start(&cluster.kubeconfig, names.0, "one");
    controller.ready();
    let mut last = Vec::new();
    let right = eventually_within(PATIENCE, "every status", || {
        last = all_wrong(&cluster, &rows, names);
        if !last.is_empty() {
            println!("{}", last.join("\n"));
        }
        last.is_empty().then_some(true)
    });
    assert!(right);
    // What is right is left alone: nothing is written any more.
    let written = "weft_controller_status_writes_total{result=\"written\"}";
    let routes = rows.iter().map(|row| row.expected.len()).sum::<usize>();
    let writes = controller.metric(written).unwrap_or_default();
    assert!(
        writes >= routes as f64,
        "{writes} writes for {routes} routes"
    );
}

//! Statuses that cannot be written, or that somebody changes back each time: said by name, and
//! no other's concern.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use weft_tests::cluster::{Cluster, Namespace};
use weft_tests::eventually_within;
use weft_tests::install::Away;

use crate::PATIENCE;
use crate::controller::{Controller, install};

/// Routes of the namespace where no status can be written: more than are written in a second.
const BARRED: usize = 200;

fn service() -> String {
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: NAMESPACE}\nspec: {ports: [{port: 80}]}\n---\n".to_owned()
}

fn route(name: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: NAMESPACE}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}\n---\n"
    )
}

/// Whether our word is in a route's status.
fn is_told(cluster: &Cluster, space: &Namespace, name: &str) -> bool {
    let route = cluster.get(&["-n", &space.name, "httproute", name]);
    let parents = route["status"]["parents"].as_array();
    parents.is_some_and(|of| {
        of.iter()
            .any(|of| of["controllerName"] == "weft.dev/controller")
    })
}

fn unwritten(controller: &Controller, object: &str) -> Option<Value> {
    let status = controller.status();
    let mut all = status["unwritten"].as_array()?.iter();
    all.find(|of| of["object"] == object).cloned()
}

/// A rule of the API server's own by which statuses of a namespace's routes are refused.
struct Bar<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Bar<'a> {
    fn put(cluster: &'a Cluster, space: &Namespace) -> Self {
        let name = format!("barred-{}", space.name);
        cluster.apply(&format!(
            "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {{name: {name}}}\nspec:\n  failurePolicy: Fail\n  matchConstraints:\n    resourceRules:\n    - {{apiGroups: [gateway.networking.k8s.io], apiVersions: ['*'], operations: [UPDATE], resources: [httproutes/status]}}\n  validations: [{{expression: 'false', message: nobody writes here}}]\n---\napiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {{name: {name}}}\nspec:\n  policyName: {name}\n  validationActions: [Deny]\n  matchResources: {{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {space}}}}}}}\n",
            space = space.name
        ));
        Self { cluster, name }
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        for kind in [
            "validatingadmissionpolicybinding",
            "validatingadmissionpolicy",
        ] {
            let _gone = self.cluster.try_kubectl(&["delete", kind, &self.name]);
        }
    }
}

#[test]
fn a_status_that_cannot_be_written_is_named_and_holds_up_no_other() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _alone = super::alone();
    let _away = Away::send(&cluster);
    install(&cluster);
    let barred = cluster.namespace("barred", &[]);
    let free = cluster.namespace("free", &[]);
    let bar = Bar::put(&cluster, &barred);
    // The rule takes a moment to be in force.
    barred.apply(&(service() + &route("probe")));
    let patch = "{\"status\":{\"parents\":[]}}";
    let arguments = [
        "-n",
        &barred.name,
        "patch",
        "httproute",
        "probe",
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
    ];
    eventually_within(PATIENCE, "the rule in force", || {
        let said = cluster.try_kubectl(&arguments);
        String::from_utf8_lossy(&said.stderr)
            .contains("nobody writes here")
            .then_some(())
    });
    let routes: String = (0..BARRED)
        .map(|number| route(&format!("r{number}")))
        .collect();
    barred.apply(&routes);
    let controller = Controller::start(&cluster.kubeconfig, &free.name, "one");
    controller.ready();
    let object = format!("HTTPRoute {}/probe", barred.name);
    let problem = eventually_within(PATIENCE, "the status that cannot be written", || {
        unwritten(&controller, &object)
    });
    let said = problem["problem"].as_str().unwrap_or("");
    assert!(said.contains("nobody writes here"), "{problem}");
    eventually_within(PATIENCE, "a count of them", || {
        let count = controller.metric("weft_controller_statuses_unwritten")?;
        (count >= 100.0).then_some(())
    });
    free.apply(&(service() + &route("r")));
    eventually_within(PATIENCE, "another's status", || {
        is_told(&cluster, &free, "r").then_some(())
    });
    let log = controller.program.output();
    assert!(
        log.matches("a status cannot be written").count() <= 5 * (BARRED + 1),
        "{log}"
    );
    drop(bar);
    eventually_within(3 * PATIENCE, "all of them written", || {
        (controller.metric("weft_controller_statuses_unwritten")? == 0.0
            && is_told(&cluster, &barred, "probe"))
        .then_some(())
    });
}

struct Peace<'a>(&'a AtomicBool);

impl Drop for Peace<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_status_that_somebody_changes_back_is_named_and_written_ever_more_rarely() {
    let Some(cluster) = Cluster::connect() else {
        return;
    };
    let _alone = super::alone();
    let _away = Away::send(&cluster);
    install(&cluster);
    let space = cluster.namespace("fight", &[]);
    space.apply(&(service() + &route("fought") + &route("other")));
    let controller = Controller::start(&cluster.kubeconfig, &space.name, "one");
    controller.ready();
    let ends = AtomicBool::new(false);
    let object = format!("HTTPRoute {}/fought", space.name);
    let named = std::thread::scope(|scope| {
        scope.spawn(|| {
            let patch = "{\"status\":{\"parents\":[]}}";
            let of = ["-n", &space.name, "patch", "httproute", "fought"];
            let how = ["--subresource=status", "--type=merge", "-p", patch];
            let arguments = [&of[..], &how[..]].concat();
            while !ends.load(Ordering::Relaxed) {
                let _patched = cluster.try_kubectl(&arguments);
            }
        });
        // However this ends, so does that.
        let _peace = Peace(&ends);
        eventually_within(PATIENCE, "another's status", || {
            is_told(&cluster, &space, "other").then_some(())
        });
        eventually_within(PATIENCE, "who is fought over", || {
            unwritten(&controller, &object)
        })
    });
    let said = named["problem"].as_str().unwrap_or("");
    assert!(said.contains("somebody changes"), "{named}");
    eventually_within(2 * PATIENCE, "peace", || {
        (is_told(&cluster, &space, "fought") && unwritten(&controller, &object).is_none())
            .then_some(())
    });
}

//! What an object's status has to be, if it is not that already. Pure.
//!
//! **Invariant:** what other controllers have written stays, entries and conditions.
//! **Invariant:** what is said of a newer generation is not replaced by what is said of
//! an older one.
//! **Invariant:** what is right already gives nothing to write.

use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::{Value, json};
use weft_config::status::{Condition, ObjectStatus, SourceError};

use crate::api::{CONTROLLER, ParentRef, mesh};
use crate::index::{parent_text, service_name};

/// The conditions that we are responsible for.
const OURS: [&str; 3] = ["Accepted", "ResolvedRefs", "PartiallyInvalid"];

/// Characters of a condition's message; more says nothing to a person, and Kubernetes
/// takes 32,768.
const MESSAGE_MAX: usize = 2_048;

/// All that is known of one object.
#[derive(Debug, Default)]
pub struct Desired {
    pub statuses: Vec<ObjectStatus>,
    /// Its newest version cannot be read.
    pub error: Option<Arc<SourceError>>,
}

/// The status to write for an object as the API server has it; `now` in RFC 3339.
pub fn status(object: &Value, desired: &Desired, now: &str) -> Option<Value> {
    let is_route = object["spec"].get("parentRefs").is_some()
        || object["status"].get("parents").is_some()
        || object["kind"]
            .as_str()
            .is_some_and(|of| of.ends_with("Route"));
    let fresh = match is_route {
        true => json!({"parents": parents(object, desired, now)?}),
        false if object["kind"] == mesh::KIND => mesh_status(object, desired, now)?,
        false => policy(object, desired, now)?,
    };
    let old = &object["status"];
    let map = fresh.as_object()?;
    let is_right = map.iter().all(|(name, value)| match old.get(name) {
        Some(old) => old == value,
        None => value.as_array().is_some_and(Vec::is_empty),
    });
    (!is_right).then_some(fresh)
}

fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"].as_i64().unwrap_or(0)
}

/// Whether something is said of the object's present generation, and nothing newer is
/// written already.
fn is_timely(object: &Value, statuses: &[ObjectStatus]) -> bool {
    let now = generation(object);
    let mut all = statuses.iter().flat_map(|of| &of.conditions);
    all.all(|condition| condition.observed_generation == now)
}

fn parents(object: &Value, desired: &Desired, now: &str) -> Option<Vec<Value>> {
    let statuses = &desired.statuses;
    if desired.error.is_none() && !is_timely(object, statuses) {
        return None;
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let old = list(&object["status"]["parents"]);
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("");
    let mut fresh = Vec::new();
    for reference in list(&object["spec"]["parentRefs"]) {
        let parent = ParentRef::deserialize(&reference).ok();
        let parent = parent.filter(|of| of.group.is_empty() && of.kind == "Service");
        let Some(parent) = parent else { continue };
        // Nothing yet: what there is stays until something is.
        let conditions = match &desired.error {
            Some(error) => vec![unreadable(error, "UnsupportedValue", generation(object))],
            None => {
                let text = parent_text(&service_name(namespace, &parent), &parent);
                let said = statuses.iter().find(|of| of.parent == text)?;
                said.conditions.clone()
            }
        };
        let is_ours = |of: &&Value| is_ours(of) && of["parentRef"] == reference;
        let before = old.iter().find(is_ours).map(|of| &of["conditions"]);
        let conditions = merged(before, &conditions, now)?;
        fresh.push(json!({
            "parentRef": reference,
            "controllerName": CONTROLLER,
            "conditions": conditions,
        }));
    }
    Some(in_place(old, fresh))
}

fn is_ours(entry: &Value) -> bool {
    entry["controllerName"] == CONTROLLER
}

/// The old list with our entries replaced where they stand, those of parents that are
/// no more left out, and new ones at the end.
fn in_place(old: Vec<Value>, mut fresh: Vec<Value>) -> Vec<Value> {
    let mut all = Vec::new();
    for entry in old {
        if !is_ours(&entry) {
            all.push(entry);
        } else if let Some(at) = fresh
            .iter()
            .position(|of| of["parentRef"] == entry["parentRef"])
        {
            all.push(fresh.remove(at));
        }
    }
    all.extend(fresh);
    all
}

fn unreadable(error: &SourceError, reason: &str, generation: i64) -> Condition {
    Condition {
        kind: "Accepted".to_owned(),
        status: false,
        reason: reason.to_owned(),
        message: format!(
            "{}: {}; its last version that could be read stays in force",
            error.field, error.message
        ),
        observed_generation: generation,
    }
}

/// Conditions as they are written, each with the time when it became so. `None`: those
/// that are there are of a newer generation.
fn merged(before: Option<&Value>, fresh: &[Condition], now: &str) -> Option<Vec<Value>> {
    let before: &[Value] = before.and_then(Value::as_array).map_or(&[], Vec::as_slice);
    // Whoever has a condition of another type here keeps it, and its place.
    let ours = |of: &Value| of["type"].as_str().is_some_and(|kind| OURS.contains(&kind));
    let mut all: Vec<Value> = before.to_vec();
    all.retain(|of| !ours(of) || fresh.iter().any(|fresh| of["type"] == *fresh.kind));
    for condition in fresh {
        let mut old = before.iter();
        let old = old.find(|of| of["type"] == *condition.kind);
        let seen = old.and_then(|old| old["observedGeneration"].as_i64());
        if seen.is_some_and(|seen| seen > condition.observed_generation) {
            return None;
        }
        let word = if condition.status { "True" } else { "False" };
        let since = old
            .filter(|old| old["status"] == word)
            .and_then(|old| old["lastTransitionTime"].as_str());
        let written = json!({
            "type": condition.kind,
            "status": word,
            "reason": condition.reason,
            "message": shortened(&condition.message),
            "observedGeneration": condition.observed_generation,
            "lastTransitionTime": since.unwrap_or(now),
        });
        match all.iter_mut().find(|of| of["type"] == *condition.kind) {
            Some(place) => *place = written,
            None => all.push(written),
        }
    }
    Some(all)
}

fn shortened(message: &str) -> &str {
    match message.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => message.get(..end).unwrap_or(message),
        None => message,
    }
}

fn policy(object: &Value, desired: &Desired, now: &str) -> Option<Value> {
    let statuses = &desired.statuses;
    let accepted = match &desired.error {
        Some(error) => unreadable(error, "Invalid", generation(object)),
        None if !is_timely(object, statuses) => return None,
        None => overall(statuses)?,
    };
    let targets = targets(object, desired, &accepted);
    let conditions = merged(Some(&object["status"]["conditions"]), &[accepted], now)?;
    Some(json!({"conditions": conditions, "targets": targets}))
}

/// Of a mesh that is not ours nothing is said, and one that cannot be read may be anybody's.
fn mesh_status(object: &Value, desired: &Desired, now: &str) -> Option<Value> {
    let statuses = &desired.statuses;
    if desired.error.is_some() || !is_timely(object, statuses) {
        return None;
    }
    let accepted = overall(statuses)?;
    let names: &[&str] = if accepted.status {
        &mesh::FEATURES
    } else {
        &[]
    };
    let features: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    let conditions = merged(Some(&object["status"]["conditions"]), &[accepted], now)?;
    Some(json!({"conditions": conditions, "supportedFeatures": features}))
}

/// The verdict on the whole: the first that is bad, if one is.
fn overall(statuses: &[ObjectStatus]) -> Option<Condition> {
    let mut conditions = statuses.iter().flat_map(|of| &of.conditions);
    let first = conditions.next()?;
    let bad = std::iter::once(first)
        .chain(conditions)
        .find(|of| !of.status);
    Some(bad.unwrap_or(first).clone())
}

/// What the policy names, one by one, or the pods of its namespace.
fn targets(object: &Value, desired: &Desired, accepted: &Condition) -> Vec<Value> {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("");
    let references = object["spec"]["targetRefs"].as_array();
    let target = |kind: &str, name: &str, of: &Condition| {
        json!({
            "kind": kind,
            "namespace": namespace,
            "name": name,
            "accepted": of.status,
            "reason": of.reason,
            "message": shortened(&of.message),
        })
    };
    let Some(references) = references.filter(|of| !of.is_empty()) else {
        return vec![target("Pod", "", accepted)];
    };
    let each = references.iter().map(|reference| {
        let text = |name: &str| reference[name].as_str().unwrap_or("");
        let (kind, name) = (text("kind"), text("name"));
        let own = format!("{kind} {namespace}/{name}");
        let mut statuses = desired.statuses.iter();
        let said = statuses.find(|of| of.parent == own);
        match said.and_then(|of| of.conditions.first()) {
            Some(condition) => target(kind, name, condition),
            None => target(kind, name, accepted),
        }
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-02-01T00:00:00Z";
    const THEN: &str = "2026-01-01T00:00:00Z";

    fn condition(status: bool, generation: i64) -> Condition {
        let reason = if status { "Accepted" } else { "Conflicted" };
        Condition {
            kind: "Accepted".to_owned(),
            status,
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: generation,
        }
    }

    fn said(parent: &str, condition: Condition) -> ObjectStatus {
        ObjectStatus {
            kind: "HTTPRoute".to_owned(),
            namespace: "shop".to_owned(),
            name: "r".to_owned(),
            parent: parent.to_owned(),
            conditions: vec![condition],
        }
    }

    fn desired(statuses: Vec<ObjectStatus>) -> Desired {
        Desired {
            statuses,
            error: None,
        }
    }

    fn route(parents: Value, written: Value) -> Value {
        json!({
            "kind": "HTTPRoute",
            "metadata": {"namespace": "shop", "name": "r", "generation": 2},
            "spec": {"parentRefs": parents},
            "status": {"parents": written},
        })
    }

    fn service(name: &str) -> Value {
        json!({"group": "", "kind": "Service", "name": name, "port": 80})
    }

    fn written(parent: Value, controller: &str, status: &str, generation: i64) -> Value {
        let reason = if status == "True" {
            "Accepted"
        } else {
            "Conflicted"
        };
        json!({
            "parentRef": parent,
            "controllerName": controller,
            "conditions": [{
                "type": "Accepted", "status": status, "reason": reason, "message": "",
                "observedGeneration": generation, "lastTransitionTime": THEN,
            }],
        })
    }

    fn since(mut entry: Value, time: &str) -> Value {
        entry["conditions"][0]["lastTransitionTime"] = json!(time);
        entry
    }

    /// The parents that are to be written.
    fn parents_of(object: &Value, desired: &Desired) -> Option<Value> {
        status(object, desired, NOW).map(|mut status| status["parents"].take())
    }

    #[test]
    fn parents_are_ours_only_where_we_are_asked() {
        let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"});
        let theirs = written(gateway.clone(), "example.com/other", "True", 2);
        let good = desired(vec![said("Service shop/a:80", condition(true, 2))]);
        let fresh = |status: &str| since(written(service("a"), CONTROLLER, status, 2), NOW);
        // The first time, beside another controller's.
        let object = route(json!([gateway, service("a")]), json!([theirs]));
        let expected = json!([theirs, fresh("True")]);
        assert_eq!(parents_of(&object, &good), Some(expected.clone()));
        // It is right already: nothing, whatever the time is.
        let right = route(json!([gateway, service("a")]), expected);
        assert_eq!(status(&right, &good, THEN), None);
        // A verdict that turns has a time of its own; one that stays keeps its time.
        let before = json!([written(service("a"), CONTROLLER, "True", 1), theirs]);
        let object = route(json!([service("a")]), before);
        let kept = json!([written(service("a"), CONTROLLER, "True", 2), theirs]);
        assert_eq!(parents_of(&object, &good), Some(kept));
        let bad = desired(vec![said("Service shop/a:80", condition(false, 2))]);
        let turned = json!([fresh("False"), theirs]);
        assert_eq!(parents_of(&object, &bad), Some(turned));
        // A parent that is no more takes its entry along, in place.
        let stale = written(service("old"), CONTROLLER, "True", 1);
        let object = route(json!([gateway]), json!([stale, theirs]));
        assert_eq!(parents_of(&object, &desired(vec![])), Some(json!([theirs])));
        // Nothing of ours: nothing to write.
        let object = route(json!([gateway]), json!([]));
        assert_eq!(parents_of(&object, &desired(vec![])), None);
    }

    #[test]
    fn conditions_of_others_stay_in_their_place_and_ours_go_when_they_are_over() {
        let other = json!({"type": "example.com/Seen", "status": "True", "reason": "Seen",
            "message": "", "observedGeneration": 9, "lastTransitionTime": THEN});
        let partly = json!({"type": "PartiallyInvalid", "status": "True",
            "reason": "UnsupportedValue", "message": "", "observedGeneration": 1,
            "lastTransitionTime": THEN});
        let mut entry = written(service("a"), CONTROLLER, "False", 1);
        let accepted = entry["conditions"][0].clone();
        entry["conditions"] = json!([partly, other, accepted]);
        let good = desired(vec![said("Service shop/a:80", condition(true, 2))]);
        let object = route(json!([service("a")]), json!([entry]));
        let parents = parents_of(&object, &good).unwrap();
        let fresh = since(written(service("a"), CONTROLLER, "True", 2), NOW);
        let expected = json!([other, fresh["conditions"][0]]);
        assert_eq!(parents[0]["conditions"], expected);
        let right = route(json!([service("a")]), parents);
        assert_eq!(status(&right, &good, NOW), None, "and then it is right");
    }

    #[test]
    fn what_is_newer_or_not_known_yet_stays() {
        let newer = written(service("a"), CONTROLLER, "False", 3);
        let good = desired(vec![said("Service shop/a:80", condition(true, 2))]);
        let object = route(json!([service("a")]), json!([newer]));
        assert_eq!(parents_of(&object, &good), None, "a newer one is there");
        let object = route(json!([service("a")]), json!([]));
        let old = desired(vec![said("Service shop/a:80", condition(true, 1))]);
        assert_eq!(parents_of(&object, &old), None, "the index is behind");
        assert_eq!(parents_of(&object, &desired(vec![])), None, "or further");
    }

    #[test]
    fn one_that_cannot_be_read_says_where() {
        let error = SourceError {
            field: "spec.rules[0].x".to_owned(),
            message: "unknown field".to_owned(),
            ..SourceError::default()
        };
        let bad = Desired {
            error: Some(Arc::new(error)),
            // Of the last version that could be read.
            ..desired(vec![said("Service shop/a:80", condition(true, 1))])
        };
        let object = route(json!([service("a")]), json!([]));
        let parents = parents_of(&object, &bad).unwrap();
        let condition = &parents[0]["conditions"][0];
        assert_eq!(condition["reason"], "UnsupportedValue");
        assert_eq!(condition["observedGeneration"], 2);
        let message = condition["message"].as_str().unwrap();
        assert!(
            message.starts_with("spec.rules[0].x: unknown field; "),
            "{message}"
        );
        let policy = json!({"kind": "TrafficPolicy", "metadata": {"generation": 2}, "spec": {}});
        let written = status(&policy, &bad, NOW).unwrap();
        assert_eq!(written["conditions"][0]["reason"], "Invalid");
    }

    #[test]
    fn a_mesh_says_what_it_supports_once_it_is_accepted() {
        let object = json!({
            "kind": "XMesh",
            "metadata": {"name": "weft", "generation": 2},
            "spec": {"controllerName": CONTROLLER},
            // As its definition fills it in.
            "status": {"conditions": [{
                "type": "Accepted", "status": "Unknown", "reason": "Pending",
                "message": "Waiting for controller", "lastTransitionTime": "1970-01-01T00:00:00Z",
            }]},
        });
        let written = status(&object, &desired(vec![said("", condition(true, 2))]), NOW).unwrap();
        let accepted = &written["conditions"][0];
        assert_eq!(accepted["status"], "True");
        assert_eq!(accepted["observedGeneration"], 2);
        assert_eq!(accepted["lastTransitionTime"], NOW);
        let features = written["supportedFeatures"].as_array().unwrap();
        let names: Vec<&str> = features
            .iter()
            .filter_map(|of| of["name"].as_str())
            .collect();
        assert_eq!(names, mesh::FEATURES);
        let mut again = object.clone();
        again["status"] = written;
        let good = desired(vec![said("", condition(true, 2))]);
        assert_eq!(status(&again, &good, THEN), None, "it is right");
        // One that is refused supports nothing.
        let refused = status(&again, &desired(vec![said("", condition(false, 2))]), NOW).unwrap();
        assert_eq!(refused["supportedFeatures"], json!([]));
        // The index is behind; it is another's; it cannot be read, so that nobody knows whose it is.
        let old = desired(vec![said("", condition(true, 1))]);
        assert_eq!(status(&object, &old, NOW), None);
        assert_eq!(status(&object, &desired(vec![]), NOW), None);
        let error = Some(Arc::default());
        let unreadable = Desired {
            error,
            ..desired(vec![])
        };
        assert_eq!(status(&object, &unreadable, NOW), None);
    }

    #[test]
    fn a_policy_tells_of_each_of_its_targets() {
        let targets = json!([{"kind": "Service", "name": "a"}, {"kind": "Service", "name": "b"}]);
        let object = json!({
            "kind": "TrafficPolicy",
            "metadata": {"namespace": "shop", "name": "p", "generation": 2},
            "spec": {"targetRefs": targets},
        });
        let mixed = desired(vec![
            said("Service shop/a", condition(true, 2)),
            said("Service shop/b", condition(false, 2)),
        ]);
        let written = status(&object, &mixed, NOW).unwrap();
        assert_eq!(written["conditions"][0]["status"], "False");
        let held: Vec<&Value> = [0, 1]
            .iter()
            .map(|at| &written["targets"][at]["accepted"])
            .collect();
        assert_eq!(held, [true, false]);
        let mut again = object.clone();
        again["status"] = written;
        assert_eq!(status(&again, &mixed, NOW), None);
    }

    #[test]
    fn a_target_that_comes_or_goes_is_told_of_whatever_the_others_are() {
        use crate::api::{self, AuthorizationPolicy, Key, Spec, TargetRef};
        use crate::index::{Change, Index};

        let names = ["a", "b"];
        let object = |kind: &'static str, name: &str, spec: Option<Spec>| Change {
            key: Key {
                kind,
                namespace: "shop".to_owned(),
                name: name.to_owned(),
            },
            object: spec.map(|spec| {
                Arc::new(api::Object {
                    namespace: "shop".to_owned(),
                    name: name.to_owned(),
                    created: None,
                    generation: 2,
                    spec,
                })
            }),
        };
        let target = |name: &str| TargetRef {
            group: String::new(),
            kind: "Service".to_owned(),
            name: name.to_owned(),
        };
        let policy = AuthorizationPolicy {
            targets: names.map(target).into(),
            selector: None,
            rules: weft_config::wire::AuthorizationRules::default(),
        };
        let mut index = Index::new("td");
        let policy = object(
            "AuthorizationPolicy",
            "p",
            Some(Spec::Authorization(policy)),
        );
        let key = policy.key.clone();
        let mut seen = json!({
            "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "shop", "name": "p", "generation": 2},
            "spec": {"targetRefs": names.map(|name| json!({"kind": "Service", "name": name}))},
        });
        let there = |name| {
            object(
                "Service",
                name,
                Some(Spec::Service(api::Service::default())),
            )
        };
        let gone = |name| object("Service", name, None);
        for (change, whole, each) in [
            (policy, "False", [false, false]),
            (there("b"), "False", [false, true]),
            (gone("b"), "False", [false, false]),
            (there("a"), "False", [true, false]),
            (there("b"), "True", [true, true]),
        ] {
            let what = format!("{change:?}");
            index.apply([change]);
            assert!(index.take_changed().contains(&key), "is told of: {what}");
            let desired = desired(index.said_of(&key));
            let written = status(&seen, &desired, NOW).unwrap();
            assert_eq!(written["conditions"][0]["status"], whole, "{what}");
            let accepted = [0, 1].map(|at| written["targets"][at]["accepted"] == true);
            assert_eq!(accepted, each, "{what}");
            seen["status"] = written;
        }
    }
}

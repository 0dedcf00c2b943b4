//! How far this replica has read, and the proxies that know more: what such a proxy holds is newer
//! than ours, and stays until we have read as far. See `api::mark`.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::hub::Hub;
use crate::api::mark::{self, Awaited, Claims, Marks};

impl Hub {
    /// Takes up how far the source has read, before what it has read is.
    pub fn marked(&self, marks: Marks) {
        let mut state = self.state.lock();
        state.marks = marks;
        let state = &mut *state;
        let mut left = Vec::new();
        for proxy in state.proxies.values_mut() {
            if proxy.awaited.is_empty() {
                continue;
            }
            proxy.awaited.retain(|of| !of.is_there(&state.marks));
            if proxy.awaited.is_empty() {
                proxy.wake.notify_one();
            }
            merge(&mut left, &proxy.awaited);
        }
        self.behind.send_if_modified(|behind| {
            let changes = behind.awaited != left;
            behind.awaited = left;
            changes
        });
    }

    /// A proxy has been told by another replica as far as this; whether we have yet to come there.
    pub fn claimed(&self, id: u64, claim: &str) -> bool {
        let mut state = self.state.lock();
        // A list that begins before the source has heard of this claim does not count for it.
        let number = self.behind.borrow().made + 1;
        let awaited = mark::awaited(claim, number, &state.marks);
        let Some(proxy) = state.proxies.get_mut(&id) else {
            return false;
        };
        proxy.awaited.clone_from(&awaited);
        if awaited.is_empty() {
            return false;
        }
        let workload = proxy.status.workload.clone();
        self.behind.send_modify(|behind| {
            behind.made = number;
            merge(&mut behind.awaited, &awaited);
        });
        drop(state);
        // It makes us list again if what it claims does not come: who it is must be known.
        if let Some(left_out) = self.may_log(&["claims", &workload]) {
            tracing::info!(
                workload,
                claim,
                left_out,
                "a proxy knows of changes that are yet to be read here"
            );
        }
        true
    }

    /// Whether what a proxy claims to know is not here yet.
    pub fn is_behind(&self, id: u64) -> bool {
        let state = self.state.lock();
        let proxy = state.proxies.get(&id);
        proxy.is_some_and(|proxy| !proxy.awaited.is_empty())
    }

    /// What a proxy has to be told of how far we have read.
    pub fn mark_news(&self, told: &mut BTreeMap<&'static str, u64>) -> String {
        mark::news(&self.state.lock().marks, told)
    }

    /// What proxies know of and we have yet to read.
    pub fn behind(&self) -> watch::Receiver<Claims> {
        self.behind.subscribe()
    }
}

/// The most of each kind: there are as many as kinds.
fn merge(all: &mut Vec<Awaited>, more: &[Awaited]) {
    for of in more {
        match all.iter_mut().find(|other| other.kind == of.kind) {
            Some(other) => {
                other.version = other.version.max(of.version);
                other.claim = other.claim.max(of.claim);
            }
            None => all.push(of.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use prost_types::{Struct, Value, value};
    use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

    use super::*;
    use crate::api::mark::Mark;
    use crate::discovery::leave::tests::{acknowledge, apply, caller, hub, service, turn};
    use crate::discovery::stream::Session;
    use crate::index::Type;

    fn read(hub: &Hub, version: u64, claims: u64) {
        let mark = Mark {
            complete: version,
            seen: version,
            claims,
        };
        hub.marked(Marks::from([("EndpointSlice", mark)]));
    }

    fn node(mark: &str) -> Node {
        let mark = Value {
            kind: Some(value::Kind::StringValue(mark.to_owned())),
        };
        Node {
            metadata: Some(Struct {
                fields: [("mark".to_owned(), mark)].into_iter().collect(),
            }),
            ..Node::default()
        }
    }

    /// A proxy that comes with a mark, and holds these endpoints in some version.
    fn proxy(hub: &Arc<Hub>, mark: &str, held: &[&str]) -> Session {
        let (mut session, _) = Session::open(Arc::clone(hub), caller("client", "c")).unwrap();
        let names = held.iter().map(|name| (*name).to_owned());
        let versions = names.clone().map(|name| (name, "another".to_owned()));
        let subscribe = DeltaDiscoveryRequest {
            type_url: Type::Endpoints.url(),
            node: Some(node(mark)),
            resource_names_subscribe: names.collect(),
            initial_resource_versions: versions.collect::<HashMap<_, _>>(),
            ..Default::default()
        };
        session.receive(subscribe).map_err(|(why, _)| why).unwrap();
        session
    }

    fn want(session: &mut Session, name: &str) {
        let subscribe = DeltaDiscoveryRequest {
            type_url: Type::Endpoints.url(),
            resource_names_subscribe: vec![name.to_owned()],
            ..Default::default()
        };
        session.receive(subscribe).map_err(|(why, _)| why).unwrap();
    }

    fn names(sent: &[DeltaDiscoveryResponse]) -> Vec<&str> {
        let resources = sent.iter().flat_map(|of| &of.resources);
        resources.map(|of| of.name.as_str()).collect()
    }

    #[test]
    fn a_replica_that_lags_takes_nobody_back_and_answers_what_is_new() {
        let hub = hub();
        apply(&hub, &service("web", 8080, &["web-1"]));
        apply(&hub, &service("other", 8080, &["other-1"]));
        read(&hub, 10, 0);
        let mut session = proxy(&hub, "EndpointSlice=12", &["shop/web:80"]);
        assert!(turn(&mut session).is_empty(), "it has newer ones");
        assert_eq!(hub.behind().borrow().awaited.len(), 1, "the source is told");
        want(&mut session, "shop/other:80");
        let sent = turn(&mut session);
        assert_eq!(names(&sent), ["shop/other:80"]);
        assert_eq!(sent[0].system_version_info, "", "it keeps its own mark");
        acknowledge(&mut session, sent);
        // What changes here meanwhile is older still.
        read(&hub, 11, 0);
        apply(&hub, &service("web", 8080, &["web-2"]));
        assert!(turn(&mut session).is_empty());
        assert_eq!(hub.status().proxies[0].acknowledged, 0, "it is behind");
        read(&hub, 12, 0);
        let sent = turn(&mut session);
        assert_eq!(names(&sent), ["shop/web:80"]);
        assert_eq!(sent[0].system_version_info, "EndpointSlice=12");
        acknowledge(&mut session, sent);
        assert!(turn(&mut session).is_empty());
        assert!(hub.behind().borrow().awaited.is_empty());
        assert_eq!(hub.status().proxies[0].acknowledged, hub.status().revision);
    }

    #[test]
    fn what_no_list_has_any_more_is_waited_for_no_longer() {
        let hub = hub();
        apply(&hub, &service("web", 8080, &["web-1"]));
        read(&hub, 10, 0);
        // As after an API server was set back to a backup; or of a proxy that lies.
        let mut session = proxy(&hub, "EndpointSlice=9999999", &["shop/web:80"]);
        assert!(turn(&mut session).is_empty());
        read(&hub, 11, 0);
        assert!(turn(&mut session).is_empty(), "a list begun before");
        let made = hub.behind().borrow().made;
        read(&hub, 11, made);
        let sent = turn(&mut session);
        assert_eq!(names(&sent), ["shop/web:80"]);
        // Who comes as far as we are waits for nothing.
        let mut session = proxy(&hub, "EndpointSlice=11", &["shop/web:80"]);
        assert_eq!(names(&turn(&mut session)), ["shop/web:80"]);
    }
}

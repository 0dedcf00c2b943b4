//! The drain barrier's far side: a workload leaves, and is told who knows.

use std::collections::BTreeSet;
use std::time::Duration;

use tonic::Status;
use weft_config::wire::LeaveResponse;

use super::Caller;
use super::hub::{Hub, Proxy, State};
use super::refusals::REFUSALS_MAX;
use crate::index::{Touched, Type};

/// Who leaves something unanswered for so long, or asks for more than it is told meanwhile, is
/// not waited for any more: it would hold up every workload that leaves, each for as long as it may. What it still sends to one that has
/// left is told "unprocessed" there, and goes elsewhere.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Times that one workload may ask at once; it asks once.
pub(super) const LEAVES_OF_WORKLOAD_MAX: usize = 4;
/// Workloads that a line of the log names.
const NAMED_MAX: usize = 5;

/// A workload that leaves, for as long as its pod is there.
#[derive(Debug)]
pub(super) struct Leaving {
    /// Names of the Endpoints that it is among still, since nobody else could take what it gets.
    listing: BTreeSet<String>,
    /// The revision at which that was last otherwise. A proxy that has come so far knows
    /// all there is to know; later ones are about others.
    since: u64,
}

/// A workload that leaves, and whom that concerns.
#[derive(Debug)]
pub struct Farewell {
    uid: String,
    /// Names of the Endpoints that it was among.
    services: BTreeSet<String>,
    /// Who has acknowledged this revision knows.
    since: u64,
    /// Workloads whose proxies have been seen to use it. A proxy may come back under
    /// another number.
    users: BTreeSet<String>,
    /// Those of them that were connected and did not know when it was asked last.
    unknowing: BTreeSet<String>,
    /// The last of them that is waited for. As long as it does not know, nobody else has to
    /// be asked.
    awaited: Option<u64>,
}

/// How many use a workload that leaves, and how many of them know. Who is not
/// connected cannot know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub users: usize,
    pub acknowledged: usize,
    /// Connected, and yet to answer; waited for.
    pub behind: usize,
}

impl Hub {
    /// Takes a workload out of rotation, and waits until all who use it know.
    pub async fn leave(&self, caller: &Caller, limit: Duration) -> Result<LeaveResponse, Status> {
        let Some(_place) = self.leaves.take(&caller.workload) else {
            self.metrics.leaves.count("refused");
            let problem = format!("workload {} is leaving already", caller.workload);
            return Err(Status::resource_exhausted(problem));
        };
        let mut farewell = self.begin_leave(caller)?;
        let waiting = async {
            loop {
                let notified = self.acknowledged.notified();
                if !self.is_awaited(&farewell) && self.standing(&mut farewell).behind == 0 {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(limit, waiting).await;
        let standing = self.standing(&mut farewell);
        self.note_unknowing(&farewell);
        self.metrics.leaves.count(match standing.behind {
            0 => "acknowledged",
            _ => "timed_out",
        });
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        Ok(LeaveResponse {
            users: count(standing.users),
            acknowledged: count(standing.acknowledged),
        })
    }

    /// Takes a workload out of rotation.
    pub fn begin_leave(&self, caller: &Caller) -> Result<Farewell, Status> {
        let uid = caller.workload.as_str();
        let mut state = self.state.lock();
        if !state.is_owner(caller) {
            self.metrics.leaves.count("refused");
            return Err(Status::permission_denied(format!(
                "workload {uid} is not {}",
                caller.identity
            )));
        }
        let touched = state.index.leave(uid);
        if !touched.is_empty() {
            state.publish(touched);
        }
        let since = state.note_leaving(uid);
        for proxy in state.proxies.values_mut() {
            proxy.status.leaving |= proxy.status.workload == uid;
        }
        Ok(Farewell {
            uid: uid.to_owned(),
            services: state.index.services_of(uid),
            since,
            users: BTreeSet::new(),
            unknowing: BTreeSet::new(),
            awaited: None,
        })
    }

    /// Who of those that a farewell concerns knows of it by now. As long as nobody
    /// else could take what the workload gets, nobody does.
    pub fn standing(&self, farewell: &mut Farewell) -> Standing {
        let state = self.state.lock();
        let needed = state.index.needs(&farewell.uid);
        if let Some(leaving) = state.leaving.get(&farewell.uid) {
            farewell.since = leaving.since;
        }
        let [mut knowing, mut behind, mut silent] = [(); 3].map(|()| BTreeSet::new());
        let mut awaited = None;
        for (id, proxy) in state.users(farewell) {
            let group = match !needed && state.knows(proxy, farewell) {
                true => &mut knowing,
                false if proxy.is_silent() => &mut silent,
                false => {
                    awaited = Some(id);
                    &mut behind
                }
            };
            group.insert(proxy.status.workload.clone());
        }
        farewell.awaited = awaited;
        let all = knowing.iter().chain(&behind).chain(&silent);
        farewell.users.extend(all.cloned());
        farewell.unknowing = behind.union(&silent).cloned().collect();
        Standing {
            users: farewell.users.len(),
            acknowledged: knowing.difference(&farewell.unknowing).count(),
            behind: behind.len(),
        }
    }

    /// Whether who was waited for last still is: what all of them cost, for each answer of
    /// each of them, is much where many leave that many use.
    fn is_awaited(&self, farewell: &Farewell) -> bool {
        let state = self.state.lock();
        let uses = |id: u64| {
            let mut names = farewell.services.iter();
            names.any(|name| {
                state
                    .subscribers_of(name)
                    .is_some_and(|of| of.contains(&id))
            })
        };
        let proxy = farewell.awaited.filter(|id| uses(*id));
        proxy
            .and_then(|id| state.proxies.get(&id))
            .is_some_and(|proxy| !proxy.is_silent() && !state.knows(proxy, farewell))
    }

    /// Says who did not know in time.
    fn note_unknowing(&self, farewell: &Farewell) {
        let unknowing = &farewell.unknowing;
        if unknowing.is_empty() {
            return;
        }
        if let Some(left_out) = self.may_log(&["unknowing"]) {
            let named: Vec<&str> = unknowing
                .iter()
                .take(NAMED_MAX)
                .map(String::as_str)
                .collect();
            tracing::warn!(
                workload = farewell.uid,
                count = unknowing.len(),
                proxies = named.join(" "),
                left_out,
                "a workload leaves, and proxies that use it have not acknowledged it"
            );
        }
    }
}

impl Proxy {
    fn is_silent(&self) -> bool {
        self.silent
            .is_some_and(|since| since.elapsed() >= SILENCE_MAX)
    }
}

impl State {
    /// The revision of which who knows a workload's leaving has to have heard. Who asks
    /// again waits for no more than who asked first.
    fn note_leaving(&mut self, uid: &str) -> u64 {
        if let Some(leaving) = self.leaving.get(uid) {
            return leaving.since;
        }
        if self.index.is_leaving(uid) {
            let leaving = Leaving {
                listing: self.index.listing(uid),
                since: self.revision,
            };
            self.leaving.insert(uid.to_owned(), leaving);
        }
        self.revision
    }

    /// Notes whom a change that is about to be told takes out, or back.
    pub(super) fn note_change(&mut self, touched: &Touched) {
        let (index, revision) = (&self.index, self.revision);
        self.leaving.retain(|uid, leaving| {
            let services = index.services_of(uid);
            let mut concerned = services.iter().chain(&leaving.listing);
            if concerned.any(|name| touched.contains(&(Type::Endpoints, name.clone()))) {
                let listing = index.listing(uid);
                if listing != leaving.listing {
                    (leaving.listing, leaving.since) = (listing, revision);
                }
            }
            index.is_leaving(uid)
        });
    }

    /// The proxies that use a workload, but for its own.
    fn users<'a>(&'a self, farewell: &'a Farewell) -> impl Iterator<Item = (u64, &'a Proxy)> {
        let names = farewell.services.iter();
        let ids: BTreeSet<u64> = names
            .filter_map(|name| self.subscribers_of(name))
            .flatten()
            .copied()
            .collect();
        let proxies = ids
            .into_iter()
            .filter_map(|id| Some((id, self.proxies.get(&id)?)));
        proxies.filter(|(_, proxy)| proxy.status.workload != farewell.uid)
    }

    /// Who wants a service's endpoints.
    fn subscribers_of(&self, service: &str) -> Option<&BTreeSet<u64>> {
        self.subscribers.get(&(Type::Endpoints, service.to_owned()))
    }

    /// Whether what a proxy has in force is without the workload.
    fn knows(&self, proxy: &Proxy, farewell: &Farewell) -> bool {
        let refuses = |service: &String| {
            let resource = format!("{} {service}", Type::Endpoints.name());
            let mut refused = proxy.status.refused.iter();
            refused.any(|refusal| refusal.resource == resource)
        };
        // There may be more refusals than are told of.
        let refuses_much = proxy.status.refused.len() >= REFUSALS_MAX;
        self.acknowledged(proxy) >= farewell.since
            && !refuses_much
            && !farewell.services.iter().any(refuses)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use weft_config::spiffe::SpiffeId;
    use weft_config::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

    use super::*;
    use crate::ca::{Ca, token};
    use crate::discovery::stream::Session;
    use crate::index::Change;
    use crate::source::manifest;

    pub fn caller(account: &str, workload: &str) -> Caller {
        Caller {
            identity: SpiffeId::new("td", "shop", account).unwrap(),
            workload: workload.to_owned(),
            expires: u64::MAX,
            address: String::new(),
            certificate: Vec::new().into(),
        }
    }

    pub fn hub() -> Arc<Hub> {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(folder.path(), "td", Duration::from_secs(60)).unwrap();
        let tokens = token::Verifier::open(folder.path()).unwrap();
        Arc::new(Hub::new(ca, tokens))
    }

    pub fn apply(hub: &Hub, yaml: &str) {
        let parsed = manifest::parse("x.yaml", yaml);
        assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
        let changes = parsed.objects.into_iter().map(|object| Change {
            key: object.key(),
            object: Some(Arc::new(object)),
        });
        hub.update(changes.collect(), Arc::default());
    }

    /// A service of these pods; `port` makes one of them differ from the next.
    pub fn service(name: &str, port: u16, pods: &[&str]) -> String {
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: {port}}}]\nendpoints:\n"
        );
        let address = |pod: &str| pod.bytes().map(u32::from).sum::<u32>() % 256;
        for pod in pods {
            let number = address(pod);
            yaml += &format!(
                "- {{addresses: [10.0.0.{number}], targetRef: {{kind: Pod, name: {pod}, uid: {pod}}}}}\n"
            );
        }
        for pod in pods {
            let number = address(pod);
            yaml += &format!(
                "---\napiVersion: v1\nkind: Pod\n\
                 metadata: {{name: {pod}, namespace: shop, uid: {pod}, annotations: {{weft.dev/inbound: '14008'}}}}\n\
                 spec: {{serviceAccountName: web, containers: []}}\nstatus: {{podIP: 10.0.0.{number}}}\n"
            );
        }
        yaml
    }

    pub fn acknowledge(session: &mut Session, responses: Vec<DeltaDiscoveryResponse>) {
        for response in responses {
            let request = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..Default::default()
            };
            session.receive(request).map_err(|(why, _)| why).unwrap();
        }
    }

    pub fn turn(session: &mut Session) -> Vec<DeltaDiscoveryResponse> {
        let sent = session.turn().map_err(|(why, _)| why).unwrap();
        session.tell();
        sent
    }

    #[test]
    fn who_leaves_waits_for_its_own_news_and_not_for_those_of_others() {
        let hub = hub();
        apply(&hub, &service("web", 8080, &["web-1", "web-2"]));
        apply(&hub, &service("other", 8080, &["other-1"]));
        let (mut session, _) = Session::open(Arc::clone(&hub), caller("client", "c")).unwrap();
        let subscribe = DeltaDiscoveryRequest {
            type_url: Type::Endpoints.url(),
            resource_names_subscribe: vec!["shop/web:80".to_owned(), "shop/other:80".to_owned()],
            ..Default::default()
        };
        session.receive(subscribe).map_err(|(why, _)| why).unwrap();
        let mut sent = turn(&mut session);
        acknowledge(&mut session, sent);
        sent = turn(&mut session);
        assert!(sent.is_empty());
        let mut farewell = hub.begin_leave(&caller("web", "web-1")).unwrap();
        let standing = hub.standing(&mut farewell);
        assert_eq!(standing.behind, 1, "{farewell:?}");
        // The other service never rests: each answer finds the next change waiting.
        sent = turn(&mut session);
        for port in 1..10 {
            apply(&hub, &service("other", port, &["other-1"]));
            acknowledge(&mut session, sent);
            sent = turn(&mut session);
            let standing = hub.standing(&mut farewell);
            assert_eq!((standing.behind, standing.acknowledged), (0, 1), "{port}");
        }
        // Needed again, and left again: what was acknowledged before is not enough.
        acknowledge(&mut session, sent);
        apply(&hub, &service("web", 8080, &["web-1"]));
        assert_eq!(hub.standing(&mut farewell).behind, 1, "it is needed");
        let sent = turn(&mut session);
        acknowledge(&mut session, sent);
        let sent = turn(&mut session);
        acknowledge(&mut session, sent);
        apply(&hub, &service("web", 8080, &["web-1", "web-3"]));
        assert_eq!(
            hub.standing(&mut farewell).behind,
            1,
            "it has yet to hear of web-3"
        );
        let sent = turn(&mut session);
        acknowledge(&mut session, sent);
        session.tell();
        assert_eq!(hub.standing(&mut farewell).behind, 0);
    }

    /// A proxy that wants this service's endpoints, and has been sent them.
    fn user(hub: &Arc<Hub>, workload: &str) -> (Session, Vec<DeltaDiscoveryResponse>) {
        let (mut session, _) = Session::open(Arc::clone(hub), caller("client", workload)).unwrap();
        let subscribe = DeltaDiscoveryRequest {
            type_url: Type::Endpoints.url(),
            resource_names_subscribe: vec!["shop/web:80".to_owned()],
            ..Default::default()
        };
        session.receive(subscribe).map_err(|(why, _)| why).unwrap();
        let sent = turn(&mut session);
        (session, sent)
    }

    #[tokio::test(start_paused = true)]
    async fn one_workload_leaves_a_few_times_at_once() {
        let hub = hub();
        apply(&hub, &service("web", 8080, &["web-1", "web-2"]));
        let (_silent, _unanswered) = user(&hub, "c");
        let limit = Duration::from_secs(5);
        let leave = |workload: &'static str| {
            let hub = Arc::clone(&hub);
            tokio::spawn(async move { hub.leave(&caller("web", workload), limit).await })
        };
        let all: Vec<_> = (0..=LEAVES_OF_WORKLOAD_MAX)
            .map(|_| leave("web-1"))
            .collect();
        let mut refused = 0;
        for one in all {
            match one.await.unwrap() {
                Ok(left) => assert_eq!((left.users, left.acknowledged), (1, 0)),
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                    refused += 1;
                }
            }
        }
        assert_eq!(refused, 1);
        assert!(leave("web-1").await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_leaves_hears_of_the_last_who_knows() {
        let hub = hub();
        apply(&hub, &service("web", 8080, &["web-1", "web-2"]));
        let mut users: Vec<Session> = Vec::new();
        for number in 0..20 {
            let (mut session, sent) = user(&hub, &format!("c{number}"));
            acknowledge(&mut session, sent);
            turn(&mut session);
            users.push(session);
        }
        let task = {
            let hub = Arc::clone(&hub);
            let limit = Duration::from_secs(60);
            tokio::spawn(async move { hub.leave(&caller("web", "web-1"), limit).await })
        };
        tokio::task::yield_now().await;
        // The last goes away instead; the others answer in an order of their own.
        users.pop();
        users.rotate_left(7);
        for session in &mut users {
            assert!(!task.is_finished());
            let sent = turn(session);
            acknowledge(session, sent);
            session.tell();
            tokio::task::yield_now().await;
        }
        let left = task.await.unwrap().unwrap();
        assert_eq!(left.users, left.acknowledged + 1, "{left:?}");
    }
}

//! One kind's watch, for as long as the process lives: find the version, list, watch,
//! and after any failure wait and list again.
//!
//! ```text
//!            ┌──────── not served ────────┐
//!            ▼                            │
//!   find the version ──▶ list (streamed where the server can) ──▶ watch
//!            ▲                            │                         │ its time is over:
//!            └───── wait: back-off ◀──────┴──── any failure ◀───────┤ goes on, same place
//! ```
//!
//! A failure begins with a new list, though a watch could go on where it was: a list
//! tells that all is well, on a quiet kind too, and it is right after an API server was
//! set back to a backup. So does a proxy that knows of changes which the watch does not
//! bring. A list is asked for as of now, never from what an API server has at hand, which
//! may be older than what we had.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kube::api::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Client, Error, Resource as _, ResourceExt as _};
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::StreamExt as _;

use super::held::{ABSENCES_MIN, News, Read};
use super::log::Log;
use super::pause::{Failures, behind_pause, look_pause};
use super::seen::Seen;
use crate::api::Key;
use crate::api::kinds::{WATCHED, Watched};
use crate::source::{Behind, manifest};

/// Seconds that one watch request lasts. The next one goes on where it ended. One that
/// the network has lost without a word is found out by then.
const WATCH_SECONDS: u32 = 60;
/// After which it is lost.
const SILENCE_MAX: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// How long a request may take to be answered at all. One that is sent over a connection which
/// the network has lost is not; the next one goes over another.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// What others know of already has this long to come by itself.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// On the event that ends the list which a watch begins with.
const LIST_ENDS: &str = "k8s.io/initial-events-end";
/// Objects of a page, where lists are not streamed, and how long one may take.
const PAGE_OBJECTS: u32 = 500;
const PAGE_MAX: Duration = Duration::from_secs(30);
/// From one watch request to the next, whatever ends it.
const WATCH_MIN: Duration = Duration::from_secs(1);

/// Where an error of the API server's objects is, as far as a file can be named.
pub const FILE: &str = "kubernetes";

/// Why a watch ended.
enum End {
    /// There is no such kind, or not in this version.
    Missing,
    /// The server cannot stream lists.
    NoStreaming,
    Failed(String),
    /// Others know of changes that it does not bring.
    Behind,
    /// Nobody listens any more.
    Closed,
}

pub struct Watch {
    client: Client,
    number: usize,
    of: &'static Watched,
    news: Sender<(usize, News)>,
    /// Lists are streamed, as far as is known.
    streams: bool,
    failures: Failures,
    /// Looks since the start that did not find it, before it was ever listed.
    absences: u32,
    behind: Behind,
    /// Since when it is listed for what others know.
    behind_list: Option<Instant>,
    /// When it may be again.
    behind_next: Instant,
    log: Log,
}

/// A list, and the watch that follows.
struct Pass {
    version: &'static str,
    /// How many claims there had been when it began.
    claims: u64,
    /// What has come up to now; empty: no list is complete.
    at: String,
    /// Since when others have known more.
    behind_since: Option<Instant>,
}

impl Watch {
    pub fn new(
        client: Client,
        number: usize,
        news: Sender<(usize, News)>,
        behind: Behind,
    ) -> Option<Self> {
        Some(Self {
            client,
            number,
            of: WATCHED.get(number)?,
            news,
            streams: true,
            failures: Failures::default(),
            absences: 0,
            behind,
            behind_list: None,
            behind_next: Instant::now(),
            log: Log::default(),
        })
    }

    pub async fn run(mut self) {
        loop {
            let claims = self.behind.borrow().made;
            let end = match self.version().await {
                Ok(Some(version)) => self.follow(version, claims).await,
                Ok(None) => End::Missing,
                Err(end) => end,
            };
            match end {
                End::Closed => return,
                End::NoStreaming => self.streams = false,
                End::Missing if self.of.is_built_in => {
                    self.fail("the API server does not have it".to_owned())
                        .await;
                }
                End::Missing => {
                    self.log.absent(self.of);
                    self.send(News::Absent { claims }).await;
                    self.absences = self.absences.saturating_add(1);
                    tokio::time::sleep(look_pause(self.absences)).await;
                }
                End::Failed(why) => self.fail(why).await,
                End::Behind => {
                    self.log.behind(self.of);
                    self.behind_list = Some(Instant::now());
                }
            }
        }
    }

    async fn fail(&mut self, why: String) {
        self.log.failed(self.of, &why);
        self.send(News::Broken(why)).await;
        let delay = self.failures.pause(Instant::now(), rand::rng().random());
        tokio::time::sleep(delay).await;
    }

    async fn send(&self, news: News) -> bool {
        self.news.send((self.number, news)).await.is_ok()
    }

    /// The best version that is served; `None`: the kind is not there.
    async fn version(&self) -> Result<Option<&'static str>, End> {
        if self.of.is_built_in {
            return Ok(self.of.versions.first().copied());
        }
        for version in self.of.versions {
            let name = format!("{}/{version}", self.of.group);
            let looking = self.client.list_api_group_resources(&name);
            let found = timeout(ANSWER_MAX, looking).await;
            match found.map_err(|_| unanswered())? {
                Ok(list) => {
                    let mut names = list.resources.iter().map(|of| of.name.as_str());
                    if names.any(|name| name == self.of.plural) {
                        return Ok(Some(version));
                    }
                }
                Err(error) if is_status(&error, 404) => {}
                Err(error) => return Err(End::Failed(reason(&error))),
            }
        }
        Ok(None)
    }

    /// Lists and watches until that ends.
    async fn follow(&mut self, version: &'static str, claims: u64) -> End {
        let api: Api<Seen> = Api::all_with(self.client.clone(), &self.of.resource(version));
        let mut pass = Pass {
            version,
            claims,
            at: String::new(),
            behind_since: None,
        };
        if !self.send(News::Begun(version)).await {
            return End::Closed;
        }
        if !self.streams
            && let Err(end) = self.list(&api, &mut pass).await
        {
            return end;
        }
        loop {
            let begun = Instant::now();
            if let Err(end) = self.watch(&api, &mut pass).await {
                return end;
            }
            if pass.at.is_empty() {
                return End::Failed("the list ended before it was complete".to_owned());
            }
            tokio::time::sleep_until(begun + WATCH_MIN).await;
        }
    }

    /// Lists all, by the page, as of now.
    async fn list(&mut self, api: &Api<Seen>, pass: &mut Pass) -> Result<(), End> {
        let mut asked = ListParams::default().limit(PAGE_OBJECTS);
        asked.field_selector = self.of.fields.map(str::to_owned);
        loop {
            let page = timeout(PAGE_MAX, api.list(&asked)).await;
            let page = page.map_err(|_| unanswered())?;
            let page = page.map_err(|error| self.end(&error))?;
            for seen in page.items {
                let news = self.object(seen, pass.version);
                self.tell(news).await?;
            }
            let next = page.metadata.continue_.filter(|next| !next.is_empty());
            if next.is_none() {
                let at = page.metadata.resource_version.unwrap_or_default();
                return self.listed(at, pass).await;
            }
            asked.continue_token = next;
        }
    }

    /// Watches once, from where the last one ended, else with all there is first.
    async fn watch(&mut self, api: &Api<Seen>, pass: &mut Pass) -> Result<(), End> {
        let mut asked = WatchParams::default().timeout(WATCH_SECONDS);
        asked.field_selector = self.of.fields.map(str::to_owned);
        asked.send_initial_events = pass.at.is_empty();
        let watching = timeout(ANSWER_MAX, api.watch(&asked, &pass.at)).await;
        let watching = watching.map_err(|_| unanswered())?;
        let mut events = pin!(watching.map_err(|error| self.end(&error))?);
        let mut silent_at = Instant::now() + SILENCE_MAX;
        loop {
            let overdue = self.overdue(pass);
            let event = tokio::select! {
                event = timeout_at(silent_at, events.next()) => event,
                Ok(()) = self.behind.changed() => continue,
                () = until(overdue) => return Err(End::Behind),
            };
            silent_at = Instant::now() + SILENCE_MAX;
            match event {
                Ok(Some(Ok(event))) => self.take(event, pass).await?,
                Ok(Some(Err(error))) => return Err(self.end(&error)),
                Ok(None) => return Ok(()),
                Err(_) => return Err(End::Failed(format!("silent for {SILENCE_MAX:?}"))),
            }
        }
    }

    async fn take(&mut self, event: WatchEvent<Seen>, pass: &mut Pass) -> Result<(), End> {
        let is_listed = !pass.at.is_empty();
        match event {
            WatchEvent::Added(seen) | WatchEvent::Modified(seen) => {
                if is_listed {
                    pass.at = seen.resource_version().unwrap_or_default();
                }
                let news = self.object(seen, pass.version);
                self.tell(news).await
            }
            WatchEvent::Deleted(seen) => {
                if is_listed {
                    pass.at = seen.resource_version().unwrap_or_default();
                }
                let news = News::Gone(self.key(&seen), number(&seen.resource_version()));
                self.tell(news).await
            }
            WatchEvent::Bookmark(bookmark) => {
                let at = bookmark.metadata.resource_version;
                if !is_listed && bookmark.metadata.annotations.contains_key(LIST_ENDS) {
                    return self.listed(at, pass).await;
                }
                if is_listed {
                    pass.at.clone_from(&at);
                    return self.tell(News::Progress(number(&Some(at)))).await;
                }
                Ok(())
            }
            // "too old resource version" (410), too: it begins with a list.
            WatchEvent::Error(status) => Err(End::Failed(answered(&status))),
        }
    }

    async fn listed(&mut self, at: String, pass: &mut Pass) -> Result<(), End> {
        if at.is_empty() {
            return Err(End::Failed("the list has no version".to_owned()));
        }
        self.failures.listed(Instant::now());
        self.absences = ABSENCES_MIN;
        if let Some(begun) = self.behind_list.take() {
            self.behind_next = Instant::now() + behind_pause(begun.elapsed());
        }
        self.log.well(self.of, pass.version);
        pass.at.clone_from(&at);
        let (version, claims) = (number(&Some(at)), pass.claims);
        self.tell(News::Listed { version, claims }).await
    }

    async fn tell(&self, news: News) -> Result<(), End> {
        match self.send(news).await {
            true => Ok(()),
            false => Err(End::Closed),
        }
    }

    /// When it is to be listed for what others know, if they do.
    fn overdue(&self, pass: &mut Pass) -> Option<Instant> {
        if pass.at.is_empty() {
            // A list is under way.
            return None;
        }
        let at = number(&Some(pass.at.clone()));
        let behind = self
            .behind
            .borrow()
            .awaited
            .iter()
            .any(|of| of.kind == self.of.kind && of.version > at && of.claim > pass.claims);
        if !behind {
            pass.behind_since = None;
            return None;
        }
        let since = *pass.behind_since.get_or_insert_with(Instant::now);
        Some((since + BEHIND_MAX).max(self.behind_next))
    }

    fn end(&self, error: &Error) -> End {
        match error {
            _ if is_status(error, 404) => End::Missing,
            // "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            _ if self.streams && is_status(error, 422) => End::NoStreaming,
            error => End::Failed(reason(error)),
        }
    }

    fn key(&self, seen: &Seen) -> Key {
        let meta = seen.meta();
        Key {
            kind: self.of.kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    fn object(&self, seen: Seen, version: &str) -> News {
        let (key, at) = (self.key(&seen), number(&seen.resource_version()));
        let mut value = seen.value;
        prune(&mut value);
        if let Some(map) = value.as_object_mut() {
            // The items of a list do not say what they are.
            let api_version = self.of.resource(version).api_version;
            map.insert("apiVersion".to_owned(), json!(api_version));
            map.insert("kind".to_owned(), json!(self.of.kind));
        }
        let read = Read {
            for_status: self.of.has_status.then(|| for_status(&value)),
            object: manifest::one(FILE, value),
        };
        News::Object(key, at, Box::new(read))
    }
}

fn unanswered() -> End {
    End::Failed("the API server does not answer".to_owned())
}

/// A version as the number that it is; 0: it is none.
fn number(version: &Option<String>) -> u64 {
    let number = version.as_ref().and_then(|of| of.parse().ok());
    number.unwrap_or(0)
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What `status::patch` reads of an object, which is little of a large one.
fn for_status(value: &Value) -> Arc<str> {
    let metadata = ["namespace", "name", "generation", "resourceVersion"];
    let part = |within: &str, names: &[&str]| -> Value {
        let of = value.get(within).and_then(Value::as_object);
        let kept = of.into_iter().flatten();
        let kept = kept.filter(|(name, _)| names.contains(&name.as_str()));
        kept.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let kept = json!({
        "kind": value["kind"],
        "metadata": part("metadata", &metadata),
        "spec": part("spec", &["parentRefs", "targetRefs"]),
        "status": value["status"],
    });
    kept.to_string().into()
}

/// Drops what is large and read by nobody.
fn prune(value: &mut Value) {
    for (within, names) in [
        ("/metadata", &["managedFields"][..]),
        ("/spec", &["containers", "initContainers", "volumes"]),
        (
            "/status",
            &["containerStatuses", "initContainerStatuses", "images"],
        ),
    ] {
        if let Some(map) = value.pointer_mut(within).and_then(Value::as_object_mut) {
            names.iter().for_each(|name| drop(map.remove(*name)));
        }
    }
}

fn is_status(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api(status) if status.code == code)
}

/// What went wrong, with its causes, in one line.
fn reason(error: &Error) -> String {
    if let Error::Api(status) = error {
        return answered(status);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(of) = cause {
        // Some say what their cause says, too.
        let of_it = of.to_string();
        if !text.contains(&of_it) {
            text.push_str(&format!(": {of_it}"));
        }
        cause = of.source();
    }
    text
}

fn answered(status: &Status) -> String {
    format!("{} {}: {}", status.code, status.reason, status.message)
}

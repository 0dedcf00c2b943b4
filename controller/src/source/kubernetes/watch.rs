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
//! set back to a backup.

use std::pin::pin;
use std::time::Duration;

use kube::api::Api;
use kube::core::Status;
use kube::runtime::watcher::{self, Config, Event, InitialListStrategy, watcher};
use kube::{Client, Error, Resource as _};
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use super::held::News;
use super::seen::Seen;
use crate::api::Key;
use crate::api::kinds::{WATCHED, Watched};
use crate::source::manifest;

/// Seconds that one watch request lasts. The next one goes on where it ended. One that
/// the network has lost without a word is found out by then.
const WATCH_SECONDS: u32 = 60;
/// Objects of a page, where lists are not streamed.
const PAGE_OBJECTS: u32 = 500;
/// How often a kind that is missing is looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// What fails again and again is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Where an error of the API server's objects is, as far as a file can be named.
pub const FILE: &str = "kubernetes";

/// Why a watch ended.
enum End {
    /// There is no such kind, or not in this version.
    Missing,
    /// The server cannot stream lists.
    NoStreaming,
    Failed(String),
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
    /// In a row.
    failures: u32,
    log: Log,
}

impl Watch {
    pub fn new(client: Client, number: usize, news: Sender<(usize, News)>) -> Option<Self> {
        Some(Self {
            client,
            number,
            of: WATCHED.get(number)?,
            news,
            streams: true,
            failures: 0,
            log: Log::default(),
        })
    }

    pub async fn run(mut self) {
        loop {
            let end = match self.version().await {
                Ok(Some(version)) => self.follow(version).await,
                Ok(None) => End::Missing,
                Err(error) => End::Failed(reason(&error)),
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
                    self.send(News::Absent).await;
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                End::Failed(why) => self.fail(why).await,
            }
        }
    }

    async fn fail(&mut self, why: String) {
        self.log.failed(self.of, &why);
        self.send(News::Broken(why)).await;
        let delay = back_off(self.failures, rand::rng().random());
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(delay).await;
    }

    async fn send(&self, news: News) -> bool {
        self.news.send((self.number, news)).await.is_ok()
    }

    /// The best version that is served; `None`: the kind is not there.
    async fn version(&self) -> Result<Option<&'static str>, Error> {
        if self.of.is_built_in {
            return Ok(self.of.versions.first().copied());
        }
        for version in self.of.versions {
            let name = format!("{}/{version}", self.of.group);
            match self.client.list_api_group_resources(&name).await {
                Ok(list) => {
                    let mut names = list.resources.iter().map(|of| of.name.as_str());
                    if names.any(|name| name == self.of.plural) {
                        return Ok(Some(version));
                    }
                }
                Err(error) if is_status(&error, 404) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Lists and watches until that ends.
    async fn follow(&mut self, version: &'static str) -> End {
        let resource = self.of.resource(version);
        let api: Api<Seen> = Api::all_with(self.client.clone(), &resource);
        let mut config = Config::default()
            .timeout(WATCH_SECONDS)
            .page_size(PAGE_OBJECTS);
        config.field_selector = self.of.fields.map(str::to_owned);
        if self.streams {
            config.initial_list_strategy = InitialListStrategy::StreamingList;
        }
        let mut events = pin!(watcher(api, config));
        loop {
            let Some(event) = events.next().await else {
                return End::Failed("the watch ended".to_owned());
            };
            let news = match event {
                Ok(Event::Init) => News::Begun(version),
                Ok(Event::InitApply(seen) | Event::Apply(seen)) => {
                    self.object(seen, &resource.api_version)
                }
                Ok(Event::Delete(seen)) => News::Gone(self.key(&seen)),
                Ok(Event::InitDone) => {
                    self.failures = 0;
                    self.log.well(self.of, version);
                    News::Listed
                }
                Err(error) => return self.end(&error),
            };
            if !self.send(news).await {
                return End::Closed;
            }
        }
    }

    fn end(&self, error: &watcher::Error) -> End {
        use watcher::Error as Of;
        let cause = match error {
            Of::InitialListFailed(cause) | Of::WatchStartFailed(cause) | Of::WatchFailed(cause) => {
                cause
            }
            Of::WatchError(status) => return End::Failed(answered(status)),
            Of::NoResourceVersion => return End::Failed(error.to_string()),
        };
        match cause {
            _ if is_status(cause, 404) => End::Missing,
            // "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            _ if self.streams && is_status(cause, 422) => End::NoStreaming,
            cause => End::Failed(reason(cause)),
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

    fn object(&self, seen: Seen, api_version: &str) -> News {
        let key = self.key(&seen);
        let mut value = seen.value;
        prune(&mut value);
        if let Some(map) = value.as_object_mut() {
            // The items of a list do not say what they are.
            map.insert("apiVersion".to_owned(), json!(api_version));
            map.insert("kind".to_owned(), json!(self.of.kind));
        }
        News::Object(key, Box::new(manifest::one(FILE, value)))
    }
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

/// How long to wait after so many failures in a row: twice as long each time, and
/// between half of it and all by chance (0 to 1), so that watches do not come in step.
fn back_off(failures: u32, chance: f64) -> Duration {
    let doubled = BACK_OFF_MIN.saturating_mul(2_u32.saturating_pow(failures));
    doubled.min(BACK_OFF_MAX).mul_f64(0.5 + chance / 2.0)
}

/// Says what changes, and what goes on only so often.
#[derive(Debug, Default)]
struct Log {
    broken_since: Option<Instant>,
    told: Option<Instant>,
    was_absent: bool,
}

impl Log {
    fn failed(&mut self, of: &Watched, why: &str) {
        let since = *self.broken_since.get_or_insert_with(Instant::now);
        if self.told.is_none_or(|told| told.elapsed() >= LOG_INTERVAL) {
            self.told = Some(Instant::now());
            tracing::warn!(
                kind = of.kind,
                broken_seconds = since.elapsed().as_secs(),
                why,
                "cannot watch; what is known stays in force"
            );
        }
    }

    fn absent(&mut self, of: &Watched) {
        self.broken_since = None;
        self.told = None;
        if !std::mem::replace(&mut self.was_absent, true) {
            tracing::info!(
                kind = of.kind,
                group = of.group,
                "is not installed; it comes on when it is"
            );
        }
    }

    fn well(&mut self, of: &Watched, version: &str) {
        if let Some(since) = self.broken_since.take() {
            tracing::info!(
                kind = of.kind,
                broken_seconds = since.elapsed().as_secs(),
                "watched again"
            );
        }
        if std::mem::take(&mut self.was_absent) {
            tracing::info!(kind = of.kind, version, "is installed now");
        }
        self.told = None;
    }
}

//! What is told of a request once it has ended: its metric series and its
//! access-log line.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery};
use tokio::time::Instant;
use weft_config::snapshot::Rule;

use super::Connection;
use super::request::{Current, Incoming};
use super::series::{SeriesKey, SeriesLabels};
use crate::logic::cause::Cause;
use crate::state::ServiceState;
use crate::telemetry::access_log::Entry;

/// Filled in as the request goes its way.
#[derive(Debug)]
pub struct Record {
    pub started: Instant,
    ended: Option<Instant>,
    pub status: u16,
    pub cause: Cause,
    pub detail: Cow<'static, str>,
    pub rule: Option<Arc<Rule>>,
    pub service: Option<Arc<ServiceState>>,
    pub endpoint: Option<SocketAddr>,
    pub tries: u32,
    /// From the start of the last try to its answer's head.
    pub upstream: Option<Duration>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub request_id: Option<HeaderValue>,
    /// The kind of probe that it was let in as; empty: it is none.
    pub probe: &'static str,
    /// What the client asked for, before any rewrite; for the log.
    pub asked: Option<(Option<Authority>, PathAndQuery)>,
}

impl Record {
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            ended: None,
            status: 0,
            cause: Cause::Answered,
            detail: Cow::Borrowed(""),
            rule: None,
            service: None,
            endpoint: None,
            tries: 0,
            upstream: None,
            bytes_in: 0,
            bytes_out: 0,
            request_id: None,
            probe: "",
            asked: None,
        }
    }

    /// The moment of the end; the first call decides it.
    pub fn end(&mut self) -> Instant {
        *self.ended.get_or_insert_with(Instant::now)
    }

    /// Ends the request: counts it and logs it.
    pub fn finish(&mut self, connection: &Connection, current: &Current, incoming: &Incoming) {
        let shared = &connection.worker.shared;
        let duration = self.end() - self.started;
        if self.probe.is_empty() {
            self.count(connection, current, duration);
        } else {
            // No traffic of the service.
            let good = (200..400).contains(&self.status);
            shared.metrics.probed(self.probe, good);
        }
        if shared.access_log.is_on() {
            self.log(connection, current, incoming, duration);
        }
    }

    fn count(&self, connection: &Connection, current: &Current, duration: Duration) {
        let shared = &connection.worker.shared;
        let key = SeriesKey {
            listener: Arc::as_ptr(&current.listener.config) as usize,
            service: self.service.as_ref().map_or(0, |service| service.pool_id),
            rule: self
                .rule
                .as_ref()
                .map_or(0, |rule| Arc::as_ptr(rule) as usize),
            endpoint: self.endpoint,
        };
        let labels = SeriesLabels {
            listener: &current.listener.config.name,
            service: self.service_name(),
            route: self.rule.as_ref().map_or("", |rule| &rule.route),
        };
        connection
            .worker
            .series
            .get(current.runtime.generation, key, labels, &shared.metrics)
            .record(
                self.status,
                self.cause,
                duration,
                self.bytes_in,
                self.bytes_out,
            );
    }

    fn service_name(&self) -> &str {
        self.service
            .as_ref()
            .map_or("", |service| &service.config.name)
    }

    fn log(
        &self,
        connection: &Connection,
        current: &Current,
        incoming: &Incoming,
        duration: Duration,
    ) {
        let parts = &incoming.parts;
        let (authority, path) = match &self.asked {
            Some((authority, path)) => (authority.as_ref(), path),
            None => (parts.authority.as_ref(), &parts.path_and_query),
        };
        let request_id = self.request_id.as_ref().and_then(|id| id.to_str().ok());
        connection.worker.shared.access_log.record(&Entry {
            time: SystemTime::now() - duration,
            listener: &current.listener.config.name,
            client: connection.client,
            method: incoming.parts.method.as_str(),
            authority: authority.map_or("", Authority::as_str),
            path: path.as_str(),
            protocol: incoming.protocol,
            status: self.status,
            cause: self.cause,
            reason: &self.detail,
            route: self.rule.as_ref().map_or("", |rule| &rule.route),
            rule: self.rule.as_ref().map_or("", |rule| &rule.name),
            service: self.service_name(),
            backend: self.endpoint,
            tries: self.tries,
            duration,
            upstream: self.upstream,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            request_id: request_id.unwrap_or(""),
            tls: connection.tls_version,
            probe: self.probe,
            peer: connection.peer_name(),
        });
    }
}

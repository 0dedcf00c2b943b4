//! What is logged of one watch.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::kinds::Watched;

/// What fails again and again is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Says what changes, and what goes on only so often.
#[derive(Debug, Default)]
pub(super) struct Log {
    broken_since: Option<Instant>,
    told: Option<Instant>,
    was_absent: bool,
    told_behind: Option<Instant>,
}

impl Log {
    pub(super) fn failed(&mut self, of: &Watched, why: &str) {
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

    pub(super) fn behind(&mut self, of: &Watched) {
        if self
            .told_behind
            .is_none_or(|told| told.elapsed() >= LOG_INTERVAL)
        {
            self.told_behind = Some(Instant::now());
            tracing::warn!(
                kind = of.kind,
                "proxies know of changes that the watch does not bring; listing again"
            );
        }
    }

    pub(super) fn absent(&mut self, of: &Watched) {
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

    pub(super) fn well(&mut self, of: &Watched, version: &str) {
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

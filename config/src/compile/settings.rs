//! `settings`: what concerns the whole process.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::at::{At, known, or_default};
use crate::snapshot::{AccessLog, AccessLogFormat, Settings};
use crate::wire;

const ADMIN_PORT: u16 = 14020;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN_QUIET: Duration = Duration::from_secs(1);
/// Half of the time that Kubernetes gives a pod to end.
const DRAIN_BARRIER: Duration = Duration::from_secs(15);
const DRAIN_BARRIER_MAX: Duration = Duration::from_secs(300);
/// A path that nobody guesses; 32 hex digits are 128 bits.
const DRAIN_PATH_BYTES: std::ops::RangeInclusive<usize> = 16..=256;
const METRIC_LABEL_VALUES_MAX: u32 = 1000;
/// More threads than any machine has cores is a typing error.
const WORKERS_MAX: u32 = 1024;

pub(super) fn compile(at: &At<'_>, settings: Option<&wire::Settings>) -> Option<Settings> {
    let default = wire::Settings::default();
    let settings = settings.unwrap_or(&default);

    let workers = if settings.workers > WORKERS_MAX {
        at.field("workers").error(format!(
            "{} is more than {WORKERS_MAX}; 0 takes the CPU quota",
            settings.workers
        ));
        None
    } else {
        Some(settings.workers as usize)
    };
    let admin = if settings.admin.is_empty() {
        Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, ADMIN_PORT)))
    } else {
        at.field("admin").address(&settings.admin)
    };
    let access_log = access_log(&at.field("accessLog"), settings.access_log.as_ref());
    let drain_at = at.field("drain");
    let drain = settings.drain.clone().unwrap_or_default();
    let drain_timeout = drain_at
        .field("timeout")
        .duration_or(&drain.timeout, DRAIN_TIMEOUT);
    let drain_quiet = drain_at
        .field("quiet")
        .duration_or(&drain.quiet, DRAIN_QUIET);
    if let (Some(timeout), Some(quiet)) = (drain_timeout, drain_quiet)
        && quiet > timeout
    {
        drain_at
            .field("quiet")
            .error("must not be longer than drain.timeout (default 30s), which ends it");
    }
    let drain_barrier = drain_at
        .field("barrier")
        .duration_or(&drain.barrier, DRAIN_BARRIER);
    if drain_barrier.is_some_and(|barrier| barrier > DRAIN_BARRIER_MAX) {
        drain_at.field("barrier").error("is longer than 5m");
    }
    let drain_path = drain_path(&drain_at.field("path"), &drain.path);
    let mesh = settings
        .mesh
        .as_ref()
        .map(|mesh| super::mesh::settings(&at.field("mesh"), mesh));
    Some(Settings {
        mesh: mesh.map_or(Some(None), |mesh| mesh.map(Some))?,
        workers: workers?,
        admin: admin?,
        access_log: access_log?,
        drain_timeout: drain_timeout?,
        drain_quiet: drain_quiet?,
        drain_barrier: drain_barrier?,
        drain_path: drain_path?,
        zone: settings.zone.as_str().into(),
        connections_max: settings.connections_max as usize,
        metric_label_values_max: or_default(
            settings.metric_label_values_max,
            METRIC_LABEL_VALUES_MAX,
        ) as usize,
    })
}

fn drain_path(at: &At<'_>, path: &str) -> Option<Option<Arc<str>>> {
    if path.is_empty() {
        return Some(None);
    }
    let plain = path.strip_prefix('/').is_some_and(|rest| {
        rest.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
    });
    if plain && DRAIN_PATH_BYTES.contains(&path.len()) {
        return Some(Some(path.into()));
    }
    at.error("must be / and 15 to 255 letters, digits, and any of - _ . /, not to be guessed");
    None
}

fn access_log(at: &At<'_>, log: Option<&wire::AccessLog>) -> Option<AccessLog> {
    let Some(log) = log else {
        return Some(AccessLog {
            format: AccessLogFormat::Off,
            path: None,
        });
    };
    let format = match known(&at.field("format"), log.format)? {
        wire::access_log::Format::Off => AccessLogFormat::Off,
        wire::access_log::Format::Json => AccessLogFormat::Json,
        wire::access_log::Format::Text => AccessLogFormat::Text,
    };
    if format == AccessLogFormat::Off && !log.path.is_empty() {
        at.field("path")
            .error("has no effect while the format is off; set format to json or text");
    }
    Some(AccessLog {
        format,
        path: (!log.path.is_empty()).then(|| log.path.clone().into()),
    })
}

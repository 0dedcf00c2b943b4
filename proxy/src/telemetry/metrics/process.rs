//! What the kernel knows of this process.

use std::time::{SystemTime, UNIX_EPOCH};

use super::exposition::Exposition;

/// Resident memory in bytes; `None` where /proc is not mounted.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Open file descriptors.
pub fn open_descriptors() -> Option<usize> {
    // The listing itself holds one open.
    Some(
        std::fs::read_dir("/proc/self/fd")
            .ok()?
            .count()
            .saturating_sub(1),
    )
}

/// The soft limit of open file descriptors.
pub fn descriptors_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// User and system time of all threads, in seconds.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name may hold spaces; the fields after it do not.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

pub(super) fn write(page: &mut Exposition, started: SystemTime) {
    page.family(
        "process_start_time_seconds",
        "gauge",
        "When the process started, in seconds since the Unix epoch.",
    );
    let since = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    page.sample(&[], since.as_secs_f64());
    if let Some(seconds) = cpu_seconds() {
        page.family(
            "process_cpu_seconds_total",
            "counter",
            "User and system time.",
        );
        page.sample(&[], seconds);
    }
    if let Some(bytes) = resident_bytes() {
        page.family("process_resident_memory_bytes", "gauge", "Resident memory.");
        page.sample(&[], bytes);
    }
    if let Some(open) = open_descriptors() {
        page.family("process_open_fds", "gauge", "Open file descriptors.");
        page.sample(&[], open);
    }
    if let Some(max) = descriptors_max() {
        page.family(
            "process_max_fds",
            "gauge",
            "Limit of open file descriptors.",
        );
        page.sample(&[], max);
    }
}

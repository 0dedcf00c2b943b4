//! Gives back the memory that starting and learning took: pages of the program that
//! only the start-up, the YAML parser or the compiler ran. They are the file's, so the
//! kernel has them still; those that traffic needs come back at their next use, some
//! hundred at less than a microsecond each.

use std::fs;
use std::time::Duration;

use rustix::mm::{Advice, madvise};
use tokio::time::{Instant, sleep_until};

/// After this long without a change of the configuration.
const REST: Duration = Duration::from_secs(3);

/// When to give back next.
#[derive(Debug)]
pub struct Footprint {
    due: Option<Instant>,
}

impl Footprint {
    pub fn new() -> Self {
        Self {
            due: Some(Instant::now() + REST),
        }
    }

    /// The configuration has changed.
    pub fn disturb(&mut self) {
        self.due = Some(Instant::now() + REST);
    }

    /// Waits until everything rests, and gives back once.
    pub async fn rest(&mut self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
        self.due = None;
        if let Ok(maps) = fs::read_to_string("/proc/self/maps") {
            maps.lines().filter_map(program).for_each(give_back);
        }
    }
}

/// Start and length of a mapping of a program's or library's code or constants.
fn program(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, access, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?;
    // Read-only and not at the file's beginning: the linker has written to it (RELRO).
    let unwritten = access == "r-xp" || (access == "r--p" && offset == "00000000");
    if !unwritten || !path.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[allow(
    unsafe_code,
    reason = "madvise takes an address; what it drops of a file's mapping that nobody has written to is read again as it was"
)]
fn give_back((start, length): (usize, usize)) {
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: a mapping of this process as the kernel lists it, private and never written,
    // so that its pages are the file's: dropping them changes nothing that can be read.
    let _ = unsafe { madvise(start, length, Advice::LinuxDontNeed) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_constants_and_nothing_that_was_written() {
        for (line, expected) in [
            (
                "1000-3000 r-xp 00435000 fe:00 54 /bin/weft-proxy",
                Some((0x1000, 0x2000)),
            ),
            (
                "1000-3000 r--p 00000000 fe:00 54 /bin/weft-proxy",
                Some((0x1000, 0x2000)),
            ),
            ("1000-3000 r--p 00e28000 fe:00 54 /bin/weft-proxy", None),
            ("1000-3000 rw-p 00ec3000 fe:00 54 /bin/weft-proxy", None),
            ("1000-3000 rw-p 00000000 00:00 0", None),
            ("1000-3000 r-xp 00000000 00:00 0 [vdso]", None),
            ("nonsense", None),
        ] {
            assert_eq!(program(line), expected, "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_is_there_when_it_is_used() {
        let constants = include_str!("footprint.rs");
        let before = constants.to_owned();
        let mut footprint = Footprint::new();
        footprint.rest().await;
        assert_eq!(constants, before);
        assert!(footprint.due.is_none());
        footprint.disturb();
        assert!(footprint.due.is_some());
    }
}

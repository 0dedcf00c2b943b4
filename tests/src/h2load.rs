//! h2load, nghttp2's load generator, and what it counted.

use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

/// h2load's own count.
#[derive(Debug)]
pub struct Counted {
    pub total: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub errored: u64,
    pub timed_out: u64,
    /// Answers of 2xx.
    pub good: u64,
    /// All that it printed.
    pub output: String,
}

impl Counted {
    /// Every request was answered with 2xx.
    #[track_caller]
    pub fn all_good(&self) {
        let lost = self.failed + self.errored + self.timed_out;
        assert!(
            lost == 0 && self.total > 0 && self.good == self.total && self.succeeded == self.total,
            "{}",
            self.output
        );
    }
}

/// Runs it to its end.
#[track_caller]
pub fn h2load(arguments: &[&str]) -> Counted {
    start(arguments).join().expect("h2load runs")
}

/// Runs it beside the test.
pub fn start(arguments: &[&str]) -> JoinHandle<Counted> {
    let mut command = Command::new("h2load");
    command.args(arguments).stdin(Stdio::null());
    thread::spawn(move || {
        let output = command
            .output()
            .expect("h2load can be run; `make test` installs it");
        let output = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        counted(output)
    })
}

fn counted(output: String) -> Counted {
    let number = |line: &str, word: &str| -> u64 {
        let line = output.lines().find(|text| text.starts_with(line));
        line.and_then(|text| {
            let before = text.split(&format!(" {word}")).next()?;
            before.rsplit([' ', ',']).next()?.parse().ok()
        })
        .unwrap_or_else(|| panic!("h2load did not count {word}:\n{output}"))
    };
    Counted {
        total: number("requests:", "total"),
        succeeded: number("requests:", "succeeded"),
        failed: number("requests:", "failed"),
        errored: number("requests:", "errored"),
        timed_out: number("requests:", "timeout"),
        good: number("status codes:", "2xx"),
        output,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read() {
        let counted = counted(
            "requests: 100 total, 100 started, 100 done, 98 succeeded, 2 failed, 1 errored, 0 timeout\n\
             status codes: 97 2xx, 1 3xx, 0 4xx, 0 5xx\n"
                .to_owned(),
        );
        assert_eq!((counted.total, counted.succeeded), (100, 98));
        assert_eq!(
            (counted.failed, counted.errored, counted.timed_out),
            (2, 1, 0)
        );
        assert_eq!(counted.good, 97);
    }
}

//! Network namespaces: hosts of their own, joined by a wire, for what must not touch this one.
//!
//! A thread goes into one, and what it starts (threads, programs) is there too.

use std::fs::File;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::path_with_sbin;

/// Two hosts, `10.88.0.1`, `fd88::1` and `10.88.0.2`, `fd88::2`, each the other's way to everywhere.
pub struct Pair {
    pub one: Host,
    pub two: Host,
}

/// One namespace; it is gone when this is dropped.
pub struct Host {
    name: String,
}

impl Pair {
    /// `None`, with a line that says so, where namespaces cannot be had.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let host = |end: &str| Host {
            name: format!("weft-{}-{name}-{end}", std::process::id()),
        };
        let (one, two) = (host("1"), host("2"));
        for host in [&one, &two] {
            if !ip(&["netns", "add", &host.name]) {
                println!("stepped aside: a network namespace takes root");
                return None;
            }
        }
        let wire = [
            "link", "add", "wire", "netns", &one.name, "type", "veth", "peer", "name", "wire",
            "netns", &two.name,
        ];
        assert!(ip(&wire), "a wire between two namespaces");
        let pair = Self { one, two };
        for (host, own, other) in [(&pair.one, 1, 2), (&pair.two, 2, 1)] {
            let (v4, v6) = (format!("10.88.0.{own}/24"), format!("fd88::{own}/64"));
            let (via4, via6) = (format!("10.88.0.{other}"), format!("fd88::{other}"));
            for arguments in [
                ["link", "set", "lo", "up"].as_slice(),
                &["link", "set", "wire", "up"],
                &["addr", "add", &v4, "dev", "wire"],
                // Its uniqueness is known: no waiting.
                &["addr", "add", &v6, "dev", "wire", "nodad"],
                &["route", "add", "default", "via", &via4],
                &["-6", "route", "add", "default", "via", &via6],
            ] {
                assert!(
                    ip(&[&["-n", host.name.as_str()], arguments].concat()),
                    "ip {arguments:?}"
                );
            }
        }
        Some(pair)
    }
}

impl Host {
    /// Does it on this host.
    pub fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let there =
            File::open(format!("/run/netns/{}", self.name)).expect("the namespace is there");
        thread::scope(|scope| {
            let done = scope.spawn(|| {
                move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may go there");
                what()
            });
            done.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    let output = Command::new("ip")
        .args(arguments)
        .env("PATH", path_with_sbin())
        .output();
    output.is_ok_and(|output| output.status.success())
}

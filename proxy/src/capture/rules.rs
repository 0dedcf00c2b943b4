//! What the rules are, and how `nft` writes them (pure).

use std::fmt;
use std::net::IpAddr;

use super::{Block, Capture, OWN_PORTS};

/// Their table, of family inet: IPv4 and IPv6.
pub const TABLE: &str = "weft";

/// All that is there while traffic is captured.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    pub chains: [Chain; 2],
}

#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    pub hook: Hook,
    pub rules: Vec<Rule>,
}

/// Where in the kernel a chain of type nat sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Output,
}

/// Where destinations are translated.
pub const PRIORITY: i32 = -100;

/// A rule: all but the last leave what they match alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Of a socket of this user.
    User(u32),
    /// Leaves by loopback: what stays on this host is not meant for the mesh. By its
    /// service's address a workload reaches itself through the mesh all the same.
    ToLoopback,
    FromLoopback,
    /// What is only passed on (a router, a bridge) is not this workload's.
    NotLocal,
    /// TCP to any of these ports; at least one, in order, each once.
    Ports(Vec<u16>),
    /// A rule each: a set refuses blocks that overlap.
    To(Block),
    /// All other TCP.
    Redirect(u16),
}

impl Table {
    pub fn of(capture: &Capture) -> Self {
        let mut outbound = vec![Rule::User(capture.uid), Rule::ToLoopback];
        outbound.extend(ports(&capture.skip_outbound_ports));
        outbound.extend(capture.skip_outbound_cidrs.iter().copied().map(Rule::To));
        outbound.push(Rule::Redirect(capture.outbound_port));
        let own = [capture.outbound_port, capture.inbound_port];
        let left_alone: Vec<u16> = own
            .into_iter()
            .chain(OWN_PORTS)
            .chain(capture.skip_inbound_ports.iter().copied())
            .collect();
        let mut inbound = vec![Rule::FromLoopback, Rule::NotLocal];
        inbound.extend(ports(&left_alone));
        inbound.push(Rule::Redirect(capture.inbound_port));
        Self {
            chains: [
                Chain {
                    name: "outbound",
                    hook: Hook::Output,
                    rules: outbound,
                },
                Chain {
                    name: "inbound",
                    hook: Hook::Prerouting,
                    rules: inbound,
                },
            ],
        }
    }
}

fn ports(ports: &[u16]) -> Option<Rule> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    (!ports.is_empty()).then_some(Rule::Ports(ports))
}

/// The whole transaction; `None`: nothing is to be left. `delete` fails where there is
/// no table, so one is made first.
pub fn text(table: Option<&Table>) -> String {
    let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
    let Some(table) = table else { return text };
    text.push_str(&format!("table inet {TABLE} {{\n"));
    for chain in &table.chains {
        text.push_str(&format!("\tchain {} {{\n\t\t{}\n", chain.name, chain.hook));
        for rule in &chain.rules {
            text.push_str(&format!("\t\t{rule}\n"));
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
        };
        write!(
            f,
            "type nat hook {name} priority {PRIORITY}; policy accept;"
        )
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "meta skuid {uid} return"),
            Self::ToLoopback => f.write_str("oifname \"lo\" return"),
            Self::FromLoopback => f.write_str("iifname \"lo\" return"),
            Self::NotLocal => f.write_str("fib daddr type != local return"),
            Self::Ports(ports) => match ports.as_slice() {
                // As newer versions of nft make of a set of one.
                [port] => write!(f, "tcp dport {port} return"),
                ports => {
                    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                    write!(f, "tcp dport {{ {} }} return", ports.join(", "))
                }
            },
            Self::To(Block { address, prefix }) => {
                let family = match address {
                    IpAddr::V4(_) => "ip",
                    IpAddr::V6(_) => "ip6",
                };
                write!(f, "{family} daddr {address}/{prefix} return")
            }
            Self::Redirect(port) => write!(f, "meta l4proto tcp redirect to :{port}"),
        }
    }
}

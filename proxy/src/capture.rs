//! `weft-proxy capture`: has the kernel hand this network namespace's TCP to the
//! sidecar, by nftables, and takes that back. What the rules are is pure (`rules`);
//! the kernel is told in its own words (`netlink`), so that no program and no
//! library is needed where there is neither.
//!
//! ```text
//! local program ─▶ output ──────▶ 14001   not: the sidecar's own user, loopback, what is skipped
//! somebody else ─▶ prerouting ──▶ 14006   not: the sidecar's own ports, what is skipped
//! ```
//!
//! **Invariant:** what the sidecar dials is never captured, so nothing goes round
//! in a loop; one transaction replaces all rules, so there is never half of them.

mod message;
mod netlink;
mod rules;

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use rustix::io::Errno;

use rules::Table;

/// The sidecar's user, where none is named: the one that meshes customarily use.
const SIDECAR_UID: u32 = 1337;
const OUTBOUND_PORT: u16 = 14001;
const INBOUND_PORT: u16 = 14006;
/// mTLS without capture, and the admin server: reached as they are.
const OWN_PORTS: [u16; 2] = [14008, 14020];
/// Of each flag. All rules go to the kernel in one piece, which its buffer has to hold.
const SKIPPED_MAX: usize = 300;

const EXAMPLES: &str = "\
Examples:
  weft-proxy capture --uid 1337                 everything but what user 1337 (the sidecar) dials
  weft-proxy capture --skip-inbound-ports 22 --skip-outbound-cidrs 169.254.169.254
  weft-proxy capture --print                    the rules, for `nft -f -` elsewhere
  weft-proxy capture --undo                     as if nothing had been (connections that were captured end)

It works on the network namespace it is run in (a pod's, a container's, a machine's) and may be
repeated: the rules are replaced as a whole. It takes CAP_NET_ADMIN; the sidecar itself does not.
The sidecar must run as a user of its own, or it would capture itself.";

/// Redirect this network namespace's TCP to the sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = EXAMPLES)]
pub struct Capture {
    /// Remove the rules.
    #[arg(long)]
    pub undo: bool,

    /// Write the rules to standard output and change nothing.
    #[arg(long)]
    pub print: bool,

    /// The user that the sidecar runs as: what it dials is left alone.
    #[arg(long, value_name = "UID", default_value_t = SIDECAR_UID)]
    pub uid: u32,

    /// The sidecar's listener of role outbound without a destination.
    #[arg(long, value_name = "PORT", default_value_t = OUTBOUND_PORT)]
    pub outbound_port: u16,

    /// The sidecar's listener of role inbound.
    #[arg(long, value_name = "PORT", default_value_t = INBOUND_PORT)]
    pub inbound_port: u16,

    /// Ports of this host that are reached as if there were no sidecar.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub skip_inbound_ports: Vec<u16>,

    /// Ports that are dialled as if there were no sidecar.
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub skip_outbound_ports: Vec<u16>,

    /// Addresses or blocks (10.0.0.0/8) that are dialled as if there were no sidecar.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub skip_outbound_cidrs: Vec<Block>,
}

/// A block of addresses; one address is a block too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    address: IpAddr,
    prefix: u8,
}

impl FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no address or block such as 10.0.0.0/8 or fd00::/8");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(digits) => digits.parse().map_err(|_| wrong())?,
        };
        (prefix <= longest)
            .then_some(Self { address, prefix })
            .ok_or_else(wrong)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("--{flag}: {count} are too many; {SKIPPED_MAX} may be skipped")]
    TooMany { flag: &'static str, count: usize },
    #[error(
        "changing the rules takes CAP_NET_ADMIN in this network namespace: run it as root, or give the container the capability NET_ADMIN"
    )]
    NotPermitted,
    #[error(
        "this kernel has no nftables (module nf_tables): Linux 5.2 or later is needed, built with it"
    )]
    NoNftables(#[source] io::Error),
    #[error(
        "this kernel does not take `{what}`: {needs} is needed (Linux 5.2 or later). All rules: --print"
    )]
    Kernel {
        /// The line of the rules.
        what: String,
        /// What the kernel has it from.
        needs: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the kernel cannot be told of rules")]
    Io(#[source] io::Error),
}

/// Does what the command line asks.
pub fn run(capture: &Capture) -> Result<(), CaptureError> {
    for (flag, count) in [
        ("skip-inbound-ports", capture.skip_inbound_ports.len()),
        ("skip-outbound-ports", capture.skip_outbound_ports.len()),
        ("skip-outbound-cidrs", capture.skip_outbound_cidrs.len()),
    ] {
        if count > SKIPPED_MAX {
            return Err(CaptureError::TooMany { flag, count });
        }
    }
    let table = (!capture.undo).then(|| Table::of(capture));
    if capture.print {
        return io::stdout()
            .write_all(rules::text(table.as_ref()).as_bytes())
            .map_err(CaptureError::Io);
    }
    let steps = message::steps(table.as_ref());
    let Err(refusal) = netlink::transact(&steps).map_err(CaptureError::Io)? else {
        return Ok(());
    };
    let source = io::Error::from(refusal.error);
    Err(match (refusal.step, refusal.error) {
        (_, Errno::PERM | Errno::ACCESS) => CaptureError::NotPermitted,
        (None, _) => CaptureError::NoNftables(source),
        (Some(step), _) => CaptureError::Kernel {
            what: step.what.clone(),
            needs: step.needs,
            source,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        capture: Capture,
    }

    fn capture(arguments: &[&str]) -> Capture {
        let arguments = ["capture"].iter().chain(arguments);
        Line::try_parse_from(arguments).unwrap().capture
    }

    #[test]
    fn the_rules() {
        let text = |arguments: &[&str]| rules::text(Some(&Table::of(&capture(arguments))));
        let plain = text(&[]);
        assert_eq!(
            plain,
            "table inet weft\ndelete table inet weft\ntable inet weft {\n\
             \tchain outbound {\n\t\ttype nat hook output priority -100; policy accept;\n\
             \t\tmeta skuid 1337 return\n\t\toifname \"lo\" return\n\
             \t\tmeta l4proto tcp redirect to :14001\n\t}\n\
             \tchain inbound {\n\t\ttype nat hook prerouting priority -100; policy accept;\n\
             \t\tiifname \"lo\" return\n\t\tfib daddr type != local return\n\
             \t\ttcp dport { 14001, 14006, 14008, 14020 } return\n\
             \t\tmeta l4proto tcp redirect to :14006\n\t}\n}\n"
        );
        let skipping = text(&[
            "--uid=7",
            "--skip-inbound-ports=22,14020",
            "--skip-outbound-ports=53,25,53",
            "--skip-outbound-cidrs=10.0.0.0/8,10.1.0.0/16,fd00::1",
        ]);
        for line in [
            "meta skuid 7 return",
            "tcp dport { 25, 53 } return",
            "ip daddr 10.0.0.0/8 return",
            "ip daddr 10.1.0.0/16 return",
            "ip6 daddr fd00::1/128 return",
            "tcp dport { 22, 14001, 14006, 14008, 14020 } return",
        ] {
            assert!(skipping.contains(line), "{line}:\n{skipping}");
        }
    }

    #[test]
    fn undoing_leaves_nothing() {
        let undone = rules::text(None);
        assert_eq!(undone, "table inet weft\ndelete table inet weft\n");
    }

    #[test]
    fn what_is_skipped_has_a_limit() {
        let ports: Vec<String> = (1..=301).map(|port: u16| port.to_string()).collect();
        let flag = format!("--skip-inbound-ports={}", ports.join(","));
        let asked = capture(&[&flag, "--print"]);
        assert!(matches!(run(&asked), Err(CaptureError::TooMany { .. })));
    }

    #[test]
    fn nothing_else_gets_into_the_rules() {
        for bad in [
            "--uid=x",
            "--skip-inbound-ports=70000",
            "--skip-outbound-ports=1;2",
            "--skip-outbound-cidrs=10.0.0.0/33",
            "--skip-outbound-cidrs=10.0.0.0/",
            "--skip-outbound-cidrs=fd00::/129",
            "--skip-outbound-cidrs=a } drop",
        ] {
            assert!(Line::try_parse_from(["capture", bad]).is_err(), "{bad}");
        }
    }
}

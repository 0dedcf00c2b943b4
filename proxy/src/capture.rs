//! `weft-proxy capture`: has the kernel hand this network namespace's TCP to the
//! sidecar, by nftables, and takes that back. The text of the rules is pure;
//! loading them is the program `nft`'s work.
//!
//! ```text
//! local program ─▶ output ──────▶ 14001   not: the sidecar's own user, loopback, what is skipped
//! somebody else ─▶ prerouting ──▶ 14006   not: the sidecar's own ports, what is skipped
//! ```
//!
//! **Invariant:** what the sidecar dials is never captured, so nothing goes round
//! in a loop; one transaction replaces all rules, so there is never half of them.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};
use std::str::FromStr;

use clap::Args;

/// The sidecar's user, where none is named: the one that meshes customarily use.
const SIDECAR_UID: u32 = 1337;
const OUTBOUND_PORT: u16 = 14001;
const INBOUND_PORT: u16 = 14006;
/// mTLS without capture, and the admin server: reached as they are.
const OWN_PORTS: [u16; 2] = [14008, 14020];
/// Debian keeps it in sbin, which a user's PATH lacks.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];

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
    #[error(
        "the program nft is not here; install it (apt-get install nftables), or load the rules of --print by other means"
    )]
    NoProgram,
    #[error(
        "changing the rules takes CAP_NET_ADMIN in this network namespace: run it as root, or give the container the capability NET_ADMIN"
    )]
    NotPermitted,
    #[error(
        "this kernel cannot do it: nftables with NAT in family inet is needed (Linux 5.2 or later; modules nf_tables, nft_chain_nat, nft_redir, nft_fib_inet). nft says:\n{0}"
    )]
    Kernel(String),
    #[error("nft cannot be run")]
    Io(#[source] io::Error),
}

/// Does what the command line asks.
pub fn run(capture: &Capture) -> Result<(), CaptureError> {
    let rules = rules(capture);
    if capture.print {
        return io::stdout()
            .write_all(rules.as_bytes())
            .map_err(CaptureError::Io);
    }
    let output = load(&rules)?;
    if output.status.success() {
        return Ok(());
    }
    Err(failure(&String::from_utf8_lossy(&output.stderr)))
}

/// The whole transaction. `delete` fails where there is no table, so one is made first.
fn rules(capture: &Capture) -> String {
    let mut text = "table inet weft\ndelete table inet weft\n".to_owned();
    if !capture.undo {
        text.push_str("table inet weft {\n");
        outbound(capture, &mut text);
        inbound(capture, &mut text);
        text.push_str("}\n");
    }
    text
}

/// What local programs dial.
fn outbound(capture: &Capture, text: &mut String) {
    text.push_str("\tchain outbound {\n\t\ttype nat hook output priority -100; policy accept;\n");
    let _ = writeln!(text, "\t\tmeta skuid {} return", capture.uid);
    // What stays on this host is not meant for the mesh; by its service's
    // address a workload reaches itself through the mesh all the same.
    text.push_str("\t\toifname \"lo\" return\n");
    skip(text, &capture.skip_outbound_ports);
    // One rule each: a set refuses blocks that overlap.
    for block in &capture.skip_outbound_cidrs {
        let family = if block.address.is_ipv4() { "ip" } else { "ip6" };
        let (address, prefix) = (block.address, block.prefix);
        let _ = writeln!(text, "\t\t{family} daddr {address}/{prefix} return");
    }
    redirect(text, capture.outbound_port);
}

/// What others dial on this host.
fn inbound(capture: &Capture, text: &mut String) {
    text.push_str(
        "\tchain inbound {\n\t\ttype nat hook prerouting priority -100; policy accept;\n",
    );
    text.push_str("\t\tiifname \"lo\" return\n");
    // What is only passed on (a router, a bridge) is not this workload's.
    text.push_str("\t\tfib daddr type != local return\n");
    let own = [capture.outbound_port, capture.inbound_port];
    let ports: Vec<u16> = own
        .into_iter()
        .chain(OWN_PORTS)
        .chain(capture.skip_inbound_ports.iter().copied())
        .collect();
    skip(text, &ports);
    redirect(text, capture.inbound_port);
}

fn skip(text: &mut String, ports: &[u16]) {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let _ = writeln!(text, "\t\ttcp dport {{ {} }} return", ports.join(", "));
    }
}

fn redirect(text: &mut String, port: u16) {
    let _ = writeln!(text, "\t\tmeta l4proto tcp redirect to :{port}\n\t}}");
}

fn load(rules: &str) -> Result<Output, CaptureError> {
    for program in PROGRAMS {
        let started = Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match started {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            started => started.map_err(CaptureError::Io)?,
        };
        if let Some(mut input) = child.stdin.take() {
            // One that has ended already says why on its standard error.
            let _ = input.write_all(rules.as_bytes());
        }
        return child.wait_with_output().map_err(CaptureError::Io);
    }
    Err(CaptureError::NoProgram)
}

fn failure(said: &str) -> CaptureError {
    if said.contains("Operation not permitted") || said.contains("Permission denied") {
        CaptureError::NotPermitted
    } else {
        CaptureError::Kernel(said.trim_end().to_owned())
    }
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
        let plain = rules(&capture(&[]));
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
        let skipping = rules(&capture(&[
            "--uid=7",
            "--skip-inbound-ports=22,14020",
            "--skip-outbound-ports=53,25,53",
            "--skip-outbound-cidrs=10.0.0.0/8,10.1.0.0/16,fd00::1",
        ]));
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
        let undone = rules(&capture(&["--undo", "--skip-inbound-ports=22"]));
        assert_eq!(undone, "table inet weft\ndelete table inet weft\n");
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

    #[test]
    fn what_nft_says_is_understood() {
        let denied =
            failure("netlink: Error: cache initialization failed: Operation not permitted\n");
        assert!(matches!(denied, CaptureError::NotPermitted));
        let kernel = failure("/dev/stdin:4:1-5: Error: Could not process rule: No such file\n");
        assert!(kernel.to_string().contains("Could not process rule"));
    }
}
